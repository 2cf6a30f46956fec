"""The HTTP and TCP checks against real sockets, among them those of servers that mean no good."""

import asyncio
import time
from typing import Any

import pytest
from quorate_registry.checks import http as http_check
from quorate_registry.checks.asking import STALL_S, ask
from quorate_registry.checks.exchange import RECEIVED_BYTES_MAX
from quorate_registry.checks.http import EXCERPT_WAIT_S
from quorate_registry.checks.outcome import OUTPUT_CHARS_MAX, Outcome, Target, Undecided
from quorate_registry.checks.resolver import Resolver
from quorate_sdk.wire import HttpCheck, TcpCheck
from support.check_servers import Script, answering, full_listener, hold, scripted_server, stalling, tls_of, unused_port

TIMEOUT_S = 0.4
OVERRUN_S = 1.5
"""How much longer than its time a check may take on a machine that is busy with other tests."""


async def check(script: Script, scheme: str = "http", **changes: Any) -> Outcome:
    async with scripted_server(script) as port:
        return await ask_at(port, scheme, **changes)


async def ask_at(port: int, scheme: str = "http", **changes: Any) -> Outcome:
    fields = {"type": "http", "timeout_s": TIMEOUT_S, **changes}
    began_s = time.monotonic()
    outcome = await ask(HttpCheck.model_validate(fields), Target(scheme, "127.0.0.1", port), Resolver())
    assert time.monotonic() - began_s < TIMEOUT_S + OVERRUN_S
    assert len(outcome.output) <= OUTPUT_CHARS_MAX
    return outcome


async def test_an_answer_of_the_range_is_good() -> None:
    assert await check(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) == Outcome(True, "status 204 No Content")


async def test_a_status_out_of_the_range_is_bad_and_the_body_says_why() -> None:
    answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 17\r\n\r\ndatabase is\r\ngone"
    assert await check(answering(answer)) == Outcome(False, "status 503 Service Unavailable: database is gone")
    assert (await check(answering(answer), status_min=503, status_max=503)).is_good


async def test_a_redirect_is_an_answer_and_nobody_goes_where_it_points() -> None:
    visited = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visited.append(await reader.readuntil(b"\r\n\r\n"))

    async with scripted_server(elsewhere) as port:
        answer = f"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{port}/\r\ncontent-length: 0\r\n\r\n".encode()
        assert await check(answering(answer)) == Outcome(True, "status 302 Found")
        assert await check(answering(answer), status_max=299) == Outcome(False, "status 302 Found")
    assert visited == []


async def test_the_request_is_what_was_asked_for() -> None:
    received: list[bytes] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    await check(record, path="/healthz?deep=1", host="order.internal")
    head, *fields = received[0].decode().split("\r\n")
    assert head == "GET /healthz?deep=1 HTTP/1.1"
    assert "Host: order.internal" in fields or "host: order.internal" in fields
    assert "connection: close" in [field.lower() for field in fields]


async def test_interim_answers_are_passed_over() -> None:
    answer = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
    assert await check(answering(answer)) == Outcome(True, "status 200 OK")


async def test_interim_answers_without_end_are_bounded() -> None:
    async def forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
            await writer.drain()

    outcome = await check(forever, timeout_s=10.0)
    assert outcome == Outcome(False, f"it has sent over {RECEIVED_BYTES_MAX} bytes and no answer")


@pytest.mark.parametrize("status", [200, 500])
async def test_a_body_that_never_ends_changes_nothing(status: int) -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d Said\r\n\r\n" % status)
        while True:
            writer.write(b"x" * 65_536)
            sent += 65_536
            await writer.drain()

    outcome = await check(endless)
    assert outcome.is_good is (status == 200)
    assert outcome.output.startswith(f"status {status} Said")
    assert sent < 64 * 1024 * 1024, "the connection is gone as soon as the status is known"


@pytest.mark.parametrize("length", [10 * 1024 * 1024, None])
async def test_of_a_bad_answer_only_the_beginning_of_a_long_body_is_shown(length: int | None) -> None:
    head = b"HTTP/1.1 500 Oops\r\n" + (b"" if length is None else b"content-length: %d\r\n" % length) + b"\r\n"
    outcome = await check(answering(head + b"<html>" * 2_000_000))
    assert outcome.output.startswith("status 500 Oops: <html><html>")
    assert len(outcome.output) == OUTPUT_CHARS_MAX


async def test_a_bad_answer_whose_body_drips_is_bad_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status has decided: the check's own time does not end the wait for the rest."""
    monkeypatch.setattr(http_check, "EXCERPT_WAIT_S", 2 * TIMEOUT_S)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 Oops\r\n\r\nwhy")
        await asyncio.Event().wait()

    assert await check(drip) == Outcome(False, "status 500 Oops: why")


async def test_header_fields_that_come_slowly_are_given_up_in_time() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nx-a: ")
        await asyncio.Event().wait()

    assert await check(slow) == Outcome(
        False, f"connected, and no whole answer within {TIMEOUT_S:g} s", is_doubtful=True
    )
    assert await check(hold) == Outcome(
        False, f"connected, and no whole answer within {TIMEOUT_S:g} s", is_doubtful=True
    )


