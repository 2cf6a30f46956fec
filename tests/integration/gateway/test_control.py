"""The gateway behind a real registry and config center: what is published reaches requests, and what is lost does not
take the last good with it."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from quorate_config_center.app import ConfigCenterApp
from quorate_config_center.history import DocumentHistory
from quorate_config_center.model import Change, DocumentName, Precondition
from quorate_core.asgi import Protection, Surface
from quorate_core.clock import Clock, ManualClock, SystemClock
from quorate_core.metrics import render_metrics
from quorate_gateway.admin import create_admin
from quorate_gateway.control import Control
from quorate_gateway.metrics import GatewayCollector
from quorate_gateway.served import LocalPlane
from quorate_gateway.snapshot import EMPTY, Snapshot
from quorate_registry import RegistryApp
from quorate_resilience.limiters.table import KEYS_MAX
from quorate_sdk import ControlPlane
from quorate_sdk.control_plane import Params, StreamEvent
from quorate_sdk.wire import ConfigFormat
from quorate_store.port import Store
from support import plain_http
from support.gateway_client import Gateway, running_gateway
from support.gateway_upstream import Upstream, unused_port
from support.registry_server import WAIT_S_MAX, NodeServer
from support.store_local import local_store

ROUTES = "routes:\n  - name: orders\n    match: {path_prefix: /orders}\n    service: order\n"
INVALID = "routes:\n  - name: orders\n    servise: order\n"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path / "store") as store:
        yield store


@pytest.fixture
async def node(store: Store) -> AsyncIterator[NodeServer]:
    async with NodeServer(store, (RegistryApp, ConfigCenterApp)) as node:
        yield node


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as upstream:
        yield upstream


class Steered:
    """A data plane steered by a control, and a way to wait for its next snapshot."""

    def __init__(self, gateway: Gateway, control_plane: ControlPlane, data_dir: Path, clock: Clock) -> None:
        self.gateway = gateway
        self._swapped = asyncio.Event()
        self.control = Control(control_plane, "default", data_dir, self._swap, clock=clock)

    def _swap(self, snapshot: Snapshot) -> None:
        self.gateway.plane.swap(snapshot)
        self._swapped.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds; looked at whenever a snapshot is swapped in."""
        async with asyncio.timeout(WAIT_S_MAX):
            while not condition():
                self._swapped.clear()
                await self._swapped.wait()

    async def until_routed(self, *instances: str) -> None:
        await self.until(lambda: self.routed == list(instances) and bool(self.gateway.plane.snapshot.routes))

    @property
    def routed(self) -> list[str]:
        return [one.instance_id for one in self.gateway.plane.snapshot.endpoints.get("order", ())]

    async def admin(self, path: str, method: str = "GET", body: object = None) -> httpx.Response:
        surface = Surface("gateway", Protection(frozenset({"admin"})), self.control.unready_reason)
        transport = httpx.ASGITransport(create_admin(surface, LocalPlane(self.gateway.plane), self.control))
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            return await client.request(method, path, json=body)

    async def force(self, route: str, forced: str | None) -> httpx.Response:
        return await self.admin(f"/v1/gateway/breaker?route={route}", "PUT", {"forced": forced})

    def metrics(self) -> list[str]:
        registry = CollectorRegistry()
        registry.register(GatewayCollector(LocalPlane(self.gateway.plane), self.control))
        return render_metrics(registry).decode().splitlines()


class RecordingControlPlane(ControlPlane):
    """A real one that remembers from which revision each event stream was asked for."""

    def __init__(self, url: str) -> None:
        super().__init__([url])
        self.asked: dict[str, list[int | None]] = {}

    def stream_events(
        self, path: str, params: Params | None = None, last_event_id: int | None = None
    ) -> AsyncIterator[StreamEvent]:
        self.asked.setdefault(path.split("/")[2], []).append(last_event_id)
        return super().stream_events(path, params, last_event_id)


