"""The registry in memory, and its watchers' queues."""

import asyncio
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import TooManyRequests
from quorate_registry import catalog as catalog_module
from quorate_registry import watch as watch_module
from quorate_registry.catalog import Catalog, Interest, Loading
from quorate_registry.model import (
    InstanceName,
    InstanceView,
    KeyKind,
    Record,
    encode_record,
    instance_key,
    key_of,
)
from quorate_registry.watch import Subscriptions, first_event, watch_events
from quorate_sdk.instance_table import InstanceTable
from quorate_sdk.wire import Bookmark, Instance, InstanceStatus, RegistryDelta, RegistrySnapshot, ServiceInstances
from quorate_store.model import Event, EventKind, KeyValue, WatchBatch

NAMES = [InstanceName("default", service, f"i-{number}") for service in ("a", "b") for number in range(3)]


def record(weight: int = 1) -> Record:
    return Record(
        host="h", port=1, scheme="http", zone="", version="", metadata={}, status=InstanceStatus.UP, ttl_s=10,
        weight=weight, ephemeral=False,
    )  # fmt: skip


def put(revision: int, name: InstanceName, weight: int = 1) -> Event:
    return Event(EventKind.PUT, KeyValue(instance_key(name), encode_record(record(weight)), 1, revision, 1))


def gone(revision: int, name: InstanceName) -> Event:
    return Event(EventKind.DELETE, KeyValue(instance_key(name), b"", 0, revision, 0))


def apply(catalog: Catalog, *events: Event) -> list[InstanceName]:
    return catalog.apply(WatchBatch(events[-1].kv.mod_revision, events), _fail_unreadable)


def _fail_unreadable(key: bytes, error: ValueError) -> None:
    raise AssertionError(f"unreadable: {key!r}") from error


def loading(*events: Event) -> Loading:
    found = Loading()
    found.add((event.kv for event in events), _fail_unreadable)
    return found


def loaded(revision: int = 1) -> Catalog:
    catalog = Catalog()
    catalog.load(revision, Loading())
    return catalog


def parse(event: bytes) -> tuple[str, int, Any]:
    lines = dict(line.split(": ", 1) for line in event.decode().strip().split("\n"))
    models: dict[str, Any] = {"snapshot": RegistrySnapshot, "delta": RegistryDelta, "bookmark": Bookmark}
    return lines["event"], int(lines["id"]), models[lines["event"]].model_validate_json(lines["data"])


def test_a_view_has_the_fields_of_the_wire_model() -> None:
    assert list(InstanceView.__struct_fields__) == list(Instance.model_fields)


def test_a_list_says_the_revision_up_to_which_it_is_complete() -> None:
    catalog = loaded()
    apply(catalog, put(4, NAMES[1]), put(4, NAMES[0], weight=9))
    catalog.apply(WatchBatch(8), _fail_unreadable)
    body = ServiceInstances.model_validate_json(catalog.list_body("default", "a"))
    assert (body.revision, [(found.id, found.weight, found.revision) for found in body.instances]) == (
        8, [("i-0", 9, 4), ("i-1", 1, 4)],
    )  # fmt: skip


def test_a_value_that_cannot_be_read_counts_as_gone_and_is_reported() -> None:
    catalog, reported = loaded(), []
    apply(catalog, put(2, NAMES[0]))
    bad = Event(EventKind.PUT, KeyValue(instance_key(NAMES[0]), b"{", 1, 3, 2))
    stray = Event(EventKind.PUT, KeyValue(b"quorate/registry/stray", b"{}", 1, 3, 2))
    changed = catalog.apply(WatchBatch(3, (bad, stray)), lambda key, _: reported.append(key))
    assert changed == [NAMES[0]]
    assert catalog.entry(NAMES[0]) is None
    assert reported == [instance_key(NAMES[0]), b"quorate/registry/stray"]


def test_loading_anew_tells_only_what_differs() -> None:
    catalog = loaded()
    apply(catalog, put(2, NAMES[0]), put(2, NAMES[1]), put(2, NAMES[2]))
    kept, changed = put(2, NAMES[0]), put(5, NAMES[1], weight=4)
    differing = catalog.load(9, loading(kept, changed))
    assert sorted(differing) == [NAMES[1], NAMES[2]]
    assert catalog.changed_revision("default", "a") == 9


