"""Registration when the store fails midway: no lease is left behind, and nothing is lost."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from quorate_core.errors import Conflict, NotFound, NotProposed, OutcomeUnknown, QuorateError
from quorate_core.tasks import TaskOwner
from quorate_registry.catalog import Catalog
from quorate_registry.feed import CatalogFeed
from quorate_registry.model import InstanceName, InstanceView, KeyKind, instance_key, key_of
from quorate_registry.registrar import DECISIONS_MAX, Registrar
from quorate_registry.watch import Subscriptions
from quorate_sdk.wire import InstancePatch, InstanceSpec
from quorate_store.port import Store
from support.registry_server import WAIT_S_MAX
from support.store_local import local_store

NAME = InstanceName("default", "order", "order-1")
SPEC = InstanceSpec(host="127.0.0.1", port=9001)


def is_read(method: str, arguments: tuple[Any, ...]) -> bool:
    """Whether it is a transaction that writes nothing."""
    return method == "txn" and not arguments[0]


class FaultyStore:
    """A real store; a test names calls that fail, before or after they are done. `granted` has all leases made.

    `held`: calls of these methods are done, and answer only once the event is set."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._faults: dict[str, list[tuple[QuorateError, bool]]] = {}
        self.granted: list[int] = []
        self.held: dict[str, asyncio.Event] = {}
        self.reached = asyncio.Event()

    def fail_next(self, method: str, error: QuorateError, *, after: bool = False) -> None:
        self._faults.setdefault(method, []).append((error, after))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name == "watch":
            return method

        async def call(*arguments: Any, **options: Any) -> Any:
            faults = None if is_read(name, arguments) else self._faults.get(name)
            error, after = faults.pop(0) if faults else (None, False)
            if error is not None and not after:
                raise error
            result = await method(*arguments, **options)
            if name in self.held:
                self.reached.set()
                await self.held[name].wait()
            if name == "lease_grant":
                self.granted.append(result.lease)
            if error is not None:
                raise error
            return result

        return call


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FaultyStore]:
    async with local_store(tmp_path) as store:
        yield FaultyStore(store)


@pytest.fixture
async def registrar(store: FaultyStore) -> AsyncIterator[Registrar]:
    catalog, subscriptions = Catalog(), Subscriptions()
    async with TaskOwner("test") as tasks:
        feed = CatalogFeed(store, catalog, subscriptions, tasks)
        feed.start()
        async with asyncio.timeout(WAIT_S_MAX):
            await feed.loaded.wait()
        yield Registrar(store, catalog, feed, tasks)


async def is_alive(store: FaultyStore, lease: int) -> bool:
    return not await store.lease_keepalive([lease])


async def lease_of(store: FaultyStore) -> int:
    lease: int = (await store.range(key_of(KeyKind.ALIVE, NAME))).kvs[0].lease
    return lease


async def shown(registrar: Registrar) -> InstanceView | None:
    """What everybody is shown now."""
    await registrar._feed.barrier()
    entry = registrar._catalog.entry(NAME)
    return entry.view if entry is not None and registrar._catalog.is_shown(NAME) else None


async def test_a_put_that_was_not_proposed_gives_its_lease_back(registrar: Registrar, store: FaultyStore) -> None:
    store.fail_next("txn", NotProposed("no leader"))
    with pytest.raises(NotProposed):
        await registrar.register(NAME, SPEC)
    assert [await is_alive(store, lease) for lease in store.granted] == [False]


async def test_a_put_of_unknown_outcome_keeps_its_lease(registrar: Registrar, store: FaultyStore) -> None:
    """The registration may stand: then revoking the lease would take it away again."""
    store.fail_next("txn", OutcomeUnknown("leader lost"), after=True)
    with pytest.raises(OutcomeUnknown):
        await registrar.register(NAME, SPEC)
    assert await is_alive(store, await lease_of(store))
    view, is_new = await registrar.register(NAME, SPEC)
    assert not is_new
    assert len(store.granted) == 1, "trying again goes on with the lease that is there"
    assert await shown(registrar) == view


async def test_a_former_lease_that_cannot_be_revoked_does_no_harm(registrar: Registrar, store: FaultyStore) -> None:
    await registrar.register(NAME, SPEC)
    store.fail_next("lease_revoke", NotProposed("no leader"))
    await registrar.register(NAME, SPEC.model_copy(update={"ttl_s": 30}))
    former, present = store.granted
    await store.lease_revoke(former)  # as it lapses later
    found = await shown(registrar)
    assert found is not None
    assert found.ttl_s == 30
    assert await lease_of(store) == present


