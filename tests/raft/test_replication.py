"""Log replication and commitment (paper, sections 5.3 and 5.4.2)."""

import pytest
from quorate_core.errors import InvalidRequest, InvariantViolation, NotProposed
from quorate_raft.core.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    HeartbeatRequest,
)
from support.raft_cluster import Cluster
from support.raft_scenes import deliver_until, elected, taken, time_out


def test_a_follower_does_not_propose() -> None:
    cluster = elected()
    with pytest.raises(NotProposed, match="b does not lead; a does"):
        cluster.propose("b")


def test_the_window_is_bounded_in_bytes_too() -> None:
    cluster = elected("ab", inflight_bytes_max=1000, append_bytes_max=600)
    for _ in range(10):
        cluster.propose("a", b"x" * 500)
    cluster.process("a")
    requests = taken(cluster, AppendRequest)
    assert [len(m.entries) for m in requests] == [1, 1]


def test_an_entry_over_the_request_limit_goes_alone() -> None:
    cluster = elected("abc", append_bytes_max=100)
    cluster.propose("a", b"x" * 1000)
    cluster.propose("a", b"y")
    cluster.settle()
    assert [e.data for e in cluster.members["c"].applied[1:]] == [b"x" * 1000, b"y"]


def test_entries_that_come_during_a_sync_wait_for_the_next_one() -> None:
    """One sync at a time; what gathers meanwhile shares the next."""
    cluster = elected()
    cluster.members["b"].holds_disk = True
    for _ in range(3):
        cluster.propose("a")
        cluster.process("a")
    cluster.deliver(cluster.take(AppendRequest, to="b"))
    cluster.sync("b")
    assert [m.match_index for m in taken(cluster, AppendResponse)] == [2]
    cluster.sync("b")
    assert [m.match_index for m in taken(cluster, AppendResponse)] == [3, 4]


def test_what_was_not_synced_at_a_crash_was_never_acknowledged() -> None:
    cluster = elected("a")
    cluster.members["a"].holds_disk = True
    cluster.propose("a", b"lost")
    cluster.process("a")
    cluster.crash("a")
    cluster.restart("a")
    cluster.members["a"].holds_disk = False
    cluster.elect("a")
    assert b"lost" not in [entry.data for entry in cluster.agreed]


def test_the_last_request_lost_is_found_out_by_a_heartbeat() -> None:
    """Nothing follows it that would not fit; the heartbeat's answer makes the leader ask."""
    cluster = elected()
    cluster.crash("c")
    cluster.propose("a")
    cluster.process("a")
    assert cluster.take(AppendRequest, to="b")
    cluster.settle()
    assert len(cluster.members["b"].entries) == 1
    cluster.tick("a")
    cluster.settle()
    assert len(cluster.members["b"].entries) == 2


def test_a_whole_window_lost_is_found_out_by_a_heartbeat() -> None:
    cluster = elected("abc", inflight_messages_max=2)
    for _ in range(4):
        cluster.propose("a")
        cluster.process("a")
    assert len(cluster.take(AppendRequest, to="b")) == 2
    cluster.settle()
    cluster.tick("a")
    cluster.settle()
    assert len(cluster.members["b"].entries) == 5


def test_a_lost_probe_is_sent_again_after_a_heartbeat() -> None:
    cluster = elected()
    cluster.partition("ab", "c")
    for _ in range(3):
        cluster.propose("a")
        cluster.settle()
    cluster.restart("c")
    cluster.heal()
    cluster.tick("a")
    while not (lost := cluster.take(AppendRequest, to="c")):
        cluster.deliver(cluster.take())
    assert lost
    cluster.settle()
    cluster.tick("a", times=2)
    cluster.settle()
    assert len(cluster.members["c"].entries) == 4


def test_a_request_before_what_is_committed_is_answered_with_what_is() -> None:
    cluster = elected()
    for _ in range(3):
        cluster.propose("a")
    cluster.settle()
    cluster.tick("a")
    cluster.settle()
    cluster.deliver([AppendRequest("a", "b", 1, 1, 1, (Entry(2, 1),), 1)])
    (answer,) = taken(cluster, AppendResponse)
    assert (answer.match_index, answer.rejected) == (4, False)


def test_late_rejections_do_not_move_the_leader_back() -> None:
    cluster = elected()
    cluster.propose("a")
    cluster.settle()
    cluster.deliver([AppendResponse("b", "a", 1, 1, rejected=True)])
    assert cluster.take(AppendRequest, to="b") == []


