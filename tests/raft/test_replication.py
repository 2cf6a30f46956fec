"""Log replication and commitment (paper, sections 5.3 and 5.4.2)."""

import pytest
from quorate_core.errors import InvalidRequest, InvariantViolation, NotProposed
from quorate_raft.core.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    HeartbeatRequest,
    HeartbeatResponse,
)
from support.raft_cluster import ELECTION_TICKS, Cluster


def with_logs(names: str, **terms: list[int]) -> Cluster:
    """A cluster whose members start with these terms in their logs, as the paper's figures draw them."""
    cluster = Cluster(names)
    for name, log in terms.items():
        member = cluster.members[name]
        member.entries = [Entry(index, term, data=b"%d" % term) for index, term in enumerate(log, start=1)]
        member.restart()
    return cluster


def terms_of(cluster: Cluster, name: str) -> list[int]:
    return [entry.term for entry in cluster.members[name].log_entries()]


def test_what_a_leader_proposes_is_applied_by_all_in_order() -> None:
    """Section 5.3."""
    cluster = Cluster("abc")
    cluster.elect("a")
    for word in (b"one", b"two", b"three"):
        cluster.propose("a", word)
    cluster.settle()
    for member in cluster.members.values():
        assert [e.data for e in member.applied if e.kind is EntryKind.NORMAL] == [b"one", b"two", b"three"]


def test_a_new_leader_appends_a_no_op_and_nothing_else() -> None:
    """Section 8."""
    cluster = Cluster("abc")
    cluster.elect("a")
    assert [(e.index, e.term, e.kind) for e in cluster.members["b"].applied] == [(1, 1, EntryKind.NO_OP)]


def test_a_follower_does_not_propose() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    with pytest.raises(NotProposed, match="b does not lead; a does"):
        cluster.propose("b")


def test_entries_of_one_turn_go_in_one_request() -> None:
    """Batching: what is proposed before the next Ready shares a request a follower, and a sync."""
    cluster = Cluster("abc")
    cluster.elect("a")
    for _ in range(10):
        cluster.propose("a")
    cluster.members["a"].holds_disk = True
    cluster.process("a")
    requests = cluster.take(AppendRequest)
    assert [len(m.entries) for m in requests if isinstance(m, AppendRequest)] == [10, 10]
    persisting = cluster.members["a"].persisting
    assert persisting is not None
    assert len(persisting.entries) == 10


def test_requests_follow_each_other_without_waiting_up_to_the_window() -> None:
    """Thesis 10.2.2, pipelining: bounded in messages."""
    cluster = Cluster("ab", inflight_messages_max=3)
    cluster.elect("a")
    for _ in range(5):
        cluster.propose("a")
        cluster.process("a")
    requests = [m for m in cluster.take(AppendRequest) if isinstance(m, AppendRequest)]
    assert [m.previous_index for m in requests] == [1, 2, 3]
    cluster.deliver(requests[:1])
    cluster.deliver(cluster.take(AppendResponse))
    (following,) = (m for m in cluster.take(AppendRequest) if isinstance(m, AppendRequest))
    assert [e.index for e in following.entries] == [5, 6]


def test_the_window_is_bounded_in_bytes_too() -> None:
    cluster = Cluster("ab", inflight_bytes_max=1000, append_bytes_max=600)
    cluster.elect("a")
    for _ in range(10):
        cluster.propose("a", b"x" * 500)
    cluster.process("a")
    requests = [m for m in cluster.take(AppendRequest) if isinstance(m, AppendRequest)]
    assert [len(m.entries) for m in requests] == [1, 1]


def test_an_entry_over_the_request_limit_goes_alone() -> None:
    cluster = Cluster("abc", append_bytes_max=100)
    cluster.elect("a")
    cluster.propose("a", b"x" * 1000)
    cluster.propose("a", b"y")
    cluster.settle()
    assert [e.data for e in cluster.members["c"].applied[1:]] == [b"x" * 1000, b"y"]


def test_a_leader_sends_before_its_own_sync_and_counts_itself_after_it() -> None:
    """Thesis 10.2.1: one follower's answer is a majority of two only when the leader is durable as well."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.crash("c")
    cluster.members["a"].holds_disk = True
    index, _ = cluster.propose("a")
    cluster.settle()
    assert cluster.members["b"].entries[-1].index == index
    assert cluster["a"].log.commit_index == index - 1
    cluster.sync("a")
    cluster.settle()
    assert cluster["a"].log.commit_index == index


def test_followers_alone_are_a_majority_but_the_leader_applies_only_what_it_has_made_durable() -> None:
    """Thesis 10.2.1; a crash must not find something applied that the log does not have."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.members["a"].holds_disk = True
    index, _ = cluster.propose("a")
    cluster.settle()
    assert cluster["a"].log.commit_index == index
    assert len(cluster.members["a"].applied) == index - 1
    cluster.tick("a")
    cluster.settle()
    assert len(cluster.members["b"].applied) == index
    cluster.sync("a")
    assert len(cluster.members["a"].applied) == index


