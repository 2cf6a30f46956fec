"""What one revision's events say of instances and services."""

import json
from typing import Any

import pytest
from quorate_registry.timeline import VALUE_CHARS_MAX, rows_of
from quorate_store.model import Event, EventKind, KeyValue

REVISION = 9
NAME = "default/order/order-1"
RECORD = {"host": "127.0.0.1", "port": 9001, "weight": 100, "changed_by": "ann", "changed_at_ms": 5_000}


def event(kind: str, name: str, since: Any = None, before: Any = None) -> Event:
    key = f"quorate/{kind}/{name}".encode()
    previous = None if before is None else KeyValue(key, _value(before), 1, REVISION - 1, 1)
    if since is None:
        return Event(EventKind.DELETE, KeyValue(key, b"", 0, REVISION, 0), previous)
    return Event(EventKind.PUT, KeyValue(key, _value(since), 1, REVISION, 2), previous)


def _value(found: Any) -> bytes:
    return b"" if found == "" else json.dumps(found).encode()


def told(*events: Event) -> list[tuple[str, str, str, int]]:
    return [(row.name, row.what, row.by, row.at_ms) for row in rows_of(REVISION, events)]


def test_a_registration_is_one_line_though_it_is_two_keys() -> None:
    events = [event("registry-alive", NAME, ""), event("registry", NAME, RECORD)]
    assert told(*events) == [("order/order-1", "registered", "ann", 5_000)]
    assert rows_of(REVISION, events)[0].details == {
        "host": ["", "127.0.0.1"], "port": ["", "9001"], "weight": ["", "100"],
    }  # fmt: skip


def test_a_change_has_the_fields_that_differ_and_not_who_and_when_once_more() -> None:
    changed = {**RECORD, "weight": 7, "changed_by": "bob", "changed_at_ms": 6_000}
    (row,) = rows_of(REVISION, [event("registry", NAME, changed, RECORD)])
    assert (row.what, row.by, row.at_ms, row.details) == ("changed", "bob", 6_000, {"weight": ["100", "7"]})


def test_the_same_again_is_told_as_that_and_with_a_new_life_as_coming_back() -> None:
    again = event("registry", NAME, RECORD, RECORD)
    assert told(again) == [("order/order-1", "registered again", "ann", 5_000)]
    assert told(again, event("registry-alive", NAME, "")) == [("order/order-1", "came back", "ann", 5_000)]
    assert told(again, event("registry-alive", NAME, "", "")) == [("order/order-1", "registered again", "ann", 5_000)]


@pytest.mark.parametrize(
    ("reason", "what"), [("deregistered", "deregistered"), ("", "deregistered"), ("refused", "reaped")]
)
def test_a_removal_is_told_by_its_note(reason: str, what: str) -> None:
    note = event("registry-notes", "default/order", {"id": "order-1", "by": "ann", "at_ms": 7_000, "reason": reason})
    removed = [event("registry", NAME, None, RECORD), event("registry-alive", NAME, None, ""), note]
    assert told(*removed) == [("order/order-1", what, "ann", 7_000)]
    # A note is of the instance that it names.
    other = event("registry", "default/order/order-2", None, RECORD)
    assert told(other, note) == [("order/order-2", "deregistered", "", 0)]


def test_the_end_of_a_lease_alone_is_a_lapse_and_nobody_did_it() -> None:
    assert told(event("registry-alive", NAME, None, "")) == [("order/order-1", "lapsed", "", 0)]
    assert told(event("registry-alive", NAME, "")) == [("order/order-1", "came back", "", 0)]
    assert told(event("registry-alive", NAME, "", "")) == []


def test_what_checks_have_decided_is_told_with_the_node_that_checks() -> None:
    health = {"passing": False, "output": "refused", "checked_by": "node-1", "changed_at_ms": 8_000}
    (row,) = rows_of(REVISION, [event("registry-health", NAME, health, {**health, "passing": True, "output": ""})])
    assert (row.what, row.by, row.at_ms) == ("failing", "node-1", 8_000)
    assert row.details["passing"] == ["true", "false"]


def test_settings_of_a_service_are_a_line_of_their_own() -> None:
    before = {"hold_s": 300, "changed_by": "ann", "changed_at_ms": 1}
    (row,) = rows_of(REVISION, [event("registry-services", "default/order", {**before, "hold_s": 60}, before)])
    assert (row.kind, row.name, row.what, row.details) == (
        "service", "order", "settings changed", {"hold_s": ["300", "60"]},
    )  # fmt: skip
    (row,) = rows_of(REVISION, [event("registry-services", "default/order", None, before)])
    assert (row.what, row.by) == ("settings deleted", "")


def test_several_instances_of_one_revision_are_a_line_each() -> None:
    names = ["default/order/b", "default/order/a", "shop/order/a"]
    assert [row[0] for row in told(*(event("registry-alive", name, None, "") for name in names))] == [
        "order/a", "order/b", "order/a",
    ]  # fmt: skip


def test_what_cannot_be_read_is_told_by_its_name_and_what_is_long_is_cut() -> None:
    key = f"quorate/registry/{NAME}".encode()
    torn = Event(EventKind.PUT, KeyValue(key, b"\xff{", 1, REVISION, 1))
    assert told(torn) == [("order/order-1", "registered", "", 0)]
    assert told(event("registry", "default/order", RECORD), event("unknown", NAME, RECORD)) == []
    (row,) = rows_of(REVISION, [event("registry", NAME, {**RECORD, "zone": "z" * 1_000})])
    assert len(row.details["zone"][1]) == VALUE_CHARS_MAX


def test_a_hold_is_told_as_doubt_and_its_end_as_what_it_ends_with() -> None:
    held = {"passing": True, "output": "x", "checked_by": "node-1", "changed_at_ms": 8_000, "doubt_since_ms": 7_000}
    key = ("registry-health", NAME)
    assert told(event(*key, held)) == [("order/order-1", "in doubt", "node-1", 8_000)]
    assert told(event(*key, {**held, "passing": False}, held)) == [("order/order-1", "failing", "node-1", 8_000)]
    assert told(event(*key, {**held, "doubt_since_ms": 0}, held)) == [("order/order-1", "passing", "node-1", 8_000)]


def test_a_guard_key_tells_that_a_service_is_protected_and_when_that_has_ended() -> None:
    put = {"by": "node node-1", "at_ms": 9_000}
    assert told(event("registry-guard", "default/order", put)) == [("order", "protected", "node node-1", 9_000)]
    assert told(event("registry-guard", "default/order", None, put)) == [("order", "protection ended", "", 0)]
    assert told(event("registry-guard", "default/order", put, put)) == []
