"""Streams both ways at one path: by POST, where the body may still come while the answer leaves, and by WebSocket.

Theory of operation. A handler takes the body as it comes and gives the answer as it is made; it knows nothing of what
carries both. One that answers as it reads is a generator (`StreamHandler`); one in which several tasks write to one
answer, each when it has something, gets a function to send with (`Exchange`). Beside it run the receiver, which hears
of a client that goes away, and a wait for the surface's shutdown. Whichever of the three ends first ends the stream:

- *The handler returns*: the answer is complete.
- *The handler raises*: before the first chunk, that is an ordinary answer with the error's own status; after it, the
  status is spent, and the error's body is the last line of the answer.
- *The client goes*: the handler is cancelled, wherever it waits.
- *The surface stops*: the handler is cancelled and the answer ends in order, so that clients begin anew elsewhere.
- *The client takes nothing* for `SEND_STALL_S`, with its buffers full: the connection is aborted.

Both ways have back-pressure: sending waits while the connection's buffer is full, and of the body no more than
`BODY_BUFFER_BYTES` waits for the handler before nothing more is read from the connection.

Over a WebSocket each message of the client is one line of the body, and each line of the answer is one text message.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from quorate_core.errors import QuorateError, Unavailable
from quorate_core.http_protocol import ABORT_EXTENSION, STREAM_EXTENSION

SEND_STALL_S = 30.0
"""Longer than where a client resumes one thing by its revision: a new stream costs it all its watches."""
BODY_BUFFER_BYTES = 64 * 1024
LAST_SEND_S = 1.0
"""For the end of a stream to be taken, once everything before it was."""

_CLOSE_NORMALLY, _CLOSE_GOING_AWAY, _CLOSE_REFUSED, _CLOSE_FAILED = 1000, 1001, 1008, 1011
"""RFC 6455, section 7.4.1."""

StreamHandler = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
"""From the chunks of a body, in any sizes, to the chunks of an answer, each of whole lines of JSON."""
SendChunk = Callable[[bytes], Awaitable[None]]
Exchange = Callable[[AsyncIterator[bytes], SendChunk], Awaitable[None]]
"""The same with a function to send chunks with, which any task of the handler's may call, once the first chunk has
left."""
OnError = Callable[[QuorateError], Response]
LastLine = Callable[[QuorateError], bytes]


@dataclass(frozen=True, slots=True)
class RawStream:
    """A stream as it is mounted. `on_error` makes an answer from an error, where nothing was said before; `last_line`
    what ends one that has begun."""

    exchange: Exchange
    on_error: OnError
    last_line: LastLine


def as_exchange(handler: StreamHandler) -> Exchange:
    async def exchange(body: AsyncIterator[bytes], send: SendChunk) -> None:
        answers = handler(body)
        async with aclosing(answers):  # type: ignore[type-var]  # handlers are async generators
            async for chunk in answers:
                await send(chunk)

    return exchange


class Channel(Protocol):
    """What carries a stream."""

    async def receive(self) -> tuple[bytes, bool]:
        """A chunk of the body, and whether more may come. Raises ClientGone."""
        ...

    async def send(self, chunk: bytes) -> None: ...
    async def fail(self, response: Response, last_line: bytes) -> None:
        """End with an error: by `response` if nothing was sent before, else by `last_line`."""
        ...

    async def end(self, *, is_stopping: bool) -> None: ...
    def abort(self) -> None:
        """End at once, for a client that takes nothing."""
        ...


class ClientGone(Exception):
    """The client has closed its side of everything."""


class _Body:
    """The chunks of a body, from whoever receives them to the one that iterates over them."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._is_complete = False
        self._changed = asyncio.Event()

    async def fill_from(self, channel: Channel) -> None:
        """Until the client goes."""
        try:
            while True:
                chunk, more = await channel.receive()
                await self._add(chunk, more=more)
        except ClientGone:
            return

    async def _add(self, chunk: bytes, *, more: bool) -> None:
        if chunk and not self._is_complete:
            self._chunks.append(chunk)
            self._waiting_bytes += len(chunk)
        self._is_complete = self._is_complete or not more
        self._changed.set()
        while self._waiting_bytes > BODY_BUFFER_BYTES:
            self._changed.clear()
            await self._changed.wait()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._is_complete:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        chunk = self._chunks.popleft()
        self._waiting_bytes -= len(chunk)
        self._changed.set()
        return chunk


