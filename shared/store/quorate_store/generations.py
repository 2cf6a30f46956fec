"""Which LMDB files are a member's state.

The state is replaced as a whole when a snapshot is taken over, so its files stand in a folder of their own,
`generation-<n>`, and the boot marker names the one that counts:

- *Stage*: the snapshot is copied into a new generation, to which nothing refers yet.
- *Put in force*: one rename of a marker that was written before. From here on the new generation is the state, and the
  old one is its owner's to give back.
- *Open*: whatever the marker does not name is a leftover of a crash, and is removed. So a crash at any moment leaves
  the old state or the new one, and never a mixture.

Files of a doubtful marker (`machine_boot.py`) are all removed, and the member begins with an empty state, applied up to
entry 0: the log's owner then has the newest snapshot taken over.
"""

import shutil
from pathlib import Path

import structlog

from quorate_store.database import DATA_FILE_NAME, failing
from quorate_store.machine_boot import (
    BootMarker,
    current_boot_id,
    is_believable,
    put_staged_marker_in_force,
    read_marker,
    stage_marker,
    sync_folder,
    write_marker,
)

_PREFIX = "generation-"

log = structlog.get_logger(__name__)


class Generations:
    """Of one state folder. `boot_id` is the machine's own unless given. All calls raise StateUnusable."""

    def __init__(self, folder: Path, boot_id: str | None = None) -> None:
        self._folder = folder
        self._boot_id = current_boot_id() if boot_id is None else boot_id
        self._live = 0
        self._newest = 0

    def open(self) -> Path:
        """The folder of the live generation, made if need be; from here on a crash of the machine makes it doubtful."""
        with failing("open", self._folder):
            marker = read_marker(self._folder)
            if marker is None or not is_believable(marker, self._boot_id):
                self._discard_all("the machine went down without a clean close")
            elif not self._path(marker.generation).is_dir():
                self._discard_all("the files that the marker names are not there")
            else:
                self._live = self._newest = marker.generation
                self._remove_leftovers()
            self._path(self._live).mkdir(parents=True, exist_ok=True)
            write_marker(self._folder, BootMarker(self._boot_id, closed_cleanly=False, generation=self._live))
            return self._path(self._live)

    def stage(self, snapshot: Path) -> Path:
        """A new generation's folder, with a copy of `snapshot` for its data. Blocking; may run in a thread."""
        with failing("copy a snapshot to", self._folder):
            self._newest += 1
            staged = self._path(self._newest)
            staged.mkdir()
            try:
                shutil.copyfile(snapshot, staged / DATA_FILE_NAME)
                marker = BootMarker(self._boot_id, closed_cleanly=False, generation=self._newest)
                stage_marker(self._folder, marker)
            except BaseException:
                self.unstage(staged)
                raise
            return staged

    def unstage(self, staged: Path) -> None:
        """What was staged will not be put in force. What cannot be removed is a leftover for the next start."""
        shutil.rmtree(staged, ignore_errors=True)

    def put_in_force(self, staged: Path) -> Path:
        """The generation that was staged last is the live one from here on. Returns the folder of the one before."""
        with failing("replace", self._folder):
            put_staged_marker_in_force(self._folder)
        before, self._live = self._path(self._live), int(staged.name.removeprefix(_PREFIX))
        return before

    def mark_whole(self) -> None:
        """The live generation's files are synced and closed."""
        with failing("close", self._folder):
            sync_folder(self._path(self._live))
            write_marker(self._folder, BootMarker(self._boot_id, closed_cleanly=True, generation=self._live))

    def _path(self, generation: int) -> Path:
        return self._folder / f"{_PREFIX}{generation}"

    def _discard_all(self, reason: str) -> None:
        if self._folder.is_dir() and any(self._folder.iterdir()):
            log.warning("state_discarded", folder=str(self._folder), reason=f"{reason}; it is rebuilt")
            shutil.rmtree(self._folder)

    def _remove_leftovers(self) -> None:
        for path in self._folder.glob(f"{_PREFIX}*"):
            if path != self._path(self._live):
                shutil.rmtree(path)
