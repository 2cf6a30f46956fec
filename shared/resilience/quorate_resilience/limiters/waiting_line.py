"""The queue in front of a leaky bucket: who waits for one key, in the order in which they came.

A `LeakyBucket` gives out departures; a line keeps them apart from those who wait, whom it calls tickets: the first to
have come gets the earliest. So one that leaves lets all behind it move up, and the departure that comes free is the
line's last. Pure: whoever owns a line calls `due` at `next_departure_s`, or later.
"""

import bisect
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class WaitingLine(Generic[T]):
    """As many departures as tickets, always."""

    __slots__ = ("_departures_s", "_tickets")

    def __init__(self) -> None:
        self._departures_s: deque[float] = deque()
        """Ascending."""
        self._tickets: OrderedDict[T, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def next_departure_s(self) -> float | None:
        """None when nobody waits."""
        return self._departures_s[0] if self._departures_s else None

    def join(self, ticket: T, departure_s: float) -> None:
        """`ticket` comes last, whatever the departure that it brings."""
        self._tickets[ticket] = None
        if not self._departures_s or departure_s >= self._departures_s[-1]:
            self._departures_s.append(departure_s)
        else:
            bisect.insort(self._departures_s, departure_s)

    def leave(self, ticket: T) -> float | None:
        """The departure that is free now; None when `ticket` does not wait."""
        if ticket not in self._tickets:
            return None
        del self._tickets[ticket]
        return self._departures_s.pop()

    def due(self, now_s: float) -> list[T]:
        """Those who leave now, in their order; they wait no longer."""
        leaving = []
        while self._departures_s and self._departures_s[0] <= now_s:
            self._departures_s.popleft()
            leaving.append(self._tickets.popitem(last=False)[0])
        return leaving
