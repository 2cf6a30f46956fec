"""Elections (paper, sections 5.2 and 5.4.1; thesis, sections 3.10, 4.2.3, 6.2 and 9.6)."""

import pytest
from quorate_core.errors import InvariantViolation, NotProposed, SettingsError
from quorate_raft.core.election import PRE_VOTE_REPEAT_TICKS
from quorate_raft.core.membership import VOTERS_MAX, Membership
from quorate_raft.core.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    HardState,
    HeartbeatRequest,
    HeartbeatResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from quorate_raft.core.node import RaftNode
from quorate_raft.core.quorum import Tally, TallyResult, agreed, majority
from quorate_raft.core.ready import RaftConfig, Role
from support.raft_cluster import ELECTION_TICKS, Cluster


def test_a_majority_of_voters_elects_a_leader_that_all_follow() -> None:
    """Section 5.2."""
    cluster = Cluster("abcde")
    cluster.elect("c")
    assert {cluster[name].standing.leader for name in "abcde"} == {"c"}
    assert {cluster[name].standing.term for name in "abcde"} == {1}


def test_no_majority_no_leader() -> None:
    """Section 5.2: the minority side of a partition asks in vain, and its terms do not rise (9.6)."""
    cluster = Cluster("abcde")
    cluster.partition("ab", "cde")
    cluster.tick("a", "b", times=10 * ELECTION_TICKS)
    cluster.settle()
    assert cluster.leader == ""
    assert cluster["a"].standing.term == 0


