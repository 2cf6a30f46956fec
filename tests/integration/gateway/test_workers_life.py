"""`--workers N` from its start to its end: limits of connections, readiness, drains, and no process left behind."""

import asyncio
import json
import re
import shutil
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import trustme
from quorate_core.errors import SettingsError
from quorate_core.process import Stop
from quorate_core.serving import open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_gateway.settings import GatewaySettings
from quorate_gateway.workers.fleet import Fleet
from quorate_gateway.workers.shared_memory import SharedMemory
from quorate_gateway.workers.shared_table import TABLE_BYTES, SharedTables
from support.gateway_client import TLS_NAME, Client
from support.gateway_stack import GatewayStack, gateway_stack
from support.gateway_upstream import WAIT_S_MAX, Exchange, Upstream
from support.gateway_workers import (
    clients,
    connect,
    first_process,
    is_refused,
    is_running,
    kill,
    own_port,
    owners,
    statuses,
    workers,
)
from support.node_processes import until

WORKERS = ("--workers", "2")
ROUTES = "routes:\n  - {name: orders, match: {path_prefix: /orders}, service: order, timeout_ms: 60000}\n"
DRAIN_S_MAX = 12.0
"""What a drain may take, with room for a machine that has much to do."""
ORPHAN_S_MAX = 15.0
"""The drain of a worker, and its lifeline's patience."""


async def lead(stack: GatewayStack, upstream: Upstream) -> None:
    """Route to it, and to nothing else."""

    def publish() -> None:
        stack.register("order", {"order-1": upstream.port})
        stack.publish(ROUTES)
        stack.wait_endpoints("order", ["order-1"])
        newest = stack.snapshot()["revision"]
        until("all follow", lambda: all(one["revision"] >= newest for one in told(stack)))

    await asyncio.to_thread(publish)


def told(stack: GatewayStack) -> Sequence[dict[str, int]]:
    found: Sequence[dict[str, int]] = stack.admin("workers")["workers"]
    return found