def test_what_came_and_went_before_a_node_loaded_anew_is_not_kept_by_who_saw_it_elsewhere() -> None:
    """Another node has shown it in between; this one cannot know, and so answers with a snapshot, and does not let a
    blocking query wait for a change that may have been."""
    catalog = loaded()
    apply(catalog, put(2, NAMES[0]))
    catalog.load(9, loading(put(2, NAMES[0])))
    assert catalog.changes_since(5, Interest("default")) is None
    assert catalog.changes_since(9, Interest("default")) == ()
    assert catalog.changed_revision("default", "a") == 9


def test_a_service_that_is_heard_of_for_the_first_time_may_have_changed_before() -> None:
    catalog = loaded(revision=7)
    unset = KeyValue(key_of(KeyKind.SETTINGS, NAMES[0].of), b"", 0, 8, 0)
    catalog.apply(WatchBatch(8, (Event(EventKind.DELETE, unset),)), _fail_unreadable)
    assert catalog.changed_revision("default", "a") == 7


@pytest.mark.parametrize(
    ("check", "is_read"),
    [({"type": "tcp", "added_later": 1}, True), ({"type": "of a later version"}, False), ({}, False)],
)
def test_a_check_of_a_later_version_stops_no_node_and_hides_nobody(check: dict[str, Any], is_read: bool) -> None:
    later = encode_record(msgspec.structs.replace(record(), check=check))
    kv = KeyValue(instance_key(NAMES[0]), later, 1, 2, 1)
    followed, fresh = loaded(), Catalog()
    apply(followed, Event(EventKind.PUT, kv))
    found = Loading()
    found.add([kv], _fail_unreadable)
    fresh.load(2, found)
    for catalog in (followed, fresh):
        [one] = ServiceInstances.model_validate_json(catalog.list_body("default", "a")).instances
        assert one.status is InstanceStatus.STARTING, "a later node has said nothing of it yet"
        assert [entry.name for entry, _ in catalog.checked()] == [NAMES[0]] * is_read


def test_an_old_snapshot_is_not_kept_beside_the_new_one() -> None:
    catalog = loaded()
    for revision in range(2, 6):
        apply(catalog, put(revision, NAMES[0], weight=revision))
        assert b'"weight":%d' % revision in catalog.snapshot_body(Interest("default"))
        assert len(catalog._answers) == 1


def test_changes_before_the_first_load_are_not_remembered() -> None:
    catalog = loaded(revision=5)
    assert catalog.changes_since(4, Interest("default")) is None
    assert catalog.changes_since(5, Interest("default")) == ()
    assert catalog.changes_since(6, Interest("default")) is None, "ahead of this catalog"


def test_the_memory_of_changes_is_bounded_and_says_when_it_does_not_reach_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "RECENT_CHANGES_MAX", 3)
    catalog = loaded()
    for revision in range(2, 8):
        apply(catalog, put(revision, NAMES[revision % 6]))
    assert catalog.changes_since(3, Interest("default")) is None
    assert catalog.changes_since(4, Interest("default")) == (NAMES[1], NAMES[0], NAMES[5])
    assert catalog.changes_since(4, Interest("default", frozenset({"b"}))) == (NAMES[5],)
    assert catalog.changes_since(4, Interest("other")) == ()


def test_empty_services_are_remembered_up_to_a_bound_and_never_as_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "EMPTY_SERVICES_MAX", 2)
    catalog = loaded()
    for number in range(2, 7):
        name = InstanceName("default", f"s-{number}", "i")
        apply(catalog, put(10 * number, name), gone(10 * number + 1, name))
    assert catalog.changed_revision("default", "s-6") == 61
    assert catalog.changed_revision("default", "s-2") == 41, "forgotten: at most the newest forgotten change"


def test_answers_are_encoded_once_for_all_who_need_the_same() -> None:
    catalog = loaded()
    apply(catalog, put(2, NAMES[0]))
    assert catalog.delta_body((NAMES[0],)) is catalog.delta_body((NAMES[0],))
    former = catalog.snapshot_body(Interest("default"))
    assert former is catalog.snapshot_body(Interest("default"))
    apply(catalog, put(3, NAMES[0], weight=2))
    assert b'"weight":2' in catalog.snapshot_body(Interest("default"))


def test_unrelated_changes_wake_nobody() -> None:
    subscriptions = Subscriptions()
    with (
        subscriptions.subscribed(Interest("default", frozenset({"a"}))) as of_a,
        subscriptions.subscribed(Interest("default")) as of_all,
        subscriptions.subscribed(Interest("other")) as elsewhere,
    ):
        subscriptions.publish([NAMES[3]])
        catalog = loaded()
        assert of_a.take(catalog) is None
        assert elsewhere.take(catalog) is None
        assert of_all.take(catalog) is not None
    assert len(subscriptions) == 0


