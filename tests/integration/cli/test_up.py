"""The whole platform by one command: started, killed in parts and as a whole, stopped, started again."""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from quorate_cli.ports import free_ports
from support import plain_http

SMALL = ("--nodes", "1", "--orders", "1", "--inventories", "1")
ORDER = {"customer": "c-1", "lines": [{"sku": "widget", "quantity": 2}]}

pytestmark = pytest.mark.timeout(180)


async def test_the_platform_starts_serves_heals_stops_and_finds_its_data_again(quorate: Any) -> None:
    await quorate.until_ready(*SMALL)
    state = quorate.state
    assert state["state"] == "ready"
    assert {name: part["state"] for name, part in state["parts"].items()} == {
        "node-1": "ready", "gateway": "ready", "order-1": "ready", "inventory-1": "ready",
    }  # fmt: skip
    for name, part in state["parts"].items():
        assert any(name in line and part["url"] in line and str(part["pid"]) in line for line in quorate.said), name

    curl = await quorate.until_said("curl -i ")
    assert f"{state['gateway']}/orders" in curl
    async with plain_http.async_client(base_url=state["gateway"]) as client:
        # What is printed to be tried works at once.
        answer = await client.post("/orders", json=ORDER)
        assert answer.status_code == 202
        placed = answer.headers["location"]

        code, _, err = await quorate.run("up")
        assert (code, f"pid {quorate.up.pid}" in err) == (4, True)
        code, _, err = await quorate.run("reset", "--yes")
        assert (code, "quorate down" in err) == (4, True)
        await commands_beside_it_work(quorate)

        shutil.copytree(quorate.root, quorate.root.with_name("copy"))
        code, out, _ = await quorate.run("down", "--root", str(quorate.root.with_name("copy")))
        assert (code, "No platform runs" in out) == (0, True)
        assert quorate.state == state

        killed = state["parts"]["order-1"]["pid"]
        os.kill(killed, signal.SIGKILL)
        assert "was killed by SIGKILL; restarting in 0.2 s" in await quorate.until_said("order-1 ")
        back = await quorate.until_said("order-1 is back")
        part = quorate.state["parts"]["order-1"]
        assert part["pid"] != killed
        assert part["restarts"] == 1
        assert f"(pid {part['pid']})" in back

    quorate.interrupt()
    assert await quorate.ended() == 0
    assert [line.strip() for line in quorate.said if line.endswith(" stopped")] == [
        "services stopped", "gateway stopped", "nodes stopped",
    ]  # fmt: skip
    assert not any("killed" in line for line in quorate.said[quorate.said.index(back) :])
    assert (await quorate.run("ps"))[0] == 3

    await quorate.until_ready()  # the number of nodes is that of the data
    async with plain_http.async_client(base_url=quorate.state["gateway"]) as client:
        assert (await client.get(placed)).json()["customer"] == "c-1"
    code, out, _ = await quorate.run("down")
    assert (code, "Stopped" in out) == (0, True)
    assert await quorate.ended() == 0
    assert (await quorate.run("reset", "--yes"))[0] == 0
    assert not quorate.root.exists()


async def commands_beside_it_work(quorate: Any) -> None:
    code, out, _ = await quorate.run("services", "--json")
    assert (code, {item["service"] for item in json.loads(out)["services"]}) == (0, {"order", "inventory"})
    code, out, _ = await quorate.run("cluster", "status", "--json")
    assert (code, json.loads(out)["leader"]) == (0, "node-1")
    code, out, _ = await quorate.run("config", "list", "--json")
    names = {f"{item['group']}/{item['key']}" for item in json.loads(out)["documents"]}
    assert names == {"gateway/routes.yaml", "order/settings.yaml", "inventory/settings.yaml"}
    code, out, _ = await quorate.run("routes", "explain", "/stock/widget")
    assert (code, "goes to inventory" in out) == (0, True)
    code, out, _ = await quorate.run("logs", "node-1")
    assert (code, bool(out)) == (0, True)


async def test_when_the_supervisor_is_killed_its_children_end_and_the_next_start_is_clean(
    quorate: Any, until_ended: Callable[[int], Awaitable[None]]
) -> None:
    await quorate.until_ready(*SMALL)
    pids = [part["pid"] for part in quorate.state["parts"].values()]
    quorate.up.kill()
    await quorate.up.wait()
    for pid in pids:
        await until_ended(pid)
    await quorate.until_ready(*SMALL)
    assert quorate.state["pid"] == quorate.up.pid


