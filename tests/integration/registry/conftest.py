"""What tests of the registry with real processes have in common."""

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def show(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Shows a figure to whoever runs the tests, past the capture of output."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(text, flush=True)  # noqa: T201 - it is what this fixture is for

    return write
