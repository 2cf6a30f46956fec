"""What is shown follows from the store's keys alone, however a node came to know them; and never from an absence."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_registry import catalog as catalog_module
from quorate_registry.catalog import Catalog, Interest, Loading
from quorate_registry.guard import GuardMove, Population, guard_move
from quorate_registry.model import (
    Health,
    InstanceName,
    KeyKind,
    Record,
    ServiceName,
    encode_health,
    encode_record,
    encode_settings,
    key_of,
)
from quorate_registry.watch import Subscriptions, first_event
from quorate_sdk.instance_table import InstanceTable
from quorate_sdk.wire import (
    Bookmark,
    InstanceStatus,
    RegistryDelta,
    RegistrySnapshot,
    ServiceInstances,
    ServiceSettings,
    TcpCheck,
)
from quorate_store.model import Event, EventKind, KeyValue, WatchBatch

A, B = ServiceName("default", "a"), ServiceName("default", "b")
NAMES = [InstanceName(*service, f"i-{number}") for service in (A, B) for number in range(3)]
SETTINGS = {
    "off": ServiceSettings(protection_threshold=0),
    "all": ServiceSettings(protection_threshold=1),
    "checked": ServiceSettings(default_check=TcpCheck(type="tcp")),
}
Change = dict[bytes, tuple[bytes, int] | None]
"""One revision: by key, what it holds and its lease then, or None when it is gone."""


def record(status: InstanceStatus = InstanceStatus.UP, weight: int = 1, *, ephemeral: bool = True) -> bytes:
    return encode_record(
        Record(
            host="h", port=1, scheme="http", zone="", version="", metadata={}, status=status, ttl_s=10, weight=weight,
            ephemeral=ephemeral,
        )
    )  # fmt: skip


def registered(name: InstanceName, lease: int = 7, **options: Any) -> Change:
    return {key_of(KeyKind.RECORD, name): (record(**options), 0), key_of(KeyKind.ALIVE, name): (b"", lease)}


def lapse(*names: InstanceName) -> Change:
    return {key_of(KeyKind.ALIVE, name): None for name in names}


def removed(name: InstanceName) -> Change:
    return {key_of(kind, name): None for kind in (KeyKind.RECORD, KeyKind.ALIVE, KeyKind.HEALTH)}


def persistent(name: InstanceName) -> Change:
    return {key_of(KeyKind.RECORD, name): (record(ephemeral=False), 0), key_of(KeyKind.ALIVE, name): None}


def health(name: InstanceName, *, passing: bool, doubt_since_ms: int = 0) -> Change:
    found = Health(passing=passing, output="", checked_by="node-1", changed_at_ms=0, doubt_since_ms=doubt_since_ms)
    return {key_of(KeyKind.HEALTH, name): (encode_health(found), 0)}


def set_to(service: ServiceName, chosen: str) -> Change:
    value = encode_settings(SETTINGS[chosen], "", 0) if chosen in SETTINGS else None
    return {key_of(KeyKind.SETTINGS, service): None if value is None else (value, 0)}


def guard(service: ServiceName) -> Change:
    return {key_of(KeyKind.GUARD, service): (b'{"by":"node node-1","at_ms":1}', 0)}


def unguarded(service: ServiceName) -> Change:
    return {key_of(KeyKind.GUARD, service): None}


class History:
    """A store's keys, revision by revision, as a watch tells them and as a range has them."""

    def __init__(self) -> None:
        self._keys: dict[bytes, KeyValue] = {}
        self.revision = 1
        self.batches: list[WatchBatch] = []

    def write(self, change: Change) -> WatchBatch:
        self.revision += 1
        events = tuple(self._event(key, held) for key, held in change.items() if held or key in self._keys)
        self.batches.append(WatchBatch(self.revision, events))
        return self.batches[-1]

    def _event(self, key: bytes, held: tuple[bytes, int] | None) -> Event:
        if held is None:
            del self._keys[key]
            return Event(EventKind.DELETE, KeyValue(key, b"", 0, self.revision, 0))
        self._keys[key] = KeyValue(key, held[0], 1, self.revision, 1, held[1])
        return Event(EventKind.PUT, self._keys[key])

    def loading(self) -> Loading:
        loading = Loading()
        loading.add((self._keys[key] for key in sorted(self._keys)), fail_unreadable)
        return loading

    def loaded(self) -> Catalog:
        """A node that has just begun."""
        catalog = Catalog()
        catalog.load(self.revision, self.loading())
        return catalog


