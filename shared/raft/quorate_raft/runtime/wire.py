"""What peers say on a link once they have proven themselves: frames, and what is in them.

    frame     length of the payload (4 bytes, big endian) | payload
    payload   CRC-32 of what follows (4 bytes, big endian) | kind (1 byte) | body

A body is one value in msgpack, except a chunk's, which is a part of a file as it is. TCP's own checksum, of 16 bits,
lets a damaged packet through now and then (Stone and Partridge, "When the CRC and TCP checksum disagree", 2000), so
each frame carries a better one. Nothing that comes in is believed: whatever cannot be what it should be is an
`InvalidRequest`, also what msgspec reports in other ways (text that is no UTF-8, nesting without end).
"""

import zlib
from typing import Any, TypeVar

import msgspec
from quorate_core.errors import InvalidRequest, Problem, QuorateError, error_from_problem
from quorate_core.frames import encode_frame

from quorate_raft.core.messages import InstallSnapshot, MemberName, Message
from quorate_raft.runtime.ports import SnapshotOffer

MESSAGE, CALL, ANSWER, CALL_FAILED = b"m", b"c", b"a", b"e"
OFFER, CHUNK, STILL_BUSY, TAKEN_OVER, NOT_TAKEN_OVER = b"o", b"k", b"b", b"t", b"n"

CHECKSUM_BYTES = 4
PROBLEM_BYTES_MAX = 64 * 1024
"""An error is a sentence and a few numbers. It is decoded to values of any type, which can take a hundred times the
bytes that they came in."""

CALL_TIMEOUT_MAX_S = 300.0
"""A call is served no longer, whatever its caller has in mind."""

T = TypeVar("T")


class Call(msgspec.Struct, frozen=True, array_like=True):
    call_id: int
    method: str
    payload: bytes
    timeout_s: float


class Answer(msgspec.Struct, frozen=True, array_like=True):
    call_id: int
    payload: bytes


class CallFailed(msgspec.Struct, frozen=True, array_like=True):
    call_id: int
    problem: dict[str, Any]


encode = msgspec.msgpack.Encoder(enc_hook=str).encode
_message_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_call_decoder = msgspec.msgpack.Decoder(Call)
_answer_decoder = msgspec.msgpack.Decoder(Answer)
_call_failed_decoder = msgspec.msgpack.Decoder(CallFailed)
_offer_decoder = msgspec.msgpack.Decoder(SnapshotOffer)
_problem_decoder: msgspec.msgpack.Decoder[dict[str, Any]] = msgspec.msgpack.Decoder(dict[str, Any])


def seal(kind: bytes, body: bytes, frame_bytes_max: int) -> bytes:
    """A whole frame. Raises FrameTooLarge."""
    checksum = zlib.crc32(body, zlib.crc32(kind))
    return encode_frame(b"".join((checksum.to_bytes(CHECKSUM_BYTES, "big"), kind, body)), frame_bytes_max)


def open_sealed(payload: bytes) -> tuple[bytes, memoryview]:
    """A frame's kind and body. Raises InvalidRequest when it is not what was sent."""
    sealed = memoryview(payload)
    if len(payload) <= CHECKSUM_BYTES or zlib.crc32(sealed[CHECKSUM_BYTES:]) != int.from_bytes(
        sealed[:CHECKSUM_BYTES], "big"
    ):
        raise InvalidRequest(f"a frame of {len(payload)} bytes was damaged on its way")
    body_at = CHECKSUM_BYTES + 1
    return payload[CHECKSUM_BYTES:body_at], sealed[body_at:]


def decode(decoder: "msgspec.msgpack.Decoder[T]", body: "bytes | memoryview") -> T:
    """Raises InvalidRequest, and nothing else. msgspec bounds what a length may claim by the bytes that there are."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{len(body)} bytes make no sense: {error}") from error


def decode_message(body: memoryview, sender: MemberName, to: MemberName) -> Message:
    """What `sender`, who is proven, says to `to`. Raises InvalidRequest."""
    message = decode(_message_decoder, body)
    if message.sender != sender or message.to != to:
        raise InvalidRequest(f"it speaks as {message.sender!r} to {message.to!r}")
    if isinstance(message, InstallSnapshot):
        # Only a member's own driver may say that a snapshot is here, for it has seen the file.
        raise InvalidRequest("a snapshot does not come as a message")
    return message


def decode_call(body: memoryview) -> Call:
    """Raises InvalidRequest."""
    call = decode(_call_decoder, body)
    if not 0 <= call.timeout_s <= CALL_TIMEOUT_MAX_S:  # this way round, so that NaN is refused too
        raise InvalidRequest(f"a call cannot wait for {call.timeout_s} s")
    return call


def decode_answer(kind: bytes, body: memoryview) -> tuple[int, bytes | QuorateError]:
    """The call that it answers, and how. Raises InvalidRequest."""
    if kind == ANSWER:
        answer = decode(_answer_decoder, body)
        return answer.call_id, answer.payload
    if kind == CALL_FAILED:
        _require_problem_size(body)
        failed = decode(_call_failed_decoder, body)
        return failed.call_id, _error_of(failed.problem)
    raise InvalidRequest(f"frames of kind {kind!r} do not come this way")


def decode_offer(body: memoryview) -> SnapshotOffer:
    """Raises InvalidRequest."""
    offer = decode(_offer_decoder, body)
    if offer.size_bytes < 0:
        raise InvalidRequest(f"a snapshot has no {offer.size_bytes} bytes")
    return offer


def encode_problem(error: QuorateError) -> bytes:
    return encode(problem_of(error))


def problem_of(error: QuorateError) -> dict[str, Any]:
    """What a peer is told of an error: all of it, or without its extensions when those are too much."""
    problem = Problem.of(error).body()
    if len(encode(problem)) > PROBLEM_BYTES_MAX - 64:
        short = type(error)(error.detail[:1000])
        problem = Problem.of(short).body()
    return problem


def decode_problem(body: memoryview) -> QuorateError:
    """The error that a peer met. Raises InvalidRequest."""
    _require_problem_size(body)
    return _error_of(decode(_problem_decoder, body))


def _require_problem_size(body: memoryview) -> None:
    if len(body) > PROBLEM_BYTES_MAX:
        raise InvalidRequest(f"an error of {len(body)} bytes is over the limit of {PROBLEM_BYTES_MAX}")


def _error_of(problem: dict[str, Any]) -> QuorateError:
    try:
        return error_from_problem(problem)
    except TypeError as error:  # an extension with the name of an argument
        raise InvalidRequest(f"an error makes no sense: {error}") from error
