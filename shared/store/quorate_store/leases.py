"""The lessor: when leases end. Pure: the time is an argument, and nothing here waits or talks.

Theory of operation. Only the leader has a lessor, made anew when it comes to lead; what a lease *is* stands in the
replicated state (`lease_table.py`), what is left of it only here.

- A new leader cannot know which keepalives its predecessor has answered, so it gives every lease what its last
  checkpoint left it, or its whole time to live, and a grace for keepalives that found no leader.
- There may be a million of these, and nobody may wait while they are written down. So they are *adopted* in slices;
  whoever is asked for before its turn is adopted then. All of them count from when this leader began.
- So that leases end though leaders come and go, what is left of a lease that nobody renews is checkpointed into the
  log now and then. A renewal of a checkpointed lease must clear the checkpoint, in the log, before it is answered.
- A lease past its deadline is `due` once and is then expiring: its caller proposes the end, and says `remove` when
  that has been applied, or `expiry_failed` when it was not proposed. An expiring lease cannot be renewed.
- Time during which the leader's own event loop stood still does not count: keepalives could not come in then.

States of a lease: alive -> expiring -> gone, and expiring -> alive by `expiry_failed`.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from quorate_store.commands import LeaseIncarnation, LeaseRemaining

PROMOTION_GRACE_S = 1.0
"""As long as an election may take; etcd extends leases by its election timeout."""
CHECKPOINT_INTERVAL_S_MIN = 5.0
CHECKPOINTS_PER_LIFE = 10
"""Long leases are checkpointed more rarely: at every tenth of their time to live."""
EXPIRY_BATCH_MAX = 256
"""Leases ended by one log entry: it deletes all their keys in one go."""
CHECKPOINT_BATCH_MAX = 1_024

ADOPTED_AT_ONCE_MAX = 2_048
"""Inherited leases written down in one turn of the event loop: a few milliseconds."""
LOOKED_AT_MAX = 4_096
"""Heap entries looked at in one turn of the event loop, a few milliseconds; the rest is for the next tick."""


def checkpoint_interval_s(ttl_s: int) -> float:
    """How long a lease goes without renewal before what is left of it is written down. Above a third of its time to
    live up to 10 s, where keepalives usually come, so that a healthy lease costs no log entries."""
    return min(ttl_s / 2, max(CHECKPOINT_INTERVAL_S_MIN, ttl_s / CHECKPOINTS_PER_LIFE))


class Inherited(NamedTuple):
    """What the state says of a lease of an earlier leader. `checkpoint_ms`: what was left of it, 0 for nothing said."""

    generation: int
    ttl_s: int
    checkpoint_ms: int


Lookup = Callable[[int], Inherited | None]
"""None for a lease that is not there, or not any more."""


@dataclass(slots=True)
class _Inheritance:
    """`left`: the leases whose turn has not come; some may have been adopted before it, or have ended."""

    left: Iterator[int]
    lookup: Lookup
    at_s: float


@dataclass(slots=True)
class _Lease:
    generation: int
    ttl_s: int
    deadline_s: float
    checkpoint_s: float
    """When what is left is to be written down next."""
    checkpoints: int
    """How many were written, or may have been; `cleared` says up to which of them the log has taken them back."""
    cleared: int = 0
    expiring: bool = False


class Lessor:
    """Deadlines of all leases, in seconds of the caller's monotonic clock."""

    def __init__(self) -> None:
        self._leases: dict[int, _Lease] = {}
        # Both heaps may hold times that a renewal has made too early: an entry is checked when it comes up, and put
        # back with the true time. A renewal, the most frequent thing of all, then touches no heap.
        self._deadlines: list[tuple[float, int, int]] = []
        self._checkpoints: list[tuple[float, int, int]] = []
        self._stalled_s = 0.0
        self._inheritance: _Inheritance | None = None
        """While not all are adopted."""

    def __len__(self) -> int:
        """Those that are written down here."""
        return len(self._leases)

    def __contains__(self, lease: int) -> bool:
        return self._find(lease) is not None

    def add_granted(self, lease: int, generation: int, ttl_s: int, now_s: float) -> None:
        """A lease that was granted just now."""
        self._add(lease, generation, ttl_s, ttl_s, now_s - self._stalled_s, checkpoints=0)

    def inherit(self, leases: Iterable[int], lookup: Lookup, now_s: float) -> None:
        """The leases of earlier leaders, which are this one's from now on; to be called once. None is looked at before
        `adopt`, or before somebody asks for it: `leases` must stay as they are, and `lookup` say what the state has."""
        self._inheritance = _Inheritance(iter(leases), lookup, now_s - self._stalled_s)

    def adopt(self, leases_max: int = ADOPTED_AT_ONCE_MAX) -> bool:
        """Write down up to `leases_max` inherited leases; True when more may be left."""
        inheritance = self._inheritance
        if inheritance is None:
            return False
        looked_at = 0
        for lease in islice(inheritance.left, leases_max):
            looked_at += 1
            if lease not in self._leases:
                self._adopt(lease, inheritance)
        if looked_at < leases_max:
            self._inheritance = None
        return self._inheritance is not None

    def _adopt(self, lease: int, inheritance: _Inheritance) -> None:
        known = inheritance.lookup(lease)
        if known is not None:
            left_s = (known.checkpoint_ms / 1000 if known.checkpoint_ms else known.ttl_s) + PROMOTION_GRACE_S
            checkpoints = int(known.checkpoint_ms > 0)
            self._add(lease, known.generation, known.ttl_s, left_s, inheritance.at_s, checkpoints=checkpoints)

    def _find(self, lease: int) -> _Lease | None:
        if self._inheritance is not None and lease not in self._leases:
            self._adopt(lease, self._inheritance)
        return self._leases.get(lease)

    def _add(self, lease: int, generation: int, ttl_s: int, left_s: float, at_s: float, *, checkpoints: int) -> None:
        one = _Lease(generation, ttl_s, at_s + left_s, at_s + checkpoint_interval_s(ttl_s), checkpoints)
        self._leases[lease] = one
        heapq.heappush(self._deadlines, (one.deadline_s, lease, generation))
        heapq.heappush(self._checkpoints, (one.checkpoint_s, lease, generation))

    def remove(self, lease: int) -> None:
        self._leases.pop(lease, None)

    def add_stall(self, stalled_s: float) -> None:
        """The caller's event loop stood still this long: every deadline moves by as much."""
        self._stalled_s += stalled_s

    def is_expiring(self, lease: int) -> bool:
        one = self._leases.get(lease)
        return one is not None and one.expiring

    def renew(self, lease: int, now_s: float) -> bool:
        """Give the lease its whole time to live. False when it does not exist or is expiring."""
        one = self._find(lease)
        if one is None or one.expiring:
            return False
        at_s = now_s - self._stalled_s
        one.deadline_s = max(one.deadline_s, at_s + one.ttl_s)
        one.checkpoint_s = at_s + checkpoint_interval_s(one.ttl_s)
        return True

    def checkpoint_to_clear(self, lease: int) -> int:
        """0, or the number of the checkpoint that the log must take back before a renewal is answered."""
        one = self._find(lease)
        return 0 if one is None or one.cleared >= one.checkpoints else one.checkpoints

    def checkpoint_cleared(self, lease: int, number: int) -> None:
        """The log has taken back the lease's checkpoints up to `number`."""
        one = self._leases.get(lease)
        if one is not None:
            one.cleared = max(one.cleared, number)

    def remaining_s(self, lease: int, now_s: float) -> float:
        """Seconds left, never below 0; 0 for what does not exist."""
        one = self._find(lease)
        return 0.0 if one is None else max(0.0, one.deadline_s - (now_s - self._stalled_s))

    def due(self, now_s: float, limit: int = EXPIRY_BATCH_MAX) -> list[LeaseIncarnation]:
        """Leases past their deadline, oldest first; they are expiring from here on."""
        at_s = now_s - self._stalled_s
        found: list[LeaseIncarnation] = []
        for _ in range(LOOKED_AT_MAX):
            if not self._deadlines or self._deadlines[0][0] > at_s or len(found) == limit:
                break
            _, lease, generation = heapq.heappop(self._deadlines)
            one = self._leases.get(lease)
            if one is None or one.generation != generation or one.expiring:
                continue
            if one.deadline_s > at_s:
                heapq.heappush(self._deadlines, (one.deadline_s, lease, generation))
                continue
            one.expiring = True
            found.append(LeaseIncarnation(lease, generation))
        return found

    def expiry_failed(self, leases: Iterable[LeaseIncarnation]) -> None:
        """These were surely not ended: they may be renewed again, and are due again."""
        for failed in leases:
            one = self._leases.get(failed.lease)
            if one is not None and one.generation == failed.generation and one.expiring:
                one.expiring = False
                heapq.heappush(self._deadlines, (one.deadline_s, failed.lease, failed.generation))

    def checkpoints_due(self, now_s: float, limit: int = CHECKPOINT_BATCH_MAX) -> list[LeaseRemaining]:
        """What is left of leases that have gone without renewal for their interval."""
        at_s = now_s - self._stalled_s
        found: list[LeaseRemaining] = []
        for _ in range(LOOKED_AT_MAX):
            if not self._checkpoints or self._checkpoints[0][0] > at_s or len(found) == limit:
                break
            _, lease, generation = heapq.heappop(self._checkpoints)
            one = self._leases.get(lease)
            if one is None or one.generation != generation:
                continue
            if one.checkpoint_s <= at_s:
                one.checkpoint_s = at_s + checkpoint_interval_s(one.ttl_s)
                left_ms = int((one.deadline_s - at_s) * 1000)
                if left_ms > 0 and not one.expiring:
                    one.checkpoints += 1
                    found.append(LeaseRemaining(lease, generation, left_ms))
            heapq.heappush(self._checkpoints, (one.checkpoint_s, lease, generation))
        return found
