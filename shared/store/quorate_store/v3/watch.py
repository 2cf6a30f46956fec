"""`/v3/watch`: streams of watches, as etcd's gateway serves them.

Theory of operation. One stream has many watches, one task each, which iterates the store's own watch and sends what
comes of it; the store keeps it in order, and without gap or repeat, however slow the client reads. The stream's own
task reads requests, and takes the next one when the one before was answered: so ids are given, and "created" comes, in
the order of the requests, and before any event of the watch.

A watch ends when its client cancels it, or when history does not reach back to where it wants to begin, or to go on:
it is told "canceled" then, and the others go on. What else goes wrong with one ends the stream, as what goes wrong is
the store, and a client begins its watches anew where another node answers. A stream without watches stays open.

Progress. The store puts a bookmark in line behind all events of a watch. A client that asks for progress hears of it
for the whole stream, once the bookmarks of all its watches are through: everything up to the revision named was sent,
on each of them. (etcd 3.4 answers at once, and may send older events after that.) Watches with `progress_notify` get a
bookmark of their own every now and then when nothing else has come.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import FastAPI
from quorate_core.asgi import add_raw_exchange
from quorate_core.errors import Compacted, QuorateError, Unavailable
from quorate_core.raw_streams import SendChunk

from quorate_store.model import WatchBatch
from quorate_store.port import Store, Watch
from quorate_store.v3.errors import error_response, stream_error_line
from quorate_store.v3.headers import Headers
from quorate_store.v3.json_messages import json_messages
from quorate_store.v3.openapi import BASE64, FLAG, INT64, VERSIONS, choice, operation
from quorate_store.v3.watch_messages import (
    STREAM_WATCH_ID,
    CancelWatch,
    CreateWatch,
    EventEncoder,
    Filter,
    WatchRequest,
    decode_watch_request,
    encode_events,
    encode_reply,
    only_wanted,
)

WATCHES_MAX = 10_000
"""Of one stream; the store has a limit of its own for all of them."""
PROGRESS_INTERVAL_S = 600.0
"""Between two bookmarks of a watch with `progress_notify` on which nothing happens; etcd's own."""


class WatchEndpoints:
    def __init__(self, store: Store, headers: Headers, progress_interval_s: float = PROGRESS_INTERVAL_S) -> None:
        self._store = store
        self._headers = headers
        self._progress_interval_s = progress_interval_s
        self._encoder = EventEncoder()

    def mount(self, api: FastAPI) -> None:
        schema = operation(_PROPERTIES)
        for version in VERSIONS:
            path = f"/{version}/watch"
            add_raw_exchange(api, path, self.watch, "Watch keys", schema, error_response, stream_error_line)

    async def watch(self, body: AsyncIterator[bytes], send: SendChunk) -> None:
        """One stream, until it is cancelled. Raises InvalidRequest for a message that cannot be read, and what the
        store raises."""
        try:
            async with asyncio.TaskGroup() as tasks:
                stream = _Stream(self._store, self._headers, self._encoder, send, tasks, self._progress_interval_s)
                async for message in json_messages(body):
                    request = decode_watch_request(message)
                    if request is not None:
                        await stream.take(request)
                await asyncio.Event().wait()
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None


@dataclass(eq=False, slots=True)
class _Served:
    """One watch of a stream."""

    watch_id: int
    request: CreateWatch
    is_answered: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    watch: Watch | None = None
    """None until it is open."""
    is_notified: bool = False
    """A bookmark of its own is on its way to the client."""
    has_sent: bool = False
    """Since the last interval."""


