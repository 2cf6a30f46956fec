"""What a client knows of the instances, from snapshots and deltas."""

from typing import Any

from quorate_sdk.instance_table import InstanceTable
from quorate_sdk.wire import Bookmark, Instance, InstanceChange, InstanceStatus, RegistryDelta, RegistrySnapshot


def instance(id_: str, revision: int = 2, **changes: Any) -> Instance:
    fields = {
        "namespace": "default", "service": "order", "id": id_, "host": "127.0.0.1", "port": 9001, "scheme": "http",
        "weight": 100, "zone": "", "version": "", "metadata": {}, "status": InstanceStatus.UP, "ttl_s": 10,
        "revision": revision,
    }  # fmt: skip
    return Instance.model_validate({**fields, **changes})


def delta(revision: int, **instances: Instance | None) -> RegistryDelta:
    changes = [InstanceChange(service="order", id=id_, instance=found) for id_, found in instances.items()]
    return RegistryDelta(revision=revision, changes=changes)


def table(*instances: Instance, revision: int = 2) -> InstanceTable:
    filled = InstanceTable()
    filled.replace(RegistrySnapshot(revision=revision, services={"order": list(instances)}))
    return filled


def test_those_that_take_traffic_come_first() -> None:
    known = table(instance("a", weight=0), instance("b", status=InstanceStatus.DRAINING), instance("c"), instance("d"))
    assert [found.id for found in known.instances("order")] == ["c", "d", "a", "b"]


def test_the_same_tuple_is_given_until_something_changes() -> None:
    known = table(instance("a"))
    former = known.instances("order")
    known.confirm(Bookmark(revision=5))
    assert known.instances("order") is former
    assert known.revision == 5
    known.update(delta(6, b=instance("b", 6)))
    assert known.instances("order") is not former


def test_a_snapshot_replaces_everything_and_names_what_differs() -> None:
    known = table(instance("a"))
    snapshot = RegistrySnapshot(revision=9, services={"order": [instance("a")], "inventory": [instance("i")]})
    assert known.replace(snapshot) == {"inventory"}
    assert known.replace(RegistrySnapshot(revision=10, services={"order": []})) == {"order", "inventory"}
    assert known.services == ()
    assert known.instances("order") == ()


def test_a_delta_names_the_services_that_it_has_changed() -> None:
    known = table(instance("a"))
    assert known.update(delta(3, a=instance("a", 3, weight=5), b=None)) == {"order"}
    assert known.update(delta(4, c=None)) == set()
    assert known.update(delta(5, a=None)) == {"order"}
    assert (known.services, known.revision) == ((), 5)


def test_an_older_state_of_an_instance_does_not_overwrite_a_newer_one() -> None:
    known = table(instance("a", 7, weight=1), revision=7)
    assert known.update(delta(7, a=instance("a", 3, weight=9))) == set()
    assert known.instances("order")[0].weight == 1


def test_a_snapshot_of_the_table_fills_another_one() -> None:
    known = table(instance("a"), instance("b"))
    other = InstanceTable()
    other.replace(known.snapshot())
    assert other.instances("order") == known.instances("order")