def test_a_follower_answers_only_when_the_entries_are_durable() -> None:
    """Figure 2: persistent state is updated before responding."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.members["b"].holds_disk = True
    cluster.propose("a")
    cluster.process("a")
    cluster.deliver(cluster.take(AppendRequest, to="b"))
    assert cluster.take(AppendResponse) == []
    cluster.sync("b")
    (answer,) = cluster.take(AppendResponse)
    assert isinstance(answer, AppendResponse)
    assert answer.match_index == 2


def test_entries_that_come_during_a_sync_wait_for_the_next_one() -> None:
    """One sync at a time; what gathers meanwhile shares the next."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.members["b"].holds_disk = True
    for _ in range(3):
        cluster.propose("a")
        cluster.process("a")
    cluster.deliver(cluster.take(AppendRequest, to="b"))
    cluster.sync("b")
    assert [m.match_index for m in cluster.take(AppendResponse) if isinstance(m, AppendResponse)] == [2]
    cluster.sync("b")
    assert [m.match_index for m in cluster.take(AppendResponse) if isinstance(m, AppendResponse)] == [3, 4]


def test_a_single_member_acknowledges_only_after_its_sync() -> None:
    """Pitfall (etcd 14370): a cluster of one must not apply before it is durable."""
    cluster = Cluster("a")
    cluster.elect("a")
    cluster.members["a"].holds_disk = True
    index, _ = cluster.propose("a")
    cluster.process("a")
    assert len(cluster.members["a"].applied) == index - 1
    assert cluster["a"].log.commit_index == index - 1
    cluster.sync("a")
    assert len(cluster.members["a"].applied) == index


def test_what_was_not_synced_at_a_crash_was_never_acknowledged() -> None:
    cluster = Cluster("a")
    cluster.elect("a")
    cluster.members["a"].holds_disk = True
    cluster.propose("a", b"lost")
    cluster.process("a")
    cluster.crash("a")
    cluster.restart("a")
    cluster.members["a"].holds_disk = False
    cluster.elect("a")
    assert b"lost" not in [entry.data for entry in cluster.agreed]


def test_a_leader_does_not_commit_entries_of_earlier_terms_by_counting() -> None:
    """Figure 8, (c): an entry of term 2 on a majority may still be overwritten while nothing of term 4 is there."""
    cluster = with_logs("abcde", a=[1, 2], b=[1, 2], c=[1], d=[1], e=[1, 3])
    cluster["a"]._state.term = 3
    cluster.partition("abc", "de")
    for name in "abc":
        cluster[name]._state.election_timeout_ticks = 100 * ELECTION_TICKS
    cluster["a"]._state.election_timeout_ticks = 1
    cluster.tick("a")
    while not cluster["a"].is_leader:
        cluster.deliver(cluster.take())
    # c gets entry 2 of term 2, but the no-op of term 4 reaches nobody.
    (to_c,) = (m for m in cluster.take(AppendRequest, to="c") if isinstance(m, AppendRequest))
    cluster.take()
    assert to_c.previous_index == 2
    cluster.deliver([AppendRequest("a", "c", 4, 1, 1, (Entry(2, 2, data=b"2"),), 0)])
    cluster.deliver(cluster.take(AppendResponse))
    assert [terms_of(cluster, name)[:2] for name in "abc"] == [[1, 2]] * 3
    assert cluster["a"].log.commit_index == 0
    # (d): e, with a last term of 3, may still win against c and d and overwrite it.
    cluster.crash("a")
    cluster.wire.clear()
    cluster.partition("cde", "b")
    cluster.tick("c", "d", "e", times=ELECTION_TICKS)
    cluster.take()
    cluster["e"]._state.term = 4
    cluster.elect("e")
    assert terms_of(cluster, "c")[:2] == [1, 3]


def test_an_entry_of_the_leaders_term_commits_everything_before_it() -> None:
    """Figure 8, (e)."""
    cluster = with_logs("abcde", a=[1, 2], b=[1, 2], c=[1], d=[1], e=[1, 3])
    cluster["a"]._state.term = 3
    cluster.partition("abc", "de")
    cluster.elect("a")
    assert [entry.term for entry in cluster.agreed] == [1, 2, 4]
    cluster.crash("a")
    cluster.heal()
    # e is behind now and cannot win; whoever leads has 1, 2, 4.
    for _ in range(30 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
        if cluster.leader:
            break
    assert cluster.leader in ("b", "c")
    cluster.settle()
    assert terms_of(cluster, "e")[:3] == [1, 2, 4]


FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}
LEADER_OF_FIGURE_7 = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]


