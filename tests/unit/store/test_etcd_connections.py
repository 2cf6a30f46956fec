"""HTTP/1.1 connections to an endpoint: what is an answer, what is none, and which connection is used again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from quorate_core.clock import ManualClock
from quorate_core.settings import HostPort
from quorate_store.etcd.connections import (
    BUFFER_BYTES_MAX,
    CONNECTIONS_MAX,
    HEAD_BYTES_MAX,
    IDLE_S_MAX,
    Broken,
    Connection,
    Connections,
    NotSent,
)
from support.scripted_store import Answer, Request, ScriptedStore, scripted_store

PATIENCE_S = 10.0
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@asynccontextmanager
async def connections_to(
    answer: Answer, clock: ManualClock | None = None
) -> AsyncIterator[tuple[Connections, ScriptedStore]]:
    async with scripted_store(answer) as server:
        connections = Connections(
            HostPort.parse(server.endpoint), {"x-of": "the test"}, None, (clock or ManualClock()).monotonic_s
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield connections, server
        finally:
            connections.close()


async def whole(connection: Connection) -> tuple[int, bytes]:
    status, chunks = await connection.status(), []
    while chunk := await connection.chunk():
        chunks.append(chunk)
    return status, b"".join(chunks)


async def asked(connections: Connections, body: bytes = b"{}") -> tuple[int, bytes]:
    async with connections.sent("/v3/kv/range", body) as connection:
        return await whole(connection)


def writes(*pieces: bytes, then: Callable[[Request], None] | None = None) -> Answer:
    async def answer(request: Request) -> None:
        for piece in pieces:
            request.writer.write(piece)
            await request.writer.drain()
        if then is not None:
            then(request)

    return answer


async def test_a_request_has_its_headers_and_its_length() -> None:
    async with connections_to(writes(OK)) as (connections, server):
        assert await asked(connections, b"x" * 3_000_000) == (200, b"{}")
    [request] = server.requests
    assert (request.path, request.body) == ("/v3/kv/range", b"x" * 3_000_000)
    assert request.headers["host"] == server.endpoint
    assert request.headers["x-of"] == "the test"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (OK, (200, b"{}")),
        (b"HTTP/1.1 404 NF\r\ncontent-length: 0\r\n\r\n", (404, b"")),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", (200, b"{}")),
        (
            b"HTTP/1.1 400 BR\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: a trailer\r\n\r\n",
            (400, b"{}"),
        ),
    ],
)
async def test_an_answer_is_the_same_however_it_is_cut_and_its_connection_is_used_again(
    answer: bytes, found: tuple[int, bytes]
) -> None:
    for pieces in ([answer], [bytes([byte]) for byte in answer]):
        async with connections_to(writes(*pieces)) as (connections, server):
            for _ in range(3):
                assert await asked(connections) == found
        assert len({id(request.writer) for request in server.requests}) == 1


async def test_headers_are_those_of_the_head_and_not_of_a_trailer() -> None:
    answer = b"HTTP/1.1 200 OK\r\nA: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: 2\r\nB: 3\r\n\r\n"
    async with connections_to(writes(answer)) as (connections, _), connections.sent("/", b"") as connection:
        await whole(connection)
        assert connection.headers == {b"a": b"1", b"transfer-encoding": b"chunked"}


async def test_a_connection_that_the_server_means_to_close_is_not_used_again() -> None:
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
    async with connections_to(writes(answer)) as (connections, server):
        for _ in range(2):
            assert await asked(connections) == (200, b"{}")
    assert len({id(request.writer) for request in server.requests}) == 2


async def test_a_connection_is_not_kept_for_longer_than_a_server_would() -> None:
    clock = ManualClock()
    async with connections_to(writes(OK), clock) as (connections, server):
        for seconds in (IDLE_S_MAX - 1, IDLE_S_MAX, 0.0):
            await asked(connections)
            clock.advance(seconds)
    assert [len({id(request.writer) for request in server.requests[:count]}) for count in (1, 2, 3)] == [1, 1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"SSH-2.0-what\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: no\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_ends_too_early_or_is_no_http_is_broken(answer: bytes) -> None:
    async with connections_to(writes(answer, then=Request.hang_up)) as (connections, _):
        with pytest.raises(Broken):
            await asked(connections)


async def test_a_head_without_end_is_broken_off() -> None:
    field = b"a: " + b"x" * 1_000 + b"\r\n"
    async with connections_to(writes(b"HTTP/1.1 200 OK\r\n", *[field] * (HEAD_BYTES_MAX // 1_000 + 2))) as (
        connections,
        _,
    ):
        with pytest.raises(Broken):
            await asked(connections)


async def test_what_nobody_has_asked_for_ends_the_connection() -> None:
    async with connections_to(writes(OK + OK)) as (connections, server):
        for _ in range(2):
            assert await asked(connections) == (200, b"{}")
    assert len({id(request.writer) for request in server.requests}) == 2


async def test_an_answer_that_is_not_taken_to_its_end_ends_the_connection() -> None:
    async with connections_to(writes(OK)) as (connections, server):
        async with connections.sent("/", b"") as connection:
            await connection.status()
        await asked(connections)
    assert len({id(request.writer) for request in server.requests}) == 2


async def test_a_body_that_nobody_takes_is_not_read_into_memory() -> None:
    pieces, written = 64, 0

    async def answer(request: Request) -> None:
        nonlocal written
        request.begin_stream()
        for _ in range(pieces):
            request.send(b"x" * BUFFER_BYTES_MAX)
            await request.writer.drain()
            written += 1
        request.writer.write(b"0\r\n\r\n")

    async with connections_to(answer) as (connections, _), connections.sent("/", b"", is_stream=True) as connection:
        await connection.status()
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert written < pieces / 2, "what is on its way fills the system's buffers, and those alone"
        assert len((await whole(connection))[1]) == pieces * BUFFER_BYTES_MAX


async def test_no_more_connections_than_the_limit_and_who_is_over_waits() -> None:
    asked_for: asyncio.Queue[Request] = asyncio.Queue()

    async def answer(request: Request) -> None:
        await asked_for.put(request)

    async with connections_to(answer) as (connections, server):
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(asked(connections)) for _ in range(CONNECTIONS_MAX + 5)]
            under_way = [await asked_for.get() for _ in range(CONNECTIONS_MAX)]
            assert asked_for.empty()
            for request in under_way:
                request.answer({})
            for _ in range(5):
                (await asked_for.get()).answer({})
        assert {call.result() for call in calls} == {(200, b"{}")}
    assert len({id(request.writer) for request in server.requests}) == CONNECTIONS_MAX


async def test_nothing_is_sent_to_who_is_not_there() -> None:
    async with connections_to(writes(OK)) as (connections, server):
        await asked(connections)
        port = server.endpoint
    gone = Connections(HostPort.parse(port), {}, None, ManualClock().monotonic_s)
    with pytest.raises(NotSent):
        await asked(gone)


async def test_a_kept_connection_that_the_server_has_closed_is_not_written_to() -> None:
    hung_up: list[Request] = []
    async with connections_to(writes(OK, then=hung_up.append)) as (connections, server):
        await asked(connections)
        hung_up[0].hang_up()
        await _until_lost(connections)
        assert await asked(connections) == (200, b"{}")
    assert len(server.requests) == 2


async def test_the_connection_of_a_stream_is_never_kept() -> None:
    async with connections_to(writes(OK)) as (connections, _):
        for _ in range(3):
            async with connections.sent("/v3/watch", b"{}", is_stream=True) as connection:
                await whole(connection)
        assert not connections._kept
        assert not connections._open


async def test_connections_that_are_too_old_or_lost_go_though_a_newer_one_is_taken_each_time() -> None:
    clock, hung_up = ManualClock(), list[Request]()
    is_asked = asyncio.Queue[Request]()

    async def answer(request: Request) -> None:
        if request.body == b"together":
            await is_asked.put(request)
        else:
            request.answer({})

    async def together(connections: Connections, count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(asked(connections, b"together"))
            hung_up[:] = [await is_asked.get() for _ in range(count)]
            for request in hung_up:
                request.answer({})

    async with connections_to(answer, clock) as (connections, _):
        await together(connections, 5)
        clock.advance(IDLE_S_MAX - 1)
        await asked(connections)
        assert len(connections._open) == 5
        clock.advance(2)
        await asked(connections)
        assert len(connections._open) == 1, "the newest, which was used"
        await together(connections, 5)
        first = connections._kept[0][0]
        for request in hung_up:
            request.hang_up()
        while first.can_be_used:  # noqa: ASYNC110 - the connection tells nobody
            await asyncio.sleep(0)
        await asked(connections)
        assert first not in connections._open


async def _until_lost(connections: Connections) -> None:
    [(connection, _)] = connections._kept
    while connection.can_be_used:  # noqa: ASYNC110 - the connection tells nobody
        await asyncio.sleep(0)
