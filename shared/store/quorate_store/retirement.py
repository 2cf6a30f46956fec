"""Giving back a state that was replaced. Freeing the index of a million keys at once, or removing a file of hundreds of
megabytes, would hold the event loop for a tenth of a second, so both are done in slices, in the loop's idle turns."""

import os
import shutil
from pathlib import Path

import structlog

from quorate_store.database import DATA_FILE_NAME
from quorate_store.loading import LoadedState

TRUNCATE_SLICE_BYTES = 16 * 1024 * 1024
"""Taken off a file at once: a millisecond."""

log = structlog.get_logger(__name__)


class RetiredState:
    def __init__(self, state: LoadedState, folder: Path) -> None:
        self._state = state
        self._folder = folder
        self._is_shed = False
        self._is_closed = False

    @property
    def is_busy(self) -> bool:
        """A snapshot is being copied from its files, so that nothing can be done now."""
        return self._is_shed and not self._is_closed and self._state.database.is_being_copied

    def release(self, keys_max: int) -> bool:
        """Give back a slice; True when nothing is left."""
        if not self._is_shed:
            index_is_shed = self._state.mvcc.index.shed(keys_max)
            self._is_shed = self._state.leases.shed(keys_max) and index_is_shed
            return False
        if not self._is_closed:
            self._is_closed = self._state.database.abandon_unless_copied()
            return False
        return self._shorten()

    def release_at_once(self) -> None:
        """Waits for a copy that is being made."""
        self._state.database.abandon()
        shutil.rmtree(self._folder, ignore_errors=True)

    def abandon(self) -> None:
        """The process ends. The files are a leftover for the next start to remove."""
        self._state.database.abandon()

    def _shorten(self) -> bool:
        path = self._folder / DATA_FILE_NAME
        try:
            size_bytes = path.stat().st_size
            if size_bytes > TRUNCATE_SLICE_BYTES:
                os.truncate(path, size_bytes - TRUNCATE_SLICE_BYTES)
                return False
            shutil.rmtree(self._folder)
        except OSError as error:
            log.warning("state_left_over", folder=str(self._folder), reason=str(error))
        return True
