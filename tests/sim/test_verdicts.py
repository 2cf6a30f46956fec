"""The verdicts on what clients saw: each allows what may be, and refuses what may not."""

from collections.abc import Callable, Sequence

import pytest
from quorate_simulation.invariants import InvariantBroken
from quorate_simulation.linearizability import Operation, Result, check
from quorate_simulation.models import GroupCall, GroupModel, KeyAnswer
from quorate_simulation.randomness import Randomness
from quorate_simulation.timeline import Timeline
from quorate_simulation.verdicts import Revisions, judge_leased_keys, judge_once, judge_watches, with_previous
from quorate_simulation.watchers import Gap, Observer, Start, Wish
from quorate_simulation.workload import KEY_PREFIX, LEASE_PREFIX, Attempt, Kind, Outcome
from quorate_store.model import Event, EventKind, KeyValue, WatchBatch, prefix_end
from quorate_store.request_guard import REQUESTS_PREFIX

KEY = KEY_PREFIX + b"0"
MARKER = REQUESTS_PREFIX + b"1/1"
LEASE = 7


def kv(key: bytes, value: bytes, revision: int, *, created: int = 0, version: int = 1, lease: int = 0) -> KeyValue:
    return KeyValue(key, value, created or revision, revision, version, lease)


def put(key: bytes, value: bytes, revision: int, before: KeyValue | None = None, lease: int = 0) -> Event:
    created, version = (revision, 1) if before is None else (before.create_revision, before.version + 1)
    new = kv(key, value, revision, created=created, version=version, lease=lease)
    return Event(EventKind.PUT, new, before)


def deletion(before: KeyValue, revision: int) -> Event:
    return Event(EventKind.DELETE, KeyValue(before.key, b"", 0, revision, 0), before)


def revisions_of(*events: Event) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    for event in events:
        found.setdefault(event.kv.mod_revision, []).append(event)
    return found


FIRST = put(KEY, b"1.1.0", 2)
SECOND = put(KEY, b"1.2.0", 3, FIRST.kv)
THIRD = deletion(SECOND.kv, 4)
LOG = revisions_of(FIRST, SECOND, THIRD)


def observer(
    seen: Sequence[Event], *, previous: bool = True, begin_revision: int = 1, gaps: Sequence[Gap] = ()
) -> Observer:
    wish = Wish(KEY_PREFIX, prefix_end(KEY_PREFIX), Start.BEGINNING, previous=previous, is_slow=False)
    one = Observer(1, NoStage(), Randomness(1).stream("test"), Timeline(lambda: 0.0), wish, LOG)
    one.begin_revision = begin_revision
    one.seen = list(seen)
    one.gaps = list(gaps)
    return one


class NoStage:
    """Nothing is played here."""

    now_s = 0.0
    is_over = True

    def choose(self, chance: object) -> None:
        return None


def judge(one: Observer, compact_revision: int = 0) -> None:
    judge_watches([one], with_previous(LOG), compact_revision)


def test_a_watcher_that_saw_all_with_what_was_before_is_content() -> None:
    judge(observer([FIRST, SECOND, THIRD]))
    judge(observer([SECOND, THIRD], begin_revision=3))
    judge(observer([SECOND, THIRD], gaps=[Gap(1, 3)]), compact_revision=3)
    judge(observer([Event(one.kind, one.kv) for one in (FIRST, SECOND, THIRD)], previous=False))


def test_what_was_before_may_be_withheld_when_it_was_compacted_and_only_then() -> None:
    bare = [Event(SECOND.kind, SECOND.kv), THIRD]
    one = observer(bare, gaps=[Gap(1, 3)])
    with pytest.raises(InvariantBroken, match="was there before"):
        judge(one, compact_revision=3)
    one.without_previous.add(3)
    judge(one, compact_revision=3)


@pytest.mark.parametrize(
    "seen",
    [
        [FIRST, SECOND],
        [FIRST, THIRD],
        [FIRST, THIRD, SECOND],
        [FIRST, SECOND, SECOND, THIRD],
        [FIRST, SECOND, THIRD, put(KEY, b"1.3.0", 5)],
        [FIRST, Event(SECOND.kind, SECOND.kv), THIRD],
        [FIRST, Event(SECOND.kind, SECOND.kv, kv(KEY, b"", 2)), THIRD],
        [put(KEY, b"other", 2), SECOND, THIRD],
    ],
)
def test_a_watcher_that_saw_anything_else_is_not(seen: Sequence[Event]) -> None:
    with pytest.raises(InvariantBroken, match="watch"):
        judge(observer(seen))