async def test_a_lease_that_ends_between_its_renewal_and_the_put_is_replaced(
    registrar: Registrar, store: FaultyStore
) -> None:
    await registrar.register(NAME, SPEC)
    await store.lease_revoke(store.granted[0])
    store.fail_next("txn", NotFound("lease"))  # what the store answers to a put with a lease that has just ended
    view, is_new = await registrar.register(NAME, SPEC)
    assert is_new
    assert await shown(registrar) == view
    assert await is_alive(store, await lease_of(store))


async def test_an_instance_that_goes_while_it_is_patched_is_not_found(registrar: Registrar, store: FaultyStore) -> None:
    await registrar.register(NAME, SPEC)

    class Expiring(FaultyStore):
        async def txn(self, *arguments: Any) -> Any:
            if not is_read("txn", arguments) and store.granted:
                del store.granted[:]
                await registrar.deregister(NAME)
            return await store.txn(*arguments)

    late = Registrar(Expiring(store._store), registrar._catalog, registrar._feed, registrar._tasks)
    with pytest.raises(NotFound):
        await late.patch(NAME, InstancePatch(weight=1))
    assert await shown(registrar) is None


async def test_who_loses_every_comparison_is_told_and_leaves_no_lease(registrar: Registrar, store: FaultyStore) -> None:
    class Contended(FaultyStore):
        puts = 0

        async def txn(self, *arguments: Any) -> Any:
            if not is_read("txn", arguments):
                self.puts += 1
                await store.put(instance_key(NAME), b"%d" % self.puts)
            return await self._store.txn(*arguments)

    contended = Contended(store._store)
    loser = Registrar(contended, registrar._catalog, registrar._feed, registrar._tasks)
    with pytest.raises(Conflict, match="try again"):
        await loser.register(NAME, SPEC)
    assert contended.puts == DECISIONS_MAX
    assert len(contended.granted) == 1
    assert not await is_alive(contended, contended.granted[0])


async def test_a_key_without_a_lease_is_deregistered_too(registrar: Registrar, store: FaultyStore) -> None:
    await store.put(instance_key(NAME), b"{}")
    revision = await registrar.deregister(NAME)
    assert (await store.range(instance_key(NAME))).kvs == ()
    assert revision > 1


async def test_a_record_that_cannot_be_read_is_told_and_can_be_replaced(
    registrar: Registrar, store: FaultyStore
) -> None:
    await store.put(instance_key(NAME), b"{}")
    with pytest.raises(Conflict, match="register it again"):
        await registrar.patch(NAME, InstancePatch(weight=1))
    view, _ = await registrar.register(NAME, SPEC)
    assert await shown(registrar) == view


async def test_an_instance_that_ended_while_it_was_deregistered_is_gone(
    registrar: Registrar, store: FaultyStore
) -> None:
    await registrar.register(NAME, SPEC)
    store.fail_next("lease_revoke", NotFound("lease"))
    assert await registrar.deregister(NAME) > 0


@pytest.mark.parametrize(("method", "fails"), [("lease_grant", False), ("lease_grant", True), ("txn", False)])
async def test_a_registration_that_is_cancelled_midway_leaves_no_lease_without_its_key(
    registrar: Registrar, store: FaultyStore, method: str, fails: bool
) -> None:
    """Registering again: the former lease must not stay, nor the new one when the put fails."""
    await registrar.register(NAME, SPEC)
    store.held[method] = asyncio.Event()
    async with TaskOwner("caller") as callers, asyncio.timeout(WAIT_S_MAX):
        caller = callers.start(registrar.register(NAME, SPEC.model_copy(update={"ttl_s": 30})), "register")
        await store.reached.wait()
        caller.cancel()
        await asyncio.wait({caller})
        assert caller.cancelled()
        if fails:
            store.fail_next("txn", NotProposed("no leader"))
        store.held.pop(method).set()
        while len(registrar._tasks) > 2:  # noqa: ASYNC110 - the feed's own two stay
            await asyncio.sleep(0)
    attached = await lease_of(store)
    alive = [lease for lease in store.granted if await is_alive(store, lease)]
    assert alive == [attached]
    assert len(store.granted) == 2
