"""An event loop whose time is virtual, and the processes that live in it.

Theory of operation. The loop never waits: when nothing is ready, it lets `on_idle` look at what has come about, sets
its time to that of the next timer, and goes on. There are no sockets and no threads, so what runs, and in which order,
follows from the calls alone.

A `SimulatedProcess` is all code that began in its context: every task and callback inherits that, so the loop knows
whose turn a turn is. That makes whole processes of plain coroutines:

- *killed*: its callbacks are dropped, and no line of it ever runs again, no `finally` either;
- *paused* (SIGSTOP): its callbacks are kept, in order, and run when it goes on; its timers are late then;
- *its own time*: `loop.time()`, `asyncio.sleep` and every timeout go by its machine's clock;
- *killed at a line*: `kill_after_lines` lets it run so many more lines of the product, and ends it there, in the
  middle of whatever it does (lines of `kill_in` only, if that is set); `kill_after_writes` counts what it does to its
  disk.

NB: a coroutine that will never go on is kept until the run is over; Python would run its `finally` blocks when it
is thrown away.
"""

import asyncio
import contextlib
import heapq
import sys
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from types import FrameType
from typing import Any, NoReturn, TypeVarTuple, Unpack

from quorate_simulation.clock import MachineClock

PRUNE_TASKS_MIN = 64
"""A process forgets tasks that have ended whenever it has this many, or twice as many as the last time."""

_PRODUCT_PATHS = ("quorate_raft", "quorate_store")

_Args = TypeVarTuple("_Args")

TraceFunction = Callable[[FrameType, str, Any], Any]


class ProcessDied(BaseException):
    """Unwinds the code of a process that was killed in the middle of a line. Nothing may catch it and go on."""


class NothingToDo(Exception):
    """No callback is ready and no timer is set: the run can never end."""


class SimulatedProcess:
    """One life of a member's process. `on_death` is called once, when it was killed at a line."""

    def __init__(self, name: str, loop: "SimulatedLoop", clock: MachineClock, on_death: Callable[[], None]) -> None:
        self.name = name
        self.clock = clock
        self.is_alive = True
        self.is_paused = False
        self.has_run = False
        """Set by every turn of it, for whoever looks at what has changed."""
        self._death: asyncio.Future[None] = loop.create_future()
        self.kill_after_lines = 0
        """0: not at all."""
        self.kill_in = ""
        """The end of a file's path."""
        self.kill_after_writes = 0
        """The same, counted in `count_write`."""
        self._loop = loop
        self._on_death = on_death
        self._deferred: list[asyncio.Handle] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._prune_at = PRUNE_TASKS_MIN
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run `work` as a task of this process."""
        return self._loop.create_task(work, context=self.context)

    def call(self, callback: Callable[..., Any], *args: Any) -> None:
        """Have this process call `callback`, in its next turn."""
        self._loop.call_soon(callback, *args, context=self.context)

    def kill(self) -> None:
        if self.is_alive:
            self.is_alive = False
            self._deferred.clear()
            self._loop.later(0, self._death.set_result, None)

    async def wait_for_death(self) -> None:
        await asyncio.shield(self._death)

    def die(self) -> NoReturn:
        """Be killed here and now, in the middle of what it does."""
        self.kill()
        self._loop.later(0, self._on_death)
        raise ProcessDied(self.name)

    def count_write(self) -> None:
        """It has changed something on its disk."""
        if self.kill_after_writes:
            self.kill_after_writes -= 1
            if not self.kill_after_writes:
                self.die()

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        for handle in self._deferred:
            self._loop.requeue(handle)
        self._deferred.clear()

    def own(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.append(task)
        if len(self._tasks) >= self._prune_at:
            self._tasks = [one for one in self._tasks if not one.done()]
            self._prune_at = max(PRUNE_TASKS_MIN, 2 * len(self._tasks))

    def defer(self, handle: asyncio.Handle) -> None:
        self._deferred.append(handle)

    def bury(self) -> None:
        """After the run: let the coroutines of a dead process go, and what they do meanwhile comes to nothing."""
        for task in self._tasks:
            bury(task)
        self._tasks.clear()

    def run_counted(self, run: Callable[[], None]) -> None:
        """Run a turn, and end the process where its lines have run out."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            run()
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, _event: str, _arg: Any) -> TraceFunction | None:
        filename = frame.f_code.co_filename
        if self.kill_in:
            return self._trace_line if filename.endswith(self.kill_in) else None
        return self._trace_line if any(path in filename for path in _PRODUCT_PATHS) else None

    def _trace_line(self, _frame: FrameType, event: str, _arg: Any) -> TraceFunction:
        if event == "line":
            self.kill_after_lines -= 1
            if self.kill_after_lines <= 0:
                self.die()
        return self._trace_line


