"""A backup on its way into a file: written aside, checked, made durable, and only then given its name.

Until then there is nothing under that name, or what was there before. Whatever ends the work, a signal too, takes away
what was written aside; only `kill -9` and a crash leave it, under a name that ends with PARTIAL_SUFFIX.
"""

import os
import secrets
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from quorate_core.errors import Conflict, InvalidContent
from quorate_store.backup import BackupHeader, BackupReader, DamagedBackup, OnProgress

PARTIAL_SUFFIX = ".partial"
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def require_new(path: Path, *, force: bool) -> None:
    """Raises Conflict when there is something at `path` already, and InvalidContent when nothing can be there."""
    if not path.parent.is_dir():
        raise InvalidContent(f"{path.parent} is no folder; make it first")
    if path.is_dir():
        raise Conflict(f"{path} is a folder; name a file in it")
    if path.exists() and not force:
        raise Conflict(f"{path} is there already; to replace it: --force")


def save_backup(pieces: Iterable[bytes], path: Path, *, force: bool, on_progress: OnProgress) -> BackupHeader:
    """Write what `pieces` bring to `path`. Durable when it returns.

    Raises DamagedBackup when they are not a whole backup, Conflict, OSError, and what `pieces` raises; `path` is then
    as it was.
    """
    require_new(path, force=force)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    with _ending_in_order():
        # It holds all that the platform knows, so it is for its owner only.
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                header = copy_backup(pieces, file, on_progress)
                file.flush()
                os.fsync(file.fileno())
            _put_in_place(aside, path, force=force)
        finally:
            aside.unlink(missing_ok=True)
        _sync_folder(path.parent)
    return header


def copy_backup(pieces: Iterable[bytes], file: BinaryIO, on_progress: OnProgress) -> BackupHeader:
    """Write what `pieces` bring to `file`, checking it. Raises DamagedBackup when it is not a whole one: what was
    written is then of no use."""
    reader = BackupReader()
    try:
        for piece in pieces:
            reader.feed(piece)
            file.write(piece)
            if reader.header is not None:
                on_progress(reader.data_bytes, reader.header.size_bytes)
        return reader.finish()
    except DamagedBackup as error:
        raise DamagedBackup(f"what the node sent is no snapshot: {error.detail}") from error


def _put_in_place(aside: Path, path: Path, *, force: bool) -> None:
    if force:
        aside.replace(path)
        return
    try:
        os.link(aside, path)  # unlike a renaming, it replaces nothing that has come meanwhile
    except FileExistsError:
        require_new(path, force=False)
    except OSError:  # a file system without links
        require_new(path, force=False)
        aside.replace(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Signals that ask for the end raise where the work is, so that it is cleared away behind it."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
