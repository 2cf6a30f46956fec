"""Keeps a feed up to date with the store: loads it once, then follows one watch, and comes back when that is lost.

Loading begins with a linearizable read, so a node that has just started, and whose own copy of the store may be old,
tells its subscribers nothing before it has caught up. A lost watch is resumed from the feed's revision; only when the
store no longer has the history from there is everything loaded again. The feed keeps what it has in the meantime.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from quorate_core.errors import Compacted, FutureRevision, InvariantViolation, QuorateError
from quorate_store.model import RESTORED_KEY, prefix_end
from quorate_store.port import Store, Watch

from quorate_config_center.feed import Feed, IncompleteChange, Published
from quorate_config_center.history import DocumentHistory
from quorate_config_center.model import CURRENT_PREFIX, HISTORY_PREFIX

BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 5.0
BOOKMARK_INTERVAL_S = 3.0
"""How often subscribers are told that they are up to date."""
BARRIER_S_MAX = 5.0

Wait = Callable[[float], Awaitable[None]]
"""Waits this many seconds; `asyncio.sleep` outside tests."""

log = structlog.get_logger(__name__)


class FeedFollower:
    def __init__(self, store: Store, history: DocumentHistory, feed: Feed, wait: Wait = asyncio.sleep) -> None:
        self._store = store
        self._history = history
        self._feed = feed
        self._wait = wait
        self._watch: Watch | None = None
        self._must_load = True

    async def run(self) -> None:
        """Until cancelled."""
        backoff_s = BACKOFF_S_MIN
        while True:
            before = self._feed.revision
            reason = await self._follow_until_lost()
            if self._feed.revision > before:
                backoff_s = BACKOFF_S_MIN
            log.warning("config_watch_lost", reason=reason, revision=self._feed.revision, again_in_s=backoff_s)
            await self._wait(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)

    async def send_bookmarks(self) -> None:
        """Until cancelled. Bookmarks only after a linearizable read: a node that is cut off from the majority falls
        silent, and its subscribers go elsewhere."""
        while True:
            await self._wait(BOOKMARK_INTERVAL_S)
            if not self._feed.subscribers:
                continue
            try:
                async with asyncio.timeout(BARRIER_S_MAX):
                    await self._catch_up()
            except (QuorateError, TimeoutError) as error:
                log.debug("config_bookmark_left_out", reason=str(error))  # the lost watch, too, is logged
                continue
            self._feed.publish_bookmark()

    async def _catch_up(self) -> None:
        """Until the feed has everything that was committed before this call."""
        # One key suffices: what is wanted is the revision of a linearizable read.
        revision = (await self._store.range(CURRENT_PREFIX, count_only=True)).revision
        if self._feed.revision < revision and self._watch is not None:
            await self._watch.request_progress()
        await self._feed.reach(revision)

    async def _follow_until_lost(self) -> str:
        try:
            if self._must_load:
                await self._load()
                self._must_load = False
            await self._follow()
        except (Compacted, FutureRevision, IncompleteChange) as error:
            self._must_load = True
            return str(error)
        except QuorateError as error:
            return error.detail
        finally:
            self._watch = None
        return "the watch ended"

    async def _load(self) -> None:
        revision, heads = await self._history.heads()
        documents = []
        for name, stored in heads:
            try:
                found = await self._history.find_version(name, stored.head.version, serializable=True)
            except InvariantViolation as error:
                log.error("config_document_left_out", reason=error.detail)  # one bad row must not hide all others
                continue
            # None: swept by many newer versions since the heads were read; the watch from there on has the newest.
            if found is not None:
                documents.append(Published.of(name, found))
            await asyncio.sleep(0)  # a serializable read waits for nothing: let the node's other work in
        self._feed.load(revision, documents, await self._restored_revision())
        log.info("config_feed_loaded", revision=revision, documents=len(documents))

    async def _restored_revision(self) -> int:
        """With which revision the store's life began, when it began from a backup; else 0."""
        found = await self._store.range(RESTORED_KEY, serializable=True)
        return found.kvs[0].mod_revision if found.kvs else 0

    async def _follow(self) -> None:
        # History sorts before the current heads; one watch over both brings a head together with its content.
        begin, end = HISTORY_PREFIX, prefix_end(CURRENT_PREFIX)
        async with self._store.watch(begin, end, start_revision=self._feed.revision + 1) as watch:
            self._watch = watch
            async for batch in watch:
                self._feed.apply(batch)
