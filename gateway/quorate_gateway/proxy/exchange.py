"""One request's life between a client's connection and an upstream's.

Theory of operation. An exchange is

- *seeking*: it has no upstream connection. It asks the pool of the endpoint whose turn it is. A pool that cannot
  connect sends it to another endpoint, within the route's retries;
- *waiting*: the request is sent, or is being sent, and no byte of an answer has come. If the connection ends now, an
  idempotent request whose bytes are all still held is tried again: on a fresh connection to the same endpoint when
  the one that ended had been used before (the upstream closed it just then), otherwise on another endpoint;
- *answering*: the head of the answer has been passed on. What goes wrong now can only be shown by cutting the
  answer short;
- *ended*: it holds no connection, and nobody calls it any more.

The client's connection owes it: `start` once, then `body` for what follows, `client_gone` when the client is lost,
`client_paused` when its buffer is full, and `expire` now and then. It owes the client's connection exactly one of
`answered`, `refuse` and `cut_short`, as its last act.
"""

import random
from typing import TYPE_CHECKING, Protocol

from quorate_core.errors import Retry

from quorate_gateway.matching import CompiledRoute, Endpoint
from quorate_gateway.policies.admission import Admission
from quorate_gateway.policies.circuit import UPSTREAM_FAULT_STATUSES
from quorate_gateway.policies.retry import Failure
from quorate_gateway.proxy.bodies import Body, response_body
from quorate_gateway.proxy.counters import CLIENT_GONE
from quorate_gateway.proxy.framing import (
    CHUNKED,
    UNTIL_CLOSE,
    RequestHead,
    ResponseHead,
    read_response_head,
    without_transfer_encoding,
)
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.proxy.upstream import EndpointPool, PoolExhausted, UpstreamConnection

if TYPE_CHECKING:
    from quorate_gateway.proxy.plane import DataPlane

HELD_BYTES_MAX = 65_536
"""Of a request, for sending it again; and while there is no connection to send it on."""
SERVER_ERRORS = 500
"""Statuses from here on are failures of the upstream (RFC 9110, section 15.6); those below are its answers."""
INFORMATIONAL_MAX = 8
"""Responses of the 1xx class before the final one."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Client(Protocol):
    """What an exchange needs of the client's connection."""

    forwarded: bytes
    """The block of fields that say who the client is."""

    def write(self, data: bytes) -> None: ...

    def hold_body(self, held: bool) -> None:
        """Stop, or go on, reading the request's body."""
        ...

    def hold_answer(self) -> bool:
        """Whether the client's buffer is full."""
        ...

    def stays_open(self) -> bool:
        """Whether another request may follow this one."""
        ...

    def answered(self, *, keeps_alive: bool, now_s: float) -> None: ...

    def refuse(self, refusal: Refusal, route: CompiledRoute | None) -> None: ...

    def cut_short(self) -> None: ...


