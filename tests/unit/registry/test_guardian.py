"""The guard key of a service is there while it is protected, by its owner, and is left behind by nobody."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from quorate_core.errors import NotProposed
from quorate_registry.guardian import RESYNC_INTERVAL_S
from quorate_registry.model import InstanceName, KeyKind, key_of
from quorate_registry.ownership import NODES_PREFIX, rendezvous_owner
from quorate_registry.probes import Finding
from quorate_sdk.wire import InstanceSpec, ServiceSettings
from quorate_store.model import Compare, Operation, PutOp
from quorate_store.port import Store
from support.registry_parts import RegistryParts, registry_parts, seen
from support.registry_server import BreakableStore
from support.store_local import local_store

NAMES = [InstanceName("default", "order", f"order-{number}") for number in range(4)]
SERVICE = NAMES[0].of
GUARD = key_of(KeyKind.GUARD, SERVICE)


class RefusingStore(BreakableStore):
    """Takes everything but guard keys, as a leader does that has gone just then."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._real = store
        self.refuses = True
        self.refused = 0

    async def txn(self, compares: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation]) -> Any:
        if self.refuses and any(isinstance(done, PutOp) and done.key == GUARD for done in success):
            self.refused += 1
            raise NotProposed("there is no leader")
        return await self._real.txn(compares, success, failure)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path) as store:
        yield store


async def answering(host: str, port: int) -> Finding:
    """A prober: they live, and only their heartbeats do not come."""
    return Finding.CONNECTED


async def register(node: RegistryParts, *names: InstanceName) -> None:
    for number, name in enumerate(names):
        await node.registrar.register(name, InstanceSpec(host="127.0.0.1", port=number + 1, ttl_s=60))


async def lapse(node: RegistryParts, *names: InstanceName) -> None:
    for name in names:
        await node.lapse(name)


def stale(node: RegistryParts) -> dict[str, bool]:
    """Of those that are shown."""
    found = [entry for name in NAMES if (entry := node.catalog.entry(name)) and node.catalog.is_shown(name)]
    return {entry.name.id: entry.view.stale for entry in found}


async def guarded(node: RegistryParts, is_guarded: bool = True) -> None:
    """Waits, within less than the time in which everything is looked at anew."""
    await seen(lambda: bool(node.catalog.guard_revision(*SERVICE)) == is_guarded, RESYNC_INTERVAL_S / 2)


async def test_after_a_partition_nobody_is_hidden_while_they_come_back_one_by_one(store: Store) -> None:
    async with registry_parts(store, "node-1", prober=answering) as (node,):
        await register(node, *NAMES)
        await lapse(node, *NAMES)
        await guarded(node)
        least: list[int] = []
        node.feed.listeners.append(lambda _: least.append(len(stale(node))))
        for name in NAMES:
            await register(node, name)
        await guarded(node, False)
        assert min(least) == len(NAMES)
        assert stale(node) == dict.fromkeys((name.id for name in NAMES), False)
        assert not (await store.range(GUARD)).kvs


async def test_one_of_many_that_lapses_has_no_guard_key(store: Store) -> None:
    async with registry_parts(store, "node-1", prober=answering) as (node,):
        await register(node, *NAMES)
        await lapse(node, NAMES[0])
        await node.until(lambda: len(stale(node)) == len(NAMES) - 1)
        await lapse(node, *NAMES[1:3])
        await guarded(node)
        assert (await store.range(GUARD)).kvs[0].version == 1
        assert stale(node) == {"order-0": True, "order-1": True, "order-2": True, "order-3": False}


async def test_with_the_last_record_of_a_service_its_guard_key_goes(store: Store) -> None:
    async with registry_parts(store, "node-1", prober=answering) as (node,):
        await register(node, *NAMES)
        await lapse(node, *NAMES)
        await guarded(node)
        for name in NAMES:
            await node.registrar.deregister(name)
        await guarded(node, False)
        assert not (await store.range(GUARD)).kvs


async def test_a_key_that_was_left_behind_is_found_by_who_starts(store: Store) -> None:
    await store.put(GUARD, b"{}")
    async with registry_parts(store, "node-1", prober=answering) as (node,):
        await guarded(node, False)


