"""A platform that is set back to a snapshot: its gateways and services, which have seen what came after, follow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.platform import Platform, eventually

ROUTES = "routes:\n- name: only\n  match: {path_prefix: /only}\n  service: order\n"


@pytest.fixture
def fresh(tmp_path: Path) -> Platform:
    return Platform(tmp_path)


def routes(platform: Platform) -> set[str]:
    """What the gateway serves."""
    found = platform.http.get(f"{platform.state()['admin']}/v1/gateway/routes").json()
    return {route["name"] for route in found}


def revisions(platform: Platform) -> list[int]:
    """Of each node; 0 for one that does not answer."""
    nodes = json.loads(platform.cli("cluster", "status", "--json").stdout)["nodes"]
    return [node["status"]["revision"] if node["status"] else 0 for node in nodes]


def test_the_whole_platform_goes_back_to_a_snapshot_though_its_gateway_has_seen_more(fresh: Platform) -> None:
    file = fresh.root / "good.snapshot"
    try:
        fresh.start("--nodes", "3", "--orders", "1", "--inventories", "1")
        before = routes(fresh)
        assert fresh.cli("cluster", "snapshot", "save", str(file)).returncode == 0
        (fresh.root / "bad.yaml").write_text(ROUTES)
        put = fresh.cli("config", "put", "default", "gateway", "routes.yaml", str(fresh.root / "bad.yaml"))
        assert put.returncode == 0, put.stderr
        eventually("the gateway serves the change", lambda: routes(fresh) == {"only"})
        running = fresh.cli("cluster", "snapshot", "restore", str(file), "--platform", "--root", str(fresh.root))
        assert (running.returncode, "stop it first" in running.stderr) == (4, True)
        assert fresh.stop() == 0

        restored = subprocess.run(
            [sys.executable, "-m", "quorate_cli", "cluster", "snapshot", "restore", str(file), "--platform",
             "--root", str(fresh.root), "--yes", "--json"],
            cwd=fresh.root, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert restored.returncode == 0, restored.stderr
        beyond = json.loads(restored.stdout)["revision"]
        fresh.start("--orders", "1", "--inventories", "1")
        eventually("the gateway serves what was restored", lambda: routes(fresh) == before)
        placed = fresh.place(3).json()
        assert fresh.final(placed["id"])["status"] == "CONFIRMED"
        eventually("every node is beyond all that was seen", lambda: min(revisions(fresh)) > beyond)
    finally:
        fresh.stop()
        fresh.http.close()
