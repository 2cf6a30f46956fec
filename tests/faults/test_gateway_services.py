"""Services that die, stop, talk nonsense and come and go behind a real gateway, and what its clients see of that."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from quorate_core.tasks import TaskOwner
from support.echo_service import described
from support.gateway_client import Answer, Client
from support.gateway_load import settled
from support.gateway_stack import EchoProcess, GatewayStack, echo_processes, gateway_stack
from support.gateway_upstream import WAIT_S_MAX, Exchange, Upstream

ROUTES = """\
routes:
  - {name: echo, match: {path_prefix: /echo}, service: echo, timeout_ms: 5000, retry: {per_try_timeout_ms: 300},
     circuit_breaker: off, outlier_ejection: {consecutive_failures: 3, ejection_ms: 1000}}
  - {name: bad, match: {path_prefix: /bad}, service: bad, timeout_ms: 400, retry: {attempts: 0},
     circuit_breaker: off, outlier_ejection: off}
  - {name: mixed, match: {path_prefix: /mixed}, service: mixed, timeout_ms: 800, retry: {per_try_timeout_ms: 300},
     circuit_breaker: off, outlier_ejection: {consecutive_failures: 3, ejection_ms: 60000}}
  - {name: guarded, match: {path_prefix: /guarded}, service: bad, timeout_ms: 400, retry: {attempts: 0},
     circuit_breaker: {calls_min: 4, open_ms: 60000}, outlier_ejection: off}
