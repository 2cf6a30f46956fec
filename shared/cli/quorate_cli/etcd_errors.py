"""The errors of the store's API, which speaks as etcd does: a text, and gRPC's code for what kind it is."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from quorate_core.errors import (
    Compacted,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    FutureRevision,
    InvalidRequest,
    NotFound,
    NotImplementedHere,
    OutcomeUnknown,
    QuorateError,
    QuotaExceeded,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)

_BY_CODE: dict[int, type[QuorateError]] = {
    3: InvalidRequest, 5: NotFound, 6: Conflict, 7: Forbidden, 8: TooManyRequests, 9: Conflict, 10: Conflict,
    11: InvalidRequest, 12: NotImplementedHere, 14: Unavailable, 16: Unauthenticated,
}  # fmt: skip
"""gRPC's status codes (grpc/doc/statuscodes.md)."""
_DEADLINE_CODE = 4
_BY_TEXT: dict[str, type[QuorateError]] = {
    "revision has been compacted": Compacted,
    "is a future revision": FutureRevision,
    "database space exceeded": QuotaExceeded,
}
_PREFIXES = ("etcdserver: ", "mvcc: ")
_TIMED_OUT = "request timed out"
"""etcd gives this the code of an unavailable service, and yet the write may have been done."""


def is_etcd_error(body: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(body, dict) and "detail" not in body and isinstance(body.get("message") or body.get("error"), str)


def error_from_etcd(body: Mapping[str, Any], *, is_read: bool) -> QuorateError:
    """The error that `body` stands for. `is_read`: a request that can have changed nothing."""
    text = str(body.get("message") or body["error"])
    code = body.get("code", body.get("grpc_code"))
    if code == _DEADLINE_CODE or _TIMED_OUT in text:
        return DeadlineExceeded(_plain(text)) if is_read else OutcomeUnknown(_plain(text))
    for part, error_type in _BY_TEXT.items():
        if part in text:
            return error_type(_plain(text))
    error_type = _BY_CODE.get(code, QuorateError) if isinstance(code, int) else QuorateError
    # A key that is not to be written is no matter of how the node was called, which is the usual advice.
    return error_type(_plain(text), **({"advice": ""} if error_type is Forbidden else {}))


def _plain(text: str) -> str:
    """Without the names of etcd's parts, which say nothing to whoever reads it here."""
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    return text
