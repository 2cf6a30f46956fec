"""A client's connection: requests read one after the other, pipelined ones answered in order, everything bounded.

Theory of operation. The connection is

- *between requests*: what has come of the next head is in `_buffer`;
- *in an exchange*: `_exchange` is set until the answer has been passed on whole; `_body` until the request's body is
  complete. What comes after the body waits in `_buffer`, and reading is paused when that is full;
- *closing*: nothing more is read, what is written is flushed. When the client was still sending, it first *lingers*:
  it says that it will write no more and throws away what comes, since closing at once would reset the connection and
  could destroy the answer before the client has read it (RFC 9112, section 9.6).

An end of the client's stream counts as leaving, in every state: nothing else tells that a client has given up.
"""

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, cast

from quorate_core.errors import Retry

from quorate_gateway.matching import CompiledRoute
from quorate_gateway.policies.admission import FREE
from quorate_gateway.policies.limit import client_key
from quorate_gateway.proxy.bodies import ChunkedBody, LengthBody, request_body
from quorate_gateway.proxy.exchange import Exchange
from quorate_gateway.proxy.framing import RequestFields, RequestHead, read_request_head
from quorate_gateway.proxy.refusals import Refusal, encode_answer, encode_refusal
from quorate_gateway.snapshot import EMPTY

if TYPE_CHECKING:
    from quorate_gateway.proxy.plane import DataPlane

