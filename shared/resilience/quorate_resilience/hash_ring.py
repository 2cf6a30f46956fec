"""A hash ring: each member has points on a circle, and a key belongs to the first point clockwise of its own (Karger
and others, 1997). When a member comes or goes, only the keys between its points and the ones before them move.

How many points a member has goes by its weight, and where they are by its identity alone, so that every process that
knows the members has the same ring. The points of a member with more of them begin with those of one with fewer: a
weight that changes moves only the keys of the points that it gains or loses.

With `v` points each, a member's share of the keys differs from its due by about one part in the square root of `v`.

A point is kept as one integer, its place on the circle above its owner's number, so that a sorted list of plain
integers is the whole ring: a look-up is one binary search, and a change of one member among a thousand costs a filter,
or a merge of two sorted runs, and not a sort.
"""

from bisect import bisect_left
from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct
from typing import Generic

from quorate_resilience.balancers.member import MemberT

WEIGHT_UNIT = 100
"""A member with this weight has `virtual_nodes` points."""
POINTS_MAX = 131_072
"""Of a ring; with more than that, all members have half, a quarter, … of their points, and at least one each."""
PLACE_BITS = 43
OWNER_BITS = 20
"""Together 63, so that a point fits where machine words are compared."""
MEMBERS_MAX = 1 << OWNER_BITS
_OWNER = MEMBERS_MAX - 1
_UNUSED_BITS = 64 - PLACE_BITS
_BLOCK = Struct(">8Q")
"""What one digest of 64 bytes gives: 8 points."""


def place_of(key: bytes) -> int:
    """Where a key is on the circle."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> _UNUSED_BITS


def places_of(identity: str, count: int) -> list[int]:
    """The first `count` places of a member."""
    name = identity.encode()
    places: list[int] = []
    for block in range((count + 7) // 8):
        places += _BLOCK.unpack(blake2b(b"%d\0%b" % (block, name), digest_size=64).digest())
    return [place >> _UNUSED_BITS for place in places[:count]]


class HashRing(Generic[MemberT]):
    """Members on a circle. `index_of` and `owner` give who has a place; `follow` tells it of other members."""

    __slots__ = ("_counts", "_free", "_members", "_numbers", "_points", "_virtual_nodes", "total_weight")

    def __init__(self, virtual_nodes: int) -> None:
        """`virtual_nodes`: points of a member of weight WEIGHT_UNIT; 1 or more."""
        if virtual_nodes < 1:
            raise ValueError(f"virtual_nodes must be at least 1, not {virtual_nodes}")
        self._virtual_nodes = virtual_nodes
        self._points: list[int] = []
        """Sorted: `place << OWNER_BITS | number of the owner`."""
        self._members: list[MemberT | None] = []
        """By number."""
        self._numbers: dict[str, int] = {}
        """By identity."""
        self._counts: dict[str, int] = {}
        self._free: list[int] = []
        """Numbers that nobody has."""
        self.total_weight = 0

    def __len__(self) -> int:
        """How many points there are."""
        return len(self._points)

    @property
    def members(self) -> int:
        return len(self._numbers)

    def follow(self, members: Sequence[MemberT]) -> None:
        """Let `members` be the members. Raises ValueError for more than MEMBERS_MAX, or two with one identity."""
        counts = self._count(members)
        if len(counts) != len(members) or len(counts) > MEMBERS_MAX:
            raise ValueError(f"a ring of {len(members)} members: at most {MEMBERS_MAX}, of different identities")
        self._drop({identity for identity, count in self._counts.items() if counts.get(identity) != count}, counts)
        added: list[int] = []
        for member in members:
            identity = member.identity
            number = self._number(identity)
            self._members[number] = member  # also of one that stays: it may be another object
            if identity not in self._counts:
                added += [place << OWNER_BITS | number for place in places_of(identity, counts[identity])]
        if added:
            added.sort()
            self._points += added
            self._points.sort()  # of two sorted runs: a merge
        self._counts = counts
        self.total_weight = sum(member.weight for member in members)

    def index_of(self, place: int) -> int:
        """Of the first point clockwise. There must be one."""
        index = bisect_left(self._points, place << OWNER_BITS)
        return index if index < len(self._points) else 0

    def owner(self, index: int) -> MemberT:
        """`index` may go on beyond the last point: the circle has no end."""
        points = self._points
        member = self._members[points[index % len(points)] & _OWNER]
        if member is None:
            raise LookupError(f"point {index} of the ring has no owner")
        return member

    def holds(self, member: MemberT) -> bool:
        return member.identity in self._numbers

    def _count(self, members: Sequence[MemberT]) -> dict[str, int]:
        wanted = {
            member.identity: max(1, round(self._virtual_nodes * member.weight / WEIGHT_UNIT)) for member in members
        }
        halvings = 0
        while sum(wanted.values()) >> halvings > POINTS_MAX:
            halvings += 1
        return {identity: max(1, count >> halvings) for identity, count in wanted.items()}

    def _drop(self, changed: set[str], counts: dict[str, int]) -> None:
        """Take away the points of `changed`, and the numbers of those among them that are no members any more."""
        if not changed:
            return
        numbers = {self._numbers[identity] for identity in changed}
        self._points = [point for point in self._points if point & _OWNER not in numbers]
        for identity in changed:
            del self._counts[identity]
            if identity not in counts:
                number = self._numbers.pop(identity)
                self._members[number] = None
                self._free.append(number)

    def _number(self, identity: str) -> int:
        number = self._numbers.get(identity)
        if number is None:
            if self._free:
                number = self._free.pop()
            else:
                number = len(self._members)
                self._members.append(None)
            self._numbers[identity] = number
        return number
