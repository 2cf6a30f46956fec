"""Watches at nodes that are killed, stopped and cut off, and of history that is compacted: every event reaches every
watcher once, in order, whole. Each log of each watcher is compared with the history of the store."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from support import mutant_node
from support.fault_breaker import Breaker
from support.fault_cluster import FaultCluster
from support.fault_network import FaultNetwork
from support.fault_watches import Entry, Event, Events, History, Lost, Progress, Watched, WatchLoad, judge
from support.node_processes import NodeProcess, node_cluster
from support.watch_mutations import WATCH_MUTATIONS

pytestmark = pytest.mark.timeout(300)
"""The judge waits for watchers that a busy machine has left far behind."""

Show = Callable[[str], None]

WRITES = 100
FAULT_S = 2.0
"""Long enough for the watchers of a node that says nothing to look for another one."""
FAULTS = 4
FAULT_S_MIN, FAULT_S_MAX = 0.2, 2.5
MUTANT_WRITES = 400
KEY = b"w/a"


def watch_load(cluster: FaultCluster, label: str) -> WatchLoad:
    return WatchLoad({node.name: node.url for node in cluster.nodes}, cluster.headers, label, cluster.seed)


def test_kill_9_pauses_and_compaction_cost_no_watcher_an_event(
    cluster: FaultCluster, fault_round: int, show: Show
) -> None:
    with watch_load(cluster, f"watched-{fault_round}") as load:
        leader = cluster.wait_whole()
        leader.kill()
        load.wait_for_writes(WRITES)
        load.compact()
        leader.restart()
        load.burst()
        second = cluster.wait_whole()
        cluster.pause(second)
        load.wait_for_writes(WRITES)
        cluster.resume(second)
        load.compact()
        follower = cluster.others(cluster.wait_whole())[0]
        follower.kill()
        load.wait_for_writes(WRITES)
        follower.restart()
        for node in cluster.nodes:
            node.kill()
        cluster.start()
        load.wait_for_writes(WRITES)
        cluster.wait_whole()
    show(f"\n{load.judge()}")


@pytest.mark.parametrize(
    "cut",
    [FaultNetwork.isolate, FaultNetwork.mute, FaultNetwork.unplug],
    ids=["cut off", "not heard", "unplugged"],
)
def test_watchers_of_a_leader_that_is_cut_off_miss_nothing(
    placed: FaultCluster,
    network: FaultNetwork,
    cut: Callable[[FaultNetwork, str], None],
    fault_round: int,
    show: Show,
) -> None:
    """What it has not committed nobody is told of; what the others commit comes to its watchers afterwards."""
    with watch_load(placed, f"{cut.__name__}-watched-{fault_round}") as load:
        leader = placed.wait_whole()
        cut(network, leader.name)
        placed.leader_of(placed.others(leader), other_than=[leader.name])
        load.wait_for_writes(WRITES)
        load.run_for(FAULT_S)
        load.compact()
        network.heal()
        placed.wait_whole()
        load.wait_for_writes(WRITES)
    show(f"\n{load.judge()}")


def test_whatever_happens_watchers_are_told_everything_once(
    placed: FaultCluster, network: FaultNetwork, fault_round: int, show: Show
) -> None:
    """Faults that the round's number draws, also of all nodes at once."""
    random = Random(f"watches {fault_round}")
    breaker = Breaker(placed, network, random)
    with watch_load(placed, f"random-watched-{fault_round}") as load:
        for _ in range(FAULTS):
            breaker.step()
            load.run_for(random.uniform(FAULT_S_MIN, FAULT_S_MAX))
        breaker.mend()
        placed.wait_whole()
        load.compact()
        load.wait_for_writes(WRITES)
    show(f"\n{load.judge()}: {', '.join(breaker.done)}")


@contextmanager
def one_node(folder: Path, program: tuple[str, ...] | None = None) -> Iterator[NodeProcess]:
    with node_cluster(folder, 1) as cluster:
        node = cluster.nodes[0]
        if program is not None:
            node.program = program
        cluster.start()
        yield node


def disturb(node: NodeProcess) -> WatchLoad:
    """What makes watchers fall behind, catch up and resume, at a single node."""
    with WatchLoad({node.name: node.url}, {}, "mutant", 1) as load:
        load.wait_for_writes(MUTANT_WRITES)
        load.burst()
        load.wait_for_writes(WRITES)
    return load


def test_a_single_node_that_nothing_happens_to_tells_everything(tmp_path: Path) -> None:
    """What the mutants below are compared with."""
    with one_node(tmp_path) as node:
        disturb(node).judge()


