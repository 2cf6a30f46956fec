"""What a user does: places orders, adds a service of one's own, changes config live, looks at it all."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from support.platform import Platform, eventually


def test_an_order_is_confirmed_and_takes_its_stock(platform: Platform) -> None:
    before = platform.stock()
    answer = platform.place(2)
    assert answer.status_code == 202
    placed = answer.json()
    assert placed == {"id": placed["id"], "status": "PENDING"}
    assert answer.headers["location"] == f"/orders/{placed['id']}"
    assert platform.final(placed["id"])["status"] == "CONFIRMED"
    after = platform.stock()
    assert set(after) == {"sku", "available", "reserved"}
    assert before["available"] - after["available"] == 2


def test_an_order_for_more_than_there_is_ends_rejected_and_takes_nothing(platform: Platform) -> None:
    before = platform.stock("gadget")
    placed = platform.place(before["available"] + 1, "gadget").json()
    ended = platform.final(placed["id"])
    assert ended["status"] == "REJECTED"
    assert "gadget" in ended["reason"]
    assert platform.stock("gadget") == before


def test_the_gateway_says_what_this_is(platform: Platform) -> None:
    answer = platform.http.get(platform.gateway + "/")
    assert answer.status_code == 200
    assert "quorate" in answer.text.lower()


class _Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"hello from {self.path}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def service_of_ones_own() -> Iterator[int]:
    """A web server that knows nothing of Quorate; yields its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hello)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def add_route(platform: Platform, tmp_path: Path) -> None:
    """`./quorate config get`, one more route, `./quorate config put`."""
    shown = platform.cli("config", "get", "default", "gateway", "routes.yaml")
    assert shown.returncode == 0, shown.stderr
    document = yaml.safe_load(shown.stdout)
    document["routes"].append({"name": "hello", "match": {"path_prefix": "/hello"}, "service": "hello"})
    file = tmp_path / "routes.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    put = platform.cli("config", "put", "default", "gateway", "routes.yaml", str(file), "--comment", "add hello")
    assert put.returncode == 0, put.stderr


def test_a_service_of_ones_own_is_routed_at_once_and_gone_when_it_has_ended(platform: Platform, tmp_path: Path) -> None:
    add_route(platform, tmp_path)
    node, client = platform.endpoints[0], platform.http
    instance = f"{node}/v1/registry/default/services/hello/instances/hello-1"

    def through_gateway() -> int:
        return client.get(platform.gateway + "/hello/world").status_code

    def stale() -> list[bool]:
        """Of those that are listed."""
        found = client.get(f"{node}/v1/registry/default/services/hello").json()["instances"]
        return [one["stale"] for one in found]

    with service_of_ones_own() as port:
        spec = {"host": "127.0.0.1", "port": port, "ttl_s": 2}
        assert client.put(instance, json=spec).status_code == 201
        eventually("the new service is routed", lambda: through_gateway() == 200, 5)
        assert client.get(platform.gateway + "/hello/world").text == "hello from /hello/world"
        beat = client.post(
            f"{node}/v1/registry/heartbeat",
            json={"instances": [{"service": "hello", "id": "hello-1"}, {"service": "hello", "id": "never-was"}]},
        ).json()
        assert (beat["renewed"], [one["id"] for one in beat["unknown"]]) == (1, ["never-was"])
        # No further heartbeat: the only one of its service stays, marked stale, for as long as it answers.
        eventually("its time to live is over", lambda: stale() == [True], 10)
        assert through_gateway() == 200
        assert client.put(instance, json={**spec, "ttl_s": 60}).status_code == 201
        eventually("it is as before", lambda: stale() == [False], 5)
        assert client.delete(instance).status_code == 200
        eventually("deregistered is gone at once", lambda: through_gateway() == 503, 5)
        assert client.put(instance, json=spec).status_code == 201
        eventually("it is routed again", lambda: through_gateway() == 200, 5)
    eventually("it has ended, and nobody listens where it was", lambda: stale() == [], 15)
    eventually("it is gone from routing", lambda: through_gateway() == 503, 5)


def test_invalid_routes_are_refused_with_the_line_and_the_old_ones_keep_serving(
    platform: Platform, tmp_path: Path
) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text("routes:\n  - name: orders\n    match: {path_prefix: /orders}\n    servise: order\n")
    put = platform.cli("config", "put", "default", "gateway", "routes.yaml", str(file))
    assert put.returncode == 4
    assert "servise" in put.stderr
    assert "line 4" in put.stderr
    assert "Traceback" not in put.stderr
    assert platform.http.get(platform.gateway + "/stock/widget").status_code == 200


def test_a_service_serves_changed_config_without_a_restart(platform: Platform, tmp_path: Path) -> None:
    pids = platform.pids("order")
    file = tmp_path / "settings.yaml"
    file.write_text("max_quantity: 7\n")
    put = platform.cli("config", "put", "default", "order", "settings.yaml", str(file))
    assert put.returncode == 0, put.stderr

    def instances() -> list[str]:
        listed = platform.http.get(f"{platform.endpoints[0]}/v1/registry/default/services/order").json()["instances"]
        return [f"http://{one['host']}:{one['port']}" for one in listed]

    for url in instances():
        eventually(
            f"{url} serves the new value",
            lambda url=url: platform.http.get(f"{url}/orders/settings").json()["settings"]["max_quantity"] == 7,
            5,
        )
    assert platform.place(8).status_code == 422
    assert platform.pids("order") == pids
    for name in pids:
        assert "max_quantity" in (platform.root / "logs" / f"{name}.log").read_text()

    bad = platform.cli("config", "put", "default", "order", "settings.yaml", "-", stdin="max_quantity: [unclosed\n")
    assert bad.returncode == 4
    history = platform.cli("config", "history", "default", "order", "settings.yaml", "--json")
    versions = [row["version"] for row in json.loads(history.stdout)["versions"]]
    assert versions == [2, 1]
    back = platform.cli("config", "rollback", "default", "order", "settings.yaml", "1")
    assert back.returncode == 0, back.stderr
    eventually("an order of eight is accepted again", lambda: platform.place(8).status_code == 202, 5)


def test_an_operator_sees_services_and_the_cluster(platform: Platform) -> None:
    services, cluster = platform.cli("services"), platform.cli("cluster", "status")
    assert services.returncode == 0, services.stderr
    assert "order-1" in platform.cli("services", "order").stdout
    assert cluster.returncode == 0, cluster.stderr
    assert all(name in cluster.stdout for name in ("node-1", "node-2", "node-3", "leader"))
    status = json.loads(platform.cli("cluster", "status", "--json").stdout)
    assert status["leader"] in {"node-1", "node-2", "node-3"}
    summary = json.loads(platform.cli("services", "--json").stdout)
    assert {row["service"]: row["up"] for row in summary["services"]} == {"inventory": 2, "order": 2}


def test_a_command_without_a_control_plane_says_what_to_do(platform: Platform) -> None:
    shown = platform.cli("services", QUORATE_ENDPOINTS="http://127.0.0.1:9")
    assert shown.returncode == 5
    assert "127.0.0.1:9" in shown.stderr
    assert "Traceback" not in shown.stderr
