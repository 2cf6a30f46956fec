"""The error family, and the one table that maps it to HTTP status, problem type and gRPC code.

Raise the class that names what went wrong, with a sentence that says the cause and, where there is one, the
way out. Add context once, and chain (`raise … from error`). `retry` is what a caller may do about it:

- `safe`: nothing was done; the same request may be sent again.
- `unknown`: it may or may not have been done; send it again only if it is idempotent.
- `never`: the same request will fail again.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

PROBLEM_URN = "urn:quorate:problem:"


class Retry(StrEnum):
    SAFE = "safe"
    UNKNOWN = "unknown"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """How one class of error looks from outside. `status` is HTTP's (RFC 9110), `grpc_code` gRPC's number."""

    slug: str
    title: str
    status: int
    grpc_code: int
    retry: Retry


class QuorateError(Exception):
    """Root of the family. `detail` is for people; `extensions` are extra members of the problem (RFC 9457)."""

    def __init__(self, detail: str, **extensions: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extensions = extensions

    @property
    def kind(self) -> ProblemKind:
        return kind_of(type(self))


class InvalidRequest(QuorateError):
    """The request cannot be understood: wrong type, bad JSON, a field out of range."""


class Unauthenticated(QuorateError):
    """No credential, or one that is not valid."""


class Forbidden(QuorateError):
    """Understood, and not allowed: a foreign Host or Origin, a reserved key."""


class NotFound(QuorateError):
    """What was named is not there."""


class Conflict(QuorateError):
    """The state does not allow it now: already there, already ended."""


class PreconditionFailed(QuorateError):
    """A compare-and-set found another version than the caller's."""


class RequestTimedOut(QuorateError):
    """The client has not sent the whole of its request in time; nothing was done."""


class PayloadTooLarge(QuorateError):
    """A body over a named limit."""


class InvalidContent(QuorateError):
    """Well-formed, but refused by a schema or validator; `errors` says where."""


class TooManyRequests(QuorateError):
    """Over a rate or admission limit; nothing was done."""


class Compacted(QuorateError):
    """The revision asked for is no longer kept; `compact_revision` is the oldest that is."""


class FutureRevision(QuorateError):
    """The revision asked for does not exist yet."""


class QuotaExceeded(QuorateError):
    """The store is full; reads and deletes go on."""


class NotProposed(QuorateError):
    """The write was not proposed (no leader, leader changed, queue full): it may be sent again."""


class OutcomeUnknown(QuorateError):
    """The write was proposed and its outcome was not seen in time: it may have happened."""


class Unavailable(QuorateError):
    """A part that is needed cannot be reached now; nothing was done."""


class DeadlineExceeded(QuorateError):
    """A read or a call took longer than its deadline."""


class NotImplementedHere(QuorateError):
    """Asked for something that this version knows of and does not offer."""


class InvariantViolation(QuorateError):
    """A state that must never be. It carries a diagnosis, and the process that meets it should stop."""


class SettingsError(QuorateError):
    """The process cannot start with these settings; the message names the setting and what to do."""


_TABLE: dict[type[QuorateError], ProblemKind] = {
    QuorateError: ProblemKind("internal", "Internal error", 500, 13, Retry.UNKNOWN),
    InvalidRequest: ProblemKind("invalid-request", "Invalid request", 400, 3, Retry.NEVER),
    Unauthenticated: ProblemKind("unauthenticated", "Credential required", 401, 16, Retry.NEVER),
    Forbidden: ProblemKind("forbidden", "Not allowed", 403, 7, Retry.NEVER),
    NotFound: ProblemKind("not-found", "Not found", 404, 5, Retry.NEVER),
    RequestTimedOut: ProblemKind("request-timed-out", "Request timed out", 408, 1, Retry.SAFE),
    Conflict: ProblemKind("conflict", "Conflict", 409, 9, Retry.NEVER),
    PreconditionFailed: ProblemKind("precondition-failed", "Version does not match", 412, 9, Retry.NEVER),
    PayloadTooLarge: ProblemKind("payload-too-large", "Body too large", 413, 3, Retry.NEVER),
    InvalidContent: ProblemKind("invalid-content", "Content refused", 422, 3, Retry.NEVER),
    TooManyRequests: ProblemKind("too-many-requests", "Too many requests", 429, 8, Retry.SAFE),
    Compacted: ProblemKind("compacted", "Revision compacted", 410, 11, Retry.NEVER),
    FutureRevision: ProblemKind("future-revision", "Revision in the future", 400, 11, Retry.NEVER),
    QuotaExceeded: ProblemKind("quota-exceeded", "Store over its quota", 507, 8, Retry.NEVER),
    NotProposed: ProblemKind("not-proposed", "Write not proposed", 503, 14, Retry.SAFE),
    OutcomeUnknown: ProblemKind("outcome-unknown", "Outcome unknown", 504, 4, Retry.UNKNOWN),
    Unavailable: ProblemKind("unavailable", "Unavailable", 503, 14, Retry.SAFE),
    DeadlineExceeded: ProblemKind("deadline-exceeded", "Deadline exceeded", 504, 4, Retry.SAFE),
    NotImplementedHere: ProblemKind("not-implemented", "Not implemented", 501, 12, Retry.NEVER),
    InvariantViolation: ProblemKind("invariant-violation", "Internal error", 500, 13, Retry.UNKNOWN),
    SettingsError: ProblemKind("settings", "Invalid settings", 500, 9, Retry.NEVER),
}

_BY_SLUG: dict[str, type[QuorateError]] = {kind.slug: error for error, kind in _TABLE.items()}


def kind_of(error_type: type[QuorateError]) -> ProblemKind:
    """The row of the table for `error_type`, or for its nearest ancestor that has one."""
    for ancestor in error_type.__mro__:
        if ancestor in _TABLE:
            return _TABLE[ancestor]
    return _TABLE[QuorateError]


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as it travels: `application/problem+json` (RFC 9457), with `retry` as an extension."""

    media_type: ClassVar[str] = "application/problem+json"
    schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "required": ["type", "title", "status", "detail", "retry"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string"},
            "retry": {"enum": [retry.value for retry in Retry]},
        },
    }
    """As JSON Schema; an error may have members of its own beside these."""

    type: str
    title: str
    status: int
    detail: str
    retry: Retry
    extensions: dict[str, Any]

    @classmethod
    def of(cls, error: QuorateError) -> "Problem":
        kind = error.kind
        return cls(PROBLEM_URN + kind.slug, kind.title, kind.status, error.detail, kind.retry, error.extensions)

    def body(self) -> dict[str, Any]:
        own = {"type": self.type, "title": self.title, "status": self.status, "detail": self.detail}
        return {**self.extensions, **own, "retry": self.retry.value}


def error_from_problem(body: dict[str, Any]) -> QuorateError:
    """The error that a problem body stands for, so that a client raises what the server raised."""
    slug = str(body.get("type", "")).removeprefix(PROBLEM_URN)
    error_type = _BY_SLUG.get(slug, QuorateError)
    known = {"type", "title", "status", "detail", "retry"}
    extensions = {name: value for name, value in body.items() if name not in known}
    return error_type(str(body.get("detail") or body.get("title") or "no detail given"), **extensions)
