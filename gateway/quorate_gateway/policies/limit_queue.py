"""Requests that wait for their departure from a leaky bucket: for each key a line, and a timer for its first.

A place in the queue is a future. It is done when its turn has come, with what the check gave; cancelled, it leaves: all
behind it move up, and the last departure is given back to the bucket. How many wait, and for how long, the bucket has
bounded before anybody joins.

The bucket's times may be those of another clock, a server's: what is compared is the bucket's time, and what a timer is
set by is the difference to that of now when the line began.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from quorate_resilience.limiters import WaitingLine

if TYPE_CHECKING:
    from quorate_gateway.policies.limit import Answer

GiveBack = Callable[[bytes, float, float], None]
"""From a key, a departure that nobody takes, and the time of now, both by the bucket's clock."""
TIMER_S_MIN = 0.001
"""The event loop's timers go by milliseconds, and may be that much early."""


class _Place:
    __slots__ = ("answer", "future")

    def __init__(self, answer: "Answer", future: "asyncio.Future[Answer]") -> None:
        self.answer = answer
        self.future = future


class _Line:
    """`ahead_s`: by how much the bucket's clock is ahead of ours."""

    __slots__ = ("ahead_s", "timer", "waiting")

    def __init__(self, ahead_s: float) -> None:
        self.ahead_s = ahead_s
        self.timer: asyncio.TimerHandle | None = None
        self.waiting: WaitingLine[_Place] = WaitingLine()


class LimitQueue:
    """The lines of one limit. `monotonic_s` is our clock's reading."""

    def __init__(self, give_back: GiveBack, monotonic_s: Callable[[], float]) -> None:
        self._give_back = give_back
        self._monotonic_s = monotonic_s
        self._lines: dict[bytes, _Line] = {}
        """Only those in which somebody waits."""

    def __len__(self) -> int:
        return sum(len(line.waiting) for line in self._lines.values())

    def join(self, key: bytes, now_s: float, departure_s: float, answer: "Answer") -> "asyncio.Future[Answer]":
        """Wait until `departure_s` for `answer`; both times are the bucket's."""
        place = _Place(answer, asyncio.get_running_loop().create_future())
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(now_s - self._monotonic_s())
        first_s = line.waiting.next_departure_s
        line.waiting.join(place, departure_s)
        if first_s is None or departure_s < first_s:
            self._set_timer(key, line)
        place.future.add_done_callback(partial(self._ended, key, place))
        return place.future

    def advance(self, key: bytes) -> None:
        """Let go whose turn has come."""
        line = self._lines.get(key)
        if line is None:
            return
        for place in line.waiting.due(self._monotonic_s() + line.ahead_s):
            # NB: one that was cancelled in this very round of the event loop is still in the line; it just goes.
            if not place.future.done():
                place.future.set_result(place.answer)
        self._set_timer(key, line)

    def _ended(self, key: bytes, place: _Place, future: "asyncio.Future[Answer]") -> None:
        line = self._lines.get(key)
        if line is None or not future.cancelled():
            return
        departure_s = line.waiting.leave(place)
        if departure_s is None:
            return
        self._give_back(key, departure_s, self._monotonic_s() + line.ahead_s)
        if not len(line.waiting):
            self._set_timer(key, line)

    def _set_timer(self, key: bytes, line: _Line) -> None:
        if line.timer is not None:
            line.timer.cancel()
        departure_s = line.waiting.next_departure_s
        if departure_s is None:
            del self._lines[key]
            return
        wait_s = max(departure_s - line.ahead_s - self._monotonic_s(), TIMER_S_MIN)
        line.timer = asyncio.get_running_loop().call_later(wait_s, self.advance, key)
