"""Draining with proof, through a real gateway under load: once the call has returned, an instance that is drained gets
no request that a client sends after it."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from quorate_core.tasks import TaskOwner
from quorate_sdk.wire import Drained
from support.gateway_stack import GatewayStack, gateway_stack
from support.gateway_upstream import WAIT_S_MAX, Exchange, Upstream
from support.gateway_workers import connect, kill, workers

CLIENTS = 12
ROUNDS = 8
MORE = 300
"""Answers to requests that were begun after a drain, before it is believed."""
NAMES = ("order-1", "order-2", "order-3")
ROUTES = "routes:\n  - {name: orders, match: {path_prefix: /orders}, service: order, balance: {policy: round_robin}}\n"


@pytest.fixture(scope="module", params=[1, 3], ids=["alone", "three workers"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayStack]:
    folder = tmp_path_factory.mktemp("gateway")
    with gateway_stack(folder, "--workers", str(request.param)) as started:
        started.publish(ROUTES)
        yield started


@dataclass
class Load:
    """Clients that number their requests as they send them; who got the newest one of an instance is noted."""

    stack: GatewayStack
    sent: int = 0
    answered: int = 0
    newest: dict[str, int] = field(default_factory=dict)
    """By instance, the highest number that has come to it."""
    wrong: list[str] = field(default_factory=list)
    _stopping: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, name: str, exchange: Exchange) -> None:
        """As the instance `name`."""
        await exchange.read_body()
        number = int(exchange.request.target.rpartition("/")[2])
        self.newest[name] = max(self.newest.get(name, 0), number)
        await exchange.reply()

    async def until_answered(self, count: int) -> None:
        goal = self.answered + count
        async with asyncio.timeout(3 * WAIT_S_MAX):
            while self.answered < goal:
                assert self.wrong == []
                self._changed.clear()
                await self._changed.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        async with TaskOwner("load", lambda error: self.wrong.append(repr(error))) as tasks:
            running = [tasks.start(self._run(), f"client-{number}") for number in range(CLIENTS)]
            try:
                yield self
            finally:
                self._stopping = True
                async with asyncio.timeout(2 * WAIT_S_MAX):
                    await asyncio.wait(running)

    async def _run(self) -> None:
        client = await connect(self.stack)
        while not self._stopping:
            self.sent += 1
            answer = await client.get(f"/orders/{self.sent}")
            if answer.status != 200:
                self.wrong.append(f"{answer.status} {answer.body!r}")
            self.answered += 1
            self._changed.set()
        client.reset()


@asynccontextmanager
async def loaded(stack: GatewayStack) -> AsyncIterator[Load]:
    """Three instances of `order`, all routed, under load."""
    load = Load(stack)
    upstreams = {name: Upstream(_as(load, name), keeps_requests=False) for name in NAMES}
    for upstream in upstreams.values():
        await upstream.start()
    try:
        ports = {name: upstream.port for name, upstream in upstreams.items()}
        await asyncio.to_thread(stack.register, "order", ports)
        await asyncio.to_thread(stack.wait_endpoints, "order", NAMES)
        async with load.running():
            await load.until_answered(MORE)
            yield load
    finally:
        for upstream in upstreams.values():
            await upstream.stop()
    assert load.wrong == []


def _as(load: Load, name: str) -> Any:
    return lambda exchange: load.take(name, exchange)


def drain(stack: GatewayStack, name: str, wait_s: float) -> Drained:
    path = f"/v1/registry/default/services/order/instances/{name}/drain"
    answer = stack.http.post(stack.node.url + path, params={"wait": wait_s}, timeout=wait_s + WAIT_S_MAX)
    assert answer.status_code == 200, answer.text
    return Drained.model_validate_json(answer.content)


def take_back(stack: GatewayStack, name: str) -> None:
    path = f"/v1/registry/default/services/order/instances/{name}"
    assert stack.http.patch(stack.node.url + path, json={"status": "UP"}).is_success
    stack.wait_endpoints("order", NAMES)


async def test_no_request_that_is_sent_after_the_answer_comes_to_the_instance(stack: GatewayStack) -> None:
    """Round after round, of one instance after the other; and no client is refused meanwhile."""
    async with loaded(stack) as load:
        for number in range(ROUNDS):
            name = NAMES[number % len(NAMES)]
            before = load.newest[name]
            found = await asyncio.to_thread(drain, stack, name, WAIT_S_MAX)
            sent = load.sent
            assert (found.drained, found.acknowledged) == (True, ["gateway/gateway"])
            await load.until_answered(MORE)
            assert load.newest[name] <= sent
            assert load.newest[name] >= before
            await asyncio.to_thread(take_back, stack, name)
            await load.until_answered(MORE)
            assert load.newest[name] > sent, "it gets requests again"


@pytest.mark.parametrize("stack", [3], ids=["three workers"], indirect=True)
async def test_a_worker_that_stands_still_keeps_the_answer_back(stack: GatewayStack) -> None:
    """It may go on by its old snapshot as soon as it goes on."""
    running = list(workers(stack).values())
    async with loaded(stack):
        pass
    kill(running[0], signal.SIGSTOP)
    try:
        found = await asyncio.to_thread(drain, stack, "order-1", 0.7)
        assert (found.drained, [one.subscriber for one in found.pending]) == (False, ["gateway/gateway"])
    finally:
        kill(running[0], signal.SIGCONT)
    found = await asyncio.to_thread(drain, stack, "order-1", WAIT_S_MAX)
    assert (found.drained, found.acknowledged) == (True, ["gateway/gateway"])
    await asyncio.to_thread(take_back, stack, "order-1")
