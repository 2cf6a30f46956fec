"""Nodes that have been up until lately: clients that followed them may still be on their way to another one. Pure, but
for the clock that it is given."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from quorate_core.clock import Clock

from quorate_registry.acknowledgements import RETURN_S


class RecentNodes:
    """Is told now and then who is up."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._up: AbstractSet[str] = frozenset()
        self._gone: dict[str, float] = {}
        """When each was first missed."""

    def take(self, up: AbstractSet[str]) -> Mapping[str, float]:
        """These are up now. Returns those that have gone, with the seconds for which they still count."""
        now_s = self._clock.monotonic_s()
        for name in self._up - up:
            self._gone[name] = now_s
        self._up = frozenset(up)
        left = {name: since_s + RETURN_S - now_s for name, since_s in self._gone.items() if name not in up}
        self._gone = {name: self._gone[name] for name, left_s in left.items() if left_s > 0}
        return {name: left[name] for name in sorted(self._gone)}
