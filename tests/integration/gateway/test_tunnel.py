"""WebSocket through the gateway: with a real client and server, and byte by byte where these would never go wrong."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from quorate_core.clock import ManualClock
from quorate_gateway.proxy.downstream import WRITE_BUFFER_BYTES_MAX, ClientConnection
from quorate_gateway.proxy.tunnel import Tunnel
from support.gateway_attacks import HANDSHAKE, KEY
from support.gateway_client import Client, Gateway, running_gateway
from support.gateway_upstream import WAIT_S_MAX, Exchange, Upstream
from websockets.asyncio.client import ClientConnection as WebSocket
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.frames import CloseCode
from websockets.typing import Subprotocol
from websockets.utils import accept_key

ROUTES = (
    "  - {name: orders, match: {path_prefix: /orders}, service: order, websocket: true, idle_timeout_ms: 5000}\n"
    "  - {name: total, match: {path_prefix: /total}, service: order, websocket: true, total_timeout_ms: 7000}\n"
    "  - {name: plain, match: {path_prefix: /plain}, service: order}\n"
)
READ_BYTES_MAX = 262_144
"""Of uvloop's: what may come on top of a full buffer."""
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: " + accept_key(KEY.decode()).encode() + b"\r\n\r\n"
)


@asynccontextmanager
async def websocket_server(
    handler: Callable[[ServerConnection], Awaitable[None]], subprotocols: list[Subprotocol] | None = None
) -> AsyncIterator[int]:
    """Its port."""
    async with serve(
        handler, "127.0.0.1", 0, max_size=None, subprotocols=subprotocols, ping_interval=None, close_timeout=WAIT_S_MAX
    ) as server:
        yield next(iter(server.sockets)).getsockname()[1]


def to_gateway(gateway: Gateway, path: str = "/orders/live", subprotocols: list[Subprotocol] | None = None) -> connect:
    return connect(
        f"ws://127.0.0.1:{gateway.port}{path}", max_size=None, subprotocols=subprotocols, ping_interval=None,
        open_timeout=WAIT_S_MAX, close_timeout=WAIT_S_MAX, proxy=None,
    )  # fmt: skip


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


async def is_closed(websocket: WebSocket) -> ConnectionClosed:
    async with asyncio.timeout(WAIT_S_MAX):
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
    return closed.value


async def switch(exchange: Exchange) -> None:
    """An upstream that agrees, and then echoes bytes."""
    await exchange.send(SWITCHED)
    while data := await exchange.reader.read(65_536):
        await exchange.send(data)
    exchange.close()


def only_client(gateway: Gateway) -> ClientConnection:
    [client] = gateway.plane.clients
    return client


def pass_time(gateway: Gateway, clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)
    gateway.plane.sweep()


async def joined(gateway: Gateway, path: bytes = b"/orders") -> Client:
    """A client whose handshake is done, speaking bytes."""
    client = await gateway.client()
    await client.send(HANDSHAKE.replace(b"/orders", path))
    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    return client


# With a real client and a real server.


async def test_messages_go_both_ways_whatever_their_kind_and_size() -> None:
    messages: list[str | bytes] = ["", "hello", "\u00fc\U0001f9ed", b"\x00\xff", "x" * 70_000, bytes(1_000_000)]
    async with (
        websocket_server(echo) as port,
        running_gateway(port, routes=ROUTES) as gateway,
        to_gateway(gateway) as websocket,
    ):
        for message in messages:
            await websocket.send(message)
            assert await websocket.recv() == message


async def test_pings_are_answered_by_the_other_end_and_not_by_the_gateway() -> None:
    async def ping(websocket: ServerConnection) -> None:
        await (await websocket.ping(b"from the server"))
        await websocket.send("answered")
        await echo(websocket)

    async with (
        websocket_server(ping) as port,
        running_gateway(port, routes=ROUTES) as gateway,
        to_gateway(gateway) as websocket,
    ):
        assert await websocket.recv() == "answered"
        await (await websocket.ping(b"from the client"))


