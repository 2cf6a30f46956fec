"""The `Table` of limiters in shared memory: what all workers count together, exactly, and bounded.

Theory of operation. There is one table for all limits. A record's place follows from a keyed digest of the limit's
identity and the key: it chooses a *group* of SLOTS places, and is compared with the *tags* of these. So nobody can
choose keys that crowd one group, whose secret they do not know. In a full group the place is taken of a record that has
expired, else of the one that was used longest ago, which is then forgotten early.

Each group has a lock of its own, which is a range of the file's bytes (fcntl(2)): the kernel gives it back when its
owner is killed, wherever it was. What the owner was writing then does no harm, since nothing is ever changed in place:
a place has two copies of its record, and one byte says which of them counts, and how long it is. The record is written
into the other one, and that byte is last.

A lock is held for some ten microseconds. An owner that is stopped in these (SIGSTOP) holds it for as long: who has
waited LOCK_WAIT_S_MAX in vain goes on without, and for a while nobody waits for that group at all. Such a worker is
ended soon; until then two workers may overwrite each other's count of a key in this group.

Layout: a byte for each group, 1 from its first record on, so that who looks at everything does not touch, and so make,
pages that nobody uses. Then the groups: SLOTS tags, SLOTS limits (the digest of each place's limit), and SLOTS places:

    state 1 | key length 1 | key 70 | copies 2 * (expires_s 8 | used_s 8 | floats 8 * 16)

A state of 0 is no record; else it is the number of floats times two, plus which copy.
"""

import fcntl
import hashlib
import math
import mmap
import os
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType

from quorate_core.errors import InvariantViolation
from quorate_resilience.limiters.table import RECORD_FLOATS_MAX, Record

from quorate_gateway.workers.shared_memory import HEADER_BYTES, SharedMemory

GROUPS = 16_384
SLOTS = 16
KEYS_MAX = GROUPS * SLOTS
KEY_BYTES_MAX = 70
"""What `limit_keys` gives is shorter."""
LOCK_WAIT_S_MAX = 0.25
"""Far above what an owner needs that has to wait for a processor itself."""
STUCK_S = 5.0
"""For so long nobody waits for a group whose owner was waited for in vain."""
YIELDS_MAX = 64
PAUSE_S = 0.000_05
COUNTED_S = 1.0
"""How old a count of keys may be. Counting looks at every place."""

_TAG_BYTES = 8
_DIGEST_BYTES = 16
_COPY_BYTES = 8 * (2 + RECORD_FLOATS_MAX)
_COPIES_AT = 2 + KEY_BYTES_MAX
_SLOT_BYTES = _COPIES_AT + 2 * _COPY_BYTES
_LIMITS_AT = SLOTS * _TAG_BYTES
_SLOTS_AT = 2 * SLOTS * _TAG_BYTES
_GROUP_BYTES = _SLOTS_AT + SLOTS * _SLOT_BYTES
_NO_TAG = bytes(_TAG_BYTES)
_HEADS = struct.Struct("=dd")
_RECORDS = [struct.Struct(f"={count}d") for count in range(RECORD_FLOATS_MAX + 1)]
_WHOLE = [struct.Struct(f"={count + 2}d") for count in range(RECORD_FLOATS_MAX + 1)]
_USED_AT = HEADER_BYTES
_GROUPS_AT = _USED_AT + GROUPS
TABLE_BYTES = GROUPS + GROUPS * _GROUP_BYTES


class GroupLocks:
    """The locks of this process. One event loop owns them: it holds one at a time."""

    def __init__(self, descriptor: int, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._descriptor = descriptor
        self._monotonic_s = monotonic_s
        self._stuck_until_s: dict[int, float] = {}
        self.passed_over = 0
        """How often it went on without a lock."""

    def acquire(self, group: int) -> bool:
        """Whether it is held now; see above for when it is not."""
        return self._try(group) or self._wait(group)

    def release(self, group: int) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, group)

    def _try(self, group: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, group)
        except (BlockingIOError, PermissionError):
            return False
        if self._stuck_until_s:
            self._stuck_until_s.pop(group, None)
        return True

    def _wait(self, group: int) -> bool:
        began_s = now_s = self._monotonic_s()
        tries = 0
        if self._stuck_until_s.get(group, began_s) <= began_s:
            while now_s - began_s < LOCK_WAIT_S_MAX:
                if tries < YIELDS_MAX:
                    os.sched_yield()
                else:
                    time.sleep(PAUSE_S)
                if self._try(group):
                    return True
                tries += 1
                now_s = self._monotonic_s()
            self._stuck_until_s[group] = now_s + STUCK_S
        self.passed_over += 1
        return False


