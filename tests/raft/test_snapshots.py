"""Snapshots, compaction, and members that lag behind the log's beginning (paper, section 7)."""

import pytest
from quorate_core.errors import InvalidRequest, InvariantViolation, NotFound
from quorate_raft.core.log import ENTRY_OVERHEAD_BYTES, RaftLog
from quorate_raft.core.membership import AddLearner, Membership, RemoveMember, encode_membership
from quorate_raft.core.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    HardState,
    HeartbeatRequest,
    HeartbeatResponse,
    InstallSnapshot,
    SnapshotMeta,
)
from quorate_raft.core.node import RaftNode
from quorate_raft.core.progress import ProgressState
from quorate_raft.core.ready import RaftConfig, Ready, Role
from support.raft_cluster import ELECTION_TICKS, Cluster
from support.raft_scenes import elected, in_term, taken, terms_of

ABC = Membership.of_voters("abc")


def lagging(trailing_entries: int = 0) -> Cluster:
    """a leads and has cut its log; c was away all the time, and is back, but has not been heard from."""
    cluster = elected()
    cluster.crash("c")
    for _ in range(9):
        cluster.propose("a")
    cluster.settle()
    cluster.tick("a", times=2 * ELECTION_TICKS - 1)
    cluster.settle()
    assert cluster.take_snapshot("a", trailing_entries).index == 10
    cluster.restart("c")
    return cluster


def about_to_ask() -> Cluster:
    """a has found out that c needs a snapshot, and its next Ready will say so."""
    cluster = lagging()
    cluster.tick("a")
    while not cluster.wanted:
        cluster.deliver(cluster.take())
    cluster["a"].snapshot_failed("c")
    cluster["a"].step(HeartbeatResponse("c", "a", 1))
    assert cluster["a"]._state.snapshots_wanted == ["c"]
    return cluster


def follower(index: int = 4, term: int = 2, **config: int) -> RaftNode:
    """Member b with entries of `term`, of which the first is committed and applied."""
    entries = [Entry(number, term) for number in range(1, index + 1)]
    return RaftNode(
        RaftConfig("b", **config), HardState(term, commit=1), SnapshotMeta(membership=ABC), entries, 1, lambda _: 0
    )


def snapshot(index: int, term: int, membership: Membership = ABC) -> SnapshotMeta:
    return SnapshotMeta(index, term, membership)


def answers(ready: Ready) -> list[int]:
    return [m.match_index for m in ready.messages_after_persist if isinstance(m, AppendResponse)]


# Compaction


