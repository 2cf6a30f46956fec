"""A node that cannot reach a whole service takes nobody off; one that is told so by the instances does."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from quorate_core.errors import NotProposed
from quorate_registry.checks.doubt import HELD_MARK
from quorate_registry.checks.outcome import Outcome, Target
from quorate_registry.model import Health, InstanceName
from quorate_registry.ownership import NODES_PREFIX
from quorate_sdk.wire import HealthCheck, InstancePatch, InstanceSpec, InstanceStatus, ServiceSettings, TcpCheck
from quorate_store.model import Compare, Operation, PutOp, prefix_end
from quorate_store.port import Store
from support.registry_parts import RegistryParts, registry_parts, seen
from support.registry_server import WAIT_S_MAX, BreakableStore
from support.store_local import local_store

NAMES = [InstanceName("default", "ledger", f"ledger-{number}") for number in range(4)]
SERVICE = NAMES[0].of
CHECK = TcpCheck(type="tcp", interval_s=1.0, timeout_s=0.5, healthy_after=2, unhealthy_after=1)
SOON_S = 2.0
HEALTHY_AFTER = 10
"""More good results than there is time for."""
GOOD, REFUSED = Outcome.of(True, "connected"), Outcome.of(False, "nobody listens")
SILENT = Outcome.of(False, "no connection", is_doubtful=True)
HEALTH = b"quorate/registry-health/"
UP, DOWN = (InstanceStatus.UP, False), (InstanceStatus.DOWN, False)
HELD = (InstanceStatus.UP, True)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path) as store:
        yield store


class RefusingStore(BreakableStore):
    """Takes everything but results of checks while it refuses, as a leader does that has gone just then."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._real = store
        self.refuses = False
        self.refused = 0

    async def txn(self, compares: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation]) -> Any:
        if self.refuses and any(isinstance(done, PutOp) and done.key.startswith(HEALTH) for done in success):
            self.refused += 1
            raise NotProposed("there is no leader")
        return await self._real.txn(compares, success, failure)


class Network:
    """An asker: what each port says, from when a test sets it on; and it counts."""

    def __init__(self) -> None:
        self.says = dict.fromkeys(range(1, 1 + len(NAMES)), GOOD)
        self.asked = dict.fromkeys(self.says, 0)
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, check: HealthCheck, target: Target) -> Outcome:
        await self.may_answer.wait()
        self.asked[target.port] += 1
        return self.says[target.port]

    def say(self, outcome: Outcome, *ports: int) -> None:
        self.says.update(dict.fromkeys(ports or self.says, outcome))

    async def asked_again(self, times: int = 2) -> None:
        before = dict(self.asked)
        await seen(lambda: all(self.asked[port] >= before[port] + times for port in before))


async def register(node: RegistryParts, check: HealthCheck = CHECK) -> None:
    for number, name in enumerate(NAMES, 1):
        await node.registrar.register(name, InstanceSpec(host="h", port=number, ephemeral=False, check=check))
    await shows(node, UP, UP, UP, UP)


def shown(node: RegistryParts) -> list[tuple[InstanceStatus, bool]]:
    entries = [node.catalog.entry(name) for name in NAMES]
    return [(entry.view.status, entry.view.stale) for entry in entries if entry is not None]


async def shows(node: RegistryParts, *states: tuple[InstanceStatus, bool], within_s: float = WAIT_S_MAX) -> None:
    await node.until(lambda: shown(node) == list(states), within_s)


async def health(node: RegistryParts, name: InstanceName) -> Health:
    found = (await node.entry(name)).health
    assert found is not None
    return found


async def test_a_node_that_is_cut_off_holds_a_whole_service_and_who_answers_is_well_at_once(store: Store) -> None:
    network = Network()
    async with registry_parts(store, "node-1", asker=network) as (node,):
        await register(node, CHECK.model_copy(update={"healthy_after": HEALTHY_AFTER}))
        network.say(SILENT)
        await shows(node, HELD, HELD, HELD, HELD)
        found = await health(node, NAMES[0])
        assert (found.passing, found.output) == (True, HELD_MARK + "no connection")
        before = (await store.range(HEALTH, prefix_end(HEALTH))).kvs
        await network.asked_again()
        assert (await store.range(HEALTH, prefix_end(HEALTH))).kvs == before
        network.say(GOOD, 1)
        await shows(node, UP, HELD, HELD, HELD, within_s=HEALTHY_AFTER / 2)
        assert (await health(node, NAMES[0])).output == "connected"


async def test_results_that_trickle_in_end_as_those_that_come_together(store: Store) -> None:
    network = Network()
    async with registry_parts(store, "node-1", asker=network) as (node,):
        await register(node)
        network.say(SILENT, 1, 2)
        await shows(node, DOWN, DOWN, UP, UP)
        assert (await health(node, NAMES[0])).output == "no connection", "half pass: they are believed"
        network.say(SILENT, 3)
        await shows(node, HELD, HELD, HELD, UP)
        network.say(SILENT, 4)
        await shows(node, HELD, HELD, HELD, HELD)


