"""The circuit breaker: stops asking an upstream that mostly fails or is slow, and finds out when it is well again.

Theory of operation. The breaker is

- *closed*: every call is permitted. A call is counted once, by what is known of it first: *failed*, *slow*, or good.
  When at least `calls_min` were counted within the window, and `failure_percent` of them were failed or slow, the
  breaker opens;
- *open*: every call is refused, with the time that is left. After `open_s` it is half-open;
- *half-open*: exactly `probes` calls are permitted, and no more until they are judged. When `failure_percent` of
  them are failed or slow, which may be certain before the last has ended, it opens again; when all have ended and it
  is not so, it closes, with an empty window;
- *forced open* or *forced closed*, by an operator: it refuses or permits everything and counts nothing, until it is
  released, which closes it with an empty window.

A call is slow when it passes `slow_call_s`, not when it ends: an upstream that hangs is found out after the mark and
not after a timeout. Who holds a permit therefore calls `mark_slow` when the mark passes; a call that was not told so
in time is still counted slow when it ends, and probes are looked after by `try_acquire`, so that a breaker whose
driver has no timer is not stuck. A call that was cancelled before its mark counts as nothing, and gives its probe back.

Every change of state begins a new *generation*. A permit of an older one settles without effect: what was asked
before the breaker opened says nothing about the probes, and what was asked before it closed nothing about now.

A call counts in the window at the time at which it was settled; see `CallWindow` for how the window slides.

What the caller owes: time that does not go back, and exactly one of `success`, `failure` and `cancelled` for each
permit (later ones are ignored). What it may read: `take_transitions`, the changes of state since it was last read.
Nothing here calls back. Plain state without a lock: one event loop, or one thread, owns it.
"""

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from quorate_resilience.call_window import CallCounts, CallWindow

TRANSITIONS_KEPT_MAX = 32
"""Of those that were not taken yet; the oldest are dropped."""
_NONE = CallCounts(0, 0, 0)


class BreakerState(StrEnum):
    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"
    FORCED_CLOSED = "forced-closed"
    FORCED_OPEN = "forced-open"


class Outcome(StrEnum):
    """How a call was settled."""

    GOOD = "good"
    FAILED = "failed"
    SLOW = "slow"
    CANCELLED = "cancelled"


