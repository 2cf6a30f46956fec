"""The judge of histories: what it must allow, what it must refuse, and that it agrees with trying all orders."""

from collections.abc import Iterable, Sequence
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_simulation.linearizability import Model, Operation, Result, check
from quorate_simulation.models import CounterModel, KeyAnswer, KeyCall, KeyModel, RegisterModel, Verb

KEY = b"k"


def write(client: int, value: int, began_s: float, ended_s: float | None) -> Operation:
    return Operation(client, ("write", value), None, began_s, ended_s)


def read(client: int, value: int | None, began_s: float, ended_s: float | None) -> Operation:
    return Operation(client, ("read",), value, began_s, ended_s)


def put(client: int, value: bytes, began_s: float, ended_s: float | None, revision: int = 0) -> Operation:
    answer = None if ended_s is None else KeyAnswer(revision=revision)
    return Operation(client, KeyCall(Verb.PUT, KEY, value), answer, began_s, ended_s)


def get(client: int, found: bytes | None, began_s: float, ended_s: float, revision: int = 0) -> Operation:
    return Operation(client, KeyCall(Verb.GET, KEY), KeyAnswer(found, revision=revision), began_s, ended_s)


def swap(
    client: int, expected: bytes | None, value: bytes, began_s: float, ended_s: float | None, answer: KeyAnswer | None
) -> Operation:
    return Operation(client, KeyCall(Verb.COMPARE_AND_SET, KEY, value, expected), answer, began_s, ended_s)


def result(model: Model, *history: Operation) -> Result:
    return check(model, history).result


def test_two_overlapping_writes_are_ordered_by_the_read_after_them() -> None:
    """x = 0; A: write(1); B: write(3), then read -> 1. Only write(3), write(1), read(1) is legal."""
    history = [write(1, 1, 0, 10), write(2, 3, 1, 2), read(2, 1, 3, 4)]
    verdict = check(RegisterModel(), history)
    assert verdict.result is Result.LINEARIZABLE
    assert [operation.input for operation in verdict.order] == [("write", 3), ("write", 1), ("read",)]


def test_the_other_order_of_the_two_writes_is_illegal() -> None:
    """The same, but A's write is over before B's begins: write(1), write(3), read(1) is all that time leaves."""
    verdict = check(RegisterModel(), [write(1, 1, 0, 0.5), write(2, 3, 1, 2), read(2, 1, 3, 4)])
    assert verdict.result is Result.NOT_LINEARIZABLE
    assert verdict.blocked == read(2, 1, 3, 4)
    assert [operation.input for operation in verdict.order] == [("write", 1), ("write", 3)]
    assert "fits nowhere" in verdict.explain()


@pytest.mark.parametrize(
    ("name", "history", "expected"),
    [
        ("nothing", [], Result.LINEARIZABLE),
        ("a read of what was there", [read(1, 0, 0, 1)], Result.LINEARIZABLE),
        ("a read of what nobody wrote", [read(1, 7, 0, 1)], Result.NOT_LINEARIZABLE),
        ("a stale read", [write(1, 1, 0, 1), read(2, 0, 2, 3)], Result.NOT_LINEARIZABLE),
        ("a read beside a write, old", [write(1, 1, 0, 3), read(2, 0, 1, 2)], Result.LINEARIZABLE),
        ("a read beside a write, new", [write(1, 1, 0, 3), read(2, 1, 1, 2)], Result.LINEARIZABLE),
        (
            "two reads beside a write that go back",
            [write(1, 1, 0, 9), read(2, 1, 1, 2), read(2, 0, 3, 4)],
            Result.NOT_LINEARIZABLE,
        ),
        ("operations that touch are concurrent", [write(1, 1, 0, 1), read(2, 0, 1, 2)], Result.LINEARIZABLE),
        ("an unknown write that took effect late", [write(1, 1, 0, None), read(2, 0, 1, 2), read(2, 1, 3, 4)],
         Result.LINEARIZABLE),
        ("an unknown write that never took effect", [write(1, 1, 0, None), read(2, 0, 1, 2)], Result.LINEARIZABLE),
        (
            "an unknown write that took effect, and was taken back",
            [write(1, 1, 0, None), read(2, 1, 1, 2), read(2, 0, 3, 4)],
            Result.NOT_LINEARIZABLE,
        ),
        ("an unknown write that took effect before its call", [read(2, 1, 0, 1), write(1, 1, 2, None)],
         Result.NOT_LINEARIZABLE),
    ],
)  # fmt: skip
def test_histories_of_a_register(name: str, history: list[Operation], expected: Result) -> None:
    assert result(RegisterModel(), *history) is expected, name


def test_a_lost_update_is_refused() -> None:
    both_saw_one = [Operation(1, 1, 1, 0, 2), Operation(2, 1, 1, 1, 3)]
    assert result(CounterModel(), *both_saw_one) is Result.NOT_LINEARIZABLE
    one_after_the_other = [Operation(1, 1, 2, 0, 2), Operation(2, 1, 1, 1, 3)]
    assert result(CounterModel(), *one_after_the_other) is Result.LINEARIZABLE


def test_a_compare_and_set_that_succeeds_twice_is_refused() -> None:
    history = [
        put(1, b"a", 0, 1, revision=2),
        swap(2, b"a", b"b", 2, 5, KeyAnswer(revision=3)),
        swap(3, b"a", b"c", 2, 5, KeyAnswer(revision=4)),
    ]
    assert result(KeyModel(), *history) is Result.NOT_LINEARIZABLE


def test_a_write_that_was_applied_twice_is_refused() -> None:
    """Its client was told one revision, and the value came back over that of another write."""
    history = [
        put(1, b"a", 0, 1, revision=2),
        put(2, b"b", 2, 3, revision=3),
        get(3, b"a", 4, 5, revision=4),
    ]
    assert result(KeyModel(), *history) is Result.NOT_LINEARIZABLE


