"""A small disk that can be filled: a file system in memory, mounted on a folder. It needs root and `mount`."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COMMAND_S_MAX = 20.0
FILLER_NAME = "filler"
_BLOCK_BYTES = 64 * 1024


class MountUnavailable(Exception):
    """This machine does not let us mount; says why."""


@dataclass(frozen=True)
class SmallDisk:
    folder: Path

    def fill(self, left_bytes: int = 0) -> None:
        """Until no more than `left_bytes` fit."""
        descriptor = os.open(self.folder / FILLER_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for block_bytes in (_BLOCK_BYTES, 1):
                while True:
                    try:
                        os.write(descriptor, bytes(block_bytes))
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        break
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - left_bytes)
        finally:
            os.close(descriptor)

    def make_room(self) -> None:
        (self.folder / FILLER_NAME).unlink()


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """`folder` is made. Raises MountUnavailable."""
    folder.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "quorate-faults", str(folder))
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily: a process that is being ended may still have it open, and it must be gone all the same.
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False)
    except OSError as error:
        raise MountUnavailable(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise MountUnavailable(f"{' '.join(command)}: {done.stderr.strip()}")
