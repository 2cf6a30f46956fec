"""The tries of one request: whose turn it is, what the balancing is told, and whether there may be another.

Theory of operation. Of a request's tries at most one *runs*: it begins with `_try`, which tells the balancing, and
ends with `_end_try`, which tells it what the try says of its endpoint: that it failed, that it did not, or nothing (the
client left; the gateway itself ended it). Between two tries `_next_endpoint` decides: by the route's rule, by its
budget, and by whether there is an endpoint that was not tried. A running try waits for a connection, or has one; it is
lost with it, given up when its own time is over, or thrown away for the status of its answer.

This is a part of the exchange, which inherits it: a class of its own for reading, and not an object of its own, which
every request would pay for.
"""

import math
import select
from abc import ABC, abstractmethod

from quorate_core.errors import InvariantViolation, Retry

from quorate_gateway.documents.destinations import Destination
from quorate_gateway.matching import CompiledRoute, Endpoint
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.retry import Failure
from quorate_gateway.proxy.context import ExchangeContext
from quorate_gateway.proxy.counters import RouteCounters
from quorate_gateway.proxy.framing import RequestHead, ResponseHead
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.proxy.upstream import EndpointPool, PoolExhausted, UpstreamConnection

NEVER = math.inf
"""In the place of a monotonic time."""


