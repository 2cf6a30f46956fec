"""One watch of the store, as it comes from one endpoint: whole revisions, in order.

A line of the stream carries one revision or several. Fragments are asked for, so that no line is much longer than what
a request may write: then the last revision of a line may go on in the next one, and is held back until it is whole.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby

from quorate_core.errors import Compacted, InvalidRequest, Unavailable

from quorate_store.etcd.client import OpenStream, StoreClient
from quorate_store.etcd.errors import error_of_text
from quorate_store.etcd.messages import WatchAnswer, decode_line, decode_watch, encode_watch
from quorate_store.model import Event

LINE_BYTES_MAX = 64 * 1024 * 1024
"""etcd cuts lines at 2 MiB of what is 5 times as long in JSON when keys and values are small."""
EVENTS_DECODED_MAX = 512
"""In one turn of the event loop: about a millisecond."""
WATCH_PATH = "/v3/watch"

Revisions = list[tuple[int, list[Event]]]
"""Each with its events, whole, oldest first."""


class WatchStream:
    """Iterate it for what has changed. It ends by an error: Compacted, with `compact_revision`, when history does not
    reach back to where it begins, Unavailable when it breaks."""

    def __init__(self, source: OpenStream) -> None:
        self.source = source
        self._lines = Lines(source)
        self._held: list[Event] = []
        """Of a revision that may not be whole yet."""

    def __aiter__(self) -> AsyncIterator[Revisions]:
        return self

    async def __anext__(self) -> Revisions:
        while True:
            answer = await self._next_answer()
            self.source.answered()
            self.source.client.note(answer.header)
            if answer.canceled:
                raise _end(answer)
            revisions = await self._whole_revisions(answer)
            if revisions:
                return revisions

    async def _next_answer(self) -> WatchAnswer:
        line = decode_line(await self._lines.next_line())
        if line.error is not None:
            raise error_of_text(line.error.grpc_code, line.error.message, is_write=False)
        return decode_watch(line.result)

    async def _whole_revisions(self, answer: WatchAnswer) -> Revisions:
        events = self._held
        wire_events = answer.wire_events
        for first in range(0, len(wire_events), EVENTS_DECODED_MAX):
            if first:
                await asyncio.sleep(0)
            events += answer.events(first, first + EVENTS_DECODED_MAX)
        self._held = []
        revisions = [(revision, list(group)) for revision, group in groupby(events, _revision_of)]
        if answer.fragment and revisions:
            _, self._held = revisions.pop()
        return revisions


@asynccontextmanager
async def watch_stream(
    client: StoreClient, key: bytes, range_end: bytes, start_revision: int, *, previous: bool
) -> AsyncIterator[WatchStream]:
    """Of the first endpoint that begins one. Raises NotProposed when none does, and what the store refuses it with."""
    body = encode_watch(key, range_end, start_revision, previous=previous)
    async with client.stream(WATCH_PATH, body) as source:
        yield WatchStream(source)


def _end(answer: WatchAnswer) -> Compacted | InvalidRequest | Unavailable:
    if answer.compact_revision:
        return Compacted(
            f"history before revision {answer.compact_revision} is compacted", compact_revision=answer.compact_revision
        )
    if answer.created:
        return InvalidRequest(f"the watch is refused: {answer.cancel_reason or 'without a reason'}")
    return Unavailable(f"the watch was cancelled: {answer.cancel_reason or 'without a reason'}")


def _revision_of(event: Event) -> int:
    return event.kv.mod_revision


class Lines:
    """A stream, line by line, however it was cut on its way."""

    def __init__(self, source: OpenStream) -> None:
        self._source = source
        self._kept = bytearray()
        """What has arrived and was not taken."""
        self._looked_at = 0
        """How much of it is known to have no end of a line."""

    async def next_line(self) -> bytes:
        """Raises Unavailable at the end, when it breaks, and for a line over LINE_BYTES_MAX."""
        while (end := self._kept.find(b"\n", self._looked_at)) < 0:
            self._looked_at = len(self._kept)
            if self._looked_at > LINE_BYTES_MAX:
                raise Unavailable(f"the watch has a line of over {LINE_BYTES_MAX} bytes")
            chunk = await self._source.chunk()
            if not chunk:
                raise Unavailable("the watch was ended by the endpoint")
            self._kept += chunk
        line = bytes(self._kept[:end])
        del self._kept[: end + 1]
        self._looked_at = 0
        return line
