"""Checks are run by one node, and written only when what they decide has changed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from quorate_registry.checks.outcome import Outcome, Target, Undecided
from quorate_registry.model import InstanceName
from quorate_registry.ownership import NODES_PREFIX
from quorate_sdk.wire import HealthCheck, InstancePatch, InstanceSpec, InstanceStatus, ServiceSettings, TcpCheck
from quorate_store.port import Store
from support.check_servers import hold, scripted_server
from support.registry_parts import RegistryParts, registry_parts, seen
from support.registry_server import WAIT_S_MAX, BreakableStore
from support.store_local import local_store

NAME = InstanceName("default", "ledger", "ledger-1")
CHECK = TcpCheck(type="tcp", interval_s=1.0, timeout_s=0.5, healthy_after=1, unhealthy_after=1)
CHECKS_ENOUGH = 3


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path) as store:
        yield store


def spec(port: int, check: HealthCheck | None = CHECK) -> InstanceSpec:
    return InstanceSpec(host="127.0.0.1", port=port, ephemeral=False, check=check)


class Asked:
    """An asker whose answers a test sets by port; it waits for those that are not there yet."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.answers: dict[int, bool | None] = {}
        self._changed = asyncio.Event()

    async def __call__(self, check: HealthCheck, target: Target) -> Outcome:
        self.asked.append(target.port)
        self._tell()
        while target.port not in self.answers:
            await self._changed.wait()
        is_good = self.answers[target.port]
        if is_good is None:
            raise Undecided("this node is short of something")
        return Outcome.of(is_good, "well" if is_good else "ill")

    def answer(self, port: int, is_good: bool) -> None:
        """From now on."""
        self.answers[port] = is_good
        self._tell()

    async def until_asked(self, port: int, times: int) -> None:
        async with asyncio.timeout(WAIT_S_MAX):
            while self.asked.count(port) < times:
                await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def status(node: RegistryParts, name: InstanceName = NAME) -> InstanceStatus | None:
    entry = node.catalog.entry(name)
    return None if entry is None else entry.view.status


async def test_an_instance_is_starting_then_up_then_down_as_its_port_is(store: Store) -> None:
    async with registry_parts(store, "node-1") as (node,):
        async with scripted_server(hold) as port:
            view, _ = await node.registrar.register(NAME, spec(port))
            assert view.status is InstanceStatus.STARTING
            await node.until(lambda: status(node) is InstanceStatus.UP)
        await node.until(lambda: status(node) is InstanceStatus.DOWN)
        health = (await node.entry(NAME)).health
        assert health is not None
        assert (health.passing, health.output, health.checked_by) == (
            False, f"nobody listens at 127.0.0.1:{port}", "node-1",
        )  # fmt: skip


async def test_nothing_is_written_while_nothing_changes(store: Store) -> None:
    asked = Asked()
    asked.answers = {1: True}
    async with registry_parts(store, "node-1", asker=asked) as (node,):
        await node.registrar.register(NAME, spec(1))
        await node.until(lambda: status(node) is InstanceStatus.UP)
        before = (await node.entry(NAME)).health_revision
        await asked.until_asked(1, len(asked.asked) + CHECKS_ENOUGH)
        assert (await store.range(b"quorate/registry-health/default/ledger/ledger-1")).revision == before


async def test_a_result_of_what_was_registered_before_is_dropped(store: Store) -> None:
    asked = Asked()
    async with registry_parts(store, "node-1", asker=asked) as (node,):
        await node.registrar.register(NAME, spec(1))
        await asked.until_asked(1, 1)
        await node.registrar.register(NAME, spec(2))
        await asked.until_asked(2, 1)
        asked.answer(1, False)
        asked.answer(2, True)
        await node.until(lambda: status(node) in (InstanceStatus.UP, InstanceStatus.DOWN))
        assert status(node) is InstanceStatus.UP
        assert asked.asked.count(1) == 1


