"""One machine's disk: what was written, what of that is synced, and what a power loss leaves.

Theory of operation. A `Storage` belongs to a machine and outlives its processes; each process opens a `SimulatedDisk`
on it, which is a `quorate_raft.runtime.ports.Disk`. Files are in memory. Every write that is not synced yet is kept
apart, with what it overwrote, and every change of the folder too.

- *kill -9*: nothing is lost; the kernel has it all.
- *power loss*: of the changes of the folder that were not synced a prefix stays, or any part; of the writes that were
  not synced each sector may be there, or not, or hold garbage, and the last one may be torn in the middle.
- *a sync that fails* (EIO): of what it should have made durable each write is durable or gone, and nobody knows which;
  see fsyncgate. That is what the kernel of the day does, and the reason why it is final.
- *a full disk*: no file grows any more. What was set aside can still be written.

A file that somebody else writes or reads by its path (LMDB, a snapshot) is a real one, in a private folder, and
under the same rules: before `publish` a power loss may take it, cut it or fill it with garbage.

Blocking work is done in one go at some moment between the call and its answer; both waits are drawn. A process that is
killed in the middle of its work unwinds out of it, and every operation of a dead process raises.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quorate_raft.runtime.disk import ASIDE_SUFFIX, DiskFailed

from quorate_simulation.loop import ProcessDied, SimulatedProcess
from quorate_simulation.randomness import Stream

SECTOR_BYTES = 512
LATENCY_S_MIN = 0.00005
LATENCY_S_MAX = 0.004
SPIKE_S_MAX = 0.3
SPIKE_PROBABILITY = 0.002


@dataclass(slots=True)
class _Write:
    offset: int
    before: bytes
    after: bytes
    size_before: int


@dataclass(slots=True, eq=False)
class _Inode:
    """A file, whatever its name is. `real`: where it is when somebody else writes or reads it."""

    data: bytearray = field(default_factory=bytearray)
    unsynced: list[_Write] = field(default_factory=list)
    real: Path | None = None
    is_synced: bool = True
    """Of a real file: whether all of it is durable."""

    @property
    def size_bytes(self) -> int:
        return self.real.stat().st_size if self.real is not None else len(self.data)

    def read(self, offset: int, size_bytes: int) -> bytes:
        if self.real is None:
            return bytes(self.data[offset : offset + size_bytes])
        with self.real.open("rb") as file:
            file.seek(offset)
            return file.read(size_bytes)

    def write(self, offset: int, data: bytes) -> None:
        size_before = len(self.data)
        end = offset + len(data)
        self.unsynced.append(_Write(offset, bytes(self.data[offset:end]), data, size_before))
        if offset > size_before:
            self.data += bytes(offset - size_before)
        self.data[offset:end] = data

    def undo(self, write: _Write) -> None:
        self.data[write.offset : write.offset + len(write.before)] = write.before
        del self.data[write.size_before :]

    def sync(self) -> None:
        self.unsynced.clear()
        self.is_synced = True


_FolderChange = tuple[tuple[str, _Inode | None, _Inode | None], ...]
"""What is changed in one go, such as both names of a rename: a name, what it meant before, and what it means now."""


class Storage:
    """What is on one machine's disk. `real_folder` is private, and made here."""

    def __init__(self, chance: Stream, real_folder: Path) -> None:
        self._chance = chance
        self.real_folder = real_folder
        real_folder.mkdir(parents=True)
        self._files: dict[str, _Inode] = {}
        self._unsynced_changes: list[_FolderChange] = []
        self._torn_reals = 0
        self.is_full = False
        self.fails_syncs = False
        self.slowness = 1.0
        """Every wait is so many times as long."""
        self.on_durable: Callable[[str], None] = _ignore_name
        """Called with the name of a file when more of it is durable, or it came to be there."""

    def names(self) -> list[str]:
        for path in sorted(self.real_folder.iterdir()):
            self._adopt(path.name)
        return sorted(self._files)

    def inode(self, name: str) -> _Inode:
        """Raises DiskFailed."""
        self._adopt(name)
        if name not in self._files:
            raise DiskFailed(f"cannot open {name}: No such file or directory")
        return self._files[name]

    def durable_bytes(self, name: str) -> bytes:
        """What surely survives a power loss now; for those who judge."""
        inode = self._files[name]
        if inode.real is not None or not inode.unsynced:
            return inode.read(0, inode.size_bytes)
        copy = _Inode(bytearray(inode.data))
        for write in reversed(inode.unsynced):
            copy.undo(write)
        return bytes(copy.data)

    def set_name(self, name: str, inode: _Inode | None) -> None:
        self._unsynced_changes.append(((name, self._files.get(name), inode),))
        self._put(name, inode)

    def rename(self, before: str, after: str) -> None:
        inode = self.inode(before)
        self._unsynced_changes.append(((before, inode, None), (after, self._files.get(after), inode)))
        self._put(before, None)
        self._put(after, inode)

    def sync_folder(self) -> None:
        self._fail_if_broken("sync", "the folder")
        self._unsynced_changes.clear()

    def sync_file(self, name: str, inode: _Inode) -> None:
        if self.fails_syncs:
            self._lose_some(inode)
        self._fail_if_broken("sync", name)
        inode.sync()

    def require_room(self) -> None:
        if self.is_full:
            raise DiskFailed("cannot write: the disk is full")

    def real_path(self, name: str) -> Path:
        """A real file for `name`; what is in memory is put there first."""
        path = self.real_folder / name
        inode = self._files.get(name)
        if inode is not None and inode.real is None:
            path.write_bytes(inode.data)
            inode.is_synced = not inode.unsynced
            inode.unsynced.clear()
            inode.real = path
            inode.data = bytearray()
        return path

    def lose_power(self) -> list[str]:
        """Decide what is still there. Returns sentences that say what became of the rest."""
        notes = self._lose_folder_changes()
        for name in sorted(self._files):
            inode = self._files[name]
            if inode.real is not None:
                notes += self._tear_real(name, inode)
            elif inode.unsynced:
                notes.append(f"{name}: {self._tear(inode)}")
        self._unsynced_changes.clear()
        return notes

    def wait_s(self) -> float:
        chance = self._chance
        if chance.happens(SPIKE_PROBABILITY):
            return chance.skewed(LATENCY_S_MAX, SPIKE_S_MAX) * self.slowness
        return chance.skewed(LATENCY_S_MIN, LATENCY_S_MAX) * self.slowness

    def _adopt(self, name: str) -> None:
        """A file that somebody else has made is in the folder from now on."""
        path = self.real_folder / name
        if name not in self._files and path.is_file():
            self.set_name(name, _Inode(real=path, is_synced=False))

    def _put(self, name: str, inode: _Inode | None) -> None:
        replaced = self._files.pop(name, None)
        if replaced is not None and replaced.real is not None and replaced.real == self.real_folder / name:
            self._set_real_aside(replaced)
        if inode is not None:
            self._files[name] = inode
            if inode.real is not None and inode.real != self.real_folder / name:
                inode.real = inode.real.rename(self.real_folder / name)

    def _set_real_aside(self, inode: _Inode) -> None:
        """A file whose name is gone may come back by a power loss."""
        if inode.real is None:
            return
        attic = self.real_folder.parent / f"{self.real_folder.name}-removed"
        attic.mkdir(exist_ok=True)
        self._torn_reals += 1
        inode.real = inode.real.rename(attic / str(self._torn_reals))

    def _fail_if_broken(self, action: str, name: str) -> None:
        if self.fails_syncs:
            raise DiskFailed(f"cannot {action} {name}: Input/output error")

    def _lose_some(self, inode: _Inode) -> None:
        kept = [write for write in inode.unsynced if self._chance.happens(0.5)]
        self._revert(inode)
        for write in kept:
            inode.write(write.offset, write.after)
        inode.unsynced.clear()

    def _revert(self, inode: _Inode) -> None:
        for write in reversed(inode.unsynced):
            inode.undo(write)
        inode.unsynced.clear()

    def _lose_folder_changes(self) -> list[str]:
        changes, self._unsynced_changes = self._unsynced_changes, []
        if not changes:
            return []
        chance = self._chance
        count = chance.randrange(len(changes) + 1)
        kept = changes[:count] if chance.happens(0.7) else [one for one in changes if chance.happens(0.5)]
        for change in reversed(changes):
            for name, before, _ in reversed(change):
                self._put(name, before)
        for name, _, after in [one for change in kept for one in change]:
            for other in [other for other, inode in self._files.items() if inode is after]:
                self._put(other, None)  # a rename that stays without the one before it
            self._put(name, after)
        return [f"{len(changes) - len(kept)} of {len(changes)} changes of the folder undone"]

    def _tear(self, inode: _Inode) -> str:
        chance, writes = self._chance, list(inode.unsynced)
        self._revert(inode)
        kept = chance.randrange(len(writes) + 1)
        for write in writes[:kept]:
            inode.write(write.offset, write.after)
        note = f"{len(writes) - kept} of {len(writes)} unsynced writes lost"
        if kept < len(writes):
            note += f", {self._tear_write(inode, writes[kept])}"
        inode.unsynced.clear()
        return note

    def _tear_write(self, inode: _Inode, write: _Write) -> str:
        """Some sectors of it, or garbage, on whatever the file is long enough for."""
        chance, sectors = self._chance, range(0, len(write.after), SECTOR_BYTES)
        kind = chance.one_of(("nothing of it", "a prefix", "some sectors", "garbage"))
        if kind == "nothing of it":
            return kind
        cut = chance.randrange(len(write.after) + 1)
        for at in sectors:
            piece = write.after[at : at + SECTOR_BYTES]
            if kind == "a prefix":
                piece = piece[: max(cut - at, 0)]
            elif kind == "garbage":
                piece = chance.randbytes(len(piece)) if at < cut else b""
            elif chance.happens(0.5):
                piece = b""
            if piece:
                inode.write(write.offset + at, piece)
        return f"{kind} of the next"

    def _tear_real(self, name: str, inode: _Inode) -> list[str]:
        real, chance = inode.real, self._chance
        if inode.is_synced or real is None:
            return []
        kind = chance.one_of(("gone", "cut", "garbage"))
        if kind == "gone":
            self._put(name, None)
        elif kind == "cut":
            data = real.read_bytes()
            real.write_bytes(data[: chance.randrange(len(data) + 1)])
        else:
            scribble(real, chance)
        inode.is_synced = True
        return [f"{name}: {kind}"]


