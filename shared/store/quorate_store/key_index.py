"""The ordered index in memory: which revisions every key has, and which keys are alive now. Pure.

A position packs a revision of the store, the place of a change within it, and whether the change was a deletion,
into one integer that sorts by age: `main << 33 | sub << 1 | deleted`. It costs 32 bytes where a tuple costs 100.

A million keys must not hold the event loop, so nothing here grows or is looked at as one piece. A key that has changed
once, as most have after a compaction, has that position itself for its history, and others have a list: a million
lists would be as many objects for the garbage collector. Histories are spread over many small dictionaries: to grow
one of a million keys takes tens of milliseconds.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from quorate_core.errors import InvariantViolation
from sortedcontainers import SortedList

from quorate_store.model import RANGE_ALL
from quorate_store.pacing import Pause, paced

Position = int
NOWHERE: Position = 0
"""No change at all; below every real position."""
History = Position | list[Position]
"""The positions of one key, oldest first, deletions included; never empty."""

SORT_RUN_KEYS = 1_024
"""Keys that are sorted by one call, which nothing can interrupt: half a millisecond."""

_SHARDS = 512
_SHARD_MASK = _SHARDS - 1
_SUB_BITS = 32
CHANGES_PER_REVISION_MAX = 1 << _SUB_BITS


def position(main: int, sub: int, *, deleted: bool) -> Position:
    return main << (_SUB_BITS + 1) | sub << 1 | deleted


def main_of(at: Position) -> int:
    return at >> (_SUB_BITS + 1)


def sub_of(at: Position) -> int:
    return (at >> 1) & (CHANGES_PER_REVISION_MAX - 1)


def is_deletion(at: Position) -> bool:
    return bool(at & 1)


def is_in_range(key: bytes, first: bytes, range_end: bytes) -> bool:
    """Whether `key` is in the range `[first, range_end)`, with the model's meanings of `range_end`."""
    if not range_end:
        return key == first
    return key >= first and (range_end == RANGE_ALL or key < range_end)


def _last(history: History) -> Position:
    return history if isinstance(history, int) else history[-1]


class Histories:
    """The history of each key, in no order of keys."""

    def __init__(self) -> None:
        self._shards: tuple[dict[bytes, History], ...] = tuple({} for _ in range(_SHARDS))

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable(self._shards)

    def get(self, key: bytes) -> History | None:
        return self._shards[hash(key) & _SHARD_MASK].get(key)

    def append(self, key: bytes, at: Position) -> Position:
        """Returns what the key's history ended with before. Raises InvariantViolation when `at` is not newer."""
        shard = self._shards[hash(key) & _SHARD_MASK]
        history = shard.get(key)
        if history is None:
            shard[key] = at
            return NOWHERE
        last = history if isinstance(history, int) else history[-1]
        if at <= last:
            raise InvariantViolation(f"a change of {key!r} at {main_of(at)}, which is not after {main_of(last)}")
        if isinstance(history, int):
            shard[key] = [history, at]
        else:
            history.append(at)
        return last

    def remove(self, key: bytes, at: Position) -> bool:
        """Drop one position; True when it was the key's last one. Raises InvariantViolation for one that is not
        there."""
        shard = self._shards[hash(key) & _SHARD_MASK]
        history = shard.get(key)
        if isinstance(history, list) and at in history:
            history.remove(at)
            if len(history) == 1:
                shard[key] = history[0]
            return False
        if history != at:
            raise InvariantViolation(f"the change {main_of(at)} of {key!r} is to be forgotten, and was never there")
        del shard[key]
        return True

    def drop(self, key: bytes) -> None:
        del self._shards[hash(key) & _SHARD_MASK][key]


