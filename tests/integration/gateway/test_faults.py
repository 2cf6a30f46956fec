"""The data plane when upstreams and clients fail: what is tried again, what is told, and what is cleaned up."""

import asyncio
import json

import pytest
from quorate_gateway.proxy.upstream import EndpointPool
from support.gateway_client import IN_TURN, ROUTES, Answer, Client, Gateway, running_gateway
from support.gateway_upstream import Exchange, SilentListener, Upstream, say_hello, unused_port

NO_RETRY = "  - {name: orders, match: {path_prefix: /orders}, service: order, retry: {attempts: 0}}\n"


def rule(answer: Answer) -> str:
    return str(json.loads(answer.body)["rule"])


def only_pool(gateway: Gateway) -> EndpointPool:
    [pool] = gateway.plane.pools.values()
    return pool


async def test_a_refused_connection_sends_the_request_to_another_endpoint() -> None:
    async with Upstream() as upstream, running_gateway(unused_port(), upstream, routes=IN_TURN) as gateway:
        client = await gateway.client()
        for _ in range(6):
            assert (await client.post(b"{}")).status == 200  # not sent yet, so that any method may be tried again
        assert len(upstream.requests) == 6
        # The endpoint that refused is left alone for a moment: it was asked once and not each time.
        assert gateway.plane.counters.routes["orders"].retries == 1


async def test_when_every_endpoint_refuses_the_answer_says_so_and_that_nothing_was_done() -> None:
    async with running_gateway(unused_port(), unused_port()) as gateway:
        client = await gateway.client()
        answer = await client.post(b"{}")
        assert (answer.status, rule(answer)) == (502, "upstream-unreachable")
        assert json.loads(answer.body)["retry"] == "safe"
        assert answer.field("retry-after") == "1"
        assert (await client.get("/nowhere")).status == 404  # and the connection goes on


async def test_no_instance_is_service_unavailable() -> None:
    async with running_gateway() as gateway:
        answer = await (await gateway.client()).get()
        assert (answer.status, rule(answer)) == (503, "no-endpoint")
        assert "'order'" in json.loads(answer.body)["detail"]
        assert json.loads(answer.body)["route"] == "orders"


async def test_a_connection_that_cannot_be_made_in_time_sends_the_request_to_another_endpoint() -> None:
    with SilentListener() as silent:
        async with Upstream() as upstream, running_gateway(silent.port, upstream, routes=IN_TURN) as gateway:
            endpoints = gateway.plane.snapshot.endpoints["order"]
            gateway.plane.pool(endpoints[0]).connect_timeout_s = 0.05
            client = await gateway.client()
            assert [(await client.get()).status for _ in range(2)] == [200, 200]
            assert gateway.plane.pool(endpoints[0]).connect_failures == 1


@pytest.mark.parametrize("send", ["get", "post"])
async def test_connections_that_the_upstream_closes_while_idle_are_not_used_again(send: str) -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        assert (await client.get()).status == 200
        await upstream.close_idle()
        await gateway.until(lambda: only_pool(gateway).idle == 0)
        assert (await (client.get() if send == "get" else client.post(b"{}"))).status == 200
        assert upstream.connections == 2


async def close_second_on_connection(exchange: Exchange) -> None:
    """As an upstream whose idle time ends just when the next request is on its way."""
    await exchange.read_body()
    if exchange.request.method == "PREPARE":
        await exchange.reply()
    elif exchange.request.connection == 1:
        exchange.close()
    else:
        await exchange.reply()


async def test_an_idempotent_request_on_a_connection_gone_stale_is_tried_on_a_fresh_one() -> None:
    async with Upstream(close_second_on_connection) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.get(method="PREPARE")
        assert (await client.get()).body == b"hello"
        assert [request.connection for request in upstream.requests] == [1, 1, 2]


async def test_its_body_is_sent_again_too() -> None:
    async with Upstream(close_second_on_connection) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.get(method="PREPARE")
        await client.send(b"PUT /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhe")
        await upstream.until(lambda: len(upstream.requests) == 2)
        await client.send(b"llo")
        assert (await client.answer()).status == 200
        assert upstream.requests[2].body == b"hello"


async def test_a_post_that_may_have_been_done_is_not_sent_twice() -> None:
    async with Upstream(close_second_on_connection) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.get(method="PREPARE")
        answer = await client.post(b"{}")
        assert (answer.status, rule(answer)) == (502, "upstream-failed")
        assert json.loads(answer.body)["retry"] == "unknown"
        assert len(upstream.requests) == 2


