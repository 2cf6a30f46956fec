"""The circuit breaker against its definition read literally, with an operator, streams, and drivers that come late.

The reference keeps every call that was ever settled and counts them anew each time. It knows no slots ahead, no
generations and no sums: whether a call still counts, it tells from when it was asked and what state came in between.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from quorate_resilience import BreakerSettings, BreakerState, CircuitBreaker, Permit

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN
FORCED = {BreakerState.FORCED_OPEN, BreakerState.FORCED_CLOSED}
SLOTS = 10


@dataclass
class Call:
    """One that was permitted. `period` numbers the state in which it was asked."""

    period: int
    slow_at_s: float
    permit: Permit
    has_responded: bool = False
    is_settled: bool = False


@dataclass
class Reference:
    settings: BreakerSettings
    state: BreakerState = CLOSED
    period: int = 0
    open_until_s: float = 0.0
    settled: list[tuple[float, bool]] = field(default_factory=list)
    """Of the present period: when, and whether it was failed or slow."""
    running: list[Call] = field(default_factory=list)
    """Of all periods, the oldest first."""

    def enter(self, state: BreakerState) -> None:
        self.state, self.settled = state, []
        self.period += 1

    def probes_out(self) -> int:
        return sum(call.period == self.period for call in self.running)

    def advance(self, now_s: float) -> None:
        if self.state is OPEN and now_s >= self.open_until_s:
            self.enter(HALF_OPEN)
        if self.state is HALF_OPEN:
            for call in [one for one in self.running if one.period == self.period]:
                self.mark(call, now_s)

    def may_call(self, now_s: float) -> bool:
        if self.state is CLOSED:
            return True
        self.advance(now_s)
        if self.state is HALF_OPEN:
            return self.probes_out() + len(self.settled) < self.settings.probes
        return self.state in (CLOSED, BreakerState.FORCED_CLOSED)

    def mark(self, call: Call, now_s: float) -> None:
        if now_s >= call.slow_at_s:
            self.settle(call, not call.has_responded, now_s)

    def end(self, call: Call, how: str, now_s: float) -> None:
        in_time = now_s < call.slow_at_s
        if how == "success":
            self.settle(call, not (in_time or call.has_responded), now_s)
        elif how == "failure":
            self.settle(call, True, now_s)
        elif how == "cancelled":
            self.settle(call, None if in_time else not call.has_responded, now_s)
        else:
            self.mark(call, now_s)
            call.has_responded = True

    def settle(self, call: Call, bad: bool | None, now_s: float) -> None:
        if call.is_settled:
            return
        call.is_settled = True
        self.running.remove(call)
        if call.period != self.period or self.state in FORCED or bad is None:
            return
        self.settled.append((now_s, bad))
        if self.state is CLOSED:
            counted = self.window(now_s)
            if len(counted) >= self.settings.calls_min and self.is_bad(sum(counted), len(counted)):
                self.open(now_s)
        elif self.is_bad(sum(one for _, one in self.settled), self.settings.probes):
            self.open(now_s)
        elif len(self.settled) == self.settings.probes:
            self.enter(CLOSED)

    def window(self, now_s: float) -> list[bool]:
        """What the last ten slots hold; the window slides by a tenth at a time."""
        slot_s = self.settings.window_s / SLOTS
        return [bad for at_s, bad in self.settled if at_s // slot_s > now_s // slot_s - SLOTS]

    def is_bad(self, bad: int, calls: int) -> bool:
        return bad > 0 and bad * 100 >= self.settings.failure_percent * calls

    def open(self, now_s: float) -> None:
        self.enter(OPEN)
        self.open_until_s = now_s + self.settings.open_s


class BreakerMachine(RuleBasedStateMachine):
    @initialize(
        calls_min=st.integers(1, 5), percent=st.sampled_from([1.0, 34.0, 50.0, 100.0]), probes=st.integers(1, 4),
        open_s=st.sampled_from([0.5, 5.0]), window_s=st.sampled_from([1.25, 5.0]),
    )  # fmt: skip
    def set_up(self, calls_min: int, percent: float, probes: int, open_s: float, window_s: float) -> None:
        chosen = BreakerSettings(window_s, calls_min, 1.0, percent, open_s, probes)
        self.breaker = CircuitBreaker(chosen)
        self.reference = Reference(chosen)
        self.now_s = 0.0

    @rule(seconds=st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.875, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(times=st.integers(1, 6))
    def calls_ask(self, times: int) -> None:
        for _ in range(times):
            expected = self.reference.may_call(self.now_s)
            acquired = self.breaker.try_acquire(self.now_s)
            assert isinstance(acquired, Permit) is expected
            if isinstance(acquired, Permit):
                assert acquired.slow_at_s == self.now_s + 1.0
                self.reference.running.append(Call(self.reference.period, acquired.slow_at_s, acquired))
            else:
                assert acquired.state is self.reference.state
                assert acquired.retry_after_s >= 0

    @precondition(lambda self: self.reference.running)
    @rule(which=st.integers(0, 50), how=st.sampled_from(["success", "failure", "failure", "cancelled", "responded"]))
    def a_call_ends(self, which: int, how: str) -> None:
        call = self.reference.running[which % len(self.reference.running)]
        self.reference.end(call, how, self.now_s)
        getattr(call.permit, how)(self.now_s)

    @precondition(lambda self: self.reference.running)
    @rule()
    def the_driver_marks_slow_calls(self) -> None:
        for call in tuple(self.reference.running):
            self.reference.mark(call, self.now_s)
            call.permit.mark_slow(self.now_s)

    @rule()
    def somebody_looks(self) -> None:
        self.reference.advance(self.now_s)
        self.breaker.advance(self.now_s)

    @rule(forced=st.sampled_from([BreakerState.FORCED_OPEN, BreakerState.FORCED_CLOSED]))
    def an_operator_forces_it(self, forced: BreakerState) -> None:
        if self.reference.state is not forced:
            self.reference.enter(forced)
        force = self.breaker.force_open if forced is BreakerState.FORCED_OPEN else self.breaker.force_closed
        force(self.now_s)

    @precondition(lambda self: self.reference.state in FORCED)
    @rule()
    def an_operator_releases_it(self) -> None:
        self.reference.enter(CLOSED)
        self.breaker.release(self.now_s)

    @invariant()
    def both_agree(self) -> None:
        if not hasattr(self, "breaker"):
            return
        assert self.breaker.state is self.reference.state
        counts = self.breaker.counts(self.now_s)
        if self.reference.state is CLOSED:
            window = self.reference.window(self.now_s)
            assert (counts.calls, counts.failed + counts.slow) == (len(window), sum(window))
        elif self.reference.state is HALF_OPEN:
            bad = sum(one for _, one in self.reference.settled)
            assert (counts.calls, counts.failed + counts.slow) == (len(self.reference.settled), bad)
            assert self.reference.probes_out() + counts.calls <= self.reference.settings.probes


BreakerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60)
TestBreaker = BreakerMachine.TestCase
