"""How often a route may be asked: the four algorithms of rate limits, and whose requests are counted together."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag
from quorate_resilience.limiters import SUB_WINDOWS_MAX

from quorate_gateway.documents.strict import Strict

RATE_MIN = 0.001
RATE_MAX = 1_000_000.0
BURST_MAX = 1_000_000
WINDOW_MS_MIN = 100
WINDOW_MS_MAX = 86_400_000
QUEUE_MAX = 100_000
QUEUE_WAIT_MS_MAX = 60_000

_KEY = re.compile(r"route|client|api_key|header:[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}|jwt:[A-Za-z0-9_.:/-]{1,64}")
"""The name of a header field is a token (RFC 9110, section 5.6.2)."""


def check_key(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        raise ValueError(
            "'key' is 'route', 'client', 'api_key', 'header:' and the name of a header field, or 'jwt:' and a claim"
        )
    return key


Rate = Annotated[float, Field(ge=RATE_MIN, le=RATE_MAX, allow_inf_nan=False)]


class _Limit(Strict):
    key: Annotated[str, StringConstraints(max_length=80), AfterValidator(check_key)] = "route"
    """Whose requests are counted together: all of the route's (`route`), those of one client address (`client`; of an
    IPv6 address its first 64 bits), of one API key (`api_key`), those with one value of a header field
    (`header:X-Tenant`), or of one claim of the caller's token (`jwt:sub`)."""
    shared: bool = False
    """Counted together with all other gateways, in Redis; while that is slow or gone, each has its local share.
    A gateway that was given no Redis counts alone, by the whole limit."""
    local_share_percent: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 50.0
    """Of the limit, for each gateway on its own while Redis is slow or gone; at least 1 request."""


class TokenBucketLimit(_Limit):
    """A steady rate, and bursts up to what was saved."""

    algorithm: Literal["token_bucket"] = "token_bucket"
    """May be left out."""
    requests_per_second: Rate
    """The steady rate."""
    burst: Annotated[int, Field(ge=1, le=BURST_MAX)] | None = None
    """How many may come at once after a pause; what comes in a second when left out, and at least 1."""

    @property
    def burst_requests(self) -> int:
        """`burst`, or what it is when left out."""
        return self.burst or max(1, math.ceil(self.requests_per_second))


class _WindowLimit(_Limit):
    requests: Annotated[int, Field(ge=1, le=BURST_MAX)]
    """So many in a window."""
    window_ms: Annotated[int, Field(ge=WINDOW_MS_MIN, le=WINDOW_MS_MAX)] = 1_000
    """How long a window is."""


class FixedWindowLimit(_WindowLimit):
    """So many requests in each window of the clock; around the edge of two, twice as many may come at once."""

    algorithm: Literal["fixed_window"]
    """Windows that begin with the clock."""


class SlidingWindowLimit(_WindowLimit):
    """So many requests in any window, counted in small sub-windows."""

    algorithm: Literal["sliding_window"]
    """A window that ends now."""
    sub_windows: Annotated[int, Field(ge=2, le=SUB_WINDOWS_MAX)] = 10
    """A request counts for up to one of these longer than the window: with ten, a tenth."""
    """How many small ones it is counted in: by more of them, more exactly."""


class LeakyBucketLimit(_Limit):
    """Requests leave at a constant rate; those that come faster wait in a queue, and get 429 when that is full."""

    algorithm: Literal["leaky_bucket"]
    """A queue with a constant outflow."""
    requests_per_second: Rate
    """The rate at which requests leave the queue."""
    queue: Annotated[int, Field(ge=0, le=QUEUE_MAX)] = 100
    """How many may wait."""
    queue_wait_ms: Annotated[int, Field(ge=1, le=QUEUE_WAIT_MS_MAX)] = 5_000
    """Nobody waits longer: a request that would is refused at once."""


def _algorithm(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("algorithm", "token_bucket")
    return getattr(value, "algorithm", "token_bucket")


RouteRateLimit = Annotated[
    Annotated[TokenBucketLimit, Tag("token_bucket")]
    | Annotated[FixedWindowLimit, Tag("fixed_window")]
    | Annotated[SlidingWindowLimit, Tag("sliding_window")]
    | Annotated[LeakyBucketLimit, Tag("leaky_bucket")],
    Discriminator(_algorithm),
]
