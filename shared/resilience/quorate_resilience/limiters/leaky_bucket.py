"""The leaky bucket: whatever comes in, requests go out at a constant rate.

Each key has a queue, and departures `1 / rate_per_s` apart. A request that finds nobody before it leaves at once;
others are told after what `delay_s` they leave, and one that would be farther behind than `queue` places, or would wait
longer than `queue_wait_s`, is refused. So an upstream behind it sees no burst at all, ever: that is what it is for, and
the price is its weakness, since a client that pauses and then asks for three things at once waits for the second and
the third, where a token bucket would let them pass.

A record is the time of the next departure that is free, and of those before it that were given back. The departure of
a request that leaves the queue is given back: the last of all just shortens the queue; another is a gap, which is the
next to be given out. Who keeps the queue's members in their order (`WaitingLine`) lets all behind move up, and gives
back the last, so that gaps come only from queues with several keepers.
"""

import bisect
import math

from quorate_resilience.limiters.decision import Decision
from quorate_resilience.limiters.table import RECORD_FLOATS_MAX, Record, Table
from quorate_resilience.limiters.tabled import CLOCK_S, Step, TabledLimiter

GAPS_MAX = RECORD_FLOATS_MAX - 1
"""Departures given back before the last one that a record remembers; those over it go unused."""


class LeakyBucket(TabledLimiter):
    """Departures by key, in a table."""

    __slots__ = ("_interval_s", "_wait_s_max", "limit", "queue", "queue_wait_s", "rate_per_s")

    def __init__(self, rate_per_s: float, queue: int, queue_wait_s: float, table: Table | None = None) -> None:
        """Raises ValueError for a rate or a wait that is not above zero and finite, and for a negative queue."""
        super().__init__(table)
        for name, value in (("rate_per_s", rate_per_s), ("queue_wait_s", queue_wait_s)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number above 0, not {value}")
        if queue < 0:
            raise ValueError(f"queue must not be negative, not {queue}")
        self.rate_per_s = rate_per_s
        self.queue = queue
        self.queue_wait_s = queue_wait_s
        self._interval_s = 1 / rate_per_s
        self._wait_s_max = min(queue * self._interval_s, queue_wait_s)
        self.limit = self._room(0.0)

    def give_back(self, key: bytes, departure_s: float, now_s: float) -> None:
        """A request that was to leave at `departure_s` does not. What is past, or was never given out, is nothing."""
        with self._table.locked(key):
            record = self._table.get(key)
            if record is None or departure_s <= now_s or departure_s >= record[0]:
                return
            free_s, gaps = record[0], [gap for gap in record[1:] if gap > now_s]
            half_s = self._interval_s / 2
            if free_s - departure_s < self._interval_s + half_s:
                free_s = departure_s
                while gaps and free_s - gaps[-1] < self._interval_s + half_s:
                    free_s = gaps.pop()
            elif len(gaps) < GAPS_MAX and not any(abs(gap - departure_s) < half_s for gap in gaps):
                bisect.insort(gaps, departure_s)
            self._table.put(key, (free_s, *gaps), free_s, now_s)

    def _step(self, record: Record | None, now_s: float, cost: int) -> Step:
        free_s = now_s if record is None else max(record[0], now_s)
        gaps = [] if record is None else [gap for gap in record[1:] if gap > now_s]
        if cost == 1 and gaps:
            departure_s = gaps.pop(0)
        else:
            departure_s = free_s
            if cost and (departure_s - now_s > self._wait_s_max + CLOCK_S or cost > self.limit):
                return self._refused(free_s, gaps, now_s, cost)
            free_s += cost * self._interval_s
        delay_s = departure_s - now_s if cost and departure_s - now_s > CLOCK_S else 0.0
        left = self._room(free_s - now_s) + len(gaps)
        decision = Decision(True, left, 0.0, free_s - now_s, self.limit, delay_s)
        return Step(decision, (free_s, *gaps), free_s)

    def _refused(self, free_s: float, gaps: list[float], now_s: float, cost: int) -> Step:
        behind_s = free_s - now_s
        wait_s = behind_s - self._wait_s_max if cost <= self.limit else math.inf
        decision = Decision(False, self._room(behind_s) + len(gaps), max(wait_s, 0.0), behind_s, self.limit)
        return Step(decision, (free_s, *gaps), free_s)

    def _left(self, record: Record, now_s: float) -> float:
        behind_s = max(record[0] - now_s, 0.0)
        gaps = sum(gap > now_s for gap in record[1:])
        return max((self._wait_s_max - behind_s) * self.rate_per_s + 1, 0.0) + gaps

    def _room(self, behind_s: float) -> int:
        """How many more may join when the next would leave in `behind_s`."""
        left_s = self._wait_s_max - behind_s + CLOCK_S
        return int(left_s * self.rate_per_s) + 1 if left_s >= 0 else 0
