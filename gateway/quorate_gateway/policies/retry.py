"""Whether a failed try may be repeated: only where the upstream cannot have acted, or acting twice changes nothing."""

from collections.abc import Callable
from enum import Enum, auto

IDEMPOTENT_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""RFC 9110, section 9.2.2."""


class Failure(Enum):
    """How a try ended."""

    NOT_SENT = auto()
    """No connection: not a byte of the request has left."""
    NO_ANSWER = auto()
    """The connection ended before the first byte of an answer: the upstream may have acted."""


MayRetry = Callable[[Failure, bytes, int], bool]
"""From how the try failed, the method, and how many tries there were before, to whether there may be another."""


def compile_retry(attempts_more: int) -> MayRetry:
    """A rule that allows `attempts_more` further tries after the first."""

    def may_retry(failure: Failure, method: bytes, tries_before: int) -> bool:
        if tries_before >= attempts_more:
            return False
        return failure is Failure.NOT_SENT or method in IDEMPOTENT_METHODS

    return may_retry
