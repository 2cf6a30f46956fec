"""Registrars on two nodes, raced on the real engine: whatever they do to the same names, no lease is left behind, and
nothing is alive without its record."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from quorate_core.errors import Conflict, NotFound
from quorate_core.tasks import TaskOwner
from quorate_registry.catalog import Catalog
from quorate_registry.feed import CatalogFeed
from quorate_registry.model import InstanceName, KeyKind, decode_record, key_of
from quorate_registry.registrar import Registrar
from quorate_registry.watch import Subscriptions
from quorate_sdk.wire import InstancePatch, InstanceSpec
from quorate_store.port import Store
from support.registry_server import WAIT_S_MAX
from support.store_local import local_store

NAMES = [InstanceName("default", "s", f"i-{number}") for number in range(3)]
RACERS, STEPS = 12, 6


class Race:
    """Two registrars, and what they may do next by chance."""

    def __init__(self, store: Store, catalog: Catalog, registrars: Sequence[Registrar], chance: random.Random) -> None:
        self._store = store
        self._catalog = catalog
        self._registrars = registrars
        self._chance = chance
        self._steps: list[Callable[[Registrar, InstanceName], Coroutine[Any, Any, object]]] = [
            self._register, self._register, self._patch, self._deregister, self._end, self._renew,
        ]  # fmt: skip

    async def run(self) -> None:
        for _ in range(STEPS):
            step, name = self._chance.choice(self._steps), self._chance.choice(NAMES)
            try:
                await step(self._chance.choice(self._registrars), name)
            except (NotFound, Conflict):
                continue

    async def _register(self, registrar: Registrar, name: InstanceName) -> object:
        chance = self._chance
        spec = InstanceSpec(
            host="127.0.0.1", port=chance.randint(1, 9), ttl_s=chance.choice([10, 20]), ephemeral=chance.random() < 0.8
        )
        return await registrar.register(name, spec)

    async def _patch(self, registrar: Registrar, name: InstanceName) -> object:
        return await registrar.patch(name, InstancePatch(weight=self._chance.randint(0, 9)))

    async def _deregister(self, registrar: Registrar, name: InstanceName) -> object:
        return await registrar.deregister(name)

    async def _end(self, registrar: Registrar, name: InstanceName) -> None:
        """It is reaped, if it has lapsed; else it may lapse."""
        entry = self._catalog.entry(name)
        if entry is not None:
            await registrar.reap(name, entry.record_revision, "lapsed", "node-1")
            if entry.lease and self._chance.random() < 0.5:
                await self._store.lease_revoke(entry.lease)

    async def _renew(self, registrar: Registrar, name: InstanceName) -> object:
        return await registrar.renew([name])


@pytest.mark.parametrize("seed", range(12))
async def test_no_lease_is_left_behind_and_nobody_is_alive_without_a_record(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with local_store(tmp_path) as store, TaskOwner("test") as tasks:
        catalog = Catalog()
        feed = CatalogFeed(store, catalog, Subscriptions(), tasks)
        feed.start()
        granted: list[int] = []
        grant = store.lease_grant

        async def noted(*arguments: Any) -> Any:
            status = await grant(*arguments)
            granted.append(status.lease)
            return status

        monkeypatch.setattr(store, "lease_grant", noted)
        async with asyncio.timeout(WAIT_S_MAX):
            await feed.loaded.wait()
            race = Race(store, catalog, [Registrar(store, catalog, feed, tasks) for _ in range(2)], random.Random(seed))
            await asyncio.gather(*(race.run() for _ in range(RACERS)))
        attached = set()
        for name in NAMES:
            records = (await store.range(key_of(KeyKind.RECORD, name))).kvs
            for alive in (await store.range(key_of(KeyKind.ALIVE, name))).kvs:
                assert [decode_record(kv.value).ephemeral for kv in records] == [True]
                attached.add(alive.lease)
        ended = set(await store.lease_keepalive(granted))
        assert set(granted) - ended == attached
