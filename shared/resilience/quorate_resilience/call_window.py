"""Calls counted over the last seconds, in slots: a slot at a time falls out, so that counting and sliding are O(1)."""

from typing import NamedTuple

WINDOW_SLOTS = 10


class CallCounts(NamedTuple):
    """Calls by how they were settled; one that failed or was slow is in just one of the two."""

    calls: int
    failed: int
    slow: int


class CallWindow:
    """What was counted in the last `window_s` seconds, and up to a slot, a WINDOW_SLOTS-th of it, less.

    `calls`, `failed` and `slow` are the sums as of the last `slide_to`.
    """

    __slots__ = ("_calls", "_failed", "_slot", "_slot_end_s", "_slot_s", "_slow", "calls", "failed", "slow")

    def __init__(self, window_s: float) -> None:
        self._slot_s = window_s / WINDOW_SLOTS
        self._slot = 0
        """The number of the present slot, since time 0."""
        self._slot_end_s = float("-inf")
        self.clear()

    def clear(self) -> None:
        self.calls = self.failed = self.slow = 0
        self._calls, self._failed, self._slow = [0] * WINDOW_SLOTS, [0] * WINDOW_SLOTS, [0] * WINDOW_SLOTS

    def count(self, now_s: float, failed: int, slow: int) -> None:
        """One call; `failed` and `slow` are 0 or 1. When time goes back, the newest slot is counted in."""
        if now_s >= self._slot_end_s:
            self.slide_to(now_s)
        at = self._slot % WINDOW_SLOTS
        self._calls[at] += 1
        self.calls += 1
        if failed:
            self._failed[at] += 1
            self.failed += 1
        elif slow:
            self._slow[at] += 1
            self.slow += 1

    def slide_to(self, now_s: float) -> None:
        """Let fall out what is too old."""
        if now_s < self._slot_end_s:
            return
        slot = int(now_s // self._slot_s)
        if slot - self._slot >= WINDOW_SLOTS:
            self.clear()
        else:
            for passed in range(self._slot + 1, slot + 1):
                at = passed % WINDOW_SLOTS
                self.calls -= self._calls[at]
                self.failed -= self._failed[at]
                self.slow -= self._slow[at]
                self._calls[at] = self._failed[at] = self._slow[at] = 0
        self._slot = max(slot, self._slot)
        self._slot_end_s = (self._slot + 1) * self._slot_s

    @property
    def counts(self) -> CallCounts:
        return CallCounts(self.calls, self.failed, self.slow)
