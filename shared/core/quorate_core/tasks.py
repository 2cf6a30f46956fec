"""The only place that starts a task. A `TaskOwner` holds its tasks, hears of their failures, and ends them.

A task that ends with an unexpected exception is never silent: it is logged, and `on_failure` is told, which for
a process-wide owner means that the process stops and is restarted by its supervisor.
"""

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from quorate_core.errors import InvariantViolation, QuorateError

T = TypeVar("T")

log = structlog.get_logger(__name__)


class TaskOwner:
    """Owns background tasks under one name; use as `async with`, or call `close()`."""

    def __init__(self, name: str, on_failure: Callable[[BaseException], None] | None = None) -> None:
        self._name = name
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` as a task. Raises RuntimeError once the owner is closing."""
        if self._closing:
            work.close()
            raise RuntimeError(f"{self._name} is closing: {name} was not started")
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel what still runs and wait until it has ended."""
        self._closing = True
        current = asyncio.current_task()
        pending = [task for task in self._tasks if task is not current]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def drain(self, timeout_s: float) -> None:
        """Let running tasks finish for up to `timeout_s` seconds, then cancel the rest."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        # An error of our own family says its cause in a sentence; only anything else is a defect that wants a trace.
        is_told = isinstance(error, QuorateError) and not isinstance(error, InvariantViolation)
        trace = None if is_told else error
        log.error("task_failed", task=task.get_name(), error=str(error) or repr(error), exc_info=trace)
        if self._on_failure is not None:
            self._on_failure(error)
