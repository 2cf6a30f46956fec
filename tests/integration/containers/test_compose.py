"""docker-compose.yml on a real engine: it comes up by itself, keeps to itself, and outlives the loss of a node."""

import json
import re
from collections.abc import Callable

import pytest
from integration.containers.deployment import (
    IMAGE_TAG,
    PROCESSES,
    STEPS,
    Deployment,
    final_status,
    place_order,
)
from integration.containers.locks import locked_packages
from support.platform import eventually
from support.repository import members

# The first of these tests waits for a build.
pytestmark = pytest.mark.timeout(1200)

ORDERS_MEANWHILE = 10
MODULES_MIN = 100
"""Fewer would mean that the search for modules without bytecode has not found the modules."""
MODES = """
import json, os, pathlib
print(json.dumps({path.name: [oct(path.stat().st_mode & 0o777), path.stat().st_uid, len(path.read_text().strip())]
                  for path in pathlib.Path("/cluster").iterdir()}))
"""
ASK_WITHOUT_TOKEN = """
import json, urllib.error, urllib.request
try:
    print(urllib.request.urlopen("http://node-2:8501/v1/registry/default/services", timeout=5).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""
CONTENTS = """
import importlib.metadata, json, pathlib, shutil, sys
site = pathlib.Path(importlib.metadata.distribution("quorate-core").locate_file(""))
modules = list(site.rglob("quorate_*/**/*.py"))
compiled = {str(path.parent.parent / path.name.split(".")[0]) for path in site.rglob("*.pyc")}
print(json.dumps({
    "packages": sorted(found.name for found in importlib.metadata.distributions(path=[str(site)])),
    "tools": [name for name in ("pip", "uv", "gcc", "cc", "g++", "make", "mypy", "pytest", "ruff")
              if shutil.which(name, path="/opt/quorate/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")],
    "modules": len(modules),
    "uncompiled": [str(path) for path in modules if str(path.with_suffix("")) not in compiled],
}))
"""


def test_every_process_is_healthy_and_every_step_before_it_has_ended_well(deployment: Deployment) -> None:
    assert set(deployment.healthy_after_s) == set(PROCESSES)
    for step in STEPS:
        state = eventually(f"{step} has ended", lambda step=step: _ended(deployment, step), 60)
        assert state["ExitCode"] == 0, deployment.compose("logs", "--no-color", step)
    assert all(deployment.inspect(name)["RestartCount"] == 0 for name in PROCESSES)


def _ended(deployment: Deployment, service: str) -> dict[str, object] | None:
    state: dict[str, object] = deployment.inspect(service)["State"]
    return state if state["Status"] == "exited" else None


def test_an_order_through_the_published_port_is_confirmed(deployment: Deployment) -> None:
    url = deployment.url
    before = deployment.http.get(url + "/stock/widget").json()["available"]
    order = place_order(deployment, url, 2)
    assert final_status(deployment, url, order) == "CONFIRMED"
    assert deployment.http.get(url + "/stock/widget").json()["available"] == before - 2


def test_only_the_gateway_is_published_and_its_admin_api_is_not(deployment: Deployment) -> None:
    published = {
        (name, port)
        for name in (*PROCESSES, *STEPS)
        for port, bindings in deployment.inspect(name)["NetworkSettings"]["Ports"].items()
        if bindings
    }
    assert published == {("gateway", "8080/tcp")}


def test_no_process_is_root_or_can_change_its_image(deployment: Deployment) -> None:
    for name in (*PROCESSES, *STEPS):
        found = deployment.inspect(name)
        assert found["Config"]["User"] == "10001:10001", name
        assert found["HostConfig"]["ReadonlyRootfs"] is True, name
        assert found["HostConfig"]["CapDrop"] == ["ALL"], name
    for name in PROCESSES:
        assert deployment.python(name, "import os; print(os.getuid())") == 10001


def test_secrets_are_generated_for_this_deployment_and_their_reader_alone_can_read_them(
    deployment: Deployment,
) -> None:
    files = deployment.python("node-1", MODES)
    assert set(files) == {"cluster.id", "cluster.secret", "token"}
    assert {(mode, owner) for mode, owner, _ in files.values()} == {("0o600", 10001)}
    assert min(files[name][2] for name in ("cluster.secret", "token")) >= 32
    environments = [entry for name in PROCESSES for entry in deployment.inspect(name)["Config"]["Env"]]
    assert any("TOKEN_FILE=" in entry for entry in environments), "else this looks at the wrong thing"
    token = deployment.python("gateway", "import json; print(json.dumps(open('/cluster/token').read().strip()))")
    assert not any(token in entry for entry in environments)


def test_a_node_answers_nobody_without_the_token(deployment: Deployment) -> None:
    assert deployment.python("order", ASK_WITHOUT_TOKEN) == 401


def test_the_image_holds_what_runs_compiled_and_no_tool(deployment: Deployment) -> None:
    alone = ("run", "--rm", "--network", "none", "--entrypoint", "python")
    found = json.loads(deployment.docker(*alone, f"quorate:{IMAGE_TAG}", "-c", CONTENTS))
    locked = {name for name, marker in locked_packages("runtime.lock").items() if not marker}
    ours = {member.project["project"]["name"] for member in members()}
    installed = {re.sub(r"[-_.]+", "-", name).lower() for name in found["packages"]}
    assert installed == locked | ours
    assert found["tools"] == []
    assert found["uncompiled"] == []
    assert found["modules"] > MODULES_MIN
    assert not [entry for entry in deployment.image()["Config"]["Env"] if entry.startswith("PIP_")]


def test_orders_and_config_go_on_while_the_leader_is_killed_and_it_rejoins(
    deployment: Deployment, show: Callable[[str], None]
) -> None:
    url, leader = deployment.url, deployment.cluster()["leader"]
    deployment.docker("kill", "--signal", "KILL", deployment.container(leader))
    orders = [place_order(deployment, url) for _ in range(ORDERS_MEANWHILE)]
    assert {final_status(deployment, url, order) for order in orders} == {"CONFIRMED"}
    assert deployment.inspect(leader)["State"]["Running"] is False, "all of it without the node"

    deployment.quorate("config", "put", "default", "order", "settings.yaml", "-", stdin="max_quantity: 7\n")
    eventually("the order service serves it", lambda: _max_quantity(deployment, url) == 7)

    deployment.docker("start", deployment.container(leader))
    eventually(f"{leader} has caught up", lambda: _has_caught_up(deployment, leader), 60)
    show(f"{leader} led and was killed: {len(orders)} orders confirmed and a document published without it; it is back")


def _max_quantity(deployment: Deployment, url: str) -> int:
    return int(deployment.http.get(url + "/orders/settings").json()["settings"]["max_quantity"])


def _has_caught_up(deployment: Deployment, node: str) -> bool:
    reports = {report["name"]: report["status"] for report in deployment.cluster()["nodes"]}
    if not all(reports.values()):
        return False
    return int(reports[node]["applied_index"]) == max(int(report["applied_index"]) for report in reports.values())


def test_taken_down_and_started_again_it_finds_its_data(deployment: Deployment, show: Callable[[str], None]) -> None:
    files = deployment.python("node-1", MODES)
    order = place_order(deployment, deployment.url, 3)
    assert final_status(deployment, deployment.url, order) == "CONFIRMED"
    deployment.compose("down")
    healthy_s = deployment.up()
    show(f"taken down and started again: all healthy after {healthy_s:.1f} s")
    url = deployment.url
    assert deployment.http.get(f"{url}/orders/{order}").json()["status"] == "CONFIRMED"
    assert deployment.python("node-1", MODES) == files
    history = json.loads(deployment.quorate("config", "history", "default", "order", "settings.yaml", "--json"))
    assert [row["version"] for row in history["versions"]] == [2, 1], "setup has changed nothing"
    assert final_status(deployment, url, place_order(deployment, url)) == "CONFIRMED"


def test_every_process_drains_when_it_is_stopped(deployment: Deployment) -> None:
    deployment.compose("stop")
    assert {name: deployment.inspect(name)["State"]["ExitCode"] for name in PROCESSES} == dict.fromkeys(PROCESSES, 0)


def test_a_node_whose_volume_was_lost_refuses_to_start_and_says_what_to_do(deployment: Deployment) -> None:
    deployment.compose("rm", "--force", "node-3")
    deployment.docker("volume", "rm", f"{deployment.project}_node-3")
    deployment.compose("up", "-d", "--no-deps", "node-3")

    def said() -> str | None:
        text = deployment.compose("logs", "--no-color", "node-3")
        return text if "must not vote" in text else None

    text = eventually("it refuses", said, 60)
    assert "--begun-file /begun/node-3 is there" in text
    assert "quorate cluster remove" in text


def test_down_leaves_nothing(deployment: Deployment) -> None:
    assert len(deployment.left_over()) > len(PROCESSES), "else this looks at the wrong thing"
    deployment.down()
    assert deployment.left_over() == []
