"""Dockerfile, locks and docker-compose.yml say what the processes really take. No engine is needed to see that."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.containers.deployment import PROCESSES, STEPS
from integration.containers.locks import hashes, lock_entries, locked_packages, workspace_tools
from quorate_core.settings import ProcessSettings
from quorate_gateway.compiled import FOLDER
from quorate_gateway.settings import GatewaySettings
from quorate_inventory.migrate import MigrateSettings as InventoryMigrateSettings
from quorate_inventory.settings import InventoryProcessSettings
from quorate_node.settings import NodeSettings
from quorate_order.migrate import MigrateSettings as OrderMigrateSettings
from quorate_order.settings import OrderProcessSettings
from support.repository import ROOT, members

SETTINGS: dict[str, type[ProcessSettings]] = {
    "node-1": NodeSettings, "node-2": NodeSettings, "node-3": NodeSettings, "gateway": GatewaySettings,
    "order": OrderProcessSettings, "order-migrate": OrderMigrateSettings,
    "inventory": InventoryProcessSettings, "inventory-migrate": InventoryMigrateSettings,
}  # fmt: skip
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
FOR_TESTS = {"quorate-testing"}
"""Members that are in no image."""
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PACKAGE_FOLDER = ROOT / "gateway" / "quorate_gateway"


@pytest.mark.parametrize("lock", ["runtime.lock", "build.lock", "compile.lock"])
def test_the_image_gets_what_is_tested_pinned_by_the_same_hashes(lock: str) -> None:
    whole, part = lock_entries("requirements.lock"), lock_entries(f"docker/{lock}")
    assert len(part) >= 5
    for package, entry in part.items():
        pins = [re.split(r"[ ;\\]", text, maxsplit=1)[0] for text in (entry, whole[package])]
        assert pins[0] == pins[1]
        assert hashes(entry) == hashes(whole[package]) != set(), package


def test_no_tool_is_locked_for_the_image_and_nothing_that_a_member_needs_is_missing() -> None:
    locked = set(locked_packages("runtime.lock"))
    assert locked & workspace_tools() == set()
    in_images = [
        member.project["project"] for member in members() if member.project["project"]["name"] not in FOR_TESTS
    ]
    wanted = {re.split(r"[\[<>=~! ;]", name)[0] for project in in_images for name in project["dependencies"]}
    assert {name for name in wanted if not name.startswith("quorate-")} - locked == set()
    backends = {name for member in members() for name in member.project["build-system"]["requires"]}
    assert backends - set(locked_packages("build.lock")) == set()
    assert {"mypy", "setuptools"} - set(locked_packages("compile.lock")) == set()


def test_the_image_is_built_with_checked_hashes_and_does_not_run_as_root() -> None:
    assert DOCKERFILE.count("--require-hashes") == DOCKERFILE.count("-r /src/docker/") == 3
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    copied = re.findall(r"^COPY ([a-z-]+) /src/", DOCKERFILE, re.MULTILINE)
    folders = {member.folder.relative_to(ROOT).parts[0] for member in members()}
    assert set(copied) == folders, "a member that is not copied would be missing in the image"
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{folder}" for folder in folders} <= set(ignored)
    assert "*" in ignored, "what is not named never reaches the engine"


def test_the_compiler_stays_out_of_the_image_and_what_it_made_goes_where_the_gateway_looks_for_it() -> None:
    _, compiled, image = (f"FROM {stage}" for stage in DOCKERFILE.split("\nFROM ")[-3:])
    assert compiled.startswith("FROM build AS compiled")
    assert "gcc" not in image
    scripts = re.findall(r"scripts/\w+\.py", compiled)
    assert all((ROOT / script).is_file() for script in scripts)
    assert {f"!{script}" for script in scripts} <= set((ROOT / ".dockerignore").read_text().split())
    [source, target] = re.findall(r"/opt/quorate/lib/python3\.11/site-packages/(\S+)", image)
    assert source == target == f"quorate_gateway/{FOLDER.relative_to(PACKAGE_FOLDER)}"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_process_understands_its_environment(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {variable: str(value) for variable, value in SERVICES[name]["environment"].items()}
    settings_type = SETTINGS[name]
    prefix = str(settings_type.model_config["env_prefix"])
    fields = {prefix + field.upper() for field in settings_type.model_fields}
    assert set(environment) - fields == set(), "a variable that nobody reads"
    if "QUORATE_NODE_CLUSTER_ID_FILE" in environment:
        (tmp_path / "cluster.id").write_text("c-1\n")
        environment["QUORATE_NODE_CLUSTER_ID_FILE"] = str(tmp_path / "cluster.id")
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    settings = settings_type.from_command_line(name, [])
    assert settings.data_dir == Path("/data")
    if isinstance(settings, NodeSettings):
        assert (settings.name, settings.cluster_id) == (name, "c-1")
        assert str(settings.http_advertise) == f"{name}:8501"


def test_every_service_is_known_here() -> None:
    assert set(SERVICES) == {*PROCESSES, *STEPS, "quorate"}
    assert set(SETTINGS) | {"init", "setup", "quorate"} == set(SERVICES)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_is_watched_bounded_and_started_again(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][:4] == ["CMD", "python", "-IS", "/opt/quorate/lib/ready.py"]
    assert service["mem_limit"]
    assert service["logging"]["options"]["max-size"]
    data = [volume for volume in service["volumes"] if volume.endswith(":/data")]
    assert data == [f"{name}:/data"], "data in a volume of its own"


@pytest.mark.parametrize("name", ["node-1", "node-2", "node-3"])
def test_a_node_notices_that_its_volume_was_lost_by_a_file_on_another(name: str) -> None:
    service = SERVICES[name]
    begun = Path(service["environment"]["QUORATE_NODE_BEGUN_FILE"])
    assert begun.name == name
    volumes = dict(reversed(volume.split(":")[:2]) for volume in service["volumes"])
    assert volumes[str(begun.parent)] not in (name, "cluster"), "lost with the data, or written beside the secrets"
    made = re.search(r"install -d -o 10001 .* (/data .*)$", DOCKERFILE, re.MULTILINE)
    assert made is not None
    assert str(begun.parent) in made[1].split(), "a folder of the image gives the volume its owner"


def test_only_the_gateway_has_a_published_port_and_a_way_out() -> None:
    assert [name for name, service in SERVICES.items() if service.get("ports")] == ["gateway"]
    reachable = {name for name, service in SERVICES.items() if service.get("networks", ()) == ["platform", "edge"]}
    assert reachable == {"gateway"}
    shut = {name for name, service in SERVICES.items() if service.get("network_mode") == "none"}
    assert shut == {"init", "order-migrate", "inventory-migrate"}
