"""What limiters remember, by key: the `Table` port, and the table of one process.

A record is a few floats whose meaning is its limiter's. It is worth something until its `expires_s`: from then on the
key is as one that was never seen, and the table may forget it. So memory is bounded without any knowledge of the
algorithm. What has expired is forgotten first, the longest unused before others; only when `keys_max` records are all
worth something is one lost that is, and `forgotten_early` counts these.

A table may be shared by several processes. Then `locked` keeps all others from the key's record while a decision is
made and put back; in one process, where one event loop or one thread owns the table, it does nothing. All times are
`now_s` of one monotonic clock, which on Linux is the same in all processes of a machine.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

KEYS_MAX = 100_000
FORGOTTEN_A_KEY_MAX = 2
"""Expired records forgotten for each new key: more than one, so that the table shrinks when old keys stay away."""
LOOKED_AT_MAX = 16
"""Of the longest unused records, how many are looked at for an expired one when there is no room."""
RECORD_FLOATS_MAX = 16
"""A record's length may vary from 1 to so many."""

Record = Sequence[float]
_UNLOCKED = nullcontext()


class Table(Protocol):
    """Records by key, of one limiter."""

    @property
    def keys_max(self) -> int: ...

    @property
    def forgotten_early(self) -> int:
        """Records that were lost before they had expired, for want of room."""
        ...

    def __len__(self) -> int:
        """How many keys have a record, expired or not."""
        ...

    def locked(self, key: bytes) -> AbstractContextManager[object]:
        """Around a `get` of `key` and the `put` that follows from it: nobody else reads or writes it meanwhile."""
        ...

    def get(self, key: bytes) -> Record | None:
        """The record that was put last, expired or not; None when there is none."""
        ...

    def put(self, key: bytes, record: Record, expires_s: float, now_s: float) -> None:
        """Remember `record`, of at most RECORD_FLOATS_MAX floats; it makes `key` the one used last."""
        ...

    def items(self) -> Iterator[tuple[bytes, Record]]:
        """All keys and their records. Slow: for people, not for requests."""
        ...


class LocalTable:
    """The table of one process. Plain state without a lock: one event loop, or one thread, owns it."""

    __slots__ = ("_entries", "forgotten_early", "keys_max")

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        """Raises ValueError for `keys_max` below 1."""
        if keys_max < 1:
            raise ValueError(f"keys_max must be at least 1, not {keys_max}")
        self.keys_max = keys_max
        self.forgotten_early = 0
        self._entries: OrderedDict[bytes, tuple[Record, float]] = OrderedDict()
        """Record and `expires_s`; the longest unused first."""

    def __len__(self) -> int:
        return len(self._entries)

    def locked(self, _key: bytes) -> AbstractContextManager[object]:
        return _UNLOCKED

    def get(self, key: bytes) -> Record | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: bytes, record: Record, expires_s: float, now_s: float) -> None:
        entries = self._entries
        if key in entries:
            entries.move_to_end(key)
        else:
            self._forget_expired(now_s)
            if len(entries) >= self.keys_max:
                self._make_room(now_s)
        entries[key] = (record, expires_s)

    def items(self) -> Iterator[tuple[bytes, Record]]:
        for key, (record, _expires_s) in self._entries.items():
            yield key, record

    def _forget_expired(self, now_s: float) -> None:
        for _ in range(FORGOTTEN_A_KEY_MAX):
            oldest = next(iter(self._entries.items()), None)
            if oldest is None or oldest[1][1] > now_s:
                return
            del self._entries[oldest[0]]

    def _make_room(self, now_s: float) -> None:
        """NB: `zip` asks the range first, so that no more than LOOKED_AT_MAX are looked at."""
        for _, (key, (_record, expires_s)) in zip(range(LOOKED_AT_MAX), self._entries.items(), strict=False):
            if expires_s <= now_s:
                del self._entries[key]
                return
        self._entries.popitem(last=False)
        self.forgotten_early += 1
