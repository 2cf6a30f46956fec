"""What a member's disk surely holds of its log, read from the bytes alone.

A judge that asked the member would believe it. So this reads the segments itself, whatever part of them is synced, and
knows no more of the log's code than its records' format.
"""

from fnmatch import fnmatch

import msgspec
from quorate_raft.core.messages import HardState, SnapshotMeta
from quorate_raft.runtime.wal_records import (
    PREFIX_BYTES,
    SegmentHeader,
    decode_batch,
    decode_header,
    decode_record,
)

from quorate_simulation.disk import Storage

_SEGMENT_PATTERN = "wal-*.log"


class DurableLog:
    """Of one `Storage`; `on_durable` is to be called whenever more of a file is durable, `reread` after a crash."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.votes: dict[int, set[str]] = {}
        """Whom it was ever on disk to have voted for, by term; over all lives."""
        self.hard_state = HardState()
        self.base = SnapshotMeta()
        self.last_index = 0
        self._terms: dict[int, int] = {}
        self._segment = ""
        self._offset = 0
        self._seed = 0

    def holds(self, index: int, term: int | None) -> bool:
        """Whether the entry at `index` is here, with that term; None: whatever its term is."""
        if index <= self.base.index:
            return True
        return index <= self.last_index and term in (None, self._terms.get(index))

    def on_durable(self, name: str) -> None:
        if fnmatch(name, _SEGMENT_PATTERN):
            self._read(name)

    def reread(self) -> None:
        self.hard_state, self.base, self.last_index = HardState(), SnapshotMeta(), 0
        self._terms.clear()
        self._segment = ""
        names = [name for name in self._storage.names() if fnmatch(name, _SEGMENT_PATTERN)]
        first = ""
        if names:
            header = self._header(memoryview(self._storage.durable_bytes(names[-1])))
            first = f"wal-{header.first_sequence:016d}.log" if header is not None else ""
        for name in names:
            if name >= first:
                self._read(name)

    def _read(self, name: str) -> None:
        data = memoryview(self._storage.durable_bytes(name))
        if name != self._segment:
            header = self._header(data)
            if header is None or name < self._segment:
                return
            self._segment, self._seed = name, header.seed
            self._take_hard_state(header.hard_state)
            self._take_base(header.base)
            found = decode_record(data, 0, 0)
            self._offset = PREFIX_BYTES + (len(found[1]) if found is not None else 0)
        while (record := decode_record(data, self._offset, self._seed)) is not None:
            self._offset += PREFIX_BYTES + len(record[1])
            self._take_batch(record[1])

    def _header(self, data: memoryview) -> SegmentHeader | None:
        found = decode_record(data, 0, 0)
        try:
            return None if found is None else decode_header(found[1])
        except msgspec.MsgspecError:
            return None

    def _take_hard_state(self, hard_state: HardState) -> None:
        self.hard_state = hard_state
        if hard_state.vote:
            self.votes.setdefault(hard_state.term, set()).add(hard_state.vote)

    def _take_base(self, base: SnapshotMeta) -> None:
        if base.index > self.base.index and self._terms.get(base.index) != base.term:
            self._terms.clear()
            self.last_index = base.index
        self.base = base
        self.last_index = max(self.last_index, base.index)

    def _take_batch(self, payload: memoryview) -> None:
        batch = decode_batch(payload)
        if batch.hard_state is not None:
            self._take_hard_state(batch.hard_state)
        if batch.entries:
            for index in range(batch.entries[0].index, self.last_index + 1):
                self._terms.pop(index, None)
            self._terms.update((entry.index, entry.term) for entry in batch.entries)
            self.last_index = batch.entries[-1].index
