"""The newest changes, kept in memory."""

import pytest
from quorate_core.errors import InvariantViolation
from quorate_store.etcd.recent import EVENT_BYTES, PREFILL_REVISIONS, NotKept, RecentChanges
from quorate_store.model import RANGE_ALL, Event, EventKind, KeyValue


def change(revision: int, *keys: bytes) -> list[Event]:
    before = KeyValue(b"k", b"old", 1, 1, 1)
    return [Event(EventKind.PUT, KeyValue(key, b"v", revision, revision, 1), before) for key in keys]


def filled(first: int, last: int, **limits: int) -> RecentChanges:
    recent = RecentChanges(first, **limits)
    for revision in range(first, last + 1):
        recent.append(revision, change(revision, b"a", b"b"))
    return recent


def told(
    recent: RecentChanges, start: int, key: bytes = b"\0", range_end: bytes = RANGE_ALL, rows: int = 10**6
) -> object:
    events, reached = recent.events(start, key, range_end, previous=False, rows_max=rows)
    return [(event.kv.mod_revision, event.kv.key) for event in events], reached


def test_all_from_any_revision_that_is_kept_can_be_read() -> None:
    recent = filled(5, 8)
    assert (recent.first, recent.revision) == (5, 8)
    assert told(recent, 7) == ([(7, b"a"), (7, b"b"), (8, b"a"), (8, b"b")], 8)
    assert told(recent, 7, b"b", b"") == ([(7, b"b"), (8, b"b")], 8)
    assert told(recent, 9) == ([], 8)
    with pytest.raises(NotKept):
        told(recent, 4)


def test_a_slice_ends_after_a_whole_revision_and_says_where() -> None:
    recent = filled(1, 10)
    assert told(recent, 1, rows=3) == ([(1, b"a"), (1, b"b"), (2, b"a"), (2, b"b")], 2)
    assert told(recent, 3, b"none", b"", rows=3) == ([], 4), "what is looked at counts, and not what is found"


def test_the_oldest_go_first_by_number_and_by_size() -> None:
    assert filled(1, 10, revisions_max=3).first == 8
    by_size = filled(1, 10, bytes_max=3 * 2 * (EVENT_BYTES + 6))
    assert by_size.first == 8
    assert told(by_size, 8)[1] == 10  # type: ignore[index]


def test_one_revision_that_is_larger_than_all_room_is_kept_alone() -> None:
    recent = filled(1, 3, bytes_max=10)
    assert (recent.first, recent.revision) == (3, 3)
    assert told(recent, 3) == ([(3, b"a"), (3, b"b")], 3)


def test_previous_values_come_when_asked_for() -> None:
    recent = filled(1, 1)
    assert [event.previous for event in recent.events(1, b"a", b"", previous=False, rows_max=9)[0]] == [None]
    assert [event.previous.value for event in recent.events(1, b"a", b"", previous=True, rows_max=9)[0]] == [b"old"]  # type: ignore[union-attr]


@pytest.mark.parametrize("revision", [8, 10])
def test_nothing_is_left_out_or_told_twice(revision: int) -> None:
    with pytest.raises(InvariantViolation):
        filled(1, 8).append(revision, change(revision, b"a"))


def test_it_begins_some_way_before_the_present() -> None:
    assert RecentChanges.until(5).first == 1
    assert RecentChanges.until(50_000).first == 50_001 - PREFILL_REVISIONS
    assert RecentChanges.until(50_000, 10).first == 49_991


def test_to_begin_anew_forgets_all() -> None:
    recent = filled(1, 5)
    recent.begin_anew(20)
    assert (recent.first, recent.revision) == (20, 19)
    recent.append(20, change(20, b"a"))
    assert told(recent, 20) == ([(20, b"a")], 20)
    with pytest.raises(NotKept):
        told(recent, 5)
