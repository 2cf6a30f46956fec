"""One request's life between a client's connection and an upstream's.

Theory of operation. An exchange is

- *admitting*: its policies have not decided, since a shared limit has not answered or its turn in the queue of a leaky
  bucket has not come. Most requests skip this state. The body is held, within HELD_BYTES_MAX. The caller's deadline and
  the total timeout count already; leaving gives the place in the queue back;
- *seeking*: it has no upstream connection. It asks the pool of the endpoint whose turn it is. A pool that cannot
  connect sends it to another endpoint, within the route's retries;
- *waiting*: the request is sent, or is being sent, and no byte of an answer has come. If the connection ends now, or
  the try's own time, a request that is safe to repeat and whose bytes are all still held is tried again, on another
  endpoint; or, when the upstream closed a pooled connection just then, on a fresh one to the same endpoint. So is one
  whose answer has a status that the route retries, as long as nothing of it has been passed on;
- *answering*: the head of the answer has been passed on. What goes wrong now can only be shown by cutting the
  answer short;
- *tunnelling*: the upstream has agreed to a WebSocket; the two connections are joined, and the exchange only keeps what
  it counts as: a request in progress, and a try of its endpoint;
- *ended*: it holds no connection, and nobody calls it any more.

The client's connection owes it: `start` once, then `body` for what follows, `client_gone` when the client is lost,
`client_paused` when its buffer is full, and `expire` now and then. It owes the client's connection exactly one of
`answered`, `refuse`, `cut_short` and `tunnelled`, as its last act; and, once each, to the breaker what became of the
permit, to the load and the counters that it has ended, and to the balancing that each try began and ended.
"""

import asyncio

from quorate_core.errors import InvariantViolation, Retry
from quorate_resilience import Permit
from quorate_resilience.deadline import left_ms, read_timeout_ms

from quorate_gateway.matching import CompiledRoute
from quorate_gateway.policies.admission import Admission, enter
from quorate_gateway.policies.circuit import UPSTREAM_FAULT_STATUSES
from quorate_gateway.policies.deadline import RULE as DEADLINE_RULE
from quorate_gateway.policies.deadline import deadline_refusal
from quorate_gateway.proxy.bodies import Body, response_body
from quorate_gateway.proxy.client import Client
from quorate_gateway.proxy.context import ExchangeContext
from quorate_gateway.proxy.counters import CLIENT_GONE
from quorate_gateway.proxy.framing import CHUNKED, UNTIL_CLOSE, RequestHead, ResponseHead, read_response_head
from quorate_gateway.proxy.heads import date_field, encode_answer_head, encode_request_head, with_time_left
from quorate_gateway.proxy.joined import Joined
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.proxy.tries import NEVER, Tries
from quorate_gateway.proxy.tunnel import switching_head
from quorate_gateway.proxy.upstream import UpstreamConnection

