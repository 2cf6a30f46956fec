"""Reading a span of the store's history: whole revisions, both ends, and the truth about what is missing."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from quorate_store.chronicle import REPLAYED_REVISIONS_MAX, Bound, ChangeRow, Replay, Span
from quorate_store.model import PutOp
from quorate_store.port import Store
from support.store_local import local_store

PREFIX = b"app/"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path) as store:
        yield store


async def read(replay: Replay) -> list[tuple[int, list[bytes]]]:
    async with aclosing(replay.run()) as revisions:
        return [(revision, [event.kv.key for event in events]) async for revision, events in revisions]


async def test_each_revision_is_whole_with_what_was_there_before_and_others_are_left_out(store: Store) -> None:
    first = (await store.put(PREFIX + b"a", b"1")).revision
    await store.put(b"other", b"1")
    second = (await store.txn([], [PutOp(PREFIX + b"a", b"2"), PutOp(PREFIX + b"b", b"2")])).revision
    third = (await store.delete(PREFIX + b"a")).revision
    await store.put(b"other", b"2")
    replay = Replay(store, PREFIX, 1, third)
    assert await read(replay) == [
        (first, [PREFIX + b"a"]), (second, [PREFIX + b"a", PREFIX + b"b"]), (third, [PREFIX + b"a"]),
    ]  # fmt: skip
    assert (replay.reaches_back, replay.is_whole) == (True, True)
    async with aclosing(Replay(store, PREFIX, second, second).run()) as revisions:
        [(_, events)] = [found async for found in revisions]
    assert [None if event.previous is None else event.previous.value for event in events] == [b"1", None]


async def test_a_span_that_ends_before_the_newest_revision_ends_there(store: Store) -> None:
    revisions = [(await store.put(PREFIX + b"a", b"%d" % number)).revision for number in range(5)]
    assert [revision for revision, _ in await read(Replay(store, PREFIX, revisions[1], revisions[3]))] == revisions[1:4]
    assert await read(Replay(store, PREFIX, revisions[3], revisions[1])) == []


async def test_a_prefix_that_nobody_has_written_is_read_to_its_end(store: Store) -> None:
    revision = (await store.put(b"other", b"")).revision
    replay = Replay(store, PREFIX, 1, revision)
    assert (await read(replay), replay.reaches_back, replay.is_whole) == ([], True, True)


async def test_below_compaction_nothing_is_told_and_that_is_said(store: Store) -> None:
    revisions = [(await store.put(PREFIX + b"a", b"%d" % number)).revision for number in range(6)]
    await store.compact(revisions[2])
    replay = Replay(store, PREFIX, revisions[0], revisions[5])
    assert [revision for revision, _ in await read(replay)] == revisions[3:]
    assert (replay.floor, replay.reaches_back, replay.is_whole) == (revisions[3], False, True)
    later = Replay(store, PREFIX, revisions[4], revisions[5])
    assert ([revision for revision, _ in await read(later)], later.reaches_back) == (revisions[4:], True)


async def test_compaction_that_overtakes_a_reader_makes_its_part_a_broken_one(store: Store) -> None:
    """The reader is held at its first revision, while all that it would read next is taken away."""
    many = 5_000
    revisions = [(await store.put(PREFIX + b"a", b"")).revision for _ in range(many)]
    replay = Replay(store, PREFIX, revisions[0], revisions[-1])
    found: list[int] = []
    async with aclosing(replay.run()) as reading:
        async for revision, _ in reading:
            if not found:
                await store.compact(revisions[-2])
            found.append(revision)
    assert found[-1] == revisions[-1]
    assert found == sorted(set(found))
    assert len(found) < many
    assert not replay.is_whole


def test_only_so_far_back_is_read() -> None:
    end = 3 * REPLAYED_REVISIONS_MAX
    replay = Replay(None, PREFIX, 1, end)  # type: ignore[arg-type]  # nothing is read here
    assert (replay.floor, replay.reaches_back) == (end - REPLAYED_REVISIONS_MAX + 1, False)


def row(revision: int, at_ms: int = 0) -> ChangeRow:
    return ChangeRow(revision, at_ms, "instance", "default", "order/1", "changed")


def span(since: Bound, until: Bound | None = None, limit: int = 10) -> Span:
    return Span(since, until or Bound(100), limit)


def whole(reaches_back: bool = True) -> Replay:
    replay = Replay(None, PREFIX, 1, 100)  # type: ignore[arg-type]  # as above
    replay.reaches_back = reaches_back
    return replay


def test_the_newest_that_fit_are_kept_and_that_there_were_more_is_said() -> None:
    found = span(Bound(1), limit=2)
    found.take([row(3), row(4), row(5)])
    part = found.part(whole())
    assert ([each.revision for each in part.changes], part.complete, part.from_revision) == ([4, 5], False, 4)


def test_by_time_both_ends_are_included_and_one_without_a_time_counts_as_of_the_one_before() -> None:
    found = span(Bound(1, at_ms=10), Bound(100, at_ms=20))
    found.take([row(1, 9), row(2), row(3, 10), row(4), row(5, 20), row(6), row(7, 21)])
    assert [each.revision for each in found.part(whole()).changes] == [3, 4, 5, 6]


@pytest.mark.parametrize(("first_ms", "complete"), [(9, True), (10, False)])
def test_a_moment_is_reached_when_something_before_it_was_seen(first_ms: int, complete: bool) -> None:
    found = span(Bound(1, at_ms=10))
    found.take([row(50, first_ms), row(51, 15)])
    assert found.part(whole(reaches_back=False)).complete is complete
