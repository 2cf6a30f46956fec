"""Zone awareness: the own zone first, and the others for what it is short of (after Envoy's zone-aware routing).

Requests that stay in their zone are faster, and often cheaper. But a zone with fewer instances must not get a full
share of the requests for it. The rule: callers are taken to be spread evenly over the zones that the members are in. So
with `z` zones each one's callers send `1 / z` of all requests. A zone with at least that part of the capacity, by
weight, serves its own callers alone. One with less serves `its part * z` of them, and the rest spills over, to the
zones that have more than `1 / z`, in proportion to what they have more. When all gateways do so, each member gets the
requests that its weight is due, and as few as possible cross zones.

When members of the own zone are ejected or gone, its part shrinks, and more spills over; without any, all does.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Generic, NamedTuple, TypeVar

from quorate_resilience.balancers.member import Balancer, Draw, ZonedMember

ZonedT = TypeVar("ZonedT", bound=ZonedMember)


class ZoneShare(NamedTuple, Generic[ZonedT]):
    """`share` of the requests goes to `members`, of zone `zone`; None says: of any."""

    zone: str | None
    members: Sequence[ZonedT]
    share: float


def zone_shares(members: Sequence[ZonedT], own: str) -> list[ZoneShare[ZonedT]]:
    """Which of `members` take the requests of a caller in zone `own`. The own zone comes first, if it has any;
    the shares are above 0 and add up to 1. Members that do not say their zone are one more zone."""
    by_zone: dict[str, list[ZonedT]] = {}
    for member in members:
        by_zone.setdefault(member.zone, []).append(member)
    if not own or own not in by_zone:
        return [ZoneShare(None, members, 1.0)]
    if len(by_zone) == 1:
        return [ZoneShare(own, members, 1.0)]
    weights = {zone: sum(member.weight for member in found) for zone, found in by_zone.items()}
    # In whole numbers, `z` times too large: what a zone has more, or less, than its callers need.
    total, zones = sum(weights.values()), len(by_zone)
    spare = {zone: weight * zones - total for zone, weight in weights.items()}
    kept = min(1.0, weights[own] * zones / total)
    shares = [ZoneShare(own, tuple(by_zone[own]), kept)]
    if spare[own] < 0:
        all_spare = sum(one for one in spare.values() if one > 0)
        shares += [
            ZoneShare(zone, tuple(by_zone[zone]), (1.0 - kept) * one / all_spare)
            for zone, one in spare.items()
            if one > 0
        ]
    return shares


class ZoneAware(Generic[ZonedT]):
    """A balancer for each zone. For all but those that keep requests together by a key, which would belong to another
    member in each zone."""

    __slots__ = ("_balancers", "_draw", "_make", "_members", "_only", "_own", "_shares")

    def __init__(self, own: str, make: Callable[[], Balancer[ZonedT]], draw: Draw) -> None:
        self._own = own
        self._make = make
        self._draw = draw
        self._balancers: dict[str | None, Balancer[ZonedT]] = {}
        self._members: Sequence[ZonedT] = ()
        self._shares: list[ZoneShare[ZonedT]] = []
        self._only: tuple[Balancer[ZonedT], Sequence[ZonedT]] | None = None
        """Where all requests go to one zone, as most do."""

    def pick(
        self, members: Sequence[ZonedT], excluded: Collection[ZonedT] = (), key: bytes = b"", now_s: float = 0.0
    ) -> ZonedT | None:
        """With `excluded` the other zones are the last resort."""
        if members is not self._members:
            self._follow(members)
        if self._only is not None and not excluded:
            balancer, its_members = self._only
            return balancer.pick(its_members, excluded, key, now_s)
        chosen = self._choose()
        picked = self._balancers[chosen.zone].pick(chosen.members, excluded, key, now_s)
        if picked is None and excluded and chosen.zone is not None:
            left = [member for member in members if member not in excluded]
            return self._make().pick(left, (), key, now_s)
        return picked

    def _choose(self) -> ZoneShare[ZonedT]:
        point = self._draw()
        for one in self._shares:
            point -= one.share
            if point < 0:
                return one
        return self._shares[-1]  # the shares add up to 1 but for rounding

    def _follow(self, members: Sequence[ZonedT]) -> None:
        self._members = members
        self._shares = zone_shares(members, self._own)
        known = self._balancers
        self._balancers = {one.zone: known.get(one.zone) or self._make() for one in self._shares}
        first = self._shares[0]
        self._only = (self._balancers[first.zone], first.members) if len(self._shares) == 1 else None
