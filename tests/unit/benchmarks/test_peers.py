"""Configurations of the peers, and the programs that were found."""

import json
from pathlib import Path

import pytest
import yaml
from quorate_gateway.routes import parse_routes

from benchmarks.failures import BenchmarkFailed
from benchmarks.peers import CONFIGURATIONS, read_programs, render, write_configuration

PORTS = {"listen_port": 20_001, "upstream_port_1": 20_002, "upstream_port_2": 20_003}


def test_each_place_is_filled_and_other_signs_stay() -> None:
    assert render('listen @{port}; "@type": $host {x}', {"port": 80}) == 'listen 80; "@type": $host {x}'


def test_a_name_without_a_value_and_a_value_without_a_place_are_refused() -> None:
    with pytest.raises(BenchmarkFailed, match=r"wants \['port'\] in vain"):
        render("listen @{port}", {})
    with pytest.raises(BenchmarkFailed, match=r"no place for \['prot'\]"):
        render("listen", {"prot": 80})


def test_the_routes_are_such_as_the_gateway_accepts_one_with_protections_and_one_without() -> None:
    full = parse_routes(render((CONFIGURATIONS / "quorate-routes.yaml").read_text(), {"tokens": 1_000_000}))
    bare = parse_routes((CONFIGURATIONS / "quorate-routes-bare.yaml").read_text())
    (protected,), (plain,) = full.routes, bare.routes
    assert protected.rate_limit is not None
    assert protected.rate_limit.requests_per_second == 1_000_000
    assert protected.circuit_breaker.enabled
    assert plain.rate_limit is None
    assert not plain.circuit_breaker.enabled


@pytest.mark.parametrize(("name", "protections"), [("envoy.yaml", 1), ("envoy-bare.yaml", 0)])
def test_envoys_configuration_is_yaml_with_or_without_the_rate_limit(
    tmp_path: Path, name: str, protections: int
) -> None:
    values = {**PORTS, "admin_port": 20_004, **({"tokens": 5} if protections else {})}
    document = yaml.safe_load(write_configuration(name, tmp_path, values).read_text())
    (listener,) = document["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    assert listener["address"]["socket_address"]["port_value"] == 20_001
    assert len(manager["http_filters"]) == 1 + protections
    assert "access_log" not in manager


def test_a_program_is_found_by_its_manifest_with_its_libraries_before_those_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/theirs")
    wrk = {"program": "/x/wrk", "version": "4.1.0", "origin": "package wrk", "library_folders": ["/x/lib"]}
    nginx = {**wrk, "program": "/usr/sbin/nginx", "library_folders": []}
    manifest = tmp_path / "peers.json"
    manifest.write_text(json.dumps({"found": {"wrk": wrk, "nginx": nginx}, "missing": {"envoy": "no wheel for it"}}))
    programs = read_programs(manifest)
    assert programs["wrk"].environment == {"LD_LIBRARY_PATH": "/x/lib:/theirs"}
    assert programs["nginx"].environment == {}
    assert programs.versions == {"nginx": "4.1.0", "wrk": "4.1.0"}
    with pytest.raises(BenchmarkFailed, match="envoy is missing: no wheel for it"):
        programs["envoy"]
    with pytest.raises(BenchmarkFailed, match="never looked for"):
        programs["etcd"]


def test_without_a_manifest_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkFailed, match=r"scripts/fetch_peers\.py"):
        read_programs(tmp_path / "peers.json")
