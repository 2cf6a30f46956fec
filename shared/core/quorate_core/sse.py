"""Server-Sent Events (WHATWG HTML, section 9.2): encoding, and an ASGI response that ends when the server stops.

`encode_event` is pure. `EventStream` sends what an async iterator yields, a comment when nothing was sent for a
while (so that both sides notice a dead peer), and stops at the server's shutdown, on disconnect, and when a client
has not taken its bytes for `SEND_STALL_S`.
"""

import asyncio
from collections.abc import AsyncIterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quorate_core.errors import PayloadTooLarge, RequestTimedOut
from quorate_core.http_protocol import ABORT_EXTENSION, STREAM_EXTENSION

KEEPALIVE_INTERVAL_S = 5.0
SEND_STALL_S = 10.0
LAST_SEND_S = 1.0
"""For the end of the stream to be taken, once everything before it was."""
KEEPALIVE = b": keep-alive\n\n"
_END = {"type": "http.response.body", "body": b"", "more_body": False}
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

    def __init__(
        self,
        events: AsyncIterator[bytes],
        stopping: asyncio.Event,
        *,
        stall_s: float = SEND_STALL_S,
        keepalive_s: float = KEEPALIVE_INTERVAL_S,
    ) -> None:
        super().__init__()
        self._stall_s = stall_s
        self._keepalive_s = keepalive_s
        self._events = events
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("extensions", {})[STREAM_EXTENSION] = {}
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        outlet = _Outlet(send)
        async with asyncio.TaskGroup() as group:
            overseeing = group.create_task(self._oversee(outlet))
            ends = [
                overseeing,
                group.create_task(self._send_events(outlet)),
                group.create_task(_until_disconnected(receive)),
                group.create_task(self._until_stopping()),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in ends:
                task.cancel()
        is_stalled = not overseeing.cancelled() and overseeing.result()
        try:
            async with asyncio.timeout(0 if is_stalled else LAST_SEND_S):
                await send(_END)
        except TimeoutError:
            # The client does not read, so an orderly end would wait for it with all that is buffered.
            _abort(scope)
            await send(_END)  # to nobody: it only tells the server that the answer is complete

    async def _until_stopping(self) -> None:
        await self._stopping.wait()

    async def _send_events(self, outlet: "_Outlet") -> None:
        """Until they end, or the client has gone."""
        try:
            await outlet.send(KEEPALIVE)
            async for chunk in self._events:
                await outlet.send(chunk)
        except OSError:
            return
        finally:
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()

    async def _oversee(self, outlet: "_Outlet") -> bool:
        """Send a comment whenever nothing was sent for a while. Returns True when the client does not take what it is
        sent (it resumes from its last revision), and False when it has gone.

        One timer a stream, which looks now and then: a task and two timers for each event would cost more than the
        event.
        """
        clock = asyncio.get_running_loop()
        while True:
            if outlet.stuck_since_s is not None:
                left_s = outlet.stuck_since_s + self._stall_s - clock.time()
                if left_s <= 0:
                    return True
            else:
                left_s = outlet.quiet_since_s + self._keepalive_s - clock.time()
                if left_s <= 0:
                    try:
                        async with asyncio.timeout(self._stall_s):
                            await outlet.send(KEEPALIVE)
                    except TimeoutError:
                        return True
                    except OSError:
                        return False
                    continue
            await asyncio.sleep(min(left_s, self._stall_s))


class _Outlet:
    """The way to the client. A chunk is written whole, so that a comment never falls into an event; what waits is the
    client's buffer. `stuck_since_s`: since when a chunk waits; None when none does."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._clock = asyncio.get_running_loop()
        self.quiet_since_s = self._clock.time()
        self.stuck_since_s: float | None = None

    async def send(self, chunk: bytes) -> None:
        self.stuck_since_s = self._clock.time()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self.stuck_since_s = None
        self.quiet_since_s = self._clock.time()


def _abort(scope: Scope) -> None:
    extension = scope.get("extensions", {}).get(ABORT_EXTENSION)
    if extension is not None:
        extension["abort"]()


async def _until_disconnected(receive: Receive) -> None:
    """Or until the client sends more of a body than anybody has asked it for."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except (PayloadTooLarge, RequestTimedOut):
        return
