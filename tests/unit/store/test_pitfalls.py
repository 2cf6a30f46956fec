"""Pitfalls of other stores that several parts must avoid together; those of one part stand with its tests."""

import asyncio
from pathlib import Path

from quorate_core.errors import OutcomeUnknown, QuorateError, Retry
from quorate_raft.core.membership import Membership
from support.raft_members import PATIENCE_S, RunningCluster, RunningMember, running_cluster


def break_the_link_after_the_call(leader: RunningMember, membership: Membership) -> asyncio.Event:
    """The leader takes the next call of a peer, and the link breaks before it has answered. Set when that was done."""
    broken = asyncio.Event()
    network = leader.network

    async def on_call(sender: str, method: str, payload: bytes) -> bytes:
        answer = await type(network).on_call(network, sender, method, payload)
        if not broken.is_set():
            leader.tcp.set_members(Membership.of_voters({leader.name: membership.address_of(leader.name) or ""}))
            leader.tcp.set_members(membership)
            broken.set()
        return answer

    network.on_call = on_call  # type: ignore[method-assign]
    return broken


async def test_a_forwarded_write_is_applied_once_though_the_link_breaks_before_the_answer(tmp_path: Path) -> None:
    """Pitfall (Jepsen, jetcd 0.8.2): a client that retries a write whose outcome it does not know. Nothing between a
    caller and the log sends a write twice: its proposer learns from the log what has become of it."""
    async with running_cluster("abc", tmp_path) as cluster:
        leader, follower = await cluster.leader(), await cluster.follower()
        membership = Membership.of_voters({name: cluster.address(name) for name in "abc"})
        broken = break_the_link_after_the_call(leader, membership)
        assert await follower.driver.propose(b"once", PATIENCE_S) == 1
        assert broken.is_set()
        later = [b"later/%d" % number for number in range(20)]  # a second copy would come in between, at the latest
        for word in later:
            await cluster.write(follower.name, word)
        for member in cluster.members.values():
            await member.machine.has(later[-1])
            assert member.machine.words == [b"once", *later]


async def test_a_caller_is_told_to_try_again_only_when_its_write_is_surely_not_in_the_log(tmp_path: Path) -> None:
    """Pitfall (Jepsen, jetcd 0.8.2): who tries again whenever that is said to be safe, and gives up otherwise, has each
    write applied at most once, though links break and leaders go."""
    async with running_cluster("abc", tmp_path) as cluster:
        outcomes = dict[bytes, object]()
        stop = asyncio.Event()

        async def client(number: int) -> None:
            for turn in range(10_000):
                if stop.is_set():
                    return
                word = b"%d/%d" % (number, turn)
                outcomes[word] = await write_while_it_is_safe(cluster, "abc"[(number + turn) % 3], word)

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(client(number))
            for _ in range(3):
                gone = await cluster.leader()
                await until_written(outcomes, len(outcomes) + 30)
                await cluster.end(gone.name, kill=True)
                await cluster.leader(other_than=gone.name)
                await cluster.make(gone.name).driver.start()
            stop.set()
        for name in "abc":
            await cluster.members[name].driver.read_index(PATIENCE_S)
        words = cluster[(await cluster.leader()).name].machine.words
        assert len(words) == len(set(words))
        acknowledged = {word for word, outcome in outcomes.items() if isinstance(outcome, int)}
        refused = {word for word, outcome in outcomes.items() if outcome is None}
        assert acknowledged <= set(words)
        assert not refused & set(words)
        assert len(acknowledged) >= 90


async def write_while_it_is_safe(cluster: RunningCluster, name: str, word: bytes) -> object:
    """The result; None when it was surely never done; the error when that is unknown."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            member = cluster.members.get(name)
            if member is None:
                return None
            try:
                return await member.driver.propose(word, PATIENCE_S)
            except OutcomeUnknown as error:
                return error
            except QuorateError as error:
                if error.kind.retry is not Retry.SAFE:
                    raise
            await asyncio.sleep(0)


async def until_written(outcomes: dict[bytes, object], count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(outcomes) < count:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)
