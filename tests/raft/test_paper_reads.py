"""Linearizable reads, claim by claim: the Raft paper (extended version), section 8; the thesis, section 6.4."""

import pytest
from quorate_raft.core.messages import (
    HeartbeatRequest,
    HeartbeatResponse,
    ReadIndexRequest,
)
from support.raft_cluster import ELECTION_TICKS
from support.raft_scenes import elected, forget_leader, taken, time_out


def test_8_a_deposed_leader_answers_no_read() -> None:
    """Section 8: it must have exchanged heartbeats with a majority after the read came. Its reads are refused when
    it steps down."""
    cluster = elected()
    cluster.partition("a", "bc")
    context = cluster.read("a")
    cluster.settle()
    forget_leader(cluster, "b", "c")
    time_out(cluster, "b")
    cluster.settle()
    assert cluster["b"].is_leader
    cluster.propose("b", b"unseen by a")
    cluster.settle()
    assert context not in cluster.members["a"].reads
    cluster.heal()
    cluster.tick("b", times=2)
    cluster.settle()
    assert cluster.members["a"].reads[context] == 0


@pytest.mark.parametrize("member", "abc")
def test_thesis_6_4_any_member_learns_what_was_committed_when_it_asked(member: str) -> None:
    cluster = elected()
    index, _ = cluster.propose("a")
    cluster.settle()
    context = cluster.read(member)
    cluster.settle()
    assert cluster.members[member].reads[context] == index


def test_thesis_6_4_a_read_is_answered_only_when_a_majority_has_echoed_its_round() -> None:
    cluster = elected("abcde")
    context = cluster.read("a")
    cluster.process("a")
    by_member = {m.to: m for m in taken(cluster, HeartbeatRequest)}
    cluster.deliver([by_member["b"], by_member["b"]])
    cluster.settle()
    assert context not in cluster.members["a"].reads
    cluster.deliver([by_member["c"]])
    cluster.settle()
    assert cluster.members["a"].reads[context] == 1


def test_thesis_6_4_reads_that_come_together_share_one_round() -> None:
    """Thesis 6.4: one round of heartbeats confirms them all."""
    cluster = elected()
    contexts = [cluster.read("a") for _ in range(50)]
    cluster.process("a")
    assert len(taken(cluster, HeartbeatRequest)) == 2
    cluster.deliver([HeartbeatResponse("b", "a", 1, cluster["a"]._state.reads.newest_round)])
    assert [cluster.members["a"].reads[context] for context in contexts] == [1] * 50


def test_thesis_6_4_a_read_index_is_what_was_committed_when_the_read_came() -> None:
    """What is committed while the round is under way is not waited for."""
    cluster = elected()
    context = cluster.read("a")
    cluster.process("a")
    beats = taken(cluster, HeartbeatRequest)
    cluster.propose("a")
    cluster.settle()
    assert cluster["a"].log.commit_index == 2
    cluster.deliver(beats)
    cluster.settle()
    assert cluster.members["a"].reads[context] == 1


def test_thesis_6_4_a_follower_asks_its_leader_and_says_no_without_one() -> None:
    """Reads of followers cost the leader no more than a message each way."""
    cluster = elected()
    cluster.read("b")
    cluster.process("b")
    (request,) = taken(cluster, ReadIndexRequest)
    assert (request.sender, request.to) == ("b", "a")
    cluster.tick("b", times=2 * ELECTION_TICKS)
    refused = cluster.read("b")
    cluster.process("b")
    assert cluster.members["b"].reads[refused] == 0
