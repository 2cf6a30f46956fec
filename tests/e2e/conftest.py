"""One platform for all journeys: it is started once, broken by each test, and whole again after each."""

from collections.abc import Iterator

import pytest
from support.platform import Platform


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    running = Platform(tmp_path_factory.mktemp("platform"))
    seconds = running.start()
    print(f"\nthe platform was ready after {seconds:.1f} s")  # noqa: T201 - a figure for whoever runs the tests
    try:
        yield running
    finally:
        status = running.stop()
        running.http.close()
        print(f"\n{running.output()[-4000:]}" if status else "")  # noqa: T201 - only when it went wrong
    assert status == 0