async def test_a_close_of_either_end_reaches_the_other_with_its_code_and_reason() -> None:
    seen: asyncio.Future[tuple[int | None, str | None]] = asyncio.get_running_loop().create_future()

    async def until_closed(websocket: ServerConnection) -> None:
        if await websocket.recv() == "close yourself":
            await websocket.close(4_002, "asked to")
        else:
            await websocket.wait_closed()
            seen.set_result((websocket.close_code, websocket.close_reason))

    async with websocket_server(until_closed) as port, running_gateway(port, routes=ROUTES) as gateway:
        async with to_gateway(gateway) as websocket:
            await websocket.send("I close")
            await websocket.close(4_001, "done")
        assert await seen == (4_001, "done")
        async with to_gateway(gateway) as websocket:
            await websocket.send("close yourself")
            closed = await is_closed(websocket)
            assert closed.rcvd is not None
            assert (closed.rcvd.code, closed.rcvd.reason) == (4_002, "asked to")
        await gateway.until(lambda: not gateway.plane.clients)


async def test_what_the_two_negotiate_is_theirs() -> None:
    chat = Subprotocol("chat.v2")
    async with (
        websocket_server(echo, [chat]) as port,
        running_gateway(port, routes=ROUTES) as gateway,
        to_gateway(gateway, subprotocols=[Subprotocol("chat.v9"), chat]) as websocket,
    ):
        assert websocket.subprotocol == chat
        assert [extension.name for extension in websocket.protocol.extensions] == ["permessage-deflate"]
        await websocket.send("squeezed " * 10_000)
        assert await websocket.recv() == "squeezed " * 10_000


async def test_a_route_that_does_not_tunnel_refuses_the_handshake() -> None:
    async with websocket_server(echo) as port, running_gateway(port, routes=ROUTES) as gateway:
        with pytest.raises(InvalidStatus) as refused:
            await to_gateway(gateway, "/plain")
        assert refused.value.response.status_code == 501
        assert json.loads(refused.value.response.body or b"")["rule"] == "upgrade-refused"


async def test_a_server_that_dies_is_an_abnormal_end_for_its_client() -> None:
    async def die(websocket: ServerConnection) -> None:
        await websocket.recv()
        websocket.transport.abort()

    async with (
        websocket_server(die) as port,
        running_gateway(port, routes=ROUTES) as gateway,
        to_gateway(gateway) as websocket,
    ):
        await websocket.send("die")
        closed = await is_closed(websocket)
        assert isinstance(closed, ConnectionClosedError)
        assert closed.rcvd is None
        assert websocket.close_code == CloseCode.ABNORMAL_CLOSURE


async def test_a_client_that_vanishes_ends_its_server_at_once() -> None:
    code: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def until_closed(websocket: ServerConnection) -> None:
        await websocket.wait_closed()
        code.set_result(websocket.close_code)

    async with websocket_server(until_closed) as port, running_gateway(port, routes=ROUTES) as gateway:
        websocket = await to_gateway(gateway)
        websocket.transport.abort()
        async with asyncio.timeout(WAIT_S_MAX):
            assert await code == CloseCode.ABNORMAL_CLOSURE
        await gateway.until(lambda: not gateway.plane.clients)


# Byte by byte.


async def test_the_handshake_goes_on_as_it_came_save_for_the_fields_of_the_hop() -> None:
    async with Upstream(switch) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await gateway.client()
        await client.send(HANDSHAKE)
        head = (await client.until(b"\r\n\r\n")).decode().lower().split("\r\n")
        assert head[0].startswith("http/1.1 101 ")
        assert sorted(head[1:-2]) == [
            "connection: upgrade", f"sec-websocket-accept: {accept_key(KEY.decode()).lower()}", "upgrade: websocket",
        ]  # fmt: skip
        [request] = upstream.requests
        assert (request.field("connection"), request.field("upgrade")) == ("upgrade", "websocket")
        assert request.field("sec-websocket-key") == KEY.decode()
        assert request.field("x-forwarded-for") == "127.0.0.1"
        assert gateway.plane.counters.routes["orders"].ended[1] == 1
        assert only_client(gateway).state == "tunnel"


async def test_what_either_side_sends_with_its_part_of_the_handshake_belongs_to_the_tunnel() -> None:
    async def switch_and_speak(exchange: Exchange) -> None:
        await exchange.send(SWITCHED + b"first")
        assert await exchange.reader.readexactly(5) == b"early"
        await exchange.send(b" and last")
        exchange.close()

    async with Upstream(switch_and_speak) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await gateway.client()
        await client.send(HANDSHAKE + b"early")
        assert (await client.rest()).endswith(b"\r\n\r\nfirst and last")
        assert upstream.connections == 1