@asynccontextmanager
async def steered(url: str, data_dir: Path, clock: Clock | None = None) -> AsyncIterator[Steered]:
    async with RecordingControlPlane(url) as control_plane, steered_by(control_plane, data_dir, clock) as steered:
        yield steered


@asynccontextmanager
async def steered_by(control_plane: ControlPlane, data_dir: Path, clock: Clock | None = None) -> AsyncIterator[Steered]:
    async with running_gateway() as gateway:
        gateway.plane.swap(EMPTY)  # as it is before anything is known
        steered = Steered(gateway, control_plane, data_dir, clock or SystemClock())
        await steered.control.start()
        try:
            yield steered
        finally:
            await steered.control.stop()


async def publish(node: NodeServer, content: str, key: str = "routes.yaml") -> httpx.Response:
    async with plain_http.async_client() as client:
        return await client.put(f"{node.url}/v1/config/default/gateway/{key}", content=content)


async def register(node: NodeServer, instance_id: str, port: int, status: str = "UP", version: str = "") -> None:
    async with plain_http.async_client() as client:
        url = f"{node.url}/v1/registry/default/services/order/instances/{instance_id}"
        spec = {"host": "127.0.0.1", "port": port, "ttl_s": 600, "status": status, "version": version}
        (await client.put(url, json=spec)).raise_for_status()


async def deregister(node: NodeServer, instance_id: str) -> None:
    async with plain_http.async_client() as client:
        url = f"{node.url}/v1/registry/default/services/order/instances/{instance_id}"
        (await client.delete(url)).raise_for_status()


async def publish_unchecked(store: Store, content: str) -> None:
    """As a config center without the gateway's validator would."""
    name = DocumentName("default", "gateway", "routes.yaml")
    change = Change("someone", "", "2026-01-01T00:00:00Z")
    await DocumentHistory(store).publish(name, content, ConfigFormat.YAML, change, Precondition())


