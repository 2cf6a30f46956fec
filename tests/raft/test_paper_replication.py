"""Replication and commitment, claim by claim: the Raft paper (extended version), sections 5.3 to 5.5 and 8, and its
figures 2, 7 and 8; the thesis, section 10.2 (writing in parallel, batching and pipelining)."""

import pytest
from quorate_core.errors import InvariantViolation
from quorate_raft.core.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    HeartbeatRequest,
)
from support.raft_cluster import ELECTION_TICKS
from support.raft_scenes import deliver_until, elected, forget_leader, in_term, taken, terms_of, time_out, with_logs

FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}
LEADER_OF_FIGURE_7 = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]


def test_5_3_what_a_leader_proposes_is_applied_by_all_in_order() -> None:
    """Section 5.3."""
    cluster = elected()
    for word in (b"one", b"two", b"three"):
        cluster.propose("a", word)
    cluster.settle()
    for member in cluster.members.values():
        assert [e.data for e in member.applied if e.kind is EntryKind.NORMAL] == [b"one", b"two", b"three"]


def test_5_3_an_entry_is_committed_once_a_majority_has_it_and_a_slow_minority_costs_nothing() -> None:
    """ "A minority of slow servers need not impact overall system performance" (section 2)."""
    cluster = elected("abcde")
    cluster.partition("abc", "de")
    index, _ = cluster.propose("a")
    cluster.process("a")
    cluster.deliver(cluster.take(AppendRequest, to="b"))
    cluster.deliver(cluster.take(AppendResponse))
    assert cluster["a"].log.commit_index == index - 1
    cluster.deliver(cluster.take(AppendRequest, to="c"))
    cluster.deliver(cluster.take(AppendResponse))
    assert cluster["a"].log.commit_index == index


def test_5_3_a_follower_that_was_away_is_sent_entries_until_it_has_all() -> None:
    """ "The leader retries AppendEntries RPCs indefinitely", though it has long answered its client."""
    cluster = elected()
    cluster.crash("c")
    for _ in range(5):
        cluster.propose("a")
        cluster.settle()
    cluster.tick("a", times=5)
    cluster.settle()
    cluster.restart("c")
    cluster.tick("a")
    cluster.settle()
    assert [entry.index for entry in cluster.members["c"].applied] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("follower", FIGURE_7)
def test_5_3_a_leader_makes_divergent_logs_its_own(follower: str) -> None:
    """Figure 7: a follower may miss entries, have extra ones, or both."""
    cluster = with_logs("xyz", x=LEADER_OF_FIGURE_7, y=LEADER_OF_FIGURE_7, z=FIGURE_7[follower])
    in_term(cluster, 7)
    cluster.elect("x")
    cluster.settle()
    assert terms_of(cluster, "z") == [*LEADER_OF_FIGURE_7, 8]
    assert [entry.term for entry in cluster.members["z"].entries] == terms_of(cluster, "z")


@pytest.mark.parametrize(
    ("leader", "follower"),
    [
        ([1, 1, 1] + [4] * 1000, [1, 1, 1] + [2] * 500 + [3] * 500),
        ([1] + [2] * 1000, [1] + [4] * 500),
        ([1] + [2] * 500, [1] + [4] * 1000),
        ([1, 2] + [4] * 500, [1] + [3] * 1000),
    ],
)
def test_5_3_backtracking_takes_one_round_trip_a_conflicting_term(leader: list[int], follower: list[int]) -> None:
    """Not one for each entry, whichever of the two has the later terms."""
    cluster = with_logs("xyz", x=leader, y=leader, z=follower)
    in_term(cluster, 4)
    cluster.cut = {("x", "z")}
    cluster.elect("x")
    cluster.heal()
    cluster.tick("x")
    rejections = 0
    while cluster.wire:
        rejections += sum(m.rejected for m in cluster.wire if isinstance(m, AppendResponse))
        cluster.deliver(cluster.take())
    assert terms_of(cluster, "z") == [*leader, 5]
    assert 1 <= rejections <= 2


def test_5_3_a_lost_request_is_found_out_and_sent_again() -> None:
    """Section 5.3: a later request does not fit, its rejection makes the leader go back to what is known to match."""
    cluster = elected()
    for _ in range(4):
        cluster.propose("a")
        cluster.process("a")
    requests = cluster.take(AppendRequest, to="b")
    cluster.deliver(requests[2:])
    cluster.settle()
    assert len(cluster.members["b"].applied) == 5


def test_5_3_a_late_request_does_not_take_away_what_a_newer_one_brought() -> None:
    """Section 5.3: requests may be reordered by a reconnect; only a conflict cuts the log."""
    cluster = elected()
    early = AppendRequest("a", "b", 1, 1, 1, (Entry(2, 1, data=b"x"),), 1)
    late = AppendRequest("a", "b", 1, 1, 1, (Entry(2, 1, data=b"x"), Entry(3, 1, data=b"y")), 1)
    cluster.deliver([late, early])
    assert [e.index for e in cluster.members["b"].log_entries()] == [1, 2, 3]


