"""What pytest finds when this package is installed: the fixture `quorate_node`.

NB: loaded by every run of pytest where it is installed, so everything but pytest is imported by the fixture.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from quorate_testing.running_node import TestNode


@pytest.fixture
def quorate_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[TestNode]":
    """A node of the test's own; `quorate.config()`, `quorate.http()`, `quorate.lifespan()` and
    `Client.from_environment()` find it, in this process and in those that it starts."""
    from quorate_sdk.shared_client import forget_default_client  # noqa: PLC0415 - see above

    from quorate_testing.running_node import node  # noqa: PLC0415

    with node(tmp_path / "quorate") as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        forget_default_client()
        yield running
        forget_default_client()
