"""A client's connection: requests read one after the other, pipelined ones answered in order, everything bounded.

Theory of operation. The connection is

- *between requests*: what has come of the next head is in `_buffer`;
- *in an exchange*: `_exchange` is set until the answer has been passed on whole; `_body` until the request's body is
  complete. What comes after the body waits in `_buffer`, and reading is paused when that is full;
- *tunnelled*: a WebSocket handshake has been answered with 101; what comes and goes is the tunnel's from then on;
- *closing*: nothing more is read, what is written is flushed. When the client was still sending, it first *lingers*:
  it says that it will write no more and throws away what comes, since closing at once would reset the connection and
  could destroy the answer before the client has read it (RFC 9112, section 9.6).

An end of the client's stream counts as leaving, in every state: nothing else tells that a client has given up.

The gateway draining ends a connection when its answer has been given. A tunnel is left alone until the drain's end,
since nothing can be said to its client between two frames that the gateway does not read.
"""

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, cast

from quorate_core.errors import Retry

from quorate_gateway.matching import CompiledRoute
from quorate_gateway.policies.admission import Admission
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.limit_keys import client_key
from quorate_gateway.proxy.bodies import ChunkedBody, LengthBody, request_body
from quorate_gateway.proxy.exchange import Exchange
from quorate_gateway.proxy.framing import RequestFields, RequestHead, read_request_head, upgrade_refused
from quorate_gateway.proxy.refusals import Refusal, Reply, encode_answer, encode_refusal, encode_reply
from quorate_gateway.proxy.tunnel import Tunnel, TunnelUpstream
from quorate_gateway.snapshot import EMPTY

if TYPE_CHECKING:
    from quorate_gateway.proxy.plane import DataPlane

