"""How errors look in the v3 JSON API: etcd's texts, gRPC's codes, and the HTTP status that grpc-gateway makes of them.

Clients compare the texts, and tell by the code what to try again. An error that etcd has no text for keeps our own,
which says more.
"""

from http import HTTPStatus

import msgspec
from quorate_core.errors import Compacted, FutureRevision, NotFound, PayloadTooLarge, QuorateError, QuotaExceeded
from starlette.responses import Response

from quorate_store.refusals import (
    DuplicateKey,
    KeyNotFound,
    KeyNotProvided,
    LeaseExists,
    LeaseProvided,
    LeaseTtlTooLarge,
    TooManyOperations,
    ValueProvided,
)

RETRY_HEADER = "quorate-retry"
"""The HTTP header of an error that says what its code and text do not: whether a write may have been done
(`quorate_core.errors.Retry`). Nodes that stand on this one go by it."""

_TEXTS: dict[type[QuorateError], str] = {
    Compacted: "etcdserver: mvcc: required revision has been compacted",
    FutureRevision: "etcdserver: mvcc: required revision is a future revision",
    NotFound: "etcdserver: requested lease not found",
    PayloadTooLarge: "etcdserver: request is too large",
    QuotaExceeded: "etcdserver: mvcc: database space exceeded",
    KeyNotProvided: "etcdserver: key is not provided",
    KeyNotFound: "etcdserver: key not found",
    ValueProvided: "etcdserver: value is provided",
    LeaseProvided: "etcdserver: lease is provided",
    TooManyOperations: "etcdserver: too many operations in txn request",
    DuplicateKey: "etcdserver: duplicate key given in txn request",
    LeaseExists: "etcdserver: lease already exists",
    LeaseTtlTooLarge: "etcdserver: too large lease TTL",
}
"""`rpctypes` of etcd 3.4. NB: by the very class, so that what is derived from one may say something else."""

_OUT_OF_RANGE = 11
_CODES: dict[type[QuorateError], int] = {LeaseTtlTooLarge: _OUT_OF_RANGE}
"""Where gRPC's code is not that of our error's family."""

_HTTP_STATUS_BY_GRPC_CODE = {
    1: 408, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 412, 10: 409, 11: 400, 12: 501, 13: 500, 14: 503,
    15: 500, 16: 401,
}  # fmt: skip
"""grpc-gateway's `runtime.HTTPStatusFromCode`, of the version in etcd 3.4."""


class _WireError(msgspec.Struct, frozen=True):
    error: str
    message: str
    code: int


class _WireStreamError(msgspec.Struct, frozen=True):
    grpc_code: int
    http_code: int
    message: str
    http_status: str


class _WireStreamErrorLine(msgspec.Struct, frozen=True):
    error: _WireStreamError


_encode = msgspec.json.Encoder().encode


def encode_error(error: QuorateError) -> tuple[int, bytes]:
    """HTTP status and body."""
    code, message = _code_of(error), _TEXTS.get(type(error), error.detail)
    return _HTTP_STATUS_BY_GRPC_CODE.get(code, 500), _encode(_WireError(message, message, code))


def error_response(error: QuorateError) -> Response:
    status, body = encode_error(error)
    return Response(body, status, {RETRY_HEADER: error.kind.retry.value}, media_type="application/json")


def stream_error_line(error: QuorateError) -> bytes:
    """The last line of a stream whose status was spent before (`runtime.handleForwardResponseStreamError`)."""
    code, message = _code_of(error), _TEXTS.get(type(error), error.detail)
    status = HTTPStatus(_HTTP_STATUS_BY_GRPC_CODE.get(code, 500))
    return _encode(_WireStreamErrorLine(_WireStreamError(code, status.value, message, status.phrase)))


def _code_of(error: QuorateError) -> int:
    return _CODES.get(type(error), error.kind.grpc_code)