class KeyIndex:
    """`_keys`: the keys that have a history, in order. `_live`: those whose newest position is no deletion, so that
    counting the present costs a search and not a walk."""

    def __init__(self, histories: Histories | None = None) -> None:
        """Holds the interpreter for a second for a million keys; see `built_in_steps`."""
        self._histories = Histories() if histories is None else histories
        self._keys: SortedList[bytes] = SortedList(self._histories)
        self._live: SortedList[bytes] = SortedList(key for key in self._keys if self.newest(key) != NOWHERE)

    @classmethod
    def built_in_steps(cls, histories: Histories, pause: Pause) -> "KeyIndex":
        """The same in a thread beside the event loop."""
        index = cls()
        index._histories = histories
        for key in paced(_sorted_in_runs(iter(histories), pause), pause):
            index._keys.add(key)
            if index.newest(key) != NOWHERE:
                index._live.add(key)
        return index

    def __len__(self) -> int:
        """Keys that have any history."""
        return len(self._keys)

    def record(self, key: bytes, at: Position) -> None:
        """Append a change. Raises InvariantViolation when it is not newer than the key's last."""
        last = self._histories.append(key, at)
        if last == NOWHERE:
            if is_deletion(at):
                raise InvariantViolation(f"a deletion at {main_of(at)} of the key {key!r}, which was never there")
            self._keys.add(key)
            self._live.add(key)
        elif is_deletion(at):
            self._live.remove(key)
        elif is_deletion(last):
            self._live.add(key)

    def newest(self, key: bytes) -> Position:
        """The key's last change when it is alive, else NOWHERE."""
        history = self._histories.get(key)
        if history is None:
            return NOWHERE
        last = _last(history)
        return NOWHERE if is_deletion(last) else last

    def at_revision(self, key: bytes, revision: int) -> Position:
        """The change that `revision` sees, or NOWHERE when the key was not alive then."""
        history = self._histories.get(key)
        if isinstance(history, int):  # has changed once, as most have
            return NOWHERE if main_of(history) > revision or is_deletion(history) else history
        at = self.predecessor(key, position(revision + 1, 0, deleted=False))
        return NOWHERE if is_deletion(at) else at

    def predecessor(self, key: bytes, at: Position) -> Position:
        """The key's last change before `at`, deletions included, or NOWHERE."""
        history = self._histories.get(key)
        if history is None:
            return NOWHERE
        if isinstance(history, int):
            return history if history < at else NOWHERE
        count = bisect_right(history, at - 1)
        return history[count - 1] if count else NOWHERE

    def live_count(self, first: bytes, range_end: bytes) -> int:
        low, high = self._live_bounds(first, range_end)
        return high - low

    def live_keys(self, first: bytes, range_end: bytes, limit: int = 0) -> Iterator[bytes]:
        """Keys alive now, in order, at most `limit` of them (0: all)."""
        low, high = self._live_bounds(first, range_end)
        return iter(self._live.islice(low, min(high, low + limit) if limit else high))

    def _live_bounds(self, first: bytes, range_end: bytes) -> tuple[int, int]:
        if not range_end:
            low = self._live.bisect_left(first)
            return low, low + int(self.newest(first) != NOWHERE)
        low = self._live.bisect_left(first)
        high = len(self._live) if range_end == RANGE_ALL else self._live.bisect_left(range_end)
        return low, max(low, high)

    def keys(self, first: bytes, range_end: bytes, after: bytes | None = None) -> Iterable[bytes]:
        """Keys with any history, in order, those after `after` only. Not to be held over a change of the index."""
        if not range_end:
            return (first,) if after is None and self._histories.get(first) is not None else ()
        low = first if after is None or after < first else after
        high = None if range_end == RANGE_ALL else range_end
        if high is not None and high <= low:
            return ()
        keys: Iterable[bytes] = self._keys.irange(low, high, inclusive=(low != after, False))
        return keys

    def forget(self, key: bytes, at: Position) -> None:
        """Drop one position from a key's history, and the key with its last one."""
        if self._histories.remove(key, at):
            self._keys.remove(key)

    def shed(self, keys_max: int) -> bool:
        """Drop up to `keys_max` keys of an index that nobody uses any more; True when none is left. To drop it whole
        would hold the interpreter until a million objects are freed."""
        for _ in range(min(keys_max, len(self._live))):
            self._live.pop()
        for _ in range(min(keys_max, len(self._keys))):
            self._histories.drop(self._keys.pop())
        return not self._keys


def _sorted_in_runs(keys: Iterator[bytes], pause: Pause) -> Iterator[bytes]:
    runs: list[Iterator[bytes]] = []
    while run := sorted(islice(keys, SORT_RUN_KEYS)):
        runs.append(iter(run))
        pause()
    return heapq.merge(*runs)
