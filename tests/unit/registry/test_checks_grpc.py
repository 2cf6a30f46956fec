"""The gRPC check against a server of HTTP/2 that answers as gRPC does, and against some that do not."""

import asyncio
from collections.abc import Sequence
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
from quorate_registry.checks.asking import ask
from quorate_registry.checks.grpc import PATH, decode_status, encode_request
from quorate_registry.checks.outcome import Outcome, Target, Unhealthy
from quorate_registry.checks.resolver import Resolver
from quorate_sdk.wire import GrpcCheck
from support.check_servers import Script, answering, hold, scripted_server, tls_of

TIMEOUT_S = 1.0
Fields = Sequence[tuple[str, str]]
OK: Fields = ((":status", "200"), ("content-type", "application/grpc"))
SERVING = b"\0\0\0\0\2\x08\x01"


class GrpcServer:
    """Answers each call by these fields, this body, and these trailers; `None` for no body: then `head` is all."""

    def __init__(
        self, body: bytes | None = SERVING, trailers: Fields = (("grpc-status", "0"),), head: Fields = OK
    ) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self._head, self._body, self._trailers = head, body, trailers

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        fields: dict[str, str] = {}
        received = bytearray()
        writer.write(connection.data_to_send())
        while data := await reader.read(4_096):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    fields = {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, h2.events.DataReceived):
                    received += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    self.requests.append((fields, bytes(received)))
                    self.answer(connection, event.stream_id)
            writer.write(connection.data_to_send())

    def answer(self, connection: h2.connection.H2Connection, stream: int) -> None:
        if self._body is None:
            connection.send_headers(stream, list(self._head), end_stream=True)
            return
        connection.send_headers(stream, list(self._head))
        connection.send_data(stream, self._body)
        connection.send_headers(stream, list(self._trailers), end_stream=True)


async def check(server: Script, **changes: Any) -> Outcome:
    fields = {"type": "grpc", "timeout_s": TIMEOUT_S, **changes}
    async with scripted_server(server) as port:
        return await ask(GrpcCheck.model_validate(fields), Target("grpc", "127.0.0.1", port), Resolver())


async def test_serving_is_good_and_the_call_is_that_of_the_health_protocol() -> None:
    server = GrpcServer()
    assert await check(server, service="shop.Order") == Outcome(True, "SERVING")
    ((fields, message),) = server.requests
    assert (fields[":method"], fields[":path"], fields["te"]) == ("POST", PATH, "trailers")
    assert fields["content-type"] == "application/grpc"
    assert fields["grpc-timeout"] == "1000m"
    assert message == b"\0\0\0\0\x0c\x0a\x0ashop.Order"


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"\0\0\0\0\2\x08\x02", "NOT_SERVING"), (b"\0\0\0\0\0", "UNKNOWN"), (b"\0\0\0\0\2\x08\x03", "SERVICE_UNKNOWN"),
     (b"\0\0\0\0\2\x08\x09", "serving status 9")],
)  # fmt: skip
async def test_any_other_serving_status_is_bad(body: bytes, said: str) -> None:
    assert await check(GrpcServer(body)) == Outcome(False, said)


async def test_over_tls_http_2_is_agreed_on() -> None:
    async with scripted_server(GrpcServer(), tls=tls_of("order.example", "h2")) as port:
        target = Target("https", "127.0.0.1", port)
        assert await ask(GrpcCheck(type="grpc", timeout_s=TIMEOUT_S), target, Resolver()) == Outcome(True, "SERVING")


async def test_an_error_of_the_call_is_bad_and_said() -> None:
    head = (*OK, ("grpc-status", "5"), ("grpc-message", "unknown service shop.Order"))
    assert await check(GrpcServer(None, head=head)) == Outcome(
        False, "gRPC status 5 NOT_FOUND: unknown service shop.Order"
    )
    trailers = (("grpc-status", "14"),)
    assert await check(GrpcServer(SERVING, trailers)) == Outcome(False, "gRPC status 14 UNAVAILABLE")
    assert await check(GrpcServer(None)) == Outcome(False, "gRPC status missing")


async def test_a_web_server_of_http_2_is_no_grpc_server() -> None:
    outcome = await check(GrpcServer(None, head=((":status", "404"),)))
    assert outcome == Outcome(False, "HTTP status 404: no answer of gRPC")


@pytest.mark.parametrize(
    "body",
    [b"", b"\0\0\0\0\5\x08\x01", b"\1\0\0\0\2\x08\x01", b"\0\0\0\0\3\x08\x01\x00", b"\0\0\0\0\2\x10\x01", b"?" * 40],
)
async def test_a_message_that_is_none_is_bad(body: bytes) -> None:
    outcome = await check(GrpcServer(body))
    assert not outcome.is_good
    assert outcome.output.startswith("its answer is")


async def test_an_answer_without_end_is_bounded() -> None:
    outcome = await check(GrpcServer(b"x" * 10_000))
    assert outcome == Outcome(False, "its answer is longer than 1024 bytes")


class Resetting(GrpcServer):
    def answer(self, connection: h2.connection.H2Connection, stream: int) -> None:
        connection.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)


class GoingAway(GrpcServer):
    def answer(self, connection: h2.connection.H2Connection, stream: int) -> None:
        connection.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)


async def test_a_call_that_the_server_ends_is_bad() -> None:
    assert await check(Resetting()) == Outcome(False, "it has ended the call: REFUSED_STREAM")
    assert await check(GoingAway()) == Outcome(False, "it has ended the call: ENHANCE_YOUR_CALM")


@pytest.mark.parametrize("garbage", [b"\0" * 9_000, bytes(range(256)) * 40, b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_garbage_is_bad(garbage: bytes) -> None:
    outcome = await check(answering(garbage), timeout_s=0.3)
    assert not outcome.is_good
    assert outcome.output.isprintable()


async def test_silence_and_a_closed_connection_are_bad() -> None:
    assert await check(hold, timeout_s=0.2) == Outcome(
        False, "connected, and no whole answer within 0.2 s", is_doubtful=True
    )

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    assert not (await check(close)).is_good


async def test_pings_without_end_are_given_up_in_time() -> None:
    async def pinging(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        while True:
            connection.ping(b"12345678")
            writer.write(connection.data_to_send())
            await writer.drain()
            await asyncio.sleep(0)  # it shares its loop with the check

    outcome = await check(pinging)
    assert not outcome.is_good
    assert "bytes and no answer" in outcome.output or "no whole answer" in outcome.output


def test_messages_are_those_of_protobuf() -> None:
    assert encode_request("") == b""
    assert encode_request("a" * 127)[:2] == b"\x0a\x7f"
    assert encode_request("a" * 200)[:3] == b"\x0a\xc8\x01"
    assert decode_status(SERVING) == 1
    with pytest.raises(Unhealthy):
        decode_status(b"\0\0")
