"""Real nodes that are broken while clients use them. Every history that the clients saw is judged.

`FAULT_ROUNDS` (default 1) repeats each test so many times, on the same nodes; `FAULT_SEED` (default 1) decides what
clients and random faults do, and each round counts on from it. REQUIRE_FAULTS=1 makes a failure of what is skipped
because this machine does not allow it (root, `ip netns`, `iptables`, `mount`).
"""

import os
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from support.fault_cluster import FaultCluster, fault_cluster, placed_cluster
from support.fault_network import FaultNetwork, NetworkUnavailable, fault_network

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
SEED = int(os.environ.get("FAULT_SEED", "1"))
REQUIRE_VARIABLE = "REQUIRE_FAULTS"
NODE_NAMES = ("node-1", "node-2", "node-3")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fault_round" in metafunc.fixturenames:
        metafunc.parametrize("fault_round", range(SEED, SEED + ROUNDS), ids=lambda number: f"round{number}")


@pytest.fixture(scope="session")
def refuse() -> Callable[[str], NoReturn]:
    """Skips with the reason, or fails with it where REQUIRE_FAULTS=1 wants the test."""

    def give_up(reason: str) -> NoReturn:
        if os.environ.get(REQUIRE_VARIABLE, "") not in ("", "0"):
            pytest.fail(f"{REQUIRE_VARIABLE} is set, and {reason}", pytrace=False)
        pytest.skip(f"{reason} ({REQUIRE_VARIABLE}=1 makes this a failure)")

    return give_up


@pytest.fixture(scope="session")
def show(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Shows a figure to whoever runs the tests, past the capture of output."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(text, flush=True)  # noqa: T201 - it is what this fixture is for

    return write


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultCluster]:
    with fault_cluster(tmp_path_factory.mktemp("nodes"), SEED) as started:
        started.start()
        yield started


@pytest.fixture
def cluster(running: FaultCluster) -> Iterator[FaultCluster]:
    """Three nodes on loopback; whole again after each test, whatever it has left."""
    yield running
    running.mend()


@pytest.fixture(scope="module")
def placed_running(
    refuse: Callable[[str], NoReturn], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FaultNetwork, FaultCluster]]:
    """A network that can be cut and three nodes in it; the tests are inside of it too."""
    try:
        with (
            fault_network(NODE_NAMES) as network,
            network.entered(),
            placed_cluster(tmp_path_factory.mktemp("placed"), SEED, network) as started,
        ):
            started.start()
            yield network, started
    except NetworkUnavailable as error:
        refuse(f"partitions are not tested: {error}")


@pytest.fixture
def network(placed_running: tuple[FaultNetwork, FaultCluster]) -> FaultNetwork:
    return placed_running[0]


@pytest.fixture
def placed(placed_running: tuple[FaultNetwork, FaultCluster]) -> Iterator[FaultCluster]:
    """Three nodes in that network; both whole again after each test, whatever it has left."""
    network, started = placed_running
    yield started
    network.heal()
    started.mend()