def test_5_4_what_is_committed_is_never_overwritten() -> None:
    """Section 5.4, leader completeness: a leader that would do it is no leader to follow."""
    cluster = elected()
    cluster.propose("a")
    cluster.settle()
    cluster.tick("a")
    cluster.settle()
    log = cluster["b"].log
    with pytest.raises(InvariantViolation, match="would be overwritten"):
        log.accept(1, 1, (Entry(2, 9),))


def test_5_4_2_a_leader_does_not_commit_entries_of_earlier_terms_by_counting() -> None:
    """Figure 8, (c): an entry of term 2 on a majority may still be overwritten while nothing of term 4 is there."""
    cluster = with_logs("abcde", a=[1, 2], b=[1, 2], c=[1], d=[1], e=[1, 3])
    in_term(cluster, 3, "a", "b", "e")
    cluster.partition("abc", "de")
    for name in "abc":
        cluster[name]._state.election_timeout_ticks = 100 * ELECTION_TICKS
    time_out(cluster, "a")
    deliver_until(cluster, lambda: cluster["a"].is_leader)
    # b agrees at once and takes the no-op of term 4; c is sent entry 2 of term 2 alone.
    (to_b,) = taken(cluster, AppendRequest, to="b")
    cluster.take()
    entry = Entry(2, 2, data=b"2")
    cluster.deliver([to_b, AppendRequest("a", "c", 4, 1, 1, (entry,), 0)])
    cluster.deliver(cluster.take(AppendResponse))
    assert [terms_of(cluster, name) for name in "abc"] == [[1, 2, 4], [1, 2, 4], [1, 2]]
    assert [progress.match_index for progress in cluster["a"]._state.progress.values()] == [3, 2, 0, 0]
    assert cluster["a"].log.commit_index == 0
    # (d): e, with a last term of 3, may still win against c and d and overwrite it.
    cluster.crash("a")
    cluster.wire.clear()
    cluster.partition("cde", "b")
    forget_leader(cluster, "c", "d", "e")
    cluster["e"]._state.term = 4
    cluster.elect("e")
    assert terms_of(cluster, "c")[:2] == [1, 3]


def test_5_4_2_an_entry_of_the_leaders_term_commits_everything_before_it() -> None:
    """Figure 8, (e)."""
    cluster = with_logs("abcde", a=[1, 2], b=[1, 2], c=[1], d=[1], e=[1, 3])
    in_term(cluster, 3, "a", "b", "e")
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


def test_5_5_requests_that_come_twice_do_no_harm() -> None:
    """ "Raft RPCs are idempotent": a follower ignores entries that it has already."""
    cluster = elected()
    cluster.propose("a", b"x")
    cluster.process("a")
    (request,) = taken(cluster, AppendRequest, to="b")
    cluster.deliver([request, request])
    assert [answer.match_index for answer in taken(cluster, AppendResponse)] == [2, 2]
    log = cluster.members["b"].log_entries()
    cluster.settle()
    cluster.deliver([request])
    assert cluster.members["b"].log_entries() == log


def test_5_5_a_member_restarts_with_its_log_and_applies_what_the_machine_lacks() -> None:
    """Section 5.1 and obligation 8: the state machine may have kept all, or nothing."""
    cluster = elected()
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


def test_5_5_all_members_restart_and_go_on() -> None:
    cluster = elected()
    cluster.propose("a", b"before")
    cluster.settle()
    for name in "abc":
        cluster.crash(name)
        cluster.restart(name, 0)
    cluster.elect("b")
    cluster.propose("b", b"after")
    cluster.settle()
    assert [e.data for e in cluster.members["c"].applied if e.data] == [b"before", b"after"]


@pytest.mark.parametrize(
    ("previous_index", "previous_term"),
    [(4, 2), (3, 1), (3, 3), (2, 2)],
    ids=["not there yet", "older term there", "newer term there", "another term there"],
)
def test_figure_2_a_request_whose_previous_entry_is_not_there_is_rejected(
    previous_index: int, previous_term: int
) -> None:
    """AppendEntries 2; the log stays as it is."""
    cluster = with_logs("abc", b=[1, 1, 2])
    in_term(cluster, 3)
    entries = (Entry(previous_index + 1, 3),)
    cluster.deliver([AppendRequest("a", "b", 3, previous_index, previous_term, entries, 0)])
    (answer,) = taken(cluster, AppendResponse)
    assert (answer.rejected, answer.match_index) == (True, previous_index)
    assert terms_of(cluster, "b") == [1, 1, 2]


