"""Round robin by weights, in two ways: turns that are sat out, and turns that are spread as evenly as can be.

With equal weights both are plain round robin. With others, `InterleavedRoundRobin` goes round and lets each member sit
out turns in proportion: after a light one served, the next several rounds go without it. `SmoothRoundRobin` chooses at
each pick who is furthest behind, so that even the heaviest is never picked more often in a row than it must be; it is
nginx's smooth weighted round robin, over the sets of members that have one weight in common, each of which takes turns
within. That comes out as evenly, and costs O(number of different weights) instead of O(number of members).

A pick with `excluded` has turns of its own, as in `RoundRobin`: what a dead member fails is shared by weight among all
others, and moves nobody's regular turn.
"""

from collections.abc import Collection, Sequence
from typing import Generic

from quorate_resilience.balancers.member import MemberT
from quorate_resilience.balancers.round_robin import RoundRobin

_GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly however many there are (Knuth, TAOCP volume 3, section 6.4)."""


class _Credits(Generic[MemberT]):
    """Turns of members that serve when they have saved up as much as the heaviest gets in a turn."""

    __slots__ = ("_newcomers", "_saved", "_turns")

    def __init__(self, first_index: int) -> None:
        self._turns: RoundRobin[MemberT] = RoundRobin(first_index)
        self._saved: dict[str, float] = {}
        """By identity; below the weight of the heaviest."""
        self._newcomers = first_index

    def follow(self, members: Sequence[MemberT]) -> None:
        """Those that stay keep their savings; others begin anywhere, so that many light ones do not serve at once."""
        heaviest = max((member.weight for member in members), default=0)
        saved, former = {}, self._saved
        for member in members:
            found = former.get(member.identity)
            if found is None:
                self._newcomers += 1
                found = heaviest * (self._newcomers * _GOLDEN % 1.0)
            saved[member.identity] = min(found, heaviest)
        self._saved = saved

    def pick(self, members: Sequence[MemberT], excluded: Collection[MemberT], heaviest: int) -> MemberT:
        """`heaviest` of those that are not excluded, of which there is one: so a single round is enough."""
        saved, turns = self._saved, self._turns
        while True:
            member = turns.pick(members)
            if member is None or (excluded and member in excluded):
                continue
            credit = saved[member.identity] + member.weight
            if credit >= heaviest:
                saved[member.identity] = min(credit - heaviest, heaviest)
                return member
            saved[member.identity] = credit


class InterleavedRoundRobin(Generic[MemberT]):
    """Each in turn; one with half the weight of the heaviest serves at every second turn. O(1) with equal weights,
    otherwise at most one round, and in the mean `heaviest / mean weight` steps."""

    __slots__ = ("_credits", "_heaviest", "_is_even", "_members", "_spare", "_turns")

    def __init__(self, first_index: int = 0) -> None:
        """`first_index`: as of `RoundRobin`."""
        self._members: Sequence[MemberT] = ()
        self._is_even = True
        self._heaviest = 0
        self._turns: RoundRobin[MemberT] = RoundRobin(first_index)
        self._credits: _Credits[MemberT] = _Credits(first_index)
        self._spare: _Credits[MemberT] = _Credits(first_index)

    def pick(
        self, members: Sequence[MemberT], excluded: Collection[MemberT] = (), key: bytes = b"", now_s: float = 0.0
    ) -> MemberT | None:
        if members is not self._members:
            self._follow(members)
        if excluded:
            heaviest = max((member.weight for member in members if member not in excluded), default=0)
            return self._spare.pick(members, excluded, heaviest) if heaviest else None
        if self._is_even:
            return self._turns.pick(members)
        return self._credits.pick(members, (), self._heaviest)

    def _follow(self, members: Sequence[MemberT]) -> None:
        weights = {member.weight for member in members}
        self._members = members
        self._is_even = len(weights) < 2
        self._heaviest = max(weights, default=0)
        self._credits.follow(members)
        self._spare.follow(members)


class _Weighed(Generic[MemberT]):
    """Members of one weight. `behind` is nginx's `current_weight`: how much it is owed, in weights."""

    __slots__ = ("behind", "members", "turns", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.members: Sequence[MemberT] = ()
        self.turns: RoundRobin[MemberT] = RoundRobin()
        self.behind = 0


class SmoothRoundRobin(Generic[MemberT]):
    """Smooth weighted round robin (nginx 1.3.1, `ngx_http_upstream_round_robin.c`): at each pick every set of equal
    weights is owed its weight more, and the one that is owed most serves and pays the sum of all.

    With weights that are all different it picks exactly as nginx does.
    """

    __slots__ = ("_first_index", "_members", "_sets", "_spare", "_total")

    def __init__(self, first_index: int = 0) -> None:
        """`first_index`: whose turn is first among members of one weight."""
        self._first_index = first_index
        self._members: Sequence[MemberT] = ()
        self._sets: list[_Weighed[MemberT]] = []
        self._spare: list[_Weighed[MemberT]] = []
        self._total = 0

    def pick(
        self, members: Sequence[MemberT], excluded: Collection[MemberT] = (), key: bytes = b"", now_s: float = 0.0
    ) -> MemberT | None:
        if members is not self._members:
            self._follow(members)
        if excluded:
            return self._pick_spare(excluded)
        sets = self._sets
        if len(sets) < 2:
            return sets[0].turns.pick(sets[0].members) if sets else None
        most = sets[0]
        for one in sets:
            one.behind += one.weight * len(one.members)
            if one.behind > most.behind:
                most = one
        most.behind -= self._total
        return most.turns.pick(most.members)

    def _pick_spare(self, excluded: Collection[MemberT]) -> MemberT | None:
        most: _Weighed[MemberT] | None = None
        total = 0
        for one in self._spare:
            left = one.weight * sum(member not in excluded for member in one.members)
            if left:
                total += left
                one.behind += left
                if most is None or one.behind > most.behind:
                    most = one
        if most is None:
            return None
        most.behind -= total
        return most.turns.pick(most.members, excluded)

    def _follow(self, members: Sequence[MemberT]) -> None:
        by_weight: dict[int, list[MemberT]] = {}
        for member in members:
            by_weight.setdefault(member.weight, []).append(member)
        self._sets = self._followed(self._sets, by_weight)
        self._spare = self._followed(self._spare, by_weight)
        self._members = members
        self._total = sum(member.weight for member in members)

    def _followed(
        self, former: Sequence[_Weighed[MemberT]], by_weight: dict[int, list[MemberT]]
    ) -> list[_Weighed[MemberT]]:
        known = {one.weight: one for one in former}
        sets = []
        for weight, members in by_weight.items():
            one = known.get(weight)
            if one is None:
                one = _Weighed(weight)
                one.turns = RoundRobin(self._first_index)
            one.members = tuple(members)
            sets.append(one)
        return sets
