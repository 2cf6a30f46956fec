"""What has gone wrong in other systems' consensus, each with the test that fails without the rule that prevents it.

Here are those of the core. The others live with the parts that they are about: syncs that fail and logs with gaps in
`tests/unit/raft`, applied twice or not atomically, leases and watchers in `tests/unit/store` and `tests/contract`.
"""

import pytest
from quorate_core.errors import InvariantViolation, NotProposed
from quorate_raft.core.membership import AddLearner, PromoteLearner, RemoveMember
from quorate_raft.core.messages import (
    AppendRequest,
    AppendResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    VoteRequest,
    VoteResponse,
)
from quorate_raft.core.ready import Role
from support.raft_cluster import ELECTION_TICKS, Cluster
from support.raft_scenes import deliver_until, elected, forget_leader, in_term, taken, time_out, with_logs

# Acknowledged before it is durable (etcd 14370)


def test_a_single_member_acknowledges_only_after_its_sync() -> None:
    """It is its own majority, but not before its disk is done."""
    cluster = elected("a")
    cluster.members["a"].holds_disk = True
    index, _ = cluster.propose("a")
    cluster.process("a")
    assert len(cluster.members["a"].applied) == index - 1
    assert cluster["a"].log.commit_index == index - 1
    cluster.sync("a")
    assert len(cluster.members["a"].applied) == index


# Two changes of one configuration by two leaders (raft-dev, July 2015)


def test_a_leader_changes_nothing_before_it_has_committed_an_entry_of_its_term() -> None:
    """a promotes e, and nobody hears of it. b is elected, and removes a: for b, c is enough then. a comes back; d and e
    elect it, which are a majority with it in its own configuration, and it overwrites what b has committed. (The
    harness raises if it does.) If b commits something of its own first, d has that too, and does not vote for a."""
    cluster = elected("abcd")
    cluster.add("e")
    cluster.change("a", AddLearner("e", ""))
    cluster.settle()
    cluster.tick("a")
    cluster.settle()
    cluster.partition("a", "bcde")
    cluster.change("a", PromoteLearner("e"))
    forget_leader(cluster, "b", "c", "d", "e")
    time_out(cluster, "b")
    deliver_until(cluster, lambda: cluster["b"].is_leader)
    cluster.partition("a", "bc", "de")
    cluster.settle()
    try:
        cluster.change("b", RemoveMember("a"))
    except NotProposed:
        was_refused = True
    else:
        was_refused = False
        cluster.settle()
    cluster.partition("ade", "bc")
    forget_leader(cluster, "a", "d", "e")
    cluster.elect("a")
    cluster.settle()
    assert cluster["a"].membership.voters == ("a", "b", "c", "d", "e")
    assert was_refused


# Disruptive and partially connected servers (etcd 9333; Cloudflare, November 2020)