def test_an_unknown_write_may_be_applied_once_and_not_twice() -> None:
    unknown = put(1, b"a", 0, None)
    once = [unknown, put(2, b"b", 1, 2, revision=3), get(3, b"a", 4, 5, revision=4)]
    assert result(KeyModel(), *once) is Result.LINEARIZABLE
    twice = [*once[:1], get(3, b"a", 0.1, 0.2, revision=2), *once[1:]]
    assert result(KeyModel(), *twice) is Result.NOT_LINEARIZABLE


def test_revisions_that_go_back_are_refused() -> None:
    history = [put(1, b"a", 0, 1, revision=5), put(1, b"b", 2, 3, revision=4)]
    assert result(KeyModel(), *history) is Result.NOT_LINEARIZABLE


def test_a_refused_compare_and_set_says_what_was_there() -> None:
    before = put(1, b"a", 0, 1, revision=2)
    right = KeyAnswer(b"a", succeeded=False, revision=2)
    assert result(KeyModel(), before, swap(2, b"x", b"y", 2, 3, right)) is Result.LINEARIZABLE
    wrong = KeyAnswer(b"x", succeeded=False, revision=2)
    assert result(KeyModel(), before, swap(2, b"x", b"y", 2, 3, wrong)) is Result.NOT_LINEARIZABLE


def test_a_deletion_is_told_whether_there_was_something() -> None:
    deletion = Operation(2, KeyCall(Verb.DELETE, KEY), KeyAnswer(succeeded=False), 2, 3)
    assert result(KeyModel(), deletion) is Result.LINEARIZABLE
    assert result(KeyModel(), put(1, b"a", 0, 1, revision=2), deletion) is Result.NOT_LINEARIZABLE


def test_keys_are_judged_alone_and_the_bad_one_is_named() -> None:
    other = Operation(1, KeyCall(Verb.GET, b"other"), KeyAnswer(b"never written", revision=9), 0, 1)
    verdict = check(KeyModel(), [put(1, b"a", 0, 1, revision=2), other, get(2, b"a", 2, 3, revision=2)])
    assert verdict.result is Result.NOT_LINEARIZABLE
    assert verdict.partition == b"other"


def test_what_cannot_be_decided_in_time_is_no_pass() -> None:
    history = [write(client, client, 0, 100) for client in range(12)] + [read(99, -1, 0, 100)]
    assert check(RegisterModel(), history, steps_max=1_000).result is Result.UNDECIDED


def long_history(operations: int, unknown_every: int) -> list[Operation]:
    """Of eight clients on one key; the value and revision after it are those of the last put."""
    random, value, revision, history = Random(5), None, 1, []
    for number in range(operations):
        began_s = number + random.random() * 0.1
        is_unknown = number % unknown_every == 0
        ended_s = None if is_unknown else number + 1 + random.random() * 6
        if random.random() < 0.5:
            revision, value = revision + 1, b"%d" % number
            history.append(put(number % 8, value, began_s, ended_s, revision))
        elif ended_s is not None:
            history.append(get(number % 8, value, began_s, ended_s, revision if value else 0))
    return history


def test_a_long_history_of_many_clients_is_decided_soon() -> None:
    with_unknown_outcomes = long_history(1_000, unknown_every=40)
    assert check(KeyModel(), with_unknown_outcomes, steps_max=200_000).result is Result.LINEARIZABLE
    settled = long_history(1_000, unknown_every=10_000)
    assert check(KeyModel(), settled, steps_max=200_000).result is Result.LINEARIZABLE
    stale = [*settled, get(99, None, 2_000, 2_001)]
    assert check(KeyModel(), stale, steps_max=200_000).result is Result.NOT_LINEARIZABLE


def is_linearizable_by_brute_force(model: Model, history: Sequence[Operation]) -> bool:
    """Try every order of every choice of the unknown operations."""

    def respects_time(order: Iterable[Operation]) -> bool:
        latest_call_s = float("-inf")
        for operation in order:
            if operation.ended_s is not None and operation.ended_s < latest_call_s:
                return False
            latest_call_s = max(latest_call_s, operation.began_s)
        return True

    def is_allowed(order: Iterable[Operation]) -> bool:
        state = model.initial()
        for operation in order:
            allowed, state = model.step(state, operation)
            if not allowed:
                return False
        return True

    known = [operation for operation in history if operation.ended_s is not None]
    unknown = [operation for operation in history if operation.ended_s is None]
    for chosen in range(1 << len(unknown)):
        taken = known + [operation for at, operation in enumerate(unknown) if chosen >> at & 1]
        if any(respects_time(order) and is_allowed(order) for order in permutations(taken)):
            return True
    return False


@st.composite
def register_histories(draw: st.DrawFn) -> list[Operation]:
    history = []
    for client in range(draw(st.integers(1, 6))):
        began_s = draw(st.integers(0, 8))
        ended_s = draw(st.one_of(st.none(), st.integers(0, 6))) if draw(st.booleans()) else draw(st.integers(0, 6))
        end_s = None if ended_s is None else began_s + ended_s
        if draw(st.booleans()):
            history.append(write(client, draw(st.integers(1, 2)), began_s, end_s))
        else:
            history.append(read(client, None if end_s is None else draw(st.integers(0, 2)), began_s, end_s))
    return history


@given(register_histories())
@settings(max_examples=400, deadline=None)
def test_it_agrees_with_trying_every_order(history: list[Operation]) -> None:
    expected = is_linearizable_by_brute_force(RegisterModel(), history)
    assert (result(RegisterModel(), *history) is Result.LINEARIZABLE) == expected
