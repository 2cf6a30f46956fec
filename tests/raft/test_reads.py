"""Linearizable reads by ReadIndex (paper, section 8; thesis, section 6.4)."""

import pytest
from quorate_raft.core.messages import (
    AppendRequest,
    AppendResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    ReadIndexRequest,
    ReadIndexResponse,
)
from quorate_raft.core.reads import READS_WAITING_MAX, ROUNDS_OPEN_MAX, ReadRounds
from quorate_raft.core.ready import ReadResult
from support.raft_cluster import ELECTION_TICKS, Cluster


def elected(names: str = "abc") -> Cluster:
    cluster = Cluster(names)
    cluster.elect("a")
    return cluster


def heartbeats(cluster: Cluster) -> list[HeartbeatRequest]:
    return [m for m in cluster.take(HeartbeatRequest) if isinstance(m, HeartbeatRequest)]


@pytest.mark.parametrize("member", "abc")
def test_any_member_learns_what_was_committed_when_it_asked(member: str) -> None:
    cluster = elected()
    index, _ = cluster.propose("a")
    cluster.settle()
    context = cluster.read(member)
    cluster.settle()
    assert cluster.members[member].reads[context] == index


def test_a_single_member_answers_itself() -> None:
    cluster = elected("a")
    context = cluster.read("a")
    cluster.process("a")
    assert cluster.members["a"].reads[context] == 1


def test_reads_that_come_together_share_one_round() -> None:
    """Thesis 6.4: one round of heartbeats confirms them all."""
    cluster = elected()
    contexts = [cluster.read("a") for _ in range(50)]
    cluster.process("a")
    assert len(heartbeats(cluster)) == 2
    cluster.deliver([HeartbeatResponse("b", "a", 1, cluster["a"]._state.reads.newest_round)])
    assert [cluster.members["a"].reads[context] for context in contexts] == [1] * 50


def test_a_read_is_answered_only_when_a_majority_has_echoed_its_round() -> None:
    cluster = elected("abcde")
    context = cluster.read("a")
    cluster.process("a")
    by_member = {m.to: m for m in heartbeats(cluster)}
    cluster.deliver([by_member["b"], by_member["b"]])
    cluster.settle()
    assert context not in cluster.members["a"].reads
    cluster.deliver([by_member["c"]])
    cluster.settle()
    assert cluster.members["a"].reads[context] == 1


def test_a_late_echo_of_an_earlier_round_confirms_nothing_newer() -> None:
    """Pitfall (etcd 20418): after a pause, late answers must not confirm a read that came later."""
    cluster = elected()
    early = cluster.read("a")
    cluster.process("a")
    late_beats = heartbeats(cluster)
    cluster.deliver(late_beats[:1])
    late_echo = cluster.take(HeartbeatResponse)
    later = cluster.read("a")
    cluster.process("a")
    cluster.take(HeartbeatRequest)
    cluster.deliver(late_echo)
    assert early in cluster.members["a"].reads
    assert later not in cluster.members["a"].reads
    cluster.deliver([HeartbeatResponse("b", "a", 1, 0), HeartbeatResponse("c", "a", 1, 0)])
    assert later not in cluster.members["a"].reads


def test_round_numbers_are_never_used_twice() -> None:
    """Pitfall (etcd 20418): not even by a leader that comes back; answers of an older term are dropped."""
    cluster = elected()
    cluster.read("a")
    cluster.process("a")
    first_round = cluster["a"]._state.reads.newest_round
    stale_echoes = [HeartbeatResponse(name, "a", 1, first_round) for name in "bc"]
    cluster.take()
    cluster.partition("a", "bc")
    cluster.tick("a", times=2 * ELECTION_TICKS)
    cluster.take()
    cluster.heal()
    cluster.tick("b", "c", times=ELECTION_TICKS)
    cluster.take()
    cluster.elect("a")
    context = cluster.read("a")
    cluster.process("a")
    assert cluster["a"]._state.reads.newest_round > first_round
    cluster.take()
    cluster.deliver(stale_echoes)
    assert context not in cluster.members["a"].reads


def test_an_echo_of_a_later_round_confirms_earlier_ones() -> None:
    """Whoever echoes a later round of the term had not left it when the earlier one began."""
    cluster = elected()
    contexts = []
    for _ in range(3):
        contexts.append(cluster.read("a"))
        cluster.process("a")
    cluster.take()
    cluster.deliver([HeartbeatResponse("b", "a", 1, cluster["a"]._state.reads.newest_round)])
    assert all(context in cluster.members["a"].reads for context in contexts)


