"""The client that measures how long a deregistered instance is still asked: what it counts, and what it fails for.

The gateway and the registry here are one small server: it asks the instances that it has been told of, in turn, and
forgets one some time after its DELETE.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.load_figures import parse_figures
from benchmarks.raw_http import Connection, HttpFailed, request_of
from benchmarks.registry_routing_client import PATH, Run

NEVER_S = 1e9
LAG_S = 0.03


class Routing:
    """`lag_s`: how long after its DELETE an instance is still asked; `answer` replaces what an instance has said."""

    def __init__(self, lag_s: float = 0.0, answer: bytes | None = None) -> None:
        self.ports: dict[str, int] = {}
        self._lag_s = lag_s
        self._answer = answer
        self._turn = 0

    async def reply(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if path == PATH:
            return await self._proxied()
        instance = path.rpartition("/")[2]
        if method == "PUT":
            self.ports[instance] = json.loads(body)["port"]
        elif self._lag_s:
            asyncio.get_running_loop().call_later(min(self._lag_s, 60.0), self.ports.pop, instance, None)
        else:
            del self.ports[instance]
        return 200, b"{}"

    async def _proxied(self) -> tuple[int, bytes]:
        if not self.ports:
            return 503, b"{}"
        self._turn += 1
        url = f"http://127.0.0.1:{list(self.ports.values())[self._turn % len(self.ports)]}{PATH}"
        try:
            connection = await Connection.connect(url)
            try:
                status, answer = await connection.send(request_of(url, b"", "GET"))
            finally:
                connection.close()
        except HttpFailed:
            return 502, b"{}"
        return status, self._answer or answer


@asynccontextmanager
async def served(routing: Routing) -> AsyncIterator[str]:
    running: set[asyncio.Task[Any]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        writers.append(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split("\r\n", 1)[0].split(" ")
                length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0] or 0)
                status, body = await routing.reply(method, path, await reader.readexactly(length))
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    started = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with started:
        yield f"http://127.0.0.1:{started.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*running)


async def test_each_deregistration_has_its_figure_and_every_request_is_answered() -> None:
    async with served(Routing()) as url:
        figures = parse_figures(await Run(url, url).run(0.6))
    assert figures.requests >= 2
    assert figures.failed == 0
    assert figures.extra["requests_meanwhile"] > 0


async def test_the_figure_is_how_long_the_instance_was_asked_after_its_deregistration() -> None:
    async with served(Routing(LAG_S)) as url:
        figures = parse_figures(await Run(url, url).run(0.3))
    assert LAG_S * 1e3 / 2 < figures.p50_ms <= figures.max_ms


async def test_a_gateway_that_goes_on_to_ask_an_instance_that_has_ended_fails_the_run() -> None:
    async with served(Routing(NEVER_S)) as url:
        said = await Run(url, url).run(5.0)
    assert said.startswith("a request was answered with 502")
    assert parse_figures(said).failed >= 1


async def test_an_answer_that_is_nobodys_fails_the_run() -> None:
    async with served(Routing(answer=b'{"by":"somebody"}')) as url:
        said = await Run(url, url).run(5.0)
    assert said.startswith('a request was answered with 200: b\'{"by":"somebody"}\'')
    assert parse_figures(said).failed >= 1
