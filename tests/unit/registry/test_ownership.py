"""One owner for each service, the same for all nodes, and few that move when a node comes or goes."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from quorate_core.tasks import TaskOwner
from quorate_registry.ownership import NODES_PREFIX, Ownership, rendezvous_owner
from quorate_store.port import Store
from support.registry_server import WAIT_S_MAX, BreakableStore
from support.store_local import local_store

SERVICES = [("default", f"service-{number}") for number in range(3_000)]
RUNS_IT = b'{"url":"http://127.0.0.1:1","apps":["registry","config-center"]}'


def owners(nodes: list[str]) -> dict[tuple[str, str], str | None]:
    return {service: rendezvous_owner(nodes, *service) for service in SERVICES}


def test_the_order_in_which_nodes_are_known_does_not_matter() -> None:
    assert owners(["a", "b", "c"]) == owners(["c", "a", "b"])


def test_services_are_spread_evenly() -> None:
    counts = Counter(owners(["node-1", "node-2", "node-3"]).values())
    assert all(900 < counts[node] < 1_100 for node in ("node-1", "node-2", "node-3")), counts


def test_when_a_node_goes_only_its_services_move() -> None:
    before, after = owners(["node-1", "node-2", "node-3"]), owners(["node-1", "node-3"])
    assert {service for service in SERVICES if before[service] != after[service]} == {
        service for service in SERVICES if before[service] == "node-2"
    }
    assert Counter(after[service] for service in SERVICES if before[service] == "node-2").keys() == {"node-1", "node-3"}


def test_the_owner_is_the_same_in_every_version() -> None:
    """Nodes of two versions run side by side during an update, and must agree."""
    nodes = ["node-1", "node-2", "node-3"]
    found = [rendezvous_owner(nodes, "default", name) for name in ("order", "inventory", "gateway")]
    assert found == ["node-1", "node-1", "node-3"]


def test_nobody_owns_anything_without_nodes() -> None:
    assert rendezvous_owner([], "default", "order") is None


class Listened:
    """An `Ownership` whose changes a test awaits."""

    def __init__(self, store: Store, name: str, tasks: TaskOwner) -> None:
        self.ownership = Ownership(store, name, tasks, wait=self._wait)
        self.ownership.listeners.append(self._told)
        self._changed = asyncio.Event()
        self.waits = 0

    async def _wait(self, seconds: float) -> None:
        self.waits += 1
        await asyncio.sleep(0)

    def _told(self) -> None:
        self._changed.set()

    async def until(self, *nodes: str) -> None:
        async with asyncio.timeout(WAIT_S_MAX):
            while self.ownership.nodes != set(nodes):
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path) as store:
        yield store


@pytest.fixture
async def tasks() -> AsyncIterator[TaskOwner]:
    failures: list[BaseException] = []
    async with TaskOwner("test", failures.append) as tasks:
        yield tasks
    assert failures == []


async def announce(store: Store, name: str, value: bytes = RUNS_IT) -> None:
    await store.put(NODES_PREFIX + name.encode(), value)


async def test_it_is_unknown_who_owns_until_the_nodes_were_read(store: Store, tasks: TaskOwner) -> None:
    listened = Listened(store, "node-1", tasks)
    assert not listened.ownership.owns("default", "order")


async def test_nodes_that_come_and_go_take_services_over(store: Store, tasks: TaskOwner) -> None:
    await announce(store, "node-1")
    one, two = Listened(store, "node-1", tasks), Listened(store, "node-2", tasks)
    one.ownership.start()
    two.ownership.start()
    await one.until("node-1")
    await two.until("node-1")
    assert all(one.ownership.owns(*service) for service in SERVICES)
    assert not any(two.ownership.owns(*service) for service in SERVICES)
    await announce(store, "node-2")
    await one.until("node-1", "node-2")
    await two.until("node-1", "node-2")
    assert all(one.ownership.owns(*service) is not two.ownership.owns(*service) for service in SERVICES)
    await store.delete(NODES_PREFIX + b"node-1")
    await two.until("node-2")
    assert all(two.ownership.owns(*service) for service in SERVICES)


async def test_a_node_that_does_not_run_the_registry_owns_nothing(store: Store, tasks: TaskOwner) -> None:
    await announce(store, "node-1")
    await announce(store, "node-2", b'{"url":"http://127.0.0.1:2","apps":["config-center"]}')
    await announce(store, "node-3", b'{"url":"http://127.0.0.1:3"}')  # of a version that does not say it
    listened = Listened(store, "node-1", tasks)
    listened.ownership.start()
    await listened.until("node-1", "node-3")
    await announce(store, "node-3", b"no record")
    await listened.until("node-1")


async def test_without_any_node_that_is_announced_each_owns_everything(store: Store, tasks: TaskOwner) -> None:
    listened = Listened(store, "node-1", tasks)
    told = asyncio.Event()
    listened.ownership.listeners.append(told.set)
    listened.ownership.start()
    async with asyncio.timeout(WAIT_S_MAX):
        await told.wait()
    assert listened.ownership.owns("default", "order")


async def test_what_changes_while_the_store_cannot_be_reached_is_known_afterwards(
    store: Store, tasks: TaskOwner
) -> None:
    await announce(store, "node-1")
    breakable = BreakableStore(store)
    listened = Listened(breakable, "node-1", tasks)
    listened.ownership.start()
    await listened.until("node-1")
    breakable.cut()
    async with asyncio.timeout(WAIT_S_MAX):
        while not listened.waits:  # noqa: ASYNC110 - it says so by nothing else
            await asyncio.sleep(0)
    assert listened.ownership.owns("default", "order"), "it keeps what it knew"
    await announce(store, "node-2")
    breakable.mend()
    await listened.until("node-1", "node-2")
