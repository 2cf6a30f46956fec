"""What balancers see of those they choose among, and what all of them can do."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

Draw = Callable[[], float]
"""Gives numbers that are uniform in [0, 1): the only randomness of a balancer, which its owner provides."""


class Member(Protocol):
    """One that can be picked. Members are compared as objects: the same one may be a member for as long as it likes,
    and what a property gives may change, save `weight`, which counts as of when the sequence of members changes."""

    @property
    def identity(self) -> str:
        """The same for as long as it is the same endpoint, and in all processes."""

    @property
    def weight(self) -> int:
        """Its part of the sum of all weights; 1 or more."""


class ZonedMember(Member, Protocol):
    @property
    def zone(self) -> str:
        """Where it stands; empty when that is not known."""


class BusyMember(Member, Protocol):
    @property
    def active(self) -> int:
        """Requests in progress."""


MemberT = TypeVar("MemberT", bound=Member)
PickedT = TypeVar("PickedT")


class Balancer(Protocol[PickedT]):
    """Plain state without a lock: one event loop, or one thread, owns it."""

    def pick(
        self, members: Sequence[PickedT], excluded: Collection[PickedT] = (), key: bytes = b"", now_s: float = 0.0
    ) -> PickedT | None:
        """One of `members` that is not in `excluded`; None when there is none.

        What depends on the members is worked out anew when `members` is another object than before, so hand in the
        same tuple for as long as nothing changes, and never one that was changed. `excluded` is meant for those that
        failed this very request, and costs O(number of members). `key` counts for balancers that keep requests
        together, `now_s`, of a clock that does not go back, for those that know of time.
        """