async def test_what_is_published_and_registered_takes_requests_and_leaves_again(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        client = await gateway.gateway.client()
        assert json.loads((await client.get()).body)["rule"] == "no-snapshot"
        assert (await publish(node, ROUTES)).status_code == 201
        await gateway.until(lambda: len(gateway.gateway.plane.snapshot.routes) == 1)
        assert json.loads((await client.get()).body)["rule"] == "no-endpoint"
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        assert (await client.get()).body == b"hello"
        await register(node, "order-1", upstream.port, "DRAINING")
        await gateway.until_routed()
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        await deregister(node, "order-1")
        await gateway.until_routed()
        assert (await client.get()).status == 503


async def test_routes_that_are_invalid_are_refused_at_publish_with_their_line(node: NodeServer, tmp_path: Path) -> None:
    refused = await publish(node, INVALID)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["line"] == 3
    assert "servise" in refused.json()["detail"] + json.dumps(refused.json()["errors"])


async def test_routes_that_are_invalid_all_the_same_are_told_of_and_not_applied(
    node: NodeServer, store: Store, upstream: Upstream, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await publish(node, ROUTES)
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        await publish_unchecked(store, INVALID)
        await gateway.gateway.until(lambda: gateway.control.rejected is not None)
        assert (await (await gateway.gateway.client()).get()).status == 200
        shown = (await gateway.admin("/v1/gateway/snapshot")).json()
        assert (shown["routes_version"], shown["rejected"]["version"]) == (1, 2)
        assert "servise" in shown["rejected"]["reason"]
        await publish_unchecked(store, ROUTES.replace("name: orders", "name: again"))
        await gateway.until(lambda: [route.name for route in gateway.gateway.plane.snapshot.routes] == ["again"])
        assert gateway.control.rejected is None

    # Restarted while the newest is invalid: the last good routes are still served.
    await publish_unchecked(store, INVALID)
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await gateway.until_routed("order-1")
        assert [route.name for route in gateway.gateway.plane.snapshot.routes] == ["again"]


async def test_a_control_plane_that_is_away_changes_nothing_and_the_gateway_catches_up(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway, Upstream() as second:
        await publish(node, ROUTES)
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        await gateway.gateway.until(lambda: gateway.control.connected)
        assert gateway.control.stale_s == 0
        await node.stop()
        await gateway.gateway.until(lambda: not gateway.control.connected)
        client = await gateway.gateway.client()
        assert [(await client.get()).status for _ in range(3)] == [200] * 3
        assert gateway.control.stale_s > 0
        await node.start()
        await register(node, "order-2", second.port)
        await gateway.until_routed("order-1", "order-2")


async def test_a_restart_without_a_control_plane_serves_from_disk_and_says_how_old_it_is(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await publish(node, ROUTES)
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
    async with steered(f"http://127.0.0.1:{unused_port()}", tmp_path / "gateway") as gateway:
        await gateway.until_routed("order-1")
        assert (await (await gateway.gateway.client()).get()).body == b"hello"
        assert (await gateway.admin("/readyz")).status_code == 200
        shown = (await gateway.admin("/v1/gateway/snapshot")).json()
        assert (shown["connected"], shown["routes_version"], shown["endpoints"]) == (False, 1, 1)
        assert gateway.control.stale_s > 0


async def test_the_age_is_of_the_last_confirmation_also_after_a_restart_and_not_of_the_last_change(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    data_dir, clock = tmp_path / "gateway", ManualClock()
    async with steered(node.url, data_dir, clock) as gateway:
        await publish(node, ROUTES)
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        await gateway.gateway.until(lambda: gateway.control.connected)
        clock.advance(3_600)  # an hour in which nothing changes, and all of it is confirmed
        assert gateway.control.stale_s == 0
    for name in ("good-routes.json", "documents.json", "registry.json"):
        os.utime(data_dir / name, (0, 0))
    clock.advance(500)
    async with steered(f"http://127.0.0.1:{unused_port()}", data_dir, clock) as gateway:
        await gateway.until_routed("order-1")
        assert gateway.control.stale_s == 500
        clock.advance(20)
        assert (await gateway.admin("/v1/gateway/snapshot")).json()["stale_s"] == 520
        assert "quorate_gateway_snapshot_age_seconds 520.0" in gateway.metrics()
        clock.advance(5)
    # A second restart without a control plane makes nothing younger, and a clock that was set back nothing negative.
    async with steered(f"http://127.0.0.1:{unused_port()}", data_dir, clock) as gateway:
        assert gateway.control.stale_s == 525
    async with steered(f"http://127.0.0.1:{unused_port()}", data_dir, ManualClock(10)) as gateway:
        assert gateway.control.stale_s == 0
    async with steered(node.url, data_dir, clock) as gateway:
        await gateway.gateway.until(lambda: gateway.control.connected)
        assert gateway.control.stale_s == 0


async def test_a_watch_that_breaks_goes_on_from_its_revision(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    async with (
        Upstream() as second,
        RecordingControlPlane(node.url) as control_plane,
        steered_by(control_plane, tmp_path / "gateway") as gateway,
    ):
        await publish(node, ROUTES)
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        known = gateway.control.revisions
        assert control_plane.asked == {"config": [None], "registry": [None]}
        await node.stop()
        await gateway.gateway.until(lambda: not gateway.control.connected)
        await node.start()
        await publish(node, ROUTES + OTHER)
        await register(node, "order-2", second.port)
        await gateway.until_routed("order-1", "order-2")
        await gateway.until(lambda: len(gateway.gateway.plane.snapshot.routes) == 2)
        for stream in ("config", "registry"):
            _, *resumed = control_plane.asked[stream]
            assert resumed
            assert all(revision is not None and revision >= known.routes_revision for revision in resumed)
        assert gateway.control.revisions.newest > known.newest


async def test_the_good_routes_alone_are_enough_for_a_restart_without_a_control_plane(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await publish(node, ROUTES)
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
    (tmp_path / "gateway" / "documents.json").unlink()
    async with steered(f"http://127.0.0.1:{unused_port()}", tmp_path / "gateway") as gateway:
        await gateway.until_routed("order-1")
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await gateway.until_routed("order-1")
        await publish(node, ROUTES.replace("name: orders", "name: newer"))
        await gateway.until(lambda: [route.name for route in gateway.gateway.plane.snapshot.routes] == ["newer"])


async def test_a_deleted_document_ends_no_traffic_and_an_empty_one_does(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await publish(node, ROUTES)
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        async with plain_http.async_client() as client:
            (await client.delete(f"{node.url}/v1/config/default/gateway/routes.yaml")).raise_for_status()
        await gateway.gateway.until(lambda: gateway.control.rejected is not None)
        assert (await (await gateway.gateway.client()).get()).status == 200
        shown = (await gateway.admin("/v1/gateway/snapshot")).json()
        assert "is gone" in shown["rejected"]["reason"]
        await publish(node, "routes: []\n")
        await gateway.until(lambda: not gateway.gateway.plane.snapshot.routes)
        assert (await (await gateway.gateway.client()).get()).status == 404


async def test_a_first_start_without_a_control_plane_is_not_ready_and_says_so(tmp_path: Path) -> None:
    async with steered(f"http://127.0.0.1:{unused_port()}", tmp_path / "gateway") as gateway:
        ready = await gateway.admin("/readyz")
        assert ready.status_code == 503
        assert "no routes" in ready.text
        assert (await gateway.admin("/livez")).status_code == 200


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"version": "x"}', b'{"version":1,"revision":1,"content":"routes: x"}']
)
async def test_a_damaged_copy_on_disk_does_no_harm(node: NodeServer, tmp_path: Path, damage: bytes) -> None:
    data_dir = tmp_path / "gateway"
    data_dir.mkdir()
    for name in ("good-routes.json", "documents.json", "registry.json", "confirmed.json"):
        (data_dir / name).write_bytes(damage)
    await publish(node, ROUTES)
    async with steered(node.url, data_dir) as gateway:
        await gateway.until(lambda: [route.name for route in gateway.gateway.plane.snapshot.routes] == ["orders"])


async def test_the_admin_api_shows_routes_endpoints_and_connections_and_explains(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await publish(node, ROUTES + "    rewrite: {path_prefix: /v2}\n    retry: {attempts: 1}\n")
        await register(node, "order-1", upstream.port)
        await register(node, "order-2", upstream.port + 1, "OUT_OF_SERVICE")
        await gateway.until_routed("order-1")
        await gateway.gateway.until(lambda: len(gateway.control.discovery.instances("order")) == 2)
        await (await gateway.gateway.client()).get()

        [route] = (await gateway.admin("/v1/gateway/routes")).json()
        assert (route["name"], route["service"], route["endpoints"]) == ("orders", "order", 1)
        assert route["route"]["retry"]["attempts"] == 1
        assert route["destinations"] == [{"service": "order", "version": None, "weight": 1}]
        one, two = (await gateway.admin("/v1/gateway/endpoints")).json()
        assert (one["instance"], one["routed"], one["pool"]["idle"]) == ("order-1", True, 1)
        assert (two["instance"], two["routed"], two["reason"]) == ("order-2", False, "status OUT_OF_SERVICE")
        assert (await gateway.admin("/v1/gateway/clusters")).json() == [
            {"service": "order", "instances": 2, "endpoints": 1, "versions": {"": 1}, "zones": {"": 1},
             "routes": [{"route": "orders", "version": None, "policy": "least_request", "zone_aware": True,
                         "key": None}]}
        ]  # fmt: skip
        connections = (await gateway.admin("/v1/gateway/connections")).json()
        assert connections == {"total": 1, "clients": [{"address": "127.0.0.1", "state": "idle"}], "leaving": []}
        assert (await gateway.admin("/v1/gateway/routes/schema")).json()["title"] == "Routes of the gateway"

        explained = (await gateway.admin("/v1/gateway/explain?path=/orders/7%3Fa&host=shop.example")).json()
        assert explained == {
            "route": "orders", "service": "order", "upstream_target": "/v2/7?a", "upstream_host": "shop.example",
            "rule": None, "balance": "least_request",
            "endpoints": [f"order-1 (127.0.0.1:{upstream.port})"],
            "shares": [{"service": "order", "version": None, "percent": 100.0,
                        "endpoints": [f"order-1 (127.0.0.1:{upstream.port})"]}],
            "considered": [{"route": "orders", "refused_by": None}],
            "policies": [
                {"policy": "circuit_breaker", "rule": "circuit-open", "lets_through": True,
                 "summary": "the circuit breaker is closed; within 5 s: 1 calls, 0 failed, 0 slow (slow_call_ms 1000)"}
            ],
        }  # fmt: skip
        assert (await gateway.admin("/v1/gateway/explain?path=/nowhere")).json()["rule"] == "no-route"
        assert (await gateway.admin("/v1/gateway/explain?path=/a/../b")).json()["rule"] == "ambiguous-path"
        smuggled = "/v1/gateway/explain?path=/orders&header=X-A:%201%0d%0a%0d%0aGET%20/admin"
        assert (await gateway.admin(smuggled)).status_code == 400
        assert (await gateway.admin("/v1/gateway/explain")).status_code == 400


GUARDED = """\
routes:
  - name: orders
    match: {path_template: "/orders/{id}", methods: [GET]}
    split: [{service: order, version: v1, weight: 3}, {service: order, version: v2, weight: 1}]
    split_key: api_key
    rewrite: {path: "/v2/{id}", host: order.internal}
    auth: {api_key: {}}
    cors: {origins: ["https://shop.example"]}
    rate_limit: {requests_per_second: 0.001, burst: 2, key: api_key}
"""
KEYS = f"keys: [{{id: web, sha256: {hashlib.sha256(b'secret').hexdigest()}}}]\n"


async def test_an_explanation_tells_every_rule_that_would_apply_in_its_order_and_spends_nothing(
    node: NodeServer, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await publish(node, KEYS, "api-keys.yaml")
        await publish(node, GUARDED)
        await register(node, "order-1", 7_001, version="v1")
        await register(node, "order-2", 7_002, version="v2")
        await gateway.until_routed("order-1", "order-2")
        explain = "/v1/gateway/explain?path=/orders/7"
        origin = "&header=origin:%20https://shop.example"

        stranger = (await gateway.admin(explain + origin)).json()
        assert stranger["rule"] == "unauthenticated"
        assert [(one["policy"], one["lets_through"]) for one in stranger["policies"]] == [
            ("cors", True), ("auth", False), ("rate_limit", True), ("circuit_breaker", True),
        ]  # fmt: skip
        assert [(share["version"], share["percent"]) for share in stranger["shares"]] == [("v1", 75.0), ("v2", 25.0)]
        assert (stranger["upstream_target"], stranger["upstream_host"]) == ("/v2/7", "order.internal")

        for _ in range(3):
            known = (await gateway.admin(explain + origin + "&header=x-api-key:%20secret")).json()
            assert known["rule"] is None
            assert known["policies"][1]["summary"] == "API key 'web'"
            assert known["policies"][2]["summary"].endswith("; 2 left now")
            [share] = known["shares"]
            assert (share["percent"], len(known["endpoints"])) == (100.0, 1)
        preflight = f"{explain}{origin}&method=OPTIONS&header=access-control-request-method:%20GET"
        assert (await gateway.admin(preflight)).json()["rule"] == "cors-preflight"
        other = (await gateway.admin(explain + "&header=origin:%20https://evil.example")).json()
        assert other["policies"][0]["summary"].endswith("no origin that may read the answer")
        shown = (await gateway.admin("/v1/gateway/snapshot")).json()
        assert (shown["api_keys_version"], shown["api_keys"], shown["api_keys_rejected"]) == (1, 1, None)
        [cluster] = (await gateway.admin("/v1/gateway/clusters")).json()
        assert cluster["versions"] == {"v1": 1, "v2": 1}
        assert [route["version"] for route in cluster["routes"]] == ["v1", "v2"]


LIMITED = ROUTES + "    rate_limit: {requests_per_second: 0.001, burst: 3, key: client}\n"
OTHER = "  - {name: other, match: {path_prefix: /other}, service: order}\n"


async def test_another_route_that_is_published_resets_neither_bucket_nor_breaker_and_a_new_limit_is_in_force_at_once(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await publish(node, LIMITED)
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        client = await gateway.gateway.client()
        assert [(await client.get()).status for _ in range(4)] == [200, 200, 200, 429]
        await publish(node, LIMITED + OTHER)
        await gateway.until(lambda: len(gateway.gateway.plane.snapshot.routes) == 2)
        assert (await client.get()).status == 429
        [route] = [one for one in (await gateway.admin("/v1/gateway/routes")).json() if one["name"] == "orders"]
        assert (route["rate_limit"]["admitted"], route["rate_limit"]["limited"]) == (3, 2)
        assert (route["circuit_breaker"]["state"], route["circuit_breaker"]["calls"]) == ("closed", 3)

        await publish(node, LIMITED.replace("burst: 3", "burst: 5") + OTHER)
        await gateway.until(lambda: gateway.gateway.plane.snapshot.routes[0].source.rate_limit.burst == 5)
        assert (await client.get()).field("ratelimit") == '"orders";r=4;t=1000'
        await publish(node, ROUTES)
        await gateway.until(lambda: len(gateway.gateway.plane.snapshot.routes) == 1)
        assert [(await client.get()).field("ratelimit") for _ in range(9)] == [None] * 9


@pytest.mark.parametrize(
    ("policy", "line", "cause"),
    [
        ("rate_limit: {requests_per_second: -1}", 5, "greater than or equal to 0.001"),
        ("circuit_breaker: {window_ms: 0}", 5, "greater than or equal to 100"),
        ("rate_limits: {requests_per_second: 1}", 5, "did you mean 'rate_limit'?"),
        ("rate_limit: {algorithm: sliding_window, requests: 1, sub_window: 3}", 5, "did you mean 'sub_windows'?"),
        ("rate_limit: {algorithm: leaky, requests: 1}", 5, "'algorithm' is one of 'token_bucket'"),
        ("auth: {jwt: {provider: staff}}", 5, "no provider is called 'staff'"),
        ("version: v1\nexpect:\n  - GET /order -> orders", 7, "but no route takes it"),
    ],
)
async def test_a_policy_that_can_mean_nothing_is_refused_at_publish_with_its_line(
    node: NodeServer, policy: str, line: int, cause: str
) -> None:
    refused = await publish(node, f"{ROUTES}    {policy}\n")
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["line"] == line
    assert cause in refused.json()["errors"][0]["message"]


async def test_the_admin_api_shows_the_state_of_limits_and_breakers_and_whom_they_would_refuse(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await publish(node, LIMITED.replace("key: client", "key: 'header:X-Api-Key'"))
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        client = await gateway.gateway.client()
        for key, count in (("secret-one", 3), ("secret-two", 1)):
            for _ in range(count):
                assert (await client.get(fields=f"X-Api-Key: {key}\r\n")).status == 200
        answer = await gateway.admin("/v1/gateway/policies?route=orders")
        limit = answer.json()["rate_limit"]
        assert (limit["keys"], limit["keys_max"], limit["admitted"]) == (2, KEYS_MAX, 4)
        assert [round(bucket["left"]) for bucket in limit["nearest"]] == [0, 2]
        assert "secret" not in answer.text
        assert (await gateway.admin("/v1/gateway/policies?route=nowhere")).status_code == 404

        explain = "/v1/gateway/explain?path=/orders&header=x-api-key:%20"
        one, two = [(await gateway.admin(explain + key)).json() for key in ("secret-one", "secret-two")]
        assert (one["rule"], two["rule"]) == ("rate-limited", None)
        assert [policy["policy"] for policy in one["policies"]] == ["rate_limit", "circuit_breaker"]
        assert two["policies"][0]["summary"].endswith("; 2 left now")
        assert len(upstream.requests) == 4


async def test_an_operator_forces_a_breaker_open_and_releases_it(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await publish(node, ROUTES + OTHER.replace("order}", "order, circuit_breaker: off}"))
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        client = await gateway.gateway.client()
        forced = await gateway.force("orders", "open")
        assert forced.json()["circuit_breaker"]["state"] == "forced-open"
        answer = await client.get()
        assert (answer.status, json.loads(answer.body)["rule"]) == (503, "circuit-open")
        assert "by an operator" in json.loads(answer.body)["detail"]
        assert (await gateway.admin("/v1/gateway/explain?path=/orders")).json()["rule"] == "circuit-open"
        assert (await client.get("/other")).status == 200
        assert (await gateway.force("orders", None)).json()["circuit_breaker"]["state"] == "closed"
        assert (await client.get()).status == 200
        assert (await gateway.force("orders", "closed")).json()["circuit_breaker"]["state"] == "forced-closed"
        assert (await gateway.force("orders", "ajar")).status_code == 400
        assert (await gateway.force("other", "open")).status_code == 409
        assert (await gateway.force("nowhere", "open")).status_code == 404


async def test_metrics_tell_of_limits_and_breakers(node: NodeServer, upstream: Upstream, tmp_path: Path) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await publish(node, LIMITED + OTHER.replace("order}", "order, circuit_breaker: off}"))
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        client = await gateway.gateway.client()
        for path in ("/orders", "/orders", "/orders", "/orders", "/other"):
            await client.get(path)
        await gateway.force("orders", "open")
        lines = gateway.metrics()
        for line in (
            'quorate_gateway_rate_limit_total{outcome="admitted",route="orders"} 3.0',
            'quorate_gateway_rate_limit_total{outcome="limited",route="orders"} 1.0',
            'quorate_gateway_rate_limit_keys{route="orders"} 1.0',
            'quorate_gateway_circuit_breaker_state{route="orders"} 2.0',
            'quorate_gateway_circuit_breaker_transitions_total{route="orders",state="forced-open"} 1.0',
            'quorate_gateway_circuit_breaker_transitions_total{route="orders",state="open"} 0.0',
            'quorate_gateway_circuit_breaker_refused_total{route="orders"} 0.0',
            'quorate_gateway_requests_total{route="orders",status="4xx"} 1.0',
            'quorate_gateway_refusals_total{rule="rate-limited"} 1.0',
        ):
            assert line in lines
        assert not any("circuit_breaker" in line and 'route="other"' in line for line in lines)


async def test_metrics_tell_of_requests_refusals_pools_and_the_snapshot(
    node: NodeServer, upstream: Upstream, tmp_path: Path
) -> None:
    async with steered(node.url, tmp_path / "gateway") as gateway:
        await publish(node, ROUTES)
        await register(node, "order-1", upstream.port)
        await gateway.until_routed("order-1")
        client = await gateway.gateway.client()
        for path in ("/orders", "/orders", "/nowhere"):
            await client.get(path)
        lines = gateway.metrics()
        for line in (
            'quorate_gateway_requests_total{route="orders",status="2xx"} 2.0',
            'quorate_gateway_request_seconds_bucket{le="+Inf",route="orders"} 2.0',
            'quorate_gateway_request_seconds_count{route="orders"} 2.0',
            'quorate_gateway_retries_total{route="orders"} 0.0',
            'quorate_gateway_requests_active{route="orders"} 0.0',
            'quorate_gateway_refusals_total{rule="no-route"} 1.0',
            f'quorate_gateway_upstream_connections{{endpoint="127.0.0.1:{upstream.port}",state="idle"}} 1.0',
            "quorate_gateway_connections 1.0",
            "quorate_gateway_routes_version 1.0",
            "quorate_gateway_snapshot_age_seconds 0.0",
            "quorate_gateway_control_plane_connected 1.0",
            "quorate_gateway_routes_rejected 0.0",
        ):
            assert line in lines
        revision = next(line for line in lines if line.startswith("quorate_gateway_snapshot_revision "))
        assert float(revision.split()[1]) == gateway.control.revisions.newest > 0
