"""The gateway's two protections as an operator sees them: switched, watched and undone on the running platform."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import yaml
from support.platform import Platform, eventually

SETTINGS = ("default", "inventory", "settings.yaml")
ROUTES = ("default", "gateway", "routes.yaml")


def put(platform: Platform, document: tuple[str, str, str], content: dict[str, Any]) -> None:
    text = yaml.safe_dump(content, sort_keys=False)
    done = platform.cli("config", "put", *document, "-", stdin=text)
    assert done.returncode == 0, done.stderr


@contextmanager
def changed(platform: Platform, document: tuple[str, str, str]) -> Iterator[dict[str, Any]]:
    """The document's content, to change and put; as it was again afterwards."""
    shown = platform.cli("config", "get", *document)
    assert shown.returncode == 0, shown.stderr
    try:
        yield yaml.safe_load(shown.stdout)
    finally:
        done = platform.cli("config", "put", *document, "-", stdin=shown.stdout)
        assert done.returncode == 0, done.stderr


def breaker(platform: Platform) -> dict[str, Any]:
    admin = platform.state()["admin"]
    found = platform.http.get(f"{admin}/v1/gateway/policies", params={"route": "stock"})
    return dict(found.json()["circuit_breaker"])


def metric(platform: Platform, line: str) -> float:
    text = platform.http.get(f"{platform.state()['admin']}/metrics").text
    [value] = [found.split()[-1] for found in text.splitlines() if found.startswith(line + " ")]
    return float(value)


def ask(platform: Platform) -> httpx.Response:
    return platform.http.get(f"{platform.gateway}/stock/widget")


def broken(answer: httpx.Response) -> bool:
    return answer.status_code == 503 and answer.json().get("rule") == "circuit-open"


def routes_cli(platform: Platform, *arguments: str) -> subprocess.CompletedProcess[str]:
    return platform.cli("routes", *arguments, QUORATE_GATEWAY_ADMIN=str(platform.state()["admin"]))