class SimulatedDisk:
    """`quorate_raft.runtime.ports.Disk` of one process. Opening it removes what is half written, as FileDisk does."""

    def __init__(self, storage: Storage, process: SimulatedProcess) -> None:
        self.storage = storage
        self._process = process
        self._lane = _Lane(storage)
        self._aside_lane = _Lane(storage)
        for name in storage.names():
            if name.endswith(ASIDE_SUFFIX):
                storage.set_name(name, None)

    @property
    def folder(self) -> Path:
        return Path("/simulated") / self._process.name

    def names(self) -> Sequence[str]:
        self._require_alive()
        return self.storage.names()

    def open(self, name: str, *, create: bool) -> "SimulatedFile":
        self._require_alive()
        if create:
            self.storage.require_room()
            if name in self.storage.names():
                raise DiskFailed(f"cannot open {name}: File exists")
            self.storage.set_name(name, _Inode())
        return SimulatedFile(self.storage, self._process, name, self.storage.inode(name))

    def write_atomically(self, name: str, data: bytes) -> None:
        aside = name + ASIDE_SUFFIX
        self._require_alive()
        self.storage.require_room()
        inode = _Inode()
        self.storage.set_name(aside, inode)
        inode.write(0, data)
        self.publish(aside, name)

    def publish(self, aside: str, name: str) -> None:
        self._require_alive()
        inode = self.storage.inode(aside)
        if inode.real is not None:
            self.storage.require_room()
        self.storage.sync_file(aside, inode)
        self._process.count_write()
        self.storage.rename(aside, name)
        self._process.count_write()
        self.sync_folder()
        self.storage.on_durable(name)
        self._process.count_write()

    def remove(self, name: str) -> None:
        self._require_alive()
        self.storage.inode(name)
        self.storage.set_name(name, None)
        self._process.count_write()

    def sync_folder(self) -> None:
        self._require_alive()
        self.storage.sync_folder()

    def path(self, name: str) -> Path:
        return self.storage.real_path(name)

    def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        self._require_alive()
        return self.storage.inode(name).read(offset, size_bytes)

    def size_bytes(self, name: str) -> int:
        self._require_alive()
        return self.storage.inode(name).size_bytes

    async def run(self, work: Callable[[], Any]) -> Any:
        return await self._lane.run(work)

    async def run_aside(self, work: Callable[[], Any]) -> Any:
        return await self._aside_lane.run(work)

    def _require_alive(self) -> None:
        if not self._process.is_alive:
            raise ProcessDied(self._process.name)