@pytest.mark.parametrize("follower", FIGURE_7)
def test_a_leader_makes_divergent_logs_its_own(follower: str) -> None:
    """Figure 7: a follower may miss entries, have extra ones, or both."""
    cluster = with_logs("xyz", x=LEADER_OF_FIGURE_7, y=LEADER_OF_FIGURE_7, z=FIGURE_7[follower])
    cluster["x"]._state.term = 8
    cluster.elect("x")
    cluster.settle()
    assert terms_of(cluster, "z") == [*LEADER_OF_FIGURE_7, cluster["x"].standing.term]
    assert [entry.term for entry in cluster.members["z"].entries] == terms_of(cluster, "z")


def test_backtracking_takes_one_round_trip_a_conflicting_term() -> None:
    """Section 5.3: not one for each entry. Here f of figure 7, with a long tail of terms 2 and 3."""
    follower = [1, 1, 1] + [2] * 500 + [3] * 500
    cluster = with_logs("xy", x=[1, 1, 1] + [4] * 1000, y=follower)
    cluster["x"]._state.term = cluster["y"]._state.term = 4
    cluster["y"]._state.election_timeout_ticks = 1000
    rejections = 0
    cluster["x"]._state.election_timeout_ticks = 1
    cluster.tick("x")
    while cluster.wire:
        rejections += sum(m.rejected for m in cluster.wire if isinstance(m, AppendResponse))
        cluster.deliver(cluster.take())
    assert terms_of(cluster, "y") == terms_of(cluster, "x")
    assert 1 <= rejections <= 2


def test_a_lost_request_is_found_out_and_sent_again() -> None:
    """Section 5.3: a later request does not fit, its rejection makes the leader go back to what is known to match."""
    cluster = Cluster("abc")
    cluster.elect("a")
    for _ in range(4):
        cluster.propose("a")
        cluster.process("a")
    requests = cluster.take(AppendRequest, to="b")
    cluster.deliver(requests[2:])
    cluster.settle()
    assert len(cluster.members["b"].applied) == 5


def test_the_last_request_lost_is_found_out_by_a_heartbeat() -> None:
    """Nothing follows it that would not fit; the heartbeat's answer makes the leader ask."""
    cluster = Cluster("abc")
    cluster.elect("a")
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
    cluster = Cluster("abc", inflight_messages_max=2)
    cluster.elect("a")
    for _ in range(4):
        cluster.propose("a")
        cluster.process("a")
    assert len(cluster.take(AppendRequest, to="b")) == 2
    cluster.settle()
    cluster.tick("a")
    cluster.settle()
    assert len(cluster.members["b"].entries) == 5


def test_a_lost_probe_is_sent_again_after_a_heartbeat() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
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


def test_a_late_request_does_not_take_away_what_a_newer_one_brought() -> None:
    """Section 5.3: requests may be reordered by a reconnect; only a conflict cuts the log."""
    cluster = Cluster("abc")
    cluster.elect("a")
    early = AppendRequest("a", "b", 1, 1, 1, (Entry(2, 1, data=b"x"),), 1)
    late = AppendRequest("a", "b", 1, 1, 1, (Entry(2, 1, data=b"x"), Entry(3, 1, data=b"y")), 1)
    cluster.deliver([late, early])
    assert [e.index for e in cluster.members["b"].log_entries()] == [1, 2, 3]


def test_a_request_before_what_is_committed_is_answered_with_what_is() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    for _ in range(3):
        cluster.propose("a")
    cluster.settle()
    cluster.tick("a")
    cluster.settle()
    cluster.deliver([AppendRequest("a", "b", 1, 1, 1, (Entry(2, 1),), 1)])
    (answer,) = cluster.take(AppendResponse)
    assert isinstance(answer, AppendResponse)
    assert (answer.match_index, answer.rejected) == (4, False)


def test_late_rejections_do_not_move_the_leader_back() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.propose("a")
    cluster.settle()
    cluster.deliver([AppendResponse("b", "a", 1, 1, rejected=True)])
    assert cluster.take(AppendRequest, to="b") == []


def test_a_rejection_of_another_probe_is_stale() -> None:
    cluster = Cluster("abc")
    cluster["a"]._state.election_timeout_ticks = 1
    cluster.tick("a")
    while not cluster["a"].is_leader:
        cluster.deliver(cluster.take())
    cluster.take()
    cluster.deliver([AppendResponse("b", "a", 1, 7, rejected=True)])
    assert cluster.take(AppendRequest, to="b") == []


