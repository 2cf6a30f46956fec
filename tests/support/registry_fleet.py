"""Several nodes without Raft: the real apps on one store in the test's own process, each with its own copy, streams and
HTTP server, that find and ask each other as nodes do."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx
import msgspec
from quorate_config_center import ConfigCenterApp
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import Clock, SystemClock
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_node.changes import ChangesApi
from quorate_node.fleet import NODES_PREFIX, StoreFleet
from quorate_registry import RegistryApp
from quorate_store.apps import App, AppContext, FleetNode
from quorate_store.port import Store
from support.registry_server import until_ready

OWN_NAME = "127.0.0.1"


@dataclass
class FleetMember:
    """One node. `stop` ends it in good order; its key stays, as that of a node that was killed does for a while."""

    name: str
    store: Store
    clock: Clock = field(default_factory=SystemClock)
    url: str = ""
    registry: RegistryApp = field(default_factory=RegistryApp)
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)
    _failures: list[BaseException] = field(default_factory=list)

    async def start(self) -> None:
        stopping = asyncio.Event()
        listener = open_listener(HostPort("127.0.0.1", 0), "test node")
        self.url = f"http://{bound_address(listener)}"
        api = create_app(Surface(self.name, Protection(frozenset({OWN_NAME})), stopping=stopping))
        await announce(self.store, self.name, self.url)
        enter = self._running.enter_async_context
        fleet = await enter(StoreFleet(self.store, FleetNode(self.name, self.url), api))
        tasks = await enter(TaskOwner(self.name, self._failures.append))
        context = AppContext(self.name, self.store, fleet, tasks, self.clock, stopping)
        config_center = ConfigCenterApp()
        apps: list[App] = [self.registry, config_center]
        for app in apps:
            await app.start(context)
            app.mount(api)
        ChangesApi(self.store, [self.registry, config_center], self.clock).mount(api)
        server = HttpServer(api, listener, stopping, tasks)
        self._running.push_async_callback(server.stop)
        await server.start()
        await until_ready(apps)

    async def stop(self) -> None:
        await self._running.aclose()
        if self._failures:
            raise self._failures[0]


async def announce(store: Store, name: str, url: str) -> None:
    """As a node that is up does."""
    await store.put(NODES_PREFIX + name.encode(), msgspec.json.encode({"url": url}))


@asynccontextmanager
async def registry_fleet(store: Store, names: Sequence[str]) -> AsyncIterator[list[FleetMember]]:
    members = [FleetMember(name, store) for name in names]
    async with AsyncExitStack() as running:
        for member in members:
            await member.start()
            running.push_async_callback(member.stop)
        yield members


@asynccontextmanager
async def client_of(member: FleetMember) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=member.url, trust_env=False, timeout=30.0) as client:
        yield client
