"""Nodes without Raft: the real apps on a store in the test's own process, over ASGI or over HTTP on loopback."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import Clock, SystemClock
from quorate_core.errors import Compacted, NotProposed
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_registry import RegistryApp
from quorate_store.apps import App, AppContext, FleetAnswer, FleetNode
from quorate_store.model import WatchBatch
from quorate_store.port import Store, Watch

WAIT_S_MAX = 10.0
"""Bound of every wait in these tests: far above what any of them needs."""


class LoneFleet:
    """The fleet of a node that is alone and asks nobody."""

    async def nodes(self) -> Sequence[FleetNode]:
        return ()

    async def ask_all(self, path: str, timeout_s: float = 2.0) -> Sequence[FleetAnswer]:
        return ()


@asynccontextmanager
async def running_apps(
    store: Store, apps: Sequence[App], stopping: asyncio.Event, clock: Clock | None = None
) -> AsyncIterator[FastAPI]:
    """`apps` started and mounted, once they are ready. A background failure fails the test."""
    failures: list[BaseException] = []
    surface = Surface("test", Protection(frozenset({"127.0.0.1", "node"})), stopping=stopping)
    api = create_app(surface)
    async with TaskOwner("node", failures.append) as tasks:
        context = AppContext("node-1", store, LoneFleet(), tasks, clock or SystemClock(), stopping)
        for app in apps:
            await app.start(context)
            app.mount(api)
        yield api
        stopping.set()
        for app in apps:
            await app.stop()
    if failures:
        raise failures[0]


async def until_ready(apps: Sequence[App]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while any(app.ready() is not None for app in apps):  # noqa: ASYNC110 - an App says it by a method only
            await asyncio.sleep(0)


@asynccontextmanager
async def asgi_client(store: Store, clock: Clock | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the registry's API on `store`, without a socket. No streams: this transport waits for the end."""
    apps = [RegistryApp()]
    async with running_apps(store, apps, asyncio.Event(), clock) as api:
        await until_ready(apps)
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            yield client


class NodeServer:
    """The apps behind a real HTTP server, which can be stopped and started again on the same port."""

    def __init__(self, store: Store, apps: Sequence[type[App]] = (RegistryApp,)) -> None:
        self._store = store
        self._apps = apps
        self._port = 0
        self._running = AsyncExitStack()
        self.stopping = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        self.stopping = asyncio.Event()
        apps = [app() for app in self._apps]
        api = await self._running.enter_async_context(running_apps(self._store, apps, self.stopping))
        tasks = await self._running.enter_async_context(TaskOwner("http"))
        listener = open_listener(HostPort("127.0.0.1", self._port), "test node")
        self._port = bound_address(listener).port
        server = HttpServer(api, listener, self.stopping, tasks)
        self._running.push_async_callback(server.stop)
        await server.start()
        await until_ready(apps)

    async def stop(self) -> None:
        await self._running.aclose()

    async def __aenter__(self) -> "NodeServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class BreakableStore:
    """A real store behind a link that a test can cut: then every call fails as with no leader, and watches end.

    `history_lost`: the next watch from a revision finds its history compacted.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cut = asyncio.Event()
        self.history_lost = False

    def cut(self) -> None:
        self._cut.set()

    def mend(self) -> None:
        self._cut = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            if self._cut.is_set() and not options.get("serializable"):
                raise NotProposed("the test has cut this store off")
            return await method(*arguments, **options)

        return call

    @asynccontextmanager
    async def watch(self, key: bytes, range_end: bytes = b"", **options: Any) -> AsyncIterator[Watch]:
        if self._cut.is_set():
            raise NotProposed("the test has cut this store off")
        if self.history_lost and options.get("start_revision"):
            self.history_lost = False
            raise Compacted("the test has compacted this history")
        async with self._store.watch(key, range_end, **options) as watch:
            yield _BreakableWatch(watch, self._cut)


class _BreakableWatch:
    def __init__(self, watch: Watch, cut: asyncio.Event) -> None:
        self._watch = watch
        self._cut = cut

    async def request_progress(self) -> None:
        await self._watch.request_progress()

    async def __aiter__(self) -> AsyncIterator[WatchBatch]:
        batches = aiter(self._watch)
        while True:
            async with asyncio.TaskGroup() as group:
                batch = group.create_task(_next(batches))
                cut = group.create_task(self._cut.wait())
                await asyncio.wait({batch, cut}, return_when=asyncio.FIRST_COMPLETED)
                cut.cancel()
                batch.cancel()
            if self._cut.is_set():
                raise NotProposed("the test has cut this watch off")
            yield batch.result()


async def _next(batches: AsyncIterator[WatchBatch]) -> WatchBatch:
    return await anext(batches)
