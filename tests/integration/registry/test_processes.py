"""Python processes as they are: servers with workers, reloads, kill -9, SIGSTOP, blocked event loops."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from quorate_sdk import ControlPlane, Discovery
from quorate_sdk.wire import Instance
from quorate_store.port import Store
from support.node_processes import until
from support.registry_server import NodeServer
from support.served_processes import (
    ASGI_SERVICE,
    ASKING_SERVICE,
    PLAIN_PROGRAM,
    WSGI_SERVICE,
    ServedProcess,
    is_running,
    serving,
)
from support.store_local import local_store

WAIT_S_MAX = 30.0
HEARTBEATS = 9
"""Three of them make a time to live."""
UVICORN = ("uvicorn", "service:app", "--port", "{port}", "--log-level", "warning")
GUNICORN = ("gunicorn", "service:app", "--bind", "127.0.0.1:{port}", "--graceful-timeout", "10")
WORKERS = ("--workers", "4")
UVICORN_WORKER = ("--worker-class", "uvicorn.workers.UvicornWorker")

needs_gunicorn = pytest.mark.skipif(find_spec("gunicorn") is None, reason="gunicorn is not installed")


class Observer:
    """What discovery has shown of `greeter`, change by change, and how many heartbeats have come."""

    def __init__(self, discovery: Discovery, store: "CountingStore") -> None:
        self._discovery = discovery
        self._store = store
        self._changed = asyncio.Event()
        self.shown: list[Instance | None] = []
        self._unsubscribe = discovery.subscribe(self._on_change)
        store.on_heartbeat = self._changed.set

    def _on_change(self, services: set[str]) -> None:
        if "greeter" in services:
            found = self._discovery.instances("greeter")
            assert len(found) <= 1, f"one listening socket is one instance: {found}"
            self.shown.append(found[0] if found else None)
        self._changed.set()

    @property
    def now(self) -> Instance | None:
        return next(iter(self._discovery.instances("greeter")), None)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for it, looking again at each change and at each heartbeat."""
        async with asyncio.timeout(WAIT_S_MAX):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def until_up(self) -> Instance:
        await self.until(lambda: self.now is not None and self.now.takes_traffic and not self.now.stale)
        assert self.now is not None
        return self.now

    async def until_heartbeats(self, count: int = HEARTBEATS) -> None:
        wanted = self._store.heartbeats + count
        await self.until(lambda: self._store.heartbeats >= wanted)

    def was_ever_missing(self) -> bool:
        return any(shown is None or shown.stale or not shown.takes_traffic for shown in self.shown)


