"""Running a coroutine without a task.

A task costs four microseconds: it is registered, begun by the event loop instead of at once, and told of by it when it
has ended. A coroutine that awaits nothing but futures, or gives way by `asyncio.sleep(0)`, needs none of that. What it
may not use is whatever asks for the present task: timeouts and cancel scopes raise RuntimeError then. Nobody can cancel
it; it ends when what it waits for does.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


def run_without_task(coroutine: Coroutine[Any, Any, None], on_end: Callable[[BaseException | None], None]) -> None:
    """Run `coroutine` up to where it has to wait, and on from there as futures are done. `on_end` is called once, with
    what it raised: maybe before this returns, and otherwise in a turn of the event loop."""
    _Steps(coroutine, on_end)(None)


class _Steps:
    """Called whenever the coroutine can go on."""

    __slots__ = ("_coroutine", "_on_end")

    def __init__(self, coroutine: Coroutine[Any, Any, None], on_end: Callable[[BaseException | None], None]) -> None:
        self._coroutine = coroutine
        self._on_end = on_end

    def __call__(self, _future: Any) -> None:
        try:
            awaited = self._coroutine.send(None)
        except StopIteration:
            self._on_end(None)
        except BaseException as error:  # handed over, as a task would keep it
            self._on_end(error)
        else:
            if awaited is None:
                asyncio.get_running_loop().call_soon(self, None)
            else:
                # What a future yields when awaited is itself, marked so; a task takes the mark off, as this does.
                awaited._asyncio_future_blocking = False  # noqa: SLF001
                awaited.add_done_callback(self)
