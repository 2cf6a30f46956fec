"""The node itself, on the event loop of its thread: store, apps and HTTP server, and what stops and starts them.

The store stays for as long as the node does. `serve` and `withdraw` start and stop all that stands on it, as when a
node is started again: apps load anew, on the same port, and clients find what they left.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import ManualClock
from quorate_core.errors import NotFound
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_node.apps import find_apps
from quorate_node.fleet import NODES_PREFIX, StoreFleet
from quorate_store.apps import AppContext, FleetNode
from quorate_store.model import prefix_end
from quorate_store.raft_engine import RaftStore
from quorate_store.state import StateMachine

from quorate_testing.faults import FaultyStore, SlowApp
from quorate_testing.local_log import LocalLog

NAME = "test-node"
MAP_BYTES = 1024**3
"""Address space, and not memory: the store's files are as large as what is in them."""
START_S_MAX = 15.0
LEASE_PROBE_S = 0.01
REGISTRY_PREFIX = b"quorate/registry"


class ServedNode:
    """Enter it, on its loop, with `start`; leave it with `stop`. `on_failure` is told of what breaks inside."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clock = ManualClock()
        self._port = 0
        self._lasting = AsyncExitStack()
        self._serving: AsyncExitStack | None = None
        self.failures: list[BaseException] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        machine = StateMachine(self._folder / "state", map_bytes=MAP_BYTES)
        self._lasting.callback(machine.close)
        tasks = await self._lasting.enter_async_context(TaskOwner("test-store", self.failures.append))
        # NB: the clock that shows whether the loop stood still is one that stands still itself. Else a busy machine
        # would give leases more time than the test's clock does.
        self._store = RaftStore(
            LocalLog(machine, NAME), machine, self._clock, tasks, loop_time_s=ManualClock().monotonic_s
        )
        await self._store.start()
        self._lasting.push_async_callback(self._store.close)
        self._faulty = FaultyStore(self._store)
        await self.serve()

    async def stop(self) -> None:
        await self.withdraw()
        await self._lasting.aclose()

    async def serve(self) -> None:
        if self._serving is not None:
            return
        async with AsyncExitStack() as stack:
            await self._serve(stack)
            self._serving = stack.pop_all()

    async def withdraw(self) -> None:
        """Nobody can connect after it, and streams and connections are closed."""
        if self._serving is not None:
            serving, self._serving = self._serving, None
            await serving.aclose()

    def delay_answers(self, delay_s: float) -> None:
        self._slow.delay_s = delay_s

    def refuse_writes(self, refuses: bool) -> None:
        self._faulty.refuses_writes = refuses

    async def advance(self, seconds: float) -> None:
        """Move the clock on, and wait until the leases that are over by then have ended."""
        self._clock.advance(seconds)
        while await self._has_overdue_lease():  # noqa: ASYNC110 - the store ends them by a clock of its own
            await asyncio.sleep(LEASE_PROBE_S)

    async def end_lease(self, namespace: str, service: str, instance_id: str) -> None:
        """Raises NotFound when the instance is not there, or lives by no lease."""
        ending = f"/{namespace}/{service}/{instance_id}".encode()
        found = await self._store.range(REGISTRY_PREFIX, prefix_end(REGISTRY_PREFIX))
        leases = {kv.lease for kv in found.kvs if kv.lease and kv.key.endswith(ending)}
        if not leases:
            raise NotFound(f"{service}/{instance_id} of {namespace} holds no lease")
        for lease in leases:
            await self._store.lease_revoke(lease)

    async def _has_overdue_lease(self) -> bool:
        for lease in await self._store.lease_list():
            try:
                if (await self._store.lease_time_to_live(lease)).remaining_ttl_s <= 0:
                    return True
            except NotFound:
                continue  # ended meanwhile
        return False

    async def _serve(self, stack: AsyncExitStack) -> None:
        listener = open_listener(HostPort("127.0.0.1", self._port), "the test's node")
        stack.callback(listener.close)
        bound = bound_address(listener)
        self._port = bound.port
        apps = find_apps(None)
        surface = Surface(
            "Quorate node of a test",
            Protection.for_address(bound, bound, None),
            ready=lambda: next((reason for app in apps if (reason := app.ready()) is not None), None),
        )
        api = create_app(surface)
        self._slow = SlowApp(api)
        own = FleetNode(NAME, self.url)
        # No lease: whoever moves the clock on does not mean to take this node from the fleet.
        await self._store.put(NODES_PREFIX + NAME.encode(), f'{{"url":"{self.url}"}}'.encode())
        store = self._faulty.port
        fleet = await stack.enter_async_context(StoreFleet(store, own, api))
        tasks = await stack.enter_async_context(TaskOwner(NAME, self.failures.append))
        context = AppContext(NAME, store, fleet, tasks, self._clock, surface.stopping)
        for app in apps:
            await app.start(context)
            stack.push_async_callback(app.stop)
            app.mount(api)
        server = HttpServer(self._slow, listener, surface.stopping, tasks)
        stack.push_async_callback(server.stop)
        await server.start()
        async with asyncio.timeout(START_S_MAX):
            while surface.ready() is not None:  # noqa: ASYNC110 - an app says by `ready` alone that it has loaded
                await asyncio.sleep(0.001)