class StreamSession:
    """One stream, from its head to its end."""

    def __init__(
        self,
        stream: RawStream,
        channel: Channel,
        stopping: asyncio.Event,
        hide: Callable[[Exception], QuorateError],
        stall_s: float = SEND_STALL_S,
    ) -> None:
        self._stream = stream
        self._channel = channel
        self._stopping = stopping
        self._hide = hide
        self._stall_s = stall_s
        self._sent_chunks = 0
        self._chunks_on_the_way = 0
        self._failure: QuorateError | None = None

    async def run(self) -> None:
        body = _Body()
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._answer(body))
            gone = group.create_task(body.fill_from(self._channel))
            stopping = group.create_task(self._until_stopping())
            ends = {answering, gone, stopping}
            is_stalled = await self._wait_for_first(ends)
            is_answered, is_gone = answering.done(), gone.done() and not answering.done()
            for task in ends:
                task.cancel()
        if is_stalled or is_gone:
            self._channel.abort()
        await self._end(is_cut=is_stalled or is_gone, is_answered=is_answered)

    async def _end(self, *, is_cut: bool, is_answered: bool) -> None:
        failure = self._failure
        if not is_answered and not self._sent_chunks and not is_cut:
            failure = failure or Unavailable("this server is stopping; ask another one")
        try:
            async with asyncio.timeout(LAST_SEND_S):
                if failure is not None and not is_cut:
                    await self._channel.fail(self._stream.on_error(failure), self._stream.last_line(failure))
                else:
                    await self._channel.end(is_stopping=not is_answered)
        except TimeoutError:
            self._channel.abort()
        except OSError:
            return  # the client has gone, and will not know

    async def _wait_for_first(self, ends: set[asyncio.Task[None]]) -> bool:
        """Wait for the first of `ends`; True when the client has stopped taking chunks before that. Looking now and
        then costs nothing a chunk, as a timer for each would."""
        while True:
            sent_before = self._sent_chunks if self._chunks_on_the_way else -1
            done, _ = await asyncio.wait(ends, timeout=self._stall_s, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return False
            if self._chunks_on_the_way and self._sent_chunks == sent_before:
                return True

    async def _until_stopping(self) -> None:
        await self._stopping.wait()

    async def _answer(self, body: _Body) -> None:
        """Send what the handler makes. How it has failed is kept, for the end of the stream."""
        try:
            await self._stream.exchange(body, self._send)
        except ClientGone:
            return
        except QuorateError as error:
            self._failure = error
        except Exception as error:
            self._failure = self._hide(error)

    async def _send(self, chunk: bytes) -> None:
        self._chunks_on_the_way += 1
        try:
            await self._channel.send(chunk)
            self._sent_chunks += 1
        except OSError as error:
            raise ClientGone from error
        finally:
            self._chunks_on_the_way -= 1


class PostChannel:
    """A stream by POST. `headers` go with the answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = headers
        self._is_started = False
        scope.setdefault("extensions", {})[STREAM_EXTENSION] = {}

    async def receive(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message.get("body", b""), message.get("more_body", False)

    async def send(self, chunk: bytes) -> None:
        if not self._is_started:
            await self._start()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _start(self) -> None:
        self._is_started = True
        headers = [(b"content-type", b"application/json"), *self._headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def fail(self, response: Response, last_line: bytes) -> None:
        if self._is_started:
            await self._send({"type": "http.response.body", "body": last_line + b"\n", "more_body": False})
            return
        response.raw_headers.extend(self._headers)
        await response(self._scope, self._receive, self._send)

    async def end(self, *, is_stopping: bool) -> None:
        if not self._is_started:
            await self._start()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def abort(self) -> None:
        _abort(self._scope)


class WebSocketChannel:
    """A stream by WebSocket, which must be accepted before."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._is_aborted = False

    async def receive(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise ClientGone
        return _payload_of(message) + b"\n", True

    async def send(self, chunk: bytes) -> None:
        for line in chunk.splitlines():
            await self._send({"type": "websocket.send", "text": line.decode()})

    async def fail(self, response: Response, last_line: bytes) -> None:
        await self.send(last_line)
        code = _CLOSE_FAILED if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR else _CLOSE_NORMALLY
        await self._send({"type": "websocket.close", "code": code})

    async def end(self, *, is_stopping: bool) -> None:
        if not self._is_aborted:
            await self._send({"type": "websocket.close", "code": _CLOSE_GOING_AWAY if is_stopping else _CLOSE_NORMALLY})

    def abort(self) -> None:
        self._is_aborted = True
        _abort(self._scope)


def _abort(scope: Scope) -> None:
    extension = scope.get("extensions", {}).get(ABORT_EXTENSION)
    if extension is not None:
        extension["abort"]()


def _payload_of(message: Message) -> bytes:
    text = message.get("text")
    return text.encode() if text is not None else message.get("bytes") or b""


async def accept_websocket(receive: Receive, send: Send) -> bool:
    """Take the opening handshake; False when the client has gone already."""
    if (await receive())["type"] != "websocket.connect":
        return False
    await send({"type": "websocket.accept"})
    return True


async def refuse_websocket(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    """Answer an opening handshake by an ordinary response, where the server can do that, or by closing it."""
    await receive()
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _CLOSE_REFUSED})
        return

    async def send_as_denial(message: Message) -> None:
        await send({**message, "type": "websocket." + message["type"]})

    await response({**scope, "type": "http"}, receive, send_as_denial)
