"""Disks for tests of what stands on one: what was done is counted, and a crash comes at a chosen step."""

from collections.abc import Callable

from quorate_raft.runtime.disk import FileDisk
from quorate_raft.runtime.ports import DiskFile


class Crash(Exception):
    """The process ends here: nothing after it is done."""


class CrashingDisk:
    """A `Disk` on a real one. It writes down each step that changes something, and crashes before step `crash_at`."""

    def __init__(self, disk: FileDisk, crash_at: int | None = None) -> None:
        self._disk = disk
        self._crash_at = crash_at
        self.steps: list[str] = []
        self.names, self.path, self.read, self.size_bytes = disk.names, disk.path, disk.read, disk.size_bytes
        self.folder, self.run, self.run_aside = disk.folder, disk.run, disk.run_aside

    def crash_after(self, steps: int) -> None:
        """Crash when so many more have been done."""
        self._crash_at = len(self.steps) + steps

    def step(self, name: str) -> None:
        if len(self.steps) == self._crash_at:
            raise Crash(name)
        self.steps.append(name)

    def open(self, name: str, *, create: bool) -> DiskFile:
        if create:
            self.step(f"create {name}")
        return _CrashingFile(self.step, self._disk.open(name, create=create))

    def write_atomically(self, name: str, data: bytes) -> None:
        self.step(f"write {name}")
        self._disk.write_atomically(name, data)

    def publish(self, aside: str, name: str) -> None:
        self.step(f"publish {name}")
        self._disk.publish(aside, name)

    def remove(self, name: str) -> None:
        self.step(f"remove {name}")
        self._disk.remove(name)

    def sync_folder(self) -> None:
        self.step("sync folder")
        self._disk.sync_folder()


class _CrashingFile:
    def __init__(self, step: Callable[[str], None], file: DiskFile) -> None:
        self._step, self._file = step, file
        self.continue_at, self.close = file.continue_at, file.close

    def append(self, data: bytes) -> None:
        self._step("append")
        self._file.append(data)

    def sync(self) -> None:
        self._step("sync")
        self._file.sync()

    def preallocate(self, size_bytes: int) -> None:
        self._step("preallocate")
        self._file.preallocate(size_bytes)