async def test_a_word_of_the_other_side_is_believed_at_once_however_many_say_so(store: Store) -> None:
    network = Network()
    async with registry_parts(store, "node-1", asker=network) as (node,):
        await register(node)
        network.say(SILENT)
        await shows(node, HELD, HELD, HELD, HELD)
        network.say(REFUSED, 1, 2, 3)
        await shows(node, DOWN, DOWN, DOWN, HELD)
        assert (await health(node, NAMES[0])).output == "nobody listens"
        network.say(SILENT)
        await network.asked_again()
        await node.feed.barrier()
        assert shown(node) == [DOWN, DOWN, DOWN, HELD], "silence takes no word back"


async def test_enough_that_are_well_again_have_the_others_believed_a_round_of_checks_later(store: Store) -> None:
    network = Network()
    async with registry_parts(store, "node-1", asker=network) as (node,):
        await register(node)
        network.say(SILENT)
        await shows(node, HELD, HELD, HELD, HELD)
        network.say(GOOD, 1, 2)
        await shows(node, UP, UP, HELD, HELD)
        await shows(node, UP, UP, DOWN, DOWN)
        network.say(GOOD)
        await shows(node, UP, UP, UP, UP)


async def test_a_hold_ends_though_nothing_is_heard_nor_any_check_made(store: Store) -> None:
    network = Network()
    async with registry_parts(store, "node-1", asker=network) as (node,):
        await node.registrar.set_settings(SERVICE, ServiceSettings(hold_s=10))
        await register(node)
        network.say(SILENT)
        await shows(node, HELD, HELD, HELD, HELD)
        network.may_answer.clear()
        await shows(node, DOWN, DOWN, DOWN, DOWN, within_s=10 + WAIT_S_MAX)
        network.may_answer.set()
        await network.asked_again()
        assert shown(node) == [DOWN, DOWN, DOWN, DOWN], "and does not begin anew"


async def test_settings_and_weights_count_from_when_they_are_set(store: Store) -> None:
    network = Network()
    async with registry_parts(store, "node-1", asker=network) as (node,):
        await register(node)
        network.say(SILENT, 1, 2)
        await shows(node, DOWN, DOWN, UP, UP)
        await node.registrar.set_settings(SERVICE, ServiceSettings(protection_threshold=0.6))
        await shows(node, HELD, HELD, UP, UP)
        await node.registrar.patch(NAMES[1], InstancePatch(weight=0))
        await shows(node, HELD, DOWN, UP, UP, within_s=1.0)
        await node.registrar.set_settings(SERVICE, ServiceSettings(protection_threshold=0))
        await shows(node, DOWN, DOWN, UP, UP)


async def test_who_was_never_well_is_not_held(store: Store) -> None:
    network = Network()
    network.say(SILENT)
    async with registry_parts(store, "node-1", asker=network) as (node,):
        await node.registrar.register(NAMES[0], InstanceSpec(host="h", port=1, ephemeral=False, check=CHECK))
        await shows(node, DOWN)
        assert (await health(node, NAMES[0])).doubt_since_ms == 0


async def test_another_node_goes_on_with_a_hold_where_the_owner_left_it(store: Store) -> None:
    network = Network()
    async with registry_parts(store, "node-1", "node-2", asker=network) as nodes:
        for node in nodes:
            await node.announce()
        await seen(lambda: all(len(node.ownership.nodes) == 2 for node in nodes))
        owner, other = sorted(nodes, key=lambda node: not node.ownership.owns(*SERVICE))
        await register(other)
        network.say(SILENT)
        await shows(other, HELD, HELD, HELD, HELD)
        before = [await health(other, name) for name in NAMES]
        await store.delete(NODES_PREFIX + owner.name.encode())
        await seen(lambda: len(other.checks._watched) == len(NAMES))
        await network.asked_again()
        assert [await health(other, name) for name in NAMES] == before
        assert {found.checked_by for found in before} == {owner.name}
        network.say(GOOD, 1)
        await shows(other, UP, HELD, HELD, HELD)


async def test_what_the_store_did_not_take_is_written_when_it_can(store: Store) -> None:
    """Sooner than the next round of checks brings it up."""
    refusing, network = RefusingStore(store), Network()
    slow = CHECK.model_copy(update={"interval_s": 2 * SOON_S})
    async with registry_parts(refusing, "node-1", asker=network) as (node,):
        await register(node, slow)
        refusing.refuses = True
        network.say(SILENT)
        await network.asked_again(1)
        doubts = node.checks._doubts
        # What the last result has brought about is over.
        await seen(lambda: doubts._doubtful == {SERVICE: set(NAMES)} and not doubts._settling and not doubts._touched)
        assert refusing.refused > 0
        refusing.refuses = False
        await shows(node, HELD, HELD, HELD, HELD, within_s=SOON_S)


async def test_a_result_that_was_decided_on_an_older_one_is_not_written(store: Store) -> None:
    """What two owners at once would do."""
    network = Network()
    async with registry_parts(store, "node-1", asker=network) as (node,):
        await register(node)
        old = await node.entry(NAMES[0])
        network.say(REFUSED, 1)
        await shows(node, DOWN, UP, UP, UP)
        assert old.health is not None
        report = node.registrar.report_health
        assert not await report(NAMES[0], old.record_revision, old.health, old.health_revision)
