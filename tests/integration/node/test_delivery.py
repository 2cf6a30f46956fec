"""Draining and the timeline on three real nodes, and what is not proven while one of them is dead."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from quorate_sdk import ControlPlane, Discovery
from quorate_sdk.wire import ChangeList, Drained, InstanceStatus
from support import plain_http
from support.node_processes import NodeCluster, NodeProcess, node_cluster

ORDER = "/v1/registry/default/services/order/instances/"
WAIT_S_MAX = 20.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    with node_cluster(Path(tmp_path_factory.mktemp("delivery")), 3) as started:
        started.start()
        for number in (1, 2, 3):
            spec = {"host": "127.0.0.1", "port": 9000 + number, "ttl_s": 600}
            send(started.nodes[number - 1], "PUT", f"{ORDER}order-{number}", json=spec)
        yield started


def send(node: NodeProcess, method: str, path: str, **content: Any) -> dict[str, Any]:
    answer = plain_http.request(method, node.url + path, headers={"quorate-author": "ann"}, timeout=30, **content)
    assert answer.is_success, answer.text
    return dict(answer.json())


def drain(node: NodeProcess, name: str, wait_s: float = WAIT_S_MAX) -> Drained:
    return Drained.model_validate(send(node, "POST", f"{ORDER}{name}/drain", params={"wait": wait_s}))


async def copies(nodes: Sequence[NodeProcess], stack: AsyncExitStack) -> list[Discovery]:
    """Of the SDK, one at each node."""
    found = []
    for node in nodes:
        control_plane = await stack.enter_async_context(ControlPlane([node.url]))
        copy = Discovery(control_plane, subscriber=f"sdk/{node.name}")
        await copy.start()
        stack.push_async_callback(copy.stop)
        assert await copy.ready(WAIT_S_MAX)
        found.append(copy)
    return found


async def test_whichever_node_is_asked_all_copies_at_all_nodes_have_it_by_then(cluster: NodeCluster) -> None:
    async with AsyncExitStack() as stack:
        found = await copies(cluster.nodes, stack)
        for number, node in enumerate(cluster.nodes, 1):
            drained = await asyncio.to_thread(drain, node, f"order-{number}")
            statuses = [{one.id: one.status for one in copy.instances("order")} for copy in found]
            assert [status[f"order-{number}"] for status in statuses] == [InstanceStatus.DRAINING] * 3
            assert drained.drained, drained
            assert drained.acknowledged == [f"sdk/{name.name}" for name in cluster.nodes]


def test_every_node_tells_the_same_of_what_has_changed(cluster: NodeCluster) -> None:
    send(cluster.nodes[0], "PATCH", f"{ORDER}order-1", json={"weight": 7})
    revision = ChangeList.model_validate(send(cluster.nodes[0], "GET", "/v1/changes")).to_revision
    parameters = {"from": 1, "to": revision}
    told = [send(node, "GET", "/v1/changes", params=parameters) for node in cluster.nodes]
    assert told[0] == told[1] == told[2]
    last = ChangeList.model_validate(told[0]).changes[-1]
    assert (last.what, last.by, last.details["weight"]) == ("changed", "ann", ["100", "7"])


async def test_a_node_that_was_killed_is_named_and_nothing_is_proven_before_it_has_settled(
    cluster: NodeCluster,
) -> None:
    """Its clients are at another node within a moment, and still nobody can know that all are."""
    victim = cluster.followers()[0]
    others = [node for node in cluster.nodes if node is not victim]
    async with AsyncExitStack() as stack:
        control_plane = await stack.enter_async_context(ControlPlane([victim.url, others[0].url]))
        copy = Discovery(control_plane, subscriber="sdk/wanders")
        await copy.start()
        stack.push_async_callback(copy.stop)
        assert await copy.ready(WAIT_S_MAX)
        await asyncio.to_thread(victim.kill)
        began_s = time.monotonic()
        drained = await asyncio.to_thread(drain, others[0], "order-2", 1.0)
        assert time.monotonic() - began_s < WAIT_S_MAX
        assert not drained.drained
        assert victim.name in [one.node for one in drained.silent_nodes]
    await asyncio.to_thread(cluster.mend)
    drained = await asyncio.to_thread(drain, others[0], "order-2", 0.0)
    assert [one.node for one in drained.silent_nodes] == [victim.name]
    assert "it has begun anew" in drained.silent_nodes[0].error
