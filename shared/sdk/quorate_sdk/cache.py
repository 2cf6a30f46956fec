"""The last good copy on disk, so that a process starts without a control plane. Written whole or not at all."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from quorate_sdk.forks import ForkSafeLogger

CACHE_DEBOUNCE_S = 1.0
"""Changes that come within it are written once."""
CACHE_CHECK_INTERVAL_S = 60.0
"""How often is looked whether the file is still there, so that one that was removed does not stay away until the next
change, which may be long after the next start."""
CACHE_BYTES_MAX = 256 * 1024 * 1024

log = ForkSafeLogger(__name__)


class CacheFile:
    """One file, read at start and written when `mark_changed` was called, or when it is gone. A file that cannot be
    read or written is logged and does no harm: it is a cache. Run `keep_written` as a task, and call `flush` at the
    end."""

    def __init__(
        self, path: Path, encode: Callable[[], bytes], check_interval_s: float = CACHE_CHECK_INTERVAL_S
    ) -> None:
        self._path = path
        self._encode = encode
        self._check_interval_s = check_interval_s
        self._changed = asyncio.Event()
        self._has_content = False
        self._is_written = False

    def read(self) -> tuple[bytes, float] | None:
        """The content and its age in seconds; None when there is none."""
        try:
            status = self._path.stat()
            if status.st_size > CACHE_BYTES_MAX:
                log.warning("cache_ignored", path=str(self._path), reason="too large", bytes=status.st_size)
                return None
            content = self._path.read_bytes()
            self._has_content = self._is_written = True
            return content, max(0.0, time.time() - status.st_mtime)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cache_unreadable", path=str(self._path), error=str(error))
            return None

    def mark_changed(self) -> None:
        self._has_content = True
        self._changed.set()

    async def keep_written(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._check_interval_s):
                    await self._changed.wait()
                    await asyncio.sleep(CACHE_DEBOUNCE_S)
            except TimeoutError:
                await self._mark_if_missing()
            await self.flush()

    async def _mark_if_missing(self) -> None:
        """Have written again what somebody removed, and what could not be written when it changed."""
        if self._has_content and not (self._is_written and await asyncio.to_thread(self._path.exists)):
            self._changed.set()

    async def flush(self) -> None:
        """Write now what has changed."""
        if not self._changed.is_set():
            return
        self._changed.clear()
        content = self._encode()
        try:
            await asyncio.to_thread(_write_atomically, self._path, content)
            self._is_written = True
        except OSError as error:
            self._is_written = False
            log.warning("cache_not_written", path=str(self._path), error=str(error))


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps apart several processes that share a folder: the last one to finish wins, whole.
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