class SimulatedFile:
    """`DiskFile`. After a failure it refuses everything, as the real one does."""

    def __init__(self, storage: Storage, process: SimulatedProcess, name: str, inode: _Inode) -> None:
        self._storage = storage
        self._process = process
        self._name = name
        self._inode = inode
        self._end_offset = inode.size_bytes
        self._has_failed = False

    def append(self, data: bytes) -> None:
        self._require_usable()
        if self._end_offset + len(data) > self._inode.size_bytes:
            self._require_room()
        self._inode.write(self._end_offset, data)
        self._end_offset += len(data)
        self._process.count_write()

    def sync(self) -> None:
        self._require_usable()
        try:
            self._storage.sync_file(self._name, self._inode)
        except DiskFailed:
            self._has_failed = True
            raise
        self._storage.on_durable(self._name)
        self._process.count_write()

    def preallocate(self, size_bytes: int) -> None:
        self._require_usable()
        missing_bytes = size_bytes - self._inode.size_bytes
        if missing_bytes > 0:
            self._require_room()
            self._inode.write(self._inode.size_bytes, bytes(missing_bytes))

    def continue_at(self, offset: int) -> None:
        self._end_offset = offset

    def close(self) -> None:
        """Nothing is held."""

    def _require_room(self) -> None:
        try:
            self._storage.require_room()
        except DiskFailed:
            self._has_failed = True
            raise

    def _require_usable(self) -> None:
        if not self._process.is_alive:
            raise ProcessDied(self._process.name)
        if self._has_failed:
            raise DiskFailed(f"cannot use {self._name}: an earlier failure is final")


