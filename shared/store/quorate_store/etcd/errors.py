"""What a refusal of etcd's v3 JSON API means to the `Store` port. Pure.

etcd says what went wrong by a text (`rpctypes`) and gRPC's code, and both by itself do not say what a caller of a write
must know: whether it may have been done. That is settled here, by text: of those that etcd gives while it has no leader
or too much to do, some come before a write is proposed, and some while its outcome is awaited. A text that is not known
counts as the latter, for a write. Quorate's own nodes say it themselves, by the header `RETRY_HEADER`.

A message that is too large for gRPC may be the request, and then nothing was done, or the answer, which etcd's own
gateway does not take over 4 MiB before 3.4.17: then a write is done. The text gives its size, and a request is never
longer in protobuf than in JSON: what is longer than the request that was sent is the answer.
"""

import re
from collections.abc import Callable

import msgspec
from quorate_core.errors import (
    Compacted,
    Conflict,
    Forbidden,
    FutureRevision,
    InvalidRequest,
    NotFound,
    NotImplementedHere,
    NotProposed,
    OutcomeUnknown,
    PayloadTooLarge,
    QuorateError,
    QuotaExceeded,
    Retry,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    error_from_problem,
)

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

REASON_CHARS_MAX = 300
"""Of what a store says of itself, in an error and in the log."""
_PROBLEM_MEMBER = "detail"
_TEXTS_OF_PROBLEM = ("title", _PROBLEM_MEMBER)

_BY_TEXT: dict[str, type[QuorateError]] = {
    "etcdserver: mvcc: required revision has been compacted": Compacted,
    "etcdserver: mvcc: required revision is a future revision": FutureRevision,
    "etcdserver: requested lease not found": NotFound,
    "etcdserver: lease already exists": LeaseExists,
    "etcdserver: too large lease TTL": LeaseTtlTooLarge,
    "etcdserver: request is too large": PayloadTooLarge,
    "etcdserver: mvcc: database space exceeded": QuotaExceeded,
    "etcdserver: key is not provided": KeyNotProvided,
    "etcdserver: key not found": KeyNotFound,
    "etcdserver: value is provided": ValueProvided,
    "etcdserver: lease is provided": LeaseProvided,
    "etcdserver: too many operations in txn request": TooManyOperations,
    "etcdserver: duplicate key given in txn request": DuplicateKey,
    "etcdserver: too many requests": TooManyRequests,
    "etcdserver: no leader": NotProposed,
    "etcdserver: not leader": NotProposed,
    "etcdserver: not capable": NotProposed,
    "etcdserver: rpc not supported for learner": NotProposed,
    "etcdserver: permission denied": Forbidden,
    "etcdserver: invalid auth token": Unauthenticated,
}
"""Those that mean the same for whatever was asked. All of them say that nothing was done."""

_TOO_LARGE = re.compile(r"message (?:after decompression )?larger than max(?: \((\d+) vs)?")
"""Of gRPC, with how many bytes the message has."""
_EXHAUSTED = 8
"""etcd refuses by it, in texts that are known; a proxy or gRPC may break off what is under way by it as well."""
_UNAVAILABLE = 14
_BY_CODE: dict[int, type[QuorateError]] = {
    3: InvalidRequest,
    5: NotFound,
    6: Conflict,
    7: Forbidden,
    9: Conflict,
    11: InvalidRequest,
    12: NotImplementedHere,
    16: Unauthenticated,
}
"""gRPC's codes that mean, whatever the text is, that nothing was done. The rest may come of anything."""
_BY_STATUS: dict[int, type[QuorateError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotImplementedHere,
    405: NotImplementedHere,
    413: PayloadTooLarge,
    429: TooManyRequests,
}
"""Of answers that say nothing else: of a proxy, or of another server than we think."""


class AnswerTooLarge(PayloadTooLarge):
    """To a read: over what is read of it here, or what the store can send. It may be asked for less."""


class _WireError(msgspec.Struct, frozen=True):
    """`error` alone, before `message` came beside it."""

    code: int = 0
    message: str = ""
    error: str = ""


_decode = msgspec.json.Decoder(_WireError).decode
_decode_problem = msgspec.json.Decoder(dict[str, object]).decode


def error_of(status: int, body: bytes, *, is_write: bool, request_bytes: int, retry: str = "") -> QuorateError:
    """What an answer other than 200 means, to a request whose body had `request_bytes`. `retry`: what the header says,
    if there is one."""
    try:
        wire = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _error_without_text(status, f"the store answers with status {status}", is_write=is_write)
    text = wire.message or wire.error
    if text:
        return error_of_text(wire.code, text, is_write=is_write, request_bytes=request_bytes, retry=retry)
    problem = _decode_problem(body)
    if _PROBLEM_MEMBER in problem:
        cut = {name: str(problem[name])[:REASON_CHARS_MAX] for name in _TEXTS_OF_PROBLEM if name in problem}
        return error_from_problem({**problem, **cut})
    return _error_without_text(status, f"the store answers with status {status}", is_write=is_write)


def error_of_text(code: int, text: str, *, is_write: bool, request_bytes: int, retry: str = "") -> QuorateError:
    """`code` is gRPC's."""
    text = text[:REASON_CHARS_MAX]
    known = _BY_TEXT.get(text)
    if known is not None:
        return known(text)
    too_large = _TOO_LARGE.search(text)
    if too_large is not None:
        return _error_of_size(too_large[1], text, is_write=is_write, request_bytes=request_bytes)
    if code in _BY_CODE:
        return _BY_CODE[code](text)
    if code == _EXHAUSTED and (retry == Retry.SAFE or not is_write):
        return TooManyRequests(text)
    if code == _UNAVAILABLE and retry == Retry.SAFE:
        return NotProposed(text)
    return _unsettled(text, is_write=is_write)


def _error_of_size(message_bytes: str | None, text: str, *, is_write: bool, request_bytes: int) -> QuorateError:
    if message_bytes is not None and int(message_bytes) <= request_bytes:
        return PayloadTooLarge(text)
    return _unsettled(text, is_write=True) if is_write else AnswerTooLarge(text)


def _error_without_text(status: int, reason: str, *, is_write: bool) -> QuorateError:
    known: Callable[[str], QuorateError] | None = _BY_STATUS.get(status)
    return _unsettled(reason, is_write=is_write) if known is None else known(reason)


def _unsettled(reason: str, *, is_write: bool) -> QuorateError:
    if is_write:
        return OutcomeUnknown(f"the store did not say whether it was done: {reason}")
    return Unavailable(reason)


def goes_on_elsewhere(error: QuorateError) -> bool:
    """Whether another endpoint may do what this one has refused, with nothing done."""
    return isinstance(error, NotProposed | Unavailable)
