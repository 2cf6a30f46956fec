"""Which requests are refused first when the gateway is saturated: those of routes with a lower `priority`.

How saturated it is says `quorate_resilience.shedding`. It is one worker's, since both of its signals are: the requests
that it holds in memory, and the lag of its own event loop.
"""

import math
from typing import Protocol

from quorate_core.errors import Retry
from quorate_resilience.shedding import LoadShedder, Priority

from quorate_gateway.proxy.refusals import Refusal

RULE = "overloaded"
RETRY_AFTER_S = 1
PRIORITIES = {"low": Priority.LOW, "normal": Priority.NORMAL, "high": Priority.HIGH}
"""By their names in the document."""


class Load(Protocol):
    """What a `LoadShedder` knows, which may be that of another process."""

    @property
    def active(self) -> int: ...

    @property
    def active_max(self) -> int: ...

    @property
    def lag_s(self) -> float: ...

    @property
    def lag_s_max(self) -> float: ...

    @property
    def saturation(self) -> float: ...


def overload_refusal(load: LoadShedder, priority: int) -> Refusal:
    name = Priority(priority).name.lower()
    detail = f"requests of priority {name!r} are not taken now: {load_summary(load)}"
    return Refusal(RULE, 503, detail, Retry.SAFE, retry_after_s=RETRY_AFTER_S)


def load_summary(load: Load) -> str:
    """How saturated it is, and what it rests on, in one sentence without an end."""
    return (
        f"the gateway is at {math.floor(load.saturation * 100)} % of what it takes; requests in progress: {load.active}"
        f" of {load.active_max}, event loop late by {load.lag_s * 1_000:.0f} of {load.lag_s_max * 1_000:.0f} ms"
    )