async def test_header_fields_without_end_are_bounded() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-filler: " + b"y" * 1_000 + b"\r\n")
            await writer.drain()

    outcome = await check(endless, timeout_s=10.0)
    assert not outcome.is_good
    assert "does not answer as HTTP does" in outcome.output


@pytest.mark.parametrize(
    "garbage",
    [b"\x00" * 4_000, bytes(range(256)) * 20, b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 OK 200\r\n\r\n",
     b"HTTP/1.1 99999 X\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
     b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"],
)  # fmt: skip
async def test_garbage_is_bad_and_said_to_be(garbage: bytes) -> None:
    outcome = await check(answering(garbage))
    assert not outcome.is_good
    assert "does not answer as HTTP does" in outcome.output
    assert outcome.output.isprintable()


async def test_a_connection_closed_or_reset_without_an_answer_is_bad() -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    closed = await check(close)
    assert closed == Outcome(False, "it has closed the connection without an answer")
    assert not (await check(reset)).is_good


async def test_nobody_there_and_nobody_who_answers() -> None:
    assert (await ask_at(port := unused_port())) == Outcome(False, f"nobody listens at 127.0.0.1:{port}")
    with full_listener() as port:
        text = f"no connection to 127.0.0.1:{port} within {TIMEOUT_S:g} s"
        assert (await ask_at(port)) == Outcome(False, text, is_doubtful=True)


@pytest.mark.parametrize(
    ("addresses", "is_doubtful"),
    [([], True), (["127.0.0.2"], False), (["127.0.0.1", "127.0.0.2"], True), (["169.254.169.254"], False)],
    ids=["not resolved", "refused", "one silent and one refused", "not asked"],
)
async def test_a_bad_result_is_in_doubt_unless_every_address_has_said_no(
    addresses: list[str], is_doubtful: bool
) -> None:
    check_ = TcpCheck(type="tcp", timeout_s=TIMEOUT_S)
    with full_listener() as port:
        outcome = await ask(check_, Target("tcp", "order.example", port), Resolver(lambda host: addresses))
    assert (outcome.is_good, outcome.is_doubtful) == (False, is_doubtful), outcome.output


async def test_what_is_said_in_another_language_or_ended_midway_is_no_doubt() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"what is no TLS\r\n")
        await reader.read()

    for outcome in (
        await check(reset),
        await check(reset, scheme="https"),
        await check(answering(b"HTTP/1.1 500 No\r\n\r\n")),
        await check(plain, scheme="https"),
    ):
        assert (outcome.is_good, outcome.is_doubtful) == (False, False), outcome.output


async def test_an_https_instance_is_asked_by_tls_whatever_its_certificate_is_for() -> None:
    """It is made for the service's name, and the check goes to an address; nothing secret is sent."""
    async with scripted_server(answering(b"HTTP/1.1 200 OK\r\n\r\n"), tls=tls_of("order.example")) as port:
        assert await ask_at(port, "https", timeout_s=OVERRUN_S) == Outcome(True, "status 200 OK")
        assert not (await ask_at(port, "http")).is_good


async def test_a_server_without_tls_fails_an_https_check() -> None:
    outcome = await check(answering(b"HTTP/1.1 200 OK\r\n\r\n"), scheme="https")
    assert not outcome.is_good


async def test_a_metadata_service_is_not_asked() -> None:
    check_ = HttpCheck(type="http", path="/latest/meta-data/", timeout_s=TIMEOUT_S)
    outcome = await ask(check_, Target("http", "169.254.169.254", 80), Resolver())
    assert outcome.output.startswith("not asked: 169.254.169.254 is a link-local address")


async def test_no_connection_is_left_open() -> None:
    ended = asyncio.Event()

    async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\n")
        try:
            await reader.read()
        finally:
            ended.set()

    async with scripted_server(until_closed) as port:
        assert (await ask_at(port)).is_good
        async with asyncio.timeout(OVERRUN_S):
            await ended.wait()


async def test_a_bad_result_of_a_node_that_was_stopped_meanwhile_is_none() -> None:
    """As SIGSTOP would do: the loop stands still, and time goes on."""
    with pytest.raises(Undecided, match=r"^this node was [0-9.]+ s late"):
        await check(stalling(TIMEOUT_S + EXCERPT_WAIT_S + STALL_S + 0.3))


async def tcp(port: int) -> Outcome:
    return await ask(TcpCheck(type="tcp", timeout_s=TIMEOUT_S), Target("tcp", "127.0.0.1", port), Resolver())


async def test_a_connection_passes_the_tcp_check_whatever_the_server_says() -> None:
    async with scripted_server(hold) as port:
        assert await tcp(port) == Outcome(True, "connected")
    assert (await tcp(port)) == Outcome(False, f"nobody listens at 127.0.0.1:{port}")
    with full_listener() as port:
        assert not (await tcp(port)).is_good
