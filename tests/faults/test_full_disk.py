"""A node whose disk is full stops and says so; the others go on; with room again it comes back with everything."""

from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from quorate_core.process import EXIT_FAILURE
from support.fault_cluster import FaultCluster, fault_cluster
from support.fault_disk import MountUnavailable, SmallDisk, small_disk
from support.node_processes import NodeProcess

Show = Callable[[str], None]

DISK_BYTES = 48 * 1024 * 1024
"""A segment of the log, the next one, and a state that is a few MiB."""
LEFT_BYTES = 3 * 4096
"""So that a write fits in part, as it does on a disk that fills up by itself."""
WRITES = 30
FULL_S_MAX = 40.0


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, refuse: Callable[[str], NoReturn]) -> Iterator[SmallDisk]:
    try:
        with small_disk(tmp_path_factory.mktemp("mount") / "disk", DISK_BYTES) as made:
            yield made
    except MountUnavailable as error:
        refuse(f"a full disk is not tested: {error}")


@pytest.fixture(scope="module")
def cluster(disk: SmallDisk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultCluster]:
    """The first node's data is on the small disk."""
    with fault_cluster(tmp_path_factory.mktemp("nodes"), seed=1) as running:
        running.nodes[0].changes["--data-dir"] = str(disk.folder / "data")
        running.start()
        yield running


def said_at_the_end(node: NodeProcess, already: int) -> str:
    """After it has ended by itself, with the status that has a supervisor start it again."""
    status = node.exit_status(FULL_S_MAX)
    said = node.log[already:]
    assert status == EXIT_FAILURE, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("leads", [False, True], ids=["a follower's", "the leader's"])
def test_a_full_disk_stops_its_node_alone(
    cluster: FaultCluster, disk: SmallDisk, leads: bool, fault_round: int, show: Show
) -> None:
    node, others = cluster.nodes[0], cluster.nodes[1:]
    cluster.wait_whole()
    cluster.hand_over(node if leads else others[0])
    already = len(node.log)
    with cluster.load(f"full-{'leader' if leads else 'follower'}-{fault_round}") as load:
        disk.fill(LEFT_BYTES)
        said = said_at_the_end(node, already)
        assert "the disk is full" in said
        assert str(disk.folder) in said
        load.wait_for_writes(WRITES, [other.name for other in others])
        already = len(node.log)
        node.start()
        assert "the disk is full" in said_at_the_end(node, already), "started again without room, it says so again"
        load.wait_for_writes(WRITES, [other.name for other in others])
        disk.make_room()
        node.restart()
        load.wait_for_writes(WRITES, [node.name])
        cluster.wait_whole()
    show(f"\n{load.judge()}; it said: {said.strip().splitlines()[-1].strip()[-200:]}")
