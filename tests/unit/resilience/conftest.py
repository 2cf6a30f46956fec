"""Where the coverage of this member is measured, tests marked `untraced` run as fast as they do elsewhere.

Such a test counts to many to show a share, a bound or a cost, and takes each line of its subject thousands of times:
tracing these would cost minutes and show no line that the other tests have not shown. It runs the same, and the bound
on the coverage has to be met without it.
"""

import warnings
from collections.abc import Generator

import pytest
from coverage import Coverage
from coverage.exceptions import CoverageWarning


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "untraced: repeats so often that its coverage is not measured")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    measuring = Coverage.current()
    if measuring is None or item.get_closest_marker("untraced") is None:
        return (yield)
    measuring.stop()
    try:
        return (yield)
    finally:
        with warnings.catch_warnings():
            # That its modules are imported already, which is well: they were traced then.
            warnings.simplefilter("ignore", CoverageWarning)
            measuring.start()
