"""Lapsed instances are taken away by one node, for the right reason, and never one that came back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from quorate_registry.lapse import REFUSALS_MAX
from quorate_registry.model import InstanceName
from quorate_registry.ownership import NODES_PREFIX, rendezvous_owner
from quorate_registry.probes import Finding
from quorate_registry.reaper import RESYNC_INTERVAL_S
from quorate_sdk.wire import TTL_S_MIN, InstanceSpec, ServiceSettings
from quorate_store.port import Store
from support.check_servers import hold, scripted_server, unused_port
from support.registry_parts import registry_parts, seen
from support.registry_server import WAIT_S_MAX, BreakableStore
from support.store_local import local_store

NAME = InstanceName("default", "order", "order-1")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path) as store:
        yield store


def spec(port: int, ttl_s: int = 30) -> InstanceSpec:
    return InstanceSpec(host="127.0.0.1", port=port, ttl_s=ttl_s)


class Probed:
    """A prober that a test answers for; `asked` counts."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.was_asked = asyncio.Event()

    async def __call__(self, host: str, port: int) -> Finding:
        self.asked += 1
        self.was_asked.set()
        await self.may_answer.wait()
        return self.finding


async def test_a_dead_instance_is_shown_stale_until_its_port_has_refused_and_then_gone(store: Store) -> None:
    async with registry_parts(store, "node-1") as (node,):
        await node.registrar.register(NAME, spec(unused_port()))
        shown: list[bool] = []
        node.feed.listeners.append(lambda _: shown.append(node.catalog.is_shown(NAME)))
        await node.lapse(NAME)
        await node.until(lambda: node.is_gone(NAME))
        assert True in shown, "it was on the list, stale, until it was known to be gone"
        note = await node.note(NAME)
        assert (note.id, note.reason, note.by) == ("order-1", "refused", "node node-1")


async def test_one_that_still_answers_stays_while_it_is_probed(store: Store) -> None:
    async with scripted_server(hold) as port, registry_parts(store, "node-1") as (node,):
        await node.registrar.register(NAME, spec(port))
        await node.lapse(NAME)
        probed = node.reaper._lapses
        await seen(lambda: NAME in probed and probed[NAME].probes > REFUSALS_MAX)
        entry = await node.entry(NAME)
        assert entry.view.stale
        assert node.catalog.is_shown(NAME)
        await node.registrar.register(NAME, spec(port))
        await seen(lambda: not probed)
        assert not (await node.entry(NAME)).view.stale


async def test_without_protection_it_goes_one_time_to_live_later_unprobed(store: Store) -> None:
    probed = Probed(Finding.REFUSED)
    async with registry_parts(store, "node-1", prober=probed) as (node,):
        await node.registrar.set_settings(NAME.of, ServiceSettings(protection_threshold=0))
        await node.registrar.register(NAME, spec(1, TTL_S_MIN))
        await node.lapse(NAME)
        await node.until(lambda: not node.catalog.is_shown(NAME))
        await node.until(lambda: node.is_gone(NAME), WAIT_S_MAX + TTL_S_MIN)
        assert (await node.note(NAME)).reason == "lapsed"
    assert probed.asked == 0


async def test_what_has_lapsed_before_protection_begins_is_probed_when_it_does(store: Store) -> None:
    async with registry_parts(store, "node-1") as (node,):
        await node.registrar.set_settings(NAME.of, ServiceSettings(protection_threshold=0))
        await node.registrar.register(NAME, spec(unused_port(), ttl_s=300))
        await node.lapse(NAME)
        await seen(lambda: NAME in node.reaper._lapses)
        assert not node.catalog.is_shown(NAME)
        await node.registrar.reset_settings(NAME.of)
        await node.until(lambda: node.is_gone(NAME))
        assert (await node.note(NAME)).reason == "refused"


