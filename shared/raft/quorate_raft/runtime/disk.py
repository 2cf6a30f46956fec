"""One folder on a real disk, owned by one process, with one thread that does all blocking work in order."""

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
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SettingsError(f"the data folder {folder} cannot be used: {error.strerror}") from error
        try:
            self._lock_fd = self._lock()
        except BaseException:
            os.close(self._folder_fd)
            raise
        for left_over in folder.glob(f"*{ASIDE_SUFFIX}"):
            left_over.unlink()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"disk {folder.name}", daemon=True)
        self._thread.start()
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
        self._jobs.put(None)
        self._thread.join()
        os.close(self._lock_fd)
        os.close(self._folder_fd)

    @property
    def folder(self) -> Path:
        return self._folder

    def names(self) -> Sequence[str]:
        with self.failing("list", ""):
            return sorted(entry.name for entry in os.scandir(self._folder) if entry.name != LOCK_NAME)

    def open(self, name: str, *, create: bool) -> "FileDiskFile":
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        with self.failing("open", name):
            return FileDiskFile(self, name, os.open(self._folder / name, flags, 0o600))

    def write_atomically(self, name: str, data: bytes) -> None:
        aside = name + ASIDE_SUFFIX
        with self.failing("write", name):
            descriptor = os.open(self._folder / aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            (self._folder / aside).rename(self._folder / name)
            os.fsync(self._folder_fd)

    def remove(self, name: str) -> None:
        with self.failing("remove", name):
            (self._folder / name).unlink()

    def sync_folder(self) -> None:
        with self.failing("sync", ""):
            os.fsync(self._folder_fd)

    async def run(self, work: Callable[[], Any]) -> Any:
        if self._closed:
            raise DiskFailed(f"the data folder {self._folder} is closed")
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()
        self._jobs.put((work, outcome, loop))
        return await outcome

    @contextlib.contextmanager
    def failing(self, action: str, name: str) -> Iterator[None]:
        """Turns an OSError into DiskFailed, saying what could not be done to which file."""
        try:
            yield
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
            raise DiskFailed(f"cannot {action} {self._folder / name}: {reason}") from error

    def _lock(self) -> int:
        with self.failing("open", LOCK_NAME):
            descriptor = os.open(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise SettingsError(
                f"the data folder {self._folder} is in use by another process; stop it, or choose another folder"
            ) from error
        return descriptor

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


class FileDiskFile:
    """A `DiskFile`. After a failure to write or sync it refuses everything: what it holds is not known."""

    def __init__(self, disk: FileDisk, name: str, descriptor: int) -> None:
        self._disk = disk
        self._name = name
        self._descriptor = descriptor
        self._has_failed = False

    def append(self, data: bytes) -> None:
        with self._final("append to"):
            _write_all(self._descriptor, data)

    def sync(self) -> None:
        with self._final("sync"):
            os.fdatasync(self._descriptor)

    def read_all(self) -> bytes:
        with self._disk.failing("read", self._name):
            size = os.fstat(self._descriptor).st_size
            parts: list[bytes] = []
            offset = 0
            while offset < size and (part := os.pread(self._descriptor, size - offset, offset)):
                parts.append(part)
                offset += len(part)
            return b"".join(parts)

    def truncate(self, size: int) -> None:
        with self._final("truncate"):
            os.ftruncate(self._descriptor, size)

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


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def _resolve(outcome: "asyncio.Future[Any]", result: Any) -> None:
    if not outcome.done():
        outcome.set_result(result)


def _reject(outcome: "asyncio.Future[Any]", error: BaseException) -> None:
    if not outcome.done():
        outcome.set_exception(error)
