"""Time as an argument: what needs the time is handed a `Clock`, so that tests and simulations drive it."""

import time
from typing import Protocol


class Clock(Protocol):
    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; never goes back, unaffected by changes of the wall clock."""
        ...

    def wall_s(self) -> float:
        """Seconds since the Unix epoch; for showing to people, never for deciding."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


class ManualClock:
    """A clock that stands still until it is told to advance; wall and monotonic time move together."""

    def __init__(self, start_s: float = 1_000.0) -> None:
        self._now_s = start_s

    def monotonic_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds
