"""Snapshots and compaction, claim by claim: the Raft paper (extended version), section 7 and figure 13."""

import pytest
from quorate_core.errors import InvariantViolation
from quorate_raft.core.membership import Membership, RemoveMember
from quorate_raft.core.messages import AppendResponse, Entry, InstallSnapshot, SnapshotMeta
from support.raft_cluster import Cluster, Snapshot
from support.raft_scenes import deliver_until, elected, in_term, taken, terms_of, with_logs

MEMBERSHIP = Membership.of_voters("abc")


def ahead(entries: int = 5) -> Cluster:
    """a leads and has forgotten what it has applied; c was away, and has only the first entry."""
    cluster = elected()
    cluster.crash("c")
    for _ in range(entries):
        cluster.propose("a")
    cluster.settle()
    cluster.take_snapshot("a")
    return cluster


def snapshot_of(*terms: int) -> Snapshot:
    """What a snapshot after entries of these terms holds."""
    entries = tuple(Entry(index, term, data=b"%d" % term) for index, term in enumerate(terms, start=1))
    return Snapshot(SnapshotMeta(len(terms), terms[-1], MEMBERSHIP), entries)


def install(cluster: Cluster, snapshot: Snapshot, term: int) -> AppendResponse:
    """Let c take over a snapshot of the leader a of this term; returns its answer."""
    cluster.members["c"].snapshots[snapshot.meta.index] = snapshot
    cluster.agreed = max(cluster.agreed, list(snapshot.applied), key=len)
    cluster.deliver([InstallSnapshot("a", "c", term, snapshot.meta)])
    (answer,) = taken(cluster, AppendResponse, sender="c")
    return answer


def test_7_a_member_comes_back_from_its_snapshot_and_the_entries_after_it() -> None:
    """What the snapshot covers is not needed any more, whatever the state machine has kept."""
    for kept in (None, 6, 0):
        cluster = ahead()
        cluster.restart("c")
        cluster.settle()
        cluster.propose("a", b"after")
        cluster.settle()
        cluster.crash("a")
        assert [entry.index for entry in cluster.members["a"].entries] == [7]
        cluster.restart("a", kept)
        cluster.elect("a")
        cluster.settle()
        assert [entry.index for entry in cluster.members["a"].applied] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_7_only_what_was_applied_is_forgotten() -> None:
    """A snapshot covers committed entries only."""
    cluster = ahead()
    with pytest.raises(InvariantViolation, match="entry 7 would be forgotten, but only 6 is applied"):
        cluster["a"].compact(7)
    cluster["a"].compact(3)
    assert cluster["a"].log.previous_index == 6, "what is forgotten already is no news"


def test_7_a_leader_sends_a_snapshot_when_it_has_forgotten_the_next_entry_that_it_would_send() -> None:
    """And only then: a follower that lacks what the log still has is sent entries."""
    cluster = ahead()
    cluster.restart("c")
    cluster.tick("a")
    cluster.settle()
    assert max(cluster.members["c"].snapshots) == 6
    assert len(cluster.members["c"].applied) == 6
    cluster.propose("a", b"after")
    cluster.crash("b")
    cluster.settle()
    cluster.restart("b")
    cluster.tick("a")
    cluster.settle()
    assert cluster.members["b"].snapshots == {}
    assert cluster.members["b"].applied == cluster.members["a"].applied


def test_7_a_snapshot_is_asked_for_once_and_only_for_who_answers() -> None:
    """Of one that is away nobody knows what it needs."""
    cluster = ahead()
    for _ in range(5):
        cluster.tick("a")
        cluster.deliver(cluster.take())
    assert cluster.wanted == []
    cluster.restart("c")
    for _ in range(5):
        cluster.tick("a")
        cluster.deliver(cluster.take())
        cluster.deliver(cluster.take())
    assert cluster.wanted == [("a", "c")]


def test_7_a_snapshot_that_is_lost_is_asked_for_again_at_the_next_sign_of_life() -> None:
    cluster = ahead()
    cluster.restart("c")
    cluster.tick("a")
    deliver_until(cluster, lambda: cluster.wanted)
    cluster.cut = {("a", "c")}
    cluster.stream("a", "c")
    cluster.settle()
    assert cluster.wanted == []
    cluster.heal()
    cluster.tick("a")
    cluster.settle()
    assert len(cluster.members["c"].applied) == 6