def fail_unreadable(key: bytes, error: ValueError) -> None:
    raise AssertionError(f"unreadable: {key!r}") from error


def told(*changes: Change) -> tuple[Catalog, list[list[InstanceName]]]:
    """A catalog that has seen these revisions, and what each has changed."""
    history, catalog = History(), Catalog()
    catalog.load(1, Loading())
    return catalog, [catalog.apply(history.write(change), fail_unreadable) for change in changes]


def shown(catalog: Catalog, service: ServiceName) -> dict[str, tuple[str, bool]]:
    found = ServiceInstances.model_validate_json(catalog.list_body(*service))
    return {instance.id: (instance.status.value, instance.stale) for instance in found.instances}


CHANGES = st.one_of(
    st.builds(registered, st.sampled_from(NAMES), st.integers(1, 3)),
    st.builds(
        registered, st.sampled_from(NAMES), status=st.sampled_from([InstanceStatus.UP, InstanceStatus.DRAINING]),
        weight=st.integers(0, 1),
    ),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True).map(lambda names: lapse(*names)),
    st.builds(removed, st.sampled_from(NAMES)),
    st.sampled_from(NAMES).map(lambda name: {key_of(KeyKind.ALIVE, name): (b"", 9)}),
    st.sampled_from(NAMES).map(lambda name: {key_of(KeyKind.RECORD, name): (record(), 0)}),
    st.sampled_from(NAMES).map(lambda name: {key_of(KeyKind.RECORD, name): None}),
    st.builds(persistent, st.sampled_from(NAMES)),
    st.builds(health, st.sampled_from(NAMES), passing=st.booleans(), doubt_since_ms=st.integers(0, 1)),
    st.builds(set_to, st.sampled_from([A, B]), st.sampled_from([*SETTINGS, "default"])),
    st.builds(guard, st.sampled_from([A, B])),
    st.builds(unguarded, st.sampled_from([A, B])),
    st.just({}),
)  # fmt: skip


def bodies(catalog: Catalog) -> Iterator[object]:
    for service in (A, B):
        yield msgspec.json.decode(catalog.list_body(*service))
        yield catalog.settings(*service), catalog.is_protected(*service), catalog.is_short(*service)
        yield catalog.guard_revision(*service)
    yield sorted(catalog.guarded())
    yield msgspec.json.decode(catalog.snapshot_body(Interest("default")))
    yield msgspec.json.decode(catalog.services_body("default"))
    yield sorted(entry.name for entry in catalog.lapsed())
    yield sorted((entry.name, check.model_dump_json()) for entry, check in catalog.checked())


@settings(max_examples=150, deadline=None)
@given(st.lists(CHANGES, max_size=40), st.randoms(use_true_random=False))
def test_a_node_that_followed_and_one_that_has_just_loaded_show_the_same(
    changes: Sequence[Change], chance: random.Random
) -> None:
    """At each revision, also when several come in one batch, and when the follower itself loads anew now and then."""
    history, follower = History(), Catalog()
    follower.load(1, Loading())
    waiting: list[Event] = []
    for change in changes:
        waiting += history.write(change).events
        if chance.random() < 0.4:
            continue
        if chance.random() < 0.1:
            follower.load(history.revision, history.loading())
        else:
            follower.apply(WatchBatch(history.revision, tuple(waiting)), fail_unreadable)
        waiting = []
        fresh = history.loaded()
        assert list(bodies(follower)) == list(bodies(fresh))


