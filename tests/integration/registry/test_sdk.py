"""The SDK against the real registry over HTTP on loopback, with nodes that go away and come back."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from quorate_config_center.app import ConfigCenterApp
from quorate_core.clock import ManualClock
from quorate_core.errors import InvalidRequest, NotFound, NotProposed, OutcomeUnknown, SettingsError, Unavailable
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_registry import RegistryApp
from quorate_sdk import Client, ControlPlane, Discovery, Registration, lifespan, shared_client
from quorate_sdk.following import EventFollower
from quorate_sdk.wire import InstanceSpec, InstanceStatus
from quorate_store.port import Store
from support.registry_server import WAIT_S_MAX, BreakableStore, NodeServer
from support.store_local import local_store

ORDER_1 = "/v1/registry/default/services/order/instances/order-1"
SPEC: dict[str, Any] = {"host": "127.0.0.1", "port": 9001}


class ShopSettings(BaseModel):
    lines: int = 1


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Store]:
    async with local_store(tmp_path / "store", clock=clock) as store:
        yield store


@pytest.fixture
async def node(store: Store) -> AsyncIterator[NodeServer]:
    async with NodeServer(store) as node:
        yield node


@pytest.fixture
async def control_plane(node: NodeServer) -> AsyncIterator[ControlPlane]:
    async with ControlPlane([node.url]) as control_plane:
        yield control_plane


async def until(discovery: Discovery, holds: Callable[[], bool]) -> None:
    """Wait for it, looking again at each change that discovery tells."""
    changed = asyncio.Event()
    unsubscribe = discovery.subscribe(lambda _: changed.set())
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            while not holds():
                await changed.wait()
                changed.clear()
    finally:
        unsubscribe()


async def until_connected(discovery: Discovery, *, connected: bool = True) -> None:
    """Connections come and go without an event, so this one looks again at each turn of the loop."""
    async with asyncio.timeout(WAIT_S_MAX):
        while discovery.connected is not connected:  # noqa: ASYNC110
            await asyncio.sleep(0)


def ids(discovery: Discovery, service: str = "order") -> list[str]:
    return [instance.id for instance in discovery.instances(service)]


def unused_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


class Upstream:
    """A service instance of a test's own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self._tasks = TaskOwner(name)
        self._listener = open_listener(HostPort("127.0.0.1", 0), name)
        self.port = bound_address(self._listener).port

    async def __aenter__(self) -> "Upstream":
        api = FastAPI()

        @api.post("/stock/{sku}")
        async def stock(sku: str, body: dict[str, int]) -> dict[str, object]:
            self.requests += 1
            return {"sku": sku, "by": self.name, **body}

        self._server = HttpServer(api, self._listener, asyncio.Event(), self._tasks)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()
        await self._tasks.close()


# The control plane's client.


async def test_errors_of_the_server_are_raised_as_what_they_are(control_plane: ControlPlane) -> None:
    with pytest.raises(NotFound, match="order-1"):
        await control_plane.request("GET", ORDER_1)
    with pytest.raises(InvalidRequest, match="port"):
        await control_plane.request("PUT", ORDER_1, json={"host": "a", "port": 0})


async def test_a_call_goes_on_to_a_node_that_lives_and_stays_there(node: NodeServer) -> None:
    async with ControlPlane([unused_url(), node.url]) as control_plane:
        assert (await control_plane.request("PUT", ORDER_1, json=SPEC)).status_code == 201
        assert control_plane._endpoints.current == node.url


async def test_when_no_node_lives_the_error_says_which_did_not_answer() -> None:
    url = unused_url()
    async with ControlPlane([url]) as control_plane:
        with pytest.raises(Unavailable, match=url):
            await control_plane.request("GET", ORDER_1, timeout_s=0.2)


async def test_a_call_that_was_sent_and_not_answered_is_repeated_only_when_idempotent() -> None:
    received: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, ControlPlane([url]) as control_plane:
        with pytest.raises(OutcomeUnknown):
            await control_plane.request("POST", "/v1/anything", timeout_s=5)
        assert len(received) == 1
        with pytest.raises(Unavailable):
            await control_plane.request("PUT", "/v1/anything", idempotent=True, timeout_s=0.3)
        assert len(received) > 2


