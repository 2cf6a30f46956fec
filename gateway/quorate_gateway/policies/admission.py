"""Whether a request may go on to its upstream: a route's policies in their order, compiled into one closure.

The order: limit, then break, then route. A request over the limit costs the breaker nothing; one that the breaker
refuses has been counted by the limit, so that a client which knocks at an open breaker without a pause is limited too.
"""

from collections.abc import Callable
from typing import NamedTuple

from quorate_resilience import CircuitBreaker, Permit

from quorate_gateway.policies.circuit import breaker_refusal
from quorate_gateway.policies.limit import RouteLimit
from quorate_gateway.proxy.framing import RequestFields
from quorate_gateway.proxy.refusals import Refusal


class Admission(NamedTuple):
    """What an admitted request carries. `answer_fields` belong into the head of its answer, each with its CRLF in
    front; `permit` is to be settled by what becomes of it."""

    permit: Permit | None = None
    answer_fields: bytes = b""


Admit = Callable[[RequestFields, bytes, float], Admission | Refusal]
"""From a request's fields, its client's key and the monotonic time."""

FREE = Admission()
"""Of a route that has no policy."""


def compile_admission(limit: RouteLimit | None, breaker: CircuitBreaker | None) -> Admit | None:
    """None when there is nothing to check."""
    if limit is None and breaker is None:
        return None
    check = None if limit is None else limit.check

    def admit(fields: RequestFields, client_key: bytes, now_s: float) -> Admission | Refusal:
        answer_fields = b""
        if check is not None:
            checked = check(fields, client_key, now_s)
            if isinstance(checked, Refusal):
                return checked
            answer_fields = checked
        if breaker is None:
            return Admission(None, answer_fields)
        permit = breaker.try_acquire(now_s)
        if isinstance(permit, Permit):
            return Admission(permit, answer_fields)
        refusal = breaker_refusal(breaker, permit, now_s)
        return refusal.with_answer_fields(answer_fields)

    return admit
