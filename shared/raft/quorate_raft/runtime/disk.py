"""One folder on a real disk, owned by one process, with a thread that does all blocking work in order, and another
one for long work."""

import asyncio
import contextlib
import errno
import fcntl
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quorate_core.errors import QuorateError, SettingsError

LOCK_NAME = "LOCK"
ASIDE_SUFFIX = ".aside"
"""Of a file that is not whole yet: left over by a crash, and removed at start."""
ZEROS_BYTES = 1 << 20
"""Written at once where a file system cannot set room aside."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_CANNOT_SET_ASIDE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop]


class DiskFailed(QuorateError):
    """The disk refused to read, write or sync. What it holds is not known any more: the process must stop."""


class FileDisk:
    """A `Disk` on `folder`, which is made if it is not there.

    Raises SettingsError when another process has the folder, or it cannot be used. Use as a context manager, or call
    `close`: the lock is then free again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with _refusing(folder):
            _make_folder(folder, 0o700)
            self._folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock_fd = self._lock()
        except BaseException:
            os.close(self._folder_fd)
            raise
        self._worker = _Worker(f"disk {folder.name}")
        self._aside_worker: _Worker | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish the work that was begun, and let another process have the folder."""
        if self._closed:
            return
        self._closed = True
        self._worker.close()
        if self._aside_worker is not None:
            self._aside_worker.close()
        os.close(self._lock_fd)
        os.close(self._folder_fd)

    @property
    def folder(self) -> Path:
        return self._folder

    def path(self, name: str) -> Path:
        return self._folder / name

    def names(self) -> Sequence[str]:
        with self.failing("list", ""):
            return sorted(entry.name for entry in os.scandir(self._folder) if entry.name != LOCK_NAME)

    def open(self, name: str, *, create: bool) -> "FileDiskFile":
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        with self.failing("open", name):
            descriptor = os.open(self._folder / name, flags, 0o600)
            return FileDiskFile(self, name, descriptor, os.fstat(descriptor).st_size)

    def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        with self.failing("read", name):
            descriptor = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return _read_part(descriptor, offset, size_bytes)
            finally:
                os.close(descriptor)

    def size_bytes(self, name: str) -> int:
        with self.failing("look at", name):
            return (self._folder / name).stat().st_size

    def write_atomically(self, name: str, data: bytes) -> None:
        aside = name + ASIDE_SUFFIX
        with self.failing("write", name):
            descriptor = os.open(self._folder / aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _write_all(descriptor, data, 0)
            finally:
                os.close(descriptor)
        self.publish(aside, name)

    def publish(self, aside: str, name: str) -> None:
        with self.failing("sync", aside):
            descriptor = os.open(self._folder / aside, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        with self.failing("rename", aside):
            (self._folder / aside).rename(self._folder / name)
        self.sync_folder()

    def remove(self, name: str) -> None:
        with self.failing("remove", name):
            (self._folder / name).unlink()

    def sync_folder(self) -> None:
        with self.failing("sync", ""):
            os.fsync(self._folder_fd)

    async def run(self, work: Callable[[], Any]) -> Any:
        self._require_open()
        return await self._worker.run(work)

    async def run_aside(self, work: Callable[[], Any]) -> Any:
        self._require_open()
        if self._aside_worker is None:
            self._aside_worker = _Worker(f"disk {self._folder.name} aside")
        return await self._aside_worker.run(work)

    @contextlib.contextmanager
    def failing(self, action: str, name: str) -> Iterator[None]:
        """Turns an OSError into DiskFailed, saying what could not be done to which file."""
        try:
            yield
        except OSError as error:
            raise DiskFailed(f"cannot {action} {self._folder / name}: {reason_of(error)}") from error

    def _require_open(self) -> None:
        if self._closed:
            raise DiskFailed(f"the data folder {self._folder} is closed")

    def _lock(self) -> int:
        """Take the folder, and remove what a crash has left half written in it."""
        with _refusing(self._folder):
            descriptor = os.open(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with _refusing(self._folder):
                _take_lock(descriptor, self._folder)
                for left_over in self._folder.glob(f"*{ASIDE_SUFFIX}"):
                    left_over.unlink()
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


class FileDiskFile:
    """A `DiskFile`. After a failure to write or sync it refuses everything: what it holds is not known."""

    def __init__(self, disk: FileDisk, name: str, descriptor: int, end_offset: int) -> None:
        self._disk = disk
        self._name = name
        self._descriptor = descriptor
        self._end_offset = end_offset
        """Where the next append goes; less than the file's size when that is set aside in advance."""
        self._has_failed = False

    def append(self, data: bytes) -> None:
        with self._final("append to"):
            _write_all(self._descriptor, data, self._end_offset)
        self._end_offset += len(data)

    def sync(self) -> None:
        with self._final("sync"):
            os.fdatasync(self._descriptor)

    def preallocate(self, size_bytes: int) -> None:
        with self._final("set room aside for"):
            missing_bytes = size_bytes - os.fstat(self._descriptor).st_size
            if missing_bytes > 0:
                set_aside(self._descriptor, size_bytes - missing_bytes, missing_bytes)

    def continue_at(self, offset: int) -> None:
        self._end_offset = offset

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @contextlib.contextmanager
    def _final(self, action: str) -> Iterator[None]:
        if self._has_failed:
            raise DiskFailed(f"cannot {action} {self._name}: an earlier failure is final")
        try:
            with self._disk.failing(action, self._name):
                yield
        except DiskFailed:
            self._has_failed = True
            raise


