"""The store on three real members, while members stop, lead, and come back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from quorate_core.errors import QuorateError, Retry
from quorate_store.model import RANGE_ALL, EventKind, PutResult
from support.store_model import observable
from support.store_raft import RaftMember, raft_stores, until_ready

PATIENCE_S = 30.0
T = TypeVar("T")


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[list[RaftMember]]:
    async with raft_stores(tmp_path) as started:
        yield started


def leader_of(members: list[RaftMember]) -> RaftMember:
    return next(member for member in members if member.leads)


def followers_of(members: list[RaftMember]) -> list[RaftMember]:
    return [member for member in members if not member.leads]


async def tried_again(member: RaftMember, call: Callable[[], Awaitable[T]]) -> T:
    """The result of `call`, which is harmless to repeat, so that even an unknown outcome is tried again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await call()
            except QuorateError as error:
                if error.kind.retry is Retry.NEVER:
                    raise
            await until_ready([member])


async def put_until_it_is_done(member: RaftMember, key: bytes, value: bytes) -> PutResult:
    return await tried_again(member, lambda: member.store.put(key, value))


async def test_what_one_member_was_told_every_member_reads(members: list[RaftMember]) -> None:
    for number, member in enumerate(members):
        put = await member.store.put(b"k", b"%d" % number)
        for other in members:
            result = await other.store.range(b"k")
            assert (result.kvs[0].value, result.revision) == (b"%d" % number, put.revision)


async def test_all_members_end_in_the_same_state(members: list[RaftMember]) -> None:
    async def work(member: RaftMember) -> None:
        name = member.name.encode()
        lease = (await member.store.lease_grant(60)).lease
        for number in range(30):
            await member.store.put(b"shared/%d" % (number % 7), name, lease=lease if number % 3 else 0)
            await member.store.delete(b"shared/%d" % (number % 5))

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for member in members:
            group.create_task(work(member))
    last = await members[0].store.put(b"last", b"")
    await members[1].store.compact(last.revision - 20)
    await until_ready(members)
    states = [observable(member.machine) for member in members]
    assert states[0] == states[1] == states[2]


async def test_a_watch_on_a_follower_goes_on_without_gap_while_the_leader_is_lost(members: list[RaftMember]) -> None:
    leader, (watched, other) = leader_of(members), followers_of(members)
    async with asyncio.timeout(PATIENCE_S), watched.store.watch(b"k", b"l") as watch:
        batches = aiter(watch)
        opening = await anext(batches)
        for number in range(10):
            await put_until_it_is_done(other, b"k%d" % number, b"before")
        await leader.stop()
        for number in range(10):
            last = await put_until_it_is_done(other, b"k%d" % number, b"after")
        found = []
        reached = opening.revision
        while reached < last.revision:
            batch = await anext(batches)
            found += batch.events
            reached = batch.revision
    revisions = [event.kv.mod_revision for event in found]
    assert revisions == list(range(opening.revision + 1, last.revision + 1))
    assert {event.kv.key for event in found if event.kv.value == b"after"} == {b"k%d" % n for n in range(10)}


async def test_a_lease_outlives_its_leader_and_ends_under_the_next(members: list[RaftMember]) -> None:
    leader, (one, other) = leader_of(members), followers_of(members)
    lease = (await one.store.lease_grant(2)).lease
    put = await one.store.put(b"leased", b"", lease=lease)
    assert await one.store.lease_keepalive([lease]) == []
    await leader.stop()
    async with asyncio.timeout(PATIENCE_S):
        assert await tried_again(other, lambda: other.store.lease_keepalive([lease])) == []
        assert (await other.store.range(b"leased")).count == 1
        async with other.store.watch(b"leased", start_revision=put.revision + 1) as watch:
            batch = await anext(aiter(watch))
    assert [event.kind for event in batch.events] == [EventKind.DELETE]
    assert await one.store.lease_keepalive([lease]) == [lease]


async def test_a_member_that_was_away_catches_up_and_keeps_what_it_had(members: list[RaftMember]) -> None:
    away, (one, other) = leader_of(members), followers_of(members)
    await away.store.put(b"before", b"1")
    await away.stop()
    for number in range(50):
        await put_until_it_is_done(one, b"k%d" % number, b"x")
    await away.start()
    await until_ready([away])
    assert (await away.store.range(b"\0", RANGE_ALL)).count == 51
    await until_ready(members)
    assert observable(away.machine) == observable(other.machine)


async def test_all_members_come_back_with_all_data(members: list[RaftMember]) -> None:
    lease = (await members[0].store.lease_grant(600)).lease
    for number in range(20):
        await members[number % 3].store.put(b"k%02d" % number, b"v%d" % number, lease=lease)
    before = (await members[0].store.range(b"\0", RANGE_ALL)).kvs
    assert len(before) == 20
    for member in members:
        await member.stop()
    for member in members:
        await member.start()
    await until_ready(members)
    for member in members:
        result = await member.store.range(b"\0", RANGE_ALL)
        assert result.kvs == before
        assert (await member.store.lease_time_to_live(lease, keys=True)).keys == tuple(kv.key for kv in before)


async def test_without_a_majority_writes_and_reads_are_refused_and_stale_reads_go_on(
    members: list[RaftMember],
) -> None:
    await members[0].store.put(b"k", b"v")
    await until_ready(members)
    alone = members[0]
    for member in members[1:]:
        await member.stop()
    async with asyncio.timeout(PATIENCE_S):
        while (await alone.store.status()).leader:
            with pytest.raises(QuorateError) as caught:
                await alone.store.put(b"k", b"w")
            assert caught.value.kind.retry is not Retry.NEVER
        with pytest.raises(QuorateError) as caught:
            await alone.store.put(b"k", b"w")
        assert caught.value.kind.retry is Retry.SAFE
        with pytest.raises(QuorateError) as caught:
            await alone.store.range(b"k")
        assert caught.value.kind.retry is Retry.SAFE
        with pytest.raises(QuorateError) as caught:
            await alone.store.lease_keepalive([1])
        assert caught.value.kind.retry is Retry.SAFE
    assert (await alone.store.range(b"k", serializable=True)).kvs[0].value == b"v"
