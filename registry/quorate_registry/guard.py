"""When a service is protected against losing its instances all at once. Pure.

When most instances of a service have lapsed, it is likelier that their heartbeats could not arrive than that all of
them have died; and a list without them would end all traffic, where a list that is old ends some. So the service is
then *protected*: those that have lapsed stay on the list, marked stale, while its owner looks whether they are really
gone (`reaper`), and takes away those that are. This is Eureka's self-preservation, for a service each, decided by what
is in the store, and with an end.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Population:
    """The ephemeral instances of one service that would take traffic."""

    all: int = 0
    lapsed: int = 0

    def is_protected(self, threshold: float) -> bool:
        """Some have lapsed, and of all fewer than `threshold` (0 to 1) are alive."""
        return self.all - self.lapsed < threshold * self.all