class Node:
    """Takes the revisions in batches of its own."""

    def __init__(self) -> None:
        self.catalog, self.subscriptions = Catalog(), Subscriptions()
        self.catalog.load(1, Loading())
        self.behind: list[WatchBatch] = []

    def load(self, history: History) -> None:
        """As one whose history was compacted while it was away."""
        self.behind = []
        self.subscriptions.publish(self.catalog.load(history.revision, history.loading()))

    def catch_up(self) -> None:
        batches, self.behind = self.behind, []
        if batches:
            events = tuple(event for batch in batches for event in batch.events)
            changed = self.catalog.apply(WatchBatch(batches[-1].revision, events), fail_unreadable)
            self.subscriptions.publish(changed)


class Follower:
    """A watcher of the namespace: what it has is what its node shows, after each event."""

    def __init__(self) -> None:
        self.table = InstanceTable()

    def take(self, event: bytes | None, node: Node) -> None:
        if event is None:
            return
        lines = dict(line.split(": ", 1) for line in event.decode().strip().split("\n"))
        match lines["event"]:
            case "snapshot":
                self.table.replace(RegistrySnapshot.model_validate_json(lines["data"]))
            case "delta":
                self.table.update(RegistryDelta.model_validate_json(lines["data"]))
            case _:
                self.table.confirm(Bookmark.model_validate_json(lines["data"]))
        for service in (A, B):
            has = {one.id: one for one in self.table.instances(service.service)}
            own = ServiceInstances.model_validate_json(node.catalog.list_body(*service)).instances
            assert has == {one.id: one for one in own}


@settings(max_examples=150, deadline=None)
@given(st.lists(CHANGES, max_size=40), st.randoms(use_true_random=False))
def test_a_watcher_that_goes_from_node_to_node_has_what_each_of_them_shows(
    changes: Sequence[Change], chance: random.Random
) -> None:
    """It resumes by its revision at either node; and a node now and then loads anew what it has missed."""
    history, nodes, follower = History(), [Node(), Node()], Follower()
    node, waiting = nodes[0], list(changes)
    while waiting:
        with node.subscriptions.subscribed(Interest("default")) as subscription:
            resume = follower.table.revision or None
            if resume is None or resume <= node.catalog.revision:
                follower.take(first_event(node.catalog, subscription, resume), node)
            while waiting and chance.random() < 0.7:
                batch = history.write(waiting.pop(0))
                for each in nodes:
                    each.behind.append(batch)
                if chance.random() < 0.5:
                    node.catch_up()
                    follower.take(subscription.take(node.catalog), node)
        node = nodes[1 - nodes.index(node)]
        if chance.random() < 0.3:
            node.load(history)
        else:
            node.catch_up()


@settings(max_examples=100, deadline=None)
@given(st.lists(CHANGES, max_size=30), st.sampled_from([A, B]))
def test_lapses_alone_never_empty_a_list(changes: Sequence[Change], service: ServiceName) -> None:
    """Whatever came before: with the default settings, something is shown while a record takes traffic."""
    history, catalog = History(), Catalog()
    catalog.load(1, Loading())
    for change in [*changes, set_to(service, "default"), registered(InstanceName(*service, "last"))]:
        catalog.apply(history.write(change), fail_unreadable)
    everybody = [name for name in [*NAMES, InstanceName(*service, "last")] if name.of == service]
    catalog.apply(history.write(lapse(*everybody)), fail_unreadable)
    assert "last" in shown(catalog, service)
    assert catalog.is_protected(*service)


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0, 1), st.booleans())
def test_protected_is_a_service_with_too_few_alive_or_with_a_guard_key_and_somebody_lapsed(
    alive: int, lapsed: int, share: float, is_guarded: bool
) -> None:
    population = Population(all=alive + lapsed, lapsed=lapsed)
    is_protected = population.is_protected(share, is_guarded=is_guarded)
    is_short = lapsed > 0 and alive < share * (alive + lapsed)
    assert population.is_short(share) == is_short
    assert is_protected == (is_short or (is_guarded and lapsed > 0 and share > 0))
    if share == 0 or lapsed == 0:
        assert not is_protected


