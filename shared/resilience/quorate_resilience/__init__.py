"""Decisions that keep calls healthy, as pure objects: time, randomness and ids are arguments, nothing here waits.

`RoundRobin` picks the endpoint of the next request, `TokenBucket` says whether it is one too many, and
`CircuitBreaker` whether its upstream is to be asked at all; the gateway and the SDK share them.
"""

from quorate_resilience.balancers import RoundRobin
from quorate_resilience.breaker import (
    BreakerSettings,
    BreakerState,
    CircuitBreaker,
    Permit,
    Refused,
    Transition,
)
from quorate_resilience.call_window import CallCounts
from quorate_resilience.limiters import BucketFill, Decision, TokenBucket

__all__ = [
    "BreakerSettings",
    "BreakerState",
    "BucketFill",
    "CallCounts",
    "CircuitBreaker",
    "Decision",
    "Permit",
    "Refused",
    "RoundRobin",
    "TokenBucket",
    "Transition",
]
