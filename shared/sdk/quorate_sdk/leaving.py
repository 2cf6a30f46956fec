"""Leaving the registry before the server hears that it is to stop.

A server closes its listener on SIGTERM before it ends the application; an instance that left the registry only then
would be asked, and refuse, in between. So `leaving_first` takes the place of the handlers that the server has set: the
first SIGTERM or SIGINT starts a thread that leaves the registry, while requests go on, and then the signal is sent
once more, to the main thread, where the server's own handler gets it. No event loop takes part, so one that is blocked
holds up nothing.

    untouched   a signal of either kind -> leaving.
    leaving     the other kind -> nothing new: a terminal tells all processes by SIGINT, and their master tells them by
                SIGTERM besides. The same kind again -> handed on at once: somebody is impatient.
    left        the first signal is handed on, and whatever comes from now on.

Handlers are found where servers set them: by `signal.signal` (uvicorn, gunicorn) or on asyncio's own loop
(`loop.add_signal_handler`). uvloop does not give away the handlers that were set on it, and runs them whatever stands
in their place; then the registry is left at the same time as the server stops, and no earlier.
"""

import asyncio
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from quorate_sdk.forks import ForkSafeLogger

SIGNALS = (signal.SIGTERM, signal.SIGINT)

Leave = Callable[[int], None]
"""Leaves the registry; blocks until that is done or has failed. Is given the signal's number."""

log = ForkSafeLogger(__name__)


@contextmanager
def leaving_first(leave: Leave) -> Iterator[None]:
    """While it is entered, signals reach the handlers that were set before only after `leave`. Does nothing outside of
    the main thread, where no signal may be handled."""
    departure = Departure(leave)
    departure.take()
    try:
        yield
    finally:
        departure.give_back()


class Departure:
    """The states above. `take` and `give_back` are called in the main thread."""

    def __init__(self, leave: Leave) -> None:
        self._leave = leave
        self._noted: list[int] = []
        # NB: what a signal's handler may use. It can interrupt the main thread within a lock of the same thread, and
        # starting a thread or setting an event takes one; this queue is made for it.
        self._first: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._has_left = False
        self._former: dict[int, Any] = {}
        self._of_loop: dict[int, tuple[Callable[..., object], tuple[Any, ...]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def take(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        threading.Thread(target=self._leave_first, name="leave-registry", daemon=True).start()
        for number in SIGNALS:
            of_loop = _handler_of_loop(self._loop, number)
            former = signal.getsignal(number)
            if of_loop is not None and self._loop is not None:
                self._of_loop[number] = of_loop
                self._loop.add_signal_handler(number, self._on_loop_signal, number)
            elif callable(former) or former == signal.SIG_DFL:
                self._former[number] = former
                signal.signal(number, self._on_signal)

    def give_back(self) -> None:
        for number, former in self._former.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, former)
        for number, (callback, arguments) in self._of_loop.items():
            ours = _handler_of_loop(self._loop, number)
            if self._loop is not None and ours is not None and ours[0] == self._on_loop_signal:
                self._loop.add_signal_handler(number, callback, *arguments)
        self._former, self._of_loop = {}, {}
        self._first.put(None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        former = self._former.get(number)
        if not self._is_to_be_handed_on(number) or getattr(former, "__self__", None) is self._loop is not None:
            return  # a loop that keeps its handlers to itself has been told already, by its own pipe
        if callable(former):
            former(number, frame)
        elif former == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _on_loop_signal(self, number: int) -> None:
        if self._is_to_be_handed_on(number) and number in self._of_loop:
            callback, arguments = self._of_loop[number]
            callback(*arguments)

    def _is_to_be_handed_on(self, number: int) -> bool:
        if self._has_left or number in self._noted:
            return True
        self._noted.append(number)
        if len(self._noted) == 1:
            self._first.put(number)
        return False

    def _leave_first(self) -> None:
        """The thread."""
        number = self._first.get()
        if number is None:
            return
        try:
            self._leave(number)
        except Exception:
            log.exception("drain_failed")
        self._has_left = True
        main = threading.main_thread().ident
        if main is not None:
            # Sent, and not called from here: handlers run in the main thread, which may be waiting in a call.
            signal.pthread_kill(main, number)


def _handler_of_loop(
    loop: asyncio.AbstractEventLoop | None, number: int
) -> tuple[Callable[..., object], tuple[Any, ...]] | None:
    """What `loop.add_signal_handler` was given. asyncio has no public way to ask; None where it has another shape."""
    handle = getattr(loop, "_signal_handlers", {}).get(number)
    callback, arguments = getattr(handle, "_callback", None), getattr(handle, "_args", ())
    return (callback, tuple(arguments or ())) if callable(callback) else None
