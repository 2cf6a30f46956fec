"""Nodes that compare what they have applied: all tell of a planted difference, and a busy fleet raises no alarm."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from quorate_registry.divergence import Divergence
from quorate_store.model import Event, EventKind, KeyValue, WatchBatch
from quorate_store.port import Store
from support.registry_fleet import FleetMember, client_of, registry_fleet
from support.store_local import local_store

SERVICES = "/v1/registry/default/services"
RECORD = b"quorate/registry/default/order/order-1"
CHANGES = 150


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path) as store:
        yield store


@pytest.fixture
async def nodes(store: Store) -> AsyncIterator[list[FleetMember]]:
    async with registry_fleet(store, ["node-1", "node-2", "node-3"]) as members:
        for number in (1, 2, 3):
            await register(members[0], f"order-{number}")
        await level(members)
        yield members


async def register(node: FleetMember, name: str, weight: int = 100) -> None:
    async with client_of(node) as client:
        spec = {"host": "127.0.0.1", "port": 9001, "ttl_s": 600, "weight": weight}
        assert (await client.put(f"{SERVICES}/order/instances/{name}", json=spec)).is_success


async def level(nodes: list[FleetMember]) -> None:
    """All have what the store has."""
    for node in nodes:
        async with client_of(node) as client:
            assert (await client.get(f"{SERVICES}/order")).is_success


def divergence(node: FleetMember) -> Divergence:
    assert node.registry.divergence is not None
    return node.registry.divergence


async def compare(nodes: list[FleetMember]) -> list[list[str]]:
    for node in nodes:
        await divergence(node).compare()
    return [list(node.registry.alarms()) for node in nodes]


def plant(node: FleetMember, event: Event) -> None:
    catalog = node.registry.catalog
    catalog.apply(WatchBatch(catalog.revision, (event,)), lambda _key, error: pytest.fail(str(error)))


async def test_a_copy_that_lost_an_instance_is_named_by_all_nodes_until_it_is_right_again(
    nodes: list[FleetMember], store: Store
) -> None:
    assert await compare(nodes) == [[], [], []]
    revision = nodes[1].registry.catalog.revision
    plant(nodes[1], Event(EventKind.DELETE, KeyValue(RECORD, b"", 0, revision, 0)))
    alarm = f"copies of the registry differ at revision {revision}: node-1, node-3 agree; node-2 differs"
    assert await compare(nodes) == [[alarm]] * 3

    # The difference stays, at whatever revision they are.
    await register(nodes[0], "order-4")
    await level(nodes)
    later = nodes[0].registry.catalog.revision
    assert await compare(nodes) == [[alarm.replace(f"revision {revision}:", f"revision {later}:")]] * 3

    record = (await store.range(RECORD)).kvs[0]
    plant(nodes[1], Event(EventKind.PUT, record))
    await register(nodes[0], "order-5")
    await level(nodes)
    assert await compare(nodes) == [[], [], []]


async def test_a_value_that_is_another_one_is_a_difference_though_the_revision_is_the_same(
    nodes: list[FleetMember], store: Store
) -> None:
    record = (await store.range(RECORD)).kvs[0]
    value = record.value.replace(b'"weight":100', b'"weight":101')
    assert value != record.value
    forged = KeyValue(record.key, value, record.create_revision, record.mod_revision, record.version)
    plant(nodes[2], Event(EventKind.PUT, forged))
    assert all("node-1, node-2 agree; node-3 differs" in alarm for (alarm,) in await compare(nodes))


async def test_a_busy_fleet_in_good_health_raises_no_alarm(nodes: list[FleetMember]) -> None:
    """Nodes are compared all the while that each is another few revisions behind."""
    compared = 0

    async def change() -> None:
        for number in range(CHANGES):
            await register(nodes[number % 3], f"order-{number % 7}", weight=number)

    changing = asyncio.ensure_future(change())  # noqa: TID251 - awaited below
    while not changing.done():
        assert await compare(nodes) == [[], [], []]
        compared += 1
    await changing
    assert compared >= 3
    assert nodes[0].registry.catalog.digest.revision >= CHANGES


async def test_a_silent_node_keeps_the_alarm_about_itself_and_one_that_has_left_ends_it(
    nodes: list[FleetMember], store: Store
) -> None:
    revision = nodes[1].registry.catalog.revision
    plant(nodes[1], Event(EventKind.DELETE, KeyValue(RECORD, b"", 0, revision, 0)))
    await divergence(nodes[0]).compare()
    await nodes[1].stop()
    await divergence(nodes[0]).compare()
    assert len(divergence(nodes[0]).alarms()) == 1
    await store.delete(b"quorate/nodes/node-2")
    await divergence(nodes[0]).compare()
    assert divergence(nodes[0]).alarms() == ()
