"""Load shedding by priority: when a process is saturated, requests that matter less are refused first, and at once.

Theory of operation. *Saturation* is the larger of two parts of a whole: requests in progress, of `active_max`; and the
event loop's lag, of `lag_s_max`. A priority is refused while the saturation is at or above its threshold: `low` at
80 %, `normal` at 95 %, `high` at 100 %. Requests in progress bound the memory; the lag shows a processor that cannot
keep up although few requests are in progress, and grows before callers give up.

A lag counts when two measurements in a row showed it: the smaller of the last two is taken, so that one pause, as of
the garbage collector or a large snapshot, refuses nobody. The lag of a loop that has recovered is gone with the next
measurement.

What the driver owes: `active` goes up when a request comes and down when it ends, and `measured` is called with each
measurement of the lag. The question about each request, which is counted itself by then, is one comparison:
`active > limits[priority]`.
"""

import math
from enum import IntEnum

ACTIVE_MAX = 10_000
LAG_S_MAX = 0.5
THRESHOLD_PERCENTS = (80, 95, 100)
"""By priority: the saturation from which it is refused."""


class Priority(IntEnum):
    LOW = 0
    NORMAL = 1
    HIGH = 2


class LoadShedder:
    """The load of one process. Raises ValueError for bounds that can mean nothing."""

    __slots__ = ("_lag_before_s", "active", "active_max", "lag_s", "lag_s_max", "limits", "refused")

    def __init__(self, active_max: int = ACTIVE_MAX, lag_s_max: float = LAG_S_MAX) -> None:
        if active_max < 1 or not (math.isfinite(lag_s_max) and lag_s_max > 0):
            raise ValueError(f"active_max must be at least 1 and lag_s_max above 0, not {active_max} and {lag_s_max}")
        self.active_max = active_max
        self.lag_s_max = lag_s_max
        self.active = 0
        """Requests in progress; the driver counts them."""
        self.refused = [0] * len(Priority)
        """Requests that were shed, by priority, from the beginning on."""
        self.lag_s = 0.0
        """The lag that counts: the smaller of the last two that were measured."""
        self._lag_before_s = 0.0
        self.limits = self._limits()
        """By priority: how many may be in progress; 0 while the lag alone is enough to refuse it."""

    def admits(self, priority: int) -> bool:
        """Whether a request of this priority, which `active` counts already, may begin; counts one that may not."""
        if self.active <= self.limits[priority]:
            return True
        self.refused[priority] += 1
        return False

    def measured(self, lag_s: float) -> None:
        """The event loop did something `lag_s` seconds later than it was due."""
        self.lag_s, self._lag_before_s = min(lag_s, self._lag_before_s), lag_s
        self.limits = self._limits()

    @property
    def saturation(self) -> float:
        """1.0 when full; may be above."""
        return max(self.active / self.active_max, self.lag_s / self.lag_s_max)

    def _limits(self) -> list[int]:
        return [
            0 if self.lag_s * 100 >= percent * self.lag_s_max else math.ceil(self.active_max * percent / 100)
            for percent in THRESHOLD_PERCENTS
        ]