async def test_one_that_comes_back_while_it_is_probed_stays(store: Store) -> None:
    probed = Probed(Finding.REFUSED)
    async with registry_parts(store, "node-1", prober=probed) as (node,):
        await node.registrar.register(NAME, spec(1))
        await node.lapse(NAME)
        await asyncio.wait_for(probed.was_asked.wait(), WAIT_S_MAX)
        node.reaper._lapses[NAME].refusals = REFUSALS_MAX - 1  # so that this probe is the one that decides
        await node.registrar.register(NAME, spec(2))
        probed.may_answer.set()
        await seen(lambda: not node.reaper._lapses)
        assert (await node.entry(NAME)).is_alive


async def test_a_removal_decided_on_an_old_copy_does_nothing(store: Store) -> None:
    """What two owners at once, or a node that was paused, would do."""
    async with registry_parts(store, "node-1") as (node,):
        await node.registrar.register(NAME, spec(1))
        old = (await node.entry(NAME)).record_revision
        assert not await node.registrar.reap(NAME, old, "refused", "node node-2"), "it is alive"
        await node.registrar.register(NAME, spec(2))
        assert not await node.registrar.reap(NAME, old, "refused", "node node-2")
        assert (await node.entry(NAME)).is_alive


async def test_each_service_is_reaped_by_its_owner_and_by_the_next_one_when_that_is_gone(store: Store) -> None:
    services = [InstanceName("default", f"service-{number}", "one") for number in range(6)]
    async with registry_parts(store, "node-1", "node-2") as nodes:
        first, second = nodes
        for node in nodes:
            await node.announce()
        for name in services:
            await first.registrar.register(name, spec(unused_port()))
        for name in services:
            await first.lapse(name)
        await first.until(lambda: all(first.is_gone(name) for name in services))
        owners = {name: rendezvous_owner(["node-1", "node-2"], name.namespace, name.service) for name in services}
        assert set(owners.values()) == {"node-1", "node-2"}
        assert {name: (await first.note(name)).by for name in services} == {
            name: f"node {owner}" for name, owner in owners.items()
        }
        for name in services:
            await first.registrar.register(name, spec(unused_port()))
        await store.delete(NODES_PREFIX + b"node-1")
        for name in services:
            await second.lapse(name)
        await second.until(lambda: all(second.is_gone(name) for name in services))
        assert {(await second.note(name)).by for name in services if owners[name] == "node-2"} == {"node node-2"}


async def test_what_the_store_did_not_take_is_done_when_it_can(store: Store) -> None:
    breakable = BreakableStore(store)
    probed = Probed(Finding.REFUSED)
    async with registry_parts(breakable, "node-1", prober=probed) as (node,):
        await node.registrar.register(NAME, spec(1))
        await node.lapse(NAME)
        await asyncio.wait_for(probed.was_asked.wait(), WAIT_S_MAX)
        breakable.cut()
        probed.may_answer.set()
        await seen(lambda: node.reaper._has_trouble)
        breakable.mend()
        # Before everything is looked at anew, which would do it too.
        await node.until(lambda: node.is_gone(NAME), RESYNC_INTERVAL_S / 2)


async def test_most_of_a_service_killed_at_once_is_gone_soon_and_the_list_is_never_empty(store: Store) -> None:
    names = [InstanceName("default", "order", f"order-{number}") for number in range(20)]
    async with scripted_server(hold) as port, registry_parts(store, "node-1") as (node,):
        for number, name in enumerate(names):
            await node.registrar.register(name, spec(port if number < 2 else unused_port()))
        shown: list[int] = []
        node.feed.listeners.append(lambda _: shown.append(sum(map(node.catalog.is_shown, names))))
        for name in names[2:]:
            await node.lapse(name)
        await node.until(lambda: all(map(node.is_gone, names[2:])))
        assert min(shown) == 2
        assert not node.catalog.is_protected("default", "order")
        await seen(lambda: not node.reaper._lapses)
