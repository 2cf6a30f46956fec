"""Linearizable reads by ReadIndex (paper, section 8; thesis, section 6.4)."""

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
from support.raft_cluster import Cluster
from support.raft_scenes import elected, taken


def test_a_single_member_answers_itself() -> None:
    cluster = elected("a")
    context = cluster.read("a")
    cluster.process("a")
    assert cluster.members["a"].reads[context] == 1


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
    assert len(taken(cluster, HeartbeatRequest)) == 2 * ROUNDS_OPEN_MAX
    cluster.tick("a")
    cluster.settle()
    assert all(context in cluster.members["a"].reads for context in contexts)


def test_a_leader_that_steps_down_refuses_the_reads_of_followers() -> None:
    cluster = elected()
    cluster.read("b")
    cluster.process("b")
    cluster.deliver(cluster.take(ReadIndexRequest))
    cluster.take()
    cluster.deliver([AppendRequest("c", "a", 2, 1, 1, (), 1)])
    (refusal,) = taken(cluster, ReadIndexResponse)
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
    (refusal,) = taken(cluster, ReadIndexResponse)
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
