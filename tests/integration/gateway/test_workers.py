"""`--workers N` as processes: one port, one set of limits and counters, and nobody's end is another's.

What a worker has of its own is known from outside: by the kernel, which says whose connection is whose.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from quorate_core.tasks import TaskOwner
from support.gateway_stack import GatewayStack, gateway_stack
from support.gateway_upstream import Exchange, Upstream
from support.gateway_workers import (
    Steady,
    change_all_the_time,
    clients,
    first_process,
    is_running,
    kill,
    own_port,
    owners,
    private_bytes,
    shared_files,
    statuses,
    workers,
)
from support.node_processes import until

WORKERS = 3
PRIVATE_BYTES_MAX = 96 * 1024**2
"""Of one worker that serves: some 60 MB are what its program takes."""
SWAPS = 5
CHANGES_PER_S = 100
ORPHAN_S_MAX = 12.0
"""The drain of a worker, and its lifeline's patience."""
REQUESTS = "quorate_gateway_requests_total"
ORDERS = "  - {name: orders, match: {path_prefix: /orders}, service: order}\n"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayStack]:
    with gateway_stack(tmp_path_factory.mktemp("gateway"), "--workers", str(WORKERS)) as started:
        yield started


@asynccontextmanager
async def serving(stack: GatewayStack, more: str = "", upstream: Upstream | None = None) -> AsyncIterator[Upstream]:
    """An upstream that is the only instance of `order`, routed by ORDERS and `more`."""
    async with upstream or Upstream(keeps_requests=False) as started:
        await asyncio.to_thread(stack.register, "order", {"order-1": started.port})
        await asyncio.to_thread(publish, stack, more)
        await asyncio.to_thread(stack.wait_endpoints, "order", ["order-1"])
        await until_all_follow(stack)
        yield started


def publish(stack: GatewayStack, more: str = "") -> None:
    stack.publish(f"routes:\n{ORDERS}{more}")


async def until_all_follow(stack: GatewayStack) -> None:
    """Until every worker serves by what the first process has."""

    def follow() -> bool:
        newest = stack.snapshot()["revision"]
        return all(one["state"] == "serving" and one["revision"] >= newest for one in told(stack))

    await asyncio.to_thread(until, "all workers follow", follow)


def told(stack: GatewayStack) -> list[dict[str, Any]]:
    """What the admin API says of each worker, by number."""
    return list(stack.admin("workers")["workers"])


async def until_replaced(stack: GatewayStack, killed: int) -> None:
    def is_replaced() -> bool:
        return all(one["state"] == "serving" and one["pid"] != killed for one in told(stack))

    await asyncio.to_thread(until, "the worker is replaced", is_replaced)


async def metric(stack: GatewayStack, name: str) -> float:
    return await asyncio.to_thread(stack.metric, name)


# One port, one set of counters.


async def test_all_serve_one_port_and_are_counted_as_one(stack: GatewayStack) -> None:
    async with serving(stack), clients(stack, 60) as found:
        before = await metric(stack, REQUESTS)
        assert await statuses(found, "/orders") == [200] * 60
        assert await metric(stack, REQUESTS) == before + 60
        assert await metric(stack, "quorate_gateway_connections") == 60
        by_worker = [owner for port, owner in owners(stack).items() if port in {own_port(one) for one in found}]
        assert len(by_worker) == 60
        spread = [by_worker.count(number) for number in range(1, WORKERS + 1)]
        assert max(spread) - min(spread) <= 10, spread
        assert {one["number"]: one["pid"] for one in told(stack)} == workers(stack)
        assert [one["connections"] for one in told(stack)] == spread


async def test_a_worker_inherits_nothing_but_the_port_the_memory_and_the_lifeline(stack: GatewayStack) -> None:
    """Neither the admin port, nor a connection to the control plane, nor what another worker is told."""
    ours = first_process(stack)
    from_outside = shared_files(ours, os.getpid()) | {str(stack.log_file)}
    pids = list(workers(stack).values())
    inherited = [shared_files(ours, pid) - from_outside for pid in pids]
    kinds = sorted(name.partition("[")[0].partition(" ")[0] for name in inherited[0])
    assert kinds == ["/memfd:quorate-gateway", "pipe:", "socket:"]
    assert inherited == [inherited[0]] * WORKERS
    assert [shared_files(pids[0], pid) - from_outside for pid in pids[1:]] == inherited[1:]


async def test_what_a_worker_takes_is_its_program_and_no_more(stack: GatewayStack) -> None:
    async with serving(stack):
        taken = [private_bytes(pid) for pid in workers(stack).values()]
    assert max(taken) < PRIVATE_BYTES_MAX, [f"{size / 1024**2:.0f} MiB" for size in taken]


