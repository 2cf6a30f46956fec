"""Server-Sent Events (WHATWG HTML, section 9.2): encoding, and an ASGI response that ends when the server stops.

`encode_event` is pure. `EventStream` sends what an async iterator yields, a comment when nothing was sent for a
while (so that both sides notice a dead peer), and stops at the server's shutdown, on disconnect, and when a client
has not taken its bytes for `SEND_STALL_S`.
"""

import asyncio
from collections.abc import AsyncIterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

KEEPALIVE_INTERVAL_S = 5.0
SEND_STALL_S = 10.0
KEEPALIVE = b": keep-alive\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def encode_event(event: str, data: bytes, event_id: int | None = None) -> bytes:
    """One event. `data` is one line of JSON; `event_id` is the store revision a client resumes from."""
    head = f"event: {event}\n" if event_id is None else f"id: {event_id}\nevent: {event}\n"
    return head.encode() + b"data: " + data + b"\n\n"


class EventStream(Response):
    """A response that streams encoded events from `events` until it ends or `stopping` is set."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], stopping: asyncio.Event) -> None:
        super().__init__()
        self._events = events
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async with asyncio.TaskGroup() as group:
            ends = [
                group.create_task(self._send_events(send)),
                group.create_task(_until_disconnected(receive)),
                group.create_task(self._until_stopping()),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in ends:
                task.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _until_stopping(self) -> None:
        await self._stopping.wait()

    async def _send_events(self, send: Send) -> None:
        iterator = aiter(self._events)
        upcoming: asyncio.Future[bytes] | None = None
        try:
            await _send_chunk(send, KEEPALIVE)
            while True:
                if upcoming is None:
                    upcoming = asyncio.ensure_future(anext(iterator))  # noqa: TID251 - owned by this frame
                done, _ = await asyncio.wait({upcoming}, timeout=KEEPALIVE_INTERVAL_S)
                if not done:
                    await _send_chunk(send, KEEPALIVE)
                    continue
                try:
                    chunk = upcoming.result()
                except StopAsyncIteration:
                    return
                upcoming = None
                await _send_chunk(send, chunk)
        except (TimeoutError, OSError):
            return  # the client is gone or does not read: it resumes from its last revision
        finally:
            if upcoming is not None:
                upcoming.cancel()
                await asyncio.wait({upcoming})
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()


async def _send_chunk(send: Send, chunk: bytes) -> None:
    async with asyncio.timeout(SEND_STALL_S):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
