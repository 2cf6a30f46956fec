"""uvicorn's HTTP protocol with the bounds that it does not have: on heads, in bytes, fields and time, on connections,
and on clients that do not read.

A request's head must be complete within HEAD_TIMEOUT_S of its first byte (of the connection, for the first one), and
have at most HEAD_BYTES_MAX bytes in HEAD_FIELDS_MAX fields; so must the lines of a chunked body, its trailer included,
between one piece of content and the next. What breaks this, or is no HTTP, is answered with problem+json, before any
credential is looked at; behind a request that is being answered, it ends the connection after that answer. What is
left of the body of a request that was answered before it had come is thrown away, for UNREAD_BODY_TIMEOUT_S; when it
is not over then, the connection is. A client that takes nothing of its answer for two times the keep-alive time is cut
off.

A response may find `ABORT_EXTENSION` in its scope's extensions: a function that ends the connection at once, for a
client that does not take its bytes. One that goes on without end says so by `STREAM_EXTENSION`: whatever comes behind
its request is thrown away, so that the end of the connection is seen.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from quorate_core.errors import PROBLEM_URN, Problem, Retry

HEAD_BYTES_MAX = 65_536
HEAD_FIELDS_MAX = 100
HEAD_TIMEOUT_S = 10.0
UNREAD_BODY_TIMEOUT_S = 5.0
"""Long enough for a client that sends on and reads then, and as long as nginx lingers."""
CONNECTIONS_MAX = 20_000
"""Of one server, when nothing else is said: as many as a node has watchers."""
ABORT_EXTENSION = "quorate.abort"
STREAM_EXTENSION = "quorate.stream"
_FIELDS_DETAIL = f"a head may have {HEAD_FIELDS_MAX} fields"
_BYTES_DETAIL = f"a head may have {HEAD_BYTES_MAX} bytes"


class _HeadRefused(Exception):
    """Raised through the parser, which stops at it."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. In a head from `on_message_begin` to `on_headers_complete`, and in a body from there to
    `on_message_complete`."""

    head_timeout_s = HEAD_TIMEOUT_S
    unread_body_timeout_s = UNREAD_BODY_TIMEOUT_S

    def __init__(self, *arguments: Any, connections_max: int = CONNECTIONS_MAX, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connections_max = connections_max
        self._in_head = False
        self._head_bytes = 0
        """Of the head or the trailer being read, as far as reads after its beginning have brought it."""
        self._trailer_fields = 0
        self._is_first_in_read = True
        """Whether nothing of a message came before in this read."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_body = False
        self._unread_body_timer: asyncio.TimerHandle | None = None
        """Runs from the end of an answer to the end of the body that it did not wait for."""
        self._refusal: tuple[HTTPStatus, str] | None = None
        self._running: RequestResponseCycle | None = None
        """Of the request that is being answered; `cycle` is that of the last one that was read."""
        self._is_deaf = False
        """Nothing more is read; the connection ends with the answer that is under way."""
        self._unsent_bytes = -1
        """As last seen when the keep-alive time was over; negative before."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self._connections_max:
            transport.abort()
            return
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_unread_body_timer()
        if self.transport is not None:  # None for one that was not admitted
            self._tell_running()
            super().connection_lost(exc)

    def _tell_running(self) -> None:
        """uvicorn tells only the last request that was read, which may still wait behind others."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf or self.transport is None or self.transport.is_closing():
            return
        self._is_first_in_read = not (self._in_head or self._in_body)
        self._head_bytes = len(data) + (0 if self._is_first_in_read else self._head_bytes)
        super().data_received(data)
        self._look_after()

    def _look_after(self) -> None:
        """What was read has left the connection in the middle of something, or at rest."""
        if self._is_deaf or self.transport.is_closing():
            return
        if (self._in_head or self._in_body) and self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _BYTES_DETAIL)
        elif self._head_timer is None and (self._in_head or self._is_idle):
            # Idle, though something came: empty lines, which stop the keep-alive timer and begin nothing.
            self._start_head_timer()

    @property
    def _is_idle(self) -> bool:
        """Whether no request is being read or answered."""
        return not self._in_body and (self.cycle is None or self.cycle.response_complete)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._trailer_fields = 0
        if self._is_first_in_read:
            self._is_first_in_read = False
        else:
            self._head_bytes = 0  # what came before in this read was of another message
        self.scope["extensions"] = {ABORT_EXTENSION: {"abort": self.transport.abort}}

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # of a trailer, which nobody here wants
            self._trailer_fields += 1
        if max(len(self.headers), self._trailer_fields) >= HEAD_FIELDS_MAX:
            self._refusal = (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _FIELDS_DETAIL)
            raise _HeadRefused
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES_MAX:
            self._refusal = (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _BYTES_DETAIL)
            raise _HeadRefused
        self._in_body = True
        self._head_bytes = 0
        super().on_headers_complete()
        if self._is_streaming:
            self.pipeline.clear()
            self._end_with_answer()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_unread_body_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            self._unread_body_timer = self.loop.call_later(self.unread_body_timeout_s, self.transport.close)

    def timeout_keep_alive_handler(self) -> None:
        unsent_bytes = 0 if self.transport.is_closing() else self.transport.get_write_buffer_size()
        before, self._unsent_bytes = self._unsent_bytes, unsent_bytes or -1
        if not unsent_bytes:
            super().timeout_keep_alive_handler()
        elif 0 <= before <= unsent_bytes:
            self.transport.abort()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _is_streaming(self) -> bool:
        """Whether another request was read while an answer goes on that has no end."""
        running = self._running
        return (
            running is not None
            and running is not self.cycle
            and not running.response_complete
            and STREAM_EXTENSION in running.scope["extensions"]
        )

    def _end_with_answer(self) -> None:
        """Read nothing more, but see when the client goes; close when the running answer has ended."""
        if self._running is not None:
            self._running.keep_alive = False
        self._is_deaf = True
        self._stop_head_timer()
        self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """The parser has stopped: at what is no HTTP, or at a refusal of ours."""
        status, detail = self._refusal or (HTTPStatus.BAD_REQUEST, "this is not an HTTP/1.1 request")
        self._refuse(status, detail)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        self._in_head = False
        self._stop_head_timer()
        running = self._running
        if (
            running is not None
            and not running.response_complete
            and (running.response_started or not running.more_body)
        ):
            self._end_with_answer()  # which is to an earlier request, and may be of something that was done
            return
        body = {
            "type": PROBLEM_URN + "bad-head",
            "title": status.phrase,
            "status": status.value,
            "detail": detail,
            "retry": Retry.NEVER.value,
        }
        content = json.dumps(body).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {Problem.media_type}\r\n"
            f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_unread_body_timer(self) -> None:
        if self._unread_body_timer is not None:
            self._unread_body_timer.cancel()
            self._unread_body_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"a head must be complete within {self.head_timeout_s:g} s")