def move(*, is_guarded: bool = True, is_protected: bool = True, is_short: bool = False, recovered_s: float = 0) -> str:
    return guard_move(
        is_guarded=is_guarded, is_protected=is_protected, is_short=is_short, recovered_s=recovered_s, hold_s=300
    )  # fmt: skip


def test_a_guard_key_is_put_when_too_few_are_alive_and_goes_when_nothing_is_lapsed_or_long_after_enough_are_back() -> (
    None
):
    assert move(is_guarded=False, is_short=True) is GuardMove.PUT
    assert move(is_guarded=False, is_protected=False) is GuardMove.LEAVE
    assert move(is_short=True, recovered_s=301) is GuardMove.LEAVE
    assert move() is GuardMove.LEAVE
    assert move(is_protected=False) is GuardMove.TAKE_AWAY
    assert move(recovered_s=299.9) is GuardMove.LEAVE
    assert move(recovered_s=300) is GuardMove.TAKE_AWAY


def test_with_a_guard_key_those_that_are_not_back_yet_stay_until_the_last_one_is() -> None:
    everybody = NAMES[:3]
    back = [registered(name, lease=9) for name in everybody]
    catalog, changed = told(*(registered(name) for name in everybody), lapse(*everybody), guard(A), back[0], back[1])
    assert changed[-3:] == [[], [everybody[0]], [everybody[1]]], "the key by itself changes nothing that is shown"
    assert shown(catalog, A) == {"i-0": ("UP", False), "i-1": ("UP", False), "i-2": ("UP", True)}
    assert (catalog.is_protected(*A), catalog.is_short(*A)) == (True, False)
    catalog, changed = told(
        *(registered(name) for name in everybody), lapse(*everybody), guard(A), back[0], back[1], unguarded(A)
    )
    assert changed[-1] == [everybody[2]], "without it, it is hidden"
    catalog, _ = told(*(registered(name) for name in everybody), lapse(*everybody), guard(A), *back)
    assert not catalog.is_protected(*A)
    assert (catalog.guarded(), shown(catalog, A)["i-2"]) == ((A,), ("UP", False))


def test_a_threshold_of_zero_is_no_protection_whatever_the_guard_key_says() -> None:
    catalog, _ = told(registered(NAMES[0]), lapse(NAMES[0]), guard(A), set_to(A, "off"))
    assert shown(catalog, A) == {}
    assert not catalog.is_protected(*A)


def test_a_guard_key_of_a_service_that_has_gone_is_remembered_until_it_is_taken_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog_module, "EMPTY_SERVICES_MAX", 0)
    catalog, _ = told(registered(NAMES[0]), lapse(NAMES[0]), guard(A), removed(NAMES[0]))
    assert (catalog.guarded(), catalog.guard_revision(*A)) == ((A,), 4)
    catalog, _ = told(registered(NAMES[0]), lapse(NAMES[0]), guard(A), removed(NAMES[0]), unguarded(A))
    assert (catalog.guarded(), catalog.guard_revision(*A)) == ((), 0)


def test_one_of_three_is_hidden_and_with_the_second_both_are_back_and_stale() -> None:
    first, second, third = NAMES[:3]
    catalog, changed = told(*(registered(name) for name in NAMES[:3]), lapse(first), lapse(second))
    assert changed[-2:] == [[first], [first, second]]
    assert shown(catalog, A) == {"i-0": ("UP", True), "i-1": ("UP", True), "i-2": ("UP", False)}
    catalog, changed = told(*(registered(name) for name in NAMES[:3]), lapse(first), lapse(second), registered(second))
    assert changed[-1] == [first, second], "and the first is hidden again"
    assert shown(catalog, A) == {"i-1": ("UP", False), "i-2": ("UP", False)}
    assert [entry.name for entry in catalog.lapsed()] == [first]
    assert third not in changed[-1]


