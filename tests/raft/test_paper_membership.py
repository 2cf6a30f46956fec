"""Changes of the membership, claim by claim: the thesis, sections 4.1 (safety), 4.2.1 (new members), 4.2.2 (removing
the leader) and 4.2.3 (disruptive members)."""

from collections.abc import Iterator
from itertools import combinations

import pytest
from quorate_core.errors import Conflict, NotProposed
from quorate_raft.core.membership import (
    AddLearner,
    Member,
    Membership,
    MembershipChange,
    PromoteLearner,
    RemoveMember,
    apply_change,
)
from quorate_raft.core.messages import AppendRequest, AppendResponse, EntryKind, TimeoutNow, VoteRequest, VoteResponse
from quorate_raft.core.quorum import majority
from quorate_raft.core.ready import Role
from quorate_raft.core.reconfiguration import PROMOTION_LAG_ENTRIES_MAX
from support.raft_cluster import ELECTION_TICKS, Cluster
from support.raft_scenes import elected, forget_leader, taken, time_out


def with_learner(names: str, learner: str) -> Cluster:
    """A cluster that the first of `names` leads, and a learner that has everything and was just heard of."""
    cluster = elected(names)
    cluster.add(learner)
    cluster.change(names[0], AddLearner(learner, ""))
    cluster.settle()
    cluster.tick(names[0])
    cluster.settle()
    return cluster


def names_of(cluster: Cluster, name: str) -> str:
    """Whom this member takes for voters, and then the learners, in brackets."""
    membership = cluster[name].membership
    return "".join(membership.voters) + "".join(f"({learner})" for learner in membership.learners)


def all_changes(membership: Membership) -> Iterator[MembershipChange]:
    yield AddLearner("z", "")
    yield from map(PromoteLearner, membership.learners)
    if len(membership.voters) > 1:
        yield from map(RemoveMember, membership.names)


@pytest.mark.parametrize("voters", range(1, 7))
def test_4_1_every_majority_before_a_change_shares_a_voter_with_every_majority_after_it(voters: int) -> None:
    """Figure 4.3: so no two leaders can be elected by the one and the other."""
    membership = Membership((*(Member(f"v{number}") for number in range(voters)), Member("y", is_learner=True)))
    changes = list(all_changes(membership))
    assert len(changes) == (voters + 3 if voters > 1 else 2)
    for change in changes:
        changed = apply_change(membership, change)
        for before in combinations(membership.voters, majority(len(membership.voters))):
            for after in combinations(changed.voters, majority(len(changed.voters))):
                assert set(before) & set(after), f"{change}: {before} and {after}"


def test_4_1_a_configuration_is_in_force_as_soon_as_it_is_in_a_log() -> None:
    """Committed or not: the leader counts by it, and so does a follower that has the entry."""
    cluster = with_learner("abc", "d")
    cluster.cut = {("a", "c"), ("a", "d")}
    index, _ = cluster.change("a", PromoteLearner("d"))
    assert names_of(cluster, "a") == "abcd"
    cluster.settle()
    assert {name: names_of(cluster, name) for name in "bcd"} == {"b": "abcd", "c": "abc(d)", "d": "abc(d)"}
    # Of three voters, a and b were a majority; of four they are none.
    assert cluster["a"].log.commit_index == index - 1
    cluster.heal()
    cluster.tick("a")
    cluster.settle()
    assert cluster["a"].log.commit_index == index


def test_4_1_a_second_change_waits_until_the_first_is_committed() -> None:
    """Two uncommitted ones could have majorities without a common voter."""
    cluster = with_learner("abc", "d")
    cluster.cut = {("a", name) for name in "bcd"}
    cluster.change("a", PromoteLearner("d"))
    for change in (RemoveMember("b"), AddLearner("e", ""), RemoveMember("d")):
        with pytest.raises(Conflict, match="not settled yet"):
            cluster.change("a", change)
    cluster.heal()
    cluster.tick("a")
    cluster.settle()
    cluster.change("a", RemoveMember("b"))
    assert names_of(cluster, "a") == "acd"


def test_4_1_a_member_whose_entry_is_cut_off_goes_back_to_the_configuration_before() -> None:
    cluster = elected()
    cluster.partition("a", "bc")
    cluster.change("a", RemoveMember("c"))
    assert names_of(cluster, "a") == "ab"
    forget_leader(cluster, "b", "c")
    time_out(cluster, "b")
    cluster.settle()
    cluster.heal()
    cluster.tick("b", times=2)
    cluster.settle()
    assert names_of(cluster, "a") == "abc"
    assert not any(entry.kind is EntryKind.MEMBERSHIP for entry in cluster.agreed)


def test_4_1_the_configuration_survives_a_restart() -> None:
    """It is in the log, and so is an older one that may come back."""
    cluster = elected()
    cluster.partition("a", "bc")
    cluster.change("a", RemoveMember("c"))
    cluster.settle()
    cluster.crash("a")
    cluster.restart("a")
    assert names_of(cluster, "a") == "ab"
    assert cluster["a"].membership_at(1).voters == ("a", "b", "c")


