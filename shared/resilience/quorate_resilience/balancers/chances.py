"""Balancers that choose by chance: one by weight, or the better of two.

The better of two random ones ("two choices", Mitzenmacher 2001) is nearly as good as the best of all, costs O(1), and
is safe where many gateways decide at once, since they do not all run to the same one.

How two are compared. Requests are in the right place when each member has its part of them, by weight. So of the two
members `a` and `b`, which with the new request have `n` in progress, `a` should have `n * a.weight / (a.weight +
b.weight)`: it takes the new one with the probability that it falls short of that by, which is 0 when it has all that it
should, and 1 when it lacks a whole one. With equal weights that is the usual rule: the one with fewer takes it, and
chance decides between equals. When nothing is in progress it is a draw by weight. The first of the two is drawn by
weight and the second evenly among the others, so that a pair comes in proportion to its joint weight, and at rest
each member's share is exactly its weight's.
"""

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

from quorate_resilience.balancers.member import BusyMember, Draw, MemberT

BusyT = TypeVar("BusyT", bound=BusyMember)

LATENCY_DECAY_S = 10.0
"""After so long without a newer one, a measured latency counts for a third."""
LATENCY_S_MIN = 0.0001
"""Differences below it are noise."""


class _Weights(Generic[MemberT]):
    """Draws by weight from one sequence of members."""

    __slots__ = ("_bounds", "_draw", "_total", "count", "is_even", "members")

    def __init__(self, members: Sequence[MemberT], draw: Draw) -> None:
        self.members = members
        self.count = len(members)
        self._bounds = tuple(accumulate(member.weight for member in members))
        self._total = self._bounds[-1] if members else 0
        self.is_even = len({member.weight for member in members}) < 2
        self._draw = draw

    def index(self) -> int:
        if self.is_even:
            return int(self._draw() * self.count)
        return bisect_right(self._bounds, self._draw() * self._total)

    def pair(self) -> tuple[MemberT, MemberT]:
        """Two different ones, of two or more."""
        first = self.index()
        second = int(self._draw() * (self.count - 1))
        return self.members[first], self.members[second + (second >= first)]


class _ByChance(Generic[MemberT]):
    """What balancers by chance have in common: the weights of the members of the moment."""

    __slots__ = ("_draw", "_members", "_weights")

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._members: Sequence[MemberT] = ()
        self._weights: _Weights[MemberT] = _Weights((), draw)

    def _weights_of(self, members: Sequence[MemberT], excluded: Collection[MemberT]) -> _Weights[MemberT]:
        if excluded:
            return _Weights([member for member in members if member not in excluded], self._draw)
        self._members = members
        self._weights = _Weights(members, self._draw)
        return self._weights


class RandomChoice(_ByChance[MemberT]):
    """Any, by weight. Knows nothing and needs nothing; O(log n)."""

    __slots__ = ()

    def pick(
        self, members: Sequence[MemberT], excluded: Collection[MemberT] = (), key: bytes = b"", now_s: float = 0.0
    ) -> MemberT | None:
        weights = self._weights
        if members is not self._members or excluded:
            weights = self._weights_of(members, excluded)
        return weights.members[weights.index()] if weights.count else None


class LeastRequest(_ByChance[BusyT]):
    """Of two, the one that has fewer requests in progress for its weight. O(1) with equal weights, else O(log n)."""

    __slots__ = ()

    def pick(
        self, members: Sequence[BusyT], excluded: Collection[BusyT] = (), key: bytes = b"", now_s: float = 0.0
    ) -> BusyT | None:
        weights = self._weights
        if members is not self._members or excluded:
            weights = self._weights_of(members, excluded)
        count = weights.count
        if count < 2:
            return weights.members[0] if count else None
        if weights.is_even:
            # One draw names the pair, in its order; the first of equals is as good as any.
            others = count - 1
            first, second = divmod(int(self._draw() * (count * others)), others)
            one, other = weights.members[first], weights.members[second + (second >= first)]
            return other if other.active < one.active else one
        one, other = weights.pair()
        return _fairer(one, one.weight, other, other.weight, self._draw)


class PeakLatency:
    """A member's latency as it was lately: a mean that forgets, and that takes a higher value at once (Finagle's peak
    EWMA). So a member that has become slow is known by its first slow answer, and one that has recovered by many."""

    __slots__ = ("latency_s", "seen_s")

    def __init__(self) -> None:
        self.latency_s = LATENCY_S_MIN
        self.seen_s = -math.inf
        """When it was last measured; -inf for never."""

    def observe(self, latency_s: float, now_s: float) -> None:
        if latency_s >= self.latency_s:
            self.latency_s = latency_s
        else:
            kept = math.exp((self.seen_s - now_s) / LATENCY_DECAY_S)
            self.latency_s = max(self.latency_s * kept + latency_s * (1.0 - kept), LATENCY_S_MIN)
        self.seen_s = now_s


class TimedMember(BusyMember, Protocol):
    @property
    def latency(self) -> PeakLatency:
        """Its owner lets it observe every answer."""


TimedT = TypeVar("TimedT", bound=TimedMember)


class PeakEwma(_ByChance[TimedT]):
    """Of two, the one that is faster for its load and weight.

    As `LeastRequest`, with weights that go down with the square of the latency: a member that takes twice as long
    counts for a quarter. (By Little's law that is the share that it gets, too, when requests in progress times latency
    are equal everywhere.) A measurement loses its say with its age: two members of which one has long not been asked
    count as equally fast, so that one that was slow is tried again, and a newcomer is neither shunned nor flooded.
    """

    __slots__ = ()

    def pick(
        self, members: Sequence[TimedT], excluded: Collection[TimedT] = (), key: bytes = b"", now_s: float = 0.0
    ) -> TimedT | None:
        weights = self._weights
        if members is not self._members or excluded:
            weights = self._weights_of(members, excluded)
        if weights.count < 2:
            return weights.members[0] if weights.count else None
        one, other = weights.pair()
        its, others = one.latency, other.latency
        age_s = (now_s - its.seen_s) + (now_s - others.seen_s)
        faster = (others.latency_s / its.latency_s) ** (2.0 * math.exp(-age_s / LATENCY_DECAY_S))
        return _fairer(one, one.weight * faster, other, other.weight, self._draw)


def _fairer(one: BusyT, weight: float, other: BusyT, other_weight: float, draw: Draw) -> BusyT:
    both = weight + other_weight
    lacking = (one.active + other.active + 1) * weight - one.active * both
    return one if draw() * both < lacking else other
