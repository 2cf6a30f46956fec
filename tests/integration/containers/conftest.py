"""One deployment for all of this folder's tests: built, started, looked at, broken, and taken away."""

import os
import secrets
from collections.abc import Callable, Iterator

import pytest
from integration.containers.deployment import PROCESSES, Deployment, Engine, find_engine

REQUIRE_VARIABLE = "REQUIRE_DOCKER"


@pytest.fixture(scope="session")
def engine() -> Engine:
    """Skips, with the reason, where there is no engine to use; fails with it where REQUIRE_DOCKER=1 wants one."""
    found = find_engine()
    if isinstance(found, Engine):
        return found
    if os.environ.get(REQUIRE_VARIABLE, "") not in ("", "0"):
        pytest.fail(f"{REQUIRE_VARIABLE} is set, and {found}", pytrace=False)
    pytest.skip(f"image and compose are not tested: {found} ({REQUIRE_VARIABLE}=1 makes this a failure)")


@pytest.fixture(scope="session")
def show(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Shows a figure to whoever runs the tests, past the capture of output."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(text, flush=True)  # noqa: T201 - it is what this fixture is for

    return write


@pytest.fixture(scope="session")
def deployment(engine: Engine, show: Callable[[str], None]) -> Iterator[Deployment]:
    running = Deployment(engine, f"quorate-test-{secrets.token_hex(4)}")
    try:
        built_s = running.build()
        show(f"\nengine {engine.version}, {' '.join(engine.compose)}; project {running.project}")
        show(f"image: built in {built_s:.0f} s, {running.image()['Size'] / 1e6:.0f} MB with its base")
        healthy_s = running.up()
        memory = running.memory()
        show(f"all healthy after {healthy_s:.1f} s")
        for name in PROCESSES:
            show(f"  {name:<10} healthy after {running.healthy_after_s[name]:5.1f} s, memory {memory[name]}")
        yield running
    finally:
        running.http.close()
        running.down()
