"""uvicorn's HTTP protocol with the bounds that it does not have: on heads, in bytes, fields and time, on connections,
and on clients that do not read.

A request's head must be complete within HEAD_TIMEOUT_S of its first byte (of the connection, for the first one), and
have at most HEAD_BYTES_MAX bytes in HEAD_FIELDS_MAX fields. What breaks this, or is no HTTP, is answered with
problem+json, before any credential is looked at. What is left of the body of a request that was answered before it had
come is thrown away, for UNREAD_BODY_TIMEOUT_S; when it is not over then, the connection is. A response may find
`ABORT_EXTENSION` in its scope's extensions: a function that ends the connection at once, for a client that does not
take its bytes.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quorate_core.errors import PROBLEM_URN, Problem, Retry

HEAD_BYTES_MAX = 65_536
HEAD_FIELDS_MAX = 100
HEAD_TIMEOUT_S = 10.0
UNREAD_BODY_TIMEOUT_S = 5.0
"""Long enough for a client that sends on and reads then, and as long as nginx lingers."""
CONNECTIONS_MAX = 20_000
"""Of one server: as many as a node has watchers."""
ABORT_EXTENSION = "quorate.abort"


class _HeadRefused(Exception):
    """Raised through the parser, which stops at it."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. In a head from `on_message_begin` to `on_headers_complete`, and in a body from there to
    `on_message_complete`."""

    head_timeout_s = HEAD_TIMEOUT_S
    unread_body_timeout_s = UNREAD_BODY_TIMEOUT_S

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = False
        self._head_bytes = 0
        """Of the head being read, as far as earlier reads have brought it."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_body = False
        self._unread_body_timer: asyncio.TimerHandle | None = None
        """Runs from the end of an answer to the end of the body that it did not wait for."""
        self._refusal: tuple[HTTPStatus, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= CONNECTIONS_MAX:
            transport.abort()
            return
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_unread_body_timer()
        if self.transport is not None:  # None for one that was not admitted
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head:
            self._head_bytes = 0
        elif self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head may have {HEAD_BYTES_MAX} bytes")
        elif self._head_timer is None:
            self._start_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self.scope["extensions"] = {ABORT_EXTENSION: {"abort": self.transport.abort}}

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEAD_FIELDS_MAX:
            self._refusal = (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head may have {HEAD_FIELDS_MAX} fields")
            raise _HeadRefused
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES_MAX:
            self._refusal = (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head may have {HEAD_BYTES_MAX} bytes")
            raise _HeadRefused
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_unread_body_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            self._unread_body_timer = self.loop.call_later(self.unread_body_timeout_s, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """The parser has stopped: at what is no HTTP, or at a refusal of ours."""
        status, detail = self._refusal or (HTTPStatus.BAD_REQUEST, "this is not an HTTP/1.1 request")
        self._refuse(status, detail)

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        self._in_head = False
        self._stop_head_timer()
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
