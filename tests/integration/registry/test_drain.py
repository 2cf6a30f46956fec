"""Draining with proof: nodes, streams and the SDK's copies as they are, over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from quorate_sdk import ControlPlane, Discovery
from quorate_sdk.wire import Drained, InstanceStatus
from quorate_store.port import Store
from support.registry_fleet import FleetMember, announce, client_of, registry_fleet
from support.registry_server import WAIT_S_MAX
from support.store_local import local_store

SERVICES = "/v1/registry/default/services"
ORDER_1 = f"{SERVICES}/order/instances/order-1"
LONG_S = 30
"""Far above what any of these needs: who waits so long has failed."""

InForce = Callable[[int], Awaitable[None]]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path) as store:
        yield store


@pytest.fixture
async def nodes(store: Store) -> AsyncIterator[list[FleetMember]]:
    async with registry_fleet(store, ["node-1", "node-2"]) as members:
        async with client_of(members[0]) as client:
            answer = await client.put(ORDER_1, json={"host": "127.0.0.1", "port": 9001, "ttl_s": 600})
            assert answer.status_code == 201
        yield members


async def at_once(_revision: int) -> None:
    return


@asynccontextmanager
async def following(
    node: FleetMember, subscriber: str, in_force: InForce = at_once, services: list[str] | None = None
) -> AsyncIterator[Discovery]:
    """A copy of the SDK's that has the first snapshot of `node`."""
    async with ControlPlane([node.url]) as control_plane:
        discovery = Discovery(control_plane, services=services, subscriber=subscriber, in_force=in_force)
        await discovery.start()
        try:
            assert await discovery.ready(WAIT_S_MAX)
            yield discovery
        finally:
            await discovery.stop()


async def drain(node: FleetMember, wait_s: float = LONG_S) -> Drained:
    async with client_of(node) as client:
        answer = await client.post(ORDER_1 + "/drain", params={"wait": wait_s})
    assert answer.status_code == 200, answer.text
    return Drained.model_validate_json(answer.content)


def pending(found: Drained) -> list[tuple[str, str]]:
    return sorted((one.subscriber, one.node) for one in found.pending)


async def test_the_answer_comes_when_the_copies_at_all_nodes_have_it(nodes: list[FleetMember]) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(following(nodes[0], "gateway/a"))
        second = await stack.enter_async_context(following(nodes[1], "gateway/b"))
        found = await drain(nodes[0])
        # NB: nothing is awaited between the answer and the look at the copies.
        statuses = [copy.instances("order")[0].status for copy in (first, second)]
    assert statuses == [InstanceStatus.DRAINING] * 2
    assert (found.drained, found.acknowledged, found.pending) == (True, ["gateway/a", "gateway/b"], [])
    assert found.revision <= min(first.revision, second.revision)


async def test_nobody_is_waited_for_who_does_not_watch_the_service(nodes: list[FleetMember]) -> None:
    never = asyncio.Event()
    async with following(nodes[0], "other", lambda _: _until(never), ["stock"]):
        found = await drain(nodes[1])
    assert (found.drained, found.acknowledged) == (True, [])


async def test_who_has_not_put_it_in_force_is_named_with_its_node_and_revision(nodes: list[FleetMember]) -> None:
    never = asyncio.Event()
    async with following(nodes[0], "quick"), following(nodes[1], "slow", lambda _: _until(never)):
        found = await drain(nodes[0], wait_s=0.5)
    assert (found.drained, found.acknowledged, pending(found)) == (False, ["quick"], [("slow", "node-2")])
    assert found.pending[0].revision < found.revision


async def test_the_answer_comes_as_soon_as_the_last_one_has_it_in_force(nodes: list[FleetMember]) -> None:
    asked, in_force = asyncio.Event(), asyncio.Event()

    async def slowly(_revision: int) -> None:
        asked.set()
        await in_force.wait()

    async with following(nodes[1], "slow", slowly):
        draining = asyncio.ensure_future(drain(nodes[0]))  # noqa: TID251 - awaited below
        await asked.wait()
        assert not draining.done()
        in_force.set()
        async with asyncio.timeout(WAIT_S_MAX):
            found = await draining
    assert (found.drained, found.acknowledged) == (True, ["slow"])


async def test_a_stream_without_a_name_proves_nothing_and_is_not_waited_for(nodes: list[FleetMember]) -> None:
    async with ControlPlane([nodes[1].url]) as control_plane:
        events = control_plane.stream_events("/v1/registry/default/watch")
        async with aclosing(events), following(nodes[0], "named"):
            await anext(events)
            async with asyncio.timeout(WAIT_S_MAX):
                found = await drain(nodes[0])
    assert (found.drained, found.acknowledged) == (False, ["named"])
    assert [one.subscriber.rsplit(":", 1)[0] for one in found.pending] == ["127.0.0.1"]


async def test_one_of_two_streams_of_one_name_does_not_speak_for_the_other(nodes: list[FleetMember]) -> None:
    never = asyncio.Event()
    async with following(nodes[0], "same"), following(nodes[0], "same", lambda _: _until(never)):
        found = await drain(nodes[1], wait_s=0.5)
    assert (found.drained, found.acknowledged, pending(found)) == (False, [], [("same", "node-1")])


