"""Event streams: comments while there is nothing to say, and an end for clients that take nothing."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from quorate_core.http_protocol import ABORT_EXTENSION
from quorate_core.sse import KEEPALIVE, EventStream

WAIT_S_MAX = 10.0
SOON_S = 0.02
LATE_S = 60.0
EVENT = b"data: {}\n\n"


class Client:
    """What an ASGI server is to the stream. `takes`: while it is not set, whatever is sent waits."""

    def __init__(self) -> None:
        self.takes = asyncio.Event()
        self.takes.set()
        self.is_aborted = False
        self.chunks: list[bytes] = []
        self.has_ended = False
        self._changed = asyncio.Event()
        self.scope: dict[str, Any] = {"extensions": {ABORT_EXTENSION: {"abort": self._abort}}}

    def _abort(self) -> None:
        self.is_aborted = True
        self.takes.set()

    async def send(self, message: Any) -> None:
        await self.takes.wait()
        if message["type"] == "http.response.body" and not self.is_aborted:
            self.chunks.append(message["body"])
            self.has_ended = not message["more_body"]
        self._changed.set()

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    async def until_sent(self, *chunks: bytes) -> None:
        while self.chunks[: len(chunks)] != list(chunks):
            self._changed.clear()
            await self._changed.wait()


async def one_then_nothing() -> AsyncGenerator[bytes, None]:
    yield EVENT
    await asyncio.Event().wait()


async def test_a_stream_that_has_nothing_to_say_says_so_again_and_again() -> None:
    client, stopping = Client(), asyncio.Event()
    stream = EventStream(one_then_nothing(), stopping, keepalive_s=SOON_S)
    async with asyncio.timeout(WAIT_S_MAX), asyncio.TaskGroup() as group:
        group.create_task(stream(client.scope, client.receive, client.send))  # type: ignore[arg-type]
        await client.until_sent(KEEPALIVE, EVENT, KEEPALIVE, KEEPALIVE)
        stopping.set()
    assert client.has_ended
    assert not client.is_aborted


async def test_a_stream_that_speaks_says_nothing_in_between() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        for _ in range(1_000):
            yield EVENT
            await asyncio.sleep(0)

    client = Client()
    stream = EventStream(events(), asyncio.Event(), keepalive_s=LATE_S)
    async with asyncio.timeout(WAIT_S_MAX):
        await stream(client.scope, client.receive, client.send)  # type: ignore[arg-type]
    assert client.chunks == [KEEPALIVE, *[EVENT] * 1_000, b""]


@pytest.mark.parametrize("stuck", ["an event", "a comment"])
async def test_a_client_that_takes_nothing_more_is_cut_off(stuck: str) -> None:
    client, said, go_on = Client(), asyncio.Event(), asyncio.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        said.set()
        await go_on.wait()
        yield EVENT
        await asyncio.Event().wait()

    is_comment = stuck == "a comment"
    keepalive_s = SOON_S if is_comment else LATE_S
    stream = EventStream(events(), asyncio.Event(), stall_s=SOON_S, keepalive_s=keepalive_s)
    async with asyncio.timeout(WAIT_S_MAX), asyncio.TaskGroup() as group:
        group.create_task(stream(client.scope, client.receive, client.send))  # type: ignore[arg-type]
        await said.wait()
        client.takes.clear()
        if not is_comment:
            go_on.set()
    assert client.is_aborted
    assert EVENT not in client.chunks


async def test_an_error_of_the_events_is_told_to_whoever_runs_the_stream() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        yield EVENT
        raise ZeroDivisionError

    client = Client()
    with pytest.raises(ExceptionGroup) as raised:
        await EventStream(events(), asyncio.Event())(client.scope, client.receive, client.send)  # type: ignore[arg-type]
    assert raised.group_contains(ZeroDivisionError)
