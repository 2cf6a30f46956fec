"""Mixed load on a real gateway while its configuration changes each second; every answer is judged by what was asked.

    PYTHONPATH=tests python -m support.gateway_load --minutes 30

Clients send GET, POST (with a length and in chunks), pipelined requests, streams and WebSocket messages, and meet a
rate limit. Meanwhile routes are published again with other numbers, and an instance comes and goes. Nothing is killed,
so that there is no excuse: an answer that is not the one to its request, a status that was not due, and a connection
that ends by itself are all wrong. When the load has ended, the gateway must hold what it held before.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools
import uvloop
from quorate_core.tasks import TaskOwner
from support.echo_service import described, pattern
from support.gateway_stack import EchoProcess, GatewayStack, echo_processes, gateway_stack
from support.node_processes import until
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

SWAP_INTERVAL_S = 1.0
CALL_S_MAX = 20.0
WRONG_SHOWN_MAX = 20
LIMITED_PER_S = 50
STEADY, VISITOR = ("echo-1", "echo-2"), "echo-3"
"""Instances that stay, and the one that comes and goes."""
ROUTED = len(STEADY) + 1
"""Endpoints at the end, with that of the WebSocket service: each may keep its pool, without a connection in it."""
MEMORY_GROWTH_BYTES_MAX = 24 * 1024**2
"""Of resident memory over all of the load after its first part: the allocator's own ups and downs stay below it."""
WORKERS = ("get", "get", "get", "post", "chunked", "pipelined", "stream", "bytes", "limited", "websocket", "leaver")


def routes(number: int) -> str:
    """The document, with what does not decide who answers changed by `number`."""
    timeout_ms, burst = 10_000 + number % 1_000, LIMITED_PER_S
    policies = ("least_request", "round_robin", "peak_ewma", "weighted_round_robin", "random")
    balance = policies[number % len(policies)]
    return f"""\
routes:
  - {{name: echo, match: {{path_prefix: /echo}}, service: echo, timeout_ms: {timeout_ms},
     balance: {{policy: {balance}}}}}
  - {{name: limited, match: {{path_prefix: /limited}}, service: echo, timeout_ms: {timeout_ms},
     rate_limit: {{requests_per_second: {LIMITED_PER_S}, burst: {burst}}}}}
  - {{name: chat, match: {{path_prefix: /chat}}, service: chat, websocket: true, timeout_ms: {timeout_ms}}}
  - {{name: spare-{number % 7}, match: {{path_prefix: /spare}}, service: echo}}
"""


class Answer:
    """One response as llhttp reads it."""

    def __init__(self, *, to_head: bool = False) -> None:
        self.body = b""
        self.is_whole = False
        self.status = 0
        self._to_head = to_head
        self._parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_whole = True


class Connection:
    """A kept connection with at most one batch of requests under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, request: bytes) -> Answer:
        self._writer.write(request)
        answer = Answer()
        while not answer.is_whole:
            answer.feed(await self._more())
        return answer

    async def ask_all(self, requests: Sequence[bytes]) -> list[Answer]:
        """Pipelined. llhttp tells where one response ends and the next begins."""
        self._writer.write(b"".join(requests))
        found: list[Answer] = []
        collector = _Pipelined(found)
        while len(found) < len(requests):
            collector.feed(await self._more())
        return found

    async def begin(self, request: bytes) -> None:
        """Ask, and read only the first bytes of the answer."""
        self._writer.write(request)
        await self._more()

    def reset(self) -> None:
        self._writer.transport.abort()

    async def _more(self) -> bytes:
        data = await self._reader.read(262_144)
        if not data:
            raise EOFError("the gateway closed the connection")
        return data


class _Pipelined:
    """One llhttp parser for a row of responses on one connection."""

    def __init__(self, found: list[Answer]) -> None:
        self._found, self._body = found, b""
        self._parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        answer = Answer()
        answer.body, answer.status, answer.is_whole = self._body, self._parser.get_status_code(), True
        self._found.append(answer)
        self._body = b""


@dataclass
class Judgement:
    """What the load saw. `wrong` must be empty."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    limited: int = 0
    swaps: int = 0
    memory_bytes: list[int] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)

    def note(self, text: str) -> None:
        if len(self.wrong) < WRONG_SHOWN_MAX:
            self.wrong.append(text)

    @property
    def memory_growth_bytes(self) -> int:
        """Of the highest of the second half over the highest of the first."""
        half = len(self.memory_bytes) // 2
        return max(self.memory_bytes[half:]) - max(self.memory_bytes[:half] or self.memory_bytes)

    def __str__(self) -> str:
        done = ", ".join(f"{count:,} {name}" for name, count in sorted(self.done.items()))
        first, last = self.memory_bytes[0] // 1024**2, self.memory_bytes[-1] // 1024**2
        return (
            f"{done}; {self.limited:,} limited; {self.swaps} swaps; memory {first} to {last} MiB;"
            f" held before {self.before}, after {self.after}"
        )