def test_4_1_members_take_entries_of_a_leader_and_vote_for_a_candidate_that_they_do_not_know() -> None:
    """Else a new member could never be brought up to date, nor elected when others need it to be."""
    cluster = with_learner("abc", "d")
    cluster.cut = {("a", "b")}
    cluster.change("a", PromoteLearner("d"))
    cluster.settle()
    assert (names_of(cluster, "b"), names_of(cluster, "d")) == ("abc(d)", "abcd")
    cluster.crash("a")
    cluster.heal()
    forget_leader(cluster, "b", "c", "d")
    time_out(cluster, "d")
    cluster.settle()
    # Three of a, b, c and d: b has voted for a candidate that it takes for a learner.
    assert {cluster[name].standing.leader for name in "bcd"} == {"d"}
    assert names_of(cluster, "b") == "abcd"


def test_4_2_1_a_learner_gets_everything_and_counts_for_nothing() -> None:
    """Neither for commitment nor in elections; it never stands for one."""
    cluster = with_learner("ab", "c")
    cluster.partition("ac", "b")
    index, _ = cluster.propose("a")
    cluster.settle()
    assert cluster.members["c"].entries[-1].index == index
    assert cluster["a"].log.commit_index == index - 1
    cluster.deliver([TimeoutNow("a", "c", 1)])
    cluster.tick("c", times=10 * ELECTION_TICKS)
    assert cluster["c"].standing.role is Role.FOLLOWER
    forget_leader(cluster, "b")
    time_out(cluster, "b")
    cluster.deliver([VoteResponse("c", "b", 2, granted=True, pre=True)])
    assert cluster["b"].standing.role is Role.PRE_CANDIDATE
    # Nor does it keep a leader alone in its place (CheckQuorum, 6.2).
    for _ in range(2 * ELECTION_TICKS):
        cluster.tick("a", "c")
        cluster.settle()
    assert not cluster["a"].is_leader


def test_4_2_1_a_read_is_not_confirmed_by_a_learner() -> None:
    cluster = with_learner("ab", "c")
    cluster.cut = {("b", "a")}
    context = cluster.read("a")
    cluster.settle()
    assert context not in cluster.members["a"].reads
    cluster.heal()
    cluster.tick("a")
    cluster.settle()
    assert cluster.members["a"].reads[context] == cluster["a"].log.commit_index


def test_4_2_1_a_learner_is_promoted_only_when_it_has_caught_up_and_answers() -> None:
    """Else a voter that lags would hold up every commit that needs it."""
    cluster = with_learner("abc", "d")
    cluster.crash("d")
    for _ in range(PROMOTION_LAG_ENTRIES_MAX + 1):
        cluster.propose("a")
    cluster.settle()
    with pytest.raises(Conflict, match=f"d lacks {PROMOTION_LAG_ENTRIES_MAX + 1} entries"):
        cluster.change("a", PromoteLearner("d"))
    cluster.restart("d")
    cluster.tick("a")
    cluster.settle()
    cluster.change("a", PromoteLearner("d"))
    cluster.settle()
    assert names_of(cluster, "d") == "abcd"


def test_4_2_2_a_leader_that_is_removed_leads_on_without_counting_itself_and_then_stands_back() -> None:
    """Both of the others are needed: its own disk is no vote any more, though it goes on writing."""
    cluster = elected()
    index, _ = cluster.change("a", RemoveMember("a"))
    cluster.process("a")
    cluster.deliver(cluster.take(AppendRequest, to="b"))
    cluster.deliver(cluster.take(AppendResponse))
    assert cluster["a"].is_leader
    assert cluster["a"].log.commit_index == index - 1
    cluster.deliver(cluster.take(AppendRequest, to="c"))
    cluster.deliver(cluster.take(AppendResponse))
    assert cluster["a"].log.commit_index == index
    assert cluster["a"].standing.role is Role.FOLLOWER
    assert cluster["a"].is_removed
    (handover,) = taken(cluster, TimeoutNow)
    cluster.deliver([handover])
    cluster.settle()
    assert cluster.leader == handover.to
    with pytest.raises(NotProposed):
        cluster.propose("a")


def test_4_2_2_a_member_that_its_own_log_removes_may_have_to_lead_until_that_is_committed() -> None:
    """a removed itself and crashed before b heard of it. b cannot win: it takes a for a voter, and a's log is the more
    complete. So a must lead once more, without its own vote, or nobody ever would."""
    cluster = elected("ab")
    cluster.cut = {("a", "b")}
    cluster.change("a", RemoveMember("a"))
    cluster.settle()
    cluster.crash("a")
    cluster.heal()
    cluster.restart("a")
    assert (names_of(cluster, "a"), names_of(cluster, "b")) == ("b", "ab")
    forget_leader(cluster, "a", "b")
    time_out(cluster, "b")
    cluster.settle()
    assert cluster.leader == ""
    forget_leader(cluster, "b")
    time_out(cluster, "a")
    cluster.settle()
    assert cluster["a"].is_removed
    assert cluster.leader == "b"
    assert names_of(cluster, "b") == "b"


def test_4_2_3_a_removed_member_cannot_disturb_those_that_stay() -> None:
    """It does not hear of its removal, and asks for votes again and again."""
    cluster = elected("abcd")
    cluster.change("a", RemoveMember("d"))
    cluster.settle()
    for _ in range(10 * ELECTION_TICKS):
        cluster.tick()
        cluster.settle()
    assert cluster["d"].standing.role is Role.PRE_CANDIDATE
    assert {cluster[name].standing.leader for name in "abc"} == {"a"}
    assert {cluster[name].standing.term for name in "abcd"} == {1}
    # Nor by force: a request of a newer term, as a member without PreVote would send it.
    cluster.deliver([VoteRequest("d", name, 9, 1, 1) for name in "abc"])
    assert {cluster[name].standing.term for name in "abc"} == {1}
