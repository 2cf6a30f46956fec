"""The rate limit of a route: who is counted together, what is told of it, and 429 for what is over it.

`RateLimit` and `RateLimit-Policy` are those of draft-ietf-httpapi-ratelimit-headers-11. The policy has the route's
name; `q` is what may come at once, `w` the seconds in which so much is there again. On an answer, `r` is what is left
and `t` the seconds until the whole limit is there again; on a 429, `t` is what `Retry-After` says.

A check is answered at once, save for two: a request that is to wait in a leaky bucket's queue gets a future that is
done when its turn has come, and one whose limit is shared, one that is done within that limit's time budget. Cancelling
such a future is how a client that leaves gives its place back.
"""

import asyncio
import hashlib
from collections.abc import Callable
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from quorate_core.errors import Retry
from quorate_resilience.limiters import (
    Decision,
    FixedWindow,
    LeakyBucket,
    Limiter,
    SlidingWindow,
    Table,
    TabledTokenBucket,
    TokenBucket,
)

from quorate_gateway.documents.limits import FixedWindowLimit, LeakyBucketLimit, RouteRateLimit, SlidingWindowLimit
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.limit_keys import client_key, compile_key, shown_key
from quorate_gateway.policies.limit_queue import LimitQueue
from quorate_gateway.proxy.framing import RequestFields
from quorate_gateway.proxy.refusals import Refusal

if TYPE_CHECKING:
    from quorate_gateway.policies.shared_limit import SharedLimits

__all__ = [
    "Answer",
    "Checked",
    "RouteLimit",
    "client_key",
    "compile_key",
    "compile_limit",
    "identity",
    "make_limiter",
    "shown_key",
]

AnyLimiter = TokenBucket | TabledTokenBucket | FixedWindow | SlidingWindow | LeakyBucket
TableOf = Callable[[bytes], Table]
"""From a limit's `identity` to what it remembers, where several processes are to count together."""


class Checked(NamedTuple):
    """Of a request that is within the limit: fields for the head of its answer, each with its CRLF in front."""

    answer_fields: bytes


Answer = Checked | Refusal
_new_tuple = tuple.__new__
"""As `Checked(...)`, in half the time."""


class RouteLimit:
    """One route's limit, and how often it admitted and limited. `document` is what it was made from."""

    __slots__ = (
        "_decide", "_field", "_key_of", "_policy", "admitted", "document", "limited", "limiter", "queue", "route_name",
    )  # fmt: skip

    def __init__(
        self, route_name: str, document: RouteRateLimit, limiter: AnyLimiter, monotonic_s: Callable[[], float]
    ) -> None:
        self.route_name = route_name
        self.document = document
        self.admitted = 0
        self.limited = 0
        self.limiter: Limiter = limiter
        self._decide = limiter.decide
        self._key_of = compile_key(document.key)
        self.queue = LimitQueue(limiter.give_back, monotonic_s) if isinstance(limiter, LeakyBucket) else None
        """Of a leaky bucket, who waits for it here."""
        quota, window_s = _quota(document)
        self._policy = f'"{route_name}";q={quota};w={window_s}'
        self._field = b'\r\nratelimit: "%b";r=%%d;t=%%d' % route_name.encode().replace(b"%", b"%%")

    def check(self, fields: RequestFields, caller: Caller, now_s: float) -> "Answer | asyncio.Future[Answer]":
        """Counts the request."""
        key = self._key_of(fields, caller)
        decision = self._decide(key, now_s)
        admitted, remaining, _retry_after_s, reset_s, _limit, delay_s = decision
        if not admitted or delay_s:
            return self._settled(key, now_s, decision)
        # What nearly every request meets, and so without a call that is not needed.
        self.admitted += 1
        return _new_tuple(Checked, (self._field % (remaining, ceil(reset_s)),))

    def left(self, fields: RequestFields, caller: Caller, now_s: float) -> int:
        """How many such requests would be admitted now; takes nothing. Of a shared limit, by this gateway's share."""
        return self.limiter.decide(self._key_of(fields, caller), now_s, cost=0).remaining

    @property
    def waiting(self) -> int:
        """How many are in the queue."""
        return 0 if self.queue is None else len(self.queue)

    @property
    def summary(self) -> str:
        """Such as `100 requests a second, 200 at once, by client`."""
        return f"{_summary(self.document)}, by {self.document.key}"

    def _settled(self, key: bytes, now_s: float, decision: Decision) -> "Answer | asyncio.Future[Answer]":
        answer = self._answer(decision)
        if not decision.delay_s or self.queue is None:
            return answer
        return self.queue.join(key, now_s, now_s + decision.delay_s, answer)

    def _answer(self, decision: Decision) -> Answer:
        if decision.admitted:
            self.admitted += 1
            return Checked(self._field % (decision.remaining, ceil(decision.reset_s)))
        self.limited += 1
        return self._refusal(decision)

    def _refusal(self, decision: Decision) -> Refusal:
        wait_s = max(1, ceil(decision.retry_after_s))
        return Refusal(
            "rate-limited", 429, f"rate_limit of this route is {self.summary}", Retry.SAFE,
            (("ratelimit-policy", self._policy), ("ratelimit", f'"{self.route_name}";r=0;t={wait_s}')),
            retry_after_s=wait_s, extensions={"violated-policies": [self.route_name]},
        )  # fmt: skip