def test_a_rejection_of_another_probe_is_stale() -> None:
    cluster = Cluster("abc")
    time_out(cluster, "a")
    deliver_until(cluster, lambda: cluster["a"].is_leader)
    cluster.take()
    cluster.deliver([AppendResponse("b", "a", 1, 7, rejected=True)])
    assert cluster.take(AppendRequest, to="b") == []


def test_impossible_claims_are_invariant_violations() -> None:
    cluster = elected()
    with pytest.raises(InvariantViolation, match="says that it agrees up to 99"):
        cluster["a"].step(AppendResponse("b", "a", 1, 99))
    with pytest.raises(InvariantViolation, match="said to be committed"):
        cluster["b"].step(HeartbeatRequest("a", "b", 1, 99))


@pytest.mark.parametrize(
    "entries",
    [
        (Entry(3, 1),),
        (Entry(2, 1), Entry(4, 1)),
        (Entry(2, 0),),
        (Entry(2, 2), Entry(3, 1)),
    ],
    ids=["gap before", "gap within", "term falls", "term falls within"],
)
def test_entries_that_do_not_fit_together_are_refused(entries: tuple[Entry, ...]) -> None:
    cluster = elected()
    with pytest.raises(InvalidRequest):
        cluster["b"].step(AppendRequest("a", "b", 1, 1, 1, entries, 1))
    assert cluster["b"].log.last_index == 1


def test_followers_learn_what_is_committed_without_waiting_for_the_next_entry() -> None:
    """Whoever proposed through a follower waits for that follower to apply."""
    cluster = elected()
    cluster.propose("a", b"now")
    cluster.settle()
    assert [member.applied[-1].data for member in cluster.members.values()] == [b"now"] * 3


def test_the_callers_mistakes_are_named() -> None:
    """Obligations 3 and 6."""
    cluster = elected()
    cluster.propose("a")
    ready = cluster["a"].ready()
    cluster["a"].persisted(ready)
    with pytest.raises(InvariantViolation, match="not out to be persisted"):
        cluster["a"].persisted(ready)
    with pytest.raises(InvariantViolation, match="said to be applied"):
        cluster["a"].applied(99)


def test_a_ready_during_a_sync_holds_only_what_needs_none() -> None:
    """Obligation 3."""
    cluster = elected()
    cluster.propose("a")
    first = cluster["a"].ready()
    assert first.must_sync
    cluster.propose("a")
    second = cluster["a"].ready()
    assert (second.must_sync, second.entries, second.hard_state, second.messages_after_persist) == (False, (), None, ())
    assert all(isinstance(m, AppendRequest) for m in second.messages)
    assert len(second.messages) == 2
    assert not cluster["a"].has_ready()
    cluster["a"].persisted(first)
    assert [e.index for e in cluster["a"].ready().entries] == [3]


def test_entries_cut_during_their_sync_are_not_taken_for_durable() -> None:
    """A new leader overwrites what a follower is just writing: its answer is for the new entries only."""
    cluster = elected()
    cluster.members["b"].holds_disk = True
    cluster.propose("a", b"old")
    cluster.process("a")
    cluster.deliver(cluster.take(AppendRequest, to="b"))
    cluster.take()
    cluster.deliver([AppendRequest("c", "b", 2, 1, 1, (Entry(2, 2, data=b"new"),), 1)])
    cluster.sync("b")
    assert cluster["b"].log.stable_index == 1
    cluster.sync("b")
    assert cluster["b"].log.stable_index == 2
    assert [e.data for e in cluster.members["b"].entries] == [b"", b"new"]


def test_a_commit_index_alone_is_not_worth_a_sync() -> None:
    """It is a hint; it rides along with the next entries."""
    cluster = elected()
    cluster.propose("a")
    cluster.settle()
    assert cluster["b"].log.commit_index == 2
    assert cluster.members["b"].hard_state.commit < 2
    cluster.propose("a")
    cluster.settle()
    assert cluster.members["b"].hard_state.commit == 2


def test_long_runs_of_committed_entries_come_in_slices() -> None:
    cluster = elected("abc", committed_entries_max=4)
    for _ in range(10):
        cluster.propose("a")
    node = cluster["a"]
    node.persisted(node.ready())
    node.step(AppendResponse("b", "a", 1, 11))
    slices = []
    while node.has_ready():
        slices.append([entry.index for entry in node.ready().committed])
    assert slices == [[2, 3, 4, 5], [6, 7, 8, 9], [10, 11]]