async def test_a_change_of_other_fields_keeps_the_row_of_results(store: Store) -> None:
    asked = Asked()
    asked.answers = {1: True}
    check = TcpCheck(type="tcp", interval_s=1.0, timeout_s=0.5, unhealthy_after=2)
    async with registry_parts(store, "node-1", asker=asked) as (node,):
        await node.registrar.register(NAME, spec(1, check))
        await node.until(lambda: status(node) is InstanceStatus.UP)
        del asked.answers[1]
        await asked.until_asked(1, len(asked.asked) + 1)
        await node.registrar.patch(NAME, InstancePatch(weight=7))
        await node.feed.barrier()
        asked.answer(1, False)
        await asked.until_asked(1, len(asked.asked) + 1)
        await node.until(lambda: status(node) is InstanceStatus.DOWN)
        assert (await node.entry(NAME)).record.weight == 7


async def test_another_node_goes_on_from_what_is_decided_when_the_owner_is_gone(store: Store) -> None:
    asked = Asked()
    asked.answers = {1: True}
    async with registry_parts(store, "node-1", "node-2", asker=asked) as nodes:
        await nodes[0].announce()
        for node in nodes:
            await seen(lambda node=node: len(node.ownership.nodes) == 1)
        await nodes[1].registrar.register(NAME, spec(1))
        await nodes[1].until(lambda: status(nodes[1]) is InstanceStatus.UP)
        written = (await nodes[1].entry(NAME)).health_revision
        await nodes[1].announce()
        await store.delete(NODES_PREFIX + b"node-1")
        await seen(lambda: NAME in nodes[1].checks._watched and not nodes[0].checks._watched)
        await asked.until_asked(1, len(asked.asked) + 2)
        entry = await nodes[1].entry(NAME)
        assert entry.health is not None
        assert (entry.health.checked_by, entry.health_revision) == ("node-1", written), "nothing new was decided"
        asked.answer(1, False)
        await nodes[1].until(lambda: status(nodes[1]) is InstanceStatus.DOWN)
        entry = await nodes[1].entry(NAME)
        assert entry.health is not None
        assert entry.health.checked_by == "node-2"


async def test_a_result_that_the_store_did_not_take_is_made_up_for(store: Store) -> None:
    """Soon, and not an interval later, which may be an hour."""
    breakable = BreakableStore(store)
    asked = Asked()
    seldom = TcpCheck(type="tcp", interval_s=3_600.0)
    async with registry_parts(breakable, "node-1", asker=asked) as (node,):
        await node.registrar.register(NAME, spec(1, seldom))
        await asked.until_asked(1, 1)
        breakable.cut()
        asked.answer(1, True)
        await seen(lambda: node.checks._reports._has_trouble)
        breakable.mend()
        await node.until(lambda: status(node) is InstanceStatus.UP)


async def test_a_service_says_how_instances_are_checked_that_do_not(store: Store) -> None:
    asked = Asked()
    asked.answers = {1: False}
    async with registry_parts(store, "node-1", asker=asked) as (node,):
        await node.registrar.register(NAME, spec(1, None))
        await node.until(lambda: status(node) is InstanceStatus.UP)
        assert asked.asked == []
        await node.registrar.set_settings(NAME.of, ServiceSettings(default_check=CHECK))
        await node.until(lambda: status(node) is InstanceStatus.DOWN)
        await node.registrar.reset_settings(NAME.of)
        await node.until(lambda: status(node) is InstanceStatus.UP)
        assert not node.checks._watched


async def test_a_check_that_finds_nothing_out_changes_nothing_and_is_made_again(store: Store) -> None:
    asked = Asked()
    asked.answers = {1: True}
    async with registry_parts(store, "node-1", asker=asked) as (node,):
        await node.registrar.register(NAME, spec(1))
        await node.until(lambda: status(node) is InstanceStatus.UP)
        asked.answers = {1: None}
        await asked.until_asked(1, len(asked.asked) + 2)
        assert status(node) is InstanceStatus.UP
        asked.answers = {1: False}
        await node.until(lambda: status(node) is InstanceStatus.DOWN)


async def test_one_that_is_deregistered_is_asked_no_more(store: Store) -> None:
    asked = Asked()
    asked.answers = {1: True}
    async with registry_parts(store, "node-1", asker=asked) as (node,):
        await node.registrar.register(NAME, spec(1))
        await node.until(lambda: status(node) is InstanceStatus.UP)
        await node.registrar.deregister(NAME)
        await node.until(lambda: node.is_gone(NAME))
        assert not node.checks._watched
        assert not len(node.checks._schedule)
        assert not (await store.range(b"quorate/registry-health/", b"quorate/registry-health0")).kvs