async def test_behind_a_handshake_that_the_upstream_refuses_comes_the_next_request_and_no_tunnel() -> None:
    """Whoever believes in a tunnel that is not there lets the next request through unseen."""

    async def refuse(exchange: Exchange) -> None:
        status = "426 Upgrade Required" if exchange.request.field("upgrade") else "200 OK"
        await exchange.reply(b"no", status, b"Upgrade: h3\r\nConnection: Upgrade\r\n")

    async with Upstream(refuse) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await gateway.client()
        await client.send(
            HANDSHAKE + b"GET /plain HTTP/1.1\r\nHost: shop\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        answers = [await client.answer() for _ in range(3)]
        assert [answer.status for answer in answers] == [426, 200, 404]
        assert answers[0].field("upgrade") is None
        assert [request.target for request in upstream.requests] == ["/orders", "/plain"]


@pytest.mark.parametrize(
    "head",
    [
        SWITCHED.replace(accept_key(KEY.decode()).encode(), accept_key("another").encode()),
        SWITCHED.replace(b"Sec-WebSocket-Accept: ", b"X-Accept: "),
        SWITCHED.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
        SWITCHED.replace(b"Upgrade: websocket\r\n", b""),
        SWITCHED.replace(b"Connection: Upgrade", b"Connection: close"),
    ],
)
async def test_a_101_that_does_not_accept_this_handshake_is_a_bad_gateway(head: bytes) -> None:
    async def agree(exchange: Exchange) -> None:
        await exchange.send(head)
        await exchange.until_closed()

    async with Upstream(agree) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await gateway.client()
        await client.send(HANDSHAKE)
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["rule"]) == (502, "bad-upstream-response")
        await upstream.until(lambda: upstream.open_connections == 0)
        assert len(upstream.requests) == 1


async def test_a_101_for_a_request_that_did_not_ask_is_a_bad_gateway() -> None:
    async def agree(exchange: Exchange) -> None:
        await exchange.send(SWITCHED)
        await exchange.until_closed()

    async with Upstream(agree) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        assert (await (await gateway.client()).get()).status == 502


async def test_a_client_that_does_not_read_stops_the_upstream_and_not_the_gateway() -> None:
    sent, piece = 0, bytes(65_536)

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(SWITCHED)
        while True:
            await exchange.send(piece)
            sent += len(piece)

    async with Upstream(flood) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await gateway.client(receive_bytes=4_096)
        await client.send(HANDSHAKE)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await gateway.until(lambda: len(gateway.plane.clients) == 1)
        transport = only_client(gateway).transport
        await gateway.until(lambda: transport.get_write_buffer_size() > WRITE_BUFFER_BYTES_MAX)
        stopped = -1
        while stopped != sent:  # the kernel's buffers fill; then nothing moves any more
            stopped = sent
            for _ in range(200):
                await asyncio.sleep(0)
        assert transport.get_write_buffer_size() <= WRITE_BUFFER_BYTES_MAX + READ_BYTES_MAX
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await client.reader.readexactly(stopped + 1_000_000)


async def test_an_upstream_that_does_not_read_stops_the_client_and_not_the_gateway() -> None:
    go_on = asyncio.Event()
    total = 32 * 1024 * 1024

    async def wait_and_read(exchange: Exchange) -> None:
        await exchange.send(SWITCHED)
        await go_on.wait()
        left = total
        while left:
            left -= len(await exchange.reader.read(1 << 20))
        await exchange.send(b"all")

    async with Upstream(wait_and_read) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await joined(gateway)
        end: Tunnel | None = only_client(gateway)._tunnel
        assert end is not None
        to_upstream = end._upstream.transport
        client.writer.write(bytes(total))
        await gateway.until(lambda: to_upstream.get_write_buffer_size() > WRITE_BUFFER_BYTES_MAX)
        unsent = client.writer.transport.get_write_buffer_size()
        for _ in range(200):
            await asyncio.sleep(0)
        assert to_upstream.get_write_buffer_size() <= WRITE_BUFFER_BYTES_MAX + READ_BYTES_MAX
        assert unsent > total // 2
        go_on.set()
        assert await client.exactly(3) == b"all"