def compile_limit(
    route_name: str,
    document: RouteRateLimit | None,
    *,
    shared: "SharedLimits | None" = None,
    tables: TableOf | None = None,
    monotonic_s: Callable[[], float] = monotonic,
) -> RouteLimit | None:
    """`tables` are for limits that hold for several processes together, `shared` for those of several gateways."""
    if document is None:
        return None
    table = None if tables is None else tables(identity(route_name, document))
    if document.shared and shared is not None:
        return shared.limit(route_name, document, table, monotonic_s)
    return RouteLimit(route_name, document, make_limiter(document, 1.0, table), monotonic_s)


def make_limiter(document: RouteRateLimit, share: float = 1.0, table: Table | None = None) -> AnyLimiter:
    """The limiter of `document`, or that of a `share` of it, which is never nothing."""
    if isinstance(document, FixedWindowLimit):
        return FixedWindow(_part(document.requests, share), document.window_ms / 1_000, table)
    if isinstance(document, SlidingWindowLimit):
        requests = _part(document.requests, share)
        return SlidingWindow(requests, document.window_ms / 1_000, document.sub_windows, table)
    rate_per_s = document.requests_per_second * share
    if isinstance(document, LeakyBucketLimit):
        return LeakyBucket(rate_per_s, int(document.queue * share), document.queue_wait_ms / 1_000, table)
    burst = _part(document.burst_requests, share)
    return TokenBucket(rate_per_s, burst) if table is None else TabledTokenBucket(rate_per_s, burst, table)


def identity(route_name: str, document: RouteRateLimit) -> bytes:
    """A name for a limit's state, wherever it is kept: another as soon as any of the parameters is."""
    digest = hashlib.blake2b(document.model_dump_json().encode(), digest_size=8).hexdigest()
    return f"{route_name}:{digest}".encode()


def _part(requests: int, share: float) -> int:
    return max(1, int(requests * share))


def _quota(document: RouteRateLimit) -> tuple[int, int]:
    """What may come at once, and in how many seconds so much is there again."""
    if isinstance(document, FixedWindowLimit | SlidingWindowLimit):
        return document.requests, max(1, ceil(document.window_ms / 1_000))
    limiter = make_limiter(document)
    quota = limiter.limit if isinstance(limiter, LeakyBucket) else document.burst_requests  # type: ignore[union-attr]
    return quota, max(1, ceil(quota / document.requests_per_second))


def _summary(document: RouteRateLimit) -> str:
    if isinstance(document, FixedWindowLimit | SlidingWindowLimit):
        kind = "window" if isinstance(document, FixedWindowLimit) else "sliding window"
        return f"{document.requests} requests in each {kind} of {document.window_ms / 1_000:g} s"
    rate = f"{document.requests_per_second:g} requests a second"
    if isinstance(document, LeakyBucketLimit):
        return f"{rate}, one by one, {document.queue} waiting for up to {document.queue_wait_ms / 1_000:g} s"
    return f"{rate}, {document.burst_requests} at once"
