"""The sliding window of small sub-windows: so many requests in any window, wherever it begins.

The window is cut into `sub_windows`, and each key has a counter for each of them. A request counts until the window
that began with its sub-window's end is over: what counts at a moment is the sub-window of now, and the `sub_windows`
before it. So no window of `window_s`, wherever it lies, ever has more than the limit in it: there is no double burst.

Its weakness is the grain: a request counts for up to one sub-window longer than the window, so that who uses the limit
to the full gets it only once in `window_s` and a sub-window, a tenth less with ten of them. More sub-windows cost more
memory; with one of no width, this would be a log of all requests.
"""

import math

from quorate_resilience.limiters.decision import Decision
from quorate_resilience.limiters.fixed_window import check_window
from quorate_resilience.limiters.table import RECORD_FLOATS_MAX, Record, Table
from quorate_resilience.limiters.tabled import CLOCK_S, Step, TabledLimiter

SUB_WINDOWS_MAX = RECORD_FLOATS_MAX - 2
"""A record has the number of the newest sub-window, its count, and the counts of those before it."""


class SlidingWindow(TabledLimiter):
    """A record is the number of a sub-window, its count, and the counts of the ones before it, the newest first."""

    __slots__ = ("limit", "sub_s", "sub_windows", "window_s")

    def __init__(self, limit: int, window_s: float, sub_windows: int = 10, table: Table | None = None) -> None:
        """Raises ValueError for a limit or `sub_windows` out of range, and for a window that can mean nothing."""
        super().__init__(table)
        check_window(limit, window_s)
        if not 1 <= sub_windows <= SUB_WINDOWS_MAX:
            raise ValueError(f"sub_windows must be from 1 to {SUB_WINDOWS_MAX}, not {sub_windows}")
        self.limit = limit
        self.window_s = window_s
        self.sub_windows = sub_windows
        self.sub_s = window_s / sub_windows

    def _step(self, record: Record | None, now_s: float, cost: int) -> Step:
        newest, counts = self._counted(record, now_s)
        left = self.limit - sum(counts)
        if cost > left:
            wait_s = self._wait_s(newest, counts, cost - left, now_s) if cost <= self.limit else math.inf
            reset_s, expires_s = self._reset(newest, counts, now_s)
            return Step(Decision(False, int(left), wait_s, reset_s, self.limit), (newest, *counts), expires_s)
        counts[0] += cost
        reset_s, expires_s = self._reset(newest, counts, now_s)
        return Step(Decision(True, int(left - cost), 0.0, reset_s, self.limit), (newest, *counts), expires_s)

    def _left(self, record: Record, now_s: float) -> float:
        return self.limit - sum(self._counted(record, now_s)[1])

    def _counted(self, record: Record | None, now_s: float) -> tuple[float, list[float]]:
        """The sub-window of now, and the counts that matter. When time goes back, the one that was newest goes on."""
        newest = float((now_s + CLOCK_S) // self.sub_s)
        kept = self.sub_windows + 1
        if record is None or newest - record[0] >= kept:
            return newest, [0.0] * kept
        passed = int(newest - record[0])
        if passed <= 0:
            return record[0], list(record[1:])
        return newest, [0.0] * passed + list(record[1 : kept + 1 - passed])

    def _leaves_s(self, newest: float, age: int) -> float:
        """When the counter that is `age` sub-windows old counts no more."""
        return (newest - age + self.sub_windows + 1) * self.sub_s

    def _wait_s(self, newest: float, counts: list[float], missing: float, now_s: float) -> float:
        """Until `missing` requests count no more, the oldest first."""
        for age in range(self.sub_windows, -1, -1):
            missing -= counts[age]
            if missing <= 0:
                return max(self._leaves_s(newest, age) - now_s, 0.0)
        return math.inf

    def _reset(self, newest: float, counts: list[float], now_s: float) -> tuple[float, float]:
        """How long until nothing counts any more, and when that is."""
        for age, count in enumerate(counts):
            if count:
                leaves_s = self._leaves_s(newest, age)
                return max(leaves_s - now_s, 0.0), leaves_s
        return 0.0, now_s
