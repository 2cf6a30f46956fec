"""The gRPC check: `grpc.health.v1.Health/Check`, and SERVING is good. The protocol is that of grpc/grpc
doc/health-checking.md over doc/PROTOCOL-HTTP2.md, with prior knowledge of HTTP/2 (RFC 9113 3.3), or ALPN over TLS.

One unary call of one small message needs no library of gRPC: `h2` does what is hard of it, the frames and the
compressed header fields; the two messages have one field each.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
from quorate_sdk.wire import GrpcCheck

from quorate_registry.checks.exchange import Exchange, opened
from quorate_registry.checks.outcome import Outcome, Target, Unhealthy
from quorate_registry.checks.resolver import Resolver

PATH = "/grpc.health.v1.Health/Check"
MESSAGE_BYTES_MAX = 1_024
"""Of an answer, whose one field takes two bytes."""
SERVING_STATUSES: Final = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
CODES: Final = {
    "1": "CANCELLED", "2": "UNKNOWN", "3": "INVALID_ARGUMENT", "4": "DEADLINE_EXCEEDED", "5": "NOT_FOUND",
    "7": "PERMISSION_DENIED", "8": "RESOURCE_EXHAUSTED", "12": "UNIMPLEMENTED", "13": "INTERNAL", "14": "UNAVAILABLE",
    "16": "UNAUTHENTICATED",
}  # fmt: skip

_PREFIX_BYTES = 5
_STATUS_TAG = 0x08
_SERVICE_TAG = 0x0A


async def check_grpc(check: GrpcCheck, target: Target, resolver: Resolver) -> Outcome:
    """Raises NotConnected, Unhealthy, OSError, and TimeoutError when the answer is not whole in time."""
    async with opened(resolver, target, check.timeout_s, ("h2",)) as exchange:
        call = _Call(exchange, check.timeout_s)
        return _verdict(await call.run(target, encode_request(check.service)))


def _verdict(answer: "_Answer") -> Outcome:
    if answer.http_status != "200":
        return Outcome.of(False, f"HTTP status {answer.http_status or 'missing'}: no answer of gRPC")
    if answer.code != "0":
        code = f"gRPC status {answer.code or 'missing'} {CODES.get(answer.code, '')}".rstrip()
        return Outcome.of(False, f"{code}: {answer.message}" if answer.message else code)
    status = decode_status(bytes(answer.body))
    return Outcome.of(status == 1, SERVING_STATUSES.get(status, f"serving status {status}"))


@dataclass(slots=True)
class _Answer:
    """`code` and `message`: the fields `grpc-status` and `grpc-message`."""

    http_status: str = ""
    code: str = ""
    message: str = ""
    body: bytearray = field(default_factory=bytearray)

    def take_fields(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        found: Mapping[bytes, bytes] = dict(fields)
        self.http_status = found.get(b":status", b"").decode("ascii", "replace") or self.http_status
        self.code = found.get(b"grpc-status", b"").decode("ascii", "replace") or self.code
        self.message = found.get(b"grpc-message", b"").decode("utf-8", "replace") or self.message


class _Call:
    def __init__(self, exchange: Exchange, timeout_s: float) -> None:
        self._exchange = exchange
        self._timeout_ms = round(1_000 * timeout_s)
        self._answer = _Answer()
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))

    async def run(self, target: Target, message: bytes) -> _Answer:
        connection = self._connection
        connection.initiate_connection()
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, self._fields(target))
        connection.send_data(stream, bytes([0]) + len(message).to_bytes(4, "big") + message, end_stream=True)
        while True:
            self._exchange.send(connection.data_to_send())
            data = await self._exchange.receive()
            if not data:
                raise Unhealthy("it has closed the connection without an answer")
            if self._take(data):
                return self._answer

    def _fields(self, target: Target) -> list[tuple[str, str]]:
        host = f"[{target.host}]" if ":" in target.host else target.host
        return [
            (":method", "POST"), (":scheme", "https" if target.scheme == "https" else "http"), (":path", PATH),
            (":authority", f"{host}:{target.port}"), ("te", "trailers"), ("content-type", "application/grpc"),
            ("user-agent", "quorate-check/1"), ("grpc-timeout", f"{self._timeout_ms}m"),
        ]  # fmt: skip

    def _take(self, data: bytes) -> bool:
        """Whether the answer is whole."""
        try:
            events = self._connection.receive_data(data)
            return any(self._step(event) for event in events)
        except (h2.exceptions.H2Error, ValueError) as error:
            raise Unhealthy(f"it does not answer as HTTP/2 does: {error or type(error).__name__}") from error

    def _step(self, event: h2.events.Event) -> bool:
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self._answer.take_fields((bytes(name), bytes(value)) for name, value in event.headers or ())
            case h2.events.DataReceived():
                self._answer.body += event.data or b""
                if len(self._answer.body) > MESSAGE_BYTES_MAX:
                    raise Unhealthy(f"its answer is longer than {MESSAGE_BYTES_MAX} bytes")
            case h2.events.StreamEnded():
                return True
            case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                raise Unhealthy(f"it has ended the call: {_error_name(event.error_code)}")
        return False


def _error_name(code: object) -> str:
    return code.name if isinstance(code, h2.errors.ErrorCodes) else f"error {code}"


def encode_request(service: str) -> bytes:
    """`HealthCheckRequest{service}`. A name is short, so its length is one byte, or two."""
    name = service.encode()
    if not name:
        return b""
    length = bytes([len(name)]) if len(name) < 0x80 else bytes([0x80 | len(name) & 0x7F, len(name) >> 7])
    return bytes([_SERVICE_TAG]) + length + name


def decode_status(body: bytes) -> int:
    """Of the one `HealthCheckResponse` in `body`, as gRPC frames it. Raises Unhealthy."""
    if len(body) < _PREFIX_BYTES or len(body) != _PREFIX_BYTES + int.from_bytes(body[1:_PREFIX_BYTES], "big"):
        raise Unhealthy("its answer is no message of gRPC")
    if body[0]:
        raise Unhealthy("its answer is compressed, though that was not asked for")
    message = body[_PREFIX_BYTES:]
    if not message:
        return 0  # proto3 leaves out what is zero
    if message[0] != _STATUS_TAG or len(message) != 2 or message[1] >= 0x80:
        raise Unhealthy("its answer is no HealthCheckResponse")
    return message[1]