class _Lane:
    """What a disk's thread is: one piece of work after the other, whether anybody still waits for it or not."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._jobs: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()

    async def run(self, work: Callable[[], Any]) -> Any:
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._jobs.append((work, outcome))
        if len(self._jobs) == 1:
            self._begin()
        return await outcome

    def _begin(self) -> None:
        asyncio.get_running_loop().call_later(self._storage.wait_s() / 2, self._do)

    def _do(self) -> None:
        settle: Callable[[asyncio.Future[Any]], None]
        try:
            result = self._jobs[0][0]()
        except Exception as error:
            failure = error
            settle = lambda outcome: outcome.set_exception(failure)  # noqa: E731 - two lines for two outcomes
        else:
            settle = lambda outcome: outcome.set_result(result)  # noqa: E731 - as above
        asyncio.get_running_loop().call_later(self._storage.wait_s() / 2, self._end, settle)

    def _end(self, settle: Callable[["asyncio.Future[Any]"], None]) -> None:
        _, outcome = self._jobs.popleft()
        if not outcome.done():
            settle(outcome)
        if self._jobs:
            self._begin()


def scribble(path: Path, chance: Stream) -> None:
    """Overwrite a few places of a real file with garbage."""
    size_bytes = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(chance.randrange(1, 6)):
            file.seek(chance.randrange(max(1, size_bytes)))
            file.write(chance.randbytes(chance.randrange(1, 2048)))
        file.truncate(size_bytes)


def _ignore_name(_name: str) -> None:
    """Until somebody judges."""
