"""Each machine's own clocks, which go a little too fast or too slow, and jump.

The loop has the true time. A machine's monotonic clock is a line through it, `rate` seconds for each true one, which
starts anew at a boot and may jump ahead, as after a machine was suspended; its wall clock may jump either way. Nothing
that a member decides may depend on the wall clock, and no promise on how two monotonic clocks compare.
"""

from collections.abc import Callable

WALL_START_S = 1_700_000_000.0


class MachineClock:
    """`quorate_core.clock.Clock` of one machine. `true_time` is the loop's, in seconds."""

    def __init__(self, true_time: Callable[[], float], rate: float, boot_s: float) -> None:
        self._true_time = true_time
        self._rate = rate
        self._true_anchor_s = true_time()
        self._anchor_s = boot_s
        self._wall_offset_s = WALL_START_S

    def monotonic_s(self) -> float:
        return self.at(self._true_time())

    def wall_s(self) -> float:
        return self._wall_offset_s + self._true_time()

    def at(self, true_s: float) -> float:
        """What this clock shows when it is truly `true_s`."""
        return self._anchor_s + (true_s - self._true_anchor_s) * self._rate

    def true_time_of(self, own_s: float) -> float:
        """When it is truly `own_s` on this clock, if it does not jump before."""
        return self._true_anchor_s + (own_s - self._anchor_s) / self._rate

    def boot(self, boot_s: float) -> None:
        """A machine counts from its boot."""
        self._true_anchor_s, self._anchor_s = self._true_time(), boot_s

    def jump_ahead(self, seconds: float) -> None:
        """The monotonic clock. Whoever has timers on it must move them too: see `SimulatedLoop.jump_ahead`."""
        self._anchor_s += seconds

    def jump_wall(self, seconds: float) -> None:
        self._wall_offset_s += seconds
