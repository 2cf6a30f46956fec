"""Elections, claim by claim: the Raft paper (extended version), sections 5.1, 5.2 and 5.4.1, and its figure 2; the
thesis, sections 3.10 (transfer), 4.2.3 (disruptive servers), 6.2 (CheckQuorum) and 9.6 (PreVote)."""

import pytest
from quorate_core.errors import InvariantViolation, NotProposed
from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    HardState,
    HeartbeatRequest,
    HeartbeatResponse,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    SnapshotMeta,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from quorate_raft.core.node import RaftNode
from quorate_raft.core.ready import RaftConfig, Role
from support.raft_cluster import ELECTION_TICKS, Cluster
from support.raft_scenes import elected, in_term, taken, time_out

OF_AN_OLDER_TERM: list[Message] = [
    AppendRequest("c", "b", 1, 1, 1, (Entry(2, 1),), 2),
    HeartbeatRequest("c", "b", 1, 1, 7),
    VoteRequest("c", "b", 1, 9, 1),
    VoteRequest("c", "b", 1, 9, 1, pre=True),
    AppendResponse("c", "b", 1, 1),
    HeartbeatResponse("c", "b", 1, 7),
    VoteResponse("c", "b", 1, granted=True),
    ReadIndexRequest("c", "b", 1, 7),
    ReadIndexResponse("c", "b", 1, 7, 1),
    TimeoutNow("c", "b", 1),
]
KINDS = [f"{type(message).__name__}{'-pre' * getattr(message, 'pre', False)}" for message in OF_AN_OLDER_TERM]


@pytest.mark.parametrize("message", OF_AN_OLDER_TERM, ids=KINDS)
def test_5_1_what_comes_from_an_older_term_is_rejected(message: Message) -> None:
    """It changes nothing; a request is answered with the newer term, so that its sender stands back."""
    cluster = elected()
    in_term(cluster, 2)
    cluster["b"].step(message)
    ready = cluster["b"].ready()
    assert (ready.entries, ready.hard_state, ready.standing, ready.reads, ready.messages) == ((), None, None, (), ())
    asks_to_lead = isinstance(message, AppendRequest | HeartbeatRequest | VoteRequest)
    assert [answer.term for answer in ready.messages_after_persist] == [2] * asks_to_lead
    assert not any(getattr(answer, "granted", False) for answer in ready.messages_after_persist)


OF_A_NEWER_TERM: list[Message] = [
    AppendRequest("c", "a", 5, 0, 0, (), 0),
    HeartbeatRequest("c", "a", 5, 0),
    AppendResponse("c", "a", 5, 0, rejected=True),
    HeartbeatResponse("c", "a", 5),
    VoteResponse("c", "a", 5, granted=False),
    VoteResponse("c", "a", 5, granted=False, pre=True),
    VoteRequest("c", "a", 5, 9, 5, transfer=True),
]


@pytest.mark.parametrize("message", OF_A_NEWER_TERM, ids=lambda message: type(message).__name__)
def test_5_1_a_leader_that_learns_of_a_newer_term_stands_back_at_once(message: Message) -> None:
    """And so does a candidate. The only message that may not depose a leader is a vote request (thesis, 4.2.3)."""
    cluster = elected()
    cluster.deliver([message])
    assert (cluster["a"].standing.role, cluster["a"].standing.term) == (Role.FOLLOWER, 5)
    candidate = Cluster("abc")
    time_out(candidate, "a")
    candidate.deliver([VoteResponse("b", "a", 1, granted=True, pre=True)])
    assert candidate["a"].standing.role is Role.CANDIDATE
    candidate.deliver([message])
    assert (candidate["a"].standing.role, candidate["a"].standing.term) == (Role.FOLLOWER, 5)