async def test_an_idempotent_request_to_an_instance_that_dies_goes_to_another() -> None:
    async def die(exchange: Exchange) -> None:
        exchange.reset()

    async with (
        Upstream(die) as dying,
        Upstream() as healthy,
        running_gateway(dying, healthy, routes=IN_TURN) as gateway,
    ):
        client = await gateway.client()
        assert [(await client.get()).status for _ in range(4)] == [200] * 4
        assert len(dying.requests) == 2


async def test_retries_are_bounded_by_the_route() -> None:
    async def die(exchange: Exchange) -> None:
        exchange.reset()

    async with Upstream(die) as one, Upstream(die) as two, running_gateway(one, two, routes=NO_RETRY) as gateway:
        assert (await (await gateway.client()).get()).status == 502
        assert len(one.requests) + len(two.requests) == 1


async def test_half_a_head_is_a_bad_gateway_and_not_tried_again() -> None:
    async def half(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Le")
        exchange.close()

    async with Upstream(half) as upstream, running_gateway(upstream) as gateway:
        answer = await (await gateway.client()).get()
        assert (answer.status, rule(answer)) == (502, "upstream-failed")
        assert len(upstream.requests) == 1


async def test_an_answer_that_is_no_http_is_a_bad_gateway() -> None:
    async def babble(exchange: Exchange) -> None:
        await exchange.send(b"220 mail.example ESMTP\r\n\r\n")

    async with Upstream(babble) as upstream, running_gateway(upstream) as gateway:
        answer = await (await gateway.client()).get()
        assert (answer.status, rule(answer)) == (502, "bad-upstream-response")
        await upstream.until(lambda: upstream.open_connections == 0)


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 10\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"],
    ids=["length", "chunked"],
)
async def test_half_an_answer_is_cut_short_for_the_client_too(head: bytes) -> None:
    async def half(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n" + head)
        exchange.close()

    async with Upstream(half) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        with pytest.raises((EOFError, ConnectionResetError)):
            await client.get()
        assert gateway.plane.counters.truncated == 1


async def test_an_answer_without_length_that_is_reset_does_not_look_whole() -> None:
    seen = asyncio.Event()

    async def half(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await seen.wait()
        exchange.reset()

    async with Upstream(half) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await client.until(b"half")
        seen.set()
        with pytest.raises(ConnectionResetError):
            await client.rest()


async def test_a_bad_chunk_in_an_answer_cuts_it_short() -> None:
    seen = asyncio.Event()

    async def bad(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await seen.wait()
        await exchange.send(b"zz\r\n")

    async with Upstream(bad) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await client.until(b"a\r\n")
        seen.set()
        with pytest.raises(ConnectionResetError):
            await client.rest()
        await upstream.until(lambda: upstream.open_connections == 0)


async def test_a_bad_chunk_that_comes_with_the_head_is_a_bad_gateway() -> None:
    async def bad(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nzz\r\n")

    async with Upstream(bad) as upstream, running_gateway(upstream) as gateway:
        answer = await (await gateway.client()).get()
        assert (answer.status, rule(answer)) == (502, "bad-chunk")


async def test_bytes_after_an_answer_are_never_taken_for_the_next_one() -> None:
    async def poison(exchange: Exchange) -> None:
        await exchange.reply(b"hello")
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned")

    async with Upstream(poison) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        for _ in range(5):
            assert (await client.get()).body == b"hello"
            await upstream.until(lambda: upstream.open_connections == 0)
        assert upstream.connections == 5


async def test_more_body_than_the_length_says_ends_the_connection() -> None:
    async def longer(exchange: Exchange) -> None:
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        )

    async with Upstream(longer) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        assert (await client.get()).body == b"hello"
        assert (await client.get()).body == b"hello"
        assert upstream.connections == 2


async def test_a_client_that_leaves_takes_its_upstream_connection_with_it() -> None:
    closed = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await exchange.until_closed()
        closed.set()

    async with Upstream(wait) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await upstream.until(lambda: len(upstream.requests) == 1)
        client.close()
        async with asyncio.timeout(10):
            await closed.wait()
        await gateway.until(lambda: only_pool(gateway).is_empty)
        counters = gateway.plane.counters.routes["orders"]
        assert (counters.ended[0], counters.active) == (1, 0)


async def test_a_client_that_leaves_while_its_connection_is_being_made_leaves_no_waiter() -> None:
    with SilentListener() as silent:
        async with running_gateway(silent.port) as gateway:
            client = await gateway.client()
            await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
            await gateway.until(lambda: len(gateway.plane.pools) == 1 and only_pool(gateway).waiting == 1)
            client.reset()
            await gateway.until(lambda: only_pool(gateway).waiting == 0)


async def test_an_answer_before_the_body_is_read_reaches_the_client() -> None:
    async def too_large(exchange: Exchange) -> None:
        await exchange.reply(b"no thanks", "413 Too Large", b"Connection: close\r\n")
        exchange.close()

    async with Upstream(too_large) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 100_000)
        assert (await client.answer()).body == b"no thanks"


async def test_a_body_over_the_limit_of_its_route_is_refused_by_its_length() -> None:
    routes = "  - {match: {path_prefix: /orders}, service: order, request_bytes_max: 10}\n"
    async with Upstream() as upstream, running_gateway(upstream, routes=routes) as gateway:
        client = await gateway.client()
        assert (await client.post(b"x" * 10)).status == 200
        answer = await client.post(b"x" * 11)
        assert (answer.status, rule(answer)) == (413, "body-too-large")
        assert len(upstream.requests) == 1


async def test_a_body_over_the_limit_of_its_route_is_refused_while_it_comes_in_chunks() -> None:
    routes = "  - {match: {path_prefix: /orders}, service: order, request_bytes_max: 10}\n"
    async with Upstream() as upstream, running_gateway(upstream, routes=routes) as gateway:
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n12345678\r\n")
        await upstream.until(lambda: len(upstream.requests) == 1)
        await client.send(b"8\r\n12345678\r\n0\r\n\r\n")
        assert (await client.answer()).status == 413
        await upstream.until(lambda: upstream.open_connections == 0)
        assert upstream.requests[0].body == b""


async def test_a_method_that_is_not_routed_is_told_which_are() -> None:
    routes = "  - {match: {path: /orders, methods: [GET, PUT]}, service: order}\n"
    async with Upstream() as upstream, running_gateway(upstream, routes=routes) as gateway:
        client = await gateway.client()
        answer = await client.post(b"{}")
        assert (answer.status, rule(answer), answer.field("allow")) == (405, "method-not-routed", "GET, PUT")
        assert (await client.get()).status == 200


async def test_the_gateway_says_what_it_is_where_no_route_takes_the_root() -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        answer = await client.get("/?x")
        assert (answer.status, answer.field("content-type")) == (200, "application/json")
        assert "Quorate" in answer.body.decode()
        assert (await client.get("/", method="HEAD")).body == b""
        assert (await client.post(b"", "/")).status == 404
        gateway.serve("  - {match: {path_prefix: /}, service: order}\n", {"order": [upstream]})
        assert (await client.get("/")).body == b"hello"


async def test_a_bad_chunk_that_comes_late_ends_the_request_and_says_why() -> None:
    async with Upstream() as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await upstream.until(lambda: len(upstream.requests) == 1)
        await client.send(b"zz\r\n")
        answer = await client.answer()
        assert (answer.status, rule(answer)) == (400, "bad-chunk")
        await upstream.until(lambda: upstream.open_connections == 0)
        assert upstream.requests[0].body == b""


async def test_a_bad_chunk_after_the_answer_has_begun_cuts_the_answer_short() -> None:
    async def begin(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await exchange.until_closed()

    async with Upstream(begin) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"POST /orders HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await client.until(b"a\r\n")
        await client.send(b"zz\r\n")
        with pytest.raises(ConnectionResetError):
            await client.rest()


async def test_a_head_that_comes_in_pieces_is_one_head_both_ways() -> None:
    async def in_pieces(exchange: Exchange) -> None:
        for piece in (
            b"HTTP/1.1 103 Early",
            b" Hints\r\n\r\nHTTP/1.1 20",
            b"0 OK\r\ncontent-length: 5\r",
            b"\n\r\nhel",
            b"lo",
        ):
            await exchange.send(piece)
            await seen.acquire()

    seen = asyncio.Semaphore(0)
    async with Upstream(in_pieces) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        for piece in (b"\r\n", b"GET /ord", b"ers HTTP/1.1\r\nHost: sh", b"op\r\n\r", b"\n"):
            await client.send(piece)
            await gateway.until(lambda: all(one._scanned == len(one._buffer) for one in gateway.plane.clients))
        for _ in range(5):
            seen.release()
        assert (await client.answer()).body == b"hello"
        assert upstream.requests[0].target == "/orders"


async def test_interim_responses_are_bounded_and_an_upgrade_nobody_asked_for_is_refused() -> None:
    async def interim(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 9)

    async def switch(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n")

    for handler in (interim, switch):
        async with Upstream(handler) as upstream, running_gateway(upstream) as gateway:
            answer = await (await gateway.client()).get()
            assert (answer.status, rule(answer)) == (502, "bad-upstream-response")


async def test_bytes_on_an_idle_connection_are_never_an_answer() -> None:
    spoken = asyncio.Event()

    async def speak_up(exchange: Exchange) -> None:
        await exchange.reply()
        await spoken.wait()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned")

    async with Upstream(speak_up) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.get()
        spoken.set()
        await upstream.until(lambda: upstream.open_connections == 0)
        upstream.handler = say_hello
        assert (await client.get()).body == b"hello"


async def swap_forever(gateway: Gateway, upstreams: tuple[Upstream, Upstream], done: asyncio.Event) -> None:
    one, two = upstreams
    turn = 0
    while not done.is_set():
        turn += 1
        gateway.serve(ROUTES, {"order": [(one, two), (one,), (two,)][turn % 3]})
        await asyncio.sleep(0)


async def test_swapping_snapshots_under_load_drops_nothing() -> None:
    async def load(client: Client) -> None:
        for number in range(150):
            body = b"%d" % number
            assert (await client.post(body)).body == body

    async def echo(exchange: Exchange) -> None:
        await exchange.reply(await exchange.read_body())

    async with Upstream(echo) as one, Upstream(echo) as two, running_gateway(one, two) as gateway:
        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(swap_forever(gateway, (one, two), done))
            async with asyncio.TaskGroup() as clients:
                for _ in range(8):
                    clients.create_task(load(await gateway.client()))
            done.set()
        assert len(one.requests) + len(two.requests) == 8 * 150
        assert min(len(one.requests), len(two.requests)) > 300


async def test_an_endpoint_that_leaves_finishes_what_it_has_begun_and_loses_its_idle_connections() -> None:
    release = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        if exchange.request.target == "/orders/slow":
            await release.wait()
        await exchange.reply()

    async with Upstream(slow) as leaving, Upstream() as staying, running_gateway(leaving) as gateway:
        first, second = await gateway.client(), await gateway.client()
        waiting = asyncio.ensure_future(first.get("/orders/slow"))  # noqa: TID251 - awaited below
        await leaving.until(lambda: len(leaving.requests) == 1)
        await second.get()
        assert leaving.open_connections == 2
        gateway.serve(ROUTES, {"order": [staying]})
        await leaving.until(lambda: leaving.open_connections == 1)
        assert (await second.get()).status == 200
        assert len(staying.requests) == 1
        release.set()
        assert (await waiting).status == 200
        await leaving.until(lambda: leaving.open_connections == 0)
        gateway.plane.sweep()
        assert list(gateway.plane.pools) == [f"127.0.0.1:{staying.port}"]


async def test_draining_finishes_requests_closes_idle_connections_and_accepts_nothing_new() -> None:
    release = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await release.wait()
        await exchange.reply()

    async with Upstream(slow) as upstream, running_gateway(upstream) as gateway:
        idle, busy = await gateway.client(), await gateway.client()
        await gateway.until(lambda: len(gateway.plane.clients) == 2)
        await busy.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n" * 2)
        await upstream.until(lambda: len(upstream.requests) == 1)
        draining = asyncio.ensure_future(gateway.plane.drain(10))  # noqa: TID251 - awaited below
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await gateway.client()
        release.set()
        answer = await busy.answer()
        assert (answer.status, answer.field("connection")) == (200, "close")
        await draining
        assert len(upstream.requests) == 1


async def test_draining_ends_what_does_not_finish_in_time() -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.until_closed()

    async with Upstream(never) as upstream, running_gateway(upstream) as gateway:
        client = await gateway.client()
        await client.send(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n")
        await upstream.until(lambda: len(upstream.requests) == 1)
        await gateway.plane.drain(0.01)
        assert not gateway.plane.clients