def test_a_member_that_only_the_leader_does_not_reach_disturbs_nobody() -> None:
    """Followers that hear from the leader refuse to help another, and their terms stay."""
    cluster = elected()
    cluster.cut = {("a", "c"), ("c", "a")}
    for _ in range(10 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
        assert cluster["a"].is_leader
    assert cluster["b"].standing.leader == "a"
    assert {cluster[name].standing.term for name in "abc"} == {1}


def test_a_member_that_cannot_win_does_not_keep_the_others_from_electing() -> None:
    """A pre-vote checks the log. Else c, whose log is behind and whose timeout passes first every time, would win every
    pre-vote and lose every vote, raise the term each time, and end the candidacy of whoever could win."""
    cluster = with_logs("abc", a=[1, 1], b=[1, 1], c=[1])
    in_term(cluster, 1)
    for _ in range(10):
        forget_leader(cluster, "a", "b")
        time_out(cluster, "c")
        cluster.settle()
        assert {cluster[name].standing.term for name in "abc"} == {1}
    cluster.elect("a")
    assert cluster["a"].standing.term == 2


def test_a_leader_that_sends_but_does_not_hear_makes_way() -> None:
    """CheckQuorum: its heartbeats hold off elections for as long as it believes that it leads."""
    cluster = elected("abcde")
    cluster.cut = {(name, "a") for name in "bcde"}
    for _ in range(4 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    assert not cluster["a"].is_leader
    index, _ = cluster.propose(cluster.leader)
    cluster.settle()
    assert cluster[cluster.leader].log.commit_index == index


# Reads that are older than what was acknowledged (etcd 7331, 20418)


def test_a_leader_with_no_commit_in_its_term_answers_no_read() -> None:
    """It does not know yet what its predecessor has committed."""
    cluster = elected()
    cluster.propose("a")
    cluster.settle()
    cluster.crash("a")
    forget_leader(cluster, "b", "c")
    time_out(cluster, "b")
    deliver_until(cluster, lambda: cluster["b"].is_leader)
    lost = cluster.take(AppendRequest)
    assert lost
    own, theirs = cluster.read("b"), 77
    cluster.deliver([ReadIndexRequest("c", "b", 2, theirs)])
    assert cluster.members["b"].reads[own] == 0
    assert [answer.index for answer in taken(cluster, ReadIndexResponse)] == [0]
    cluster.deliver(lost)
    cluster.settle()
    again = cluster.read("b")
    cluster.settle()
    assert cluster.members["b"].reads[again] == 3


def test_a_late_echo_of_an_earlier_round_confirms_nothing_newer() -> None:
    """After a pause, answers that waited in a buffer must not confirm a read that came later."""
    cluster = elected()
    early = cluster.read("a")
    cluster.process("a")
    late_beats = taken(cluster, HeartbeatRequest)
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
    """Not even by a leader that comes back."""
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
    forget_leader(cluster, "b", "c")
    cluster.elect("a")
    context = cluster.read("a")
    cluster.process("a")
    assert cluster["a"]._state.reads.newest_round > first_round
    cluster.take()
    cluster.deliver(stale_echoes)
    assert context not in cluster.members["a"].reads


# A vote or a term that is forgotten (PySyncObj 84)


def test_a_vote_survives_a_restart() -> None:
    """A member that forgot its vote would help to elect two leaders of one term."""
    cluster = Cluster("abc")
    cluster.deliver([VoteRequest("b", "a", 1, 0, 0)])
    cluster.crash("a")
    cluster.restart("a")
    assert cluster["a"].standing.term == 1
    cluster.take()
    cluster.deliver([VoteRequest("c", "a", 1, 0, 0)])
    (answer,) = taken(cluster, VoteResponse)
    assert not answer.granted


def test_a_vote_in_a_term_that_was_known_before_survives_a_restart() -> None:
    """The term alone is durable first: it came with a request that was refused."""
    cluster = with_logs("abc", a=[1, 1])
    in_term(cluster, 1)
    cluster.deliver([VoteRequest("b", "a", 2, 1, 1)])
    cluster.deliver([VoteRequest("c", "a", 2, 2, 1)])
    assert [answer.granted for answer in taken(cluster, VoteResponse)] == [False, True]
    cluster.crash("a")
    cluster.restart("a")
    cluster.deliver([VoteRequest("b", "a", 2, 3, 2)])
    assert [answer.granted for answer in taken(cluster, VoteResponse)] == [False]


def test_a_term_survives_a_restart() -> None:
    """A leader that forgot its term would lead it once more, with other entries. Its own vote is durable before it
    asks anybody for theirs."""
    cluster = Cluster("abc")
    time_out(cluster, "a")
    cluster.deliver([VoteResponse("b", "a", 1, granted=True, pre=True)])
    assert [request.term for request in taken(cluster, VoteRequest) if not request.pre] == [1, 1]
    cluster.crash("a")
    cluster.restart("a")
    assert cluster["a"].standing.term == 1
    time_out(cluster, "a")
    cluster.deliver([VoteResponse("b", "a", 2, granted=True, pre=True)])
    assert (cluster["a"].standing.role, cluster["a"].standing.term) == (Role.CANDIDATE, 2)


def test_a_term_that_only_the_log_remembers_is_not_gone_back_on() -> None:
    """A torn tail may take the hard state of a term whose entries it left."""
    cluster = with_logs("abc", a=[1, 5])
    assert cluster["a"].standing.term == 5
    cluster.deliver([VoteRequest("b", "a", 4, 9, 4), AppendRequest("c", "a", 4, 0, 0, (), 0)])
    assert not any(answer.granted for answer in taken(cluster, VoteResponse))
    assert [answer.rejected for answer in taken(cluster, AppendResponse)] == [True]


# State and log with a gap between (etcd 9808)


def test_a_log_that_ends_before_what_was_applied_is_refused() -> None:
    """State without the log that led to it means that durable entries are gone: a member that went on would vote and
    acknowledge with a log that it does not have."""
    cluster = elected()
    cluster.members["a"].entries.clear()
    with pytest.raises(InvariantViolation, match="the log ends at 0, but the state machine has applied 1"):
        cluster.restart("a")