# Limits that hold for all together.

WINDOW_S = 3_600.0
BY_COUNT = {
    "token bucket": ("{requests_per_second: 0.01, burst: 50, key: route}", 50),
    "fixed window": ("{algorithm: fixed_window, requests: 50, window_ms: 3600000, key: route}", 50),
    "sliding window": ("{algorithm: sliding_window, requests: 50, window_ms: 3600000, key: route}", 50),
    "leaky bucket": (
        "{algorithm: leaky_bucket, requests_per_second: 0.01, queue: 0, queue_wait_ms: 1000, key: route}",
        1,
    ),
}


@pytest.mark.parametrize("name", BY_COUNT)
async def test_a_limit_admits_through_all_workers_exactly_what_it_would_through_one(
    stack: GatewayStack, name: str
) -> None:
    """Clients of all workers ask at once, as fast as they can, for one key."""
    limit, admitted_max = BY_COUNT[name]
    route = name.replace(" ", "-")
    rule = f"  - {{name: {route}, match: {{path_prefix: /{route}}}, service: order, rate_limit: {limit}}}\n"
    async with serving(stack, rule), clients(stack, 30) as found:
        assert {owners(stack)[own_port(one)] for one in found} == set(workers(stack))
        began_s = time.monotonic()
        answers = [status for _ in range(10) for status in await statuses(found, f"/{route}")]
        ended_s = time.monotonic()
        assert set(answers) <= {200, 429}
        # Where the clock has come to another window meanwhile, both count.
        windows = 1 + int(ended_s // WINDOW_S) - int(began_s // WINDOW_S) if name == "fixed window" else 1
        assert admitted_max <= answers.count(200) <= admitted_max * windows
        text = await metric(stack, "quorate_gateway_rate_limit_total")
        assert text == len(answers)


async def test_requests_leave_a_leaky_bucket_one_by_one_whichever_workers_they_wait_in(stack: GatewayStack) -> None:
    interval_s, queue = 0.02, 20
    arrived: list[float] = []

    async def note(exchange: Exchange) -> None:
        arrived.append(time.monotonic())
        await exchange.reply()

    limit = "{algorithm: leaky_bucket, requests_per_second: 50, queue: 20, queue_wait_ms: 5000, key: route}"
    rule = f"  - {{name: drips, match: {{path_prefix: /drips}}, service: order, rate_limit: {limit}}}\n"
    async with serving(stack, rule, Upstream(note, keeps_requests=False)), clients(stack, 60) as found:
        began_s = time.monotonic()
        answers = await statuses(found, "/drips")
        took_s = time.monotonic() - began_s
    assert 1 + queue <= answers.count(200) <= 1 + queue + took_s / interval_s
    assert answers.count(200) + answers.count(429) == 60
    # A constant outflow: never more than one ahead of it, give or take how late an event loop may notice one.
    assert arrived[-1] - arrived[0] >= (len(arrived) - 2) * interval_s


# A worker's end is its own.


async def test_kill_9_of_a_worker_under_load_loses_only_what_was_on_its_connections(stack: GatewayStack) -> None:
    async with serving(stack), Steady(stack, 24).running() as load:
        has = owners(stack)
        victim, pid = next(iter(workers(stack).items()))
        its = {port for port, owner in has.items() if owner == victim}
        assert 0 < len(its) < len(has)
        counted = [await metric(stack, REQUESTS)]
        kill(pid)
        for _ in range(5):
            await load.until_answered(100)
            counted.append(await metric(stack, REQUESTS))
        await until_replaced(stack, pid)
        counted.append(await metric(stack, REQUESTS))
        await load.until_answered(200)
    assert set(load.lost) <= its
    assert load.wrong == []
    assert counted == sorted(counted), "a counter went back"
    assert stack.metric("quorate_gateway_worker_restarts_total") >= 1


async def test_what_was_counted_is_counted_still_when_the_worker_is_gone(stack: GatewayStack) -> None:
    async with serving(stack), clients(stack, 30) as found:
        await statuses(found, "/orders")
        before = {name: await metric(stack, name) for name in (REQUESTS, "quorate_gateway_connections_accepted_total")}
        pid = workers(stack)[2]
        kill(pid)
        await until_replaced(stack, pid)
        assert {name: await metric(stack, name) for name in before} == before


async def test_a_forced_breaker_holds_in_all_workers_and_in_those_that_come_later(stack: GatewayStack) -> None:
    def force(how: str | None) -> None:
        url = f"http://127.0.0.1:{stack.admin_port}/v1/gateway/breaker"
        stack.http.put(url, params={"route": "guarded"}, json={"forced": how}).raise_for_status()

    rule = "  - {name: guarded, match: {path_prefix: /guarded}, service: order, circuit_breaker: {}}\n"
    async with serving(stack, rule):
        await asyncio.to_thread(force, "open")
        await until_each_answers(stack, "/guarded", 503)
        pid = workers(stack)[1]
        kill(pid)
        await until_replaced(stack, pid)
        async with clients(stack, 30) as found:
            assert {owners(stack)[own_port(one)] for one in found} == set(workers(stack))
            assert await statuses(found, "/guarded") == [503] * 30
        await asyncio.to_thread(publish, stack, rule + ORDERS.replace("orders", "others"))  # an update beside it
        async with clients(stack, 30) as found:
            assert await statuses(found, "/guarded") == [503] * 30
        await asyncio.to_thread(force, None)
        await until_each_answers(stack, "/guarded", 200)


async def until_each_answers(stack: GatewayStack, path: str, status: int) -> None:
    """Of every worker: an order to all of them is on its way for a moment."""
    async with clients(stack, 30) as found, asyncio.timeout(10):
        assert {owners(stack)[own_port(one)] for one in found} == set(workers(stack))
        while set(await statuses(found, path)) != {status}:
            pass


async def test_a_worker_that_is_stopped_is_noticed_and_others_take_what_comes(stack: GatewayStack) -> None:
    async with serving(stack), Steady(stack, 12).running() as load:
        has = owners(stack)
        victim, pid = next(iter(workers(stack).items()))
        kill(pid, signal.SIGSTOP)
        try:
            async with clients(stack, 40) as found:  # its ends are made by the kernel: that alone says nothing
                assert await statuses(found, "/orders") == [200] * 40
            told_so = partial(is_told, stack, victim, "silent")
            await asyncio.to_thread(until, "the silent worker is noticed", told_so)
            assert said(stack, "worker_silent", pid)
            async with clients(stack, 40) as found:
                assert await statuses(found, "/orders") == [200] * 40
            await until_replaced(stack, pid)  # it is killed in the end: its clients would wait for ever
        finally:
            if is_running(pid):
                kill(pid, signal.SIGCONT)
        await load.until_answered(100)
    assert set(load.lost) == {port for port, owner in has.items() if owner == victim}
    assert load.wrong == []


def is_told(stack: GatewayStack, number: int, state: str) -> bool:
    return any((one["number"], one["state"]) == (number, state) for one in told(stack))


def said(stack: GatewayStack, what: str, pid: int) -> bool:
    return any(what in line and f"pid={pid} " in f"{line} " for line in stack.log.splitlines())


async def test_a_worker_that_goes_on_in_time_is_not_replaced(stack: GatewayStack) -> None:
    async with serving(stack), clients(stack, 30) as found:
        pid = workers(stack)[3]
        kill(pid, signal.SIGSTOP)
        await asyncio.to_thread(until, "the silent worker is noticed", partial(said, stack, "worker_silent", pid))
        kill(pid, signal.SIGCONT)
        await asyncio.to_thread(until, "the worker is back", partial(said, stack, "worker_back", pid))
        assert await statuses(found, "/orders") == [200] * 30
        assert workers(stack)[3] == pid


async def test_sigterm_to_one_worker_lets_it_finish_what_it_has(stack: GatewayStack) -> None:
    gate = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.reply()

    upstream = Upstream(wait)
    async with TaskOwner("asks") as tasks, serving(stack, upstream=upstream), clients(stack, 12) as found:
        asked = tasks.start(statuses(found, "/orders"), "asked")
        await upstream.until(lambda: len(upstream.requests) == 12)
        pid = workers(stack)[1]
        kill(pid, signal.SIGTERM)
        await asyncio.to_thread(until, "it accepts no more", lambda: not is_listening(pid, stack.port))
        gate.set()
        assert await asked == [200] * 12
        await until_replaced(stack, pid)


def is_listening(pid: int, port: int) -> bool:
    """Whether that process has the listening socket of this port."""
    sockets = {
        line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].partition(":")[2], 16) == port
    }  # fmt: skip
    try:
        links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return any(f"socket:[{inode}]" in links for inode in sockets)


# Changes under load.


async def test_no_change_of_configuration_drops_a_request_and_all_workers_keep_up(stack: GatewayStack) -> None:
    """Routes each second, a hundred changes of the registry a second, and SIGHUP."""
    async with serving(stack), Steady(stack, 8).running() as load:
        changed = await asyncio.to_thread(change_all_the_time, stack, ORDERS, SWAPS, CHANGES_PER_S)
        await until_all_follow(stack)
        await load.until_answered(100)
    assert changed >= SWAPS * CHANGES_PER_S // 2, "the control plane itself was too slow to show anything"
    assert load.lost == []
    assert load.wrong == []
