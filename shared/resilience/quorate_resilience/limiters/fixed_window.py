"""The fixed window counter: so many requests in each window of the clock.

Time is cut into windows of `window_s`, the same for all keys; each key has a counter, which begins anew with a window.
It is the cheapest to keep and to explain, and what a bill or a quota usually means. Its weakness is the edge: who asks
for the whole limit at the end of one window and again at the start of the next has twice the limit within a moment. In
any time `t` a key is admitted at most `limit * (floor(t / window_s) + 2)`.
"""

import math

from quorate_resilience.limiters.decision import Decision
from quorate_resilience.limiters.table import Record, Table
from quorate_resilience.limiters.tabled import CLOCK_S, Step, TabledLimiter


class FixedWindow(TabledLimiter):
    """A record is the number of a window, and what was counted in it."""

    __slots__ = ("limit", "window_s")

    def __init__(self, limit: int, window_s: float, table: Table | None = None) -> None:
        """Raises ValueError for a limit below 1, and for a window that is not above zero and finite."""
        super().__init__(table)
        check_window(limit, window_s)
        self.limit = limit
        self.window_s = window_s

    def _step(self, record: Record | None, now_s: float, cost: int) -> Step:
        window, count = self._counted(record, now_s)
        ends_s = (window + 1) * self.window_s
        left = self.limit - count
        until_s = max(ends_s - now_s, 0.0)
        if cost > left:
            wait_s = until_s if cost <= self.limit else math.inf
            return Step(Decision(False, int(left), wait_s, until_s, self.limit), (window, count), ends_s)
        count += cost
        reset_s = until_s if count else 0.0
        return Step(Decision(True, int(self.limit - count), 0.0, reset_s, self.limit), (window, count), ends_s)

    def _left(self, record: Record, now_s: float) -> float:
        return self.limit - self._counted(record, now_s)[1]

    def _counted(self, record: Record | None, now_s: float) -> tuple[float, float]:
        """The window of now, and what is counted in it. When time goes back, the window that was last goes on."""
        window = float((now_s + CLOCK_S) // self.window_s)
        if record is None or record[0] < window:
            return window, 0.0
        return record[0], record[1]


def check_window(limit: int, window_s: float) -> None:
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if not (math.isfinite(window_s) and window_s > 0):
        raise ValueError(f"window_s must be a finite number above 0, not {window_s}")