def test_election_timeouts_are_drawn_between_t_and_2t() -> None:
    """Section 9.3: spread timeouts make split votes rare."""
    drawn = set()
    for lot in range(ELECTION_TICKS + 1):
        node = RaftNode(
            RaftConfig("a", Membership("abc"), ELECTION_TICKS),
            HardState(),
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


def test_a_split_vote_ends_in_another_election() -> None:
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


def test_a_vote_is_given_once_in_a_term() -> None:
    """Figure 2, RequestVote 2."""
    cluster = Cluster("abc")
    cluster.deliver([VoteRequest("b", "a", 1, 0, 0)])
    cluster.deliver([VoteRequest("c", "a", 1, 0, 0)])
    cluster.deliver([VoteRequest("b", "a", 1, 0, 0)])
    answers = [(m.to, m.granted) for m in cluster.take(VoteResponse) if isinstance(m, VoteResponse)]
    assert answers == [("b", True), ("c", False), ("b", True)]


@pytest.mark.parametrize("pre", [False, True], ids=["vote", "pre-vote"])
@pytest.mark.parametrize(
    ("last_index", "last_term", "granted"),
    [(2, 2, True), (3, 2, True), (1, 3, True), (1, 2, False), (9, 1, False)],
)
def test_votes_and_pre_votes_go_only_to_logs_that_are_as_complete(
    pre: bool, last_index: int, last_term: int, granted: bool
) -> None:
    """Section 5.4.1: the later last term wins, then the longer log. Pitfall: a pre-vote that does not check the log
    lets a member that cannot win disturb the cluster for ever."""
    node = RaftNode(
        RaftConfig("a", Membership("abc")), HardState(2), [Entry(1, 1), Entry(2, 2)], 0, lambda below: below - 1
    )
    node.step(VoteRequest("b", "a", 3, last_index, last_term, pre=pre))
    (answer,) = node.ready().messages_after_persist
    assert isinstance(answer, VoteResponse)
    assert answer.granted is granted
    assert node.standing.term == (2 if pre else 3)


def test_a_pre_candidate_disturbs_nobody() -> None:
    """Thesis 9.6: a member that was cut off comes back without a higher term, and the leader stays."""
    cluster = Cluster("abc")
    cluster.elect("a")
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


def test_a_member_that_only_the_leader_does_not_reach_disturbs_nobody() -> None:
    """Partial partition (etcd 9333; Cloudflare 2020): followers that hear from the leader refuse to help another."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.cut = {("a", "c"), ("c", "a")}
    for _ in range(10 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
        assert cluster["a"].is_leader
    assert cluster["b"].standing.leader == "a"
    assert {cluster[name].standing.term for name in "ab"} == {1}


def test_a_leader_refuses_votes_while_it_leads() -> None:
    """Thesis 4.2.3: a vote request of a higher term does not depose a leader that is heard."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.deliver([VoteRequest("c", "a", 9, 99, 9)])
    assert cluster["a"].is_leader
    assert cluster.take(VoteResponse) == []


def test_a_leader_that_a_majority_does_not_answer_steps_down() -> None:
    """CheckQuorum (thesis 6.2)."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.partition("a", "bc")
    cluster.tick("a", times=2 * ELECTION_TICKS)
    assert not cluster["a"].is_leader
    with pytest.raises(NotProposed, match="no leader is known"):
        cluster.propose("a")


def test_a_leader_that_a_majority_answers_stays() -> None:
    """CheckQuorum (thesis 6.2): one dead follower of two is no reason."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.crash("c")
    for _ in range(5 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    assert cluster["a"].is_leader


def test_a_candidate_follows_whoever_leads_its_term() -> None:
    """Section 5.2: an AppendEntries of a term at least as large ends a candidacy."""
    cluster = Cluster("abc")
    cluster["c"]._state.election_timeout_ticks = 1
    cluster.tick("c")
    cluster.deliver([VoteResponse("b", "c", 1, granted=True, pre=True)])
    assert cluster["c"].standing.role is Role.CANDIDATE
    cluster.deliver([AppendRequest("a", "c", 1, 0, 0, (), 0)])
    assert (cluster["c"].standing.role, cluster["c"].standing.leader) == (Role.FOLLOWER, "a")


def test_a_voter_that_heard_from_the_lost_leader_a_moment_later_is_asked_again_soon() -> None:
    """Else a pre-vote that comes a tick too early costs another election timeout."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.tick("b", "c")
    cluster.crash("a")
    for name in "bc":
        cluster[name].step(HeartbeatRequest("a", name, 1, 1))
        cluster.process(name)
    cluster.take()
    cluster["b"]._state.election_timeout_ticks = ELECTION_TICKS
    cluster["c"]._state.election_timeout_ticks = 2 * ELECTION_TICKS
    cluster.tick("b", times=ELECTION_TICKS)
    cluster.tick("c", times=ELECTION_TICKS - 1)
    cluster.settle()
    assert cluster["b"].standing.role is Role.PRE_CANDIDATE
    cluster.tick(times=PRE_VOTE_REPEAT_TICKS)
    cluster.settle()
    assert cluster["b"].is_leader


def test_a_lost_pre_election_is_given_up() -> None:
    cluster = Cluster("abc")
    cluster["c"]._state.election_timeout_ticks = 1
    cluster.tick("c")
    for voter in "ab":
        cluster.deliver([VoteResponse(voter, "c", 0, granted=False, pre=True)])
    assert cluster["c"].standing.role is Role.FOLLOWER


def test_answers_to_another_election_are_not_counted() -> None:
    """A pre-vote for an older term, a vote that is not asked for, and a voter's second answer count for nothing."""
    cluster = Cluster("abcde")
    cluster["c"]._state.election_timeout_ticks = 1
    cluster.tick("c")
    cluster.deliver(
        [VoteResponse("a", "c", 7, granted=True, pre=True), VoteResponse("b", "c", 7, granted=True, pre=True)]
    )
    assert cluster["c"].standing.role is Role.PRE_CANDIDATE
    cluster.deliver([VoteResponse("a", "c", 0, granted=True), VoteResponse("b", "c", 0, granted=True)])
    cluster.deliver(
        [VoteResponse("a", "c", 1, granted=True, pre=True), VoteResponse("a", "c", 1, granted=True, pre=True)]
    )
    assert cluster["c"].standing.role is Role.PRE_CANDIDATE
    cluster.deliver([VoteResponse("b", "c", 1, granted=True, pre=True)])
    assert cluster["c"].standing.role is Role.CANDIDATE


def test_an_old_leader_or_candidate_is_told_the_newer_term() -> None:
    """Figure 2, rules for all servers: with PreVote nobody else would tell a leader that was left behind."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.partition("a", "bc")
    cluster.tick("b", "c", times=ELECTION_TICKS)
    cluster["b"]._state.election_timeout_ticks = 1
    cluster.tick("b")
    cluster.settle()
    assert cluster["b"].standing.term == 2
    cluster.heal()
    cluster.tick("a", times=1)
    cluster.settle()
    assert (cluster["a"].standing.role, cluster["a"].standing.term) == (Role.FOLLOWER, 2)
    cluster.deliver([VoteRequest("c", "b", 1, 0, 0, pre=True), HeartbeatResponse("c", "b", 1)])
    answers = cluster.take(VoteResponse)
    assert [(m.term, m.granted) for m in answers if isinstance(m, VoteResponse)] == [(2, False)]


def test_two_leaders_in_one_term_are_an_invariant_violation() -> None:
    """Section 5.2, election safety. Pitfall: a lost vote or term (PySyncObj 84) must be seen, not lived with."""
    cluster = Cluster("abc")
    cluster.elect("a")
    with pytest.raises(InvariantViolation, match="both lead term 1"):
        cluster["a"].step(HeartbeatRequest("b", "a", 1, 0))


def test_a_vote_survives_a_restart() -> None:
    """Section 5.2. Pitfall: a lost vote makes two leaders in one term after a restart."""
    cluster = Cluster("abc")
    cluster.deliver([VoteRequest("b", "a", 1, 0, 0)])
    cluster.crash("a")
    cluster.restart("a")
    assert cluster["a"].standing.term == 1
    cluster.take()
    cluster.deliver([VoteRequest("c", "a", 1, 0, 0)])
    (answer,) = cluster.take(VoteResponse)
    assert isinstance(answer, VoteResponse)
    assert not answer.granted


def test_a_vote_leaves_only_when_it_is_durable() -> None:
    """Figure 2, persistent state: updated on stable storage before responding."""
    cluster = Cluster("abc")
    cluster.members["a"].holds_disk = True
    cluster.deliver([VoteRequest("b", "a", 1, 0, 0)])
    assert cluster.take(VoteResponse) == []
    cluster.sync("a")
    assert len(cluster.take(VoteResponse)) == 1


def test_a_candidate_counts_itself_only_when_its_vote_is_durable() -> None:
    """As for any other voter; nor do its requests leave before."""
    cluster = Cluster("abc")
    cluster.members["a"].holds_disk = True
    cluster["a"]._state.election_timeout_ticks = 1
    cluster.tick("a")
    cluster.deliver([VoteResponse("b", "a", 1, granted=True, pre=True)])
    assert cluster["a"].standing.role is Role.CANDIDATE
    assert [m for m in cluster.take(VoteRequest) if isinstance(m, VoteRequest) and not m.pre] == []
    cluster.deliver([VoteResponse("b", "a", 1, granted=True)])
    assert not cluster["a"].is_leader
    cluster.sync("a")
    assert cluster["a"].is_leader


def test_a_single_member_elects_itself_by_its_own_durable_vote() -> None:
    cluster = Cluster("a")
    cluster.members["a"].holds_disk = True
    cluster.tick("a", times=2 * ELECTION_TICKS)
    assert cluster["a"].standing.role is Role.CANDIDATE
    cluster.sync("a")
    assert cluster["a"].is_leader


def test_leadership_is_handed_over_when_the_successor_has_everything() -> None:
    """Thesis 3.10: TimeoutNow goes out when the logs are equal; others vote although they hear from a leader."""
    cluster = Cluster("abc")
    cluster.elect("a")
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


def test_a_transfer_that_takes_an_election_timeout_is_given_up() -> None:
    """Thesis 3.10: the leader goes on taking proposals."""
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.crash("c")
    cluster["a"].transfer("c")
    for _ in range(2 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    assert cluster.propose("a") == (2, 1)


def test_only_a_leader_hands_over_and_only_to_another_member() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    assert not cluster["b"].transfer("c")
    assert not cluster["a"].transfer("a")
    assert not cluster["a"].transfer("z")
    assert cluster["a"].most_caught_up(["b", "z"]) == "b"
    assert cluster["a"].most_caught_up([]) == ""


def test_only_the_leader_can_ask_for_an_election() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.deliver([TimeoutNow("b", "c", 1)])
    assert cluster["c"].standing.role is Role.FOLLOWER


def test_messages_from_strangers_or_for_others_are_ignored() -> None:
    cluster = Cluster("abc")
    for message in (
        VoteRequest("z", "a", 5, 9, 9),
        VoteRequest("b", "c", 5, 9, 9),
        VoteRequest("a", "a", 5, 9, 9),
    ):
        cluster["a"].step(message)
    assert cluster["a"].standing.term == 0
    assert not cluster["a"].has_ready()


def test_terms_never_fall_and_leadership_needs_a_candidacy() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    with pytest.raises(InvariantViolation, match="go back from term 1 to 0"):
        cluster["a"]._state.become_follower(0, "")
    with pytest.raises(InvariantViolation, match="coming from follower"):
        cluster["b"]._state.become_leader()


def test_late_answers_to_a_leader_that_stepped_down_are_ignored() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.partition("a", "bc")
    cluster.tick("a", times=2 * ELECTION_TICKS)
    cluster.take()
    for late in (AppendResponse("b", "a", 1, 1), HeartbeatResponse("b", "a", 1)):
        cluster["a"].step(late)
    cluster.process("a")
    assert cluster.take() == []


def test_a_majority_is_more_than_half() -> None:
    assert [majority(voters) for voters in range(1, 8)] == [1, 2, 2, 3, 3, 4, 4]
    assert agreed([5]) == 5
    assert agreed([5, 3]) == 3
    assert agreed([5, 3, 4]) == 4
    assert agreed([1, 2, 3, 4]) == 2
    assert agreed([1, 2, 3, 4, 5]) == 3


def test_an_election_is_decided_as_soon_as_it_cannot_change() -> None:
    tally = Tally("abcde")
    tally.record("z", granted=True)
    for voter, granted, result in [
        ("a", True, TallyResult.PENDING),
        ("b", False, TallyResult.PENDING),
        ("c", False, TallyResult.PENDING),
        ("c", True, TallyResult.PENDING),
        ("d", False, TallyResult.LOST),
    ]:
        tally.record(voter, granted)
        assert tally.result is result


@pytest.mark.parametrize("voters", [[], ["a", "a"], ["a", ""], [str(n) for n in range(VOTERS_MAX + 1)]])
def test_a_membership_that_makes_no_sense_is_refused(voters: list[str]) -> None:
    with pytest.raises(SettingsError):
        Membership(voters)


def test_a_configuration_that_cannot_work_is_refused() -> None:
    with pytest.raises(SettingsError, match="'z' is not among the members"):
        RaftConfig("z", Membership("abc"))
    with pytest.raises(SettingsError, match="cannot hold off elections"):
        RaftConfig("a", Membership("abc"), election_ticks=2, heartbeat_ticks=2)
    assert "a" in Membership("abc")
