"""When an instance is renewed and when it is registered again: decisions, and the thread that acts."""

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from quorate_core.errors import Unavailable
from quorate_sdk.control_plane import BlockingControlPlane
from quorate_sdk.heartbeat import InstanceKeeper, Upkeep
from quorate_sdk.registration import default_instance_id
from quorate_sdk.wire import InstanceRef, InstanceSpec

WAIT_S_MAX = 10.0
SPEC = InstanceSpec(host="127.0.0.1", port=9001)


class Registry(httpx.BaseTransport):
    """Answers as the registry does. `before`: called with each request; what it raises is the transport's failure."""

    def __init__(self, before: Callable[[httpx.Request], None] = lambda _: None) -> None:
        self._before = before
        self.asked: list[str] = []
        self.timeouts: list[dict[str, float]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.method)
        self.timeouts.append(request.extensions["timeout"])
        self._before(request)
        if request.method == "POST":
            return httpx.Response(200, json={"renewed": 1, "unknown": []}, request=request)
        spec = json.loads(request.content) if request.method == "PUT" else SPEC.model_dump(mode="json")
        names = {"namespace": "default", "service": "order", "id": "order-1", "revision": 1}
        return httpx.Response(200, json={**spec, **names}, request=request)


def keeper_on(registry: Registry, spec: InstanceSpec = SPEC, **options: Any) -> InstanceKeeper:
    control_plane = BlockingControlPlane(["http://registry:1"], transport=registry)
    return InstanceKeeper(control_plane, "default", "order", "order-1", spec, **options)


def test_heartbeats_come_every_third_of_the_time_to_live_and_drift_apart() -> None:
    assert Upkeep(ttl_s=30).renewed(spread=0.0) == 10.0
    assert Upkeep(ttl_s=30).renewed(spread=1.0) == 9.0


def test_failures_are_tried_again_soon_and_never_later_than_the_next_heartbeat() -> None:
    upkeep = Upkeep(ttl_s=3)
    delays = [upkeep.failed(spread=1.0) for _ in range(8)]
    assert delays[:3] == [0.05, 0.1, 0.2]
    assert max(delays) == 1.0
    upkeep.renewed(spread=0.0)
    assert upkeep.failed(spread=1.0) == 0.05


def test_an_instance_id_made_by_default_is_one_that_the_registry_takes() -> None:
    assert InstanceRef(service="order", id=default_instance_id("order", 8000)).id.startswith("order-")


def test_a_try_ends_well_before_the_next_heartbeat_is_due() -> None:
    assert Upkeep(ttl_s=30).attempt_timeout_s == 2.0
    assert Upkeep(ttl_s=3).attempt_timeout_s == 0.5


def test_the_tries_of_the_thread_keep_to_it() -> None:
    registry = Registry()
    kept = keeper_on(registry, SPEC.model_copy(update={"ttl_s": 2}))
    kept.start()
    assert kept.registered.wait(WAIT_S_MAX)
    kept.drain()
    assert max(max(timeout.values()) for timeout in registry.timeouts) <= 1 / 3


def test_an_instance_that_has_just_been_changed_is_deregistered_all_the_same() -> None:
    """While it is registered again with its change, the registry still has it."""
    changing = threading.Event()

    def refuse_the_change(request: httpx.Request) -> None:
        if changing.is_set() and request.method == "PUT":
            raise httpx.ConnectError("away for a moment")

    registry = Registry(refuse_the_change)
    kept = keeper_on(registry)
    kept.start()
    assert kept.registered.wait(WAIT_S_MAX)
    changing.set()
    kept.last_error = None
    kept.update(SPEC.model_copy(update={"weight": 5}))
    kept.drain()
    assert registry.asked[-2:] == ["PATCH", "DELETE"]


def test_what_was_never_offered_is_not_deregistered() -> None:
    registry = Registry()
    probed = threading.Event()

    def is_listening() -> bool:
        probed.set()
        return False

    kept = keeper_on(registry, is_listening=is_listening)
    kept.start()
    assert probed.wait(WAIT_S_MAX)
    kept.drain()
    assert registry.asked == []


def test_a_defect_does_not_end_the_thread() -> None:
    failures = iter([RuntimeError("a defect"), httpx.DecodingError("no gzip"), ValueError("another")])

    def fail_at_first(request: httpx.Request) -> None:
        for failure in failures:
            raise failure

    kept = keeper_on(Registry(fail_at_first))
    kept.start()
    assert kept.registered.wait(WAIT_S_MAX)
    assert kept.last_error is None
    kept.drain()


def test_a_probe_that_fails_does_not_end_the_thread() -> None:
    answers = iter([RuntimeError("a defect")])

    def is_listening() -> bool:
        for answer in answers:
            raise answer
        return True

    kept = keeper_on(Registry(), is_listening=is_listening)
    kept.start()
    assert kept.registered.wait(WAIT_S_MAX)
    kept.drain()


def test_what_was_abandoned_before_a_call_began_ends_that_call_too() -> None:
    registry = Registry()
    control_plane = BlockingControlPlane(["http://registry:1"], transport=registry)
    control_plane.abandon()
    with pytest.raises(Unavailable):
        control_plane.request("GET", "/")
    assert registry.asked == []
    control_plane.go_on()
    assert control_plane.request("GET", "/").status_code == 200
    control_plane.close()
