"""Old clients and new servers: what may be added without breaking anybody."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from quorate_sdk import wire

INSTANCE: dict[str, Any] = {
    "namespace": "default", "service": "order", "id": "order-1", "host": "127.0.0.1", "port": 1, "scheme": "http",
    "weight": 100, "zone": "", "version": "", "metadata": {}, "status": "UP", "ttl_s": 10, "revision": 7,
}  # fmt: skip
DOCUMENT: dict[str, Any] = {
    "namespace": "default", "group": "order", "key": "settings.yaml", "version": 1, "revision": 7, "format": "yaml",
    "author": "", "comment": "", "changed_at": "2024-01-01T00:00:00.000Z", "sha256": "", "content": "a: 1",
}  # fmt: skip
REFERENCE = {"namespace": "default", "service": "order", "id": "order-1"}
NODE: dict[str, Any] = {
    "name": "n", "url": "", "role": "leader", "leader": "n", "term": 1, "commit_index": 1, "applied_index": 1,
    "revision": 1, "store_bytes": 1, "members": [], "connected": [], "apps": [], "uptime_s": 1.0,
}  # fmt: skip
ANSWERS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (wire.Instance, INSTANCE),
    (wire.Deregistered, {"revision": 7}),
    (wire.HeartbeatResult, {"renewed": 0, "unknown": [REFERENCE]}),
    (wire.ServiceInstances, {"namespace": "d", "service": "order", "revision": 7, "instances": [INSTANCE]}),
    (
        wire.ServiceList,
        {"namespace": "d", "revision": 7, "services": [{"service": "order", "instances": 1, "up": 1}]},
    ),
    (wire.RegistrySnapshot, {"revision": 7, "services": {"order": [INSTANCE]}}),
    (wire.RegistryDelta, {"revision": 7, "changes": [{"service": "order", "id": "1", "instance": INSTANCE}]}),
    (wire.Bookmark, {"revision": 7}),
    (wire.Resync, {"reason": "slow"}),
    (wire.ConfigDocument, DOCUMENT),
    (wire.ConfigSnapshot, {"revision": 7, "documents": [DOCUMENT]}),
    (wire.ConfigDelta, {"revision": 7, "documents": [DOCUMENT]}),
    (wire.ClusterStatus, {"leader": "n", "nodes": [{"name": "n", "url": "", "status": NODE}]}),
    (wire.MemberList, {"cluster_id": "c", "leader": "n", "members": [{"name": "n", "peer": "h:1", "role": "voter"}]}),
    (wire.Transferred, {"leader": "n"}),
]
REQUESTS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (wire.InstanceSpec, {"host": "127.0.0.1", "port": 1}),
    (wire.InstancePatch, {"weight": 1}),
    (wire.Heartbeat, {"instances": [REFERENCE]}),
    (wire.Rollback, {"version": 1}),
    (wire.AddMember, {"name": "node-4", "address": "127.0.0.1:7504"}),
    (wire.Transfer, {"to": ""}),
]


def with_a_new_field(value: Any) -> Any:
    """The same with a field more in each object, except in mappings by name."""
    if isinstance(value, list):
        return [with_a_new_field(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _inner(name, item) for name, item in value.items()} | {"of_a_later_version": {"a": 1}}


def _inner(name: str, value: Any) -> Any:
    if name == "metadata":
        return value
    if name == "services" and isinstance(value, dict):
        return {service: with_a_new_field(instances) for service, instances in value.items()}
    return with_a_new_field(value)


@pytest.mark.parametrize(("model", "fields"), ANSWERS)
def test_a_field_that_a_later_server_adds_is_ignored(model: type[BaseModel], fields: dict[str, Any]) -> None:
    known = model.model_validate_json(json.dumps(fields))
    assert model.model_validate_json(json.dumps(with_a_new_field(fields))) == known


@pytest.mark.parametrize(("model", "fields"), REQUESTS)
def test_a_field_that_the_server_does_not_know_is_refused(model: type[BaseModel], fields: dict[str, Any]) -> None:
    model.model_validate(fields)
    with pytest.raises(ValidationError):
        model.model_validate({**fields, "misspelt": 1})


def test_a_heartbeat_refuses_a_misspelt_reference() -> None:
    with pytest.raises(ValidationError):
        wire.Heartbeat.model_validate({"instances": [{**REFERENCE, "misspelt": 1}]})


def test_an_instance_in_a_status_of_a_later_version_takes_no_traffic() -> None:
    known = wire.Instance.model_validate_json(json.dumps(INSTANCE))
    unknown = wire.Instance.model_validate_json(json.dumps({**INSTANCE, "status": "WARMING"}))
    assert (known.takes_traffic, unknown.takes_traffic) == (True, False)
    with pytest.raises(ValidationError):
        wire.InstanceSpec.model_validate({"host": "127.0.0.1", "port": 1, "status": "WARMING"})


def test_a_document_of_a_later_format_does_not_hide_the_others() -> None:
    documents = [DOCUMENT, {**DOCUMENT, "key": "other", "format": "cbor"}]
    snapshot = wire.ConfigSnapshot.model_validate_json(json.dumps({"revision": 7, "documents": documents}))
    assert [document.format for document in snapshot.documents] == [wire.ConfigFormat.YAML, wire.ConfigFormat.TEXT]


@pytest.mark.parametrize(
    ("reachable", "without", "spare"),
    [
        ({"a": True, "b": True, "c": True}, "", 1),
        ({"a": True, "b": True, "c": True}, "c", 0),
        ({"a": True, "b": True, "c": False}, "c", 0),
        ({"a": True, "b": True, "c": False}, "b", -1),
        ({"a": True, "b": True, "c": None}, "b", -1),
        ({"a": True, "b": True, "c": True, "d": True, "e": False}, "d", 0),
    ],
)
def test_a_removal_leaves_so_many_voters_beyond_a_majority(
    reachable: dict[str, bool | None], without: str, spare: int
) -> None:
    members = [wire.ClusterMember(name=name, peer="", role="voter", is_reachable=up) for name, up in reachable.items()]
    learner = wire.ClusterMember(name="z", peer="", role="learner", is_reachable=True)
    assert wire.MemberList(cluster_id="c", leader="a", members=[*members, learner]).spare_voters(without) == spare


def test_nodes_of_before_say_nothing_of_voters_and_are_understood() -> None:
    assert wire.NodeStatus.model_validate(NODE).voters == []
