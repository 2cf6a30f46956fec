"""The five properties that Raft guarantees at all times (the Raft paper, extended version, figure 3), each in all the
small cases there are. `test_properties` looks for violations in long random histories."""

from collections.abc import Iterator, Sequence
from itertools import combinations, combinations_with_replacement, permutations, product

import pytest
from quorate_raft.core.messages import AppendRequest, Entry, HardState, Message, VoteRequest, VoteResponse
from quorate_raft.core.ready import Role
from support.raft_cluster import ELECTION_TICKS, Cluster
from support.raft_scenes import elected, in_term, terms_of, time_out, with_logs

LOGS = [list(terms) for length in range(4) for terms in combinations_with_replacement((1, 2, 3), length)]
"""Every log of at most three entries and three terms."""


def candidates_of_one_term() -> Cluster:
    """Of five members, a, b and c stand in term 1; nobody has heard of that yet."""
    cluster = Cluster("abcde")
    for name in "abc":
        time_out(cluster, name)
        pre_votes = [VoteResponse(voter, name, 1, granted=True, pre=True) for voter in "de"]
        cluster.deliver(pre_votes)
        assert cluster[name].standing.role is Role.CANDIDATE
    return cluster


def test_election_safety_at_most_one_leader_is_elected_in_a_term() -> None:
    """Whatever the order in which three candidates ask two voters, and though a voter crashes after every answer."""
    elections_won = 0
    for order in permutations(product("abc", "de")):
        cluster = candidates_of_one_term()
        cluster.take()
        for candidate, voter in order:
            cluster.deliver([VoteRequest(candidate, voter, 1, 0, 0)])
            cluster.crash(voter)
            cluster.restart(voter)
            cluster.deliver(cluster.take(VoteResponse))
        leaders = [name for name in "abc" if cluster[name].is_leader]
        assert len(leaders) <= 1
        elections_won += len(leaders)
    assert elections_won == 240, "a third of the 720 orders give both votes to one candidate"


def test_leader_append_only_a_leader_never_overwrites_or_cuts_its_own_log() -> None:
    """Whatever others answer, and whatever leaders of other terms send."""
    cluster = with_logs("abc", a=[1, 1, 2], b=[1, 1, 1, 1], c=[1])
    in_term(cluster, 2)
    cluster.elect("a")
    before = cluster.members["a"].log_entries()
    for message in late_and_foreign_messages(to="a"):
        cluster.deliver([message])
        assert cluster["a"].is_leader
        assert cluster.members["a"].log_entries()[: len(before)] == before


def late_and_foreign_messages(to: str) -> Iterator[Message]:
    yield AppendRequest("b", to, 1, 0, 0, (Entry(1, 1), Entry(2, 1), Entry(3, 1), Entry(4, 1)), 4)
    yield AppendRequest("b", to, 2, 0, 0, (), 4)
    yield VoteRequest("c", to, 9, 99, 9)
    yield VoteRequest("c", to, 3, 0, 0)


def test_log_matching_logs_that_share_an_entry_are_the_same_up_to_it() -> None:
    """For every leader's log and every follower's log of three entries, wherever the leader begins to send: what the
    follower then has agrees with the leader up to what it says, and an agreeing tail is never cut."""
    for mine, theirs in product(LOGS, repeat=2):
        leader, follower = numbered(mine), numbered(theirs)
        for previous in range(len(leader) + 1):
            if not is_of_one_history(leader, follower):
                continue
            answered = append(follower, leader, previous)
            if answered is None:
                continue
            match_index, after = answered
            assert after[:match_index] == leader[:match_index]
            if follower[:match_index] == leader[:match_index]:
                assert after[: len(follower)] == follower


def numbered(terms: Sequence[int]) -> list[Entry]:
    return [Entry(index, term) for index, term in enumerate(terms, start=1)]


def is_of_one_history(one: Sequence[Entry], other: Sequence[Entry]) -> bool:
    """Two logs can only come about together if each entry that they share has the same ones before it."""
    shared = max((mine.index for mine, theirs in zip(one, other, strict=False) if mine == theirs), default=0)
    return one[:shared] == other[:shared]


def append(follower: list[Entry], leader: list[Entry], previous: int) -> tuple[int, list[Entry]] | None:
    """Send a follower of term 4 all that the leader has after `previous`; what it says that agrees, and its log."""
    cluster = Cluster("ab")
    member = cluster.members["b"]
    member.entries, member.hard_state = list(follower), HardState(4)
    member.restart()
    previous_term = leader[previous - 1].term if previous else 0
    cluster.deliver([AppendRequest("a", "b", 4, previous, previous_term, tuple(leader[previous:]), 0)])
    (answer,) = [message for message in cluster.take() if message.sender == "b"]
    return None if answer.rejected else (answer.match_index, member.log_entries())  # type: ignore[union-attr]


@pytest.mark.parametrize("candidate", "abcde")
def test_leader_completeness_whoever_is_elected_has_every_committed_entry(candidate: str) -> None:
    """A leader brought an entry to some majority and crashed: of five members, whoever does not have the entry cannot
    win, though all others are up and nobody else stands; and whoever has it can."""
    for holders in combinations("abcde", 3):
        cluster = with_logs("abcde", **{name: [1, 2] if name in holders else [1] for name in "abcde"})
        in_term(cluster, 2)
        for _ in range(2 * ELECTION_TICKS):
            cluster.tick(candidate)
            cluster.settle()
        assert cluster[candidate].is_leader == (candidate in holders)


def test_leader_completeness_a_longer_log_of_an_older_term_is_no_substitute() -> None:
    """Section 5.4.1: the later last term wins, or an uncommitted tail would outvote what is committed."""
    cluster = with_logs("abc", a=[1, 2], b=[1, 2], c=[1, 1, 1, 1])
    in_term(cluster, 2)
    for _ in range(2 * ELECTION_TICKS):
        cluster.tick("c")
        cluster.settle()
    assert cluster.leader == ""
    cluster.elect("b")
    assert terms_of(cluster, "c") == [1, 2, 3]


def test_state_machine_safety_no_two_members_apply_different_entries_at_an_index() -> None:
    """A leader is cut off in the middle of its proposals, another leader overwrites them, and both come together: only
    what the second one has was ever applied, by anybody. (The harness compares what each member applies.)"""
    for reached in (set[str](), {"b"}, {"c"}):
        cluster = elected()
        for name in "bc":
            if name not in reached:
                cluster.cut.add(("a", name))
        cluster.cut |= {("b", "a"), ("c", "a")}
        cluster.propose("a", b"old")
        cluster.settle()
        cluster.partition("a", "bc")
        successor = min(reached, default="b")
        cluster.tick("b", "c", times=ELECTION_TICKS)
        cluster.take()
        time_out(cluster, successor)
        cluster.settle()
        cluster.propose(successor, b"new")
        cluster.settle()
        cluster.heal()
        cluster.tick(successor, times=2)
        cluster.settle()
        applied = [[entry.data for entry in member.applied if entry.data] for member in cluster.members.values()]
        assert applied == [([b"old"] if reached else []) + [b"new"]] * 3
