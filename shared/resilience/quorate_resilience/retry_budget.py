"""The retry budget: how many further tries a route's requests may cause, so that retries never multiply an outage.

An upstream that fails under load is asked more often by those who retry, just when it can bear less. A budget bounds
that: retries of the last `window_s` seconds are at most `percent` of the requests of that time, or `retries_min` when
that is more, since a route with few requests could otherwise never retry one. (Finagle's RetryBudget; Envoy's
`retry_budget`.)

Requests and retries are counted in slots of a tenth of the window, so that counting costs O(1) and no memory for each.
The slots round to the safe side: requests are counted over the last nine to ten tenths, retries over the last ten to
eleven, so that in no `window_s` seconds there are more retries than the definition allows.

Time is an argument and does not go back. Plain state without a lock: one event loop, or one thread, owns it.
"""

import math

WINDOW_S = 10.0
RETRIES_MIN = 10
SLOTS = 10
"""Of the window."""


class SlidingCount:
    """Events of the last `slots` slots of `slot_s` seconds, the running one included."""

    __slots__ = ("_counts", "_present", "_slot", "_slot_end_s", "_slot_s")

    def __init__(self, slot_s: float, slots: int) -> None:
        self._slot_s = slot_s
        self._counts = [0] * slots
        """By number of the slot, modulo `slots`; the running one's is `_present`, and here 0."""
        self._present = 0
        self._slot = 0
        self._slot_end_s = -math.inf

    def add(self, now_s: float) -> None:
        if now_s >= self._slot_end_s:
            self._slide_to(now_s)
        self._present += 1

    def total(self, now_s: float) -> int:
        if now_s >= self._slot_end_s:
            self._slide_to(now_s)
        return sum(self._counts) + self._present

    def _slide_to(self, now_s: float) -> None:
        slot, counts = int(now_s // self._slot_s), self._counts
        counts[self._slot % len(counts)] = self._present
        self._present = 0
        for passed in range(self._slot + 1, min(slot, self._slot + len(counts)) + 1):
            counts[passed % len(counts)] = 0
        self._slot = slot
        self._slot_end_s = (slot + 1) * self._slot_s


class RetryBudget:
    """Tell it of each request by `count`, and ask `try_take` before each retry."""

    __slots__ = ("_requests", "_retries", "count", "percent", "refused", "retries_min")

    def __init__(self, percent: float, window_s: float = WINDOW_S, retries_min: int = RETRIES_MIN) -> None:
        """Raises ValueError for values that can mean nothing."""
        if not (math.isfinite(window_s) and window_s > 0):
            raise ValueError(f"window_s must be a finite number above 0, not {window_s}")
        if not 0 <= percent <= 100 or retries_min < 0:
            raise ValueError(f"percent must be 0 to 100 and retries_min not negative, not {percent} and {retries_min}")
        self.percent = percent
        self.retries_min = retries_min
        self.refused = 0
        """Retries that were not allowed, from the beginning on."""
        self._requests = SlidingCount(window_s / SLOTS, SLOTS)
        self._retries = SlidingCount(window_s / SLOTS, SLOTS + 1)
        self.count = self._requests.add
        """`count(now_s)`: one request, whatever becomes of it. The counter's own method: it is called each time."""

    def try_take(self, now_s: float) -> bool:
        """Whether there may be one retry now; it is counted when there may."""
        if self.spent(now_s) >= self.allowed(now_s):
            self.refused += 1
            return False
        self._retries.add(now_s)
        return True

    def spent(self, now_s: float) -> int:
        """Retries that count now."""
        return self._retries.total(now_s)

    def allowed(self, now_s: float) -> int:
        """How many retries there may be within the window, as of now."""
        return max(self.retries_min, int(self._requests.total(now_s) * self.percent / 100))
