"""The circuit breaker of a route: one for each, since a route is what an operator names, times and switches.

All instances of the service count together: an instance that cannot be connected to is passed over by retries, and a
request fails only when these are used up. So the breaker says whether this route's requests are answered, whoever does.
"""

import math

from quorate_core.errors import Retry
from quorate_resilience import BreakerSettings, BreakerState, CircuitBreaker, Refused

from quorate_gateway.documents.protection import RouteCircuitBreaker
from quorate_gateway.proxy.refusals import Refusal

RULE = "circuit-open"
UPSTREAM_FAULT_STATUSES = frozenset({502, 504})
"""Of the gateway's own answers, those that say that the upstream failed: unreachable, reset, no HTTP, out of time."""


def compile_breaker(document: RouteCircuitBreaker) -> CircuitBreaker | None:
    if not document.enabled:
        return None
    return CircuitBreaker(
        BreakerSettings(
            window_s=document.window_ms / 1_000, calls_min=document.calls_min,
            slow_call_s=document.slow_call_ms / 1_000, failure_percent=document.failure_percent,
            open_s=document.open_ms / 1_000, probes=document.probes,
        )
    )  # fmt: skip


def breaker_refusal(breaker: CircuitBreaker, refused: Refused, now_s: float) -> Refusal:
    """What is answered in the upstream's place."""
    wait_s = max(1, math.ceil(refused.retry_after_s))
    return Refusal(RULE, 503, breaker_summary(breaker, now_s), Retry.SAFE, retry_after_s=wait_s)


def breaker_summary(breaker: CircuitBreaker, now_s: float) -> str:
    """The state and what it rests on, in one sentence without an end."""
    return state_summary(breaker.settings, breaker.state, breaker.counts(now_s), breaker.retry_after_s(now_s))


def state_summary(
    settings: BreakerSettings, state: BreakerState, counts: tuple[int, int, int], retry_after_s: float
) -> str:
    """As `breaker_summary`, of a breaker that somebody else has. `counts`: of calls, failed ones and slow ones."""
    calls, failed, slow = counts
    counted = f"{calls} calls, {failed} failed, {slow} slow (slow_call_ms {settings.slow_call_s * 1_000:g})"
    match state:
        case BreakerState.CLOSED:
            return f"the circuit breaker is closed; within {settings.window_s:g} s: {counted}"
        case BreakerState.OPEN:
            return f"the circuit breaker is open for {retry_after_s:.1f} s more; opened by {counted}"
        case BreakerState.HALF_OPEN:
            return f"the circuit breaker is half-open; of its {settings.probes} probes: {counted}"
        case _:
            return f"the circuit breaker is {state.value} by an operator"