"""
CLIENTS = 4
NAMES = ("echo-1", "echo-2")
MANY = 100


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayStack]:
    with gateway_stack(tmp_path_factory.mktemp("gateway")) as started:
        started.publish(ROUTES)
        started.fresh = started.counts()
        yield started
        assert "Traceback" not in started.log
        assert started.stop() == 0


@pytest.fixture
def services(stack: GatewayStack) -> Iterator[dict[str, EchoProcess]]:
    with echo_processes(*NAMES) as started:
        stack.register("echo", {name: one.port for name, one in started.items()})
        stack.wait_endpoints("echo", NAMES)
        yield started
        stack.deregister("echo", NAMES)
        stack.wait_endpoints("echo", [])


@asynccontextmanager
async def connected(stack: GatewayStack) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", stack.port, limit=1 << 20))
    try:
        yield client
    finally:
        client.reset()
        with suppress(ConnectionError):
            await client.writer.wait_closed()


class Callers:
    """Clients that send GETs, one after the other, until they are told to stop. `wrong` has what was not an echo."""

    def __init__(self, stack: GatewayStack) -> None:
        self._stack = stack
        self._stopping = False
        self._progressed = asyncio.Event()
        self.by: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def call(self, number: int) -> None:
        async with connected(self._stack) as client:
            sent = 0
            while not self._stopping:
                sent += 1
                target = f"/echo/{number}/{sent}"
                try:
                    self._judge(await client.get(target), target)
                except (EOFError, ConnectionError, TimeoutError) as error:
                    self.wrong.append(f"{target}: {error!r}")
                    self._stopping = True
                self._progressed.set()

    def _judge(self, answer: Answer, target: str) -> None:
        if answer.status != 200:
            self.wrong.append(f"{target}: {answer.status} {answer.body!r}")
            return
        said = json.loads(answer.body)
        self.by[said.pop("by")] += 1
        if said != described("GET", target, b""):
            self.wrong.append(f"{target} was answered with {said}")

    async def until_served(self, more: int, name: str | None = None) -> None:
        """Until so many further calls were answered, by that instance if one is named."""

        def served() -> int:
            return self.by.total() if name is None else self.by[name]

        target = served() + more
        async with asyncio.timeout(WAIT_S_MAX):
            while served() < target and not self.wrong:
                self._progressed.clear()
                await self._progressed.wait()

    def stop(self) -> None:
        self._stopping = True


@asynccontextmanager
async def calling(stack: GatewayStack) -> AsyncIterator[Callers]:
    """CLIENTS of them while the block runs; not one answer may be wrong."""
    callers, failures = Callers(stack), list[BaseException]()
    async with TaskOwner("callers", failures.append) as tasks:
        running = [tasks.start(callers.call(number), f"caller-{number}") for number in range(CLIENTS)]
        try:
            await callers.until_served(MANY)
            yield callers
        finally:
            callers.stop()
            await asyncio.gather(*running)
    assert failures == []
    assert callers.wrong == []


async def test_an_instance_that_is_killed_costs_no_request(
    stack: GatewayStack, services: dict[str, EchoProcess]
) -> None:
    """Requests that may be repeated are; and when it is back, on the same address, it has its share again."""
    async with calling(stack) as callers:
        services["echo-1"].kill()
        await callers.until_served(MANY, "echo-2")
        services["echo-1"].start()
        await callers.until_served(10, "echo-1")


async def test_an_instance_that_is_paused_costs_no_request(
    stack: GatewayStack, services: dict[str, EchoProcess]
) -> None:
    """It takes connections and says nothing: each try has its time, and after some of them it is passed over."""
    async with calling(stack) as callers:
        services["echo-1"].signal(signal.SIGSTOP)
        await callers.until_served(MANY, "echo-2")
        services["echo-1"].signal(signal.SIGCONT)
        await callers.until_served(10, "echo-1")


async def test_instances_that_come_and_go_cost_no_request(
    stack: GatewayStack, services: dict[str, EchoProcess]
) -> None:
    async with calling(stack) as callers:
        for _ in range(15):
            await asyncio.to_thread(stack.deregister, "echo", ["echo-1"])
            await asyncio.to_thread(stack.wait_endpoints, "echo", ["echo-2"])
            await asyncio.to_thread(stack.register, "echo", {"echo-1": services["echo-1"].port})
            await asyncio.to_thread(stack.wait_endpoints, "echo", NAMES)
        await callers.until_served(MANY)


async def garbage(exchange: Exchange) -> None:
    await exchange.send(b"\x00\xff garbage \r\n\r\n" * 10)


async def half_a_head(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Le")
    exchange.close()


async def half_an_answer(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    exchange.close()


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def hang_up(exchange: Exchange) -> None:
    exchange.close()


async def never(exchange: Exchange) -> None:
    await exchange.until_closed()


async def slow_head(exchange: Exchange) -> None:
    """It begins, and never ends."""
    await exchange.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    await exchange.until_closed()


FAULTS = {
    "garbage": (garbage, 502),
    "half a head": (half_a_head, 502),
    "a reset": (reset, 502),
    "a hang-up": (hang_up, 502),
    "no answer": (never, 504),
    "a slow head": (slow_head, 504),
}
"""What each does, and the status when there is no other instance to ask."""


@asynccontextmanager
async def registered(stack: GatewayStack, service: str, **upstreams: Upstream) -> AsyncIterator[None]:
    stack.register(service, {name: one.port for name, one in upstreams.items()})
    stack.wait_endpoints(service, sorted(upstreams))
    try:
        yield
    finally:
        stack.deregister(service, list(upstreams))
        stack.wait_endpoints(service, [])


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_service_that_fails_alone_is_told_of_as_what_it_is(stack: GatewayStack, fault: str) -> None:
    """A problem with the rule, in time; and the client's connection goes on."""
    handler, status = FAULTS[fault]
    async with Upstream(handler) as upstream, registered(stack, "bad", bad=upstream), connected(stack) as client:
        for _ in range(3):
            answer = await client.get("/bad")
            assert answer.status == status, answer.body
            said = json.loads(answer.body)
            assert (said["route"], answer.field("content-type")) == ("bad", "application/problem+json")
            assert said["rule"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_beside_a_healthy_instance_it_is_hardly_seen(stack: GatewayStack, fault: str) -> None:
    """What may be repeated is; after three failures in a row the bad one is passed over, and nothing is seen at all."""
    handler, _ = FAULTS[fault]
    async with (
        Upstream(handler) as bad, Upstream() as good, registered(stack, "mixed", bad=bad, good=good),
        connected(stack) as client,
    ):  # fmt: skip
        seen = Counter([(await client.get("/mixed")).status for _ in range(30)])
        assert set(seen) <= {200, 502, 504}
        assert seen[502] + seen[504] <= 3  # of an answer that has begun, nothing is repeated
        assert [(await client.get("/mixed")).status for _ in range(20)] == [200] * 20
        assert ejected(stack) == {"bad"}


def ejected(stack: GatewayStack) -> set[str]:
    return {one["instance"] for one in stack.admin("endpoints") if one["ejected_s"] > 0}


async def test_half_an_answer_never_looks_whole(stack: GatewayStack) -> None:
    async with Upstream(half_an_answer) as upstream, registered(stack, "bad", bad=upstream):
        for _ in range(3):
            async with connected(stack) as client:
                with pytest.raises((EOFError, ConnectionError)):
                    await client.get("/bad")


async def test_the_breaker_opens_on_a_service_that_hangs_and_the_operator_can_close_it(stack: GatewayStack) -> None:
    """Then nobody waits any more: refusals come at once and say for how long."""
    async with Upstream(never) as upstream, registered(stack, "bad", bad=upstream), connected(stack) as client:
        while (answer := await client.get("/guarded")).status == 504:
            assert len(upstream.requests) <= 4
        said = json.loads(answer.body)
        assert (answer.status, said["rule"]) == (503, "circuit-open")
        assert int(answer.field("retry-after") or 0) > 0
        assert len(upstream.requests) == 4
        assert stack.admin("policies", route="guarded")["circuit_breaker"]["state"] == "open"
        forced = stack.http.put(
            f"http://127.0.0.1:{stack.admin_port}/v1/gateway/breaker", params={"route": "guarded"},
            json={"forced": "closed"},
        )  # fmt: skip
        assert forced.json()["circuit_breaker"]["state"] == "forced-closed"
        assert (await client.get("/guarded")).status == 504


def test_nothing_is_left_behind(stack: GatewayStack) -> None:
    """After all of it: no exchange, no connection, no tunnel, and not one task more than before."""
    assert settled(stack) == stack.fresh
