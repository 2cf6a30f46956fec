"""What `port.Store` promises about watches."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from quorate_core.errors import Compacted, InvalidRequest
from quorate_store.model import DeleteOp, Event, EventKind, KeyValue, PutOp, WatchBatch, prefix_end
from quorate_store.port import Store

pytestmark = pytest.mark.asyncio(loop_scope="package")

PATIENCE_S = 20.0


async def following(batches: AsyncIterator[WatchBatch]) -> WatchBatch:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(batches)


async def events_until(batches: AsyncIterator[WatchBatch], revision: int) -> list[Event]:
    """All events up to `revision`; checks that batches are in order and events whole and in their place."""
    found: list[Event] = []
    reached = 0
    while reached < revision:
        batch = await following(batches)
        assert batch.revision > reached
        assert all(reached < event.kv.mod_revision <= batch.revision for event in batch.events)
        found += batch.events
        reached = batch.revision
    assert [event.kv.mod_revision for event in found] == sorted(event.kv.mod_revision for event in found)
    return found


async def test_a_watch_from_now_begins_with_a_bookmark_and_misses_nothing_after_it(store: Store, prefix: bytes) -> None:
    before = await store.put(prefix + b"before", b"")
    async with store.watch(prefix, prefix_end(prefix)) as watch:
        batches = aiter(watch)
        opening = await following(batches)
        assert opening == WatchBatch(opening.revision)
        assert opening.revision >= before.revision
        put = await store.put(prefix + b"a", b"1")
        deleted = await store.delete(prefix + b"a")
        found = await events_until(batches, deleted.revision)
    assert found == [
        Event(EventKind.PUT, KeyValue(prefix + b"a", b"1", put.revision, put.revision, 1)),
        Event(EventKind.DELETE, KeyValue(prefix + b"a", b"", 0, deleted.revision, 0)),
    ]


async def test_a_watch_from_the_past_is_served_from_history_and_then_goes_on(store: Store, prefix: bytes) -> None:
    puts = [await store.put(prefix + b"%03d" % number, b"") for number in range(100)]
    async with store.watch(prefix, prefix_end(prefix), start_revision=puts[40].revision) as watch:
        batches = aiter(watch)
        found = await events_until(batches, puts[-1].revision)
        assert [event.kv.mod_revision for event in found] == [put.revision for put in puts[40:]]
        last = await store.put(prefix + b"last", b"")
        assert [event.kv.key for event in await events_until(batches, last.revision)] == [prefix + b"last"]


async def test_a_watch_resumed_after_its_last_batch_has_neither_gap_nor_repeat(store: Store, prefix: bytes) -> None:
    first = await store.put(prefix + b"0", b"")
    found: list[Event] = []
    next_revision = first.revision
    for turn in range(1, 6):
        last = await store.txn([], [PutOp(prefix + b"%d/%d" % (turn, n), b"") for n in range(3)])
        async with store.watch(prefix, prefix_end(prefix), start_revision=next_revision) as watch:
            found += await events_until(aiter(watch), last.revision)
        next_revision = last.revision + 1
    expected = [prefix + b"0", *(prefix + b"%d/%d" % (turn, n) for turn in range(1, 6) for n in range(3))]
    assert [event.kv.key for event in found] == expected


async def test_a_watch_may_begin_in_the_future(store: Store, prefix: bytes) -> None:
    put = await store.put(prefix, b"0")
    async with store.watch(prefix, start_revision=put.revision + 2) as watch:
        await store.put(prefix, b"1")
        await store.put(prefix, b"2")
        last = await store.put(prefix, b"3")
        found = await events_until(aiter(watch), last.revision)
    assert [event.kv.value for event in found] == [b"2", b"3"]


async def test_a_revision_is_whole(store: Store, prefix: bytes) -> None:
    async with store.watch(prefix, prefix_end(prefix)) as watch:
        batches = aiter(watch)
        await following(batches)
        await store.put(prefix + b"c", b"")
        operations = [PutOp(prefix + b"a", b""), DeleteOp(prefix + b"c"), PutOp(prefix + b"b", b"")]
        txn = await store.txn([], operations)
        found = await events_until(batches, txn.revision)
    changed = [(event.kind, event.kv.key) for event in found if event.kv.mod_revision == txn.revision]
    assert changed == [
        (EventKind.PUT, prefix + b"a"),
        (EventKind.DELETE, prefix + b"c"),
        (EventKind.PUT, prefix + b"b"),
    ]


async def test_previous_values_come_when_asked_for_live_and_from_history(store: Store, prefix: bytes) -> None:
    first = await store.put(prefix, b"1")
    async with store.watch(prefix, previous=True) as live, store.watch(prefix) as plain:
        await following(aiter(live))
        await following(aiter(plain))
        second = await store.put(prefix, b"2")
        third = await store.delete(prefix)
        found = await events_until(aiter(live), third.revision)
        assert [event.previous for event in await events_until(aiter(plain), third.revision)] == [None, None]
    expected = [
        KeyValue(prefix, b"1", first.revision, first.revision, 1),
        KeyValue(prefix, b"2", first.revision, second.revision, 2),
    ]
    assert [event.previous for event in found] == expected
    async with store.watch(prefix, start_revision=first.revision, previous=True) as past:
        again = await events_until(aiter(past), third.revision)
    assert [event.previous for event in again] == [None, *expected]


async def test_only_the_keys_in_the_range_are_told(store: Store, prefix: bytes) -> None:
    ranges = {
        "one": (prefix + b"b", b""),
        "prefix": (prefix + b"b", prefix_end(prefix + b"b")),
        "range": (prefix + b"b", prefix + b"d"),
        "from": (prefix + b"c", b"\0"),
    }
    expected = {
        "one": [b"b"],
        "prefix": [b"b", b"b2"],
        "range": [b"b", b"b2", b"c"],
        "from": [b"c", b"d"],
    }
    opening = (await store.range(prefix)).revision
    for name in (b"a", b"b", b"b2", b"c", b"d"):
        await store.put(prefix + name, name)
    for kind, (key, range_end) in ranges.items():
        async with store.watch(key, range_end, start_revision=opening + 1) as watch:
            await watch.request_progress()
            found: list[bytes] = []
            async for batch in watch:
                if not batch.events:
                    break
                found += [event.kv.value for event in batch.events]
        assert found == expected[kind], kind


async def test_progress_comes_in_order_after_all_events_up_to_it(store: Store, prefix: bytes) -> None:
    async with store.watch(prefix, prefix_end(prefix)) as watch:
        batches = aiter(watch)
        await following(batches)
        put = await store.put(prefix + b"a", b"")
        elsewhere = await store.put(b"elsewhere/" + prefix, b"")
        await watch.request_progress()
        batch, bookmark = await following(batches), await following(batches)
        assert [event.kv.mod_revision for event in batch.events] == [put.revision]
        assert bookmark.events == ()
        assert bookmark.revision >= elsewhere.revision
        await watch.request_progress()
        assert (await following(batches)).revision >= bookmark.revision


async def test_a_reader_that_sleeps_through_many_changes_loses_none(store: Store, prefix: bytes) -> None:
    async with store.watch(prefix, prefix_end(prefix)) as watch:
        batches = aiter(watch)
        await following(batches)
        expected: list[tuple[bytes, int]] = []
        for number in range(30):
            names = [prefix + b"%d/%d" % (number, n) for n in range(100)]
            txn = await store.txn([], [PutOp(name, b"") for name in names])
            expected += [(name, txn.revision) for name in names]
        found = await events_until(batches, expected[-1][1])
    assert [(event.kv.key, event.kv.mod_revision) for event in found] == expected


async def test_a_watch_under_concurrent_writers_sees_every_write_once(store: Store, prefix: bytes) -> None:
    writers, writes = 8, 25

    async def write(writer: int) -> list[int]:
        return [(await store.put(prefix + b"%d" % writer, b"%d" % number)).revision for number in range(writes)]

    async with store.watch(prefix, prefix_end(prefix)) as watch:
        batches = aiter(watch)
        await following(batches)
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            tasks = [group.create_task(write(writer)) for writer in range(writers)]
        revisions = sorted(revision for task in tasks for revision in task.result())
        found = await events_until(batches, revisions[-1])
    assert [event.kv.mod_revision for event in found] == revisions
    for writer in range(writers):
        values = [event.kv.value for event in found if event.kv.key == prefix + b"%d" % writer]
        assert values == [b"%d" % number for number in range(writes)]


async def test_a_watch_from_before_the_compaction_is_told_so(store: Store, prefix: bytes) -> None:
    first = await store.put(prefix, b"1")
    second = await store.put(prefix, b"2")
    third = await store.delete(prefix)
    await store.compact(third.revision)
    async with store.watch(prefix, start_revision=second.revision) as watch:
        with pytest.raises(Compacted) as caught:
            await following(aiter(watch))
    assert caught.value.extensions["compact_revision"] == third.revision
    assert first.revision < second.revision


async def test_a_watch_from_the_compacted_revision_on_misses_nothing(store: Store, prefix: bytes) -> None:
    """A deletion at the very revision is still told."""
    await store.put(prefix, b"1")
    deleted = await store.delete(prefix)
    await store.compact(deleted.revision)
    last = await store.put(prefix, b"2")
    async with store.watch(prefix, start_revision=deleted.revision) as watch:
        found = await events_until(aiter(watch), last.revision)
    assert [(event.kind, event.kv.mod_revision) for event in found] == [
        (EventKind.DELETE, deleted.revision),
        (EventKind.PUT, last.revision),
    ]


async def test_compaction_does_not_disturb_a_watch_that_keeps_up(store: Store, prefix: bytes) -> None:
    async with store.watch(prefix, prefix_end(prefix)) as watch:
        batches = aiter(watch)
        await following(batches)
        for number in range(10):
            put = await store.put(prefix + b"%d" % number, b"")
            await store.compact(put.revision)
            assert [event.kv.mod_revision for event in await events_until(batches, put.revision)] == [put.revision]


async def test_a_negative_start_is_refused(store: Store, prefix: bytes) -> None:
    with pytest.raises(InvalidRequest):
        async with store.watch(prefix, start_revision=-1) as watch:
            await following(aiter(watch))