class MixedLoad:
    """Clients of the gateway at `port`. Each runs until it is told to stop; an answer that is wrong ends it."""

    def __init__(self, port: int, seed: int, judgement: Judgement) -> None:
        self._port, self._random, self._judgement = port, random.Random(seed), judgement
        self._stopping = asyncio.Event()
        self._number = 0

    async def run(self, kind: str) -> None:
        """One client of that kind."""
        try:
            if kind == "websocket":
                await self._websocket_client()
                return
            act: Callable[[Connection], Awaitable[None]] = getattr(self, f"_{kind}")
            while not self._stopping.is_set():
                await self._on_one_connection(kind, act)
        except Exception as error:  # whatever it is, it is the load's finding
            self._judgement.note(f"{kind}: {type(error).__name__}: {error}")

    def stop(self) -> None:
        self._stopping.set()

    async def _on_one_connection(self, kind: str, act: Callable[[Connection], Awaitable[None]]) -> None:
        """Some requests on a connection, which then goes."""
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self._port))
        try:
            for _ in range(1 if kind == "leaver" else self._random.randrange(1, 200)):
                if self._stopping.is_set():
                    return
                async with asyncio.timeout(CALL_S_MAX):
                    await act(connection)
                self._judgement.done[kind] += 1
        finally:
            connection.reset()

    def _target(self, route: str = "echo", rest: str = "") -> str:
        self._number += 1
        return f"/{route}/{self._number}{rest}"

    def _check(self, answer: Answer, method: str, target: str, body: bytes = b"") -> None:
        if answer.status != 200:
            raise AssertionError(f"{method} {target}: {answer.status} {answer.body[:300]!r}")
        said = json.loads(answer.body)
        by = said.pop("by")
        if said != described(method, target, body) or by not in (*STEADY, VISITOR):
            raise AssertionError(f"{method} {target} was answered with {answer.body[:300]!r}")

    async def _get(self, connection: Connection) -> None:
        target = self._target()
        self._check(await connection.ask(_get(target)), "GET", target)

    async def _post(self, connection: Connection) -> None:
        target, body = self._target(), self._random.randbytes(self._random.choice((0, 10, 1_000, 100_000)))
        head = f"POST {target} HTTP/1.1\r\nHost: shop\r\nContent-Length: {len(body)}\r\n\r\n"
        self._check(await connection.ask(head.encode() + body), "POST", target, body)

    async def _chunked(self, connection: Connection) -> None:
        target = self._target()
        pieces = [self._random.randbytes(self._random.randrange(1, 5_000)) for _ in range(self._random.randrange(1, 9))]
        head = f"PUT {target} HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        self._check(await connection.ask(head.encode() + chunks + b"0\r\n\r\n"), "PUT", target, b"".join(pieces))

    async def _pipelined(self, connection: Connection) -> None:
        targets = [self._target() for _ in range(self._random.randrange(2, 20))]
        answers = await connection.ask_all([_get(target) for target in targets])
        for answer, target in zip(answers, targets, strict=True):
            self._check(answer, "GET", target)

    async def _stream(self, connection: Connection) -> None:
        lines = self._random.randrange(1, 200)
        answer = await connection.ask(_get(self._target(rest=f"/stream/{lines}")))
        if answer.body != b"".join(b"line %d\n" % number for number in range(lines)):
            raise AssertionError(f"a stream of {lines} lines came as {answer.body[:300]!r}")

    async def _bytes(self, connection: Connection) -> None:
        count = self._random.choice((1, 65_536, 1_000_000))
        answer = await connection.ask(_get(self._target(rest=f"/bytes/{count}")))
        if answer.body != pattern(count):
            raise AssertionError(f"{count} bytes came as {len(answer.body)} others")

    async def _limited(self, connection: Connection) -> None:
        target = self._target("limited")
        answer = await connection.ask(_get(target))
        if answer.status == 429 and json.loads(answer.body)["rule"] == "rate-limited":
            self._judgement.limited += 1
            return
        self._check(answer, "GET", target)

    async def _leaver(self, connection: Connection) -> None:
        """Goes away in the middle of an answer."""
        await connection.begin(_get(self._target(rest="/bytes/5000000")))

    async def _websocket_client(self) -> None:
        while not self._stopping.is_set():
            async with connect(f"ws://127.0.0.1:{self._port}/chat", max_size=None, proxy=None) as chat:
                for _ in range(100):
                    message = self._random.randbytes(self._random.choice((0, 10, 100_000)))
                    async with asyncio.timeout(CALL_S_MAX):
                        await chat.send(message)
                        answer = await chat.recv()
                    if answer != message:
                        raise AssertionError(f"a message of {len(message)} bytes came back as another")
                    self._judgement.done["websocket"] += 1
                    if self._stopping.is_set():
                        return