class _Worker:
    """A thread that does what it is given, one piece after the other. Whoever gives it a piece waits for that, so there
    are never more of them than there are waiters."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()
        self._jobs.put((work, outcome, loop))
        return await outcome

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, outcome, loop = job
            settle: tuple[Callable[..., None], Any]
            try:
                settle = (_resolve, work())
            except BaseException as error:  # handed to whoever awaits it
                settle = (_reject, error)
            # The loop may be gone: then nobody waits for the outcome either.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle[0], outcome, settle[1])
            del job, work, outcome, settle


def set_aside(descriptor: int, offset: int, size_bytes: int) -> None:
    """Have the file system keep room for so many zeros, at the end of a file. Where it cannot, write them."""
    try:
        os.posix_fallocate(descriptor, offset, size_bytes)
    except OSError as error:
        if error.errno not in _CANNOT_SET_ASIDE:
            raise
        write_zeros(descriptor, offset, size_bytes)


def write_zeros(descriptor: int, offset: int, size_bytes: int) -> None:
    for begin in range(offset, offset + size_bytes, ZEROS_BYTES):
        _write_all(descriptor, bytes(min(ZEROS_BYTES, offset + size_bytes - begin)), begin)


def _take_lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SettingsError(
            f"the data folder {folder} is in use by another process; stop it, or choose another folder"
        ) from error


def _make_folder(folder: Path, mode: int) -> None:
    """Make it and what is missing above it. Each is durable in its parent: else a power loss could take away the folder
    with everything that was synced in it, and the member would start as if it had never promised anything."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make_folder(folder.parent, 0o777)
    with contextlib.suppress(FileExistsError):  # by another process, or no folder: opening it says so
        folder.mkdir(mode)
    parent_fd = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent_fd)
    finally:
        os.close(parent_fd)


@contextlib.contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turns an OSError into the SettingsError of a folder that cannot hold data."""
    try:
        yield
    except OSError as error:
        raise SettingsError(f"the data folder {folder} cannot be used: {reason_of(error)}") from error


def reason_of(error: OSError) -> str:
    """Why, for people."""
    return "the disk is full" if error.errno in _NO_ROOM else (error.strerror or str(error))


def _read_part(descriptor: int, offset: int, size_bytes: int) -> bytes:
    part = os.pread(descriptor, size_bytes, offset)
    if len(part) == size_bytes or not part:
        return part
    parts = [part]
    read_bytes = len(part)
    while read_bytes < size_bytes and (part := os.pread(descriptor, size_bytes - read_bytes, offset + read_bytes)):
        parts.append(part)
        read_bytes += len(part)
    return b"".join(parts)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    written = os.pwrite(descriptor, data, offset)
    while written < len(data):
        written += os.pwrite(descriptor, memoryview(data)[written:], offset + written)


def _resolve(outcome: "asyncio.Future[Any]", result: Any) -> None:
    if not outcome.done():
        outcome.set_result(result)


def _reject(outcome: "asyncio.Future[Any]", error: BaseException) -> None:
    if not outcome.done():
        outcome.set_exception(error)