def test_a_compacted_log_still_knows_the_place_it_stands_on() -> None:
    log = RaftLog(
        SnapshotMeta(membership=ABC), [Entry(i, (i + 1) // 2, data=b"x" * i) for i in range(1, 9)], HardState(), 6
    )
    log.compact(5)
    assert (log.first_index, log.last_index, log.previous_term) == (6, 8, 3)
    assert (log.term_at(5), log.term_at(4), log.term_at(6)) == (3, None, 3)
    assert [entry.index for entry in log.slice(6, 1 << 30)] == [6, 7, 8]
    assert log.size_bytes(6, 7) == 13 + 2 * ENTRY_OVERHEAD_BYTES
    assert log.unapplied_bytes == 15 + 2 * ENTRY_OVERHEAD_BYTES
    assert [len(log.slice(6, size)) for size in (1, 6 + 2 * ENTRY_OVERHEAD_BYTES + 7, 1 << 30)] == [1, 2, 3]
    log.append(Entry(9, 4, data=b"y"))
    assert log.size_bytes(9, 9) == 1 + ENTRY_OVERHEAD_BYTES
    assert log.last_index_not_above(3, 9) == 6
    assert log.last_index_not_above(1, 3) == 3
    with pytest.raises(InvariantViolation, match="entry 5 is compacted away; the log starts at 6"):
        log.slice(5, 1)


def test_compacting_everything_and_going_on_keeps_the_sizes_right() -> None:
    log = RaftLog(SnapshotMeta(membership=ABC), [Entry(1, 1, data=b"abc")], HardState(), 1)
    log.compact(1)
    log.compact(1)
    log.append(Entry(2, 1, data=b"abcd"))
    assert log.size_bytes(2, 2) == 4 + ENTRY_OVERHEAD_BYTES
    assert (log.first_index, log.last_index, log.last_term) == (2, 2, 1)


def test_what_is_not_applied_is_not_forgotten() -> None:
    cluster = elected()
    cluster.propose("a")
    with pytest.raises(InvariantViolation, match="entry 2 would be forgotten, but only 1 is applied"):
        cluster["a"].compact(2)


def test_a_leader_that_has_compacted_up_to_its_commit_index_still_reads_and_commits() -> None:
    cluster = elected()
    cluster.propose("a")
    cluster.settle()
    cluster.take_snapshot("a")
    assert cluster["a"].log.first_index > cluster["a"].log.last_index
    context = cluster.read("a")
    index, _ = cluster.propose("a")
    cluster.settle()
    assert cluster.members["a"].reads[context] == index - 1
    assert len(cluster.members["c"].applied) == index


def test_a_follower_that_lacks_only_trailing_entries_needs_no_snapshot() -> None:
    cluster = lagging(trailing_entries=9)
    cluster.tick("a")
    cluster.settle()
    assert cluster.members["c"].applied == cluster.members["a"].applied
    assert cluster.members["c"].base.index == 0


# Restart


def entries_of(first_index: int, last_index: int, term: int = 2) -> list[Entry]:
    return [Entry(index, term) for index in range(first_index, last_index + 1)]


@pytest.mark.parametrize(
    ("first_index", "last_index", "previous_index"),
    [(3, 9, 3), (5, 9, 5), (6, 9, 5), (6, 5, 5)],
    ids=["trailing entries", "the base's own entry", "right after the base", "none"],
)
def test_a_log_restarts_on_its_base(first_index: int, last_index: int, previous_index: int) -> None:
    log = RaftLog(snapshot(5, 2), entries_of(first_index, last_index), HardState(2, commit=7), 5)
    assert (log.previous_index, log.last_index) == (previous_index, max(last_index, 5))
    assert log.term_at(previous_index) == 2
    assert log.commit_index == min(7, log.last_index)
    assert log.stable_index == log.last_index
    assert log.membership is ABC


def test_configurations_before_the_base_are_in_the_base() -> None:
    """Trailing entries may hold older ones; they are not in force again."""
    old = Entry(4, 2, EntryKind.MEMBERSHIP, encode_membership(Membership.of_voters("xyz")))
    new = Entry(6, 2, EntryKind.MEMBERSHIP, encode_membership(Membership.of_voters("abcd")))
    log = RaftLog(snapshot(5, 2), [Entry(3, 2), old, Entry(5, 2), new], HardState(), 5)
    assert log.configurations.at(5) is ABC
    assert log.membership.voters == ("a", "b", "c", "d")
    with pytest.raises(NotFound):
        log.configurations.at(4)


@pytest.mark.parametrize(
    ("entries", "applied_index", "error", "text"),
    [
        (entries_of(7, 9), 5, InvalidRequest, "do not continue at 6"),
        (entries_of(2, 4), 5, InvariantViolation, "the log ends at 4, but the state machine has applied 5"),
        (entries_of(6, 9), 4, InvariantViolation, "stands on a snapshot of entry 5, .* applied only 4"),
        (entries_of(3, 9, term=1), 5, InvariantViolation, "entry 5 is of term 1, but of 2 in the snapshot"),
        (entries_of(6, 9), 10, InvariantViolation, "the log ends at 9, but the state machine has applied 10"),
    ],
    ids=["gap", "ends early", "machine behind", "other term", "machine ahead"],
)
def test_a_log_that_does_not_fit_its_base_is_refused(
    entries: list[Entry], applied_index: int, error: type[Exception], text: str
) -> None:
    """Pitfall (etcd 9808): a snapshot and a log with a gap between them."""
    with pytest.raises(error, match=text):
        RaftLog(snapshot(5, 2), entries, HardState(2), applied_index)


@pytest.mark.parametrize("trailing_entries", [0, 3])
def test_a_member_restarts_from_its_snapshot(trailing_entries: int) -> None:
    """Obligation 8: the state machine may have kept nothing."""
    cluster = elected()
    for _ in range(6):
        cluster.propose("a")
    cluster.settle()
    cluster.tick("a")
    cluster.settle()
    for name in "abc":
        cluster.take_snapshot(name, trailing_entries)
    cluster.propose("a", b"after")
    cluster.settle()
    cluster.tick("a")
    cluster.settle()
    for name in "abc":
        cluster.crash(name)
        cluster.restart(name, 0)
        assert len(cluster.members[name].applied) == 7
    cluster.elect("b")
    for member in cluster.members.values():
        assert [entry.index for entry in member.applied] == list(range(1, 10))


# The leader


def test_a_follower_that_the_log_cannot_help_is_sent_a_snapshot_and_then_the_rest() -> None:
    cluster = lagging()
    cluster.tick("a")
    cluster.settle()
    assert cluster.members["c"].base == cluster.members["a"].base
    assert cluster.members["c"].applied == cluster.members["a"].applied
    cluster.propose("a", b"goes on")
    cluster.settle()
    assert cluster.members["c"].applied[-1].data == b"goes on"
    assert cluster["a"].progress()["c"].state is ProgressState.REPLICATE


def test_a_snapshot_is_asked_for_once_and_only_when_the_follower_is_heard() -> None:
    cluster = lagging()
    cluster.propose("a")
    cluster.process("a")
    assert cluster.wanted == []
    assert cluster["a"].progress()["c"].state is not ProgressState.SNAPSHOT
    cluster.tick("a")
    cluster.deliver(cluster.take())
    cluster.deliver(cluster.take())
    assert cluster.wanted == [("a", "c")]
    assert cluster["a"].progress()["c"].state is ProgressState.SNAPSHOT
    for _ in range(3):
        cluster.tick("a")
        cluster.propose("a")
        cluster.deliver(cluster.take())
        assert taken(cluster, AppendRequest, to="c") == []
        cluster.deliver(cluster.take())
    assert cluster.wanted == [("a", "c")]


def test_a_lost_snapshot_is_asked_for_again_at_the_next_sign_of_life() -> None:
    """One attempt a heartbeat at most, so a follower that cannot take it keeps nobody busy."""
    cluster = lagging()
    cluster.tick("a")
    while not cluster.wanted:
        cluster.deliver(cluster.take())
    cluster.cut = {("a", "c")}
    cluster.stream("a", "c")
    cluster.propose("a")
    cluster.process("a")
    assert cluster.wanted == []
    assert taken(cluster, AppendRequest, to="c") == []
    cluster.heal()
    cluster.tick("a")
    cluster.settle()
    assert cluster.members["c"].applied == cluster.members["a"].applied


def test_a_follower_that_turns_out_to_have_what_was_missing_comes_back_by_itself() -> None:
    cluster = lagging()
    cluster.tick("a")
    while not cluster.wanted:
        cluster.deliver(cluster.take())
    last_index = cluster["a"].log.last_index
    cluster["a"].step(AppendResponse("c", "a", 1, last_index - 1))
    assert cluster["a"].progress()["c"].state is ProgressState.SNAPSHOT, "it is still before the beginning"
    cluster["a"].step(AppendResponse("c", "a", 1, last_index))
    assert cluster["a"].progress()["c"].state is ProgressState.REPLICATE
    cluster["a"].snapshot_sent("c", last_index)
    cluster["a"].snapshot_failed("c")
    assert cluster["a"].progress()["c"].state is ProgressState.REPLICATE


def test_rejections_say_nothing_while_a_snapshot_is_on_its_way() -> None:
    cluster = lagging()
    cluster.tick("a")
    while not cluster.wanted:
        cluster.deliver(cluster.take())
    before = cluster["a"].progress()["c"]
    cluster["a"].step(AppendResponse("c", "a", 1, before.next_index - 1, rejected=True, hint_index=1, hint_term=1))
    cluster["a"].step(AppendResponse("c", "a", 1, 0, rejected=True, needs_snapshot=True))
    assert cluster["a"].progress()["c"] == before
    cluster.process("a")
    assert cluster.wanted == [("a", "c")]


def test_entries_that_were_cut_while_the_snapshot_travelled_have_another_one_sent() -> None:
    """The caller keeps entries for a snapshot that is on its way; a leader that comes to power meanwhile may not have
    them."""
    cluster = lagging()
    cluster.tick("a")
    while not cluster.wanted:
        cluster.deliver(cluster.take())
    for _ in range(5):
        cluster.propose("a")
    cluster.process("a")
    cluster.deliver(cluster.take(AppendRequest, to="b"))
    cluster.deliver(cluster.take(AppendResponse, to="a"))
    old_snapshot = cluster.members["a"].snapshots[10]
    cluster.take_snapshot("a")
    cluster.members["a"].snapshots = {10: old_snapshot}
    cluster.wanted.clear()
    cluster.members["c"].snapshots[10] = old_snapshot
    cluster.deliver([InstallSnapshot("a", "c", 1, old_snapshot.meta)])
    cluster["a"].snapshot_sent("c", 10)
    cluster.process("a")
    assert cluster.wanted == [("a", "c")]
    cluster.settle()
    assert cluster.members["c"].applied == cluster.members["a"].applied


def test_a_snapshot_of_what_is_not_applied_cannot_have_been_sent() -> None:
    cluster = elected()
    with pytest.raises(InvariantViolation, match="c was sent a snapshot of entry 9, past 1"):
        cluster["a"].snapshot_sent("c", 9)


def test_news_of_a_snapshot_for_somebody_who_is_no_follower_any_more_is_ignored() -> None:
    cluster = lagging()
    cluster.tick("a")
    while not cluster.wanted:
        cluster.deliver(cluster.take())
    cluster.change("a", RemoveMember("c"))
    cluster["a"].snapshot_failed("c")
    cluster["a"].snapshot_sent("c", 10)
    cluster["b"].snapshot_failed("c")
    assert "c" not in cluster["a"].progress()


def test_a_snapshot_for_a_follower_that_is_removed_is_not_asked_for() -> None:
    cluster = about_to_ask()
    cluster.change("a", RemoveMember("c"))
    assert cluster["a"].ready().snapshots_wanted == ()


def test_a_snapshot_is_for_the_leader_to_send() -> None:
    cluster = about_to_ask()
    cluster["a"].step(HeartbeatRequest("b", "a", 2, 0))
    assert cluster["a"].ready().snapshots_wanted == ()


def test_a_follower_whose_window_was_full_when_the_log_was_cut_gets_a_snapshot() -> None:
    """Pipelining: what is next to be sent is gone. A heartbeat's answer finds that out."""
    cluster = elected("abc", inflight_messages_max=2)
    cluster.cut = {("a", "c")}
    for _ in range(5):
        cluster.propose("a")
        cluster.settle()
    cluster.take_snapshot("a")
    assert cluster["a"].progress()["c"].state is ProgressState.REPLICATE
    cluster.heal()
    cluster.tick("a")
    cluster.settle()
    assert cluster.members["c"].base.index == 6
    assert cluster.members["c"].applied == cluster.members["a"].applied


def test_a_follower_that_fell_silent_is_sent_no_snapshot_before_it_is_back() -> None:
    """What is next for it is gone from the log, as above; but nobody may be there to take a snapshot."""
    cluster = elected("abc", inflight_messages_max=2)
    cluster.partition("ab", "c")
    for _ in range(5):
        cluster.propose("a")
        cluster.settle()
    for _ in range(2 * ELECTION_TICKS):
        cluster.tick("a", "b")
        cluster.settle()
    cluster.take_snapshot("a")
    cluster.propose("a")
    cluster.process("a")
    assert cluster.wanted == []
    assert cluster["a"].progress()["c"].state is ProgressState.PROBE
    cluster.heal()
    cluster.tick("a")
    cluster.settle()
    assert cluster.members["c"].applied == cluster.members["a"].applied


# Joining


def test_a_member_that_joins_asks_for_a_snapshot_though_the_log_is_whole() -> None:
    """The first configuration is in no entry."""
    cluster = elected("abc")
    cluster.add("d")
    cluster.change("a", AddLearner("d", ""))
    cluster.settle()
    assert cluster["a"].log.first_index == 1
    assert cluster.members["d"].base.index > 0
    assert cluster["d"].membership == cluster["a"].membership
    assert cluster["d"].membership_at(cluster.members["d"].base.index).learners == ("d",)


def test_a_late_wish_for_a_snapshot_is_ignored() -> None:
    cluster = elected("abc")
    cluster["a"].step(AppendResponse("b", "a", 1, 0, rejected=True, needs_snapshot=True))
    assert cluster["a"].progress()["b"].state is ProgressState.REPLICATE


# The follower


def test_a_snapshot_that_is_older_than_what_is_committed_is_answered_only() -> None:
    node = follower()
    node.step(HeartbeatRequest("a", "b", 2, 3))
    node.step(InstallSnapshot("a", "b", 2, snapshot(2, 2)))
    ready = node.ready()
    assert ready.snapshot is None
    assert answers(ready) == [3]


def test_a_snapshot_that_the_log_agrees_with_commits_and_restores_nothing() -> None:
    """Paper, figure 13, 6: retain what follows the snapshot's last entry."""
    node = follower()
    node.step(InstallSnapshot("a", "b", 2, snapshot(3, 2)))
    ready = node.ready()
    assert ready.snapshot is None
    assert [entry.index for entry in ready.committed] == [2, 3]
    assert node.log.last_index == 4
    assert answers(ready) == [3]


@pytest.mark.parametrize(("index", "term"), [(9, 2), (3, 3)], ids=["log too short", "log of another term"])
def test_a_snapshot_takes_the_place_of_a_log_that_does_not_lead_there(index: int, term: int) -> None:
    """Paper, figure 13, 7 and 8."""
    node = follower()
    bigger = Membership.of_voters("abcd")
    node.step(InstallSnapshot("a", "b", 3, snapshot(index, term, bigger)))
    ready = node.ready()
    assert ready.must_sync
    assert ready.snapshot == snapshot(index, term, bigger)
    assert ready.entries == ()
    assert ready.hard_state == HardState(3, "", index)
    assert answers(ready) == [index], "after it is durable"
    assert ready.membership == bigger
    assert (node.log.first_index, node.log.last_index, node.log.last_term) == (index + 1, index, term)
    assert node.membership == bigger


def test_nothing_is_applied_before_the_snapshot_is_restored_and_then_what_follows_it() -> None:
    node = follower()
    node.step(InstallSnapshot("a", "b", 2, snapshot(9, 2)))
    node.step(AppendRequest("a", "b", 2, 9, 2, (Entry(10, 2), Entry(11, 2)), 11))
    restoring = node.ready()
    assert restoring.snapshot is not None
    assert [entry.index for entry in restoring.entries] == [10, 11]
    assert (restoring.committed, answers(restoring)) == ((), [9, 11])
    assert node.log.commit_index == 11
    assert node.log.applied_index == 1, "which is what reads go by"
    node.step(AppendRequest("a", "b", 2, 11, 2, (Entry(12, 2),), 12))
    assert not node.has_ready()
    node.persisted(restoring)
    assert node.log.applied_index == 9
    following = node.ready()
    assert [entry.index for entry in following.committed] == [10, 11]
    assert [entry.index for entry in following.entries] == [12]


def test_what_was_being_written_when_the_snapshot_came_is_not_taken_for_what_follows_it() -> None:
    node = follower()
    node.step(AppendRequest("a", "b", 2, 4, 2, (Entry(5, 2), Entry(6, 2)), 4))
    writing = node.ready()
    assert [entry.index for entry in writing.entries] == [5, 6]
    assert [entry.index for entry in writing.committed] == [2, 3, 4]
    node.step(InstallSnapshot("a", "b", 2, snapshot(9, 2)))
    node.step(AppendRequest("a", "b", 2, 9, 2, (Entry(10, 2),), 10))
    assert not node.ready().must_sync
    node.applied(4)
    node.persisted(writing)
    restoring = node.ready()
    assert restoring.snapshot == snapshot(9, 2)
    assert [entry.index for entry in restoring.entries] == [10]
    assert restoring.committed == ()
    assert node.log.stable_index == 9
    node.persisted(restoring)
    assert node.log.stable_index == 10
    assert [entry.index for entry in node.ready().committed] == [10]


def test_a_second_snapshot_waits_until_the_first_is_taken_over() -> None:
    node = follower()
    node.step(InstallSnapshot("a", "b", 2, snapshot(9, 2)))
    node.step(InstallSnapshot("a", "b", 2, snapshot(20, 2)))
    first = node.ready()
    assert first.snapshot == snapshot(9, 2)
    node.step(InstallSnapshot("a", "b", 2, snapshot(20, 2)))
    assert not node.has_ready()
    node.persisted(first)
    node.step(InstallSnapshot("a", "b", 2, snapshot(20, 2)))
    assert node.ready().snapshot == snapshot(20, 2)


def test_a_snapshot_of_an_older_term_is_answered_with_the_newer_one() -> None:
    node = follower()
    node.step(InstallSnapshot("a", "b", 1, snapshot(9, 1)))
    ready = node.ready()
    assert ready.snapshot is None
    (answer,) = ready.messages_after_persist
    assert answer == AppendResponse("b", "a", 2, 0, rejected=True)


def test_a_snapshot_proves_that_its_sender_leads() -> None:
    node = follower()
    node.step(InstallSnapshot("a", "b", 7, snapshot(9, 2)))
    assert (node.standing.leader, node.standing.term) == ("a", 7)


@pytest.mark.parametrize("impossible", [snapshot(9, 3), snapshot(9, 2, Membership())], ids=["newer term", "nobody"])
def test_a_snapshot_that_no_leader_can_have_is_refused(impossible: SnapshotMeta) -> None:
    node = follower()
    with pytest.raises(InvalidRequest, match="leader of term 2, has a snapshot of term"):
        node.step(InstallSnapshot("a", "b", 2, impossible))
    assert node.log.last_index == 4


def test_a_member_that_is_taking_a_snapshot_over_does_not_campaign() -> None:
    """It could not serve what it leads; others can."""
    node = follower()
    node.step(InstallSnapshot("a", "b", 2, snapshot(9, 2)))
    restoring = node.ready()
    for _ in range(3 * ELECTION_TICKS):
        node.tick()
    assert node.standing.role is Role.FOLLOWER
    node.persisted(restoring)
    for _ in range(ELECTION_TICKS):
        node.tick()
    assert node.standing.role is Role.PRE_CANDIDATE


def test_a_log_is_never_replaced_by_an_older_state() -> None:
    log = RaftLog(SnapshotMeta(membership=ABC), entries_of(1, 9), HardState(2, commit=9), 9)
    with pytest.raises(InvariantViolation, match="a snapshot of entry 9 would undo 9"):
        log.restore(snapshot(9, 2))


def test_a_member_that_crashes_before_the_snapshot_is_durable_asks_again() -> None:
    cluster = lagging()
    cluster.members["c"].holds_disk = True
    cluster.tick("a")
    cluster.settle()
    assert cluster.members["c"].base.index == 0
    cluster.crash("c")
    cluster.restart("c")
    cluster.members["c"].holds_disk = False
    cluster.tick("a", times=2)
    cluster.settle()
    assert cluster.members["c"].applied == cluster.members["a"].applied


def test_a_log_of_another_term_gives_way_to_the_snapshot() -> None:
    """c led term 2 without anybody hearing of it; what it has is overwritten by what is agreed on."""
    cluster = elected()
    cluster.crash("c")
    for _ in range(5):
        cluster.propose("a")
    cluster.settle()
    cluster.take_snapshot("a")
    cluster.members["c"].entries += [Entry(index, 2, data=b"unseen") for index in range(2, 9)]
    in_term(cluster, 2, "c")
    cluster.tick("a")
    cluster.settle()
    assert not cluster["a"].is_leader, "it was told of term 2"
    cluster.elect("a")
    assert cluster.members["c"].base.index == 6
    assert cluster.members["c"].applied == cluster.members["a"].applied
    assert terms_of(cluster, "c") == terms_of(cluster, "a") == [3]