PIPELINED_BYTES_MAX = 65_536
"""Of requests that wait for the one before; reading pauses above."""
ANSWERS_A_TURN_MAX = 50
"""Requests of one client that the gateway answers itself in one turn of the event loop."""
WRITE_BUFFER_BYTES_MAX = 262_144
LINGER_S = 2.0
LINGER_BYTES_MAX = 1_048_576
FLUSH_TIMEOUT_S = 10.0
_ANSWERS = (Refusal, Reply)
"""What policies give in the place of an admission. NB: `Refusal | Reply` would be made anew for each request."""
_NOBODY = Caller(b"")
_FREE = Admission(_NOBODY)
_TCP_CLOSE = 7
"""The state of a connection that was reset (tcp_states.h, Linux)."""
_RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing resets the connection (socket(7))."""


class ClientConnection(asyncio.Protocol):
    __slots__ = (
        "_address",
        "_admission",
        "_body",
        "_body_held",
        "_buffer",
        "_caller",
        "_closing",
        "_exchange",
        "_fields",
        "_host",
        "_is_proxy",
        "_is_secure",
        "_lingered_bytes",
        "_lingering",
        "_pending_head",
        "_plane",
        "_reading",
        "_refusal",
        "_scanned",
        "_since_s",
        "_stays_open",
        "_tunnel",
        "_write_full",
        "counted_as",
        "forwarded",
        "transport",
    )  # fmt: skip

    def __init__(self, plane: "DataPlane", refusal: Refusal | None = None) -> None:
        """`refusal` is what its client is to be answered at once, whatever it says."""
        self._plane = plane
        self._refusal = refusal
        self._address = b""
        """The peer's: the client's own, or that of a trusted proxy."""
        self._is_proxy = False
        self._is_secure = False
        self._caller = _NOBODY
        self._admission = _FREE
        """Of a route that has no policy."""
        self._host: bytes | None = None
        """That `forwarded` was made for."""
        self.counted_as = b""
        """By which the limit of connections knows the client; empty for a trusted proxy, which has many."""
        self._buffer = b""
        self._scanned = 0
        self._fields: RequestFields | None = None
        self._pending_head: RequestHead | None = None
        """The head of the request that is being answered."""
        self._exchange: Exchange | None = None
        self._tunnel: Tunnel | None = None
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
        return self._exchange is not None or bool(self._buffer) or self._closing or self._tunnel is not None

    @property
    def state(self) -> str:
        """For people: `idle`, `reading`, `exchange`, `tunnel`, `lingering` or `closing`."""
        if self._closing:
            return "lingering" if self._lingering else "closing"
        if self._exchange is not None:
            return "exchange"
        if self._tunnel is not None:
            return "tunnel"
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
        self._is_secure = transport.get_extra_info("sslcontext") is not None
        self._is_proxy = self._plane.forwarding.trusts(self._address)
        self._take_client(self._address)
        if not self._is_proxy:
            self.counted_as = self._caller.client_key
        self._since_s = self._plane.monotonic_s()
        refusal = self._plane.admit(self) or self._refusal
        if refusal is not None:
            self._stays_open = False
            self._answer_itself(refusal, None, unread=True)

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self._plane.client_lost(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()
        if self._tunnel is not None:
            self._tunnel.client_gone()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            self._throw_away(data)
        elif self._body is not None:
            self._take_body(data)
        elif self._tunnel is not None:
            self._tunnel.client_sent(data)
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
        elif self._tunnel is not None:
            self._tunnel.client_paused(True)

    def resume_writing(self) -> None:
        self._write_full = False
        if self._exchange is not None:
            self._exchange.client_paused(False)
        elif self._tunnel is not None:
            self._tunnel.client_paused(False)
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

    def unsent_bytes(self) -> int:
        return self.transport.get_write_buffer_size()

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

    def tunnelled(
        self, upstream: TunnelUpstream, rest: bytes, idle_timeout_s: float, ends_at_s: float | None = None
    ) -> Tunnel:
        """The exchange has ended with a 101, which is written: from here on a tunnel to `upstream`, which is to call it
        as it called the exchange. `rest` is what the upstream sent behind its 101; for the others see `Tunnel`."""
        self._exchange = None
        tunnel = self._tunnel = Tunnel(self, upstream, self._plane.monotonic_s, idle_timeout_s, ends_at_s)
        if rest:
            tunnel.received(rest)
        early, self._buffer = self._buffer, b""
        if early:
            tunnel.client_sent(early)
        if self._write_full:
            tunnel.client_paused(True)
        self._reading = True
        # NB: the upstream's connection may have said that it is full before it could tell this tunnel.
        tunnel.upstream_paused(upstream.transport.get_write_buffer_size() > WRITE_BUFFER_BYTES_MAX)
        return tunnel

    def tunnel_ended(self, *, cut_off: bool) -> None:
        self._tunnel = None
        if cut_off:
            self.cut_short()
        else:
            self._close(unread=False)

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
        limits = self._plane.limits
        is_held = not self._reading or (self._tunnel is not None and self._tunnel.holds_client)
        if is_held and not self._closing and self._was_reset():
            self.transport.abort()
            return
        if self._exchange is not None:
            self._exchange.expire(now_s)
        elif self._tunnel is not None:
            self._tunnel.expire(now_s)
        elif self._closing:
            if waited_s >= (LINGER_S if self._lingering else FLUSH_TIMEOUT_S):
                self.transport.abort()
        elif self._buffer:
            if waited_s >= limits.head_timeout_s and not self._write_full:
                detail = f"the head of a request must come within {limits.head_timeout_s:g} s"
                self._answer_itself(Refusal("request-timeout", 408, detail), None, unread=True)
        elif waited_s >= limits.idle_timeout_s:
            self._close(unread=False)

    def _was_reset(self) -> bool:
        """Whether the client is gone, asked of the kernel: of a connection that is not read the event loop hears
        nothing. An orderly end stands behind what was not read yet, and is seen in its turn."""
        connection = self.transport.get_extra_info("socket")
        return connection is not None and connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE

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
                if self._scanned < 2 and data[:2] == b"\r\n":
                    self._buffer = data[2:]  # an empty line before a request is to be ignored (RFC 9112, section 2.2)
                    self._scanned = 0
                    continue
                self._pending_head = None
                head = read_request_head(data, self._fields, self._scanned, self._plane.limits)
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
        plane = self._plane
        method, target, path, minor, fields, _end = self._pending_head = head
        if fields is not self._fields:
            self._fields = fields
            if self._is_proxy or fields.host != self._host:
                self._describe_client(head)
        self._stays_open = not fields.wants_close if minor else fields.wants_keep_alive
        length = fields.length
        self._body = body = request_body(length) if length else None
        first = b""
        if body is None:
            self._buffer = rest
        else:
            first = self._feed(body, rest)
        route = plane.snapshot.table.match(method, path, fields.host, fields.block, target)
        if route is None:
            self._not_routed(head)
            return
        if fields.upgrade and not route.websocket:
            self._answer_itself(upgrade_refused(fields.upgrade), route, unread=False)
            return
        if body is not None and max(length, body.received_bytes) > route.request_bytes_max:
            self._answer_itself(_too_large(route), route, unread=self._body is not None)
            return
        now_s = plane.monotonic_s()
        admission: Admission | asyncio.Future[Admission | Refusal] = self._admission
        if route.admit is not None:
            admitted = route.admit(head, self._caller, now_s)
            if isinstance(admitted, _ANSWERS):
                self._answer_by_policy(admitted, route)
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

    def _describe_client(self, head: RequestHead) -> None:
        """Who asks, and what the service is told of it; see `quorate_gateway.proxy.forwarding`."""
        forwarding, fields = self._plane.forwarding, head.fields
        describe = forwarding.describe if self._is_proxy else forwarding.describe_direct
        described = describe(self._address, fields, is_secure=self._is_secure, minor=head.minor)
        self._host = fields.host
        self.forwarded = described.fields
        if self._is_proxy:
            self._take_client(described.client)

    def _take_client(self, address: bytes) -> None:
        key = client_key(address)
        if key != self._caller.client_key:
            self._caller = Caller(key)
            self._admission = Admission(self._caller)

    # Answering and closing.

    def _not_routed(self, head: RequestHead) -> None:
        snapshot, fields = self._plane.snapshot, head.fields
        if snapshot is EMPTY:
            refusal = Refusal("no-snapshot", 503, "the gateway has not heard of any routes yet", Retry.SAFE)
            self._answer_itself(refusal, None, unread=self._body is not None)
            return
        methods = snapshot.table.methods_elsewhere(head.path, fields.host, fields.block, head.target)
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
        keeps_alive = self._may_keep_alive(unread=unread)
        self.write(
            encode_answer(
                200, "application/json", self._plane.welcome, now_s=self._plane.wall_s(),
                keeps_alive=keeps_alive, head_only=head.method == b"HEAD",
            )
        )  # fmt: skip
        self._answered_itself(keeps_alive=keeps_alive, unread=unread)

    def _answer_by_policy(self, answer: Refusal | Reply, route: CompiledRoute) -> None:
        """What the route's policies answer in the service's place."""
        unread = self._body is not None
        self._plane.counters.route(route.name).count(answer.status, 0.0)
        if isinstance(answer, Refusal):
            self._answer_itself(answer, route, unread=unread)
            return
        keeps_alive = self._may_keep_alive(unread=unread)
        self.write(
            encode_reply(
                answer, request_id=self._plane.new_request_id(), now_s=self._plane.wall_s(), keeps_alive=keeps_alive
            )
        )
        self._answered_itself(keeps_alive=keeps_alive, unread=unread)

    def _may_keep_alive(self, *, unread: bool) -> bool:
        """After an answer of the gateway's own. A client of HTTP/1.0 would have to be told, and is not."""
        head = self._pending_head
        return self.stays_open() and not unread and (head is None or head.minor == 1)

    def _answered_itself(self, *, keeps_alive: bool, unread: bool) -> None:
        self._since_s = self._plane.monotonic_s()
        if not keeps_alive:
            self._close(unread=unread)
        elif not self._reading:
            self._set_reading()

    def _answer_itself(self, refusal: Refusal, route: CompiledRoute | None, *, unread: bool) -> None:
        """The gateway's own answer. `unread`: the client may still be sending, so the connection cannot go on."""
        exchange, self._exchange = self._exchange, None
        head = self._pending_head
        keeps_alive = self._may_keep_alive(unread=unread)
        self._plane.counters.refused(refusal.rule)
        self.write(
            encode_refusal(
                refusal, route=None if route is None else route.name,
                request_id=(exchange.request_id if exchange is not None else b"") or self._plane.new_request_id(),
                now_s=self._plane.wall_s(), keeps_alive=keeps_alive,
                head_only=head is not None and head.method == b"HEAD",
            )
        )  # fmt: skip
        if keeps_alive and exchange is not None and self._buffer:
            # Not at once: this may be called by _answer_next, and a client could make the stack as deep as it likes.
            self._since_s = self._plane.monotonic_s()
            asyncio.get_running_loop().call_soon(self._answer_next)
        else:
            self._answered_itself(keeps_alive=keeps_alive, unread=unread)

    def _close(self, *, unread: bool) -> None:
        self._closing = True
        self._body = None
        self._buffer = b""
        self._since_s = self._plane.monotonic_s()
        if not unread or self.transport.is_closing():
            self.transport.close()
            return
        self._lingering = True
        if self.transport.can_write_eof():  # TLS cannot: there the answer's `connection: close` has to say it
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