def test_7_a_snapshot_holds_the_configuration_of_its_last_entry_and_not_a_newer_one() -> None:
    """ "The latest configuration in the log as of last included index"; what is newer is in the log that follows."""
    cluster = elected("abcd")
    cluster.change("a", RemoveMember("d"))
    cluster.settle()
    cluster.partition("a", "bc")
    cluster.change("a", RemoveMember("c"))
    cluster.process("a")
    meta = cluster.take_snapshot("a")
    assert (meta.index, meta.membership.voters) == (2, ("a", "b", "c"))
    cluster.crash("a")
    cluster.restart("a")
    assert cluster["a"].membership.voters == ("a", "b")
    assert cluster["a"].membership_at(2).voters == ("a", "b", "c")


def test_7_the_first_entries_after_a_snapshot_are_checked_against_its_last() -> None:
    """Its index and term are kept for the consistency check of AppendEntries."""
    cluster = ahead()
    cluster.restart("c")
    cluster.tick("a")
    cluster.settle()
    log = cluster["c"].log
    assert (log.first_index, log.term_at(6)) == (7, 1)
    assert log.accept(6, 2, (Entry(7, 2),)) is None
    assert log.accept(6, 1, (Entry(7, 1),)) == 7


def test_figure_13_a_snapshot_of_an_older_term_is_rejected() -> None:
    """InstallSnapshot 1."""
    cluster = with_logs("abc", c=[1])
    in_term(cluster, 5, "c")
    answer = install(cluster, snapshot_of(1, 1, 1), term=4)
    assert (answer.rejected, answer.term) == (True, 5)
    assert terms_of(cluster, "c") == [1]


def test_figure_13_entries_after_the_snapshots_last_are_kept_if_the_log_has_that() -> None:
    """InstallSnapshot 6: the snapshot is a prefix of the log; nothing is restored, but all of it is committed."""
    cluster = with_logs("abc", c=[1, 1, 2, 2])
    in_term(cluster, 2)
    answer = install(cluster, snapshot_of(1, 1, 2), term=2)
    assert (answer.rejected, answer.match_index) == (False, 3)
    assert terms_of(cluster, "c") == [1, 1, 2, 2]
    assert cluster["c"].log.commit_index == 3


@pytest.mark.parametrize("log", [[], [1], [1, 1, 1], [1, 1, 1, 1, 1]], ids=["empty", "shorter", "conflict", "longer"])
def test_figure_13_a_log_without_the_snapshots_last_entry_is_discarded_and_the_state_reset(log: list[int]) -> None:
    """InstallSnapshot 7 and 8: the snapshot, and its configuration, take the place of all that was there."""
    cluster = with_logs("abc", c=log)
    in_term(cluster, 3)
    snapshot = snapshot_of(1, 2, 2)
    answer = install(cluster, snapshot, term=3)
    assert (answer.rejected, answer.match_index) == (False, 3)
    member = cluster.members["c"]
    assert (member.log_entries(), member.entries, member.base) == ([], [], snapshot.meta)
    assert member.applied == list(snapshot.applied)
    assert cluster["c"].membership == MEMBERSHIP
    member.crash()
    member.restart(0)
    assert cluster["c"].log.applied_index == 3


def test_figure_13_a_snapshot_is_answered_only_when_it_is_durable_and_restored() -> None:
    """Figure 2's rule for all that is promised. Meanwhile nothing is applied; a crash finds the log as it was."""
    cluster = with_logs("abc", c=[1, 1])
    in_term(cluster, 3)
    cluster.members["c"].holds_disk = True
    snapshot = snapshot_of(1, 2, 2)
    cluster.members["c"].snapshots[3] = snapshot
    cluster.deliver([InstallSnapshot("a", "c", 3, snapshot.meta)])
    assert cluster.take(AppendResponse) == []
    assert cluster.members["c"].applied == []
    cluster.crash("c")
    cluster.restart("c")
    assert terms_of(cluster, "c") == [1, 1]
    cluster.deliver([InstallSnapshot("a", "c", 3, snapshot.meta)])
    cluster.sync("c")
    (answer,) = taken(cluster, AppendResponse)
    assert answer.match_index == 3
    assert cluster.members["c"].applied == list(snapshot.applied)


def test_figure_13_a_snapshot_behind_what_is_committed_changes_nothing() -> None:
    """It comes late, or twice."""
    cluster = ahead()
    cluster.restart("c")
    cluster.tick("a")
    cluster.settle()
    cluster.propose("a")
    cluster.settle()
    log, applied = cluster.members["c"].log_entries(), list(cluster.members["c"].applied)
    old = cluster.members["c"].snapshots[6]
    cluster.deliver([InstallSnapshot("a", "c", 1, old.meta)])
    (answer,) = taken(cluster, AppendResponse)
    assert answer.match_index == 7
    assert (cluster.members["c"].log_entries(), cluster.members["c"].applied) == (log, applied)
