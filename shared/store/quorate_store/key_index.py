"""The ordered index in memory: which revisions every key has, and which keys are alive now. Pure.

A position packs a revision of the store, the place of a change within it, and whether the change was a deletion,
into one integer that sorts by age: `main << 33 | sub << 1 | deleted`. It costs 32 bytes where a tuple costs 100.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from quorate_core.errors import InvariantViolation
from sortedcontainers import SortedDict, SortedList

from quorate_store.model import RANGE_ALL

Position = int
NOWHERE: Position = 0
"""No change at all; below every real position."""

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


class KeyIndex:
    """`_histories`: the positions of each key, oldest first, deletions included. `_live`: the keys whose newest
    position is no deletion, so that counting the present costs a search and not a walk."""

    def __init__(self, histories: dict[bytes, list[Position]] | None = None) -> None:
        self._histories: SortedDict[bytes, list[Position]] = SortedDict(histories or {})
        self._live: SortedList[bytes] = SortedList(
            key for key, history in self._histories.items() if not is_deletion(history[-1])
        )

    def __len__(self) -> int:
        """Keys that have any history."""
        return len(self._histories)

    def record(self, key: bytes, at: Position) -> None:
        """Append a change. Raises InvariantViolation when it is not newer than the key's last."""
        history = self._histories.get(key)
        if history is None:
            if is_deletion(at):
                raise InvariantViolation(f"a deletion at {main_of(at)} of the key {key!r}, which was never there")
            self._histories[key] = [at]
            self._live.add(key)
            return
        last = history[-1]
        if at <= last:
            raise InvariantViolation(f"a change of {key!r} at {main_of(at)}, which is not after {main_of(last)}")
        history.append(at)
        if is_deletion(at):
            self._live.remove(key)
        elif is_deletion(last):
            self._live.add(key)

    def newest(self, key: bytes) -> Position:
        """The key's last change when it is alive, else NOWHERE."""
        history = self._histories.get(key)
        return NOWHERE if history is None or is_deletion(history[-1]) else history[-1]

    def at_revision(self, key: bytes, revision: int) -> Position:
        """The change that `revision` sees, or NOWHERE when the key was not alive then."""
        history = self._histories.get(key)
        if history is None:
            return NOWHERE
        count = bisect_right(history, position(revision + 1, 0, deleted=False) - 1)
        return NOWHERE if count == 0 or is_deletion(history[count - 1]) else history[count - 1]

    def predecessor(self, key: bytes, at: Position) -> Position:
        """The key's last change before `at`, deletions included, or NOWHERE."""
        history = self._histories.get(key)
        count = 0 if history is None else bisect_right(history, at - 1)
        return NOWHERE if history is None or count == 0 else history[count - 1]

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
            return (first,) if first in self._histories and after is None else ()
        low = first if after is None or after < first else after
        high = None if range_end == RANGE_ALL else range_end
        if high is not None and high <= low:
            return ()
        keys: Iterable[bytes] = self._histories.irange(low, high, inclusive=(low != after, False))
        return keys

    def forget(self, key: bytes, at: Position) -> None:
        """Drop one position from a key's history, and the key with its last one."""
        history = self._histories[key]
        history.remove(at)
        if not history:
            del self._histories[key]