def test_5_2_members_begin_as_followers_and_stay_so_while_they_hear_from_a_leader() -> None:
    """Heartbeats alone hold off elections."""
    cluster = Cluster("abc")
    assert {cluster[name].standing.role for name in "abc"} == {Role.FOLLOWER}
    cluster.elect("a")
    for _ in range(10 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    assert cluster["a"].is_leader
    cluster.tick("b", times=2 * ELECTION_TICKS)
    assert cluster["b"].standing.role is Role.PRE_CANDIDATE


def test_5_2_a_candidate_that_nobody_answers_stands_again_in_another_term() -> None:
    """After another timeout; it asks first whether anybody would vote for it, as every time."""
    cluster = Cluster("abc")
    time_out(cluster, "a")
    cluster.deliver([VoteResponse("b", "a", 1, granted=True, pre=True)])
    assert (cluster["a"].standing.role, cluster["a"].standing.term) == (Role.CANDIDATE, 1)
    cluster.take()
    cluster.tick("a", times=2 * ELECTION_TICKS)
    assert (cluster["a"].standing.role, cluster["a"].standing.term) == (Role.PRE_CANDIDATE, 1)
    cluster.settle()
    assert (cluster.leader, cluster["a"].standing.term) == ("a", 2)


def test_5_1_an_old_leader_or_candidate_is_told_the_newer_term() -> None:
    """Figure 2, rules for all servers: with PreVote nobody else would tell a leader that was left behind."""
    cluster = elected()
    cluster.partition("a", "bc")
    cluster.tick("b", "c", times=ELECTION_TICKS)
    time_out(cluster, "b")
    cluster.settle()
    assert cluster["b"].standing.term == 2
    cluster.heal()
    cluster.tick("a", times=1)
    cluster.settle()
    assert (cluster["a"].standing.role, cluster["a"].standing.term) == (Role.FOLLOWER, 2)
    cluster.deliver([VoteRequest("c", "b", 1, 0, 0, pre=True), HeartbeatResponse("c", "b", 1)])
    assert [(m.term, m.granted) for m in taken(cluster, VoteResponse)] == [(2, False)]


def test_5_2_a_majority_of_voters_elects_a_leader_that_all_follow() -> None:
    """Section 5.2."""
    cluster = Cluster("abcde")
    cluster.elect("c")
    assert {cluster[name].standing.leader for name in "abcde"} == {"c"}
    assert {cluster[name].standing.term for name in "abcde"} == {1}


def test_5_2_no_majority_no_leader() -> None:
    """Section 5.2: the minority side of a partition asks in vain, and its terms do not rise (9.6)."""
    cluster = Cluster("abcde")
    cluster.partition("ab", "cde")
    cluster.tick("a", "b", times=10 * ELECTION_TICKS)
    cluster.settle()
    assert cluster.leader == ""
    assert cluster["a"].standing.term == 0


def test_5_2_election_timeouts_are_drawn_between_t_and_2t() -> None:
    """Section 9.3: spread timeouts make split votes rare."""
    drawn = set()
    for lot in range(ELECTION_TICKS + 1):
        node = RaftNode(
            RaftConfig("a", ELECTION_TICKS),
            HardState(),
            SnapshotMeta(membership=Membership.of_voters("abc")),
            (),
            0,
            lambda below, lot=lot: min(lot, below),
        )
        ticks = 0
        while node.standing.role is Role.FOLLOWER:
            node.tick()
            ticks += 1
        drawn.add(ticks)
    assert drawn == set(range(ELECTION_TICKS, 2 * ELECTION_TICKS + 1))


def test_5_2_a_split_vote_ends_in_another_election() -> None:
    """Section 5.2: when votes are split, nobody wins, and somebody tries again."""
    cluster = Cluster("ab")
    for name in "ab":
        cluster[name]._state.election_timeout_ticks = ELECTION_TICKS
    cluster.tick(times=ELECTION_TICKS)
    pre_votes = cluster.take(VoteRequest)
    cluster.deliver(pre_votes)
    cluster.deliver(cluster.take(VoteResponse))
    assert {cluster[name].standing.role for name in "ab"} == {Role.CANDIDATE}
    cluster.settle()
    assert cluster.leader == ""
    for _ in range(10 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    assert cluster.leader != ""


def test_5_2_a_vote_is_given_once_in_a_term() -> None:
    """Figure 2, RequestVote 2."""
    cluster = Cluster("abc")
    cluster.deliver([VoteRequest("b", "a", 1, 0, 0)])
    cluster.deliver([VoteRequest("c", "a", 1, 0, 0)])
    cluster.deliver([VoteRequest("b", "a", 1, 0, 0)])
    answers = [(m.to, m.granted) for m in taken(cluster, VoteResponse)]
    assert answers == [("b", True), ("c", False), ("b", True)]


def test_5_2_a_candidate_follows_whoever_leads_its_term() -> None:
    """Section 5.2: an AppendEntries of a term at least as large ends a candidacy."""
    cluster = Cluster("abc")
    time_out(cluster, "c")
    cluster.deliver([VoteResponse("b", "c", 1, granted=True, pre=True)])
    assert cluster["c"].standing.role is Role.CANDIDATE
    cluster.deliver([AppendRequest("a", "c", 1, 0, 0, (), 0)])
    assert (cluster["c"].standing.role, cluster["c"].standing.leader) == (Role.FOLLOWER, "a")


def test_5_2_two_leaders_in_one_term_are_an_invariant_violation() -> None:
    """Section 5.2, election safety. Pitfall: a lost vote or term (PySyncObj 84) must be seen, not lived with."""
    cluster = elected()
    with pytest.raises(InvariantViolation, match="both lead term 1"):
        cluster["a"].step(HeartbeatRequest("b", "a", 1, 0))


def test_figure_2_a_vote_leaves_only_when_it_is_durable() -> None:
    """Figure 2, persistent state: updated on stable storage before responding."""
    cluster = Cluster("abc")
    cluster.members["a"].holds_disk = True
    cluster.deliver([VoteRequest("b", "a", 1, 0, 0)])
    assert cluster.take(VoteResponse) == []
    cluster.sync("a")
    assert len(cluster.take(VoteResponse)) == 1


def test_figure_2_a_candidate_counts_itself_only_when_its_vote_is_durable() -> None:
    """As for any other voter; nor do its requests leave before."""
    cluster = Cluster("abc")
    cluster.members["a"].holds_disk = True
    time_out(cluster, "a")
    cluster.deliver([VoteResponse("b", "a", 1, granted=True, pre=True)])
    assert cluster["a"].standing.role is Role.CANDIDATE
    assert [m for m in taken(cluster, VoteRequest) if not m.pre] == []
    cluster.deliver([VoteResponse("b", "a", 1, granted=True)])
    assert not cluster["a"].is_leader
    cluster.sync("a")
    assert cluster["a"].is_leader


@pytest.mark.parametrize("pre", [False, True], ids=["vote", "pre-vote"])
@pytest.mark.parametrize(
    ("last_index", "last_term", "granted"),
    [(2, 2, True), (3, 2, True), (1, 3, True), (1, 2, False), (9, 1, False)],
)
def test_5_4_1_votes_and_pre_votes_go_only_to_logs_that_are_as_complete(
    pre: bool, last_index: int, last_term: int, granted: bool
) -> None:
    """Section 5.4.1: the later last term wins, then the longer log. Pitfall: a pre-vote that does not check the log
    lets a member that cannot win disturb the cluster for ever."""
    node = RaftNode(
        RaftConfig("a"),
        HardState(2),
        SnapshotMeta(membership=Membership.of_voters("abc")),
        [Entry(1, 1), Entry(2, 2)],
        0,
        lambda below: below - 1,
    )
    node.step(VoteRequest("b", "a", 3, last_index, last_term, pre=pre))
    (answer,) = node.ready().messages_after_persist
    assert isinstance(answer, VoteResponse)
    assert answer.granted is granted
    assert node.standing.term == (2 if pre else 3)


def test_thesis_3_10_leadership_is_handed_over_when_the_successor_has_everything() -> None:
    """Thesis 3.10: TimeoutNow goes out when the logs are equal; others vote although they hear from a leader."""
    cluster = elected()
    cluster.partition("ab", "c")
    cluster.propose("a")
    cluster.settle()
    cluster.heal()
    assert cluster["a"].transfer("c")
    with pytest.raises(NotProposed, match="handing the leadership over to c"):
        cluster.propose("a")
    cluster.process("a")
    assert cluster.take(TimeoutNow) == []
    cluster.tick("a")
    cluster.settle()
    assert cluster.leader == "c"
    assert cluster["c"].standing.term == 2
    assert {cluster[name].standing.leader for name in "abc"} == {"c"}


def test_thesis_3_10_a_transfer_that_takes_an_election_timeout_is_given_up() -> None:
    """Thesis 3.10: the leader goes on taking proposals."""
    cluster = elected()
    cluster.crash("c")
    cluster["a"].transfer("c")
    for _ in range(2 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    assert cluster.propose("a") == (2, 1)


def test_thesis_3_10_only_the_leader_can_ask_for_an_election() -> None:
    cluster = elected()
    cluster.deliver([TimeoutNow("b", "c", 1)])
    assert cluster["c"].standing.role is Role.FOLLOWER


def test_thesis_4_2_3_a_leader_refuses_votes_while_it_leads() -> None:
    """Thesis 4.2.3: a vote request of a higher term does not depose a leader that is heard."""
    cluster = elected()
    cluster.deliver([VoteRequest("c", "a", 9, 99, 9)])
    assert cluster["a"].is_leader
    assert cluster.take(VoteResponse) == []


def test_thesis_4_2_3_a_follower_that_hears_its_leader_neither_votes_nor_takes_over_the_term() -> None:
    """Within the least election timeout; after that it would."""
    cluster = elected()
    request = VoteRequest("c", "b", 9, 99, 9)
    cluster.deliver([request])
    assert (cluster["b"].standing.term, cluster.take(VoteResponse)) == (1, [])
    cluster.tick("b", times=ELECTION_TICKS - 1)
    cluster.deliver([request])
    assert (cluster["b"].standing.term, cluster.take(VoteResponse)) == (1, [])
    cluster.tick("b")
    cluster.take()
    cluster.deliver([request])
    (answer,) = taken(cluster, VoteResponse)
    assert (answer.granted, cluster["b"].standing.term) == (True, 9)


def test_thesis_4_2_3_an_election_that_the_leader_asked_for_is_not_held_off() -> None:
    """Thesis 3.10: or nobody would vote for its successor."""
    cluster = elected()
    cluster.deliver([VoteRequest("c", "b", 2, 1, 1, transfer=True)])
    (answer,) = taken(cluster, VoteResponse)
    assert answer.granted


def test_thesis_6_2_a_leader_that_a_majority_does_not_answer_steps_down() -> None:
    """CheckQuorum (thesis 6.2)."""
    cluster = elected()
    cluster.partition("a", "bc")
    cluster.tick("a", times=2 * ELECTION_TICKS)
    assert not cluster["a"].is_leader
    with pytest.raises(NotProposed, match="no leader is known"):
        cluster.propose("a")


def test_thesis_6_2_a_leader_that_a_majority_answers_stays() -> None:
    """CheckQuorum (thesis 6.2): one dead follower of two is no reason."""
    cluster = elected()
    cluster.crash("c")
    for _ in range(5 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    assert cluster["a"].is_leader


def test_thesis_9_6_a_pre_candidate_disturbs_nobody() -> None:
    """Thesis 9.6: a member that was cut off comes back without a higher term, and the leader stays."""
    cluster = elected()
    cluster.partition("ab", "c")
    for _ in range(5 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    assert cluster["c"].standing.role is Role.PRE_CANDIDATE
    cluster.heal()
    cluster.tick(times=2)
    cluster.settle()
    assert {cluster[name].standing.leader for name in "abc"} == {"a"}
    assert cluster["a"].standing.term == 1
