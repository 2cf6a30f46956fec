"""What one change of a document's head says: versions, comments and who, and never what is in it."""

import pytest
from quorate_config_center.model import DocumentName, Head, current_key, encode_head
from quorate_config_center.timeline import row_of
from quorate_sdk.wire import ConfigFormat
from quorate_store.model import Event, EventKind, KeyValue

NAME = DocumentName("default", "order", "settings.yaml")


def head(version: int, comment: str = "", *, deleted: bool = False, changed_at: str = "2026-01-31T12:00:00Z") -> Head:
    return Head(version, ConfigFormat.YAML, "ann", comment, changed_at, "0" * 64, deleted)


def put(since: Head, before: Head | None = None, name: DocumentName = NAME) -> Event:
    key = current_key(name)
    previous = None if before is None else KeyValue(key, encode_head(before), 1, 8, 1)
    return Event(EventKind.PUT, KeyValue(key, encode_head(since), 1, 9, 2), previous)


def test_a_publication_has_both_versions_and_both_comments() -> None:
    row = row_of(9, put(head(2, "more"), head(1, "first")))
    assert row is not None
    assert (row.kind, row.name, row.what, row.by) == ("config", "order/settings.yaml", "published", "ann")
    assert row.details == {"version": ["1", "2"], "comment": ["first", "more"]}
    assert row.at_ms == 1_769_860_800_000


def test_what_was_deleted_before_was_not_there() -> None:
    row = row_of(9, put(head(3), head(2, deleted=True)))
    assert row is not None
    assert row.details["version"] == ["", "3"]


def test_a_deletion_is_told_as_one() -> None:
    row = row_of(9, put(head(2, deleted=True), head(1)))
    assert row is not None
    assert row.what == "deleted"


@pytest.mark.parametrize(
    ("group", "key", "kind"), [("gateway", "routes.yaml", "route"), ("gateway", "x.yaml", "config")]
)
def test_the_routes_are_told_of_as_such(group: str, key: str, kind: str) -> None:
    row = row_of(9, put(head(1), name=DocumentName("default", group, key)))
    assert row is not None
    assert row.kind == kind


def test_what_cannot_be_read_is_left_out_and_a_time_that_is_none_is_not_known() -> None:
    torn = Event(EventKind.PUT, KeyValue(current_key(NAME), b"{", 1, 9, 1))
    assert row_of(9, torn) is None
    assert row_of(9, Event(EventKind.PUT, KeyValue(b"quorate/config/odd", encode_head(head(1)), 1, 9, 1))) is None
    row = row_of(9, put(head(1, changed_at="yesterday")))
    assert row is not None
    assert row.at_ms == 0
