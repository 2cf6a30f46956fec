"""The newest changes of the store, kept in memory: what watches are served from that are not far behind. Pure.

It stands where the state machine's history stands for a member: `watches.History`.
"""

from collections import deque
from itertools import islice

from quorate_core.errors import Compacted, InvariantViolation

from quorate_store.key_index import is_in_range
from quorate_store.model import Event

RECENT_REVISIONS_MAX = 10_000
RECENT_BYTES_MAX = 32 * 1024 * 1024
PREFILL_REVISIONS = 1_000
"""Of the past, when it begins: those who resume a watch need no stream of their own then. As many as etcd reads of
history at once."""
EVENT_BYTES = 400
"""What an event takes beside its keys and values."""


class NotKept(Compacted):
    """A revision that is not among the newest; the store itself may have it."""


class RecentChanges:
    """All of every revision from `first` to `revision`."""

    def __init__(
        self, first: int, revisions_max: int = RECENT_REVISIONS_MAX, bytes_max: int = RECENT_BYTES_MAX
    ) -> None:
        self.first = first
        self.revision = first - 1
        self._revisions_max = revisions_max
        self._bytes_max = bytes_max
        self._changes: deque[tuple[list[Event], int]] = deque()
        """The events of each revision, and how many bytes they take."""
        self._bytes = 0

    @classmethod
    def until(cls, revision: int, revisions_max: int = RECENT_REVISIONS_MAX) -> "RecentChanges":
        """Empty, and to be filled from some way before `revision` on."""
        return cls(max(1, revision - min(PREFILL_REVISIONS, revisions_max) + 1), revisions_max)

    def append(self, revision: int, events: list[Event]) -> None:
        """Raises InvariantViolation for any revision but the next."""
        if revision != self.revision + 1:
            raise InvariantViolation(f"after revision {self.revision} came {revision}")
        size_bytes = sum(EVENT_BYTES + event.size_bytes for event in events)
        self._changes.append((events, size_bytes))
        self._bytes += size_bytes
        self.revision = revision
        while len(self._changes) > self._revisions_max or (self._bytes > self._bytes_max and len(self._changes) > 1):
            _, gone_bytes = self._changes.popleft()
            self._bytes -= gone_bytes
            self.first += 1

    def begin_anew(self, first: int) -> None:
        """Forget all: the next revision to come is `first`."""
        self._changes.clear()
        self._bytes = 0
        self.first, self.revision = first, first - 1

    def events(
        self, start: int, key: bytes, range_end: bytes, *, previous: bool, rows_max: int
    ) -> tuple[list[Event], int]:
        """Events of the range from revision `start` on, and the last revision that was looked at: whole revisions,
        until `rows_max` events have been. Previous values are there when they were asked of the store. Raises NotKept.
        """
        if start < self.first:
            raise NotKept(f"of the changes, those from revision {self.first} on are kept here, not {start}")
        found: list[Event] = []
        reached, rows = start - 1, 0
        for events, _ in islice(self._changes, start - self.first, None):
            found += [event for event in events if is_in_range(event.kv.key, key, range_end)]
            reached += 1
            rows += len(events)
            if rows >= rows_max:
                break
        if not previous:
            found = [Event(event.kind, event.kv) for event in found]
        return found, reached
