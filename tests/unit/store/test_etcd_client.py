"""Calls to endpoints that refuse, break off, are silent or answer nonsense: what is tried elsewhere, what is said."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from quorate_core.clock import Clock, ManualClock, SystemClock
from quorate_core.errors import (
    DeadlineExceeded,
    InvariantViolation,
    NotFound,
    NotProposed,
    OutcomeUnknown,
    QuorateError,
    TooManyRequests,
    Unauthenticated,
)
from quorate_core.settings import HostPort
from quorate_store.etcd import client as client_module
from quorate_store.etcd.client import StoreClient, Timeouts
from quorate_store.etcd.endpoints import SET_ASIDE_S_MIN
from quorate_store.etcd.errors import AnswerTooLarge
from quorate_store.etcd.messages import Header
from support.scripted_store import Answer, Request, ScriptedStore, scripted_store

SHORT = Timeouts(call_s=0.4, read_attempt_s=0.15)
PATH = "/v3/kv/range"


async def good(request: Request) -> None:
    request.answer({"from": "a good one"})


async def breaking(request: Request) -> None:
    request.hang_up()


async def silent(request: Request) -> None:
    await asyncio.Event().wait()


def refusing(code: int, text: str, status: int = 503, headers: str = "") -> Answer:
    async def answer(request: Request) -> None:
        request.answer({"error": text, "message": text, "code": code}, status, headers)

    return answer


@asynccontextmanager
async def client_of(
    *endpoints: str, timeouts: Timeouts = SHORT, clock: Clock | None = None
) -> AsyncIterator[StoreClient]:
    client = StoreClient(
        [HostPort.parse(endpoint) for endpoint in endpoints],
        clock or SystemClock(),
        {"authorization": "Bearer of the test"},
        timeouts=timeouts,
    )
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def nobody() -> str:
    """An endpoint that refuses connections."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
async def good_store() -> AsyncIterator[ScriptedStore]:
    async with scripted_store(good) as store:
        yield store


async def test_a_write_goes_on_to_the_next_endpoint_when_the_first_refuses_connections(
    nobody: str, good_store: ScriptedStore
) -> None:
    async with client_of(nobody, good_store.endpoint) as client:
        assert await client.write(PATH, b"{}") == b'{"from":"a good one"}'


async def test_what_was_sent_and_not_answered_is_unknown_and_sent_to_nobody_else(good_store: ScriptedStore) -> None:
    for answer in (breaking, silent):
        async with scripted_store(answer) as bad, client_of(bad.endpoint, good_store.endpoint) as client:
            with pytest.raises(OutcomeUnknown):
                await client.write(PATH, b"{}")
            assert len(bad.requests) == 1
            assert good_store.requests == []


async def test_a_read_goes_on_to_the_next_whatever_the_first_does(good_store: ScriptedStore) -> None:
    for answer in (breaking, silent, refusing(14, "etcdserver: leader changed"), refusing(14, "etcdserver: no leader")):
        async with scripted_store(answer) as bad, client_of(bad.endpoint, good_store.endpoint) as client:
            assert await client.read(PATH, b"{}") == b'{"from":"a good one"}'


async def test_the_endpoint_that_answered_is_kept_to(good_store: ScriptedStore) -> None:
    async with scripted_store(breaking) as bad, client_of(bad.endpoint, good_store.endpoint) as client:
        for _ in range(3):
            await client.read(PATH, b"{}")
        assert len(bad.requests) == 1
        assert len(good_store.requests) == 3


async def test_a_write_goes_on_when_the_store_says_that_nothing_was_done(good_store: ScriptedStore) -> None:
    for answer in (
        refusing(14, "etcdserver: no leader"),
        refusing(14, "the leader has changed", headers="quorate-retry: safe\r\n"),
    ):
        async with scripted_store(answer) as bad, client_of(bad.endpoint, good_store.endpoint) as client:
            assert await client.write(PATH, b"{}") == b'{"from":"a good one"}'


async def test_a_write_does_not_go_on_when_the_store_does_not_say(good_store: ScriptedStore) -> None:
    for answer in (
        refusing(14, "etcdserver: request timed out"),
        refusing(14, "who knows"),
        refusing(4, "not in time", headers="quorate-retry: unknown\r\n"),
    ):
        async with scripted_store(answer) as bad, client_of(bad.endpoint, good_store.endpoint) as client:
            with pytest.raises(OutcomeUnknown):
                await client.write(PATH, b"{}")
    assert good_store.requests == []


async def test_a_refusal_is_the_answer_and_nobody_else_is_asked(good_store: ScriptedStore) -> None:
    answer = refusing(5, "etcdserver: requested lease not found", 404)
    async with scripted_store(answer) as refuser, client_of(refuser.endpoint, good_store.endpoint) as client:
        for call in (client.read, client.write):
            with pytest.raises(NotFound):
                await call(PATH, b"{}")
    assert good_store.requests == []


async def test_when_no_endpoint_can_each_is_named_with_its_reason(nobody: str) -> None:
    async with (
        scripted_store(refusing(14, "etcdserver: no leader")) as leaderless,
        client_of(nobody, leaderless.endpoint) as client,
    ):
        for call in (client.read, client.write):
            with pytest.raises(NotProposed) as caught:
                await call(PATH, b"{}")
            assert f"{leaderless.endpoint}: etcdserver: no leader" in caught.value.detail
            assert f"{nobody}: " in caught.value.detail


async def test_a_read_that_nobody_answers_ends_in_time() -> None:
    async with scripted_store(silent) as store:
        endpoints = [store.endpoint, store.endpoint.replace("127.0.0.1", "localhost")]
        async with client_of(*endpoints, timeouts=Timeouts(call_s=0.1, read_attempt_s=0.1)) as client:
            with pytest.raises(DeadlineExceeded):
                await client.read(PATH, b"{}")


