"""What the linearizability checker judges histories by: a register, a counter, a key of the store, a group of keys."""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum

from quorate_simulation.linearizability import Operation


class RegisterModel:
    """Inputs are `("write", value)` and `("read",)`; a read's output is the value. It begins with 0."""

    def partition(self, operation: Operation) -> Hashable:
        return ""

    def initial(self) -> int:
        return 0

    def step(self, state: int, operation: Operation) -> tuple[bool, int]:
        name, *arguments = operation.input
        if name == "write":
            return True, int(arguments[0])
        return operation.ended_s is None or operation.output == state, state


class CounterModel:
    """The input is how much to add; the output is the sum after it. It begins with 0."""

    def partition(self, operation: Operation) -> Hashable:
        return ""

    def initial(self) -> int:
        return 0

    def step(self, state: int, operation: Operation) -> tuple[bool, int]:
        after = state + int(operation.input)
        return operation.ended_s is None or operation.output == after, after


class Verb(StrEnum):
    GET = "get"
    PUT = "put"
    DELETE = "delete"
    COMPARE_AND_SET = "compare-and-set"


@dataclass(frozen=True, slots=True)
class KeyCall:
    """What a client asked for. `expected` is compare-and-set's; None stands for an absent key."""

    verb: Verb
    key: bytes
    value: bytes | None = None
    expected: bytes | None = None

    def __str__(self) -> str:
        arguments = {
            Verb.GET: "", Verb.DELETE: "", Verb.PUT: f"{self.value!r}",
            Verb.COMPARE_AND_SET: f"{self.expected!r}, {self.value!r}",
        }  # fmt: skip
        return f"{self.verb}({arguments[self.verb]})"


@dataclass(frozen=True, slots=True)
class KeyAnswer:
    """What it was told. `found`: by a get, or a compare-and-set that failed. `revision`: of the write, or of the last
    change of the key that was read; 0 for an absent key, and where nothing was written."""

    found: bytes | None = None
    succeeded: bool = True
    revision: int = 0

    def __str__(self) -> str:
        return f"{self.found!r}, {'done' if self.succeeded else 'refused'}, revision {self.revision}"


@dataclass(frozen=True, slots=True)
class KeyState:
    """`revision`: of the last change of the key, 0 when it is absent, None when nobody was told. `floor`: the highest
    revision that somebody was told; every change after that has a higher one."""

    value: bytes | None = None
    revision: int | None = 0
    floor: int = 0


class KeyModel:
    """One key of a store with etcd's revisions: values are as written last, revisions rise with every change."""

    def partition(self, operation: Operation) -> Hashable:
        call: KeyCall = operation.input
        return call.key

    def initial(self) -> KeyState:
        return KeyState()

    def step(self, state: KeyState, operation: Operation) -> tuple[bool, KeyState]:
        call: KeyCall = operation.input
        answer: KeyAnswer | None = operation.output
        match call.verb:
            case Verb.GET:
                return _seen(state, answer)
            case Verb.PUT:
                return _written(state, call.value, answer)
            case Verb.DELETE:
                return _deleted(state, answer)
            case Verb.COMPARE_AND_SET:
                return _compared(state, call, answer)


def _seen(state: KeyState, answer: KeyAnswer | None) -> tuple[bool, KeyState]:
    if answer is None:
        return True, state
    if answer.found != state.value or (state.revision is not None and answer.revision != state.revision):
        return False, state
    if state.revision is None:  # of a write whose own client was told nothing
        if answer.revision <= state.floor:
            return False, state
        return True, KeyState(state.value, answer.revision, answer.revision)
    return True, state


def _written(state: KeyState, value: bytes | None, answer: KeyAnswer | None) -> tuple[bool, KeyState]:
    if answer is None:
        return True, KeyState(value, None, state.floor)
    return answer.revision > state.floor, KeyState(value, answer.revision, answer.revision)


def _deleted(state: KeyState, answer: KeyAnswer | None) -> tuple[bool, KeyState]:
    """`succeeded` says whether there was something to delete."""
    if answer is None:
        return True, state if state.value is None else KeyState(None, 0, state.floor)
    if answer.succeeded != (state.value is not None):
        return False, state
    if not answer.succeeded:
        return True, state
    return answer.revision > state.floor, KeyState(None, 0, answer.revision)


def _compared(state: KeyState, call: KeyCall, answer: KeyAnswer | None) -> tuple[bool, KeyState]:
    if answer is None:
        return True, KeyState(call.value, None, state.floor) if state.value == call.expected else state
    if answer.succeeded != (state.value == call.expected):
        return False, state
    return _written(state, call.value, answer) if answer.succeeded else _seen(state, answer)


GroupState = tuple[KeyState, ...]
GroupAnswer = tuple[KeyAnswer, ...]
"""One for each place."""


@dataclass(frozen=True, slots=True)
class GroupCall:
    """A transaction over some keys of a group, by their places in it: it reads them; or, with `values`, writes them if
    they are as `expected`, and else reads them."""

    places: tuple[int, ...]
    expected: tuple[bytes | None, ...] = ()
    values: tuple[bytes, ...] = ()

    def __str__(self) -> str:
        if not self.values:
            return f"read {self.places}"
        return f"if {self.places} are {self.expected} write {self.values}"


class GroupModel:
    """Keys that only transactions over several of them read and change: together they are one object."""

    def __init__(self, size: int) -> None:
        self._size = size

    def partition(self, operation: Operation) -> Hashable:
        return "the group"

    def initial(self) -> GroupState:
        return (KeyState(),) * self._size

    def step(self, state: GroupState, operation: Operation) -> tuple[bool, GroupState]:
        call: GroupCall = operation.input
        answers: GroupAnswer | None = operation.output
        before = [state[place] for place in call.places]
        holds = bool(call.values) and [one.value for one in before] == list(call.expected)
        if answers is None:
            after = (
                [_written(one, value, None) for one, value in zip(before, call.values, strict=True)] if holds else []
            )
        elif call.values and answers[0].succeeded != holds:
            return False, state
        elif holds:
            after = [_written(*one) for one in zip(before, call.values, answers, strict=True)]
        else:
            after = [_seen(*one) for one in zip(before, answers, strict=True)]
        changed = list(state)
        for place, (is_allowed, one) in zip(call.places, after, strict=False):
            if not is_allowed:
                return False, state
            changed[place] = one
        return True, tuple(changed)