async def test_a_key_that_a_node_of_another_version_puts_for_nothing_goes_at_once(store: Store) -> None:
    async with registry_parts(store, "node-1", prober=answering) as (node,):
        await register(node, *NAMES)
        await store.put(GUARD, b"what nobody can read")
        await node.feed.barrier()
        await guarded(node, False)


async def test_a_threshold_of_zero_ends_protection_and_takes_the_key_away(store: Store) -> None:
    async with registry_parts(store, "node-1", prober=answering) as (node,):
        await register(node, *NAMES)
        await lapse(node, *NAMES)
        await guarded(node)
        await node.registrar.set_settings(SERVICE, ServiceSettings(protection_threshold=0))
        await guarded(node, False)
        assert stale(node) == {}


async def test_only_the_owner_writes_and_the_next_one_goes_on_when_it_is_gone(store: Store) -> None:
    async with registry_parts(store, "node-1", "node-2", prober=answering) as nodes:
        for node in nodes:
            await node.announce()
        await seen(lambda: all(len(node.ownership.nodes) == 2 for node in nodes))
        owner, other = sorted(nodes, key=lambda node: not node.ownership.owns(*SERVICE))
        await register(owner, *NAMES)
        await lapse(owner, *NAMES)
        await guarded(other)
        assert owner.name.encode() in (await store.range(GUARD)).kvs[0].value
        await store.delete(NODES_PREFIX + owner.name.encode())
        await seen(lambda: other.ownership.owns(*SERVICE) and not owner.ownership.owns(*SERVICE))
        await register(other, NAMES[0], NAMES[1])
        await other.feed.barrier()
        assert stale(other) == {"order-0": False, "order-1": False, "order-2": True, "order-3": True}
        await register(other, *NAMES[2:])
        await guarded(other, False)


async def test_who_does_not_own_a_service_writes_nothing_of_it_until_it_does(store: Store) -> None:
    """Its owner is up, and has not seen it yet."""
    services = [InstanceName("default", f"service-{number}", "one") for number in range(8)]
    owners = {name: rendezvous_owner(["node-1", "node-2"], *name.of) for name in services}
    own, others = (next(name for name in services if owners[name] == node) for node in ("node-1", "node-2"))
    async with registry_parts(store, "node-1", prober=answering) as (node,):
        await node.announce()
        await store.put(NODES_PREFIX + b"node-2", b'{"url":"http://127.0.0.1:1"}')
        await seen(lambda: len(node.ownership.nodes) == 2)
        await register(node, others, own)
        await lapse(node, others, own)
        await seen(lambda: node.catalog.guard_revision(*own.of) > 0)
        assert node.catalog.is_protected(*others.of)
        assert not (await store.range(key_of(KeyKind.GUARD, others.of))).kvs
        await store.delete(NODES_PREFIX + b"node-2")
        await seen(lambda: node.catalog.guard_revision(*others.of) > 0, RESYNC_INTERVAL_S / 2)


async def test_what_two_owners_at_once_write_does_no_harm(store: Store) -> None:
    async with registry_parts(store, "node-1", prober=answering) as (node,):
        await register(node, *NAMES)
        await lapse(node, *NAMES)
        await guarded(node)
        revision = node.catalog.guard_revision(*SERVICE)
        assert not await node.registrar.put_guard(SERVICE, "node node-2")
        assert not await node.registrar.take_guard_away(SERVICE, revision - 1), "decided on an older key"
        assert (await store.range(GUARD)).kvs[0].mod_revision == revision


async def test_what_the_store_did_not_take_is_written_when_it_can(store: Store) -> None:
    """Without any further change, and before everything is looked at anew."""
    refusing = RefusingStore(store)
    async with registry_parts(refusing, "node-1", prober=answering) as (node,):
        await register(node, *NAMES)
        await lapse(node, *NAMES)
        # More often than by what has lapsed: it repeats.
        await seen(lambda: refusing.refused > len(NAMES), RESYNC_INTERVAL_S / 2)
        refusing.refuses = False
        await guarded(node)
