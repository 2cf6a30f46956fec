"""Which endpoint a call goes to, and whether a failed call may be tried again. Pure: time and chance are arguments.

A call is tried again only where that is safe: when nothing was sent, when the server says that nothing was done, or
when the call is idempotent. Tries stop at the call's deadline.
"""

from collections.abc import Sequence
from enum import Enum

from quorate_core.errors import SettingsError

BACKOFF_FIRST_S = 0.05
BACKOFF_S_MAX = 2.0
RECONNECT_SPREAD_S = 1.0


class Failure(Enum):
    """What a failed try says about the call."""

    NOT_SENT = "not sent"
    """No connection: the server has seen nothing."""
    NOT_DONE = "not done"
    """The server answered that it has done nothing and that the call may be repeated."""
    UNKNOWN = "unknown"
    """Sent, and the outcome was not seen."""
    FINAL = "final"
    """The same call will fail again."""


def backoff_s(failures: int, spread: float) -> float:
    """Seconds to wait after `failures` failures in a row: exponential up to BACKOFF_S_MAX, then times 0.5 to 1 by
    `spread` (0 to 1, at random), so that those who fail together do not return together."""
    whole_s: float = min(BACKOFF_S_MAX, BACKOFF_FIRST_S * 2 ** min(failures - 1, 16))
    return whole_s * (0.5 + 0.5 * spread)


def reconnect_s(failures: int, spread: float, *, lived_long: bool) -> float:
    """Seconds until a stream that has failed `failures` times in a row is opened again. One that `lived_long` has
    broken with its node, most likely, and with all other streams of that: they come back over a second."""
    return spread * RECONNECT_SPREAD_S if lived_long else backoff_s(failures, spread)


class Endpoints:
    """The control plane's addresses. Sticky: calls go to the last one that was good."""

    def __init__(self, urls: Sequence[str]) -> None:
        """Raises SettingsError when there is none, or one that is no HTTP URL."""
        if not urls:
            raise SettingsError("no control-plane endpoint is given; set QUORATE_ENDPOINTS=http://host:port[,…]")
        for url in urls:
            scheme, separator, rest = url.partition("://")
            if not separator or scheme not in ("http", "https") or not rest.strip("/"):
                raise SettingsError(f"{url!r} is no endpoint; write http://host:port")
        self.urls = tuple(url.rstrip("/") for url in urls)
        self._position = 0

    @property
    def current(self) -> str:
        return self.urls[self._position]

    def leave(self, url: str) -> None:
        """`url` has failed: go on to the next one, unless another call has done so already."""
        if url == self.current:
            self._position = (self._position + 1) % len(self.urls)

    def __len__(self) -> int:
        return len(self.urls)


class RetryPlan:
    """The tries of one call.

    `deadline_s`: no try begins after it, on the clock that `now_s` comes from. Another endpoint is tried at once
    where none has answered yet; from the second round on, and wherever a server asked for patience, with backoff.
    """

    def __init__(self, endpoints: int, *, idempotent: bool, deadline_s: float) -> None:
        self._endpoints = endpoints
        self._idempotent = idempotent
        self._deadline_s = deadline_s
        self._failures = 0
        self._waits = 0

    def delay_s(self, failure: Failure, now_s: float, spread: float) -> float | None:
        """Seconds until the next try, or None to give up."""
        if failure is Failure.FINAL or (failure is Failure.UNKNOWN and not self._idempotent):
            return None
        self._failures += 1
        if failure is not Failure.NOT_DONE and self._failures % self._endpoints:
            delay_s = 0.0
        else:
            self._waits += 1
            delay_s = backoff_s(self._waits, spread)
        return delay_s if now_s + delay_s < self._deadline_s else None
