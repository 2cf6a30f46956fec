"""When an instance is renewed and when it is registered again: decisions, and the thread that acts."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from quorate_core.errors import Unavailable
from quorate_sdk.control_plane import BlockingControlPlane
from quorate_sdk.heartbeat import InstanceKeeper, Upkeep
from quorate_sdk.registration import default_instance_id
from quorate_sdk.wire import InstanceRef, InstanceSpec
from quorate_sdk.worker_group import Stamp, WorkerGroup

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


# Processes that share a registration.

DIGEST = hashlib.sha256(SPEC.model_dump_json().encode()).hexdigest()[:32]


def stamped(folder: Path, *, age_s: float = 0.0, spec: str = DIGEST, revision: int = 7) -> WorkerGroup:
    """A member that acts, and has stamped so long ago."""
    acting = WorkerGroup(folder)
    assert acting.is_keeper()
    acting.stamp(Stamp(time.monotonic() - age_s, spec, revision))
    return acting


class Asked:
    """A registry that says when it is asked by some method."""

    def __init__(self, method: str) -> None:
        self.happened = threading.Event()
        self.registry = Registry(lambda request: self.happened.set() if request.method == method else None)

    def wait(self) -> list[str]:
        """Everything that was asked up to that."""
        assert self.happened.wait(WAIT_S_MAX)
        return list(self.registry.asked)


def test_who_takes_over_from_a_process_that_has_died_keeps_what_is_registered(tmp_path: Path) -> None:
    """With a status and a weight that an operator has changed since."""
    acting, waiting = stamped(tmp_path / "g"), WorkerGroup(tmp_path / "g")
    acting.close()
    asked = Asked("POST")
    kept = keeper_on(asked.registry, is_listening=lambda: True, join=lambda: WorkerGroup(tmp_path / "g"))
    kept.start()
    assert asked.wait() == ["POST"]
    assert kept.revision == 7
    waiting.close()
    kept.drain()


@pytest.mark.parametrize("former", [{"spec": "of another version"}, {"age_s": 100.0}, {"revision": 0}])
def test_what_differs_or_has_lapsed_is_registered_anew(tmp_path: Path, former: dict[str, Any]) -> None:
    acting, waiting = stamped(tmp_path / "g", **former), WorkerGroup(tmp_path / "g")
    acting.close()
    asked = Asked("PUT")
    kept = keeper_on(asked.registry, join=lambda: WorkerGroup(tmp_path / "g"))
    kept.start()
    assert asked.wait() == ["PUT"]
    waiting.close()
    kept.drain()


def test_after_a_restart_nothing_is_renewed_before_somebody_listens(tmp_path: Path) -> None:
    """The registration of the killed process may live still, and nobody answers there yet."""
    acting, waiting = stamped(tmp_path / "g"), WorkerGroup(tmp_path / "g")
    acting.close()
    listening, probed = threading.Event(), threading.Semaphore(0)

    def is_listening() -> bool:
        probed.release()
        return listening.is_set()

    asked = Asked("PUT")
    kept = keeper_on(asked.registry, is_listening=is_listening, join=lambda: WorkerGroup(tmp_path / "g"))
    kept.start()
    for _ in range(3):
        assert probed.acquire(timeout=WAIT_S_MAX)
    assert asked.registry.asked == []
    listening.set()
    assert asked.wait() == ["PUT"]
    waiting.close()
    kept.drain()


def test_who_stands_by_asks_nothing_and_leaves_it_to_the_others(tmp_path: Path) -> None:
    acting = stamped(tmp_path / "g")
    registry = Registry()
    kept = keeper_on(registry, join=lambda: WorkerGroup(tmp_path / "g"))
    kept.start()
    assert kept.registered.wait(WAIT_S_MAX)
    assert kept.revision == 7
    kept.drain()
    assert registry.asked == []
    acting.close()


@pytest.mark.parametrize(("revision", "expected"), [(7, "POST"), (0, "PUT")])
def test_who_stands_by_does_what_is_due_when_the_one_that_acts_is_held_up(
    tmp_path: Path, revision: int, expected: str
) -> None:
    acting = stamped(tmp_path / "g", age_s=SPEC.ttl_s * 0.6, revision=revision)
    asked = Asked(expected)
    kept = keeper_on(asked.registry, join=lambda: WorkerGroup(tmp_path / "g"))
    kept.start()
    assert asked.wait() == [expected]
    kept.drain()
    acting.close()


def test_a_change_is_sent_by_whoever_is_told_it(tmp_path: Path) -> None:
    acting = stamped(tmp_path / "g")
    asked = Asked("PUT")
    kept = keeper_on(asked.registry, join=lambda: WorkerGroup(tmp_path / "g"))
    kept.start()
    assert kept.registered.wait(WAIT_S_MAX)
    kept.update(SPEC.model_copy(update={"weight": 5}))
    assert asked.wait() == ["PUT"]
    kept.drain()
    acting.close()


def test_what_leaves_to_the_next_process_is_renewed_once_more_and_stays(tmp_path: Path) -> None:
    registry = Registry()
    kept = keeper_on(registry, join=lambda: WorkerGroup(tmp_path / "g"))
    kept.start()
    assert kept.registered.wait(WAIT_S_MAX)
    kept.drain(handing_over=True)
    assert registry.asked == ["PUT", "POST"]


def test_a_registry_is_told_who_asks() -> None:
    told: list[str] = []
    registry = Registry(lambda request: told.append(request.headers["quorate-author"]))
    control_plane = BlockingControlPlane(["http://registry:1"], transport=registry, author="order/order-1")
    control_plane.request("PUT", "/v1/registry/default/services/order/instances/order-1", json={})
    assert told == ["order/order-1"]
    control_plane.close()