class CountingStore:
    """A store that says when leases are renewed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.heartbeats = 0
        self.on_heartbeat: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def lease_keepalive(self, leases: list[int]) -> object:
        ended = await self._store.lease_keepalive(leases)
        if not ended:
            self.heartbeats += 1
            self.on_heartbeat()
        return ended


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[CountingStore]:
    async with local_store(tmp_path / "store") as store:
        yield CountingStore(store)


@pytest.fixture
async def node(store: CountingStore) -> AsyncIterator[NodeServer]:
    async with NodeServer(store) as node:
        yield node


@pytest.fixture
async def observer(node: NodeServer, store: CountingStore) -> AsyncIterator[Observer]:
    async with ControlPlane([node.url]) as control_plane:
        discovery = Discovery(control_plane)
        await discovery.start()
        yield Observer(discovery, store)
        await discovery.stop()


@asynccontextmanager
async def served(
    tmp_path: Path, node: NodeServer, *arguments: str, service: str = ASGI_SERVICE
) -> AsyncIterator[ServedProcess]:
    with serving(tmp_path / "service", service, arguments, {"QUORATE_ENDPOINTS": node.url}) as process:
        yield process


async def until_elsewhere(what: str, holds: Callable[[], bool]) -> None:
    """Wait for what other processes do, of which nobody tells this one."""
    await asyncio.to_thread(until, what, holds, WAIT_S_MAX)


async def until_members(process: ServedProcess, count: int) -> None:
    await until_elsewhere(f"{count} workers have joined", lambda: len(process.workers) == count)


async def never_refused_while_shown(observer: Observer, url: str) -> int:
    """Ask again and again, on a connection of its own each time, for as long as discovery shows the instance. Returns
    how often; fails when a request that began while it was shown is refused, or left without an answer."""
    asked = 0
    async with asyncio.timeout(WAIT_S_MAX):
        while (shown := observer.now) is not None and shown.takes_traffic:
            try:
                async with httpx.AsyncClient(trust_env=False) as client:
                    await client.get(url + "/pid")
            except httpx.TransportError as error:
                raise AssertionError(f"answered {asked} times, and then {error!r}") from error
            asked += 1
    return asked


SERVERS = [
    pytest.param((*UVICORN, *WORKERS), ASGI_SERVICE, id="uvicorn"),
    pytest.param((*GUNICORN, *WORKERS, *UVICORN_WORKER), ASGI_SERVICE, id="gunicorn-uvicorn", marks=needs_gunicorn),
    pytest.param((*GUNICORN, *WORKERS, "--worker-class", "asgi", "--asgi-loop", "asyncio"), ASGI_SERVICE,
                 id="gunicorn-asgi", marks=needs_gunicorn),
    pytest.param((*GUNICORN, *WORKERS), WSGI_SERVICE, id="gunicorn-sync", marks=needs_gunicorn),
    pytest.param((*GUNICORN, *WORKERS, "--preload"), WSGI_SERVICE, id="gunicorn-preload", marks=needs_gunicorn),
    pytest.param((*GUNICORN, *WORKERS, "--threads", "2"), WSGI_SERVICE, id="gunicorn-threads", marks=needs_gunicorn),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "service"), SERVERS)
async def test_workers_are_one_instance_and_another_one_keeps_it_when_its_keeper_is_killed(
    tmp_path: Path, node: NodeServer, observer: Observer, arguments: tuple[str, ...], service: str
) -> None:
    async with served(tmp_path, node, *arguments, service=service) as process:
        await observer.until_up()
        await until_members(process, 4)
        keeper = process.keeper
        os.kill(keeper, signal.SIGKILL)
        await until_elsewhere("it has ended", lambda: not is_running(keeper))
        await observer.until_heartbeats()
        assert process.keeper != keeper
        assert not observer.was_ever_missing()


@pytest.mark.parametrize(("arguments", "service"), SERVERS)
async def test_nobody_is_sent_to_a_server_that_was_told_to_stop(
    tmp_path: Path, node: NodeServer, observer: Observer, arguments: tuple[str, ...], service: str
) -> None:
    """Out of discovery first, and then the listener goes."""
    async with served(tmp_path, node, *arguments, service=service) as process:
        await observer.until_up()
        await until_members(process, 4)
        async with httpx.AsyncClient(trust_env=False) as client:
            for _ in range(20):
                assert (await client.get(process.url + "/pid")).status_code == 200
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(never_refused_while_shown(observer, process.url))
            process.tell(signal.SIGTERM)
            await observer.until(lambda: observer.now is None)
        assert asking.result() > 0
        await asyncio.to_thread(process.exit_status)


async def test_a_keeper_that_is_stopped_longer_than_the_time_to_live_is_stood_in_for(
    tmp_path: Path, node: NodeServer, observer: Observer
) -> None:
    patience = ("--timeout-worker-healthcheck", "60")  # of uvicorn's master, which kills what does not answer it
    async with served(tmp_path, node, *UVICORN, *WORKERS, *patience) as process:
        await observer.until_up()
        await until_members(process, 4)
        keeper = process.keeper
        os.kill(keeper, signal.SIGSTOP)
        try:
            await observer.until_heartbeats()
            assert process.keeper == keeper, "it holds the lock all the time"
        finally:
            os.kill(keeper, signal.SIGCONT)
        await observer.until_heartbeats()
        assert not observer.was_ever_missing()


@needs_gunicorn
@pytest.mark.parametrize("workers", ["1", "4"])
@pytest.mark.parametrize(
    ("service", "worker"), [(ASGI_SERVICE, UVICORN_WORKER), (WSGI_SERVICE, ())], ids=["uvicorn", "sync"]
)
async def test_a_reload_of_gunicorn_registers_what_is_new_and_deregisters_nothing(
    tmp_path: Path, node: NodeServer, observer: Observer, service: str, worker: tuple[str, ...], workers: str
) -> None:
    async with served(tmp_path, node, *GUNICORN, "--workers", workers, *worker, service=service) as process:
        await observer.until_up()
        await until_members(process, int(workers))
        (tmp_path / "service" / "service.py").write_text(service.replace('"1"', '"22"'))
        process.tell(signal.SIGHUP)
        await observer.until(lambda: observer.now is not None and observer.now.version == "22")
        await observer.until_heartbeats()
        assert not observer.was_ever_missing()


async def test_a_reload_of_uvicorns_workers_registers_what_is_new_and_deregisters_nothing(
    tmp_path: Path, node: NodeServer, observer: Observer
) -> None:
    async with served(tmp_path, node, *UVICORN, *WORKERS) as process:
        await observer.until_up()
        await until_members(process, 4)
        (tmp_path / "service" / "service.py").write_text(ASGI_SERVICE.replace('"1"', '"22"'))
        process.tell(signal.SIGHUP)
        await observer.until(lambda: observer.now is not None and observer.now.version == "22")
        await observer.until_heartbeats()
        assert not observer.was_ever_missing()


async def test_the_reloader_of_uvicorn_deregisters_nothing(
    tmp_path: Path, node: NodeServer, observer: Observer
) -> None:
    """From one process to the next nobody renews, so the time to live is one in which a process starts."""
    service = ASGI_SERVICE.replace("ttl_s=2", "ttl_s=30")
    async with served(tmp_path, node, *UVICORN, "--reload", service=service) as process:
        await observer.until_up()
        keeper = process.keeper
        (tmp_path / "service" / "service.py").write_text(service.replace('"1"', '"22"'))
        await observer.until(lambda: observer.now is not None and observer.now.version == "22")
        assert process.keeper != keeper
        assert not observer.was_ever_missing()


async def test_a_blocked_event_loop_costs_no_registration(tmp_path: Path, node: NodeServer, observer: Observer) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with served(tmp_path, node, *UVICORN) as process, httpx.AsyncClient(trust_env=False, timeout=60) as client:
        await observer.until_up()
        async with asyncio.TaskGroup() as group:
            blocking = group.create_task(client.get(process.url + "/block", params={"until": str(fifo)}))
            await observer.until_heartbeats()
            assert not blocking.done()
            await asyncio.to_thread(fifo.write_text, "done")
        assert blocking.result().json() == "done"
        assert not observer.was_ever_missing()


async def test_requests_that_are_there_are_finished_after_the_instance_has_left(
    tmp_path: Path, node: NodeServer, observer: Observer
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with served(tmp_path, node, *UVICORN) as process, httpx.AsyncClient(trust_env=False, timeout=60) as client:
        await observer.until_up()
        async with asyncio.TaskGroup() as group:
            held = group.create_task(client.get(process.url + "/hold", params={"until": str(fifo)}))
            writing = await asyncio.to_thread(fifo.open, "w")  # returns once the request reads
            process.tell(signal.SIGTERM)
            await observer.until(lambda: observer.now is None)
            assert not held.done()
            writing.write("done")
            writing.close()
        assert held.result().json() == "done"
        await asyncio.to_thread(process.exit_status)


async def test_a_process_alone_that_was_stopped_longer_than_the_time_to_live_is_back_when_it_goes_on(
    tmp_path: Path, node: NodeServer, observer: Observer
) -> None:
    """Nobody can renew for it; the same goes for a C function that keeps the interpreter's lock for so long."""
    async with served(tmp_path, node, *UVICORN) as process:
        first = await observer.until_up()
        process.tell(signal.SIGSTOP)
        await observer.until(lambda: observer.now is None or observer.now.stale)
        process.tell(signal.SIGCONT)
        again = await observer.until_up()
        assert (again.id, again.stale) == (first.id, False)


