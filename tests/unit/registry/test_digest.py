"""The digest of what a node has applied: equal where content is, whatever the way to it, at each revision it covers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_core.errors import InvariantViolation
from quorate_registry.digest import Contributions, RegistryDigest, contribution_of
from quorate_store.model import Event, EventKind, KeyValue

KEYS = [b"quorate/registry/default/order/order-%d" % number for number in range(5)]
Content = dict[bytes, KeyValue]


def kv(key: bytes, revision: int, value: bytes = b"value") -> KeyValue:
    return KeyValue(key, value, revision, revision, 1)


def put(key: bytes, revision: int, value: bytes = b"value") -> Event:
    return Event(EventKind.PUT, kv(key, revision, value))


def delete(key: bytes, revision: int) -> Event:
    return Event(EventKind.DELETE, KeyValue(key, b"", 0, revision, 0))


def loaded(revision: int, *found: KeyValue, revisions_kept: int = 100) -> RegistryDigest:
    keys = Contributions()
    for each in found:
        keys.put(each)
    digest = RegistryDigest(revisions_kept)
    digest.load(revision, keys)
    return digest


changes = st.lists(
    st.lists(st.tuples(st.sampled_from(KEYS), st.none() | st.binary(max_size=3)), min_size=0, max_size=3), max_size=30
)
"""By revision: keys with what is put, or None for a deletion."""


@given(changes, st.randoms(use_true_random=False))
def test_at_every_revision_it_is_that_of_the_content_loaded_in_any_order(
    revisions: list[list[tuple[bytes, bytes | None]]], chance: object
) -> None:
    content: Content = {}
    states = {1: dict(content)}
    digest = loaded(1)
    for revision, changed in enumerate(revisions, 2):
        events = [delete(key, revision) if value is None else put(key, revision, value) for key, value in changed]
        for event in events:
            content.pop(event.kv.key, None)
            if event.kind is EventKind.PUT:
                content[event.kv.key] = event.kv
        digest.take(revision, events)
        states[revision] = dict(content)
    for revision, state in states.items():
        shuffled = list(state.values())
        chance.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' own kind of Random
        assert digest.at(revision) == loaded(revision, *shuffled).at(revision)


@pytest.mark.parametrize(
    "other",
    [kv(KEYS[1], 7), kv(KEYS[0], 8), kv(KEYS[0], 7, b"other"), kv(KEYS[0] + b"7", 7), kv(KEYS[0], 7, b"7:value")],
)
def test_another_key_revision_or_value_makes_another_digest(other: KeyValue) -> None:
    one = kv(KEYS[0], 7)
    assert contribution_of(one) != contribution_of(other)
    assert loaded(9, one).at(9) != loaded(9, other).at(9) != loaded(9).at(9)


def test_where_a_key_ends_and_its_revision_begins_is_part_of_it() -> None:
    assert contribution_of(kv(b"a1", 2)) != contribution_of(kv(b"a", 12))


def test_it_is_known_from_its_floor_to_its_revision_and_nowhere_else() -> None:
    digest = loaded(5, kv(KEYS[0], 3))
    digest.take(9)
    assert [digest.at(revision) is not None for revision in (4, 5, 7, 9, 10)] == [False, True, True, True, False]
    assert digest.at(5) == digest.at(9)
    assert RegistryDigest().at(0) is None


def test_only_so_many_revisions_are_kept_and_the_floor_says_which() -> None:
    digest = loaded(1, revisions_kept=10)
    for revision in range(2, 100):
        digest.take(revision, [put(KEYS[0], revision)])
        assert revision - digest.floor < 20
        assert digest.at(digest.floor) == loaded(1, kv(KEYS[0], digest.floor)).at(1) or digest.floor == 1
        assert digest.at(digest.floor - 1) is None


def test_nothing_is_taken_before_it_was_loaded() -> None:
    with pytest.raises(InvariantViolation):
        RegistryDigest().take(1)
