"""A limiter over a `Table`: what all algorithms share. Each says in `_step` what a record becomes by a request."""

import heapq
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

from quorate_resilience.limiters.decision import Decision
from quorate_resilience.limiters.table import LocalTable, Record, Table

CLOCK_S = 1e-9
"""What a reading of a clock is worth: a request that comes so much too early is admitted, since its sender, told to
wait so many seconds, did."""


class BucketFill(NamedTuple):
    """One key's state. `tokens`: how many more would be admitted at this moment; not rounded."""

    key: bytes
    tokens: float


class Limiter(Protocol):
    """What the four algorithms have in common. `now_s` is monotonic; when it goes back, nothing is regained."""

    @property
    def keys_max(self) -> int: ...

    @property
    def forgotten_early(self) -> int: ...

    def __len__(self) -> int:
        """How many keys have a record; all others have their whole limit."""
        ...

    def decide(self, key: bytes, now_s: float, cost: int = 1) -> Decision:
        """Take `cost` of what `key` has left, if it has so much. A cost of 0 only looks."""
        ...

    def emptiest(self, now_s: float, count_max: int) -> list[BucketFill]:
        """The keys nearest to their limit, the nearest first. Looks at every key: for people, not for requests."""
        ...


class Step(NamedTuple):
    """What a request makes of a record, which from `expires_s` on says no more than none at all."""

    decision: Decision
    record: Record
    expires_s: float


class TabledLimiter(ABC):
    """Records in a table, of this process or shared by several."""

    __slots__ = ("_table",)

    def __init__(self, table: Table | None = None) -> None:
        self._table: Table = LocalTable() if table is None else table

    @property
    def keys_max(self) -> int:
        return self._table.keys_max

    @property
    def forgotten_early(self) -> int:
        return self._table.forgotten_early

    def __len__(self) -> int:
        return len(self._table)

    def decide(self, key: bytes, now_s: float, cost: int = 1) -> Decision:
        """Take `cost` of what `key` has left, if it has so much. A cost of 0 only looks.

        What is refused changes nothing; but who asks in vain is in use, and to be forgotten would be a gift: its record
        is put again as it was.
        """
        table = self._table
        with table.locked(key):
            record = table.get(key)
            step = self._step(record, now_s, cost)
            if cost:
                kept = step.record if step.decision.admitted else record
                if kept is not None:
                    table.put(key, kept, step.expires_s, now_s)
        return step.decision

    def emptiest(self, now_s: float, count_max: int) -> list[BucketFill]:
        fills = (BucketFill(key, self._left(record, now_s)) for key, record in self._table.items())
        return heapq.nsmallest(count_max, fills, key=lambda fill: fill.tokens)

    @abstractmethod
    def _step(self, record: Record | None, now_s: float, cost: int) -> Step:
        """The record of a request that is refused, or costs nothing, is not looked at."""

    @abstractmethod
    def _left(self, record: Record, now_s: float) -> float:
        """What would be admitted at this moment."""