def test_what_is_committed_is_never_overwritten() -> None:
    """Section 5.4, leader completeness: a leader that would do it is no leader to follow."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.propose("a")
    cluster.settle()
    cluster.tick("a")
    cluster.settle()
    log = cluster["b"].log
    with pytest.raises(InvariantViolation, match="would be overwritten"):
        log.accept(1, 1, (Entry(2, 9),))


def test_impossible_claims_are_invariant_violations() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
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
    cluster = Cluster("abc")
    cluster.elect("a")
    with pytest.raises(InvalidRequest):
        cluster["b"].step(AppendRequest("a", "b", 1, 1, 1, entries, 1))
    assert cluster["b"].log.last_index == 1


def test_followers_learn_what_is_committed_without_waiting_for_the_next_entry() -> None:
    """Whoever proposed through a follower waits for that follower to apply."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.propose("a", b"now")
    cluster.settle()
    assert [member.applied[-1].data for member in cluster.members.values()] == [b"now"] * 3


def test_a_member_restarts_with_its_log_and_applies_what_the_machine_lacks() -> None:
    """Section 5.1 and obligation 8: the state machine may have kept all, or nothing."""
    cluster = Cluster("abc")
    cluster.elect("a")
    for _ in range(5):
        cluster.propose("a")
    cluster.settle()
    cluster.tick("a")
    cluster.settle()
    for kept in (None, 2, 0):
        cluster.crash("b")
        cluster.restart("b", kept)
        cluster.tick("a", times=2)
        cluster.settle()
        assert [e.index for e in cluster.members["b"].applied] == [1, 2, 3, 4, 5, 6]


def test_all_members_restart_and_go_on() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.propose("a", b"before")
    cluster.settle()
    for name in "abc":
        cluster.crash(name)
        cluster.restart(name, 0)
    cluster.elect("b")
    cluster.propose("b", b"after")
    cluster.settle()
    assert [e.data for e in cluster.members["c"].applied if e.data] == [b"before", b"after"]


def test_a_log_that_ends_before_what_was_applied_is_refused() -> None:
    """Pitfall (etcd 9808): state without the log that led to it means that durable entries are gone."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.members["a"].entries.clear()
    with pytest.raises(InvariantViolation, match="the log ends at 0, but the state machine has applied 1"):
        cluster.restart("a")


def test_a_term_that_only_the_log_remembers_is_not_gone_back_on() -> None:
    cluster = with_logs("abc", a=[1, 5])
    assert cluster["a"].standing.term == 5
    assert cluster["a"].has_ready()


def test_the_callers_mistakes_are_named() -> None:
    """Obligations 3 and 6."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.propose("a")
    ready = cluster["a"].ready()
    cluster["a"].persisted(ready)
    with pytest.raises(InvariantViolation, match="not out to be persisted"):
        cluster["a"].persisted(ready)
    with pytest.raises(InvariantViolation, match="said to be applied"):
        cluster["a"].applied(99)


def test_a_ready_during_a_sync_holds_only_what_needs_none() -> None:
    """Obligation 3."""
    cluster = Cluster("abc")
    cluster.elect("a")
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
    cluster = Cluster("abc")
    cluster.elect("a")
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
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.propose("a")
    cluster.settle()
    assert cluster["b"].log.commit_index == 2
    assert cluster.members["b"].hard_state.commit < 2
    cluster.propose("a")
    cluster.settle()
    assert cluster.members["b"].hard_state.commit == 2


def test_long_runs_of_committed_entries_come_in_slices() -> None:
    cluster = Cluster("abc", committed_entries_max=4)
    cluster.elect("a")
    for _ in range(10):
        cluster.propose("a")
    node = cluster["a"]
    node.persisted(node.ready())
    node.step(AppendResponse("b", "a", 1, 11))
    slices = []
    while node.has_ready():
        slices.append([entry.index for entry in node.ready().committed])
    assert slices == [[2, 3, 4, 5], [6, 7, 8, 9], [10, 11]]


def test_a_compacted_entry_is_not_sent() -> None:
    """Until snapshots are streamed, a follower that needs one is a named failure and not a silent stop."""
    cluster = Cluster("abc")
    cluster.elect("a")
    log = cluster["a"].log
    with pytest.raises(InvariantViolation, match="compacted away"):
        log.slice(0, 1)
    log.previous_index = 5
    cluster["a"]._state.progress["b"].next_index = 3
    with pytest.raises(InvariantViolation, match="which is not in the log"):
        cluster["a"].step(HeartbeatResponse("b", "a", 1))