PIPELINED_BYTES_MAX = 65_536
"""Of requests that wait for the one before; reading pauses above."""
ANSWERS_A_TURN_MAX = 50
"""Requests of one client that the gateway answers itself in one turn of the event loop."""
WRITE_BUFFER_BYTES_MAX = 262_144
HEAD_TIMEOUT_S = 10.0
"""From the first byte of a head to its last."""
IDLE_TIMEOUT_S = 75.0
LINGER_S = 2.0
LINGER_BYTES_MAX = 1_048_576
FLUSH_TIMEOUT_S = 10.0
_RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing resets the connection (socket(7))."""


class ClientConnection(asyncio.Protocol):
    __slots__ = (
        "_address",
        "_body",
        "_body_held",
        "_buffer",
        "_client_key",
        "_closing",
        "_exchange",
        "_fields",
        "_lingered_bytes",
        "_lingering",
        "_pending_head",
        "_plane",
        "_reading",
        "_scanned",
        "_since_s",
        "_stays_open",
        "_write_full",
        "forwarded",
        "transport",
    )  # fmt: skip

    def __init__(self, plane: "DataPlane") -> None:
        self._plane = plane
        self._address = b""
        self._client_key = b""
        """By which rate limits know the client."""
        self._buffer = b""
        self._scanned = 0
        self._fields: RequestFields | None = None
        self._pending_head: RequestHead | None = None
        """The head of the request that is being answered."""
        self._exchange: Exchange | None = None
        self._body: LengthBody | ChunkedBody | None = None
        self._body_held = False
        self._write_full = False
        self._reading = True
        self._stays_open = True
        self._closing = False
        self._lingering = False
        self._lingered_bytes = 0
        self._since_s = 0.0
        """When the present state was entered: idle, reading a head, lingering or flushing."""
        self.forwarded = b""
        self.transport: asyncio.Transport

    @property
    def is_busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self._exchange is not None or bool(self._buffer) or self._closing

    @property
    def state(self) -> str:
        """For people: `idle`, `reading`, `exchange`, `lingering` or `closing`."""
        if self._closing:
            return "lingering" if self._lingering else "closing"
        if self._exchange is not None:
            return "exchange"
        return "reading" if self._buffer else "idle"

    @property
    def address(self) -> str:
        return self._address.decode()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]).encode("ascii", "replace") if peer else b"unknown"
        self._client_key = client_key(self._address)
        self._since_s = self._plane.monotonic_s()
        refusal = self._plane.admit(self)
        if refusal is not None:
            self._stays_open = False
            self._answer_itself(refusal, None, unread=True)

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self._plane.client_lost(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            self._throw_away(data)
        elif self._body is not None:
            self._take_body(data)
        else:
            self._buffer = self._buffer + data if self._buffer else data
            if self._exchange is None:
                self._answer_next()
            elif len(self._buffer) > PIPELINED_BYTES_MAX:
                self._set_reading()

    def pause_writing(self) -> None:
        self._write_full = True
        if self._exchange is not None:
            self._exchange.client_paused(True)

    def resume_writing(self) -> None:
        self._write_full = False
        if self._exchange is not None:
            self._exchange.client_paused(False)
        elif not self._closing:
            self._answer_next()

    # What an exchange needs.

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def hold_body(self, held: bool) -> None:
        self._body_held = held
        self._set_reading()

    def hold_answer(self) -> bool:
        return self._write_full

    def stays_open(self) -> bool:
        return self._stays_open and not self._plane.draining

    def answered(self, *, keeps_alive: bool, now_s: float) -> None:
        self._exchange = None
        self._since_s = now_s
        if keeps_alive and self._stays_open:
            if self._buffer:
                self._answer_next()
            elif not self._reading:
                self._set_reading()
        else:
            self._close(unread=self._body is not None)

    def refuse(self, refusal: Refusal, route: CompiledRoute | None) -> None:
        self._answer_itself(refusal, route, unread=self._body is not None)

    def cut_short(self) -> None:
        """NB: a reset, since for a body that ends with the connection an orderly end would look like its end."""
        self._exchange = None
        self._closing = True
        connection = self.transport.get_extra_info("socket")
        if connection is not None and not self.transport.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    # What the plane needs.

    def expire(self, now_s: float) -> None:
        """End what has taken too long."""
        waited_s = now_s - self._since_s
        if self._exchange is not None:
            self._exchange.expire(now_s)
        elif self._closing:
            if waited_s >= (LINGER_S if self._lingering else FLUSH_TIMEOUT_S):
                self.transport.abort()
        elif self._buffer:
            if waited_s >= HEAD_TIMEOUT_S and not self._write_full:
                detail = f"the head of a request must come within {HEAD_TIMEOUT_S:g} s"
                self._answer_itself(Refusal("request-timeout", 408, detail), None, unread=True)
        elif waited_s >= IDLE_TIMEOUT_S:
            self._close(unread=False)

    def close_when_answered(self) -> None:
        """The gateway stops: finish what is being answered, and close."""
        if not self.is_busy:
            self._close(unread=False)

    # Reading requests.

    def _answer_next(self) -> None:
        """Begin what the buffer holds, one request after the other. Answers that the gateway makes itself are done at
        once: hence a loop, where calling each other would fill the stack; and a bounded one, so that others have
        their turn."""
        answers_left = ANSWERS_A_TURN_MAX
        while self._buffer and self._exchange is None and not self._closing and not self._write_full:
            answers_left -= 1
            if answers_left < 0:
                asyncio.get_running_loop().call_soon(self._answer_next)
                break
            try:
                data = self._buffer
                if not self._scanned and data[:2] == b"\r\n":
                    self._buffer = data[2:]  # an empty line before a request is to be ignored (RFC 9112, section 2.2)
                    continue
                self._pending_head = None
                head = read_request_head(data, self._fields, self._scanned)
                if head is None:
                    if not self._scanned:
                        self._since_s = self._plane.monotonic_s()
                    self._scanned = len(data)
                    return
                self._scanned = 0
                self._begin(head, data[head.end :])
            except Refusal as refusal:
                self._answer_itself(refusal, None, unread=True)
        if not self._reading or len(self._buffer) > PIPELINED_BYTES_MAX:
            self._set_reading()

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        """A complete head; `rest` is what came after it."""
        plane, fields = self._plane, head.fields
        self._pending_head = head
        if fields is not self._fields:
            self._fields = fields
            self.forwarded = self._forwarded_fields(fields.host)
        self._stays_open = not fields.wants_close if head.minor else fields.wants_keep_alive
        self._body = body = request_body(fields.length) if fields.length else None
        first = b""
        if body is None:
            self._buffer = rest
        else:
            first = self._feed(body, rest)
        route = plane.snapshot.table.match(head.method, head.path, fields.host, fields.block)
        if route is None:
            self._not_routed(head)
            return
        if fields.length > route.request_bytes_max or (
            body is not None and body.received_bytes > route.request_bytes_max
        ):
            self._answer_itself(_too_large(route), route, unread=self._body is not None)
            return
        now_s, admission = plane.monotonic_s(), FREE
        if route.admit is not None:
            admitted = route.admit(fields, self._client_key, now_s)
            if isinstance(admitted, Refusal):
                plane.counters.route(route.name).count(admitted.status, 0.0)
                self._answer_itself(admitted, route, unread=self._body is not None)
                return
            admission = admitted
        exchange = self._exchange = Exchange(plane, self, head, route, now_s, admission)
        exchange.start(first, self._body is None)

    def _feed(self, body: LengthBody | ChunkedBody, data: bytes) -> bytes:
        """What of `data` is to be passed on; when the body is complete, the rest of it waits in the buffer."""
        piece = body.feed(data)
        self._buffer = body.rest
        if body.done:
            self._body = None
        return piece

    def _take_body(self, data: bytes) -> None:
        body, exchange = self._body, self._exchange
        if body is None or exchange is None:
            return
        try:
            piece = self._feed(body, data)
        except Refusal as refusal:
            self._stays_open = False
            exchange.refuse_body(refusal)
            return
        if body.received_bytes > exchange.route.request_bytes_max:
            self._stays_open = False
            exchange.refuse_body(_too_large(exchange.route))
            return
        exchange.body(piece, self._body is None)
        if len(self._buffer) > PIPELINED_BYTES_MAX:
            self._set_reading()

    def _set_reading(self) -> None:
        """Read, or not, as the buffers allow."""
        if self._closing or self.transport.is_closing():
            return
        wanted = not self._body_held if self._body is not None else len(self._buffer) <= PIPELINED_BYTES_MAX
        if wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def _forwarded_fields(self, host: bytes) -> bytes:
        """Who the client is, by its address alone: what it says of itself is never believed (RFC 7239)."""
        address = self._address
        node = b'"[%b]"' % address if b":" in address else address
        if not host:
            return b"\r\nx-forwarded-for: %b\r\nx-forwarded-proto: http\r\nforwarded: for=%b;proto=http" % (
                address,
                node,
            )
        return (
            b"\r\nx-forwarded-for: %b\r\nx-forwarded-proto: http\r\nx-forwarded-host: %b"
            b'\r\nforwarded: for=%b;host="%b";proto=http' % (address, host, node, host)
        )

    # Answering and closing.

    def _not_routed(self, head: RequestHead) -> None:
        snapshot, fields = self._plane.snapshot, head.fields
        if snapshot is EMPTY:
            refusal = Refusal("no-snapshot", 503, "the gateway has not heard of any routes yet", Retry.SAFE)
            self._answer_itself(refusal, None, unread=self._body is not None)
            return
        methods = snapshot.table.methods_elsewhere(head.path, fields.host, fields.block)
        if methods:
            allowed = ", ".join(method.decode() for method in methods)
            detail = f"a route takes {_shown(head.path)} with {allowed} only"
            refusal = Refusal("method-not-routed", 405, detail, fields=(("allow", allowed),))
        elif head.path == b"/" and head.method in (b"GET", b"HEAD"):
            self._welcome(head)
            return
        else:
            refusal = Refusal("no-route", 404, f"no route takes {_shown(head.path)}; GET / says where to look")
        self._answer_itself(refusal, None, unread=self._body is not None)

    def _welcome(self, head: RequestHead) -> None:
        unread = self._body is not None
        keeps_alive = self.stays_open() and not unread
        self.write(
            encode_answer(
                200, "application/json", self._plane.welcome, now_s=self._plane.wall_s(),
                keeps_alive=keeps_alive, head_only=head.method == b"HEAD",
            )
        )  # fmt: skip
        self._since_s = self._plane.monotonic_s()
        if not keeps_alive:
            self._close(unread=unread)

    def _answer_itself(self, refusal: Refusal, route: CompiledRoute | None, *, unread: bool) -> None:
        """The gateway's own answer. `unread`: the client may still be sending, so the connection cannot go on."""
        exchange, self._exchange = self._exchange, None
        head = self._pending_head
        keeps_alive = self.stays_open() and not unread
        self._plane.counters.refused(refusal.rule)
        self.write(
            encode_refusal(
                refusal, route=None if route is None else route.name,
                request_id=exchange.request_id if exchange is not None else self._plane.new_request_id(),
                now_s=self._plane.wall_s(), keeps_alive=keeps_alive,
                head_only=head is not None and head.method == b"HEAD",
            )
        )  # fmt: skip
        self._since_s = self._plane.monotonic_s()
        if not keeps_alive:
            self._close(unread=unread)
        elif exchange is not None and self._buffer:
            # Not at once: this may be called by _answer_next, and a client could make the stack as deep as it likes.
            asyncio.get_running_loop().call_soon(self._answer_next)
        elif not self._reading:
            self._set_reading()

    def _close(self, *, unread: bool) -> None:
        self._closing = True
        self._body = None
        self._buffer = b""
        self._since_s = self._plane.monotonic_s()
        if not unread or self.transport.is_closing():
            self.transport.close()
            return
        self._lingering = True
        self.transport.write_eof()
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()

    def _throw_away(self, data: bytes) -> None:
        self._lingered_bytes += len(data)
        if self._lingered_bytes > LINGER_BYTES_MAX:
            self.transport.abort()


def _too_large(route: CompiledRoute) -> Refusal:
    return Refusal("body-too-large", 413, f"request_bytes_max of this route is {route.request_bytes_max}")


def _shown(path: bytes) -> str:
    """A path as it may stand in an answer: a short one."""
    text = path.decode("latin-1")
    return repr(text if len(text) <= 80 else text[:77] + "...")
