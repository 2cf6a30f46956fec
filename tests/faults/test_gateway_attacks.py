"""Smuggling and malformed messages through a real gateway process, and what reached a real service behind it.

What the service got is read by llhttp. However an attack is written, one message never becomes two requests there, nor
two answers at the client, and whoever comes next on either connection gets their own answer.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from support.gateway_attacks import ATTACKS, CHUNKS, HANDSHAKE_UNROUTED, Attack
from support.gateway_client import Answer, Client
from support.gateway_recorder import Recorder
from support.gateway_stack import GatewayStack, gateway_stack
from support.gateway_upstream import Exchange, Upstream

ROUTES = """\
routes:
  - {name: orders, match: {path_prefix: /orders}, service: order, websocket: true}
  - {name: plain, match: {path_prefix: /plain}, service: order}
  - {name: marker, match: {path_prefix: /marker}, service: order}
  - {name: poison, match: {path_prefix: /poison}, service: poison, retry: {attempts: 0}, timeout_ms: 2000,
     circuit_breaker: off, outlier_ejection: off}
"""
UNASKED_S_MAX = 2.0
"""Less than for how long the gateway keeps a connection that is idle."""
MARKER = b"GET /marker/mine HTTP/1.1\r\nHost: shop\r\n\r\n"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayStack]:
    with gateway_stack(tmp_path_factory.mktemp("gateway")) as started:
        started.publish(ROUTES)
        yield started


@asynccontextmanager
async def connected(stack: GatewayStack) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", stack.port, limit=1 << 20))
    try:
        yield client
    finally:
        client.reset()
        with suppress(ConnectionError):
            await client.writer.wait_closed()


@asynccontextmanager
async def recording(stack: GatewayStack) -> AsyncIterator[Recorder]:
    """A recorder that is the only instance of `order`."""
    async with Recorder() as recorder:
        stack.register("order", {"recorder": recorder.port})
        stack.wait_endpoints("order", ["recorder"])
        yield recorder
        stack.deregister("order", ["recorder"])


async def marker_is_answered_itself(client: Client) -> bool:
    """Whether the connection goes on, and then with the answer to what is asked next and no other."""
    try:
        await client.send(MARKER)
        answer = await client.answer()
    except (EOFError, ConnectionError):
        return False
    assert (answer.status, json.loads(answer.body)) == (200, {"target": "/marker/mine"})
    return True


async def test_no_attack_reaches_the_service_and_each_has_its_answer(stack: GatewayStack) -> None:
    """All at once that can be said of a message in one piece: nothing of it is passed on."""
    async with recording(stack) as recorder:
        for attack in [*ATTACKS, HANDSHAKE_UNROUTED]:
            request = attack.request.replace(b"/orders", b"/plain") if attack is HANDSHAKE_UNROUTED else attack.request
            async with connected(stack) as client:
                await client.send(request)
                answer = await client.answer()
                assert (answer.status, rule(answer)) == (attack.status, attack.rule), attack.what
                await marker_is_answered_itself(client)
            async with connected(stack) as client:
                assert await marker_is_answered_itself(client), attack.what
            reached = [one.target for one in recorder.requests]
            assert set(reached) == {"/marker/mine"}, (attack.what, reached)
            assert recorder.unreadable == [], attack.what


@pytest.mark.parametrize("attack", CHUNKS, ids=lambda attack: attack.what)
async def test_a_body_that_turns_bad_on_its_way_never_becomes_whole(stack: GatewayStack, attack: Attack) -> None:
    """The head has gone to the service already when the chunks come: it gets one request, and never its end."""
    head, _, body = attack.request.partition(b"\r\n\r\n")
    async with recording(stack) as recorder:
        async with connected(stack) as client:
            await client.send(head + b"\r\n\r\n1\r\nx\r\n")
            await recorder.until(lambda: bool(recorder.requests))
            await client.send(body)
            answer = await client.answer()
            assert (answer.status, rule(answer)) == (attack.status, attack.rule)
            assert not await marker_is_answered_itself(client), "what follows a body without an end is no request"
        async with connected(stack) as client:
            assert await marker_is_answered_itself(client)
        assert [(one.target, one.is_whole) for one in recorder.requests] == [("/orders", False), ("/marker/mine", True)]
        assert recorder.unreadable == []


POISONED = {
    "both lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nhello",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    "an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\nhello",
    "a folded field": b"HTTP/1.1 200 OK\r\nX-A: 1\r\n b\r\nContent-Length: 5\r\n\r\nhello",
    "a LF alone": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "a CR in a value": b"HTTP/1.1 200 OK\r\nX-A: 1\rSet-Cookie: a=b\r\nContent-Length: 5\r\n\r\nhello",
    "a NUL in a value": b"HTTP/1.1 200 OK\r\nX-A: \x00\r\nContent-Length: 5\r\n\r\nhello",
    "a space before a colon": b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
    "HTTP/0.9": b"<html>hello</html>\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\nhello",
    "a switch nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "1xx without an end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 200,
    "a head over its limit": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200_000 + b"\r\nContent-Length: 5\r\n\r\nhello",
}
"""Heads of answers that no client may get."""

CUT = {
    "a length that is not kept": b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
    "chunks that break off": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "a chunk size that is none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    "a chunk longer than its size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
}
"""Answers that begin well: what the client gets must not look whole."""


def poisoner(data: bytes, *, closes: bool) -> Upstream:
    async def poison(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.send(data)
        if closes:
            exchange.close()

    return Upstream(poison)


@asynccontextmanager
async def poisoned(stack: GatewayStack, data: bytes, *, closes: bool = False) -> AsyncIterator[Upstream]:
    async with poisoner(data, closes=closes) as upstream:
        stack.register("poison", {"poisoner": upstream.port})
        stack.wait_endpoints("poison", ["poisoner"])
        yield upstream
        stack.deregister("poison", ["poisoner"])
        stack.wait_endpoints("poison", [])


@pytest.mark.parametrize("what", POISONED)
async def test_an_answer_with_a_bad_head_is_never_passed_on(stack: GatewayStack, what: str) -> None:
    async with recording(stack), poisoned(stack, POISONED[what]), connected(stack) as client:
        answer = await client.get("/poison")
        assert answer.status == 502, what
        assert rule(answer) in {"bad-upstream-response", "ambiguous-length", "unknown-transfer-coding"}
        assert await marker_is_answered_itself(client)


@pytest.mark.parametrize("what", CUT)
async def test_an_answer_that_turns_bad_never_looks_whole(stack: GatewayStack, what: str) -> None:
    """It is cut short; or, when it turns bad before anything of it has been passed on, there is a 502 in its place."""
    async with poisoned(stack, CUT[what], closes=True), connected(stack) as client:
        try:
            answer = await client.get("/poison")
        except (EOFError, ConnectionError):
            return
        assert answer.status == 502


async def test_what_follows_an_answer_unasked_is_nobodys_answer(stack: GatewayStack) -> None:
    """Response queue poisoning: a second answer behind the first waits for the next request on that connection."""
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright"
    bad = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
    async with poisoned(stack, good + bad) as upstream, connected(stack) as client:
        for _ in range(20):
            with suppress(EOFError, ConnectionError):
                answer = await client.get("/poison")
                assert answer.body == b"right"
        assert upstream.connections == len(upstream.requests), "a connection that said too much is not used again"


async def test_an_answer_that_comes_between_requests_ends_the_connection(stack: GatewayStack) -> None:
    """It comes while the connection is idle: whoever asks next gets another one, and the right answer."""
    may_speak, closed = asyncio.Event(), asyncio.Event()

    async def speak_unasked(exchange: Exchange) -> None:
        await exchange.reply(b"right")
        if exchange.request.connection == 1:
            await may_speak.wait()
            await exchange.reply(b"wrong")
            await exchange.until_closed()
            closed.set()

    async with Upstream(speak_unasked) as upstream:
        stack.register("poison", {"speaker": upstream.port})
        stack.wait_endpoints("poison", ["speaker"])
        async with connected(stack) as client:
            assert (await client.get("/poison")).body == b"right"
            may_speak.set()
            async with asyncio.timeout(UNASKED_S_MAX):
                await closed.wait()
            assert (await client.get("/poison")).body == b"right"
        assert upstream.connections == 2
        stack.deregister("poison", ["speaker"])
        stack.wait_endpoints("poison", [])


def rule(answer: Answer) -> str:
    return str(json.loads(answer.body)["rule"])


def test_the_page_of_attacks_is_up_to_date(repository_page: Path) -> None:
    """docs/internals/framing-attacks.md says of each what these tests have just shown."""
    text = repository_page.read_text()
    missing = [row for row in rows() if row not in text]
    assert missing == []


def rows() -> list[str]:
    late = {attack.what: "nothing, or a head" for attack in CHUNKS}
    return [
        f"| {attack.what} | {attack.status} `{attack.rule}` | {late.get(attack.what, 'nothing')} |"
        for attack in [*ATTACKS, HANDSHAKE_UNROUTED]
    ]


@pytest.fixture
def repository_page() -> Path:
    return Path(__file__).resolve().parents[2] / "docs" / "internals" / "framing-attacks.md"
