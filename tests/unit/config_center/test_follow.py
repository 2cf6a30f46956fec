"""The feed keeps up with the store, resumes a lost watch, and never takes an outage for an empty store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from quorate_config_center.feed import Feed, Interest
from quorate_config_center.follow import BACKOFF_S_MAX, BACKOFF_S_MIN, BOOKMARK_INTERVAL_S, FeedFollower
from quorate_config_center.history import DocumentHistory
from quorate_config_center.model import Change, DocumentName, Precondition, version_key
from quorate_core.errors import FutureRevision, NotProposed, QuorateError, Unavailable
from quorate_core.tasks import TaskOwner
from quorate_sdk.wire import ConfigFormat
from quorate_store.model import RESTORED_KEY, WatchBatch
from quorate_store.port import Store, Watch
from support.store_local import local_store

NAME = DocumentName("default", "order", "settings.yaml")
CHANGE = Change("ann", "", "2024-01-01T00:00:00.000Z")


class BreakableWatch:
    """A real watch that ends with Unavailable when its store is cut off."""

    def __init__(self, watch: Watch, cut: asyncio.Event) -> None:
        self._watch = watch
        self._cut = cut

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watch, name)

    async def __aiter__(self) -> AsyncIterator[WatchBatch]:
        batches = aiter(self._watch)
        while True:
            upcoming = asyncio.ensure_future(anext(batches))  # noqa: TID251 - ended below
            cut = asyncio.ensure_future(self._cut.wait())  # noqa: TID251 - ended below
            try:
                await asyncio.wait({upcoming, cut}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                cut.cancel()
                if not upcoming.done():
                    upcoming.cancel()
                    await asyncio.wait({upcoming})
            if upcoming.cancelled():
                raise Unavailable("the link to the store was cut")
            yield upcoming.result()


class BreakableStore:
    """A real store whose linearizable reads and watches fail while it is cut off."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.cut = asyncio.Event()
        self.watched_from: list[int] = []
        self.fails_watch_with: QuorateError | None = None
        self.range_asked = asyncio.Event()

    async def range(self, *arguments: Any, serializable: bool = False, **options: Any) -> Any:
        self.range_asked.set()
        if self.cut.is_set() and not serializable:
            raise NotProposed("there is no leader")
        return await self.store.range(*arguments, serializable=serializable, **options)

    def watch(self, *arguments: Any, start_revision: int, **options: Any) -> AbstractAsyncContextManager[Watch]:
        self.watched_from.append(start_revision)
        return self._opened(*arguments, start_revision=start_revision, **options)

    @asynccontextmanager
    async def _opened(self, *arguments: Any, **options: Any) -> AsyncIterator[Watch]:
        error, self.fails_watch_with = self.fails_watch_with, None
        if error is not None:
            raise error
        async with self.store.watch(*arguments, **options) as watch:
            yield BreakableWatch(watch, self.cut)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class Waits:
    """Stands for sleeping: notes for how long, and ends it when told."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []
        self._permits = asyncio.Semaphore(0)
        self._asked = asyncio.Condition()

    async def __call__(self, seconds: float) -> None:
        async with self._asked:
            self.asked_s.append(seconds)
            self._asked.notify_all()
        await self._permits.acquire()

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(10), self._asked:
            await self._asked.wait_for(lambda: len(self.asked_s) >= times)

    def end_one(self) -> None:
        self._permits.release()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[BreakableStore]:
    async with local_store(tmp_path) as local:
        yield BreakableStore(local)


@pytest.fixture
async def tasks() -> AsyncIterator[TaskOwner]:
    failures: list[BaseException] = []
    async with TaskOwner("test", failures.append) as owner:
        yield owner
    assert failures == []


async def publish(store: BreakableStore, content: str, name: DocumentName = NAME) -> None:
    await DocumentHistory(store.store).publish(name, content, ConfigFormat.TEXT, CHANGE, Precondition())


async def until(feed: Feed, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - yields to the follower under test, which has no event to wait for
            await asyncio.sleep(0)


def content_of(feed: Feed, name: DocumentName = NAME) -> str | None:
    found = feed.find(name)
    return None if found is None or found.head.deleted else found.stored.content


def following(store: BreakableStore, feed: Feed, waits: Waits) -> FeedFollower:
    return FeedFollower(store, DocumentHistory(store), feed, waits)


async def test_the_feed_is_loaded_and_then_follows_every_change(store: BreakableStore, tasks: TaskOwner) -> None:
    await publish(store, "one")
    feed = Feed()
    tasks.start(following(store, feed, Waits()).run(), "follow")
    await until(feed, lambda: content_of(feed) == "one")
    await publish(store, "two")
    await until(feed, lambda: content_of(feed) == "two")
    await DocumentHistory(store.store).delete(NAME, CHANGE, Precondition())
    await until(feed, lambda: content_of(feed) is None)


async def test_nothing_is_served_before_a_linearizable_read_has_succeeded(
    store: BreakableStore, tasks: TaskOwner
) -> None:
    await publish(store, "one")
    feed, waits = Feed(), Waits()
    store.cut.set()
    tasks.start(following(store, feed, waits).run(), "follow")
    await waits.until_asked(1)
    with pytest.raises(Unavailable):
        feed.require_room()
    store.cut.clear()
    waits.end_one()
    await until(feed, lambda: content_of(feed) == "one")


async def test_a_lost_watch_is_resumed_from_where_the_feed_stands(store: BreakableStore, tasks: TaskOwner) -> None:
    await publish(store, "one")
    feed, waits = Feed(), Waits()
    tasks.start(following(store, feed, waits).run(), "follow")
    await until(feed, lambda: content_of(feed) == "one")
    loaded = feed.revision
    await publish(store, "two")
    await until(feed, lambda: content_of(feed) == "two")
    store.cut.set()
    await waits.until_asked(1)
    assert content_of(feed) == "two"  # an outage empties nothing
    await publish(store, "changed meanwhile")
    store.cut.clear()
    waits.end_one()
    await until(feed, lambda: content_of(feed) == "changed meanwhile")
    assert store.watched_from == [loaded + 1, loaded + 2]


async def test_attempts_are_spaced_out_further_and_further_up_to_a_limit(
    store: BreakableStore, tasks: TaskOwner
) -> None:
    feed, waits = Feed(), Waits()
    store.cut.set()
    tasks.start(following(store, feed, waits).run(), "follow")
    for attempt in range(1, 10):
        await waits.until_asked(attempt)
        waits.end_one()
    assert waits.asked_s[:3] == [BACKOFF_S_MIN, 2 * BACKOFF_S_MIN, 4 * BACKOFF_S_MIN]
    assert waits.asked_s[8] == BACKOFF_S_MAX


async def test_when_history_is_gone_everything_is_loaded_again_and_subscribers_hear_of_it(
    store: BreakableStore, tasks: TaskOwner
) -> None:
    await publish(store, "one")
    feed, waits = Feed(), Waits()
    tasks.start(following(store, feed, waits).run(), "follow")
    await until(feed, lambda: content_of(feed) == "one")
    events = feed.events(Interest("default"))
    await anext(events)
    store.cut.set()
    await waits.until_asked(1)
    for number in range(5):
        await publish(store, f"content {number}")
    await store.compact((await store.store.range(b"x")).revision)
    store.cut.clear()
    waits.end_one()  # the watch finds its history compacted
    await waits.until_asked(2)
    waits.end_one()
    async with asyncio.timeout(10):
        assert b'"content":"content 4"' in await anext(events)
    await events.aclose()  # type: ignore[attr-defined]  # async generators have it


async def test_a_row_that_cannot_be_read_leaves_out_its_own_document_only(
    store: BreakableStore, tasks: TaskOwner
) -> None:
    damaged = DocumentName("default", "order", "damaged")
    await publish(store, "one")
    await publish(store, "two", damaged)
    await store.put(version_key(damaged, 1), b"not a row")
    feed = Feed()
    tasks.start(following(store, feed, Waits()).run(), "follow")
    await until(feed, lambda: content_of(feed) == "one")
    assert feed.find(damaged) is None


async def test_bookmarks_tell_subscribers_that_they_are_up_to_date(store: BreakableStore, tasks: TaskOwner) -> None:
    await publish(store, "one")
    feed, waits = Feed(), Waits()
    follower = following(store, feed, waits)
    tasks.start(follower.run(), "follow")
    await until(feed, lambda: content_of(feed) == "one")
    events = feed.events(Interest("default"))
    await anext(events)
    tasks.start(follower.send_bookmarks(), "bookmarks")
    await waits.until_asked(1)
    assert waits.asked_s == [BOOKMARK_INTERVAL_S]
    unrelated = await store.put(b"elsewhere", b"x")
    waits.end_one()
    async with asyncio.timeout(10):
        assert await anext(events) == (
            b'id: %d\nevent: bookmark\ndata: {"revision":%d}\n\n' % (unrelated.revision, unrelated.revision)
        )
    await events.aclose()  # type: ignore[attr-defined]  # async generators have it


async def test_a_node_without_a_majority_sends_no_bookmark_until_it_has_read_the_store_again(
    store: BreakableStore, tasks: TaskOwner
) -> None:
    """Its watchers take its silence for the sign to go elsewhere; with nothing changed, silence must mean only that."""
    await publish(store, "one")
    feed, waits = Feed(), Waits()
    follower = following(store, feed, Waits())
    tasks.start(follower.run(), "follow")
    await until(feed, lambda: content_of(feed) == "one")
    events = feed.events(Interest("default"))
    await anext(events)
    upcoming = tasks.start(anext(events), "upcoming")  # type: ignore[arg-type]  # it is a coroutine
    tasks.start(FeedFollower(store, DocumentHistory(store), feed, waits).send_bookmarks(), "bookmarks")
    store.cut.set()
    for times in range(1, 4):
        await waits.until_asked(times)
        assert not upcoming.done()
        waits.end_one()
    await waits.until_asked(4)
    assert not upcoming.done()
    store.cut.clear()
    waits.end_one()
    async with asyncio.timeout(10):
        assert b"event: bookmark" in await upcoming
    await events.aclose()  # type: ignore[attr-defined]  # async generators have it


async def test_a_feed_that_is_ahead_of_the_stores_history_is_loaded_again(
    store: BreakableStore, tasks: TaskOwner
) -> None:
    await publish(store, "one")
    feed, waits = Feed(), Waits()
    store.fails_watch_with = FutureRevision("the store has not come so far")
    tasks.start(following(store, feed, waits).run(), "follow")
    await waits.until_asked(1)
    store.range_asked.clear()
    waits.end_one()
    await publish(store, "two")
    await until(feed, lambda: content_of(feed) == "two")
    assert store.range_asked.is_set(), "read anew, and not only watched"


async def test_a_feed_learns_of_a_restoration_from_the_store(store: BreakableStore, tasks: TaskOwner) -> None:
    await publish(store, "one")
    restored = (await store.store.put(RESTORED_KEY, b"{}")).revision
    feed = Feed()
    tasks.start(following(store, feed, Waits()).run(), "follow")
    await until(feed, lambda: content_of(feed) == "one")
    async with aclosing(feed.events(Interest("default"), since=restored - 1)) as events:
        assert b"event: snapshot" in await anext(events)
    async with aclosing(feed.events(Interest("default"), since=restored)) as events:
        assert b"event: bookmark" in await anext(events)