def logged(platform: Platform, part: str) -> str:
    """What a part has said, without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", (platform.root / "logs" / f"{part}.log").read_text())


def closes_by_itself(platform: Platform) -> None:
    """Traffic goes on; nobody touches the breaker."""

    def is_closed() -> bool:
        return ask(platform).status_code == 200 and breaker(platform)["state"] == "closed"

    eventually("the breaker closes after its probes", is_closed, 15)
    assert metric(platform, 'quorate_gateway_circuit_breaker_state{route="stock"}') == 0


def test_a_failing_service_opens_the_breaker_which_closes_by_itself_when_it_is_well(platform: Platform) -> None:
    assert ask(platform).status_code == 200
    with changed(platform, SETTINGS) as settings:
        put(platform, SETTINGS, {**settings, "fault": {"mode": "fail"}})
        failed = eventually("the switch is on", lambda: found if (found := ask(platform)).is_server_error else None)
        if not broken(failed):
            assert "the fault switch is on" in failed.json()["detail"]
        refused = eventually("the breaker opens", lambda: found if broken(found := ask(platform)) else None)
        assert refused.headers["content-type"] == "application/problem+json"
        assert 1 <= int(refused.headers["retry-after"]) <= 5
        assert refused.elapsed.total_seconds() < 1
        body = refused.json()
        assert (body["route"], body["retry"], body["status"]) == ("stock", "safe", 503)
        shown = breaker(platform)
        assert shown["opened"] >= 1
        assert shown["refused"] >= 1
        transitions = 'quorate_gateway_circuit_breaker_transitions_total{route="stock",state="open"}'
        assert metric(platform, transitions) >= 1
        # Other routes of the gateway, and orders for what is in stock, go on: the bus is not what was switched.
        placed = platform.place(1)
        assert placed.status_code == 202
        assert platform.final(placed.json()["id"])["status"] == "CONFIRMED"
    closes_by_itself(platform)
    assert "fault_switched" in logged(platform, "inventory-1")
    for state in ("open", "half-open", "closed"):
        eventually(
            f"{state} is logged",
            lambda state=state: re.search(rf"circuit_breaker .*state={state}\b", logged(platform, "gateway")),
        )


def test_a_slow_service_opens_the_breaker_and_callers_are_answered_at_once(platform: Platform) -> None:
    with changed(platform, SETTINGS) as settings, changed(platform, ROUTES) as routes:
        # So few that asking one after the other opens it: a call is slow after 0.3 s.
        [stock] = [route for route in routes["routes"] if route["name"] == "stock"]
        stock["circuit_breaker"] = {"calls_min": 2, "slow_call_ms": 300}
        put(platform, ROUTES, routes)
        eventually("the new parameters are served", lambda: "slow_call_ms 300" in breaker(platform)["summary"])
        put(platform, SETTINGS, {**settings, "fault": {"mode": "slow", "delay_ms": 700}})
        refused = eventually("the breaker opens", lambda: found if broken(found := ask(platform)) else None)
        assert "slow" in refused.json()["detail"]
        assert refused.elapsed.total_seconds() < 0.7
        shown = routes_cli(platform, "list")
        assert "failed or slow" in shown.stdout, shown.stdout + shown.stderr
    closes_by_itself(platform)


def test_a_rate_limit_is_put_live_and_taken_away_live(platform: Platform) -> None:
    with changed(platform, ROUTES) as routes:
        [stock] = [route for route in routes["routes"] if route["name"] == "stock"]
        stock["rate_limit"] = {"requests_per_second": 0.1, "burst": 2, "key": "header:X-Api-Key"}
        put(platform, ROUTES, routes)
        eventually("the limit is in force", lambda: "ratelimit" in ask(platform).headers)

        def asked(key: str) -> httpx.Response:
            return platform.http.get(f"{platform.gateway}/stock/widget", headers={"x-api-key": key})

        assert [asked("one").status_code for _ in range(3)] == [200, 200, 429]
        limited = asked("one")
        assert limited.headers["content-type"] == "application/problem+json"
        assert limited.headers["ratelimit-policy"] == '"stock";q=2;w=20'
        assert limited.headers["ratelimit"] == f'"stock";r=0;t={limited.headers["retry-after"]}'
        assert 1 <= int(limited.headers["retry-after"]) <= 10
        assert (limited.json()["rule"], limited.json()["route"]) == ("rate-limited", "stock")
        assert asked("two").status_code == 200

        shown = routes_cli(platform, "list")
        assert "0.1 requests a second, 2 at once, by header:X-Api-Key" in shown.stdout, shown.stderr
        listed = json.loads(routes_cli(platform, "list", "--json").stdout)
        [stock_shown] = [route for route in listed if route["name"] == "stock"]
        assert stock_shown["rate_limit"]["limited"] >= 2
        explained = routes_cli(platform, "explain", "/stock/widget", "-H", "X-Api-Key: one")
        assert explained.returncode == 3
        assert "rate_limit, refuses: 0.1 requests a second" in explained.stdout
        assert metric(platform, 'quorate_gateway_rate_limit_total{outcome="limited",route="stock"}') >= 2
    eventually("the limit is gone", lambda: "ratelimit" not in ask(platform).headers)
    assert [ask(platform).status_code for _ in range(5)] == [200] * 5


def test_policies_that_mean_nothing_are_refused_with_their_line(platform: Platform) -> None:
    bad = (
        "routes:\n  - name: stock\n    match: {path_prefix: /stock}\n    service: inventory\n"
        "    rate_limit:\n      requests_per_second: -5\n    circuit_breaker:\n      window_ms: 0\n      probs: 5\n"
    )
    refused = platform.cli("config", "put", *ROUTES, "-", stdin=bad)
    assert refused.returncode == 4
    for line, cause in ((6, "greater than or equal to 0.001"), (8, "greater than or equal to 100"), (9, "'probes'")):
        assert any(f"line {line}" in said and cause in said for said in refused.stderr.splitlines()), refused.stderr
    assert ask(platform).status_code == 200


def test_a_fault_that_is_none_changes_nothing(platform: Platform) -> None:
    instances = platform.http.get(f"{platform.endpoints[0]}/v1/registry/default/services/inventory").json()["instances"]
    with changed(platform, SETTINGS) as settings:
        put(platform, SETTINGS, {**settings, "low_stock_threshold": 11, "fault": {"mode": "explode"}})
        for name in platform.pids("inventory"):
            eventually("it is told of", lambda name=name: re.search(r"fault\.mode", logged(platform, name)))
        for one in instances:
            settings_url = f"http://{one['host']}:{one['port']}/stock/settings"
            assert platform.http.get(settings_url).json()["settings"]["fault"]["mode"] == "off"
        assert ask(platform).status_code == 200
