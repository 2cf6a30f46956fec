"""Whether state files that were never synced can be believed.

LMDB runs here without its own syncs. After kill -9 the kernel still has every page, so the files are whole. After a
loss of power they may not be, and nothing inside them would say so. Hence a marker beside them: it holds the boot id
of the machine that writes, and whether the files were synced and closed. Files of another boot that were not closed
are thrown away; the newest snapshot and the log rebuild them. The marker also names the files that count
(`generations.py`).
"""

import os
from pathlib import Path

import msgspec

MARKER_NAME = "boot.json"
STAGED_MARKER_NAME = "boot.json.next"
"""A marker that is written and synced, and not in force yet."""
_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")


class BootMarker(msgspec.Struct, frozen=True):
    """`boot_id` is empty on a machine that has none; files are then believed only after a clean close."""

    boot_id: str
    closed_cleanly: bool
    generation: int = 0


def current_boot_id() -> str:
    try:
        return _BOOT_ID_PATH.read_text().strip()
    except OSError:
        return ""


def is_believable(marker: BootMarker | None, boot_id: str) -> bool:
    """Whether the files beside `marker` may be used on a machine that now has `boot_id`."""
    if marker is None:
        return False
    return marker.closed_cleanly or (marker.boot_id == boot_id and boot_id != "")


def read_marker(folder: Path) -> BootMarker | None:
    """None when there is none, or it cannot be read: both mean that the files are not to be believed."""
    try:
        return msgspec.json.decode((folder / MARKER_NAME).read_bytes(), type=BootMarker)
    except (OSError, msgspec.MsgspecError):
        return None


def write_marker(folder: Path, marker: BootMarker) -> None:
    """Durable when it returns: written aside, synced, renamed, and the folder synced. Raises OSError."""
    _write_synced(folder / (MARKER_NAME + ".new"), marker)
    (folder / (MARKER_NAME + ".new")).replace(folder / MARKER_NAME)
    sync_folder(folder)


def stage_marker(folder: Path, marker: BootMarker) -> None:
    """Everything that takes long of writing a marker. Raises OSError."""
    _write_synced(folder / STAGED_MARKER_NAME, marker)


def put_staged_marker_in_force(folder: Path) -> None:
    """One rename, which kill -9 finds done or not done; a loss of power makes the files doubtful either way. Raises
    OSError."""
    (folder / STAGED_MARKER_NAME).replace(folder / MARKER_NAME)


def _write_synced(path: Path, marker: BootMarker) -> None:
    with path.open("wb") as file:
        file.write(msgspec.json.encode(marker))
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
