"""One app on a real store in the test's own process, behind the surface that a node gives it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import Clock, SystemClock
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_node.fleet import StoreFleet
from quorate_store.apps import App, AppContext, FleetNode
from quorate_store.port import Store

START_S_MAX = 10.0
LOOPBACK = HostPort.parse("127.0.0.1:0")


@asynccontextmanager
async def mounted_app(app: App, store: Store, clock: Clock | None = None) -> AsyncIterator[FastAPI]:
    """`app`, started on `store` and ready, on a surface of its own. A background failure fails the test."""
    failures: list[BaseException] = []
    surface = Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None), ready=app.ready)
    api = create_app(surface)
    own = FleetNode("local", "http://127.0.0.1")
    async with StoreFleet(store, own, api) as fleet, TaskOwner("test-app", failures.append) as tasks:
        await app.start(AppContext("local", store, fleet, tasks, clock or SystemClock(), surface.stopping))
        app.mount(api)
        async with asyncio.timeout(START_S_MAX):
            while app.ready() is not None:  # noqa: ASYNC110 - an app says by `ready` alone that it has loaded
                await asyncio.sleep(0)
        yield api
        surface.stopping.set()
        await app.stop()
    if failures:
        raise failures[0]


def client_of(api: FastAPI) -> httpx.AsyncClient:
    """A client that calls `api` without a network; it gets answers whole, so it is not for event streams."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://127.0.0.1")


@asynccontextmanager
async def served(api: FastAPI) -> AsyncIterator[str]:
    """`api` on a free port of loopback, by the server that nodes use; yields its URL."""
    listener = open_listener(LOOPBACK, "test")
    surface: Surface = api.state.surface
    async with TaskOwner("test-server") as tasks:
        server = HttpServer(api, listener, surface.stopping, tasks)
        await server.start()
        yield f"http://{bound_address(listener)}"
        await server.stop()
