"""Whether a failed try may be repeated: only where the upstream cannot have acted, or acting twice changes nothing.

Three things bound it: the route's `attempts` for one request, its budget for all of them together, and that not a byte
of an answer has gone to the client.

One repetition is outside of all that: a connection of the pool that the upstream closed just when the next request was
on its way. That is a race of keep-alive which every upstream causes that closes idle connections (RFC 9112, section
9.3.1), no failure of anybody, and so it costs neither an attempt nor the budget. It may be repeated where repeating is
safe, once, and on a connection made for it. Requests that are not idempotent have no second chance after the first byte
was written: a connection that ends without an answer says nothing of what was read from it, and a TCP acknowledgement
that did not come says no more. So before one of these is written to a used connection, the kernel is asked whether the
end of that connection is already there: nothing has left by then, and going elsewhere is safe for every method.
"""

from enum import Enum, auto

from quorate_resilience.retry_budget import RetryBudget

from quorate_gateway.documents.protection import RouteRetry

IDEMPOTENT_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""RFC 9110, section 9.2.2."""


class Failure(Enum):
    """How a try ended."""

    NOT_SENT = auto()
    """No connection: not a byte of the request has left."""
    NO_ANSWER = auto()
    """The connection ended, or the try's time, before the first byte of an answer: the upstream may have acted."""
    BAD_STATUS = auto()
    """The answer has one of the statuses that the route retries."""


class RetryRule:
    """A route's. `budget` is state: it goes on from snapshot to snapshot while `document` is the same."""

    __slots__ = ("budget", "document", "per_try_timeout_s", "statuses")

    def __init__(self, document: RouteRetry) -> None:
        self.document = document
        self.budget = RetryBudget(document.budget_percent)
        self.statuses = frozenset(document.statuses)
        self.per_try_timeout_s = None if document.per_try_timeout_ms is None else document.per_try_timeout_ms / 1_000

    def is_repeatable(self, method: bytes) -> bool:
        """Whether sending such a request twice is as good as once."""
        return method in IDEMPOTENT_METHODS or self.document.non_idempotent

    def allows(self, failure: Failure, method: bytes, retries_before: int) -> bool:
        """Whether one request may be tried again after `retries_before` retries; the budget is asked apart."""
        if retries_before >= self.document.attempts:
            return False
        return failure is Failure.NOT_SENT or self.is_repeatable(method)


def compile_retry(document: RouteRetry, former: RetryRule | None = None) -> RetryRule:
    """`former` is the rule of the same route in the snapshot before."""
    return former if former is not None and former.document == document else RetryRule(document)
