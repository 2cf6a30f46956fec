"""Which endpoint is asked: one for as long as it answers, another one when it does not. Pure: time is an argument.

The *preferred* endpoint is asked first. One that fails is set aside for a while that doubles with each failure, and the
next in the ring is preferred; those that are set aside come last, the one whose time is over soonest first: when all of
them have failed, there is nothing better than to ask again. An answer makes up for all failures before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SET_ASIDE_S_MIN = 0.2
SET_ASIDE_S_MAX = 10.0


@dataclass(slots=True)
class _Standing:
    set_aside_s: float = 0.0
    """The last time; 0 when it has answered since."""
    until_s: float = 0.0


class EndpointOrder:
    """`count` endpoints, known by their places."""

    def __init__(self, count: int) -> None:
        self._standings = [_Standing() for _ in range(count)]
        self._preferred = 0

    def order(self, now_s: float) -> Sequence[int]:
        """All of them, the one to ask first in front."""
        count = len(self._standings)
        ring = [(self._preferred + step) % count for step in range(count)]
        return sorted(ring, key=lambda place: self._waits_until_s(place, now_s))

    def failed(self, place: int, now_s: float) -> None:
        standing = self._standings[place]
        if now_s < standing.until_s:
            return  # others that were under way fail at the same time
        standing.set_aside_s = min(2 * standing.set_aside_s or SET_ASIDE_S_MIN, SET_ASIDE_S_MAX)
        standing.until_s = now_s + standing.set_aside_s
        if place == self._preferred:
            self._preferred = (place + 1) % len(self._standings)

    def answered(self, place: int) -> None:
        self._standings[place] = _Standing()

    def _waits_until_s(self, place: int, now_s: float) -> float:
        until_s = self._standings[place].until_s
        return until_s if until_s > now_s else 0.0