HELD_BYTES_MAX = 65_536
"""Of a request, for sending it again; and while there is no connection to send it on."""
SERVER_ERRORS = 500
"""Statuses from here on are failures of the upstream (RFC 9110, section 15.6); those below are its answers."""
INFORMATIONAL_MAX = 8
"""Responses of the 1xx class before the final one."""
TIMER_S_MIN = 0.001
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Exchange(Tries):
    __slots__ = (
        "_admission",
        "_answered_s",
        "_asked",
        "_body_done_s",
        "_deadline_s",
        "_has_ended",
        "_held_bytes",
        "_is_timed",
        "_moved",
        "_owes_continue",
        "_permit",
        "_progress_s",
        "_request",
        "_response",
        "_response_body",
        "_timer",
        "answer_fields",
        "client",
        "request_id",
        "started_s",
    )

    def __init__(
        self,
        plane: ExchangeContext,
        client: Client,
        head: RequestHead,
        route: CompiledRoute,
        now_s: float,
        admission: "Admission | asyncio.Future[Admission | Refusal]",
    ) -> None:
        self._plane = plane
        self.client = client
        self.head = head
        self.route = route
        self.counters = plane.counters.route(route.name)
        self._destination = self._endpoint = self._pool = self._began_s = None
        self._balance_key = b""
        self._tried = ()
        self._retries = 0
        self._admission = admission
        self._asked: asyncio.Future[Admission | Refusal] | None = None
        """What the policies still have to decide."""
        self._permit: Permit | None = None
        self.answer_fields = b""
        self.started_s = self._progress_s = self._body_done_s = now_s
        self._deadline_s = NEVER
        """When the caller gives up; it said so."""
        self._sent_s = NEVER
        self._is_timed = route.retry.per_try_timeout_s is not None
        """Whether its tries or its caller have a time of their own."""
        self._timer: asyncio.TimerHandle | None = None
        """Of those few requests whose limits the sweep would see too late."""
        self._has_ended = False
        self.request_id = b""
        self._request = b""
        """The encoded head."""
        self._body_done = False
        self._owes_continue = head.fields.expects_continue and head.minor == 1
        self._upstream_full = False
        self._held = []
        self._held_bytes = 0
        self._upstream = None
        self._is_renewed = False
        self._partial = b""
        self._informational = 0
        self._response: ResponseHead | None = None
        self._response_body: Body | None = None
        self._answered_s: float | None = None
        self._moved = 0
        """What the full one of the two write buffers held when it was last looked at."""

    # From the client's side.

    def start(self, body: bytes, body_done: bool) -> None:
        """Send the request with the `body` that has come so far, as soon as its policies let it begin."""
        self.counters.active += 1
        self._plane.load.active += 1
        self._body_done = body_done
        if body:
            self._held = [body]
            self._held_bytes = len(body)
        if self.head.fields.timeout_ms and not self._set_deadline(self.head.fields.timeout_ms):
            return
        admission = self._admission
        if isinstance(admission, Admission):
            self._begin(admission, self.started_s)
        else:
            self._asked = admission
            admission.add_done_callback(self._decided)

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
        self._abandon(now_s, failed=None)

    def client_paused(self, paused: bool) -> None:
        self._moved = self._unsent_bytes()
        if self._upstream is not None and not self._upstream.transport.is_closing():
            if paused:
                self._upstream.transport.pause_reading()
            else:
                self._upstream.transport.resume_reading()
                self._progress_s = self._plane.monotonic_s()

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
            self._timed_out("total_timeout_ms", route.total_timeout_s, now_s)
        elif self._response is None and now_s >= self._deadline_s:
            self._refuse(deadline_refusal(was_sent=self._upstream is not None))
        elif self._asked is not None:
            pass  # what decides has a limit of its own
        elif self._response is None and (self._body_done or self._upstream is None):
            if now_s - self._body_done_s >= route.timeout_s:
                self._timed_out("timeout_ms", route.timeout_s, now_s)
            elif now_s >= self._try_ends_s():
                self._give_up_try(now_s)
        elif not self._has_moved(now_s) and now_s - self._progress_s >= route.idle_timeout_s:
            if self._response is None and not self._upstream_full:
                detail = f"nothing more of the request came within idle_timeout_ms of {route.idle_timeout_s:g} s"
                self._refuse(Refusal("request-timeout", 408, detail))
            else:
                self._timed_out("idle_timeout_ms", route.idle_timeout_s, now_s)

    # Beginning, when the policies let it.

    def _decided(self, asked: "asyncio.Future[Admission | Refusal]") -> None:
        """The policies have decided, or the queue has come to this request."""
        if self._asked is None:
            return  # it has left
        self._asked = None
        if asked.cancelled() or asked.exception() is not None:
            # A limit answers by its local share when all else fails: this is a defect, and told as one.
            self._refuse(Refusal("gateway-fault", 500, "the rate limit gave no answer", Retry.SAFE))
            asked.result()
            return
        admission = asked.result()
        if isinstance(admission, Refusal):
            self.answer_fields = admission.answer_fields
            self._refuse(admission)
        else:
            self._begin(admission, self._plane.monotonic_s())

    def _begin(self, admission: Admission, now_s: float) -> None:
        """The route's policies let it begin, and its turn has come."""
        self._admission = admission
        caller, self.answer_fields, request_fields = admission
        if self._body_done:
            self._body_done_s = now_s  # the time that it waited for its turn is the queue's, not the service's
        route = self.route
        permit = enter(route, self._plane.load, now_s)
        if isinstance(permit, Refusal):
            self._refuse(permit)
            return
        self._permit = permit
        route.retry.budget.count(now_s)
        self._request, self.request_id = encode_request_head(self.head, route, self.client.forwarded, request_fields)
        self._held_bytes += len(self._request)
        endpoint = self._first_endpoint(caller)
        if endpoint is None:
            self._refuse(self._no_endpoint())
        else:
            self._try(endpoint, now_s)

    # From the upstream's side.

    def connected(self, connection: UpstreamConnection) -> None:
        """A connection is this exchange's: send what is there."""
        if connection.uses and self._wants_fresh:
            self._pass_over(connection)
            return
        self._upstream = connection
        held = self._held
        if held is None:  # unreachable while another try is begun only for requests that are held whole
            self._refuse(Refusal("upstream-failed", 502, "the request cannot be sent again", Retry.UNKNOWN))
            return
        if not self._body_done:
            if self._owes_continue:
                self._owes_continue = False
                self.client.write(_CONTINUE)
            self.client.hold_body(False)  # before writing, which may hold it again
        request = self._request
        if self._is_timed:
            request = self._timed_request()
        connection.transport.write(b"".join((request, *held)) if held else request)
        if self._held_bytes > HELD_BYTES_MAX:
            self._held = None

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
        self._try_lost(connection)

    def upstream_paused(self, paused: bool) -> None:
        self._upstream_full = paused
        self._progress_s = self._plane.monotonic_s()
        self._moved = self._unsent_bytes()
        if not self._body_done:
            self.client.hold_body(paused)

    # Time limits that the request brings along, and those of a single try.

    def _set_deadline(self, value: bytes) -> bool:
        """Whether the caller still waits at all."""
        timeout_ms = read_timeout_ms(value)
        if timeout_ms is None:
            return True
        self._is_timed = True
        self._deadline_s = self.started_s + timeout_ms / 1_000
        if not timeout_ms:
            self._refuse(deadline_refusal(was_sent=False))
            return False
        self._set_timer(self.started_s)
        return True

    def _timed_request(self) -> bytes:
        """The head for a try that begins now."""
        now_s = self._plane.monotonic_s()
        if self.route.retry.per_try_timeout_s is not None:
            self._sent_s = now_s
        self._set_timer(now_s)
        return (
            self._request
            if self._deadline_s == NEVER
            else with_time_left(self._request, left_ms(self._deadline_s, now_s))
        )

    def _try_ends_s(self) -> float:
        """When the running try is to be given up; infinity when that is not limited."""
        limit_s = self.route.retry.per_try_timeout_s
        return NEVER if limit_s is None else max(self._sent_s, self._body_done_s) + limit_s

    def _set_timer(self, now_s: float) -> None:
        """The sweep comes round a few times a second, too seldom for a caller that has little time."""
        self._stop_timer()
        due_s = min(self._deadline_s, self._try_ends_s())
        if due_s < NEVER:
            wait_s = max(due_s - now_s, TIMER_S_MIN)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        self._stop_timer()
        now_s = self._plane.monotonic_s()
        self.expire(now_s)
        if not self._has_ended and self._response is None and self._timer is None:
            self._set_timer(now_s)

    def _has_moved(self, now_s: float) -> bool:
        """Whether a full buffer has become less full, which is progress although nothing new came."""
        unsent = self._unsent_bytes()
        if unsent == self._moved:
            return False
        self._moved, self._progress_s = unsent, now_s
        return True

    def _unsent_bytes(self) -> int:
        if self._upstream_full and self._upstream is not None:
            return self._upstream.transport.get_write_buffer_size()
        return self.client.unsent_bytes() if self.client.hold_answer() else 0

    # Passing the answer on.

    def _take_head(self, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
        while True:
            head = read_response_head(data, to_head_request=self.head.method == b"HEAD")
            if head is None:
                self._partial = data
                return
            status, _passed, _line_end, length, _keeps_alive, is_unchanged, has_date, end = head
            if status >= 200:
                break
            if status == 101 and self.head.fields.upgrade and self.route.websocket:
                self._join(head, data)
                return
            self._pass_informational(head)
            data = data[end:]
            if not data:
                self._partial = b""
                return
        if status >= SERVER_ERRORS and self._try_instead(head, len(data) - end):
            return
        self._partial = b""
        self._held = None
        self._response = head
        whole = len(data) - end == length
        keeps_alive = self._keeps_alive(head) and (self._body_done or not whole)
        if whole and keeps_alive and self.head.minor and self.route.response_changes is None:
            fields = self.answer_fields
            if not has_date:
                fields += date_field(int(self._plane.wall_s()))
            if fields or not is_unchanged:
                data = head.passed + fields + data[end - 4 :]
            self.client.write(data)  # the common case: what is as it came is not copied
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
        body = self._response_body = response_body(head.length, keeps_chunks=not old_client)
        try:
            first = body.feed(rest) if rest or body.done else b""
        except Refusal:
            self._response = None  # the head has not left: the refusal can still be told
            raise
        encoded = encode_answer_head(
            head, self.route, self.answer_fields, to_old_client=old_client, keeps_alive=keeps_alive,
            wall_s=self._plane.wall_s,
        )  # fmt: skip
        self.client.write(encoded + first)
        self._progress_s = self._answered_s = now_s = self._plane.monotonic_s()
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
            self.client.write(head.passed + b"\r\n\r\n")

    def _join(self, head: ResponseHead, data: bytes) -> None:
        """The upstream has agreed to a WebSocket. Raises Refusal when it has agreed to another handshake than this."""
        switching = switching_head(self.head, data, head)
        connection, pool, endpoint = self._upstream, self._pool, self._endpoint
        if connection is None or pool is None or endpoint is None or self._began_s is None:
            raise InvariantViolation("an answer came without a connection that it could have come by")
        now_s, route = self._plane.monotonic_s(), self.route
        self.counters.count(head.status, now_s - self.started_s)
        if self._permit is not None:
            self._permit.success(now_s)
        pool.detach(connection)
        joined = connection.exchange = Joined(self._plane, self.counters, endpoint, now_s - self._began_s)
        self._upstream = self._began_s = None
        self._has_ended = True
        self._stop_timer()
        self.client.write(b"%b%b\r\n\r\n" % (switching, self.answer_fields))
        ends_s = None if route.total_timeout_s is None else self.started_s + route.total_timeout_s
        joined.tunnel = self.client.tunnelled(connection, data[head.end :], route.idle_timeout_s, ends_s)

    # Ending.

    def _end(self, *, keeps_alive: bool) -> None:
        """The answer has been passed on whole."""
        now_s = self._plane.monotonic_s()
        response, body, connection = self._response, self._response_body, self._upstream
        failed = False
        if response is not None:
            status = response.status
            failed = status >= SERVER_ERRORS
            self.counters.count(status, now_s - self.started_s)
            if self._permit is not None:
                self._permit.failure(now_s) if failed else self._permit.success(now_s)
        self._leave(now_s, failed)
        self._upstream = None
        if connection is not None and self._pool is not None:
            clean = response is not None and response.keeps_alive and (body is None or not body.rest)
            if clean and self._body_done:
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
        failed = refusal.status in UPSTREAM_FAULT_STATUSES and refusal.rule != DEADLINE_RULE
        if permit is not None:
            permit.failure(now_s) if failed else permit.cancelled(now_s)
        self._abandon(now_s, failed=failed or None)
        self.client.refuse(refusal.with_answer_fields(self.answer_fields), self.route)

    def _cut_short(self, *, by_upstream: bool = True) -> None:
        now_s, permit = self._plane.monotonic_s(), self._permit
        if permit is not None:
            permit.failure(now_s) if by_upstream else permit.cancelled(now_s)
        if self._response is not None:
            self.counters.count(self._response.status, now_s - self.started_s)
        self._plane.counters.truncated += 1
        self._abandon(now_s, failed=by_upstream or None)
        self.client.cut_short()

    def _timed_out(self, limit: str, limit_s: float, now_s: float) -> None:
        if self._response is not None:
            # A client that does not read what is there is its own fault.
            self._cut_short(by_upstream=not self.client.hold_answer())
        elif self._asked is not None:
            detail = f"the request was still waiting for its turn after {limit} of {limit_s:g} s"
            self._refuse(Refusal("queued-too-long", 503, detail, Retry.SAFE))
        else:
            detail = f"{self._where()} has not answered within {limit} of {limit_s:g} s"
            self._refuse(Refusal("upstream-timeout", 504, detail, Retry.UNKNOWN))

    def _abandon(self, now_s: float, failed: bool | None) -> None:
        """Leave the upstream, or the queue for it, at once."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.cancel()
        if self._pool is not None:
            if self._upstream is not None:
                self._pool.discard(self._upstream)
            else:
                self._pool.forget(self)
        self._upstream = None
        self._leave(now_s, failed)

    def _leave(self, now_s: float, failed: bool | None) -> None:
        """It counts no more."""
        if self._has_ended:
            raise InvariantViolation(f"the exchange of request {self.request_id!r} ends a second time")
        self._has_ended = True
        self.counters.active -= 1
        self._plane.load.active -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        began_s, endpoint = self._began_s, self._endpoint
        if began_s is not None and endpoint is not None:
            self._began_s = None
            latency_s = None
            if self._response is not None:
                latency_s = (now_s if self._answered_s is None else self._answered_s) - began_s
            self._plane.balancing.ended(endpoint, now_s, latency_s, failed)

    def _no_endpoint(self) -> Refusal:
        services = sorted(self.route.services)
        detail = f"no instance of service {' or '.join(map(repr, services))} takes traffic now"
        return Refusal("no-endpoint", 503, detail, Retry.SAFE)