class Tries(ABC):
    __slots__ = (
        "_balance_key",
        "_began_s",
        "_body_done",
        "_destination",
        "_endpoint",
        "_held",
        "_informational",
        "_is_renewed",
        "_partial",
        "_plane",
        "_pool",
        "_retries",
        "_sent_s",
        "_tried",
        "_upstream",
        "_upstream_full",
        "_wants_fresh",
        "counters",
        "head",
        "route",
    )

    # NB: set by the exchange's own __init__. A request pays for every call, and for this one a hundredth of its time.
    _plane: ExchangeContext
    head: RequestHead
    route: CompiledRoute
    counters: RouteCounters
    _body_done: bool
    """Whether the request's body has come whole."""
    _held: list[bytes] | None
    """The body from its first byte on; None once it is too much, or no longer wanted."""
    _destination: Destination | None
    """The share of a split that the request belongs to; all its tries stay there."""
    _balance_key: bytes
    _tried: tuple[Endpoint, ...]
    """Those that failed this request."""
    _retries: int
    _is_renewed: bool
    """Whether a stale connection was replaced by a fresh one already."""

    # Of the running try, or of the last one.
    _wants_fresh: bool
    """Whether only a connection that has served nobody yet will do."""
    _endpoint: Endpoint | None
    _pool: EndpointPool | None
    _began_s: float | None
    """When the running try began; None while none runs."""
    _sent_s: float
    """When it had a connection, if its time is limited; NEVER once it may not be repeated."""
    _upstream: UpstreamConnection | None
    _upstream_full: bool
    _partial: bytes
    """What has come of the answer's head."""
    _informational: int

    # What the exchange does.

    @abstractmethod
    def connected(self, connection: UpstreamConnection) -> None: ...

    @abstractmethod
    def received(self, data: bytes) -> None: ...

    @abstractmethod
    def upstream_lost(self, error: Exception | None) -> None: ...

    @abstractmethod
    def upstream_paused(self, paused: bool) -> None: ...

    @abstractmethod
    def _refuse(self, refusal: Refusal) -> None: ...

    def _first_endpoint(self, caller: Caller) -> Endpoint | None:
        route = self.route
        destination = self._destination = route.only_destination or route.choose_destination(self.head.fields, caller)
        key = self._balance_key = route.balance_key(self.head.fields, caller) if route.hashes else b""
        return self._plane.balancing.pick(route, destination, (), key)

    def _next_endpoint(self, failure: Failure, now_s: float) -> Endpoint | None:
        """Where the request is to be tried again, after the last endpoint failed it; None when it is not to be. What
        it gives has been paid for from the budget, and must be used."""
        if self._endpoint is not None and self._endpoint not in self._tried:
            self._tried = (*self._tried, self._endpoint)
        rule = self.route.retry
        if self._destination is None or not rule.allows(failure, self.head.method, self._retries):
            return None
        endpoint = self._plane.balancing.pick(self.route, self._destination, self._tried, self._balance_key)
        if endpoint is None:
            return None
        if not rule.budget.try_take(now_s):
            self.counters.retries_refused += 1
            return None
        self._retries += 1
        self.counters.retries += 1
        return endpoint

    def _end_try(self, now_s: float, failed: bool | None, latency_s: float | None = None) -> None:
        """Nothing happens when none runs."""
        if self._began_s is not None and self._endpoint is not None:
            self._began_s = None
            self._plane.balancing.ended(self._endpoint, now_s, latency_s, failed)

    def _try(self, endpoint: Endpoint, now_s: float, *, fresh: bool = False) -> None:
        if self._began_s is not None:
            raise InvariantViolation(f"a try of {endpoint.authority} begins while one of {self._endpoint} runs")
        plane = self._plane
        self._endpoint = endpoint
        self._began_s = now_s
        self._wants_fresh = fresh
        plane.balancing.began(endpoint, now_s)
        pool = self._pool = plane.pool(endpoint)
        try:
            connection = pool.acquire(self, fresh=fresh)
            if connection is not None and connection.uses and not self._is_repeatable() and has_news(connection):
                pool.discard(connection)
                connection = pool.acquire(self, fresh=True)
        except PoolExhausted:
            self._no_connection(now_s)
            return
        if connection is not None:
            self.connected(connection)

    def _pass_over(self, connection: UpstreamConnection) -> None:
        """A used connection has come free while a fresh one is waited for: the next may have it."""
        pool, now_s = connection.pool, self._plane.monotonic_s()
        pool.release(connection, now_s)
        try:
            pool.acquire(self, fresh=True)
        except PoolExhausted:
            self._no_connection(now_s)

    def _no_connection(self, now_s: float) -> None:
        self._end_try(now_s, failed=None)
        if not self._try_again(Failure.NOT_SENT, now_s):
            self._refuse(Refusal("upstream-busy", 503, f"{self._where()} has no connection free", Retry.SAFE))

    def _try_again(self, failure: Failure, now_s: float) -> bool:
        """Whether another try has begun; it may have ended the exchange already."""
        endpoint = self._next_endpoint(failure, now_s)
        if endpoint is None:
            return False
        self._try(endpoint, now_s)
        return True

    def not_connected(self, reason: str) -> None:
        """The endpoint whose turn it was cannot be connected to."""
        now_s = self._plane.monotonic_s()
        self._end_try(now_s, failed=True)
        if not self._try_again(Failure.NOT_SENT, now_s):
            detail = f"{self._where()} cannot be reached: {reason}"
            self._refuse(Refusal("upstream-unreachable", 502, detail, Retry.SAFE))

    def _try_lost(self, connection: UpstreamConnection | None) -> None:
        """The running try's `connection` has ended, and no answer has begun."""
        now_s = self._plane.monotonic_s()
        if self._may_repeat():
            if connection is not None and connection.uses and not self._is_renewed and self._endpoint is not None:
                self._is_renewed = True  # closed while idle, just before the request came
                self._end_try(now_s, failed=None)
                self._try(self._endpoint, now_s, fresh=True)
                return
            self._end_try(now_s, failed=True)
            if self._try_again(Failure.NO_ANSWER, now_s):
                return
        detail = f"{self._where()} closed the connection before it had answered"
        self._refuse(Refusal("upstream-failed", 502, detail, Retry.UNKNOWN))

    def _is_repeatable(self) -> bool:
        return self.route.retry.is_repeatable(self.head.method)

    def _may_repeat(self) -> bool:
        """Whether the upstream may be asked a second time: it makes no difference to it, all that it needs is still
        held, and not a byte of an answer has come, let alone gone to the client."""
        return self._held is not None and not self._partial and not self._informational and self._is_repeatable()

    def _give_up_try(self, now_s: float) -> None:
        """The running try's own time is over. When there cannot be another one, it goes on."""
        connection, pool, self._sent_s = self._upstream, self._pool, NEVER
        endpoint = self._next_endpoint(Failure.NO_ANSWER, now_s) if self._may_repeat() else None
        if endpoint is None or connection is None or pool is None:
            return
        self._upstream, self._upstream_full = None, False
        pool.discard(connection)
        self._end_try(now_s, failed=True, latency_s=now_s - (self._began_s or now_s))
        self._try(endpoint, now_s)

    def _try_instead(self, head: ResponseHead, body_bytes: int) -> bool:
        """Whether the answer, of which nothing has been passed on, is thrown away for another try."""
        connection, pool = self._upstream, self._pool
        if head.status not in self.route.retry.statuses or self._held is None or self._informational:
            return False
        now_s = self._plane.monotonic_s()
        began_s, endpoint = self._began_s, self._next_endpoint(Failure.BAD_STATUS, now_s)
        if endpoint is None or connection is None or pool is None:
            return False
        self._partial = b""
        self._upstream, self._upstream_full = None, False
        if head.keeps_alive and self._body_done and body_bytes == head.length:
            pool.release(connection, now_s)
        else:
            pool.discard(connection)
        self._end_try(now_s, failed=True, latency_s=now_s - (began_s or now_s))
        self._try(endpoint, now_s)
        return True

    def _where(self) -> str:
        """For people."""
        service = self.route.service or (self._destination.service if self._destination is not None else "?")
        instance = self._endpoint.instance_id if self._endpoint is not None else "none"
        return f"instance {instance!r} of service {service!r}"


def has_news(connection: UpstreamConnection) -> bool:
    """Whether the kernel holds something for an idle connection that the event loop has not come to: its end, most
    likely. Not a byte of the next request has been written then, which a request that must not be sent twice can still
    go elsewhere by. One system call; asked for such requests on used connections only."""
    socket = connection.transport.get_extra_info("socket")
    if socket is None:
        return False
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    return bool(poll.poll(0))