class _Stream:
    """The watches of one stream."""

    def __init__(
        self,
        store: Store,
        headers: Headers,
        encoder: EventEncoder,
        send: SendChunk,
        tasks: asyncio.TaskGroup,
        progress_interval_s: float,
    ) -> None:
        self._store = store
        self._headers = headers
        self._encoder = encoder
        self._send = send
        self._sending = asyncio.Lock()
        self._tasks = tasks
        self._progress_interval_s = progress_interval_s
        self._notifying: asyncio.Task[None] | None = None
        self._watches: dict[int, _Served] = {}
        self._next_id = 0
        self._awaited: set[_Served] = set()
        """Whose bookmarks the stream's progress waits for."""
        self._progress_revision = 0
        """The lowest of those that have come, 0 if none has."""
        self._is_progress_wanted = False
        self._is_progress_wanted_again = False

    async def take(self, request: WatchRequest) -> None:
        match request:
            case CreateWatch():
                await self._create(request)
            case CancelWatch(watch_id):
                await self._cancel(watch_id)
            case _:
                await self._ask_for_progress()

    async def _create(self, request: CreateWatch) -> None:
        reason = self._refusal_of(request)
        if reason:
            await self._say_refused(reason)
            return
        served = _Served(request.watch_id or self._free_id(), request)
        self._watches[served.watch_id] = served
        if request.progress_notify and self._notifying is None:
            self._notifying = self._tasks.create_task(self._notify())
        served.task = self._tasks.create_task(self._serve(served))
        await served.is_answered.wait()

    def _refusal_of(self, request: CreateWatch) -> str:
        if request.is_empty:
            return "mvcc: watcher range is empty"
        if request.watch_id in self._watches and request.watch_id != 0:
            return "mvcc: duplicate watch ID provided on the WatchStream"
        return f"a stream may have {WATCHES_MAX} watches" if len(self._watches) >= WATCHES_MAX else ""

    def _free_id(self) -> int:
        while self._next_id in self._watches:
            self._next_id += 1
        self._next_id += 1
        return self._next_id - 1

    async def _say_refused(self, reason: str) -> None:
        header = await self._headers.newest()
        await self._send(encode_reply(header, STREAM_WATCH_ID, created=True, canceled=True, cancel_reason=reason))

    async def _serve(self, served: _Served) -> None:
        """A watch, from its answer to its end."""
        try:
            await self._follow(served)
            raise Unavailable("the store has ended the watch; begin it anew from the revision after the last one seen")
        except Compacted as error:
            await self._on_compacted(served, int(error.extensions.get("compact_revision", 0)))
        except QuorateError as error:
            if served.is_answered.is_set():
                raise
            self._drop(served)
            await self._say_refused(error.detail)
        finally:
            # NB: nothing here may wait: a client that takes nothing any more is left by cancelling.
            self._drop(served)
            served.is_answered.set()

    async def _follow(self, served: _Served) -> None:
        request = served.request
        start = request.start_revision if request.start_revision >= 0 else 1
        async with self._store.watch(
            request.key, request.range_end, start_revision=start, previous=request.previous
        ) as watch:
            batches = aiter(watch)
            header = await (self._headers.newest() if start else self._headers.at((await anext(batches)).revision))
            await self._send(encode_reply(header, served.watch_id, created=True))
            served.watch = watch
            served.is_answered.set()
            async for batch in batches:
                if batch.events:
                    await self._send_events(served, batch)
                else:
                    await self._on_bookmark(served, batch.revision)

    async def _send_events(self, served: _Served, batch: WatchBatch) -> None:
        request = served.request
        wanted = only_wanted(batch, request.filters)
        if not wanted.events:
            return
        served.has_sent = True
        for part in self._encoder.encode(wanted, fragment=request.fragment):
            header = await self._headers.at(part.revision)
            async with self._sending:  # or each watch of a stream whose reader is slow would hold its own line
                await self._send(encode_events(header, served.watch_id, part))

    async def _on_compacted(self, served: _Served, compact_revision: int) -> None:
        if not served.is_answered.is_set():
            await self._send(encode_reply(await self._headers.newest(), served.watch_id, created=True))
        self._drop(served)
        header = await self._headers.without_revision()
        await self._send(encode_reply(header, served.watch_id, canceled=True, compact_revision=compact_revision))
        await self._say_progress_if_complete()

    async def _cancel(self, watch_id: int) -> None:
        served = self._watches.get(watch_id)
        if served is None or served.task is None:
            return
        served.task.cancel()
        await asyncio.wait({served.task})
        await self._send(encode_reply(await self._headers.newest(), watch_id, canceled=True))
        await self._say_progress_if_complete()

    def _drop(self, served: _Served) -> None:
        if self._watches.get(served.watch_id) is served:
            del self._watches[served.watch_id]
        self._awaited.discard(served)

    async def _ask_for_progress(self) -> None:
        """One question is under way at a time. One more is remembered, and stands for all that come meanwhile."""
        if self._is_progress_wanted:
            self._is_progress_wanted_again = True
            return
        self._is_progress_wanted = True
        self._progress_revision = 0
        self._awaited = {served for served in self._watches.values() if served.watch is not None}
        if not self._awaited:
            await self._say_progress_if_complete()
        for served in tuple(self._awaited):
            if served.watch is not None:
                await served.watch.request_progress()

    async def _on_bookmark(self, served: _Served, revision: int) -> None:
        if served.is_notified:
            served.is_notified = False
            await self._send(encode_reply(await self._headers.at(revision), served.watch_id))
        if served in self._awaited:
            self._awaited.remove(served)
            self._progress_revision = min(revision, self._progress_revision or revision)
            await self._say_progress_if_complete()

    async def _say_progress_if_complete(self) -> None:
        if not self._is_progress_wanted or self._awaited:
            return
        self._is_progress_wanted = False
        revision = self._progress_revision
        header = await (self._headers.at(revision) if revision else self._headers.newest())
        await self._send(encode_reply(header, STREAM_WATCH_ID))
        if self._is_progress_wanted_again:
            self._is_progress_wanted_again = False
            await self._ask_for_progress()

    async def _notify(self) -> None:
        """Ask for a bookmark of each quiet watch that wants them, every interval."""
        while True:
            await asyncio.sleep(self._progress_interval_s)
            for served in tuple(self._watches.values()):
                if served.watch is not None and served.request.progress_notify and not served.has_sent:
                    served.is_notified = True
                    await served.watch.request_progress()
                served.has_sent = False


_CREATE_PROPERTIES = {
    "key": BASE64,
    "range_end": BASE64,
    "start_revision": INT64,
    "progress_notify": FLAG,
    "filters": {"type": "array", "items": choice(list(Filter.__members__))},
    "prev_kv": FLAG,
    "watch_id": INT64,
    "fragment": FLAG,
}
_PROPERTIES = {
    "create_request": {"type": "object", "properties": _CREATE_PROPERTIES},
    "cancel_request": {"type": "object", "properties": {"watch_id": INT64}},
    "progress_request": {"type": "object"},
}
