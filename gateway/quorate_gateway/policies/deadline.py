"""Deadlines of callers: `x-request-timeout-ms` bounds what a route allows, and goes on to the service as what is left.

The deadline is for the head of the answer, like the route's `timeout_ms`, and counts from the request's head: an answer
that has begun is cut by the limits of the route alone. A deadline that passes says nothing of the upstream, however
often it happens: a caller in a hurry must not open the breaker for all others, nor eject an instance.
"""

from quorate_core.errors import Retry
from quorate_resilience.deadline import HEADER

from quorate_gateway.proxy.refusals import Refusal

RULE = "deadline-exceeded"


def deadline_refusal(*, was_sent: bool) -> Refusal:
    """What is answered when the caller's time is over. `was_sent`: an upstream may have acted."""
    state = "the service has not answered" if was_sent else "the request was not passed on"
    retry = Retry.UNKNOWN if was_sent else Retry.SAFE
    return Refusal(RULE, 504, f"{state} within the time that {HEADER} leaves", retry)
