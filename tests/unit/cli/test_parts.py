"""What `quorate up` would start."""

from dataclasses import replace
from pathlib import Path

import pytest
from quorate_cli.layout import Cluster, Layout
from quorate_cli.parts import REMOVED_MARK, Part, PartKind, Platform, Ports, migration_command, plan_platform
from quorate_node import memory

LAYOUT = Layout(Path("/srv/shop"))
PORTS = Ports((8501, 8502, 8503), (7501, 7502, 7503), 8080, 8090, (20001, 20002, 20003))


@pytest.fixture
def platform() -> Platform:
    return plan_platform(LAYOUT, Cluster("c-1", 3), PORTS, orders=2, inventories=1)


def options_of(part: Part) -> dict[str, str]:
    words = part.command("python")[4:]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_every_part_has_a_name_of_its_own_and_starts_its_own_module(platform: Platform) -> None:
    names = ["node-1", "node-2", "node-3", "gateway", "order-1", "order-2", "inventory-1"]
    assert [part.name for part in platform.all] == names
    modules = ["quorate_node"] * 3 + ["quorate_gateway"] + ["quorate_order"] * 2 + ["quorate_inventory"]
    assert [part.command("python")[3] for part in platform.all] == modules


def test_every_node_is_told_all_members_and_its_own_place_among_them(platform: Platform) -> None:
    members = "node-1=127.0.0.1:7501,node-2=127.0.0.1:7502,node-3=127.0.0.1:7503"
    for node, port in zip(platform.nodes, PORTS.peers, strict=True):
        options = options_of(node)
        assert options["--members"] == members
        assert f"{options['--name']}={options['--peer']}" in members
        assert options["--peer"] == f"127.0.0.1:{port}"
        assert options["--cluster-id"] == "c-1"


def test_a_node_that_the_cluster_has_removed_is_neither_started_nor_named_to_anybody() -> None:
    cluster = Cluster("c-1", 3, begun_nodes=("node-1", "node-2", "node-3"), removed_nodes=("node-2",))
    platform = plan_platform(LAYOUT, cluster, PORTS, orders=1, inventories=2)
    assert [node.name for node in platform.nodes] == ["node-1", "node-3"]
    assert platform.endpoints == ["http://127.0.0.1:8501", "http://127.0.0.1:8503"]
    assert {options_of(node)["--members"] for node in platform.nodes} == {"node-1=127.0.0.1:7501,node-3=127.0.0.1:7503"}
    assert options_of(platform.gateway)["--endpoints"] == "http://127.0.0.1:8501,http://127.0.0.1:8503"


def test_a_nodes_mark_of_removal_is_where_the_node_leaves_it(platform: Platform, tmp_path: Path) -> None:
    assert REMOVED_MARK == memory.REMOVED_MARK
    node = platform.nodes[1]
    assert node.retired_mark == Path(options_of(node)["--data-dir"]) / memory.REMOVED_MARK
    marked = replace(node, retired_mark=tmp_path / "removed")
    assert not marked.is_retired
    (tmp_path / "removed").write_text("node-2 was removed")
    assert marked.is_retired
    assert not platform.gateway.is_retired


def test_no_two_parts_listen_on_one_port_and_no_two_nodes_share_a_folder(platform: Platform) -> None:
    listened = [port for part in platform.all for port in {part.address.port, part.health_address.port}]
    listened += [int(options_of(node)["--peer"].rpartition(":")[2]) for node in platform.nodes]
    assert len(listened) == len(set(listened))
    folders = [options_of(node)["--data-dir"] for node in platform.nodes]
    assert len(set(folders)) == 3


def test_the_instances_of_a_service_share_its_database_and_may_move_to_another_port(platform: Platform) -> None:
    orders = [part for part in platform.services if part.kind is PartKind.ORDER]
    assert {options_of(part)["--data-dir"] for part in orders} == {"/srv/shop/data/order"}
    assert all(part.may_move for part in platform.services)
    assert not any(part.may_move for part in (*platform.nodes, platform.gateway))
    moved = orders[0].moved_to(20009)
    assert options_of(moved)["--listen"] == "127.0.0.1:20009"
    assert moved.ready_url == "http://127.0.0.1:20009/readyz"


def test_gateway_and_services_are_told_every_node(platform: Platform) -> None:
    for part in (platform.gateway, *platform.services):
        assert options_of(part)["--endpoints"].split(",") == platform.endpoints


def test_the_gateway_says_on_its_admin_port_whether_it_is_ready(platform: Platform) -> None:
    assert platform.gateway.url == "http://127.0.0.1:8080"
    assert platform.gateway.ready_url == "http://127.0.0.1:8090/readyz"
    assert options_of(platform.gateway)["--admin"] == "127.0.0.1:8090"


def test_only_the_inventory_is_stocked() -> None:
    assert migration_command(LAYOUT, PartKind.INVENTORY, "python")[-2:] == ("--stock", "widget=1000,gadget=500")
    assert "--stock" not in migration_command(LAYOUT, PartKind.ORDER, "python")


def test_no_secret_is_on_a_command_line(platform: Platform) -> None:
    for part in platform.all:
        options = options_of(part)
        for option, value in options.items():
            if "secret" in option or "token" in option:
                assert option.endswith("-file")
                assert Path(value).parent == LAYOUT.root


def test_the_gateway_has_as_many_workers_as_are_asked_for_and_else_goes_by_its_environment(
    platform: Platform,
) -> None:
    assert "--workers" not in platform.gateway.arguments
    asked = plan_platform(LAYOUT, Cluster("c-1", 1), PORTS, orders=2, inventories=1, gateway_workers=3)
    arguments = asked.gateway.arguments
    assert arguments[arguments.index("--workers") + 1] == "3"


def test_what_is_said_of_the_gateway_is_where_it_is_asked_for_and_its_health_stays_plain(platform: Platform) -> None:
    assert platform.gateway.url == f"http://{platform.gateway.address}"
    secured = plan_platform(LAYOUT, Cluster("c-1", 1), PORTS, orders=2, inventories=1, gateway_scheme="https")
    assert secured.gateway.url == f"https://{platform.gateway.address}"
    assert secured.gateway.ready_url == platform.gateway.ready_url
    assert secured.admin_url == platform.admin_url