async def test_a_plain_program_leaves_the_registry_before_it_stops_listening(
    tmp_path: Path, node: NodeServer, observer: Observer
) -> None:
    async with served(tmp_path, node, "service", service=PLAIN_PROGRAM) as process:
        await observer.until_up()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(never_refused_while_shown(observer, process.url))
            process.tell(signal.SIGTERM)
            await observer.until(lambda: observer.now is None)
        assert asking.result() > 0
        assert await asyncio.to_thread(process.exit_status) == 0


async def test_a_service_that_starts_while_the_control_plane_is_down_finds_its_peers(
    tmp_path: Path, node: NodeServer, observer: Observer
) -> None:
    """From the copy that a process killed before it has left on disk."""
    cache = tmp_path / "cache"
    environment = {"QUORATE_ENDPOINTS": node.url, "QUORATE_CACHE_DIR": str(cache)}
    async with served(tmp_path, node, *UVICORN) as peer, httpx.AsyncClient(trust_env=False) as client:
        await observer.until_up()
        with serving(tmp_path / "asking", ASKING_SERVICE, UVICORN, environment) as asking:
            await until_elsewhere("it listens", asking.is_listening)
            assert (await client.get(asking.url + "/ask")).json() in peer.workers
            copy = cache / "discovery.json"
            await until_elsewhere("it is on disk", lambda: copy.exists() and b"greeter-1" in copy.read_bytes())
        await node.stop()
        with serving(tmp_path / "asking-again", ASKING_SERVICE, UVICORN, environment) as asking:
            await until_elsewhere("it listens", asking.is_listening)
            assert (await client.get(asking.url + "/ask")).json() in peer.workers
