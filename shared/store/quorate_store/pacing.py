"""Long work in a thread beside an event loop, in steps between which the loop gets its turn.

A thread that never waits gives up the interpreter only every `sys.getswitchinterval()` (5 ms), and the loop, which asks
for it after each of its own waits, would be late by so much each time. So long work sleeps a moment after each slice.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

SLICE_ITEMS = 256
"""Between two pauses: half a millisecond of work, at a few microseconds an item."""
PAUSE_S = 0.000_1
"""Long enough for whoever waits for the interpreter to get it."""

Pause = Callable[[], None]


def let_others_run() -> None:
    """For work in a thread."""
    time.sleep(PAUSE_S)


def paced(items: Iterable[T], pause: Pause | None) -> Iterator[T]:
    """`items`, with a pause after each SLICE_ITEMS of them; without one when nobody waits beside, as at a start."""
    return iter(items) if pause is None else _paced(items, pause)


def _paced(items: Iterable[T], pause: Pause) -> Iterator[T]:
    for number, item in enumerate(items, 1):
        yield item
        if number % SLICE_ITEMS == 0:
            pause()