async def test_a_node_without_a_majority_is_left_for_another_one(store: Store, node: NodeServer) -> None:
    cut_off = BreakableStore(store)
    async with NodeServer(cut_off) as lonely, ControlPlane([lonely.url, node.url]) as control_plane:
        cut_off.cut()
        assert (await control_plane.request("PUT", ORDER_1, json=SPEC)).status_code == 201


# Streams.


async def test_a_stream_begins_with_a_snapshot_and_resumes_with_what_was_missed(control_plane: ControlPlane) -> None:
    path = "/v1/registry/default/watch"
    async with asyncio.timeout(WAIT_S_MAX):
        async with aclosing(control_plane.stream_events(path)) as events:
            first = await anext(events)
        assert first.event == "snapshot"
        await control_plane.request("PUT", ORDER_1, json=SPEC)
        async with aclosing(control_plane.stream_events(path, last_event_id=first.id)) as events:
            missed = await anext(events)
        assert missed.event == "delta"
        assert [change["id"] for change in json.loads(missed.data)["changes"]] == ["order-1"]
        async with aclosing(control_plane.stream_events(path, last_event_id=missed.id)) as events:
            assert (await anext(events)).event == "bookmark"
        async with aclosing(control_plane.stream_events(path, last_event_id=10**9)) as events:
            assert (await anext(events)).event == "snapshot", "a revision of another history"


async def test_a_stream_of_some_services_is_not_disturbed_by_others(control_plane: ControlPlane) -> None:
    watch = control_plane.stream_events("/v1/registry/default/watch", [("service", "order"), ("service", "stock")])
    async with asyncio.timeout(WAIT_S_MAX), aclosing(watch) as events:
        assert json.loads((await anext(events)).data)["services"] == {}
        await control_plane.request("PUT", ORDER_1.replace("order", "other"), json=SPEC)
        await control_plane.request("PUT", ORDER_1, json=SPEC)
        delta = await anext(events)
        assert [change["service"] for change in json.loads(delta.data)["changes"]] == ["order"]


@pytest.mark.parametrize(("params", "headers"), [({"service": "Bad!"}, {}), ({}, {"last-event-id": "x"})])
async def test_a_bad_watch_is_refused_before_the_stream_begins(
    control_plane: ControlPlane, params: dict[str, str], headers: dict[str, str]
) -> None:
    with pytest.raises(InvalidRequest):
        await control_plane.request("GET", "/v1/registry/default/watch", params=params, headers=headers)


async def test_a_node_that_is_behind_refuses_a_resume_rather_than_give_less(store: Store) -> None:
    cut_off = BreakableStore(store)
    async with NodeServer(cut_off) as lonely, ControlPlane([lonely.url]) as control_plane:
        cut_off.cut()
        async with asyncio.timeout(WAIT_S_MAX):
            with pytest.raises(NotProposed):
                async with aclosing(control_plane.stream_events("/v1/registry/default/watch", None, 10**6)) as events:
                    await anext(events)


async def test_streams_end_when_the_server_stops(node: NodeServer, control_plane: ControlPlane) -> None:
    async with (
        asyncio.timeout(WAIT_S_MAX),
        aclosing(control_plane.stream_events("/v1/registry/default/watch")) as events,
    ):
        await anext(events)
        await node.stop()
        assert [event async for event in events] == []


# Discovery.


async def test_discovery_hears_of_registration_change_and_removal(control_plane: ControlPlane) -> None:
    discovery = Discovery(control_plane)
    await discovery.start()
    assert await discovery.ready(WAIT_S_MAX)
    await control_plane.request("PUT", ORDER_1, json=SPEC)
    await until(discovery, lambda: ids(discovery) == ["order-1"])
    await control_plane.request("PATCH", ORDER_1, json={"status": "DRAINING"})
    await until(discovery, lambda: not discovery.instances("order")[0].takes_traffic)
    revision = (await control_plane.request("DELETE", ORDER_1)).json()["revision"]
    await until(discovery, lambda: ids(discovery) == [])
    assert discovery.revision >= revision
    assert (discovery.connected, discovery.stale_s) == (True, 0.0)
    await discovery.stop()


