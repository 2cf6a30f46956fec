"""The token bucket: a steady rate, and bursts up to what was saved.

Each key has a bucket that holds up to `burst` tokens and is filled at `rate_per_s`; a request takes its cost from it,
or is refused and takes nothing. So in any time `t` a key is admitted at most `burst + rate_per_s * t`, and one that
stays under the rate is never refused. Nothing runs in the background: a bucket is filled when it is looked at.

Its weakness is the burst: after a pause, an upstream may get `burst` requests within a moment, and the rate as well,
so that in the first second it gets both.

Memory is bounded. A bucket that is full again says no more than none at all, so full ones are forgotten, the longest
unused first. Only when `keys_max` keys are all in use is one forgotten that is not full, and its key begins anew with a
full bucket; `forgotten_early` counts these.

There are two of them. `TokenBucket` has the table of one process built in, and is twice as fast: it is what nearly
every limited request meets. `TabledTokenBucket` keeps the same in any `Table`. Tests hold both to the same decisions.
"""

import heapq
import math
from collections import OrderedDict

from quorate_resilience.limiters.decision import Decision
from quorate_resilience.limiters.table import FORGOTTEN_A_KEY_MAX, KEYS_MAX, LOOKED_AT_MAX, Record, Table
from quorate_resilience.limiters.tabled import CLOCK_S, BucketFill, Step, TabledLimiter

_new_tuple = tuple.__new__


class _Bucket:
    """`tokens` is what was in it at `updated_s`; never above the burst, nor below zero by more than rounding."""

    __slots__ = ("tokens", "updated_s")

    def __init__(self, tokens: float, updated_s: float) -> None:
        self.tokens = tokens
        self.updated_s = updated_s


class TokenBucket:
    """Buckets by key. Plain state without a lock: one event loop, or one thread, owns it."""

    __slots__ = ("_buckets", "_burst_tokens", "_slack", "burst", "forgotten_early", "keys_max", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: int, keys_max: int = KEYS_MAX) -> None:
        """Raises ValueError for a rate that is not above zero and finite, and for a burst or `keys_max` below 1."""
        _check(rate_per_s, burst)
        if keys_max < 1:
            raise ValueError(f"keys_max must be at least 1, not {keys_max}")
        self.rate_per_s = rate_per_s
        self.burst = burst
        self.keys_max = keys_max
        self.forgotten_early = 0
        self._burst_tokens = float(burst)
        self._slack = CLOCK_S * max(rate_per_s, 1.0)
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()
        """The longest unused first."""

    def __len__(self) -> int:
        """How many keys have a bucket; all others have a full one."""
        return len(self._buckets)

    def decide(self, key: bytes, now_s: float, cost: int = 1) -> Decision:
        """Take `cost` tokens of `key`, if they are there. `now_s` is monotonic; when it goes back nothing is filled.

        A `cost` of 0 only looks. O(1).
        """
        bucket = self._buckets.get(key)
        burst = self._burst_tokens
        if bucket is None:
            tokens = burst
        else:
            passed_s = now_s - bucket.updated_s
            tokens = bucket.tokens + passed_s * self.rate_per_s if passed_s > 0 else bucket.tokens
            if tokens > burst:
                tokens = burst
        if tokens + self._slack < cost:
            if bucket is not None:
                self._buckets.move_to_end(key)  # who asks in vain is in use: to be forgotten would be a gift
            wait_s = (cost - tokens) / self.rate_per_s if cost <= self.burst else math.inf
            return Decision(False, max(int(tokens), 0), wait_s, (burst - tokens) / self.rate_per_s, self.burst)
        if cost:
            tokens -= cost
            if bucket is None:
                self._admit_key(key, _Bucket(tokens, now_s), now_s)
            else:
                bucket.tokens = tokens
                if passed_s > 0:
                    bucket.updated_s = now_s
                self._buckets.move_to_end(key)
        # As `Decision(...)`, in half the time.
        reset_s = (burst - tokens) / self.rate_per_s
        return _new_tuple(Decision, (True, int(tokens + self._slack), 0.0, reset_s, self.burst, 0.0))

    def emptiest(self, now_s: float, count_max: int) -> list[BucketFill]:
        """The keys nearest to their limit, the nearest first. Looks at every key: for people, not for requests."""
        fills = (BucketFill(key, self._filled(bucket, now_s)) for key, bucket in self._buckets.items())
        return heapq.nsmallest(count_max, fills, key=lambda fill: fill.tokens)

    def _filled(self, bucket: _Bucket, now_s: float) -> float:
        passed_s = max(now_s - bucket.updated_s, 0.0)
        return min(bucket.tokens + passed_s * self.rate_per_s, self._burst_tokens)

    def _is_full(self, bucket: _Bucket, now_s: float) -> bool:
        return self._filled(bucket, now_s) >= self._burst_tokens

    def _admit_key(self, key: bytes, bucket: _Bucket, now_s: float) -> None:
        buckets = self._buckets
        for _ in range(FORGOTTEN_A_KEY_MAX):
            oldest = next(iter(buckets.items()), None)
            if oldest is None or not self._is_full(oldest[1], now_s):
                break
            del buckets[oldest[0]]
        if len(buckets) >= self.keys_max:
            self._make_room(now_s)
        buckets[key] = bucket

    def _make_room(self, now_s: float) -> None:
        """NB: `zip` asks the range first, so that no more than LOOKED_AT_MAX are looked at."""
        for _, (key, bucket) in zip(range(LOOKED_AT_MAX), self._buckets.items(), strict=False):
            if self._is_full(bucket, now_s):
                del self._buckets[key]
                return
        self._buckets.popitem(last=False)
        self.forgotten_early += 1


class TabledTokenBucket(TabledLimiter):
    """The same over a table, shared by several processes as may be. A record is the tokens, and when they were that."""

    __slots__ = ("_slack", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: int, table: Table | None = None) -> None:
        """Raises ValueError as TokenBucket does."""
        super().__init__(table)
        _check(rate_per_s, burst)
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._slack = CLOCK_S * max(rate_per_s, 1.0)

    def _step(self, record: Record | None, now_s: float, cost: int) -> Step:
        tokens = self.burst if record is None else self._left(record, now_s)
        updated_s = now_s if record is None else max(record[1], now_s)
        admitted = tokens + self._slack >= cost
        if admitted:
            tokens -= cost
            remaining, wait_s = int(tokens + self._slack), 0.0
        else:
            remaining = max(int(tokens), 0)
            wait_s = (cost - tokens) / self.rate_per_s if cost <= self.burst else math.inf
        reset_s = (self.burst - tokens) / self.rate_per_s
        return Step(
            Decision(admitted, remaining, wait_s, reset_s, self.burst), (tokens, updated_s), updated_s + reset_s
        )

    def _left(self, record: Record, now_s: float) -> float:
        return min(record[0] + max(now_s - record[1], 0.0) * self.rate_per_s, float(self.burst))


def _check(rate_per_s: float, burst: int) -> None:
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise ValueError(f"rate_per_s must be a finite number above 0, not {rate_per_s}")
    if burst < 1:
        raise ValueError(f"burst must be at least 1, not {burst}")
