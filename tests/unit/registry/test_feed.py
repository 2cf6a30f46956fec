"""Loading the registry from a store that holds a lot of it: what is told, in which portions, and of which revision."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quorate_core.tasks import TaskOwner
from quorate_registry.catalog import Catalog
from quorate_registry.feed import LOAD_PAGE_KEYS, TOLD_AT_ONCE_MAX, CatalogFeed
from quorate_registry.model import InstanceName, encode_record, instance_key, record_of
from quorate_registry.watch import Subscriptions
from quorate_sdk.wire import InstanceSpec
from quorate_store.model import DeleteOp, PutOp, RangeResult
from quorate_store.port import Store
from quorate_store.state import StateMachine
from support.registry_server import WAIT_S_MAX
from support.store_local import local_store, local_store_and_machine
from support.store_model import entries_of

INSTANCES = 2 * TOLD_AT_ONCE_MAX + LOAD_PAGE_KEYS // 2
"""Several pages, and several portions."""


def name_of(number: int) -> InstanceName:
    return InstanceName("default", f"service-{number // 100:03}", f"i-{number:06}")


def fill(machine: StateMachine) -> None:
    spec = InstanceSpec(host="127.0.0.1", port=80, ttl_s=60, ephemeral=False)
    record = encode_record(record_of(spec, "test", 0))
    puts = [PutOp(instance_key(name_of(number)), record) for number in range(INSTANCES)]
    machine.apply(entries_of(puts, machine.applied_index + 1))


class Asked:
    """The store, and what was asked of its ranges."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.ranges: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def range(self, *arguments: Any, **options: Any) -> RangeResult:
        self.ranges.append(options)
        return await self._store.range(*arguments, **options)


class Told:
    """A listener of `feed` that knows in which turn of the event loop it was told of what."""

    def __init__(self, store: Store, catalog: Catalog, tasks: TaskOwner) -> None:
        self.feed = CatalogFeed(store, catalog, Subscriptions(), tasks)
        self.feed.listeners.append(self._on_told)
        self.portions: list[tuple[int, Sequence[InstanceName]]] = []
        self._turn = 0
        self._progress = asyncio.Event()
        tasks.start(self._count_turns(), "turns")
        self.feed.start()

    def _on_told(self, names: Sequence[InstanceName]) -> None:
        self.portions.append((self._turn, names))
        self._progress.set()

    async def _count_turns(self) -> None:
        while True:
            await asyncio.sleep(0)
            self._turn += 1

    async def until_told_of(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S_MAX):
            while not self.portions or sum(len(names) for _, names in self.portions) < count:
                self._progress.clear()
                await self._progress.wait()


async def test_listeners_are_told_of_a_load_in_portions_between_which_others_have_their_turn(tmp_path: Path) -> None:
    async with local_store_and_machine(tmp_path) as (store, machine), TaskOwner("test") as tasks:
        fill(machine)
        catalog = Catalog()
        told = Told(store, catalog, tasks)
        await told.until_told_of(INSTANCES)
        assert sorted(name for _, names in told.portions for name in names) == [name_of(n) for n in range(INSTANCES)]
        assert [len(names) for _, names in told.portions] == [TOLD_AT_ONCE_MAX, TOLD_AT_ONCE_MAX, LOAD_PAGE_KEYS // 2]
        turns = [turn for turn, _ in told.portions]
        assert sorted(set(turns)) == turns


async def test_listeners_are_told_once_of_a_load_that_has_changed_nothing(tmp_path: Path) -> None:
    async with local_store(tmp_path) as store, TaskOwner("test") as tasks:
        told = Told(store, Catalog(), tasks)
        await told.until_told_of(0)
        assert [list(names) for _, names in told.portions] == [[]]


async def test_a_load_is_of_one_revision_though_the_store_goes_on(tmp_path: Path) -> None:
    """As after a loss of power, when the log is applied again while the registry loads. What came meanwhile follows."""
    async with local_store_and_machine(tmp_path) as (store, machine), TaskOwner("test") as tasks:
        fill(machine)
        catalog, asked = Catalog(), Asked(store)
        told = Told(asked, catalog, tasks)  # type: ignore[arg-type]
        for number in range(0, INSTANCES, 2):
            machine.apply(entries_of([DeleteOp(instance_key(name_of(number)))], machine.applied_index + 1))
            await asyncio.sleep(0)
        await told.until_told_of(INSTANCES - LOAD_PAGE_KEYS)
        assert len(asked.ranges) >= INSTANCES // LOAD_PAGE_KEYS
        # To count what follows each page, while so much changes, would cost the square of what there is.
        assert {(options["revision"] > 0, options["counted"]) for options in asked.ranges} == {(True, False)}
        assert len({options["revision"] for options in asked.ranges}) == 1
        await told.feed.barrier()
        assert catalog.revision == machine.revision
        # It had begun before most of these were deleted, and is told of them for the second time.
        assert sum(len(names) for _, names in told.portions) > INSTANCES
        shown = [number for number in range(INSTANCES) if catalog.is_shown(name_of(number))]
        assert shown == list(range(1, INSTANCES, 2))