def _get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: shop\r\n\r\n".encode()


async def chat(connection: ServerConnection) -> None:
    """Says each message back."""
    async for message in connection:
        await connection.send(message)


async def run_mixed_load(
    stack: GatewayStack, services: dict[str, EchoProcess], duration_s: float, seed: int
) -> Judgement:
    """So many seconds of it. `services` are the instances named by STEADY and VISITOR, up already."""
    judgement = Judgement()
    async with AsyncExitStack() as ends:
        room = await ends.enter_async_context(serve(chat, "127.0.0.1", 0, max_size=None, compression=None))
        stack.register("chat", {"chat": room.sockets[0].getsockname()[1]})
        stack.register("echo", {name: services[name].port for name in STEADY})
        stack.publish(routes(0))
        stack.wait_endpoints("echo", STEADY)
        stack.wait_endpoints("chat", ["chat"])
        judgement.before = settled(stack)
        load = MixedLoad(stack.port, seed, judgement)
        tasks = await ends.enter_async_context(TaskOwner("load", lambda error: judgement.note(repr(error))))
        clients = [tasks.start(load.run(kind), f"{kind}-{number}") for number, kind in enumerate(WORKERS)]
        await asyncio.to_thread(_change_configuration, stack, services, duration_s, judgement)
        load.stop()
        await asyncio.gather(*clients)
        judgement.after = await asyncio.to_thread(settled, stack)
    return judgement


def _change_configuration(
    stack: GatewayStack, services: dict[str, EchoProcess], duration_s: float, judgement: Judgement
) -> None:
    """Each second another document, and the visitor comes or goes."""
    ends_s = time.monotonic() + duration_s
    while time.monotonic() < ends_s and not judgement.wrong:
        began_s = time.monotonic()
        judgement.swaps += 1
        stack.publish(routes(judgement.swaps), wait=False)
        if judgement.swaps % 2:
            stack.register("echo", {VISITOR: services[VISITOR].port})
        else:
            stack.deregister("echo", [VISITOR])
        judgement.memory_bytes.append(stack.memory_bytes())
        time.sleep(max(0.0, began_s + SWAP_INTERVAL_S - time.monotonic()))
    stack.publish(routes(0))
    if judgement.swaps % 2:
        stack.deregister("echo", [VISITOR])
    stack.wait_endpoints("echo", STEADY)


def settled(stack: GatewayStack) -> dict[str, int]:
    """What the gateway holds once no request is left and idle connections have been dropped."""

    def is_idle() -> bool:
        return not any(
            stack.metric(f"quorate_gateway_{name}")
            for name in ("requests_active", "connections", "upstream_connections")
        )

    until("nothing is under way", is_idle)
    return stack.counts()


def leaks(judgement: Judgement) -> list[str]:
    """What the gateway holds more of than before the load."""
    found = [
        f"{name}: {judgement.before[name]} before, {count} after"
        for name, count in judgement.after.items()
        if count > max(judgement.before[name], ROUTED if name == "EndpointPool" else 0)
    ]
    if judgement.memory_growth_bytes > MEMORY_GROWTH_BYTES_MAX:
        found.append(f"memory grew by {judgement.memory_growth_bytes / 1024**2:.0f} MiB in the second half")
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="gateway_load", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gateway", default="", help="further flags of the gateway, such as '--workers 2'")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        gateway_stack(Path(folder), *options.gateway.split()) as stack,
        echo_processes(*STEADY, VISITOR) as services,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        judgement = runner.run(run_mixed_load(stack, services, options.minutes * 60, options.seed))
    found = [*judgement.wrong, *leaks(judgement)]
    for line in (str(judgement), *found, "all right" if not found else f"{len(found)} things are wrong"):
        print(line, flush=True)  # noqa: T201 - this is a command, and that is its output
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