async def test_a_client_whose_stream_was_cut_is_missing_until_it_is_back_anywhere(nodes: list[FleetMember]) -> None:
    """It may route by what it knew. At another node it counts where it is."""
    async with _named_stream(nodes[0], "gateway/a"):
        pass  # ends without a word
    found = await drain(nodes[1], wait_s=0)
    assert (found.drained, pending(found)) == (False, [("gateway/a", "node-1")])
    draining = asyncio.ensure_future(drain(nodes[1]))  # noqa: TID251 - awaited below
    async with following(nodes[1], "gateway/a"), asyncio.timeout(WAIT_S_MAX):
        found = await draining
    assert (found.drained, found.acknowledged) == (True, ["gateway/a"])


async def test_a_client_that_has_ended_in_good_order_is_nobody_s_concern(nodes: list[FleetMember]) -> None:
    async with following(nodes[0], "sdk/order"):
        pass
    async with asyncio.timeout(WAIT_S_MAX):
        found = await drain(nodes[0])
    assert (found.drained, found.acknowledged) == (True, [])


async def test_with_a_node_that_is_up_and_silent_nothing_is_proven(nodes: list[FleetMember], store: Store) -> None:
    async with following(nodes[0], "gateway/a"):
        await announce(store, "node-3", "http://127.0.0.1:1")
        found = await drain(nodes[0], wait_s=0)
    assert (found.drained, [one.node for one in found.silent_nodes]) == (False, ["node-3"])
    assert found.silent_nodes[0].error


async def test_clients_of_a_node_that_has_just_gone_may_be_on_their_way(nodes: list[FleetMember], store: Store) -> None:
    assert (await drain(nodes[0])).drained
    await nodes[1].stop()
    await store.delete(b"quorate/nodes/node-2")
    found = await drain(nodes[0], wait_s=0)
    assert (found.drained, [one.node for one in found.silent_nodes]) == (False, ["node-2"])
    assert "it has gone" in found.silent_nodes[0].error


async def test_a_node_that_has_begun_anew_does_not_know_yet_who_watches(nodes: list[FleetMember], store: Store) -> None:
    await nodes[1].stop()
    async with registry_fleet(store, ["node-2"]):
        found = await drain(nodes[0], wait_s=0)
    assert (found.drained, [one.node for one in found.silent_nodes]) == (False, ["node-2"])
    assert "it has begun anew" in found.silent_nodes[0].error


async def test_to_drain_again_only_waits(nodes: list[FleetMember]) -> None:
    first, second = await drain(nodes[0]), await drain(nodes[1])
    assert (second.revision, second.drained) == (first.revision, True)


async def test_what_is_not_there_cannot_be_drained(nodes: list[FleetMember]) -> None:
    async with client_of(nodes[0]) as client:
        answer = await client.post(f"{SERVICES}/order/instances/nobody/drain")
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:quorate:problem:not-found")
        for wait in (-1, 56, "nan", "x"):
            assert (await client.post(ORDER_1 + "/drain", params={"wait": wait})).status_code == 400


async def test_an_acknowledgement_counts_for_no_more_than_the_node_has_told(nodes: list[FleetMember]) -> None:
    """A client that claims the future is asked like any other."""
    async with _named_stream(nodes[0], "liar"), client_of(nodes[0]) as client:
        claim = {"subscriber": "liar", "namespace": "default", "revision": 2**60}
        assert (await client.post("/v1/registry/acks", json=claim)).status_code == 204
        found = await drain(nodes[0], wait_s=0)
    assert (found.drained, pending(found)) == (False, [("liar", "node-1")])


async def test_a_word_of_a_stream_that_this_node_does_not_have_is_refused(nodes: list[FleetMember]) -> None:
    async with client_of(nodes[0]) as client:
        for word in ({"subscriber": "nobody"}, {"subscriber": "nobody", "stream": "1"}):
            answer = await client.post("/v1/registry/acks", json={**word, "revision": 1})
            assert answer.status_code == 404
        assert (await client.post("/v1/registry/acks", json={"subscriber": "a b", "revision": 1})).status_code == 400


@asynccontextmanager
async def _named_stream(node: FleetMember, subscriber: str) -> AsyncIterator[Any]:
    """A client that watches, and never says a word. Its end is seen by the node before this returns."""
    streams = node.registry.watchers
    before = len(streams)
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"{node.url}/v1/registry/default/watch"
        async with client.stream("GET", url, params={"subscriber": subscriber}) as answer:
            lines = answer.aiter_lines()
            while "snapshot" not in await anext(lines):
                pass
            yield lines
    async with asyncio.timeout(WAIT_S_MAX):
        while len(streams) > before:  # noqa: ASYNC110 - a disconnect tells nobody but the server
            await asyncio.sleep(0)


async def _until(event: asyncio.Event) -> None:
    await event.wait()