def test_nothing_may_be_called_compacted_that_is_not() -> None:
    with pytest.raises(InvariantBroken, match="no member has compacted further than to 2"):
        judge(observer([SECOND, THIRD], gaps=[Gap(1, 3)]), compact_revision=2)


def test_a_member_that_says_wrong_what_was_before_is_found_without_a_watcher() -> None:
    with pytest.raises(InvariantBroken, match="is said to have been None"):
        with_previous(revisions_of(FIRST, Event(SECOND.kind, SECOND.kv)))


def test_a_batch_that_goes_back_or_does_not_cover_its_events_is_refused_at_once() -> None:
    for batch, reached in (
        (WatchBatch(3, (SECOND,)), 3),
        (WatchBatch(2, (FIRST, SECOND)), 1),
        (WatchBatch(3, (SECOND, FIRST)), 1),
        (WatchBatch(2), 3),
    ):
        with pytest.raises(InvariantBroken, match="watcher 1 has everything before"):
            observer([])._require_order(batch, reached)
    observer([])._require_order(WatchBatch(3, (FIRST, SECOND)), 1)


def request(**fields: object) -> Attempt:
    one = Attempt(1, Kind.PUT, (KEY,), 0.0, (b"1.1.0",), request_id="1/1", outcome=Outcome.OK, revision=2)
    for name, value in fields.items():
        setattr(one, name, value)
    return one


DONE = revisions_of(FIRST, put(MARKER, b"", 2))
REMEMBERED_ONLY = revisions_of(put(MARKER, b"", 2))
TWICE = revisions_of(FIRST, put(MARKER, b"", 2), put(KEY, b"1.1.0", 3), put(MARKER, b"", 3))
MARKED_LATER = revisions_of(FIRST, put(MARKER, b"", 3))


@pytest.mark.parametrize(
    ("one", "revisions"),
    [
        (request(), DONE),
        (request(outcome=Outcome.UNKNOWN, revision=0), DONE),
        (request(outcome=Outcome.UNKNOWN, revision=0), {}),
        (request(outcome=Outcome.FAILED, revision=0), {}),
        (request(kind=Kind.CAS, revision=0), REMEMBERED_ONLY),
        (request(kind=Kind.CAS, succeeded=True), DONE),
        (request(kind=Kind.DELETE, values=(), revision=1), REMEMBERED_ONLY),
        (request(kind=Kind.DELETE, values=(), revision=2, deleted=1), REMEMBERED_ONLY),
    ],
)
def test_a_request_that_was_done_as_often_as_was_said_is_allowed(one: Attempt, revisions: Revisions) -> None:
    judge_once([one], revisions)


@pytest.mark.parametrize(
    ("one", "revisions"),
    [
        (request(), {}),
        (request(), TWICE),
        (request(), MARKED_LATER),
        (request(), REMEMBERED_ONLY),
        (request(revision=3), DONE),
        (request(outcome=Outcome.FAILED), DONE),
        (request(outcome=Outcome.UNKNOWN), TWICE),
        (request(outcome=Outcome.UNKNOWN), MARKED_LATER),
        (request(outcome=Outcome.UNKNOWN), REMEMBERED_ONLY),
        (request(outcome=Outcome.UNKNOWN), revisions_of(FIRST)),
        (request(kind=Kind.CAS, succeeded=True, revision=4), DONE),
        (request(kind=Kind.DELETE, values=(), revision=4, deleted=1), REMEMBERED_ONLY),
    ],
)
def test_and_one_that_was_not_is_refused(one: Attempt, revisions: Revisions) -> None:
    with pytest.raises(InvariantBroken, match="once: request 1/1 of client 1"):
        judge_once([one], revisions)


ONE, OTHER = (put(LEASE_PREFIX + name, b"here", 2, lease=LEASE) for name in (b"7/0", b"7/1"))


@pytest.mark.parametrize(
    ("events", "ended"),
    [
        ((ONE, OTHER), []),
        ((ONE, OTHER, deletion(ONE.kv, 3), deletion(OTHER.kv, 3)), [LEASE]),
        ((ONE, OTHER, put(ONE.kv.key, b"for good", 3, ONE.kv), deletion(OTHER.kv, 4)), [LEASE]),
    ],
)
def test_keys_end_with_their_lease_if_they_are_still_under_it(events: Sequence[Event], ended: list[int]) -> None:
    judge_leased_keys(revisions_of(*events), ended)


