"""One watch of the store, as it comes from one endpoint: whole revisions, in order.

A line of the stream carries one revision or several. Fragments are asked for, so that no line is much longer than what
a request may write: then the last revision of a line may go on in the next one, and is held back until it is whole. One
deletion may be of all keys there are; a revision that is too large to be held counts as history that is lost.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby

from quorate_core.errors import Compacted, InvalidRequest, Unavailable

from quorate_store.etcd.client import OpenStream, StoreClient
from quorate_store.etcd.errors import REASON_CHARS_MAX, error_of_text
from quorate_store.etcd.messages import WatchAnswer, decode_line, decode_watch, encode_watch
from quorate_store.etcd.recent import EVENT_BYTES
from quorate_store.model import Event

LINE_BYTES_MAX = 64 * 1024 * 1024
"""etcd cuts lines at 2 MiB of what is 5 times as long in JSON when keys and values are small."""
EVENTS_DECODED_MAX = 512
"""In one turn of the event loop: about a millisecond."""
HELD_BYTES_MAX = 256 * 1024 * 1024
"""Of one revision: keys, values, and EVENT_BYTES for each event. 100,000 keys of 1 kB, deleted at once, are half."""
WATCH_PATH = "/v3/watch"

Revisions = list[tuple[int, list[Event]]]
"""Each with its events, whole, oldest first."""


class WatchStream:
    """Iterate it for what has changed. It ends by an error: Compacted, with `compact_revision`, when history does not
    reach back to where it begins, or has a revision over HELD_BYTES_MAX, Unavailable when it breaks."""

    def __init__(self, source: OpenStream, request_bytes: int) -> None:
        self.source = source
        self._request_bytes = request_bytes
        self._lines = Lines(source)
        self._held: list[Event] = []
        """Of a revision that may not be whole yet."""
        self._held_revision = 0
        self._held_bytes = 0

    @property
    def heard_bytes(self) -> int:
        """How much has come: it grows while a revision is under way that takes many lines."""
        return self._lines.heard_bytes

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
            raise error_of_text(
                line.error.grpc_code, line.error.message, is_write=False, request_bytes=self._request_bytes
            )  # fmt: skip
        return decode_watch(line.result)

    async def _whole_revisions(self, answer: WatchAnswer) -> Revisions:
        whole: Revisions = []
        for first in range(0, len(answer.wire_events), EVENTS_DECODED_MAX):
            if first:
                await asyncio.sleep(0)
            for revision, events in groupby(answer.events(first, first + EVENTS_DECODED_MAX), _revision_of):
                if revision != self._held_revision:
                    self._let_go(whole)
                    self._held_revision = revision
                self._hold(list(events))
        if not answer.fragment:
            self._let_go(whole)
        return whole

    def _hold(self, events: list[Event]) -> None:
        """Raises Compacted over HELD_BYTES_MAX: to read it again would be no better, and who watches can go on behind
        it."""
        self._held += events
        self._held_bytes += sum(EVENT_BYTES + event.size_bytes for event in events)
        if self._held_bytes > HELD_BYTES_MAX:
            revision = self._held_revision
            raise Compacted(
                f"revision {revision} changes over {HELD_BYTES_MAX} bytes, which no watch here can tell of",
                compact_revision=revision + 1,
            )

    def _let_go(self, whole: Revisions) -> None:
        """What is held, which is a whole revision."""
        if self._held:
            whole.append((self._held_revision, self._held))
        self._held, self._held_revision, self._held_bytes = [], 0, 0


@asynccontextmanager
async def watch_stream(
    client: StoreClient, key: bytes, range_end: bytes, start_revision: int, *, previous: bool
) -> AsyncIterator[WatchStream]:
    """Of the first endpoint that begins one. Raises NotProposed when none does, and what the store refuses it with."""
    body = encode_watch(key, range_end, start_revision, previous=previous)
    async with client.stream(WATCH_PATH, body) as source:
        yield WatchStream(source, len(body))


def _end(answer: WatchAnswer) -> Compacted | InvalidRequest | Unavailable:
    reason = answer.cancel_reason[:REASON_CHARS_MAX] or "without a reason"
    if answer.compact_revision:
        return Compacted(
            f"history before revision {answer.compact_revision} is compacted", compact_revision=answer.compact_revision
        )
    if answer.created:
        return InvalidRequest(f"the watch is refused: {reason}")
    return Unavailable(f"the watch was cancelled: {reason}")


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
        self.heard_bytes = 0

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
            self.heard_bytes += len(chunk)
        line = bytes(self._kept[:end])
        del self._kept[: end + 1]
        self._looked_at = 0
        return line
