"""Consistent hash with bounded load: requests with one key go to one member, as long as it has room.

A member has room while it has less than its part, by weight, of `bounded_load_percent` of all requests in progress, the
new one included; what is over goes to the next one clockwise that has room (Mirrokni, Thorup and Zadimoghaddam,
"Consistent Hashing with Bounded Loads", 2018). So no key, however popular, can drown a member while others idle. The
limit is rounded up: a member without requests has room always.

Members that are passed over for a time belong into `excluded` and not out of the members: their keys go to those that
are next clockwise, nobody else's move, and the ring is not rebuilt.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Generic

from quorate_resilience.balancers.chances import BusyT
from quorate_resilience.balancers.member import Draw
from quorate_resilience.hash_ring import PLACE_BITS, HashRing, place_of

WALK_POINTS_MAX = 4_096
"""Points that are looked at clockwise for one pick."""


class ConsistentHash(Generic[BusyT]):
    """O(log n) for a member with room; the members change in O(n)."""

    __slots__ = ("_bounded_load_percent", "_draw", "_members", "_ring", "_total_active")

    def __init__(
        self, draw: Draw, total_active: Callable[[], int], virtual_nodes: int = 100, bounded_load_percent: int = 125
    ) -> None:
        """`total_active`: requests in progress of all members together. Raises ValueError for a bound that is not
        above 100: it would leave no room for the next request."""
        if bounded_load_percent <= 100:
            raise ValueError(f"bounded_load_percent must be above 100, not {bounded_load_percent}")
        self._bounded_load_percent = bounded_load_percent
        self._draw = draw
        self._members: Sequence[BusyT] = ()
        self._ring: HashRing[BusyT] = HashRing(virtual_nodes)
        self._total_active = total_active

    def pick(
        self, members: Sequence[BusyT], excluded: Collection[BusyT] = (), key: bytes = b"", now_s: float = 0.0
    ) -> BusyT | None:
        """A request without a key is for itself: all of these together could be most of the traffic."""
        ring = self._ring
        if members is not self._members:
            ring.follow(members)
            self._members = members
        if not members:
            return None
        place = place_of(key) if key else int(self._draw() * (1 << PLACE_BITS))
        index = ring.index_of(place)
        member = ring.owner(index)
        if not member.active and member not in excluded:
            return member
        return self._pick_with_room(index, excluded)

    def _pick_with_room(self, index: int, excluded: Collection[BusyT]) -> BusyT | None:
        ring = self._ring
        absent = [member for member in excluded if ring.holds(member)] if excluded else ()
        weight = ring.total_weight - sum(member.weight for member in absent)
        if not weight:
            return None
        active = 1 + self._total_active() - sum(member.active for member in absent)
        limit = self._bounded_load_percent * active
        seen: set[str] = set()
        first: BusyT | None = None
        for step in range(index, index + min(len(ring), WALK_POINTS_MAX)):
            member = ring.owner(step)
            if member.identity in seen:
                continue
            seen.add(member.identity)
            if member not in excluded:
                # NB: "less than its part", and so at most that much, rounded up, with this request.
                if member.active * weight * 100 < limit * member.weight:
                    return member
                first = first or member
            if len(seen) == ring.members:
                break
        return first or self._least_loaded(excluded)

    def _least_loaded(self, excluded: Collection[BusyT]) -> BusyT | None:
        """Almost all are excluded, or the one with room is too light to be found on the way."""
        left = [member for member in self._members if member not in excluded]
        return min(left, key=lambda member: member.active / member.weight, default=None)
