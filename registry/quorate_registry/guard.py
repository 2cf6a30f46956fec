"""When a service is protected against losing its instances all at once. Pure.

When most instances of a service have lapsed, it is likelier that their heartbeats could not arrive than that all of
them have died; and a list without them would end all traffic, where a list that is old ends some. So the service is
then *protected*: those that have lapsed stay on the list, marked stale, while its owner looks whether they are really
gone (`reaper`), and takes away those that are. This is Eureka's self-preservation, for a service each, decided by what
is in the store, and with an end.

When they come back they do so one by one, over a third of their time to live. Were protection to end with the first
half of them, the others would be hidden though they live. So the owner of a protected service puts a *guard key*
(`guardian`), and with it the service is protected until nothing of it is lapsed.
"""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(slots=True)
class Population:
    """The ephemeral instances of one service that would take traffic."""

    all: int = 0
    lapsed: int = 0

    def is_short(self, threshold: float) -> bool:
        """Some have lapsed, and of all fewer than `threshold` (0 to 1) are alive."""
        return self.all - self.lapsed < threshold * self.all

    def is_protected(self, threshold: float, *, is_guarded: bool = False) -> bool:
        """Short, or some have lapsed and the guard key is there. A threshold of 0 is for no protection at all."""
        return self.is_short(threshold) or (is_guarded and self.lapsed > 0 and threshold > 0)


class GuardMove(StrEnum):
    """What is to be done with a guard key."""

    LEAVE = "leave"
    PUT = "put"
    TAKE_AWAY = "take away"


def guard_move(*, is_guarded: bool, is_protected: bool, is_short: bool, recovered_s: float, hold_s: float) -> GuardMove:
    """`recovered_s`: for how long its owner has seen enough alive. When for `hold_s` there was always somebody lapsed,
    those are other ones by now, lost one by one as instances are; so the key goes, as protection always ends."""
    if not is_guarded:
        return GuardMove.PUT if is_short else GuardMove.LEAVE
    if not is_protected or (not is_short and recovered_s >= hold_s):
        return GuardMove.TAKE_AWAY
    return GuardMove.LEAVE
