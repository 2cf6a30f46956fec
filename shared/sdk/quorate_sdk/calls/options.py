"""What a client chooses for all of its calls, and what one request may choose for itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from quorate_resilience import BreakerSettings
from quorate_resilience.outlier import EjectionSettings

Balance = Literal["least_request", "round_robin", "weighted_round_robin", "random", "peak_ewma", "consistent_hash"]
BALANCES: tuple[str, ...] = get_args(Balance)
BALANCE_DEFAULT: Balance = "least_request"
EXTENSION = "quorate"
"""The key in a request's `extensions` under which it chooses."""
RETRIES_MAX = 2
"""Further tries of one call, after the first."""
RETRY_PERCENT = 20.0
"""Retries may be at most so many of a service's calls of the last 10 seconds, or 10 of them if that is more."""


@dataclass(frozen=True, slots=True)
class CallSettings:
    """For all calls of a client. The defaults are the gateway's. Raises ValueError for what can mean nothing."""

    retries_max: int = RETRIES_MAX
    """0: no call is tried again."""
    retry_percent: float = RETRY_PERCENT
    circuit_breaker: BreakerSettings | None = field(default_factory=BreakerSettings)
    """None: without."""
    ejection: EjectionSettings = field(default_factory=EjectionSettings)

    def __post_init__(self) -> None:
        if self.retries_max < 0:
            raise ValueError(f"retries_max must not be negative, and is {self.retries_max}")


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What `extensions={"quorate": {…}}` of one request says."""

    retry: bool | None = None
    """True: it may be repeated although its method is not idempotent. False: it is tried once. None: by its method."""
    key: bytes = b""
    """Requests with the same key go to the same instance, with balance "consistent_hash"."""
    timeout_s: float = math.inf
    """Until the head of the answer, all tries together."""


NO_OPTIONS = RequestOptions()
_NAMES = frozenset({"retry", "key", "timeout_s"})


def read_request_options(extensions: Mapping[str, Any]) -> RequestOptions:
    """Raises ValueError or TypeError naming what cannot be read."""
    given = extensions.get(EXTENSION)
    if not given:
        return NO_OPTIONS
    if unknown := sorted(given.keys() - _NAMES):
        raise ValueError(f"extensions[{EXTENSION!r}] takes {', '.join(sorted(_NAMES))}, and not {', '.join(unknown)}")
    retry, key, timeout_s = given.get("retry"), given.get("key", b""), given.get("timeout_s", math.inf)
    if retry not in (None, True, False):
        raise TypeError(f"retry is True, False or None, and not {retry!r}")
    if not isinstance(key, str | bytes):
        raise TypeError(f"key is a text or bytes, and not {key!r}")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or math.isnan(timeout_s):
        raise TypeError(f"timeout_s is a number of seconds, and not {timeout_s!r}")
    return RequestOptions(retry, key.encode() if isinstance(key, str) else key, timeout_s)


def require_balance(balance: str) -> str:
    """Raises ValueError for a name that is none."""
    if balance not in BALANCES:
        raise ValueError(f"balance is one of {', '.join(BALANCES)}, and not {balance!r}")
    return balance
