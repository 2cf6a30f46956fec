"""The index in memory: built in steps beside an event loop, and given back in steps, it is the same index."""

import random

import pytest
from quorate_core.errors import InvariantViolation
from quorate_store.key_index import NOWHERE, SORT_RUN_KEYS, Histories, KeyIndex, is_deletion, position
from quorate_store.model import RANGE_ALL
from quorate_store.pacing import SLICE_ITEMS


def some_histories(keys: int) -> Histories:
    random_keys = random.Random(7)
    names = [b"k%09d" % random_keys.randrange(10**9) for _ in range(keys)]
    histories = Histories()
    for number in range(keys * 2):
        name = names[number] if number < keys else random_keys.choice(names)
        was_alive = histories.get(name) is not None
        is_gone = was_alive and number % 3 == 0
        histories.append(name, position(number + 2, 0, deleted=is_gone))
    return histories


def test_an_index_that_is_built_in_steps_is_the_one_that_is_built_at_once() -> None:
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1

    keys = SORT_RUN_KEYS * 5 + 3
    at_once = KeyIndex(some_histories(keys))
    in_steps = KeyIndex.built_in_steps(some_histories(keys), pause)
    everything = (b"\0", RANGE_ALL)
    assert list(in_steps.keys(*everything)) == list(at_once.keys(*everything)) == sorted(some_histories(keys))
    assert list(in_steps.live_keys(*everything)) == list(at_once.live_keys(*everything))
    assert 0 < in_steps.live_count(*everything) < len(in_steps) == keys
    for key in in_steps.keys(*everything):
        assert in_steps.newest(key) == at_once.newest(key)
    assert pauses >= keys // SORT_RUN_KEYS + keys // SLICE_ITEMS


def test_an_index_is_given_back_a_slice_at_a_time() -> None:
    index = KeyIndex(some_histories(250))
    lengths = []
    while not index.shed(100):
        lengths.append(len(index))
    assert lengths == [150, 50]
    assert (len(index), len(index._live), len(index._histories)) == (0, 0, 0)


def test_a_key_with_one_change_left_is_again_as_one_that_has_changed_once() -> None:
    index = KeyIndex()
    changes = [position(revision, 0, deleted=False) for revision in (2, 3, 4)]
    for at in changes:
        index.record(b"k", at)
    index.forget(b"k", changes[1])
    index.forget(b"k", changes[0])
    assert index._histories.get(b"k") == index.newest(b"k") == changes[2]
    assert index.at_revision(b"k", 3) == index.predecessor(b"k", changes[2]) == NOWHERE
    index.record(b"k", position(5, 0, deleted=True))
    assert is_deletion(index.predecessor(b"k", position(6, 0, deleted=False)))
    assert index.newest(b"k") == NOWHERE
    index.forget(b"k", position(5, 0, deleted=True))
    index.forget(b"k", changes[2])
    assert len(index) == 0
    for at in changes:
        with pytest.raises(InvariantViolation, match="was never there"):
            index.forget(b"k", at)


def test_a_deletion_that_is_all_that_is_left_of_a_key_is_nothing_to_read() -> None:
    """As after a compaction at just that revision."""
    index = KeyIndex()
    put, deleted = position(2, 0, deleted=False), position(3, 0, deleted=True)
    index.record(b"k", put)
    assert [index.at_revision(b"k", revision) for revision in (1, 2, 3)] == [NOWHERE, put, put]
    index.record(b"k", deleted)
    index.forget(b"k", put)
    assert [index.at_revision(b"k", revision) for revision in (2, 3, 4)] == [NOWHERE] * 3
    assert index.newest(b"k") == NOWHERE
    assert list(index.keys(b"\0", RANGE_ALL)) == [b"k"]