class Gate:
    """Answers requests once it is opened."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()

    def open(self) -> None:
        self._opened.set()

    async def answer(self, exchange: Exchange) -> None:
        await self._opened.wait()
        await exchange.reply()


async def until_replaced(stack: GatewayStack, killed: int) -> None:
    def is_replaced() -> bool:
        return all(one["state"] == "serving" and one["pid"] != killed for one in told(stack))

    await asyncio.to_thread(until, "the worker is replaced", is_replaced)


async def refused(stack: GatewayStack, source: str) -> tuple[int, str]:
    """Status and rule of the answer to one connection more, once nobody counts it any more."""
    client = await connect(stack, source)
    port = own_port(client)
    answer = await client.answer()
    client.reset()
    await asyncio.to_thread(until, "it is closed", lambda: port not in owners(stack))
    return answer.status, str(json.loads(answer.body)["rule"])


async def test_limits_of_connections_hold_over_all_workers_and_after_one_was_killed(tmp_path: Path) -> None:
    """Twelve for all, eight for one address."""
    flags = ("--client-connections-max", "12", "--connections-per-client-max", "8")
    with gateway_stack(tmp_path, *WORKERS, *flags) as stack:
        async with Upstream() as upstream, AsyncExitStack() as ends:
            await lead(stack, upstream)
            found = await ends.enter_async_context(clients(stack, 8))
            assert await statuses(found, "/orders") == [200] * 8
            assert set(owners(stack).values()) == {1, 2}
            assert await refused(stack, "127.0.0.1") == (429, "too-many-connections-of-client")
            others = [await connect(stack, "127.0.0.2") for _ in range(4)]
            for one in others:
                ends.callback(one.reset)
            assert await statuses(others, "/orders") == [200] * 4
            assert await refused(stack, "127.0.0.3") == (503, "too-many-connections")

            has, pid = owners(stack), workers(stack)[1]
            kill(pid)
            await until_replaced(stack, pid)
            kept = [one for one in found if has[own_port(one)] == 2]
            again = await ends.enter_async_context(clients(stack, len(found) - len(kept)))
            assert again
            assert await statuses([*kept, *again], "/orders") == [200] * 8
            assert await refused(stack, "127.0.0.1") == (429, "too-many-connections-of-client")


async def test_sigterm_drains_all_workers_and_leaves_no_process(tmp_path: Path) -> None:
    gate = Gate()
    with gateway_stack(tmp_path, *WORKERS) as stack:
        async with Upstream(gate.answer) as upstream, TaskOwner("asks") as tasks:
            await lead(stack, upstream)
            async with clients(stack, 8) as found:
                assert set(owners(stack).values()) == {1, 2}
                asked = tasks.start(statuses(found, "/orders"), "asked")
                await upstream.until(lambda: len(upstream.requests) == 8)
                pids = [first_process(stack), *workers(stack).values()]
                kill(pids[0], signal.SIGTERM)
                await asyncio.to_thread(until, "nobody listens", lambda: is_refused(stack.port))
                assert all(map(is_running, pids))
                gate.open()
                assert await asked == [200] * 8
                assert stack.process is not None
                assert await asyncio.to_thread(stack.process.wait, DRAIN_S_MAX) == 0
                assert [pid for pid in pids if is_running(pid)] == []


async def test_a_drain_ends_in_its_time_whoever_still_waits(tmp_path: Path) -> None:
    """A worker that is stopped, and requests that are never answered."""
    with gateway_stack(tmp_path, *WORKERS) as stack:
        async with Upstream(Exchange.until_closed) as upstream, TaskOwner("asks") as tasks:
            await lead(stack, upstream)
            async with clients(stack, 4) as found:
                asked = [tasks.start(ask_in_vain(one), "asked") for one in found]
                await upstream.until(lambda: len(upstream.requests) == 4)
                pids = workers(stack)
                kill(pids[1], signal.SIGSTOP)
                began_s = time.monotonic()
                assert await asyncio.to_thread(stack.stop) == 0
                assert time.monotonic() - began_s < DRAIN_S_MAX
                assert [pid for pid in pids.values() if is_running(pid)] == []
                await asyncio.wait(asked)


async def ask_in_vain(client: Client) -> None:
    with suppress(EOFError, ConnectionError, TimeoutError):
        await client.get("/orders")


async def test_kill_9_of_the_first_process_ends_the_workers_which_finish_what_they_have(tmp_path: Path) -> None:
    gate = Gate()
    with gateway_stack(tmp_path, *WORKERS) as stack:
        async with Upstream(gate.answer) as upstream, TaskOwner("asks") as tasks:
            await lead(stack, upstream)
            async with clients(stack, 4) as found:
                asked = tasks.start(statuses(found, "/orders"), "asked")
                await upstream.until(lambda: len(upstream.requests) == 4)
                pids = list(workers(stack).values())
                kill(first_process(stack))
                await asyncio.to_thread(until, "nobody listens", lambda: is_refused(stack.port))
                gate.open()
                assert await asked == [200] * 4
                await asyncio.to_thread(
                    until, "the workers are gone", lambda: not any(map(is_running, pids)), ORPHAN_S_MAX
                )


def test_it_is_ready_only_once_all_workers_serve(tmp_path: Path) -> None:
    """Whatever /readyz is asked: it says no until every worker has said that it serves."""
    with gateway_stack(tmp_path, *WORKERS) as stack:
        stack.publish(ROUTES)
        assert stack.stop() == 0
        before = served(stack)
        looks: list[tuple[int, int]] = []

        def look() -> bool:
            answer = stack.http.get(f"http://127.0.0.1:{stack.admin_port}/readyz")
            looks.append((answer.status_code, served(stack) - before))
            return answer.status_code == 200

        with ThreadPoolExecutor(1) as thread:
            looking = thread.submit(until, "it is ready", look)
            stack.start(*WORKERS)
            looking.result(3 * WAIT_S_MAX)
        assert looks[-1] == (200, 2)
        assert len(looks) > 1, "it was asked before it was ready too"


async def test_whoever_comes_as_soon_as_a_worker_listens_is_routed(tmp_path: Path) -> None:
    with gateway_stack(tmp_path, *WORKERS) as stack:
        async with Upstream() as upstream, TaskOwner("starts") as tasks:
            await lead(stack, upstream)
            assert await asyncio.to_thread(stack.stop) == 0
            shutil.rmtree(stack.folder / "gateway")  # or it would begin with the routes that it had
            starting = tasks.start(asyncio.to_thread(stack.start, *WORKERS), "starts")
            await asyncio.to_thread(until, "a worker listens", lambda: not is_refused(stack.port))
            found = [await connect(stack) for _ in range(24)]
            assert await statuses(found, "/orders") == [200] * 24
            for client in found:
                client.reset()
            await starting


def served(stack: GatewayStack) -> int:
    """How many times a worker has served, by what the first process says."""
    return len(re.findall(r"worker_serves .*pid=", stack.log))


# A worker that cannot be.


def write_certificate(authority: trustme.CA, folder: Path) -> tuple[Path, Path]:
    issued = authority.issue_cert(TLS_NAME)
    certificate, key = folder / "gateway.pem", folder / "gateway.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


async def test_settings_that_a_worker_cannot_use_end_the_start_with_what_it_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first process has found them right: the file is another one by now."""
    certificate, key = write_certificate(trustme.CA(), tmp_path)
    certificate.write_text("no certificate\n")
    settings = GatewaySettings(
        name="gateway", data_dir=tmp_path, endpoints=("http://127.0.0.1:9",), workers=2,
        tls_certificate_file=certificate, tls_key_file=key,
    )  # fmt: skip
    memory, stop = SharedMemory.create(TABLE_BYTES), Stop()
    fleet = Fleet(
        settings.for_worker(b""), open_listener(HostPort("127.0.0.1", 0), "--listen"), SharedTables(memory), stop
    )
    try:
        async with asyncio.timeout(3 * WAIT_S_MAX):
            await fleet.start()
        assert stop.requested
        assert isinstance(stop.failure, SettingsError)
        assert "cannot work with these settings" in stop.failure.detail
    finally:
        await fleet.drain(WAIT_S_MAX)
        memory.close()
    said = capfd.readouterr().err
    assert f"certificate {certificate} and key {key} cannot be used" in said
    assert "Traceback" not in said


async def test_a_file_that_is_damaged_for_a_while_keeps_a_new_worker_away_and_nobody_else(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = write_certificate(authority, tmp_path)
    good = certificate.read_bytes()
    with gateway_stack(
        tmp_path, *WORKERS, "--tls-certificate-file", str(certificate), "--tls-key-file", str(key)
    ) as stack:
        certificate.write_text("no certificate\n")
        pids = workers(stack)
        kill(pids[1])
        await asyncio.to_thread(
            until, "a new worker has failed", lambda: re.search(r"worker_ended .*status=78 .*worker=1", stack.log)
        )
        assert stack.process is not None
        assert stack.process.poll() is None
        assert workers(stack)[2] == pids[2]
        assert stack.http.get(f"http://127.0.0.1:{stack.admin_port}/readyz").status_code == 200
        certificate.write_bytes(good)
        await until_replaced(stack, pids[1])
