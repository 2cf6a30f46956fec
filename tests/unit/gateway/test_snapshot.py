"""Snapshots: which instances are endpoints, and that what did not change stays the very same object."""

from quorate_gateway.snapshot import EMPTY, Revisions, unrouted_reason, update_snapshot
from quorate_sdk.wire import InstanceStatus
from support.gateway_snapshots import instance, snapshot

ROUTES = "  - {match: {path_prefix: /a}, service: a}\n  - {match: {path_prefix: /b}, service: b}\n"


def test_endpoints_are_the_instances_that_take_traffic_in_order_of_id() -> None:
    built = snapshot(
        ROUTES,
        {
            "a": [
                instance("a", "a-3", 3), instance("a", "a-1", 1),
                instance("a", "a-4", 4, status=InstanceStatus.DRAINING), instance("a", "a-5", 5, weight=0),
                instance("a", "a-6", 6, scheme="https"), instance("a", "a-7", 7, host="::1"),
            ],
            "c": [instance("c", "c-1", 9)],
        },
    )  # fmt: skip
    assert [endpoint.authority for endpoint in built.endpoints["a"]] == ["127.0.0.1:1", "127.0.0.1:3", "[::1]:7"]
    assert built.endpoints["b"] == ()
    assert built.authorities == {"127.0.0.1:1", "127.0.0.1:3", "[::1]:7"}


def test_an_endpoint_knows_its_weight_zone_and_version() -> None:
    built = snapshot(ROUTES, {"a": [instance("a", "a-1", 1, weight=7, zone="z1", version="v2")]})
    [endpoint] = built.endpoints["a"]
    assert (endpoint.weight, endpoint.zone, endpoint.version) == (7, "z1", "v2")


def test_two_ids_with_one_address_are_one_endpoint() -> None:
    built = snapshot(ROUTES, {"a": [instance("a", "new", 1), instance("a", "old", 1)]})
    assert [endpoint.instance_id for endpoint in built.endpoints["a"]] == ["new"]


def test_why_an_instance_is_not_routed_is_told() -> None:
    assert unrouted_reason(instance("a", "1")) is None
    assert unrouted_reason(instance("a", "1", status=InstanceStatus.STARTING)) == "status STARTING"
    assert unrouted_reason(instance("a", "1", weight=0)) == "weight 0"
    assert "plain HTTP" in (unrouted_reason(instance("a", "1", scheme="https")) or "")


def test_an_update_changes_only_the_services_that_changed() -> None:
    former = snapshot(ROUTES, {"a": [instance("a", "1", 1)], "b": [instance("b", "1", 2)]})
    found = {"a": [instance("a", "1", 1), instance("a", "2", 3)], "b": [instance("b", "1", 99)]}
    updated = update_snapshot(former, {"a", "unrouted"}, lambda service: found[service], Revisions(1, 1, 7))
    assert [endpoint.port for endpoint in updated.endpoints["a"]] == [1, 3]
    assert updated.endpoints["b"] is former.endpoints["b"]
    assert updated.table is former.table
    assert updated.authorities == {"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}
    assert "unrouted" not in updated.endpoints


def test_an_update_that_changes_no_endpoint_keeps_them_and_moves_the_revision() -> None:
    former = snapshot(ROUTES, {"a": [instance("a", "1", 1)]})
    changed = [instance("a", "1", 1, metadata={"k": "v"}, revision=9)]
    updated = update_snapshot(former, {"a"}, lambda _service: changed, Revisions(1, 1, 9))
    assert updated.endpoints is former.endpoints
    assert updated.revisions.newest == 9


def test_the_empty_snapshot_takes_no_request() -> None:
    assert EMPTY.table.match(b"GET", b"/", b"h", b"", b"/") is None
    assert EMPTY.revisions.newest == 0