def test_a_queue_holds_names_and_the_newest_state_wins() -> None:
    catalog, subscriptions = loaded(), Subscriptions()
    with subscriptions.subscribed(Interest("default")) as slow:
        subscriptions.publish(apply(catalog, put(2, NAMES[1])))
        for revision in range(3, 50):
            subscriptions.publish(apply(catalog, put(revision, NAMES[0], weight=revision)))
        subscriptions.publish(apply(catalog, gone(50, NAMES[1])))
        kind, revision, delta = parse(slow.take(catalog) or b"")
        assert (kind, revision) == ("delta", 50)
        assert {change.id: change.instance and change.instance.weight for change in delta.changes} == {
            "i-0": 49, "i-1": None,
        }  # fmt: skip
        assert slow.take(catalog) is None


def test_a_watcher_too_far_behind_gets_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "PENDING_NAMES_MAX", 3)
    catalog, subscriptions = loaded(), Subscriptions()
    with subscriptions.subscribed(Interest("default")) as slow:
        for number, name in enumerate(NAMES):
            subscriptions.publish(apply(catalog, put(2 + number, name)))
        kind, _, snapshot = parse(slow.take(catalog) or b"")
        assert kind == "snapshot"
        assert {service: len(found) for service, found in snapshot.services.items()} == {"a": 3, "b": 3}


def test_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "SUBSCRIPTIONS_MAX", 1)
    subscriptions = Subscriptions()
    with (
        subscriptions.subscribed(Interest("default")),
        pytest.raises(TooManyRequests),
        subscriptions.subscribed(Interest("default")),
    ):
        pass
    assert len(subscriptions) == 0


@pytest.mark.parametrize(("resume", "kind"), [(None, "snapshot"), (0, "snapshot"), (2, "delta"), (3, "bookmark")])
def test_a_watch_begins_with_what_the_watcher_lacks(resume: int | None, kind: str) -> None:
    catalog, subscriptions = loaded(), Subscriptions()
    apply(catalog, put(2, NAMES[0]))
    apply(catalog, put(3, NAMES[1]))
    with subscriptions.subscribed(Interest("default")) as subscription:
        assert parse(first_event(catalog, subscription, resume))[:2] == (kind, 3)


async def test_a_bookmark_comes_after_all_changes_up_to_it() -> None:
    catalog, subscriptions = loaded(), Subscriptions()
    events = watch_events(catalog, subscriptions, Interest("default", frozenset({"a"})), None)
    async with asyncio.timeout(5):
        assert parse(await anext(events))[0] == "snapshot"
        subscriptions.publish(apply(catalog, put(2, NAMES[0])))
        catalog.apply(WatchBatch(6), _fail_unreadable)
        subscriptions.publish_bookmark()
        assert parse(await anext(events))[:2] == ("delta", 6)
        subscriptions.publish_bookmark()
        assert parse(await anext(events))[:2] == ("bookmark", 6)
    await events.aclose()
    assert len(subscriptions) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 3)), max_size=60), st.integers(0, 10**6))
def test_a_watcher_that_reads_and_reconnects_at_will_ends_with_the_registrys_own_state(
    changes: list[tuple[InstanceName, int]], seed: int
) -> None:
    """However slowly it reads, and wherever it resumes, by snapshot or by delta. A weight of 0 stands for removal."""
    chance = random.Random(seed)
    catalog, subscriptions, table = loaded(), Subscriptions(), InstanceTable()

    def deliver(event: bytes | None) -> None:
        if event is None:
            return
        kind, revision, model = parse(event)
        match kind:
            case "snapshot":
                table.replace(model)
            case "delta":
                table.update(model)
            case _:
                table.confirm(model)
        assert table.revision == revision

    held = subscriptions.subscribed(Interest("default"))
    subscription = held.__enter__()
    deliver(first_event(catalog, subscription, None))
    for number, (name, weight) in enumerate(changes):
        event = put(2 + number, name, weight) if weight else gone(2 + number, name)
        subscriptions.publish(apply(catalog, event))
        if chance.random() < 0.3:
            deliver(subscription.take(catalog))
        if chance.random() < 0.2:
            held.__exit__(None, None, None)
            held = subscriptions.subscribed(Interest("default"))
            subscription = held.__enter__()
            deliver(first_event(catalog, subscription, table.revision if chance.random() < 0.7 else None))
    deliver(subscription.take(catalog))
    held.__exit__(None, None, None)
    for service in ("a", "b"):
        own = msgspec.json.decode(catalog.list_body("default", service))["instances"]
        assert [found.model_dump(mode="json") for found in sorted(table.instances(service), key=lambda i: i.id)] == own
