"""Elections (paper, sections 5.2 and 5.4.1; thesis, sections 3.10, 4.2.3, 6.2 and 9.6)."""

import pytest
from quorate_core.errors import InvariantViolation, SettingsError
from quorate_raft.core.election import PRE_VOTE_REPEAT_TICKS
from quorate_raft.core.membership import VOTERS_MAX, Membership
from quorate_raft.core.messages import (
    AppendResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    VoteRequest,
    VoteResponse,
)
from quorate_raft.core.quorum import Tally, TallyResult, agreed, majority
from quorate_raft.core.ready import RaftConfig, Role
from support.raft_cluster import ELECTION_TICKS, Cluster
from support.raft_scenes import elected, time_out


def test_a_voter_that_heard_from_the_lost_leader_a_moment_later_is_asked_again_soon() -> None:
    """Else a pre-vote that comes a tick too early costs another election timeout."""
    cluster = elected()
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
    time_out(cluster, "c")
    for voter in "ab":
        cluster.deliver([VoteResponse(voter, "c", 0, granted=False, pre=True)])
    assert cluster["c"].standing.role is Role.FOLLOWER


def test_answers_to_another_election_are_not_counted() -> None:
    """A pre-vote for an older term, a vote that is not asked for, and a voter's second answer count for nothing."""
    cluster = Cluster("abcde")
    time_out(cluster, "c")
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


def test_a_single_member_elects_itself_by_its_own_durable_vote() -> None:
    cluster = Cluster("a")
    cluster.members["a"].holds_disk = True
    cluster.tick("a", times=2 * ELECTION_TICKS)
    assert cluster["a"].standing.role is Role.CANDIDATE
    cluster.sync("a")
    assert cluster["a"].is_leader


def test_only_a_leader_hands_over_and_only_to_another_member() -> None:
    cluster = elected()
    assert not cluster["b"].transfer("c")
    assert not cluster["a"].transfer("a")
    assert not cluster["a"].transfer("z")
    assert cluster["a"].most_caught_up(["b", "z"]) == "b"
    assert cluster["a"].most_caught_up([]) == ""


def test_messages_for_others_or_from_nobody_else_are_ignored() -> None:
    cluster = Cluster("abc")
    for message in (
        VoteRequest("b", "c", 5, 9, 9),
        VoteRequest("a", "a", 5, 9, 9),
        VoteRequest("", "a", 5, 9, 9),
    ):
        cluster["a"].step(message)
    assert cluster["a"].standing.term == 0
    assert not cluster["a"].has_ready()


def test_terms_never_fall_and_leadership_needs_a_candidacy() -> None:
    cluster = elected()
    with pytest.raises(InvariantViolation, match="go back from term 1 to 0"):
        cluster["a"]._state.become_follower(0, "")
    with pytest.raises(InvariantViolation, match="coming from follower"):
        cluster["b"]._state.become_leader()


def test_late_answers_to_a_leader_that_stepped_down_are_ignored() -> None:
    cluster = elected()
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
        Membership.of_voters(voters)


def test_a_configuration_that_cannot_work_is_refused() -> None:
    with pytest.raises(SettingsError, match="cannot hold off elections"):
        RaftConfig("a", election_ticks=2, heartbeat_ticks=2)