async def test_the_next_call_does_not_begin_with_an_endpoint_that_was_silent(good_store: ScriptedStore) -> None:
    async with scripted_store(silent) as bad, client_of(bad.endpoint, good_store.endpoint) as client:
        with pytest.raises(OutcomeUnknown):
            await client.write(PATH, b"{}")
        await client.write(PATH, b"{}")
        assert len(bad.requests) == 1


async def test_credentials_are_sent_with_every_request(good_store: ScriptedStore) -> None:
    async with client_of(good_store.endpoint) as client:
        await client.write(PATH, b"{}")
        async with client.stream("/v3/watch", b"{}"):
            pass
    assert [request.headers["authorization"] for request in good_store.requests] == ["Bearer of the test"] * 2


@pytest.mark.parametrize("status", [200, 401])
async def test_what_is_no_answer_of_a_store_is_an_error_and_no_crash(status: int) -> None:
    async def nonsense(request: Request) -> None:
        request.answer("<html>", status)

    async with scripted_store(nonsense) as store, client_of(store.endpoint) as client:
        if status == 401:
            with pytest.raises(Unauthenticated):
                await client.read(PATH, b"{}")
        else:
            assert await client.read(PATH, b"{}") == b'"<html>"'


async def test_an_answer_over_the_limit_is_not_read(monkeypatch: pytest.MonkeyPatch, good_store: ScriptedStore) -> None:
    monkeypatch.setattr(client_module, "ANSWER_BYTES_MAX", 10)
    async with client_of(good_store.endpoint) as client:
        with pytest.raises(AnswerTooLarge):
            await client.read(PATH, b"{}", answer_bytes_max=10)
        with pytest.raises(OutcomeUnknown):
            await client.write(PATH, b"{}")


async def test_an_answer_that_the_store_cannot_send_leaves_a_writes_outcome_open(good_store: ScriptedStore) -> None:
    answer = refusing(8, "grpc: received message larger than max (4778467 vs. 4194304)", 429)
    async with scripted_store(answer) as bad, client_of(bad.endpoint, good_store.endpoint) as client:
        with pytest.raises(OutcomeUnknown):
            await client.write(PATH, b"{}")
        with pytest.raises(AnswerTooLarge):
            await client.read(PATH, b"{}")
    assert good_store.requests == []


async def test_a_stream_that_does_not_begin_leaves_no_connection_while_the_next_one_lives(
    good_store: ScriptedStore,
) -> None:
    is_left = asyncio.Event()

    async def mute(request: Request) -> None:
        await request.until_client_has_gone()
        is_left.set()

    async with (
        scripted_store(mute) as bad,
        client_of(bad.endpoint, good_store.endpoint) as client,
        client.stream("/v3/watch", b"{}") as stream,
        asyncio.timeout(10.0),
    ):
        await is_left.wait()
        assert await stream.chunk() == b'{"from":"a good one"}'


async def test_nothing_is_sent_when_the_time_of_a_call_is_over(good_store: ScriptedStore) -> None:
    clock = ManualClock()

    async def slow(request: Request) -> None:
        clock.advance(SHORT.call_s)
        await refusing(14, "etcdserver: no leader")(request)

    async with scripted_store(slow) as bad, client_of(bad.endpoint, good_store.endpoint, clock=clock) as client:
        with pytest.raises(NotProposed):
            await client.write(PATH, b"{}")
    async with scripted_store(slow) as bad, client_of(bad.endpoint, good_store.endpoint, clock=clock) as client:
        with pytest.raises(DeadlineExceeded):
            await client.read(PATH, b"{}")
    assert good_store.requests == []


async def test_an_endpoint_without_a_leader_is_set_aside_for_longer_each_time() -> None:
    clock = ManualClock()
    async with (
        scripted_store(refusing(14, "etcdserver: no leader")) as leaderless,
        client_of(leaderless.endpoint, clock=clock) as client,
    ):
        for _ in range(3):
            with pytest.raises(NotProposed):
                await client.read(PATH, b"{}")
            clock.advance(10 * SET_ASIDE_S_MIN)
        assert client._order._standings[0].set_aside_s == 4 * SET_ASIDE_S_MIN


async def test_an_answer_of_another_cluster_is_never_taken(good_store: ScriptedStore) -> None:
    async with client_of(good_store.endpoint) as client:
        for header in (Header("", "1", 5), Header("7", "1", 5), Header("", "1", 6), Header("7", "2", 7)):
            client.note(header)
        with pytest.raises(InvariantViolation):
            client.note(Header("8", "1", 9))
        assert client.newest == Header("7", "2", 7)


async def test_calls_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CALLS_WAITING_MAX", 3)
    async with scripted_store(silent) as store, client_of(store.endpoint) as client:
        results: list[QuorateError | bytes | BaseException] = await asyncio.gather(
            *(client.read(PATH, b"{}") for _ in range(5)), return_exceptions=True
        )
    assert [type(result) for result in results[3:]] == [TooManyRequests, TooManyRequests]
    assert not any(isinstance(result, TooManyRequests) for result in results[:3])


async def test_a_caller_that_gives_up_leaves_nothing_behind(good_store: ScriptedStore) -> None:
    asked = asyncio.Event()

    async def slow(request: Request) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with scripted_store(slow) as store, client_of(store.endpoint, good_store.endpoint) as client:
        async with asyncio.TaskGroup() as group:
            call = group.create_task(client.write(PATH, b"{}"))
            await asked.wait()
            call.cancel()
        assert call.cancelled()
    assert good_store.requests == []
