"""When who is due. Pure.

A heap of due times, where what was set again or dropped stays behind as stale until its time comes, or until stale ones
are more than half: then the heap is built anew, so that its size is bounded by what is scheduled.

How times are chosen: who was never checked is checked soon, so that it need not wait for its first result; who was, by
a predecessor, begins anywhere in its interval, so that a node that takes over thousands does not begin them all at
once. Each interval is a little longer or shorter than the one that is asked for, so that what began together does not
stay so.
"""

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

FIRST_SPREAD_S = 0.5
"""First checks of many instances that are registered at once are spread over this."""
JITTER_SHARE = 0.05
"""Of an interval, to either side."""
STALE_MIN = 64
"""So many stale ones are not worth building a heap anew."""

K = TypeVar("K")

Chance = Callable[[], float]
"""Uniform in [0, 1)."""


class Schedule(Generic[K]):
    def __init__(self) -> None:
        self._due: dict[K, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0
        # Makes entries of the same time comparable without comparing keys, and tells stale ones.

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: K) -> bool:
        return key in self._due

    def set(self, key: K, due_s: float) -> None:
        """Due at `due_s`, whenever it was before."""
        self._count += 1
        self._due[key] = (due_s, self._count)
        heapq.heappush(self._heap, (due_s, self._count, key))
        self._rebuild_if_stale()

    def discard(self, key: K) -> None:
        if self._due.pop(key, None) is not None:
            self._rebuild_if_stale()

    def pop_due(self, now_s: float) -> K | None:
        """The one that is due longest, no longer scheduled; None when none is due at `now_s`."""
        due_s = self.next_due_s()
        if due_s is None or due_s > now_s:
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._due[key]
        return key

    def next_due_s(self) -> float | None:
        while self._heap:
            due_s, count, key = self._heap[0]
            if self._due.get(key) == (due_s, count):
                return due_s
            heapq.heappop(self._heap)
        return None

    def _rebuild_if_stale(self) -> None:
        if len(self._heap) > 2 * len(self._due) + STALE_MIN:
            self._heap = [(due_s, count, key) for key, (due_s, count) in self._due.items()]
            heapq.heapify(self._heap)


def first_due_s(now_s: float, interval_s: float, was_checked: bool, chance: Chance) -> float:
    spread_s = interval_s if was_checked else min(interval_s, FIRST_SPREAD_S)
    return now_s + spread_s * chance()


def next_due_s(began_s: float, interval_s: float, chance: Chance) -> float:
    """Counted from when the last check began."""
    return began_s + interval_s * (1 + JITTER_SHARE * (2 * chance() - 1))
