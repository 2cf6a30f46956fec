"""The parts of a registry on a real store in the test's own process, several nodes of them on one store."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from quorate_core.clock import SystemClock
from quorate_core.tasks import TaskOwner
from quorate_registry.catalog import Catalog
from quorate_registry.checks.runner import Asker, Checks
from quorate_registry.feed import CatalogFeed
from quorate_registry.guardian import Guardian
from quorate_registry.model import Entry, InstanceName, KeyKind, Note, decode_note, key_of
from quorate_registry.ownership import NODES_PREFIX, Ownership
from quorate_registry.reaper import Prober, Reaper
from quorate_registry.registrar import Registrar
from quorate_registry.watch import Subscriptions
from quorate_store.port import Store
from support.registry_server import WAIT_S_MAX


class RegistryParts:
    """One node's, started by `registry_parts`. It is announced by `announce`; until some node is, each owns all."""

    def __init__(self, name: str, store: Store, tasks: TaskOwner, prober: Prober | None, asker: Asker | None) -> None:
        self.name = name
        self.store = store
        self.catalog = Catalog()
        self.feed = CatalogFeed(store, self.catalog, Subscriptions(), tasks)
        self.registrar = Registrar(store, self.catalog, self.feed, tasks)
        self.ownership = Ownership(store, name, tasks)
        common = (name, self.catalog, self.feed, self.registrar, self.ownership, tasks, SystemClock())
        self.reaper = Reaper(*common, prober)
        self.guardian = Guardian(*common)
        self.checks = Checks(*common, asker)
        self._changed = asyncio.Event()
        self.feed.listeners.append(lambda _: self._changed.set())

    def start(self) -> None:
        self.feed.start()
        self.ownership.start()
        self.checks.start()
        self.reaper.start()
        self.guardian.start()

    async def announce(self, store: Store | None = None) -> None:
        await (store or self.store).put(NODES_PREFIX + self.name.encode(), b'{"url":"http://127.0.0.1:1"}')

    async def until(self, holds: Callable[[], bool], within_s: float = WAIT_S_MAX) -> None:
        """Looks again at each change that the feed tells."""
        async with asyncio.timeout(within_s):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def entry(self, name: InstanceName) -> Entry:
        await self.feed.barrier()
        entry = self.catalog.entry(name)
        assert entry is not None
        return entry

    async def lapse(self, name: InstanceName) -> None:
        """End the instance's lease, as the store does when heartbeats do not come."""
        await self.store.lease_revoke((await self.entry(name)).lease)

    async def note(self, name: InstanceName) -> Note:
        """Of the service's last removal."""
        found = await self.store.range(key_of(KeyKind.NOTE, name.of))
        return decode_note(found.kvs[0].value)

    def is_gone(self, name: InstanceName) -> bool:
        return self.catalog.entry(name) is None


@asynccontextmanager
async def registry_parts(
    store: Store, *names: str, prober: Prober | None = None, asker: Asker | None = None
) -> AsyncIterator[list[RegistryParts]]:
    """Started and loaded. A background failure fails the test."""
    failures: list[BaseException] = []
    async with TaskOwner("registry", failures.append) as tasks:
        nodes = [RegistryParts(name, store, tasks, prober, asker) for name in names]
        async with asyncio.timeout(WAIT_S_MAX):
            for node in nodes:
                node.start()
                await node.feed.loaded.wait()
        yield nodes
    assert failures == []


async def seen(holds: Callable[[], bool], within_s: float = WAIT_S_MAX) -> None:
    """Of what a part keeps to itself and tells nobody: looks again and again."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
