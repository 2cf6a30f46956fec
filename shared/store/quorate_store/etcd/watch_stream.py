"""One watch of the store, as it comes from one endpoint: whole revisions, in order.

A line of the stream carries one revision or several. Fragments are asked for, so that no line is much longer than what
a request may write: then the last revision of a line may go on in the next one, and is held back until it is whole.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby

import httpx
from quorate_core.errors import Compacted, InvalidRequest, Unavailable

from quorate_store.etcd.client import Endpoint, StoreClient
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
    reach back to where it begins, Unavailable when it breaks. A read that is cancelled breaks it too."""

    def __init__(self, chunks: AsyncIterator[bytes], endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._lines = _lines(chunks)
        self._held: list[Event] = []
        """Of a revision that may not be whole yet."""

    def __aiter__(self) -> AsyncIterator[Revisions]:
        return self

    async def __anext__(self) -> Revisions:
        while True:
            answer = await self._next_answer()
            self.endpoint.answered()
            self.endpoint.client.note(answer.header)
            if answer.canceled:
                raise _end(answer)
            revisions = await self._whole_revisions(answer)
            if revisions:
                return revisions

    async def _next_answer(self) -> WatchAnswer:
        try:
            line = decode_line(await anext(self._lines))
        except StopAsyncIteration:
            raise Unavailable("the watch was ended by the endpoint") from None
        except (httpx.HTTPError, OSError) as error:
            raise Unavailable(f"the watch broke: {str(error) or type(error).__name__}") from error
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
    async with client.stream(WATCH_PATH, body) as (chunks, endpoint):
        yield WatchStream(chunks, endpoint)


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


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Without what comes after the last newline. Raises Unavailable for a line over LINE_BYTES_MAX."""
    kept = bytearray()
    async for chunk in chunks:
        looked_at = len(kept)
        kept += chunk
        begin = 0
        while (end := kept.find(b"\n", looked_at)) >= 0:
            yield bytes(kept[begin:end])
            begin = looked_at = end + 1
        del kept[:begin]
        if len(kept) > LINE_BYTES_MAX:
            raise Unavailable(f"the watch has a line of over {LINE_BYTES_MAX} bytes")