@pytest.mark.parametrize("mutation", [mutation.name for mutation in WATCH_MUTATIONS])
def test_planted_bugs_in_watches_are_found(tmp_path: Path, mutation: str) -> None:
    program = (str(Path(mutant_node.__file__)), mutation)
    with one_node(tmp_path, program) as node:
        load = disturb(node)
        with pytest.raises(AssertionError, match=r"\d+ faults: .*watcher \d+"):
            load.judge()


def event(revision: int, *, previous: bytes | None = None, number: int = 1) -> Event:
    """A put of the one key that the histories below have."""
    return Event(revision, KEY, False, b"0.%d.0" % number, revision - 1, 2, previous)


def history_of(*revisions: int, compactions: tuple[int, ...] = ()) -> History:
    """Of one key that is put at each of these."""
    history = History(b"w/", max(revisions))
    history.revisions = list(revisions)
    history._events = [[event(revision)] for revision in revisions]
    history.compactions = set(compactions)
    return history


RIGHT: dict[str, list[Entry]] = {
    "all": [Events((event(2),)), Events((event(4),)), Events((event(5),))],
    "several in one line": [Events((event(2), event(4))), Events((event(5),))],
    "with progress": [Events((event(2),)), Progress(3), Events((event(4),)), Events((event(5),)), Progress(9)],
    "compacted": [Events((event(2),)), Lost(3, 5), Events((event(5),))],
    "compacted and nothing lost": [Events((event(2),)), Progress(2), Lost(3, 4), Events((event(4), event(5)))],
}
WRONG: dict[str, list[Entry]] = {
    "nothing": [],
    "the last is missing": [Events((event(2),)), Events((event(4),))],
    "one is missing": [Events((event(2),)), Events((event(5),))],
    "one comes twice": [Events((event(2),)), Events((event(2),)), Events((event(4),)), Events((event(5),))],
    "one comes twice in a line": [Events((event(2), event(2), event(4), event(5)))],
    "in another order": [Events((event(4),)), Events((event(2),)), Events((event(5),))],
    "in another order in a line": [Events((event(4), event(2), event(5)))],
    "another value": [Events((event(2, number=9),)), Events((event(4), event(5)))],
    "a value from before that nobody asked for": [Events((event(2, previous=b"0"),)), Events((event(4), event(5)))],
    "one that never was": [Events((event(2), event(3), event(4), event(5)))],
    "progress too early": [Events((event(2),)), Progress(4), Events((event(4), event(5)))],
    "lost without a compaction": [Events((event(2),)), Lost(3, 4), Events((event(5),))],
    "lost more than was compacted": [Events((event(2),)), Lost(3, 6)],
    "lost though it was not compacted so far": [Events((event(2), event(4))), Lost(5, 5)],
}


@pytest.mark.parametrize("name", RIGHT)
def test_logs_that_the_judge_lets_pass(name: str) -> None:
    assert judge(Watched(KEY), 2, RIGHT[name], history_of(2, 4, 5, compactions=(4, 5))) == []


@pytest.mark.parametrize("name", WRONG)
def test_logs_that_the_judge_refuses(name: str) -> None:
    compactions = () if name == "lost without a compaction" else (5,)
    assert judge(Watched(KEY), 2, WRONG[name], history_of(2, 4, 5, compactions=compactions)) != []


def test_a_value_from_before_may_be_missing_at_the_very_revision_of_a_compaction() -> None:
    whole = event(4, previous=b"0.1.0")
    watched = Watched(KEY, wants_previous=True)
    for compactions, is_right in (((4,), True), ((5,), False), ((), False)):
        history = history_of(4, compactions=compactions)
        history._events = [[whole]]
        assert judge(watched, 2, [Events((whole,))], history) == []
        assert (judge(watched, 2, [Events((event(4),))], history) == []) is is_right
        assert judge(watched, 2, [Events((event(4, previous=b"9"),))], history) != []


def test_the_order_of_operations_within_a_revision_is_judged() -> None:
    first = Event(2, b"w/a", False, b"0.1.0", 1, 2, None)
    second = Event(2, b"w/b", False, b"0.1.1", 1, 2, None)
    history = history_of(2)
    history._events = [[second, first]]
    watched = Watched(b"w/", b"w0")
    assert judge(watched, 2, [Events((first, second))], history) == []
    assert judge(watched, 2, [Events((second, first))], history) != []
    assert judge(watched, 2, [Events((first,)), Events((second,))], history) != []