async def test_an_instance_whose_heartbeats_end_is_gone_from_discovery(
    control_plane: ControlPlane, clock: ManualClock
) -> None:
    discovery = Discovery(control_plane)
    await discovery.start()
    await control_plane.request("PUT", ORDER_1, json={**SPEC, "ttl_s": 5})
    await until(discovery, lambda: ids(discovery) == ["order-1"])
    clock.advance(60)
    await until(discovery, lambda: ids(discovery) == [])
    await discovery.stop()


async def test_discovery_keeps_the_last_good_copy_while_the_control_plane_is_away_and_catches_up(
    node: NodeServer, control_plane: ControlPlane, store: Store
) -> None:
    discovery = Discovery(control_plane)
    await discovery.start()
    await control_plane.request("PUT", ORDER_1, json=SPEC)
    await until(discovery, lambda: ids(discovery) == ["order-1"])
    told: list[set[str]] = []
    discovery.subscribe(told.append)
    await node.stop()
    await until_connected(discovery, connected=False)
    assert ids(discovery) == ["order-1"]
    assert discovery.stale_s > 0
    async with NodeServer(store) as other, ControlPlane([other.url]) as elsewhere:
        await elsewhere.request("PUT", ORDER_1.replace("order-1", "order-2"), json=SPEC)
    await node.start()
    await until(discovery, lambda: ids(discovery) == ["order-1", "order-2"])
    assert told == [{"order"}], "told of the difference, and never of an empty set"
    assert discovery.stale_s == 0.0
    await discovery.stop()


async def test_discovery_goes_on_at_another_node_when_its_own_stops(store: Store, node: NodeServer) -> None:
    async with NodeServer(store) as second, ControlPlane([second.url, node.url]) as control_plane:
        discovery = Discovery(control_plane)
        await discovery.start()
        assert await discovery.ready(WAIT_S_MAX)
        await second.stop()
        await control_plane.request("PUT", ORDER_1, json=SPEC)
        await until(discovery, lambda: ids(discovery) == ["order-1"])
        await discovery.stop()


async def test_a_node_that_is_cut_off_falls_silent_and_is_left(store: Store, node: NodeServer) -> None:
    """It goes on sending keep-alive comments, and no bookmark."""
    cut_off = BreakableStore(store)
    async with NodeServer(cut_off) as lonely, ControlPlane([lonely.url, node.url]) as control_plane:
        discovery = Discovery(control_plane)
        follower = EventFollower(
            "test", control_plane, "/v1/registry/default/watch", dict, discovery, event_silence_s_max=0.2
        )
        async with TaskOwner("test") as tasks, asyncio.timeout(WAIT_S_MAX):
            tasks.start(follower.run(), "follow")
            await follower.first_event.wait()
            cut_off.cut()
            await control_plane.request("PUT", ORDER_1, json=SPEC)
            await until(discovery, lambda: ids(discovery) == ["order-1"])