def test_those_that_take_no_traffic_protect_nobody_and_are_not_missed() -> None:
    draining, up, other = NAMES[:3]
    catalog, _ = told(
        registered(draining, status=InstanceStatus.DRAINING), registered(up), registered(other), lapse(draining)
    )
    assert shown(catalog, A) == {"i-1": ("UP", False), "i-2": ("UP", False)}
    assert not catalog.is_protected(*A)


def test_new_instances_in_place_of_the_old_end_the_protection() -> None:
    catalog, changed = told(
        registered(NAMES[0]), lapse(NAMES[0]), registered(NAMES[1]),
        registered(NAMES[2]),
    )  # fmt: skip
    assert shown(catalog, A) == {"i-1": ("UP", False), "i-2": ("UP", False)}
    assert changed[1] == [NAMES[0]]


def test_what_changes_elsewhere_or_is_hidden_already_is_told_to_nobody() -> None:
    hidden = [registered(name) for name in NAMES[:3]] + [lapse(NAMES[0])]
    _, changed = told(*hidden, removed(NAMES[0]))
    assert changed[-1] == [], "it was reaped, and nobody had been shown it"
    note: Change = {key_of(KeyKind.NOTE, A): (b"{}", 0)}
    _, changed = told(*hidden, note, set_to(B, "all"), set_to(A, "off"))
    assert changed[-3:] == [[], [], []]


def test_a_check_decides_between_starting_up_and_down() -> None:
    name = NAMES[0]
    catalog, changed = told(persistent(name), set_to(A, "checked"))
    assert shown(catalog, A) == {"i-0": ("STARTING", False)}
    assert changed == [[name], [name]]
    assert [entry.name for entry, _ in catalog.checked()] == [name]
    catalog, _ = told(persistent(name), set_to(A, "checked"), health(name, passing=True))
    assert shown(catalog, A) == {"i-0": ("UP", False)}
    catalog, _ = told(persistent(name), set_to(A, "checked"), health(name, passing=False))
    assert shown(catalog, A) == {"i-0": ("DOWN", False)}
    catalog, _ = told(persistent(name), set_to(A, "checked"), health(name, passing=True, doubt_since_ms=1))
    assert shown(catalog, A) == {"i-0": ("UP", True)}, "held, since the network may be the reason"
    catalog, _ = told(persistent(name), set_to(A, "checked"), health(name, passing=False, doubt_since_ms=1))
    assert shown(catalog, A) == {"i-0": ("DOWN", False)}, "it was believed"
    catalog, _ = told(persistent(name), health(name, passing=True, doubt_since_ms=1))
    assert shown(catalog, A) == {"i-0": ("UP", False)}
    catalog, _ = told(persistent(name), health(name, passing=False))
    assert shown(catalog, A) == {"i-0": ("UP", False)}, "what was found once does not count when nobody looks any more"


@pytest.mark.parametrize("kind", [KeyKind.HEALTH, KeyKind.SETTINGS, KeyKind.RECORD])
def test_what_cannot_be_read_counts_as_not_there(kind: KeyKind) -> None:
    name = NAMES[0]
    history, catalog, unreadable = History(), Catalog(), []
    catalog.load(1, Loading())
    for change in (persistent(name), set_to(A, "checked"), health(name, passing=False)):
        catalog.apply(history.write(change), fail_unreadable)
    key = key_of(kind, A if kind.is_of_service else name)
    catalog.apply(history.write({key: (b"{", 0)}), lambda key, _: unreadable.append(key))
    expected = {KeyKind.HEALTH: "STARTING", KeyKind.SETTINGS: "UP"}
    assert shown(catalog, A) == ({"i-0": (expected[kind], False)} if kind in expected else {})
    assert unreadable == [key]