PROCESS: ContextVar[SimulatedProcess | None] = ContextVar("simulated process", default=None)
"""Whose code is running; None for the world's own."""


def _run_as(handle: asyncio.Handle, process: SimulatedProcess, run: Callable[[], None]) -> None:
    if not process.is_alive:
        return
    if process.is_paused:
        process.defer(handle)
        return
    process.has_run = True
    if process.kill_after_lines:
        process.run_counted(run)
    else:
        run()


class _ProcessHandle(asyncio.Handle):
    __slots__ = ("process",)
    process: SimulatedProcess

    def _run(self) -> None:
        _run_as(self, self.process, super()._run)


class _ProcessTimer(asyncio.TimerHandle):
    __slots__ = ("process",)
    process: SimulatedProcess

    def _run(self) -> None:
        _run_as(self, self.process, super()._run)


class SimulatedLoop(asyncio.BaseEventLoop):
    """Make it, `run_until_complete` the world in it, close it."""

    # BaseEventLoop's own.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._world = Context()
        self._selector = self  # asyncio asks it for events; here time itself is the only one
        self._clock_resolution = 1e-9
        self.on_idle: Callable[[], None] = _do_nothing
        """Called after every step: whenever nothing is ready, and before time goes on."""
        self.steps = 0

    @property
    def true_time_s(self) -> float:
        return self._now_s

    def time(self) -> float:
        process = PROCESS.get()
        return self._now_s if process is None else process.clock.at(self._now_s)

    def true_time(self) -> float:
        return self._now_s

    def call_soon(
        self, callback: Callable[[Unpack[_Args]], object], *args: *_Args, context: Context | None = None
    ) -> asyncio.Handle:
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is None:
            handle = asyncio.Handle(callback, args, self, context)
        else:
            handle = _ProcessHandle(callback, args, self, context)
            handle.process = process
        self.requeue(handle)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Args]], object],
        *args: *_Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        caller = PROCESS.get()
        true_s = max(self._now_s, when if caller is None else caller.clock.true_time_of(when))
        process = caller if context is None else context.get(PROCESS)
        if process is None:
            timer = asyncio.TimerHandle(true_s, callback, args, self, context)
        else:
            timer = _ProcessTimer(true_s, callback, args, self, context)
            timer.process = process
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001 - as BaseEventLoop.call_at does
        return timer

    def create_task(self, coro: Any, **settings: Any) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = super().create_task(coro, **settings)
        context: Context | None = settings.get("context")
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.own(task)
        return task

    def later(self, true_seconds: float, callback: Callable[..., object], *args: object) -> None:
        """Have the world call `callback`, whoever's code asks for it, and whatever becomes of that process."""
        timer = asyncio.TimerHandle(self._now_s + true_seconds, callback, args, self, self._world)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001 - as BaseEventLoop.call_at does

    def jump_ahead(self, process: SimulatedProcess | None, clock: MachineClock, seconds: float) -> None:
        """A machine's monotonic clock jumps, and with it all timers of the process that runs there."""
        before = clock.at(self._now_s)
        clock.jump_ahead(seconds)
        moved_s = self._now_s - clock.true_time_of(before)
        for timer in self._scheduled:
            if process is not None and getattr(timer, "process", None) is process:
                timer._when = max(self._now_s, timer.when() - moved_s)  # type: ignore[attr-defined]  # noqa: SLF001 - a timer cannot be moved otherwise
        heapq.heapify(self._scheduled)

    def requeue(self, handle: asyncio.Handle) -> None:
        self._ready.append(handle)

    def select(self, timeout: float | None) -> list[Any]:
        """What asyncio calls when it would wait for `timeout` seconds."""
        if timeout is not None and timeout <= 0:
            return []
        self.steps += 1
        self.on_idle()
        if self._ready or self._stopping:
            return []
        if not self._scheduled:
            raise NothingToDo("nothing is ready, and no timer is set")
        self._now_s = max(self._now_s, self._scheduled[0].when())
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """`call_soon_threadsafe` would wake the selector by it; there is nobody to wake."""


def bury(task: "asyncio.Task[Any]") -> None:
    """Let a task go that will never go on. Whatever its coroutine still does comes to nothing."""
    if task.done():
        return
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio has no public way
    with contextlib.suppress(BaseException), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines within that were never begun
        task.get_coro().close()


def _do_nothing() -> None:
    """Until somebody wants to look."""