@pytest.mark.parametrize(
    ("events", "ended"),
    [
        ((ONE, OTHER), [LEASE]),
        ((ONE, OTHER, deletion(ONE.kv, 3)), [LEASE]),
        ((ONE, OTHER, deletion(ONE.kv, 3), deletion(OTHER.kv, 4)), [LEASE]),
        ((ONE, OTHER, deletion(ONE.kv, 3), deletion(OTHER.kv, 3)), []),
        ((ONE, put(ONE.kv.key, b"for good", 3, ONE.kv), deletion(kv(ONE.kv.key, b"for good", 3), 4)), [LEASE]),
        ((ONE, deletion(ONE.kv, 3), put(OTHER.kv.key, b"late", 4, lease=LEASE)), [LEASE]),
    ],
)
def test_and_neither_stay_behind_nor_go_before_it(events: Sequence[Event], ended: list[int]) -> None:
    with pytest.raises(InvariantBroken, match="leases"):
        judge_leased_keys(revisions_of(*events), ended)


def swap(
    places: tuple[int, ...],
    expected: tuple[bytes | None, ...],
    values: tuple[bytes, ...],
    times: tuple[float, float | None],
    *answers: KeyAnswer,
) -> Operation:
    return Operation(1, GroupCall(places, expected, values), answers or None, *times)


def read(places: tuple[int, ...], times: tuple[float, float], *answers: KeyAnswer) -> Operation:
    return Operation(2, GroupCall(places), answers, *times)


def done(revision: int) -> KeyAnswer:
    return KeyAnswer(None, True, revision)


def found(value: bytes | None, revision: int) -> KeyAnswer:
    return KeyAnswer(value, False, revision)


A, B, C = b"a", b"b", b"c"
WRITTEN = swap((0, 1), (None, None), (A, B), (0, 1), done(2), done(2))
Histories = dict[str, Callable[[], list[Operation]]]
LEGAL: Histories = {
    "read after": lambda: [WRITTEN, read((1, 2), (2, 3), found(B, 2), found(None, 0))],
    "refused": lambda: [WRITTEN, swap((1, 2), (C, None), (A, A), (2, 3), found(B, 2), found(None, 0))],
    "chained": lambda: [WRITTEN, swap((1, 2), (B, None), (C, C), (2, 3), done(3), done(3))],
    "unknown and done": lambda: [
        swap((0, 1), (None, None), (A, B), (0, None)), read((0, 1), (2, 3), found(A, 2), found(B, 2)),
    ],
    "unknown and not done": lambda: [
        swap((0, 1), (None, None), (A, B), (0, None)), read((0, 1), (2, 3), found(None, 0), found(None, 0)),
    ],
}  # fmt: skip
ILLEGAL: Histories = {
    "half of it": lambda: [WRITTEN, read((0, 1), (2, 3), found(A, 2), found(None, 0))],
    "half of an unknown one": lambda: [
        swap((0, 1), (None, None), (A, B), (0, None)), read((0, 1), (2, 3), found(A, 2), found(None, 0)),
    ],
    "one comparison of two held": lambda: [WRITTEN, swap((0, 2), (A, C), (B, B), (2, 3), done(3), done(3))],
    "refused though it held": lambda: [WRITTEN, swap((0, 2), (A, None), (B, B), (2, 3), found(A, 2), found(None, 0))],
    "another revision": lambda: [WRITTEN, read((0, 1), (2, 3), found(A, 2), found(B, 3))],
    "write skew": lambda: [
        WRITTEN,
        swap((0, 1), (A, B), (C, B), (2, 9), done(3), done(3)),
        swap((0, 1), (A, B), (A, C), (2, 9), done(4), done(4)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", LEGAL)
def test_a_group_of_keys_is_one_object(name: str) -> None:
    assert check(GroupModel(3), LEGAL[name]()).result is Result.LINEARIZABLE


@pytest.mark.parametrize("name", ILLEGAL)
def test_and_what_no_order_of_transactions_explains_is_refused(name: str) -> None:
    assert check(GroupModel(3), ILLEGAL[name]()).result is Result.NOT_LINEARIZABLE
