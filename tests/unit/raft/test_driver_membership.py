"""Members that join, are promoted, are removed, and hand over; with real files and real sockets."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from quorate_core.errors import Conflict, NotFound, NotProposed
from quorate_raft.core.membership import AddLearner, ForgottenMember, MembershipChange, PromoteLearner, RemoveMember
from quorate_raft.runtime.administration import MemberRemoved
from support.raft_members import PATIENCE_S, RunningCluster, RunningMember, running_cluster


@pytest.fixture
async def growing(tmp_path: Path) -> AsyncIterator[RunningCluster]:
    """Three voters, and a fourth that may join."""
    async with running_cluster("abcd", tmp_path, voters="abc", started="abc") as cluster:
        await cluster.leader()
        yield cluster


async def change(cluster: RunningCluster, through: str, wanted: MembershipChange) -> None:
    """Ask until it is taken: the leader may be new, or another change under way."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await cluster[through].driver.change_membership(wanted, PATIENCE_S)
                return
            except NotProposed:
                await cluster[through].driver.read_index(PATIENCE_S)


async def promote_when_caught_up(cluster: RunningCluster, through: str, name: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await change(cluster, through, PromoteLearner(name))
                return
            except Conflict:
                await cluster[name].driver.read_index(PATIENCE_S)


async def join(cluster: RunningCluster, name: str, through: str) -> RunningMember:
    await change(cluster, through, AddLearner(name, cluster.address(name)))
    member = cluster.make(name)
    await member.driver.start()
    await member.driver.read_index(PATIENCE_S)
    return member


async def test_a_member_joins_as_learner_by_a_snapshot_and_is_promoted(growing: RunningCluster) -> None:
    follower = await growing.follower()
    await growing.write(follower.name, b"before")
    joined = await join(growing, "d", through=follower.name)
    assert joined.machine.words == [b"before"]
    status = joined.driver.status()
    assert status.membership.learners == ("d",)
    assert status.membership.voters == ("a", "b", "c")
    await promote_when_caught_up(growing, follower.name, "d")
    await growing.write("d", b"through d")
    assert (await growing.leader()).driver.status().membership.voters == ("a", "b", "c", "d")


async def test_a_learner_counts_for_nothing_and_a_promoted_member_for_one(growing: RunningCluster) -> None:
    leader = await growing.leader()
    joined = await join(growing, "d", through=leader.name)
    others = [name for name in "abc" if name != leader.name]
    await promote_when_caught_up(growing, leader.name, "d")
    # Three of four are a majority, and the fourth is needed for it.
    await growing.end(others[0], kill=True)
    await growing.write(leader.name, b"with the fourth")
    await joined.machine.has(b"with the fourth")


async def test_a_lost_member_is_replaced(growing: RunningCluster) -> None:
    """Add, promote, remove: and the new majority needs the new member."""
    follower = await growing.follower()
    lost = follower.name
    await growing.end(lost, kill=True)
    leader = await growing.leader()
    await join(growing, "d", through=leader.name)
    await promote_when_caught_up(growing, leader.name, "d")
    await change(growing, leader.name, RemoveMember(lost))
    assert set(leader.driver.status().membership.voters) == set("abcd") - {lost}
    another = next(name for name in growing.members if name not in (leader.name, "d"))
    await growing.end(another, kill=True)
    await growing.write(leader.name, b"by two of three")


async def test_a_removed_member_is_told_stops_and_does_not_start_again(growing: RunningCluster) -> None:
    follower = await growing.follower()
    leader = await growing.leader()
    await change(growing, leader.name, RemoveMember(follower.name))
    async with asyncio.timeout(PATIENCE_S):
        await follower.failed.wait()
    assert isinstance(follower.failures[0], MemberRemoved)
    await growing.write(leader.name, b"without it")
    with pytest.raises(Conflict, match="needs a new name"):
        await change(growing, leader.name, AddLearner(follower.name, growing.address(follower.name)))
    await growing.end(follower.name, kill=True)
    again = growing.make(follower.name)
    try:
        await again.driver.start()
    except MemberRemoved:
        return  # it had the entry that removed it
    async with asyncio.timeout(PATIENCE_S):
        await again.failed.wait()
    assert isinstance(again.failures[0], MemberRemoved)


async def test_a_leader_that_is_removed_hands_over_first(growing: RunningCluster) -> None:
    leader = await growing.leader()
    follower = await growing.follower()
    await change(growing, follower.name, RemoveMember(leader.name))
    successor = await growing.leader(other_than=leader.name)
    await growing.write(successor.name, b"led by another")
    assert leader.name not in successor.driver.status().membership
    async with asyncio.timeout(PATIENCE_S):
        await leader.failed.wait()
    assert isinstance(leader.failures[0], MemberRemoved)


async def test_the_membership_survives_restarts_and_wins_over_the_settings(growing: RunningCluster) -> None:
    leader = await growing.leader()
    await join(growing, "d", through=leader.name)
    await promote_when_caught_up(growing, leader.name, "d")
    for name in "abcd":
        await growing.end(name, kill=True)
    for name in "abcd":
        growing.make(name)
    for member in growing.members.values():
        await member.driver.start()
    for member in growing.members.values():
        await member.driver.read_index(PATIENCE_S)
        assert member.driver.status().membership.voters == ("a", "b", "c", "d")


async def test_a_voter_that_lost_its_disk_and_joins_again_is_refused(tmp_path: Path) -> None:
    """It would vote for a member without what it has acknowledged; until it is told, it votes for nobody."""
    async with running_cluster("abc", tmp_path) as cluster:
        follower = await cluster.follower()
        await cluster.write(follower.name, b"acknowledged")
        name = follower.name
        await cluster.end(name, kill=True)
        shutil.rmtree(tmp_path / name)
        again = cluster.make(name, joins=True)
        await again.driver.start()
        async with asyncio.timeout(PATIENCE_S):
            await again.failed.wait()
        assert isinstance(again.failures[0], ForgottenMember)


async def test_changes_that_cannot_be_are_refused_with_a_reason(growing: RunningCluster) -> None:
    follower = await growing.follower()
    for wanted, kind, reason in (
        (AddLearner("a", growing.address("a")), Conflict, "is a member already"),
        (PromoteLearner("b"), Conflict, "is a voter already"),
        (PromoteLearner("x"), NotFound, "is no member"),
        (RemoveMember("x"), NotFound, "is no member"),
    ):
        with pytest.raises(kind, match=reason):
            await change(growing, follower.name, wanted)


async def test_a_learner_that_is_not_there_is_not_promoted(growing: RunningCluster) -> None:
    leader = await growing.leader()
    await change(growing, leader.name, AddLearner("d", growing.address("d")))
    with pytest.raises(Conflict):
        await change(growing, leader.name, PromoteLearner("d"))
    await change(growing, leader.name, RemoveMember("d"))


async def test_the_leadership_is_handed_to_whom_an_operator_names(growing: RunningCluster) -> None:
    leader = await growing.leader()
    follower = await growing.follower()
    assert await follower.driver.transfer_leadership(follower.name, PATIENCE_S) == follower.name
    assert (await growing.leader(other_than=leader.name)) is follower
    await growing.write(leader.name, b"goes on")
    with pytest.raises(NotFound, match="is no member"):
        await leader.driver.transfer_leadership("x", PATIENCE_S)


async def test_the_leadership_is_not_handed_to_a_learner(growing: RunningCluster) -> None:
    leader = await growing.leader()
    await join(growing, "d", through=leader.name)
    with pytest.raises(Conflict, match="learner"):
        await leader.driver.transfer_leadership("d", PATIENCE_S)