async def test_a_port_in_use_is_named_with_its_holder_before_anything_starts(quorate: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code, _, err = await quorate.run("up", *SMALL, "--gateway-port", str(port))
    assert code == 4
    assert f"port {port} for the gateway is held by" in err
    assert f"(pid {os.getpid()})" in err
    assert "--gateway-port" in err
    assert list((quorate.root / "logs").iterdir()) == []


async def test_a_part_that_refuses_to_start_is_named_with_its_last_words_and_nothing_is_left(
    quorate: Any, until_ended: Callable[[int], Awaitable[None]]
) -> None:
    quorate.environment["QUORATE_GATEWAY_LOG_FORMAT"] = "nonsense"
    code, _, err = await quorate.run("up", "--ports", "auto", *SMALL)
    assert code == 1
    assert "gateway cannot start" in err
    assert "QUORATE_GATEWAY_LOG_FORMAT" in err
    assert not (quorate.root / "run" / "state.json").exists()
    assert (await quorate.run("down"))[1].startswith("No platform runs")


async def test_a_majority_and_one_of_each_service_are_enough_and_a_wiped_node_stays_out(quorate: Any) -> None:
    """A node that has lost its log must not vote; the others do their work, and what was deleted stays deleted."""
    options = ("--nodes", "3", "--orders", "1", "--inventories", "1")
    await quorate.until_ready(*options)
    assert (await quorate.run("config", "delete", "default", "order", "settings.yaml"))[0] == 0
    quorate.interrupt()
    assert await quorate.ended() == 0
    shutil.rmtree(quorate.root / "data" / "node-2")
    (quorate.root / "logs" / "order-2.log").mkdir()  # so it cannot be spawned

    await quorate.until_ready("--nodes", "3", "--orders", "2", "--inventories", "1")
    assert "without node-2, order-2" in quorate.said[-1]
    said = "\n".join(quorate.said)
    assert "node-2 cannot start" in said
    assert "a member that has forgotten what it acknowledged must not vote" in said
    state = quorate.state
    assert {name: part["state"] for name, part in state["parts"].items()} == {
        "node-1": "ready", "node-2": "backing-off", "node-3": "ready",
        "gateway": "ready", "order-1": "ready", "order-2": "backing-off", "inventory-1": "ready",
    }  # fmt: skip
    assert "could not be started" in state["parts"]["order-2"]["reason"]
    assert "must not vote" in state["parts"]["node-2"]["reason"]
    assert not (quorate.root / "data" / "node-2").exists()
    shown = "".join((await quorate.run("ps"))[1].split())  # a long cell is folded
    assert "mustnotvote" in shown
    async with plain_http.async_client(base_url=state["gateway"]) as client:
        assert (await client.post("/orders", json=ORDER)).status_code == 202
    code, out, _ = await quorate.run("config", "list", "--json")
    names = {item["key"] for item in json.loads(out)["documents"] if item["group"] == "order"}
    assert (code, names) == (0, set())
    quorate.interrupt()
    assert await quorate.ended() == 0

    shutil.rmtree(quorate.root / "data" / "node-1")
    code, _, err = await quorate.run("up", "--ports", "auto", *options)
    assert (code, "no majority of the nodes can start" in err) == (1, True)


async def test_another_number_of_nodes_than_the_data_has_is_refused(quorate: Any) -> None:
    quorate.environment["QUORATE_NODE_LOG_FORMAT"] = "nonsense"
    assert (await quorate.run("up", "--ports", "auto", "--nodes", "1"))[0] == 1
    code, _, err = await quorate.run("up", "--ports", "auto", "--nodes", "3")
    assert (code, "--nodes 1" in err) == (4, True)


async def test_a_node_that_has_lost_its_data_is_let_be_once_it_was_removed(quorate: Any) -> None:
    """It refuses to start, so it never hears from the others that it is no member any more."""
    await quorate.until_ready("--nodes", "3", "--orders", "0", "--inventories", "0")
    shutil.rmtree(quorate.root / "data" / "node-2")
    os.kill(quorate.state["parts"]["node-2"]["pid"], signal.SIGKILL)
    await quorate.until_said("must not vote")
    code, _, err = await quorate.run("cluster", "remove", "node-2", "--yes")
    assert code == 0, err
    await quorate.until_said("node-2 was removed from the cluster, and is not started again")
    assert quorate.state["parts"]["node-2"]["state"] == "removed"
    assert (await quorate.run("cluster", "status"))[0] == 0


async def test_a_node_is_replaced_by_hand_and_the_removed_one_is_shown_and_never_started_again(quorate: Any) -> None:
    options = ("--nodes", "3", "--orders", "0", "--inventories", "0")
    await quorate.until_ready(*options)
    (port,) = free_ports(1, "127.0.0.1", random.Random())
    code, out, err = await quorate.run("cluster", "add", "node-4", f"127.0.0.1:{port}")
    assert code == 0, err
    line = out[out.index(sys.executable) :].partition("\n\n")[0]
    added = await asyncio.create_subprocess_exec("/bin/sh", "-c", f"exec {line}", start_new_session=True)
    try:
        code, out, err = await quorate.run("cluster", "promote", "node-4")
        assert (code, out) == (0, "node-4 is a voter now.\n"), err
        code, _, err = await quorate.run("cluster", "remove", "node-2", "--yes")
        assert code == 0, err
        await quorate.until_said("node-2 was removed from the cluster, and is not started again")
        part = quorate.state["parts"]["node-2"]
        assert (part["state"], part["pid"], part["restarts"]) == ("removed", 0, 0)
        assert "can be deleted" in part["reason"]
        assert [line.split()[3] for line in (await quorate.run("ps"))[1].splitlines() if "node-2" in line][:1] == [
            "removed"
        ]
    finally:
        added.terminate()
        assert await added.wait() == 0
    quorate.interrupt()
    assert await quorate.ended() == 0

    shutil.rmtree(quorate.root / "data" / "node-2")
    await quorate.until_ready(*options)
    assert "Not started, since the cluster has removed it: node-2" in quorate.said
    assert sorted(quorate.state["parts"]) == ["gateway", "node-1", "node-3"]
    code, out, _ = await quorate.run("cluster", "members", "--json")
    found = json.loads(out)
    assert (code, [member["name"] for member in found["members"]]) == (0, ["node-1", "node-3", "node-4"])
    assert found["removed"] == ["node-2"]