def test_a_lost_round_is_repeated_by_the_next_heartbeat() -> None:
    cluster = elected()
    context = cluster.read("a")
    cluster.process("a")
    cluster.take()
    cluster.tick("a")
    cluster.settle()
    assert cluster.members["a"].reads[context] == 1


def test_rounds_under_way_are_bounded_and_reads_gather_meanwhile() -> None:
    cluster = elected()
    contexts = []
    for _ in range(ROUNDS_OPEN_MAX + 5):
        contexts.append(cluster.read("a"))
        cluster.process("a")
    assert len(heartbeats(cluster)) == 2 * ROUNDS_OPEN_MAX
    cluster.tick("a")
    cluster.settle()
    assert all(context in cluster.members["a"].reads for context in contexts)


def test_a_leader_with_no_commit_in_its_term_refuses() -> None:
    """Pitfall (etcd 7331): it does not know yet what its predecessor has committed."""
    cluster = elected()
    cluster.propose("a")
    cluster.settle()
    cluster.crash("a")
    cluster.tick("b", "c", times=ELECTION_TICKS)
    cluster.take()
    cluster["b"]._state.election_timeout_ticks = 1
    cluster.tick("b")
    while not cluster["b"].is_leader:
        cluster.deliver(cluster.take())
    lost = cluster.take(AppendRequest)
    assert lost
    own, theirs = cluster.read("b"), 77
    cluster.deliver([ReadIndexRequest("c", "b", 2, theirs)])
    assert cluster.members["b"].reads[own] == 0
    assert [m.index for m in cluster.take(ReadIndexResponse) if isinstance(m, ReadIndexResponse)] == [0]
    cluster.deliver(lost)
    cluster.settle()
    again = cluster.read("b")
    cluster.settle()
    assert cluster.members["b"].reads[again] == 3


def test_a_deposed_leader_answers_no_read() -> None:
    """Section 8: it must have exchanged heartbeats with a majority after the read came. Its reads are refused when
    it steps down."""
    cluster = elected()
    cluster.partition("a", "bc")
    context = cluster.read("a")
    cluster.settle()
    cluster.tick("b", "c", times=ELECTION_TICKS)
    cluster.take()
    cluster["b"]._state.election_timeout_ticks = 1
    cluster.tick("b")
    cluster.settle()
    assert cluster["b"].is_leader
    cluster.propose("b", b"unseen by a")
    cluster.settle()
    assert context not in cluster.members["a"].reads
    cluster.heal()
    cluster.tick("b", times=2)
    cluster.settle()
    assert cluster.members["a"].reads[context] == 0


def test_a_leader_that_steps_down_refuses_the_reads_of_followers() -> None:
    cluster = elected()
    cluster.read("b")
    cluster.process("b")
    cluster.deliver(cluster.take(ReadIndexRequest))
    cluster.take()
    cluster.deliver([AppendRequest("c", "a", 2, 1, 1, (), 1)])
    (refusal,) = cluster.take(ReadIndexResponse)
    assert isinstance(refusal, ReadIndexResponse)
    assert (refusal.to, refusal.index) == ("b", 0)


def test_a_member_that_knows_no_leader_refuses_at_once() -> None:
    cluster = Cluster("abc")
    context = cluster.read("b")
    cluster.process("b")
    assert cluster.members["b"].reads[context] == 0


def test_a_request_that_reaches_a_follower_is_refused() -> None:
    """Of somebody who thinks that it leads: there is no second hop."""
    cluster = elected()
    cluster.deliver([ReadIndexRequest("c", "b", 1, 5)])
    (refusal,) = cluster.take(ReadIndexResponse)
    assert isinstance(refusal, ReadIndexResponse)
    assert (refusal.to, refusal.context, refusal.index) == ("c", 5, 0)


def test_reads_that_wait_are_bounded() -> None:
    cluster = elected()
    for context in range(1, READS_WAITING_MAX + 1):
        cluster["a"].read_index(context)
    cluster["a"].read_index(10**9)
    assert cluster["a"].ready().reads == (ReadResult(10**9, 0),)


def test_echoes_of_strangers_count_for_nothing() -> None:
    rounds = ReadRounds(("a", "b", "c"))
    rounds.ask("a", 1)
    number = rounds.start(7)
    assert rounds.echo("a", number) == []
    assert rounds.echo("z", number) == []
    assert rounds.echo("b", number) == [(("a", 1), 7)]


def test_an_append_answer_is_no_echo() -> None:
    cluster = elected()
    context = cluster.read("a")
    cluster.process("a")
    cluster.take()
    cluster.deliver([AppendResponse("b", "a", 1, 1), AppendResponse("c", "a", 1, 1)])
    assert context not in cluster.members["a"].reads