async def test_what_an_upstream_had_sent_before_it_ended_arrives_whole() -> None:
    async def speak_and_close(exchange: Exchange) -> None:
        await exchange.send(SWITCHED + b"x" * 3_000_000)
        exchange.close()

    async with Upstream(speak_and_close) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await gateway.client(receive_bytes=4_096)
        await client.send(HANDSHAKE)
        assert (await client.rest()).endswith(b"\r\n\r\n" + b"x" * 3_000_000)
        await gateway.until(lambda: not gateway.plane.clients)


async def test_what_a_client_had_sent_before_it_ended_arrives_whole() -> None:
    got = 0
    go_on = asyncio.Event()

    async def read_late(exchange: Exchange) -> None:
        nonlocal got
        await exchange.send(SWITCHED)
        await go_on.wait()
        while data := await exchange.reader.read(65_536):
            got += len(data)
        exchange.close()

    async with Upstream(read_late) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await joined(gateway)
        client.writer.write(b"x" * 3_000_000)
        client.close()
        go_on.set()
        await upstream.until(lambda: upstream.open_connections == 0)
        assert got == 3_000_000


async def test_a_reset_of_the_upstream_is_a_reset_for_the_client() -> None:
    async def switch_and_reset(exchange: Exchange) -> None:
        await exchange.send(SWITCHED)
        await exchange.reader.readexactly(1)
        exchange.reset()

    async with Upstream(switch_and_reset) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await joined(gateway)
        await client.send(b"x")
        with pytest.raises(ConnectionResetError):
            await client.rest()


async def test_a_tunnel_that_is_silent_both_ways_ends_and_one_that_is_not_goes_on() -> None:
    clock = ManualClock()
    async with Upstream(switch) as upstream, running_gateway(upstream, routes=ROUTES, clock=clock) as gateway:
        client = await joined(gateway)
        for _ in range(5):
            pass_time(gateway, clock, 4.0)
            await client.send(b"ping")
            assert await client.exactly(4) == b"ping"
        pass_time(gateway, clock, 4.9)
        assert len(gateway.plane.clients) == 1
        pass_time(gateway, clock, 0.2)
        with pytest.raises(ConnectionResetError):
            await client.rest()
        await upstream.until(lambda: upstream.open_connections == 0)


async def test_a_total_limit_ends_a_tunnel_however_busy() -> None:
    clock = ManualClock()
    async with Upstream(switch) as upstream, running_gateway(upstream, routes=ROUTES, clock=clock) as gateway:
        client = await joined(gateway, b"/total")
        pass_time(gateway, clock, 6.9)
        await client.send(b"ping")
        assert await client.exactly(4) == b"ping"
        pass_time(gateway, clock, 0.2)
        with pytest.raises(ConnectionResetError):
            await client.rest()
        await upstream.until(lambda: upstream.open_connections == 0)


async def test_draining_leaves_a_tunnel_alone_until_its_time_is_over() -> None:
    async with Upstream(switch) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        client = await joined(gateway)
        draining = asyncio.ensure_future(gateway.plane.drain(0.2))  # noqa: TID251 - awaited below
        await gateway.until(lambda: gateway.plane.draining)
        await client.send(b"still there")
        assert await client.exactly(11) == b"still there"
        await draining
        with pytest.raises((ConnectionResetError, EOFError)):
            await client.exactly(1)
        await upstream.until(lambda: upstream.open_connections == 0)


async def test_nothing_is_left_of_tunnels_that_have_ended() -> None:
    async with Upstream(switch) as upstream, running_gateway(upstream, routes=ROUTES) as gateway:
        clients = [await joined(gateway) for _ in range(20)]
        counters = gateway.plane.counters.routes["orders"]
        assert counters.active == 20
        for number, client in enumerate(clients):
            client.reset() if number % 2 else client.close()
        await upstream.until(lambda: upstream.open_connections == 0)
        await gateway.until(lambda: not gateway.plane.clients)
        assert (counters.active, gateway.plane.connections.total) == (0, 0)
        assert all(pool.is_empty for pool in gateway.plane.pools.values())