async def test_discovery_starts_from_its_file_without_a_control_plane(node: NodeServer, tmp_path: Path) -> None:
    cache_file = tmp_path / "cache" / "discovery.json"
    async with ControlPlane([node.url]) as control_plane:
        discovery = Discovery(control_plane, cache_file=cache_file)
        await discovery.start()
        await control_plane.request("PUT", ORDER_1, json=SPEC)
        await until(discovery, lambda: ids(discovery) == ["order-1"])
        await discovery.stop()
    async with ControlPlane([unused_url()]) as nobody:
        cold = Discovery(nobody, cache_file=cache_file)
        await cold.start()
        assert await cold.ready(0)
        assert ids(cold) == ["order-1"]
        assert cold.revision == discovery.revision
        assert (cold.connected, cold.stale_s > 0) == (False, True)
        await cold.stop()
    assert [path.name for path in cache_file.parent.iterdir()] == ["discovery.json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"namespace": 1}', b"\xff\xfe"])
async def test_a_damaged_file_is_ignored(control_plane: ControlPlane, tmp_path: Path, content: bytes) -> None:
    cache_file = tmp_path / "discovery.json"
    cache_file.write_bytes(content)
    discovery = Discovery(control_plane, cache_file=cache_file)
    await discovery.start()
    assert await discovery.ready(WAIT_S_MAX)
    assert discovery.revision > 0
    await discovery.stop()
    assert json.loads(cache_file.read_bytes())["namespace"] == "default"


async def test_discovery_without_anybody_says_that_it_knows_nothing() -> None:
    async with ControlPlane([unused_url()]) as nobody:
        discovery = Discovery(nobody)
        await discovery.start()
        assert not await discovery.ready(0.05)
        assert discovery.revision == 0
        await discovery.stop()


# Registration.


def registration(node: NodeServer, *urls: str, **changes: Any) -> Registration:
    return Registration([*urls, node.url], None, "order", "order-1", InstanceSpec(**{**SPEC, **changes}))


async def test_a_registration_is_kept_changed_and_drained(control_plane: ControlPlane, node: NodeServer) -> None:
    discovery = Discovery(control_plane)
    await discovery.start()
    kept = registration(node, unused_url())
    kept.start()
    assert await kept.wait_registered(WAIT_S_MAX)
    await until(discovery, lambda: ids(discovery) == ["order-1"])
    kept.change(weight=5, metadata={"canary": "yes"})
    await until(discovery, lambda: discovery.instances("order")[0].weight == 5)
    assert discovery.instances("order")[0].metadata == {"canary": "yes"}
    seen: list[InstanceStatus] = []
    discovery.subscribe(lambda _: seen.extend(found.status for found in discovery.instances("order")))
    await kept.drain()
    await until(discovery, lambda: ids(discovery) == [])
    assert seen == [InstanceStatus.DRAINING]
    assert not kept.registered
    await kept.drain()
    await discovery.stop()


async def test_an_instance_that_the_registry_has_forgotten_registers_again(
    store: Store, control_plane: ControlPlane, node: NodeServer, clock: ManualClock
) -> None:
    discovery = Discovery(control_plane)
    await discovery.start()
    kept = registration(node)
    kept.start()
    await until(discovery, lambda: ids(discovery) == ["order-1"])
    first = kept.revision
    clock.advance(120)
    await until(discovery, lambda: ids(discovery) == [])
    kept.renew_now()
    await until(discovery, lambda: ids(discovery) == ["order-1"])
    assert discovery.instances("order")[0].revision > first
    await kept.drain()
    await discovery.stop()


async def test_heartbeats_go_on_while_the_event_loop_is_blocked(
    store: Store, node: NodeServer, clock: ManualClock
) -> None:
    """The node of this test lives on the same loop, so a socket that only accepts shows that a heartbeat came."""
    heartbeat_seen = socket.create_server(("127.0.0.1", 0))
    kept = Registration(
        [node.url, f"http://127.0.0.1:{heartbeat_seen.getsockname()[1]}"],
        None,
        "order",
        "order-1",
        InstanceSpec(**SPEC),
    )
    kept.start()
    assert await kept.wait_registered(WAIT_S_MAX)
    await node.stop()
    kept.renew_now()
    heartbeat_seen.settimeout(WAIT_S_MAX)
    connection, _ = heartbeat_seen.accept()  # blocks the loop on purpose
    request = connection.recv(4096)
    assert request.startswith(b"POST /v1/registry/heartbeat")
    connection.close()
    heartbeat_seen.close()
    await kept.drain(timeout_s=0.2)


async def test_a_service_registers_once_the_control_plane_comes(node: NodeServer) -> None:
    await node.stop()
    kept = registration(node)
    kept.start()
    assert not await kept.wait_registered(0.1)
    assert kept.last_error is None or node.url in kept.last_error
    await node.start()
    assert await kept.wait_registered(WAIT_S_MAX)
    await kept.drain()


async def test_draining_without_a_control_plane_is_bounded(node: NodeServer) -> None:
    kept = registration(node)
    kept.start()
    assert await kept.wait_registered(WAIT_S_MAX)
    await node.stop()
    async with asyncio.timeout(WAIT_S_MAX):
        await kept.drain(timeout_s=0.3)
    assert not kept.registered


async def test_a_forked_child_does_not_end_its_parents_registration(
    control_plane: ControlPlane, node: NodeServer
) -> None:
    client = Client([node.url])
    kept = await client.register(service="order", instance_id="order-1", host="127.0.0.1", port=9001)
    assert kept.registered
    child = os.fork()
    if child == 0:
        kept._keeper.drain()
        os._exit(0)
    assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
    assert (await control_plane.request("GET", ORDER_1)).json()["status"] == "UP"
    assert kept.registered
    await client.close()


async def test_a_registration_that_the_registry_would_refuse_is_named_at_once(tmp_path: Path) -> None:
    client = Client([unused_url()])
    with pytest.raises(SettingsError, match="port"):
        await client.register(service="order", host="127.0.0.1", port=0)
    with pytest.raises(SettingsError, match="service"):
        await client.register(service="Order!", host="127.0.0.1", port=1)
    await client.close()


# HTTP by service name.


async def test_a_service_name_is_answered_by_its_instances_in_turn(node: NodeServer) -> None:
    async with Client([node.url]) as client, Upstream("i-1") as one, Upstream("i-2") as two:
        for upstream in (one, two):
            await client.register(service="inventory", instance_id=upstream.name, host="127.0.0.1", port=upstream.port)
        await until(client.discovery, lambda: len(client.discovery.instances("inventory")) == 2)
        http = client.http(balance="round_robin")
        answers = [await http.post("http://inventory/stock/widget", json={"quantity": 1}) for _ in range(10)]
        assert {answer.status_code for answer in answers} == {200}
        assert answers[0].json()["sku"] == "widget"
        assert (one.requests, two.requests) == (5, 5)


async def test_an_instance_that_refuses_connections_costs_no_request(node: NodeServer) -> None:
    async with Client([node.url]) as client, Upstream("alive") as alive:
        dead_port = int(unused_url().rpartition(":")[2])
        await client.register(service="inventory", instance_id="dead", host="127.0.0.1", port=dead_port)
        await client.register(service="inventory", instance_id="alive", host="127.0.0.1", port=alive.port)
        await until(client.discovery, lambda: len(client.discovery.instances("inventory")) == 2)
        http = client.http(balance="round_robin")
        answers = [await http.post("http://inventory/stock/widget", json={"quantity": 1}) for _ in range(6)]
        assert {answer.status_code for answer in answers} == {200}
        assert alive.requests == 6


async def test_a_service_that_cannot_be_reached_says_why(node: NodeServer) -> None:
    async with Client([node.url]) as client:
        http = client.http()
        with pytest.raises(httpx.ConnectError, match="no registered instance"):
            await http.get("http://inventory/stock")
        dead_port = int(unused_url().rpartition(":")[2])
        kept = await client.register(service="inventory", instance_id="dead", host="127.0.0.1", port=dead_port)
        await until(client.discovery, lambda: ids(client.discovery, "inventory") == ["dead"])
        with pytest.raises(
            httpx.ConnectError,
            match=f"no connection to any instance; tried dead at 127.0.0.1:{dead_port}: ConnectError",
        ):
            await http.get("http://inventory/stock")
        kept.change(status=InstanceStatus.OUT_OF_SERVICE)
        await until(client.discovery, lambda: not client.discovery.instances("inventory")[0].takes_traffic)
        with pytest.raises(httpx.ConnectError, match="dead http OUT_OF_SERVICE"):
            await http.get("http://inventory/stock")


async def test_other_hosts_are_what_they_always_are(node: NodeServer) -> None:
    async with Client([node.url]) as client:
        answer = await client.http().get(f"{node.url}/livez")
        assert answer.text == "ok\n"


# The lifespan.


async def test_an_application_registers_when_it_listens_and_drains_at_the_end(
    node: NodeServer, control_plane: ControlPlane
) -> None:
    discovery = Discovery(control_plane)
    await discovery.start()
    listener = open_listener(HostPort("127.0.0.1", 0), "app")
    port = bound_address(listener).port
    client = Client([node.url])
    app = FastAPI(lifespan=lifespan("shop", port=port, instance_id="shop-1", zone="z-1", client=client))
    async with TaskOwner("app") as tasks:
        server = HttpServer(app, listener, asyncio.Event(), tasks)
        await server.start()
        await until(discovery, lambda: ids(discovery, "shop") == ["shop-1"])
        found = discovery.instances("shop")[0]
        assert (found.port, found.zone) == (port, "z-1")
        await server.stop()
    await until(discovery, lambda: ids(discovery, "shop") == [])
    await discovery.stop()
    assert not client.closed, "it was handed over, and is its owner's to close"
    assert (await client.http().get(f"{node.url}/livez")).status_code == 200
    await client.close()


async def test_settings_and_http_of_a_module_outlive_the_application(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in tests of a service: one import, and one lifespan after the other."""
    monkeypatch.setattr(shared_client, "_clients", [])
    monkeypatch.setattr(shared_client, "_settings", {})
    async with NodeServer(store, (RegistryApp, ConfigCenterApp)) as node, Upstream("i-1") as upstream:
        monkeypatch.setenv("QUORATE_ENDPOINTS", node.url)
        settings = shared_client.config(ShopSettings, "shop/settings.yaml")
        http = shared_client.http()
        told: list[int] = []
        settings.subscribe(lambda _, new: told.append(new.lines))
        app = FastAPI(lifespan=lifespan("shop", port=upstream.port))
        async with (
            ControlPlane([node.url]) as control_plane,
            Client([node.url]) as client,
        ):
            for lines in (5, 6):
                service = f"inventory-{lines}"  # the former application's copy knows nothing of the second one
                await client.register(service=service, host="127.0.0.1", port=upstream.port)
                await control_plane.request("PUT", "/v1/config/default/shop/settings.yaml", content=f"lines: {lines}")
                async with app.router.lifespan_context(app):
                    assert app.state.quorate is shared_client.default_client()
                    await until(app.state.quorate.discovery, lambda: settings.current.lines == lines)  # noqa: B023
                    answer = await http.post(f"http://{service}/stock/widget", json={"quantity": 1})
                    assert answer.status_code == 200
                assert app.state.quorate.closed
            assert told == [5, 6]
    await http.aclose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_reaches_the_server_only_after_the_instance_has_left(
    node: NodeServer, control_plane: ControlPlane, number: signal.Signals
) -> None:
    """A server closes its listener on SIGTERM; nobody may be sent to it by then."""
    handed_on = asyncio.Event()
    was_registered: list[bool] = []

    def handle_exit(_: int, __: object) -> None:
        was_registered.append(client._registrations[0].registered)
        handed_on.set()

    former = signal.signal(number, handle_exit)
    try:
        async with Upstream("shop-1") as upstream, Client([node.url]) as client:
            app = FastAPI(lifespan=lifespan("shop", port=upstream.port, instance_id="shop-1", client=client))
            path = ORDER_1.replace("services/order", "services/shop").replace("order-1", "shop-1")
            async with app.router.lifespan_context(app), asyncio.timeout(WAIT_S_MAX):
                assert await client._registrations[0].wait_registered(WAIT_S_MAX)
                os.kill(os.getpid(), number)
                await handed_on.wait()
                with pytest.raises(NotFound):
                    await control_plane.request("GET", path)
                os.kill(os.getpid(), number)
                while len(was_registered) < 2:  # noqa: ASYNC110 - a signal handler sets no event of the loop's
                    await asyncio.sleep(0)
            assert was_registered == [False, False]
        assert signal.getsignal(number) is handle_exit, "put back"
    finally:
        signal.signal(number, former)