def used_groups(table: mmap.mmap) -> Iterator[int]:
    """Where the groups begin that have had a record."""
    used = table[_USED_AT:_GROUPS_AT]
    group = used.find(1)
    while group >= 0:
        yield _GROUPS_AT + group * _GROUP_BYTES
        group = used.find(1, group + 1)


class SharedTables:
    """The tables of this process, by the identity of their limit."""

    def __init__(self, memory: SharedMemory, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self.memory = memory
        self.locks = GroupLocks(memory.descriptor, monotonic_s)
        self._monotonic_s = monotonic_s
        self._counted: Counter[bytes] = Counter()
        self._counted_s = -math.inf

    def __call__(self, identity: bytes) -> "SharedTable":
        return SharedTable(self, identity)

    def count(self, limit: bytes) -> int:
        """Keys that have a record, of the limit with this digest."""
        now_s = self._monotonic_s()
        if now_s - self._counted_s >= COUNTED_S:
            self._counted, self._counted_s = self._count(), now_s
        return self._counted[limit]

    def _count(self) -> Counter[bytes]:
        found: Counter[bytes] = Counter()
        for base in used_groups(self.memory.map):
            tags = self.memory.map[base : base + _SLOTS_AT]
            for at in range(0, _LIMITS_AT, _TAG_BYTES):
                if tags[at : at + _TAG_BYTES] != _NO_TAG:
                    found[tags[_LIMITS_AT + at : _LIMITS_AT + at + _TAG_BYTES]] += 1
        return found


class SharedTable:
    """The `Table` of one limit. `forgotten_early` counts this process's own."""

    __slots__ = (
        "_base",
        "_group",
        "_held",
        "_identity",
        "_key",
        "_limit",
        "_locks",
        "_map",
        "_secret",
        "_slot",
        "_tables",
        "_tag",
        "forgotten_early",
    )  # fmt: skip

    def __init__(self, tables: SharedTables, identity: bytes) -> None:
        self._tables = tables
        self._locks = tables.locks
        self._map = tables.memory.map
        self._secret = tables.memory.secret
        self._identity = hashlib.blake2b(identity, digest_size=_DIGEST_BYTES, key=self._secret).digest()
        self._limit = self._identity[:_TAG_BYTES]
        self.forgotten_early = 0
        self._key: bytes | None = None
        """That the four below are of."""
        self._group = 0
        self._base = 0
        self._tag = _NO_TAG
        self._slot = -1
        """Where its record is; -1 when it has none. Holds while it is locked."""
        self._held = False

    @property
    def keys_max(self) -> int:
        """Of all limits together."""
        return KEYS_MAX

    def __len__(self) -> int:
        return self._tables.count(self._limit)

    def group_of(self, key: bytes) -> int:
        """Which keys have one lock, and take each other's places when there is no room."""
        self._find_group(key)
        return self._group

    def locked(self, key: bytes) -> "SharedTable":
        """Not to be nested."""
        self._find_group(key)
        return self

    def __enter__(self) -> None:
        self._held = self._locks.acquire(self._group)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._held:
            self._held = False
            self._locks.release(self._group)

    def get(self, key: bytes) -> Record | None:
        if key != self._key:
            self._find_group(key)
        self._slot = self._find_slot()
        return None if self._slot < 0 else self._record(self._slot)

    def put(self, key: bytes, record: Record, expires_s: float, now_s: float) -> None:
        if not 1 <= len(record) <= RECORD_FLOATS_MAX or len(key) > KEY_BYTES_MAX:
            raise InvariantViolation(f"a record of {len(record)} floats for a key of {len(key)} bytes")
        if key != self._key:
            self._find_group(key)
        slot = self._find_slot()
        if slot >= 0:
            self._write(slot, record, expires_s, now_s)
            return
        self._map[_USED_AT + self._group] = 1
        slot = self._make_room(now_s)
        at, tag_at = self._place(slot), self._base + slot * _TAG_BYTES
        self._map[at + 1] = len(key)
        self._map[at + 2 : at + 2 + len(key)] = key
        self._map[tag_at + _LIMITS_AT : tag_at + _LIMITS_AT + _TAG_BYTES] = self._limit
        self._write(slot, record, expires_s, now_s)
        self._map[tag_at : tag_at + _TAG_BYTES] = self._tag  # NB: last, since it makes the place a record

    def items(self) -> Iterator[tuple[bytes, Record]]:
        """Without the locks, and so for people, and for who looks again with the lock: of a record that is written
        twice while it is read, half may be the newer."""
        for base in used_groups(self._map):
            limits = self._map[base + _LIMITS_AT : base + _SLOTS_AT]
            if self._limit not in limits:
                continue
            for slot in range(SLOTS):
                tag_at = base + slot * _TAG_BYTES
                is_mine = limits[slot * _TAG_BYTES : (slot + 1) * _TAG_BYTES] == self._limit
                if not is_mine or self._map[tag_at : tag_at + _TAG_BYTES] == _NO_TAG:
                    continue
                at = base + _SLOTS_AT + slot * _SLOT_BYTES
                key = self._map[at + 2 : at + 2 + self._map[at + 1]]
                record = self._record_at(at)
                if record is not None:
                    yield key, record

    def _find_group(self, key: bytes) -> None:
        digest = hashlib.blake2b(key, digest_size=_DIGEST_BYTES, key=self._identity).digest()
        self._key = key
        self._group = int.from_bytes(digest[:4], "little") % GROUPS
        self._base = _GROUPS_AT + self._group * _GROUP_BYTES
        tag = digest[_TAG_BYTES:]
        self._tag = tag if tag != _NO_TAG else b"\1" + tag[1:]

    def _find_slot(self) -> int:
        tags = self._map[self._base : self._base + _LIMITS_AT]
        at = tags.find(self._tag)
        while at >= 0:
            slot, past = divmod(at, _TAG_BYTES)
            if not past:
                return slot
            at = tags.find(self._tag, at + 1)  # it was found across two tags
        return -1

    def _place(self, slot: int) -> int:
        return self._base + _SLOTS_AT + slot * _SLOT_BYTES

    def _record(self, slot: int) -> Record | None:
        return self._record_at(self._place(slot))

    def _record_at(self, at: int) -> Record | None:
        state = self._map[at]
        count = state >> 1
        if not 1 <= count <= RECORD_FLOATS_MAX:
            return None
        copy = at + _COPIES_AT + (state & 1) * _COPY_BYTES
        found: tuple[float, ...] = _RECORDS[count].unpack_from(self._map, copy + _HEADS.size)
        return found

    def _write(self, slot: int, record: Record, expires_s: float, now_s: float) -> None:
        at = self._place(slot)
        copy = (self._map[at] & 1) ^ 1
        _WHOLE[len(record)].pack_into(self._map, at + _COPIES_AT + copy * _COPY_BYTES, expires_s, now_s, *record)
        self._map[at] = len(record) << 1 | copy

    def _make_room(self, now_s: float) -> int:
        """A place of the group that is nobody's now. What never expires, such as who has connections, is forgotten
        only where there is nothing else."""
        tags = self._map[self._base : self._base + _LIMITS_AT]
        longest, longest_used_s = 0, math.inf
        for slot in range(SLOTS):
            if tags[slot * _TAG_BYTES : (slot + 1) * _TAG_BYTES] == _NO_TAG:
                return slot
            at = self._place(slot)
            copy = at + _COPIES_AT + (self._map[at] & 1) * _COPY_BYTES
            expires_s, used_s = _HEADS.unpack_from(self._map, copy)
            if expires_s <= now_s:
                self._clear(slot)
                return slot
            if used_s < longest_used_s and expires_s != math.inf:
                longest, longest_used_s = slot, used_s
        self._clear(longest)
        self.forgotten_early += 1
        return longest

    def _clear(self, slot: int) -> None:
        tag_at = self._base + slot * _TAG_BYTES
        self._map[tag_at : tag_at + _TAG_BYTES] = _NO_TAG
