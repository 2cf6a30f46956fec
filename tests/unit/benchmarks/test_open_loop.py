"""The load at a fixed rate: every request that was due is in the figures, with the time from when it was due."""

import asyncio
import json
from contextlib import suppress

import pytest

from benchmarks.load_figures import PREFIX
from benchmarks.open_loop import latency_marks, percentile, run

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
RATE, SECONDS = 400.0, 0.25
DUE = 100
ENDS_S_MAX = 5.0


class Server:
    """Answers each request, the first of all only after `held_s`; `answer` is what it says."""

    def __init__(self, answer: bytes = ANSWER, held_s: float = 0.0) -> None:
        self.answer, self.held_s, self.asked = answer, held_s, 0
        self._ends: list[asyncio.Event] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hello"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        async with asyncio.timeout(ENDS_S_MAX):
            await asyncio.gather(*(ended.wait() for ended in self._ends))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended = asyncio.Event()
        self._ends.append(ended)
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.asked += 1
                if self.asked == 1 and self.held_s:
                    asyncio.get_running_loop().call_later(self.held_s, writer.write, self.answer)
                else:
                    writer.write(self.answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()


async def figures(server: Server, connections: int) -> dict[str, int]:
    async with server as url:
        line = await run(url, RATE, connections, SECONDS)
    said: dict[str, int] = json.loads(line.removeprefix(PREFIX))
    return said


async def test_every_request_that_was_due_is_sent_and_counted() -> None:
    server = Server()
    said = await figures(server, connections=4)
    assert (said["requests"], server.asked) == (DUE, DUE)
    assert said["duration_us"] >= SECONDS * 1e6


async def test_a_server_that_stops_is_charged_with_all_that_became_due_meanwhile() -> None:
    """One connection, whose first answer comes when half of the time is over: the median waited for it too."""
    said = await figures(Server(held_s=SECONDS), connections=1)
    assert said["requests"] == DUE
    assert said["found_none_free"] >= DUE / 2
    assert said["max_us"] >= SECONDS * 1e6
    assert said["p50_us"] >= SECONDS * 1e6 / 4


async def test_answers_that_are_wrong_are_failures() -> None:
    said = await figures(Server(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"), connections=4)
    assert (said["requests"], said["bad_statuses"]) == (0, DUE)


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(100, 0.5, 50), (100, 0.99, 99), (100, 1.0, 100), (1, 0.5, 1)]
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    count: int, share: float, expected: float
) -> None:
    assert percentile(range(1, count + 1), share) == expected


def test_without_an_answer_there_are_no_latencies() -> None:
    assert latency_marks([]) == (0.0, 0.0, 0.0)