class Exchange:
    __slots__ = (
        "_body_done",
        "_body_done_s",
        "_endpoint",
        "_held",
        "_held_bytes",
        "_informational",
        "_owes_continue",
        "_partial",
        "_permit",
        "_plane",
        "_pool",
        "_progress_s",
        "_response",
        "_response_body",
        "_tried",
        "_tries",
        "_upstream",
        "_upstream_full",
        "answer_fields",
        "client",
        "counters",
        "head",
        "request_id",
        "route",
        "started_s",
    )  # fmt: skip

    def __init__(
        self,
        plane: "DataPlane",
        client: Client,
        head: RequestHead,
        route: CompiledRoute,
        now_s: float,
        admission: Admission,
    ) -> None:
        self._plane = plane
        self.client = client
        self.head = head
        self.route = route
        self._permit, self.answer_fields = admission
        self.counters = plane.counters.route(route.name)
        self.started_s = self._progress_s = self._body_done_s = now_s
        self.request_id = b""
        self._body_done = False
        self._owes_continue = head.fields.expects_continue and head.minor == 1
        self._upstream_full = False
        self._held: list[bytes] | None = None
        """The request's bytes from its first on; None once they are too many, or no longer wanted."""
        self._held_bytes = 0
        self._endpoint: Endpoint | None = None
        self._pool: EndpointPool | None = None
        self._upstream: UpstreamConnection | None = None
        self._tried: tuple[Endpoint, ...] = ()
        self._tries = 0
        self._partial = b""
        self._informational = 0
        self._response: ResponseHead | None = None
        self._response_body: Body | None = None

    # From the client's side.

    def start(self, body: bytes, body_done: bool) -> None:
        """Send the request with the `body` that has come so far."""
        self.counters.active += 1
        self._body_done = body_done
        request = self._encode_head()
        self._held = [request, body] if body else [request]
        self._held_bytes = len(request) + len(body)
        self._seek(fresh=False)

    def body(self, data: bytes, done: bool) -> None:
        """More of the request's body, framed as it is to be sent."""
        self._progress_s = self._plane.monotonic_s()
        if done:
            self._body_done = True
            self._body_done_s = self._progress_s
        if not data:
            return
        if self._held is not None:
            self._held.append(data)
            self._held_bytes += len(data)
        if self._upstream is not None:
            if self._held_bytes > HELD_BYTES_MAX:
                self._held = None
            self._upstream.transport.write(data)
        elif self._held_bytes > HELD_BYTES_MAX:
            self.client.hold_body(True)

    def client_gone(self) -> None:
        """The client is lost: whatever the upstream would still answer, nobody wants it."""
        now_s = self._plane.monotonic_s()
        if self._permit is not None:
            self._permit.cancelled(now_s)
        self.counters.count(CLIENT_GONE, now_s - self.started_s)
        self._abandon()

    def client_paused(self, paused: bool) -> None:
        if self._upstream is not None and not self._upstream.transport.is_closing():
            if paused:
                self._upstream.transport.pause_reading()
            else:
                self._upstream.transport.resume_reading()

    def refuse_body(self, refusal: Refusal) -> None:
        """The body turned out to be one that must not be passed on."""
        if self._response is None:
            self._refuse(refusal)
        else:
            self._cut_short(by_upstream=False)

    def expire(self, now_s: float) -> None:
        """End it if it has taken too long in any way; tell the breaker when it has passed the mark of slow calls."""
        route, permit = self.route, self._permit
        if permit is not None and now_s >= permit.slow_at_s:
            permit.mark_slow(now_s)
            self._permit = None  # settled: what follows changes nothing
        if route.total_timeout_s is not None and now_s - self.started_s >= route.total_timeout_s:
            self._timed_out("total_timeout_ms", route.total_timeout_s)
        elif self._response is None and (self._body_done or self._upstream is None):
            if now_s - self._body_done_s >= route.timeout_s:
                self._timed_out("timeout_ms", route.timeout_s)
        elif now_s - self._progress_s >= route.idle_timeout_s:
            if self._response is None and not self._upstream_full:
                detail = f"nothing more of the request came within idle_timeout_ms of {route.idle_timeout_s:g} s"
                self._refuse(Refusal("request-timeout", 408, detail))
            else:
                self._timed_out("idle_timeout_ms", route.idle_timeout_s)

    # From the upstream's side.

    def connected(self, connection: UpstreamConnection) -> None:
        """A connection is this exchange's: send what is there."""
        self._upstream = connection
        if self._held is None:  # unreachable while `may_retry` is asked only for requests that are held whole
            self._refuse(Refusal("upstream-failed", 502, "the request cannot be sent again", Retry.UNKNOWN))
            return
        if not self._body_done:
            if self._owes_continue:
                self._owes_continue = False
                self.client.write(_CONTINUE)
            self.client.hold_body(False)  # before writing, which may hold it again
        connection.transport.write(self._held[0] if len(self._held) == 1 else b"".join(self._held))
        if self._held_bytes > HELD_BYTES_MAX:
            self._held = None

    def not_connected(self, reason: str) -> None:
        """The endpoint whose turn it was cannot be connected to."""
        if self._endpoint is not None:
            self._tried = (*self._tried, self._endpoint)
        detail = f"{self._where()} cannot be reached: {reason}"
        if not self._try_again(Failure.NOT_SENT, fresh=False):
            self._refuse(Refusal("upstream-unreachable", 502, detail, Retry.SAFE))

    def received(self, data: bytes) -> None:
        """Bytes of the answer."""
        try:
            if self._response is None:
                self._take_head(data)
            else:
                self._take_body(data)
        except Refusal as refusal:
            if self._response is None:
                self._refuse(refusal)
            else:
                self._cut_short()

    def upstream_lost(self, error: Exception | None) -> None:
        """The upstream's connection has ended."""
        connection, self._upstream = self._upstream, None
        self._upstream_full = False
        if self._response is not None:
            if self._response.length == UNTIL_CLOSE and error is None:
                self._end(keeps_alive=False)
            else:
                self._cut_short()
            return
        was_used = connection is not None and connection.uses > 0
        if not self._partial and not self._informational:
            if not was_used and self._endpoint is not None:
                self._tried = (*self._tried, self._endpoint)
            if self._held is not None and self._try_again(Failure.NO_ANSWER, fresh=was_used):
                return
        detail = f"{self._where()} closed the connection before it had answered"
        self._refuse(Refusal("upstream-failed", 502, detail, Retry.UNKNOWN))

    def upstream_paused(self, paused: bool) -> None:
        self._upstream_full = paused
        if not self._body_done:
            self.client.hold_body(paused)

    # Finding an endpoint.

    def _seek(self, *, fresh: bool) -> None:
        if not fresh or self._endpoint is None:
            self._endpoint = self._plane.pick(self.route, self._tried)
        if self._endpoint is None:
            self._refuse(self._no_endpoint())
            return
        self._pool = self._plane.pool(self._endpoint)
        try:
            connection = self._pool.acquire(self, fresh=fresh)
        except PoolExhausted:
            self._refuse(Refusal("upstream-busy", 503, f"{self._where()} has no connection free", Retry.SAFE))
            return
        if connection is not None:
            self.connected(connection)

    def _try_again(self, failure: Failure, *, fresh: bool) -> bool:
        if not self.route.may_retry(failure, self.head.method, self._tries):
            return False
        if not fresh and self._plane.pick(self.route, self._tried) is None:
            return False
        self._tries += 1
        self.counters.retries += 1
        self._seek(fresh=fresh)
        return True

    def _no_endpoint(self) -> Refusal:
        detail = f"no instance of service {self.route.service!r} takes traffic now"
        return Refusal("no-endpoint", 503, detail, Retry.SAFE)

    def _where(self) -> str:
        instance = self._endpoint.instance_id if self._endpoint is not None else "none"
        return f"instance {instance!r} of service {self.route.service!r}"

    def _encode_head(self) -> bytes:
        head, fields = self.head, self.head.fields
        rewrite = self.route.rewrite
        target = head.target if rewrite is None else rewrite(head.target)
        trace, request_id = fields.traceparent, fields.request_id
        if not trace or not request_id:
            chance = b"%064x" % random.getrandbits(256)
            trace = trace or b"00-%b-%b-00" % (chance[:32], chance[32:48])
            request_id = request_id or chance[48:]
        self.request_id = request_id
        return b"%b %b HTTP/1.1%b%b\r\nx-request-id: %b\r\ntraceparent: %b\r\n\r\n" % (
            head.method, target, fields.forward, self.client.forwarded, request_id, trace,
        )  # fmt: skip

    # Passing the answer on.

    def _take_head(self, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
        while True:
            head = read_response_head(data, to_head_request=self.head.method == b"HEAD")
            if head is None:
                self._partial = data
                return
            if head.status >= 200:
                break
            self._pass_informational(head)
            data = data[head.end :]
            if not data:
                self._partial = b""
                return
        self._partial = b""
        self._held = None
        self._response = head
        whole = len(data) - head.end == head.length
        keeps_alive = self._keeps_alive(head) and (self._body_done or not whole)
        if whole and keeps_alive and head.is_unchanged and self.head.minor:
            fields = self.answer_fields
            if fields:
                end = head.end - 4
                data = data[:end] + fields + data[end:]
            self.client.write(data)  # the common case: without fields not a byte is copied
            self._end(keeps_alive=True)
            return
        self._start_answer(head, data[head.end :], keeps_alive)

    def _keeps_alive(self, head: ResponseHead) -> bool:
        """Whether the client's connection can serve another request after this answer."""
        return (
            head.length != UNTIL_CLOSE
            and not (head.length == CHUNKED and not self.head.minor)
            and self.client.stays_open()
        )

    def _start_answer(self, head: ResponseHead, rest: bytes, keeps_alive: bool) -> None:
        old_client = self.head.minor == 0
        forward = head.forward
        if old_client and head.length == CHUNKED:
            forward = without_transfer_encoding(forward)
        if not keeps_alive:
            forward += b"\r\nconnection: close"
        elif old_client:
            forward += b"\r\nconnection: keep-alive"
        forward += self.answer_fields
        body = self._response_body = response_body(head.length, keeps_chunks=not old_client)
        try:
            first = body.feed(rest) if rest or body.done else b""
        except Refusal:
            self._response = None  # the head has not left: the refusal can still be told
            raise
        self.client.write(b"%b%b\r\n\r\n%b" % (head.line, forward, first))
        self._progress_s = now_s = self._plane.monotonic_s()
        if body.done:
            self._end(keeps_alive=keeps_alive)
        elif self._permit is not None:
            self._permit.failure(now_s) if head.status >= SERVER_ERRORS else self._permit.responded(now_s)

    def _take_body(self, data: bytes) -> None:
        body = self._response_body
        if body is None:
            return
        self._progress_s = self._plane.monotonic_s()
        piece = body.feed(data)
        if piece:
            self.client.write(piece)
        if body.done and self._response is not None:
            self._end(keeps_alive=self._keeps_alive(self._response))

    def _pass_informational(self, head: ResponseHead) -> None:
        """100 was answered here; the others go to clients that know of them (RFC 9110, section 15.2)."""
        self._informational += 1
        if self._informational > INFORMATIONAL_MAX or head.status == 101:
            detail = "the upstream's response is not passed on: an interim response that was not asked for"
            raise Refusal("bad-upstream-response", 502, detail, Retry.UNKNOWN)
        if head.status != 100 and self.head.minor:
            self.client.write(head.line + head.forward + b"\r\n\r\n")

    # Ending.

    def _end(self, *, keeps_alive: bool) -> None:
        """The answer has been passed on whole."""
        now_s = self._plane.monotonic_s()
        response, body, connection = self._response, self._response_body, self._upstream
        if response is not None:
            self.counters.count(response.status, now_s - self.started_s)
            if self._permit is not None:
                self._permit.failure(now_s) if response.status >= SERVER_ERRORS else self._permit.success(now_s)
        self.counters.active -= 1
        self._upstream = None
        if connection is not None and self._pool is not None:
            clean = response is not None and response.keeps_alive and (body is None or not body.rest)
            if clean and self._body_done and not connection.transport.is_closing():
                if self.client.hold_answer():
                    connection.transport.resume_reading()
                self._pool.release(connection, now_s)
            else:
                self._pool.discard(connection)
        self.client.answered(keeps_alive=keeps_alive and self._body_done, now_s=now_s)

    def _refuse(self, refusal: Refusal) -> None:
        """No byte of an answer has been passed on: the gateway answers itself."""
        now_s, permit = self._plane.monotonic_s(), self._permit
        self.counters.count(refusal.status, now_s - self.started_s)
        if permit is not None:
            permit.failure(now_s) if refusal.status in UPSTREAM_FAULT_STATUSES else permit.cancelled(now_s)
        self._abandon()
        self.client.refuse(refusal.with_answer_fields(self.answer_fields), self.route)

    def _cut_short(self, *, by_upstream: bool = True) -> None:
        now_s, permit = self._plane.monotonic_s(), self._permit
        if permit is not None:
            permit.failure(now_s) if by_upstream else permit.cancelled(now_s)
        if self._response is not None:
            self.counters.count(self._response.status, now_s - self.started_s)
        self._plane.counters.truncated += 1
        self._abandon()
        self.client.cut_short()

    def _timed_out(self, limit: str, limit_s: float) -> None:
        if self._response is not None:
            self._cut_short()
            return
        detail = f"{self._where()} has not answered within {limit} of {limit_s:g} s"
        self._refuse(Refusal("upstream-timeout", 504, detail, Retry.UNKNOWN))

    def _abandon(self) -> None:
        self.counters.active -= 1
        if self._pool is not None:
            if self._upstream is not None:
                self._pool.discard(self._upstream)
            else:
                self._pool.forget(self)
        self._upstream = None