@pytest.mark.parametrize(
    ("previous", "sent", "after"),
    [
        (1, [1, 2], [1, 1, 2]),
        (1, [1, 3], [1, 1, 3]),
        (1, [3], [1, 3]),
        (0, [1, 1, 2, 3], [1, 1, 2, 3]),
        (0, [1], [1, 1, 2]),
        (3, [3], [1, 1, 2, 3]),
        (3, [], [1, 1, 2]),
    ],
)
def test_figure_2_a_conflicting_entry_and_all_that_follow_it_are_cut_and_nothing_else(
    previous: int, sent: list[int], after: list[int]
) -> None:
    """AppendEntries 3 and 4."""
    cluster = with_logs("abc", b=[1, 1, 2])
    in_term(cluster, 3)
    entries = tuple(Entry(previous + 1 + number, term, data=b"%d" % term) for number, term in enumerate(sent))
    cluster.deliver([AppendRequest("a", "b", 3, previous, [0, 1, 1, 2][previous], entries, 0)])
    (answer,) = taken(cluster, AppendResponse)
    assert (answer.rejected, answer.match_index) == (False, previous + len(sent))
    assert terms_of(cluster, "b") == after
    assert [entry.term for entry in cluster.members["b"].entries] == after


def test_figure_2_a_follower_commits_only_what_the_request_has_shown_to_agree() -> None:
    """AppendEntries 5: the least of the leader's commit index and the last new entry. What a follower has after that
    may be of another leader."""
    cluster = with_logs("abc", a=[1, 1], b=[1, 1, 2])
    in_term(cluster, 3)
    cluster.deliver([AppendRequest("a", "b", 3, 1, 1, (), 3)])
    assert cluster["b"].log.commit_index == 1
    cluster.deliver([AppendRequest("a", "b", 3, 1, 1, (Entry(2, 1, data=b"1"),), 3)])
    assert cluster["b"].log.commit_index == 2


def test_figure_2_a_heartbeat_commits_only_what_the_follower_is_known_to_have() -> None:
    """The same for heartbeats, which carry no previous entry: the leader bounds what it says to whom."""
    cluster = with_logs("abc", a=[1, 1, 2], b=[1, 1, 2], c=[1, 1, 1])
    in_term(cluster, 2)
    cluster.cut = {("a", "c")}
    cluster.elect("a")
    cluster.cut.clear()
    assert cluster["a"].log.commit_index == 4
    cluster.tick("a")
    assert {beat.to: beat.commit for beat in taken(cluster, HeartbeatRequest)} == {"b": 4, "c": 0}


def test_figure_2_a_follower_answers_only_when_the_entries_are_durable() -> None:
    """Figure 2: persistent state is updated before responding."""
    cluster = elected()
    cluster.members["b"].holds_disk = True
    cluster.propose("a")
    cluster.process("a")
    cluster.deliver(cluster.take(AppendRequest, to="b"))
    assert cluster.take(AppendResponse) == []
    cluster.sync("b")
    (answer,) = taken(cluster, AppendResponse)
    assert answer.match_index == 2


def test_8_a_new_leader_appends_a_no_op_and_nothing_else() -> None:
    """Section 8."""
    cluster = elected()
    assert [(e.index, e.term, e.kind) for e in cluster.members["b"].applied] == [(1, 1, EntryKind.NO_OP)]


def test_thesis_10_2_1_a_leader_sends_before_its_own_sync_and_counts_itself_after_it() -> None:
    """Thesis 10.2.1: one follower's answer is a majority of two only when the leader is durable as well."""
    cluster = elected()
    cluster.crash("c")
    cluster.members["a"].holds_disk = True
    index, _ = cluster.propose("a")
    cluster.settle()
    assert cluster.members["b"].entries[-1].index == index
    assert cluster["a"].log.commit_index == index - 1
    cluster.sync("a")
    cluster.settle()
    assert cluster["a"].log.commit_index == index


def test_thesis_10_2_1_followers_alone_are_a_majority_but_the_leader_applies_only_what_it_has_made_durable() -> None:
    """Thesis 10.2.1; a crash must not find something applied that the log does not have."""
    cluster = elected()
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


def test_thesis_10_2_2_entries_of_one_turn_go_in_one_request() -> None:
    """Batching: what is proposed before the next Ready shares a request a follower, and a sync."""
    cluster = elected()
    for _ in range(10):
        cluster.propose("a")
    cluster.members["a"].holds_disk = True
    cluster.process("a")
    assert [len(m.entries) for m in taken(cluster, AppendRequest)] == [10, 10]
    persisting = cluster.members["a"].persisting
    assert persisting is not None
    assert len(persisting.entries) == 10


def test_thesis_10_2_2_requests_follow_each_other_without_waiting_up_to_the_window() -> None:
    """Thesis 10.2.2, pipelining: bounded in messages."""
    cluster = elected("ab", inflight_messages_max=3)
    for _ in range(5):
        cluster.propose("a")
        cluster.process("a")
    requests = taken(cluster, AppendRequest)
    assert [m.previous_index for m in requests] == [1, 2, 3]
    cluster.deliver(requests[:1])
    cluster.deliver(cluster.take(AppendResponse))
    (following,) = taken(cluster, AppendRequest)
    assert [e.index for e in following.entries] == [5, 6]