_CLOSED, _HALF_OPEN, _OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN
_FORCED_OPEN, _FORCED_CLOSED = BreakerState.FORCED_OPEN, BreakerState.FORCED_CLOSED
_GOOD, _FAILED, _SLOW, _CANCELLED = Outcome.GOOD, Outcome.FAILED, Outcome.SLOW, Outcome.CANCELLED


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a breaker opens and closes. Raises ValueError for values that can mean nothing."""

    window_s: float = 5.0
    calls_min: int = 10
    """Calls within the window before anything is concluded from them."""
    slow_call_s: float = 1.0
    failure_percent: float = 50.0
    """Of the calls, or of the probes, that failed or were slow."""
    open_s: float = 5.0
    probes: int = 5

    def __post_init__(self) -> None:
        for name in ("window_s", "slow_call_s", "open_s"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise ValueError(f"{name} must be a finite number above 0, not {seconds}")
        if not 0 < self.failure_percent <= 100:
            raise ValueError(f"failure_percent must be above 0 and at most 100, not {self.failure_percent}")
        if self.calls_min < 1 or self.probes < 1:
            raise ValueError(f"calls_min and probes must be at least 1, not {self.calls_min} and {self.probes}")


class Transition(NamedTuple):
    """One change of state, and what had been counted when it came: in the window, or of the probes."""

    at_s: float
    former: BreakerState
    state: BreakerState
    counts: CallCounts


class Refused(NamedTuple):
    """The call must not be made. `retry_after_s`: before that no other one is permitted either."""

    retry_after_s: float
    state: BreakerState


class Permit:
    """Leave to make one call. It is settled once; what is said of it later is ignored."""

    __slots__ = ("_breaker", "generation", "has_responded", "is_settled", "slow_at_s")

    def __init__(self, breaker: "CircuitBreaker", generation: int, slow_at_s: float) -> None:
        self._breaker = breaker
        self.generation = generation
        self.slow_at_s = slow_at_s
        """When it passes the mark."""
        self.has_responded = False
        self.is_settled = False

    def success(self, now_s: float) -> None:
        """The call has ended well; it was slow if it had not responded by its mark."""
        if not self.is_settled:
            self._breaker.settle(self, _GOOD if now_s < self.slow_at_s or self.has_responded else _SLOW, now_s)

    def failure(self, now_s: float) -> None:
        """The upstream has failed. After its mark the call had been slow before it failed."""
        self._breaker.settle(self, _FAILED if now_s < self.slow_at_s or self.has_responded else _SLOW, now_s)

    def cancelled(self, now_s: float) -> None:
        """Nobody waits for the call any more. Before its mark that says nothing of the upstream; after it, the call
        was slow, or had responded."""
        if now_s < self.slow_at_s:
            self._breaker.settle(self, _CANCELLED, now_s)
        else:
            self.mark_slow(now_s)

    def responded(self, now_s: float) -> None:
        """The answer has begun: it is no longer slow, however long it goes on, and may still fail."""
        self.mark_slow(now_s)
        self.has_responded = True

    def mark_slow(self, now_s: float) -> None:
        """The mark has passed, and the call still runs. One whose answer had begun is settled as good: a stream must
        not hold a probe. Nothing happens before the mark."""
        if now_s >= self.slow_at_s:
            self._breaker.settle(self, _GOOD if self.has_responded else _SLOW, now_s)


class CircuitBreaker:
    """Asked by `try_acquire` before each call. Every operation is O(1)."""

    __slots__ = ("_generation", "_open_until_s", "_opened_by", "_probes_given", "_probes_out", "_probes_settled",
                 "_slow_call_s", "_transitions", "_window", "entered", "refused", "settings", "state")  # fmt: skip

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self.settings = settings or BreakerSettings()
        self.state = _CLOSED
        self.refused = 0
        """Calls that were not permitted, from the beginning on."""
        self.entered = dict.fromkeys(BreakerState, 0)
        """How often each state was entered, from the beginning on."""
        self._slow_call_s = self.settings.slow_call_s
        self._generation = 0
        self._window = CallWindow(self.settings.window_s)
        self._open_until_s = 0.0
        self._opened_by = _NONE
        self._probes_given = 0
        """Those that run and those that are settled; never above `probes`."""
        self._probes_out: list[Permit] = []
        """Those that run, the oldest first."""
        self._probes_settled = _NONE
        self._transitions: deque[Transition] = deque(maxlen=TRANSITIONS_KEPT_MAX)

    def try_acquire(self, now_s: float) -> Permit | Refused:
        """Leave for one call, or when there may be some."""
        if self.state is _CLOSED:
            return Permit(self, self._generation, now_s + self._slow_call_s)
        self.advance(now_s)
        if self.state is _HALF_OPEN and self._probes_given < self.settings.probes:
            self._probes_given += 1
            probe = Permit(self, self._generation, now_s + self._slow_call_s)
            self._probes_out.append(probe)
            return probe
        if self.state is _CLOSED or self.state is _FORCED_CLOSED:
            return Permit(self, self._generation, now_s + self._slow_call_s)
        self.refused += 1
        return Refused(self.retry_after_s(now_s), self.state)

    def advance(self, now_s: float) -> None:
        """Do what is due by the time alone: half-open after `open_s`, and judge probes that have passed their mark."""
        if self.state is _OPEN and now_s >= self._open_until_s:
            self._enter(_HALF_OPEN, now_s, self._opened_by)
        if self.state is _HALF_OPEN:
            for probe in tuple(self._probes_out):
                probe.mark_slow(now_s)

    def retry_after_s(self, now_s: float) -> float:
        """In how many seconds a call that is refused now may be permitted; 0 when it would not be refused."""
        if self.state is _FORCED_OPEN:
            return self.settings.open_s
        if self.state is _OPEN:
            return max(self._open_until_s - now_s, 0.0)
        if self.state is _HALF_OPEN and self._probes_given >= self.settings.probes:
            return max(self._probes_out[0].slow_at_s - now_s, 0.0)
        return 0.0

    def counts(self, now_s: float) -> CallCounts:
        """What the next decision rests on: the window when closed, the probes when half-open, and when open what
        opened it."""
        if self.state is _HALF_OPEN:
            return self._probes_settled
        if self.state is _OPEN:
            return self._opened_by
        self._window.slide_to(now_s)
        return self._window.counts

    def force_open(self, now_s: float) -> None:
        """Refuse everything until `release`."""
        if self.state is not _FORCED_OPEN:
            self._enter(_FORCED_OPEN, now_s, self.counts(now_s))

    def force_closed(self, now_s: float) -> None:
        """Permit everything until `release`."""
        if self.state is not _FORCED_CLOSED:
            self._enter(_FORCED_CLOSED, now_s, self.counts(now_s))

    def release(self, now_s: float) -> None:
        """Go by the calls again, when it was forced."""
        if self.state is _FORCED_OPEN or self.state is _FORCED_CLOSED:
            self._enter(_CLOSED, now_s, self.counts(now_s))

    def take_transitions(self) -> tuple[Transition, ...]:
        """The changes of state since this was last asked, the oldest first."""
        if not self._transitions:
            return ()
        taken = tuple(self._transitions)
        self._transitions.clear()
        return taken

    def settle(self, permit: Permit, outcome: Outcome, now_s: float) -> None:
        """For `Permit`: what has become of the call."""
        if permit.is_settled:
            return
        permit.is_settled = True
        if permit.generation != self._generation:
            return
        if self.state is _CLOSED:
            if outcome is _CANCELLED:
                return
            window, settings = self._window, self.settings
            window.count(now_s, outcome is _FAILED, outcome is _SLOW)
            bad = window.failed + window.slow
            if bad and window.calls >= settings.calls_min and bad * 100 >= settings.failure_percent * window.calls:
                self._open(now_s, window.counts)
        elif self.state is _HALF_OPEN:
            self._probes_out.remove(permit)
            if outcome is _CANCELLED:
                self._probes_given -= 1
            else:
                self._settle_probe(outcome, now_s)

    def _settle_probe(self, outcome: Outcome, now_s: float) -> None:
        calls, failed, slow = self._probes_settled
        settled = CallCounts(calls + 1, failed + (outcome is _FAILED), slow + (outcome is _SLOW))
        self._probes_settled, probes = settled, self.settings.probes
        if (settled.failed + settled.slow) * 100 >= self.settings.failure_percent * probes:
            self._open(now_s, settled)
        elif settled.calls == probes:
            self._enter(_CLOSED, now_s, settled)

    def _open(self, now_s: float, counts: CallCounts) -> None:
        self._open_until_s = now_s + self.settings.open_s
        self._opened_by = counts
        self._enter(_OPEN, now_s, counts)

    def _enter(self, state: BreakerState, now_s: float, counts: CallCounts) -> None:
        self._transitions.append(Transition(now_s, self.state, state, counts))
        self.state = state
        self.entered[state] += 1
        self._generation += 1
        self._probes_given = 0
        self._probes_out = []
        self._probes_settled = _NONE
        self._window.clear()
