"""What a fork must not happen in the midst of, and a logger that it does not.

A forked child has copies of its parent's locks but not of the threads that hold them. structlog's own loggers print
with a lock of the file; were one of the SDK's threads just printing when the application forks, a child that logs would
wait for ever.
"""

import os
import threading
from typing import Any

import structlog

fork_lock = threading.RLock()
"""Whoever holds it is not forked in the midst of what it does."""

os.register_at_fork(before=fork_lock.acquire, after_in_parent=fork_lock.release, after_in_child=fork_lock.release)


class ForkSafeLogger:
    """The methods of structlog's logger that the SDK uses."""

    def __init__(self, name: str) -> None:
        self._log: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)

    def info(self, event: str, **fields: Any) -> None:
        with fork_lock:
            self._log.info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        with fork_lock:
            self._log.warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        with fork_lock:
            self._log.error(event, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        """With the exception that is being handled."""
        with fork_lock:
            self._log.exception(event, **fields)
