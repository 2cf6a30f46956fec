"""Whether state files that were never synced can be believed.

LMDB runs here without its own syncs. After kill -9 the kernel still has every page, so the files are whole. After a
loss of power they may not be, and nothing inside them would say so. Hence a marker beside them: it holds the boot id
of the machine that writes, and whether the files were synced and closed. Files of another boot that were not closed
are thrown away; the log rebuilds them.
"""

import os
from pathlib import Path

import msgspec

MARKER_NAME = "boot.json"
_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")


class BootMarker(msgspec.Struct, frozen=True):
    """`boot_id` is empty on a machine that has none; files are then believed only after a clean close."""

    boot_id: str
    closed_cleanly: bool


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
    aside = folder / (MARKER_NAME + ".new")
    with aside.open("wb") as file:
        file.write(msgspec.json.encode(marker))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / MARKER_NAME)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
