"""The keys of token providers, from a real server that changes them, misbehaves, dies and comes back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from quorate_core.clock import ManualClock
from quorate_core.tasks import TaskOwner
from quorate_gateway.documents.access import JwtProvider
from quorate_gateway.policies.jwt_tokens import JwtVerifiers, KeysUnavailable, TokenRefused
from quorate_gateway.policies.key_sets import KEY_SET_BYTES_MAX
from quorate_gateway.policies.key_source import FetchedKeys, RefreshTimes
from support.gateway_tokens import NOW_S, KeyServer, claims, jwks, provider, public_jwk, signed
from support.gateway_upstream import WAIT_S_MAX, Exchange, Handler, Upstream, give_back, unused_port

SELDOM = RefreshTimes(interval_s=3_600.0, retry_s=0.002, retry_max_s=0.01)
OFTEN = replace(SELDOM, interval_s=0.005)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@asynccontextmanager
async def following(
    *documents: JwtProvider, times: RefreshTimes = SELDOM, clock: ManualClock | None = None
) -> AsyncIterator[JwtVerifiers]:
    """Verifiers of these providers, called `0`, `1` and so on. A failure of a task fails the test."""
    failures: list[BaseException] = []
    verifiers = JwtVerifiers(clock or ManualClock(), times)
    verifiers.replace({str(number): document for number, document in enumerate(documents)})
    async with TaskOwner("test", failures.append) as tasks:
        verifiers.start(tasks)
        yield verifiers
    assert failures == []


def at(port: int, path: str = "/keys") -> JwtProvider:
    return provider(jwks_url=f"http://127.0.0.1:{port}{path}")


def source_of(verifiers: JwtVerifiers, name: str = "0") -> FetchedKeys:
    source = verifiers[name].source
    assert isinstance(source, FetchedKeys)
    return source


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110 - what is waited for is plain state
            await asyncio.sleep(0)


def outcome(verifiers: JwtVerifiers, token: bytes, name: str = "0") -> str:
    try:
        return verifiers[name].verify(token, NOW_S).subject.decode()
    except TokenRefused:
        return "refused"
    except KeysUnavailable:
        return "unavailable"


async def test_keys_are_fetched_and_no_token_is_refused_before_they_are() -> None:
    async with Upstream(KeyServer(jwks())) as server, following(at(server.port)) as verifiers:
        assert outcome(verifiers, signed()) == "unavailable"
        await until(lambda: source_of(verifiers).keys is not None)
        assert outcome(verifiers, signed()) == "ada"
        (request,) = server.requests
        assert (request.method, request.target) == ("GET", "/keys")
        assert request.field("accept-encoding") == "identity"


async def test_a_provider_that_is_away_at_first_is_asked_until_it_is_there() -> None:
    port = unused_port()
    async with following(at(port)) as verifiers:
        source = source_of(verifiers)
        await until(lambda: source.fetches >= 3)
        assert outcome(verifiers, signed()) == "unavailable"
        assert source.failure is not None
        give_back(port)
        server = Upstream(KeyServer(jwks()), port=port)
        async with server:
            await until(lambda: source.keys is not None)
            assert (outcome(verifiers, signed()), source.failure) == ("ada", None)


async def test_the_keys_stay_while_the_provider_is_away_and_change_when_it_is_back() -> None:
    keys = KeyServer(jwks())
    server = Upstream(keys)
    await server.start()
    async with following(at(server.port), times=OFTEN) as verifiers:
        source = source_of(verifiers)
        await until(lambda: source.keys is not None)
        await server.stop()
        await until(lambda: source.failure is not None)
        failed_at = source.fetches
        await until(lambda: source.fetches >= failed_at + 3)
        assert outcome(verifiers, signed()) == "ada"
        assert outcome(verifiers, signed(claims(sub="eve"))) == "eve", "also one that was never seen before"
        keys.content = jwks(public_jwk(name="two"))
        await server.start()
        await until(lambda: outcome(verifiers, signed()) != "ada")
        assert outcome(verifiers, signed(name="two")) == "ada"
        await server.stop()


async def test_a_withdrawn_key_counts_until_the_next_fetch_only() -> None:
    keys = KeyServer(jwks(public_jwk(), public_jwk(name="two")))
    async with Upstream(keys) as server, following(at(server.port), times=OFTEN) as verifiers:
        await until(lambda: outcome(verifiers, signed()) == "ada")
        keys.content = jwks(public_jwk(name="two"))
        await until(lambda: outcome(verifiers, signed()) in ("refused", "unavailable"))
        assert outcome(verifiers, signed(name="two")) == "ada"


async def test_an_unknown_key_is_asked_for_at_once_and_at_most_once_a_minute() -> None:
    clock, keys = ManualClock(), KeyServer(jwks())
    async with Upstream(keys) as server, following(at(server.port), clock=clock) as verifiers:
        source = source_of(verifiers)
        await until(lambda: source.keys is not None)
        keys.content = jwks(public_jwk(), public_jwk(name="two"))
        assert outcome(verifiers, signed(name="two")) == "unavailable"
        await until(lambda: outcome(verifiers, signed(name="two")) == "ada")
        for number in range(100):
            assert outcome(verifiers, signed(header={"kid": f"invented-{number}"})) == "refused"
        clock.advance(59.9)
        assert outcome(verifiers, signed(name="three")) == "refused"
        assert len(server.requests) == 2
        clock.advance(0.1)
        assert outcome(verifiers, signed(name="three")) == "unavailable"
        await until(lambda: source.fetches == 3)
        assert outcome(verifiers, signed(name="three")) == "refused"
        assert len(server.requests) == 3


async def test_while_a_fetch_is_under_way_unknown_keys_cause_no_other() -> None:
    release = asyncio.Event()
    keys = KeyServer(jwks())

    async def slowly(exchange: Exchange) -> None:
        if len(server.requests) > 1:
            await release.wait()
        await keys(exchange)

    async with Upstream(slowly) as server, following(at(server.port)) as verifiers:
        source = source_of(verifiers)
        await until(lambda: source.keys is not None)
        for number in range(50):
            assert outcome(verifiers, signed(header={"kid": f"invented-{number}"})) == "unavailable"
        await server.until(lambda: len(server.requests) == 2)
        assert outcome(verifiers, signed(header={"kid": "invented"})) == "unavailable"
        release.set()
        await until(lambda: source.fetches == 2)
        assert outcome(verifiers, signed(header={"kid": "invented"})) == "refused"
        assert len(server.requests) == 2


async def _break_off(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{")
    exchange.close()


async def _say_nothing(exchange: Exchange) -> None:
    await exchange.until_closed()


async def _never_end(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while not exchange.writer.is_closing():
        await exchange.send(b"4000\r\n" + b" " * 0x4000 + b"\r\n")


def _answering(content: str, status: str = "200 OK", fields: bytes = b"") -> KeyServer:
    server = KeyServer(content)
    server.status, server.fields = status, fields
    return server


def _saying(data: bytes) -> Handler:
    """Answers with these bytes, and then closes."""

    async def say(exchange: Exchange) -> None:
        await exchange.send(data)
        exchange.close()

    return say


_HEAD = b"HTTP/1.1 200 OK\r\n"
GARBAGE = [
    b"\x00\xff\x16\x03", b"SSH-2.0-OpenSSH_9\r\n", _HEAD + b"content-length: x\r\n\r\n{}",
    _HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}", _HEAD + b"content-encoding: gzip\r\n\r\nno gzip",
    _HEAD + b"content-type: a/b; charset=\xff\r\n\r\n\xff\xfe", b"HTTP/1.1 302 Found\r\nlocation: http://[::1\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nlocation: \xff\xfe\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    _HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    _HEAD + b"set-cookie: \xff=;;;\r\n\r\n", b"HTTP/9.9 200\r\n\r\n",
    _HEAD + b"\r\n" + b"[" * 100_000, _HEAD + b'\r\n{"keys": [{"kty": "RSA", "n": "AQ", "e": "%b"}]}' % (b"A" * 9_000),
]  # fmt: skip


@pytest.mark.parametrize("data", GARBAGE)
async def test_whatever_bytes_come_the_gateway_goes_on_and_asks_again(data: bytes) -> None:
    async with Upstream(_saying(data)) as server, following(at(server.port)) as verifiers:
        source = source_of(verifiers)
        await until(lambda: source.fetches >= 2)
        assert source.failure
        assert source.keys is None
        server.handler = KeyServer(jwks())
        await until(lambda: source.keys is not None)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (_answering(jwks(public_jwk(name="evil")), "500 Internal Server Error"), "it answered 500"),
        (_answering(jwks(public_jwk(name="evil")), "404 Not Found"), "it answered 404"),
        (_answering("<html>"), "is JSON"), (_answering(""), "is JSON"),
        (_answering('{"keys": []}'), "no key of the set"),
        (_answering(jwks({"kty": "oct", "k": "AA"})), "private or secret"),
        (_answering(" " * (KEY_SET_BYTES_MAX + 1) + jwks(public_jwk(name="evil"))), "it answered more than"),
        (_break_off, ""), (_say_nothing, "TimeoutError"), (_never_end, "it answered more than"),
    ],
    ids=["500", "404", "html", "nothing", "no key", "secrets", "too large", "half", "silent", "endless"],
)  # fmt: skip
async def test_a_provider_that_answers_nonsense_changes_nothing(handler: Handler, reason: str) -> None:
    keys = KeyServer(jwks())
    times = replace(OFTEN, timeout_s=0.1) if handler is _say_nothing else OFTEN
    async with Upstream(keys) as server, following(at(server.port), times=times) as verifiers:
        source = source_of(verifiers)
        await until(lambda: source.keys is not None)
        server.handler = handler
        await until(lambda: source.failure is not None)
        tried = source.fetches
        await until(lambda: source.fetches > tried)
        assert outcome(verifiers, signed()) == "ada"
        assert outcome(verifiers, signed(name="evil")) == "unavailable"
        assert reason in (source.failure or "")
        server.handler = keys
        await until(lambda: source.failure is None)


async def test_no_redirect_is_followed() -> None:
    async with Upstream(KeyServer(jwks(public_jwk(name="evil")))) as elsewhere:
        redirect = _answering("", "302 Found", b"location: http://127.0.0.1:%d/keys\r\n" % elsewhere.port)
        async with Upstream(redirect) as server, following(at(server.port)) as verifiers:
            source = source_of(verifiers)
            await until(lambda: source.fetches >= 2)
            assert (source.keys, source.failure) == (None, "it answered 302")
            assert elsewhere.requests == []


async def test_an_address_is_fetched_once_for_all_who_name_it_and_not_for_those_who_are_gone() -> None:
    keys = KeyServer(jwks())
    async with Upstream(keys) as server:
        first, second = at(server.port), at(server.port).model_copy(update={"audiences": ["bank"]})
        async with TaskOwner("test") as tasks:
            verifiers = JwtVerifiers(ManualClock(), SELDOM)
            verifiers.start(tasks)
            assert len(tasks) == 0
            verifiers.replace({"0": first, "1": second})
            await until(lambda: source_of(verifiers).keys is not None)
            assert (len(server.requests), len(tasks)) == (1, 1)
            assert outcome(verifiers, signed()) == "ada"
            assert outcome(verifiers, signed(), "1") == "refused"
            kept = source_of(verifiers)
            verifiers.replace({"1": second, "2": at(server.port, "/others")})
            await until(lambda: source_of(verifiers, "2").keys is not None)
            assert source_of(verifiers, "1") is kept
            verifiers.replace({})
            await until(lambda: len(tasks) == 0)
        assert [request.target for request in server.requests] == ["/keys", "/others"]


async def test_what_is_unchanged_is_not_forgotten_by_fetching_it_again() -> None:
    async with Upstream(KeyServer(jwks())) as server, following(at(server.port), times=OFTEN) as verifiers:
        source = source_of(verifiers)
        await until(lambda: source.keys is not None)
        keys, token = source.keys, verifiers["0"].verify(signed(), NOW_S)
        fetched = source.fetches
        await until(lambda: source.fetches >= fetched + 2)
        assert source.keys is keys
        assert verifiers["0"].remembered == 1
        assert token.subject == b"ada"
