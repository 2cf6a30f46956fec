"""Snapshots for tests, from a routes document in YAML and instances by service."""

from collections.abc import Mapping, Sequence
from typing import Any

from quorate_gateway.routes import parse_routes
from quorate_gateway.snapshot import Revisions, Snapshot, build_snapshot
from quorate_sdk.wire import Instance, InstanceStatus


def instance(service: str, instance_id: str, port: int = 8_000, **changes: Any) -> Instance:
    values = {
        "namespace": "default", "service": service, "id": instance_id, "host": "127.0.0.1", "port": port,
        "scheme": "http", "weight": 100, "zone": "", "version": "", "metadata": {}, "status": InstanceStatus.UP,
        "ttl_s": 10, "revision": 1,
    }  # fmt: skip
    return Instance(**{**values, **changes})


def snapshot(routes: str, instances: Mapping[str, Sequence[Instance]] | None = None) -> Snapshot:
    """`routes` is the list under the key of that name."""
    found = instances or {}
    return build_snapshot(
        parse_routes(f"routes:\n{routes}"), lambda service: found.get(service, ()), Revisions(1, 1, 1)
    )
