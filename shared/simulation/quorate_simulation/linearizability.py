"""Is there an order of these operations, each at one moment between its call and its return, that a model allows?

Theory of operation. The search is Wing and Gong's (1993) with Lowe's improvements (2017), as porcupine does it. Calls
and returns stand in one linked list, in the order of time. The search takes the first operation whose call has been
reached and whose outcome the model allows now, lifts its call and return out of the list, and begins again at the
front. When it comes to a return whose call it could not take, the last operation that was taken was taken too early: it
is put back, and the search goes on behind it. What was taken (a set, as bits) together with the state is remembered: to
come there again on another way leads nowhere new.

An operation whose outcome is unknown has no return, so it may be taken at any time after its call; taken last, nobody
sees it, which is the same as never. Operations that surely had no effect do not belong in a history.

Operations on different keys are independent, and linearizability is local (Herlihy and Wing, 1990), so each partition
of a history is judged alone. The question is NP-complete: the search is bounded, and what it cannot decide within its
bound is UNDECIDED, which is no pass.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

STEPS_MAX_DEFAULT = 2_000_000
"""Looks at one entry of the list; a few seconds."""
OPERATIONS_SHOWN_MAX = 12
"""Of the end of the longest order that was found, for people."""


@dataclass(frozen=True, slots=True)
class Operation:
    """`output` is None and `ended_s` is None when the outcome is unknown. Times are those of one true clock."""

    client: int
    input: Any
    output: Any
    began_s: float
    ended_s: float | None

    def __str__(self) -> str:
        outcome = f"-> {self.output}, {self.ended_s:.6f}" if self.ended_s is not None else "-> unknown"
        return f"client {self.client} at {self.began_s:.6f}: {self.input} {outcome}"


class Model(Protocol):
    """What one object does when operations come one after the other. States are hashable values."""

    def partition(self, operation: Operation) -> Hashable:
        """Which object it is about."""
        ...

    def initial(self) -> Hashable: ...
    def step(self, state: Any, operation: Operation) -> tuple[bool, Hashable]:
        """Whether `operation` may have its output in `state`, and the state after it. An unknown output is allowed in
        every state."""
        ...


class Result(StrEnum):
    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`order`: the longest order that the model allows, and that respects time; of a partition that is linearizable all
    its operations. `blocked`: the operation that returned next and fits nowhere."""

    result: Result
    partition: Hashable = None
    order: tuple[Operation, ...] = ()
    blocked: Operation | None = None
    steps: int = 0

    def explain(self) -> str:
        """In sentences."""
        if self.result is Result.LINEARIZABLE:
            return "linearizable"
        if self.result is Result.UNDECIDED:
            return f"{self.partition!r}: undecided after {self.steps} steps"
        shown = self.order[-OPERATIONS_SHOWN_MAX:]
        left_out = len(self.order) - len(shown)
        lines = [f"{self.partition!r} is not linearizable. The longest order that is possible:"]
        lines += [f"  ({left_out} before)"] * bool(left_out)
        lines += [f"  {operation}" for operation in shown]
        return "\n".join([*lines, "then this one fits nowhere:", f"  {self.blocked}"])


def check(model: Model, history: Iterable[Operation], steps_max: int = STEPS_MAX_DEFAULT) -> Verdict:
    """Judge each partition; returns the first that is not linearizable, else the last that is undecided. `steps_max`
    is for one partition."""
    partitions: dict[Hashable, list[Operation]] = {}
    for operation in history:
        partitions.setdefault(model.partition(operation), []).append(operation)
    verdict = Verdict(Result.LINEARIZABLE)
    for partition, operations in partitions.items():
        found = _Search(model, partition, operations, steps_max).run()
        if found.result is Result.NOT_LINEARIZABLE:
            return found
        if found.result is Result.UNDECIDED or (verdict.result is Result.LINEARIZABLE and len(partitions) == 1):
            verdict = found
    return verdict


class _Entry:
    """A call or a return. A call knows its return; lifted, both keep their neighbours, to be put back."""

    __slots__ = ("after", "before", "bit", "operation", "returned")

    def __init__(self, operation: Operation | None, bit: int, returned: "_Entry | None") -> None:
        self.operation = operation
        self.bit = bit
        self.returned = returned
        self.before: _Entry | None = None
        self.after: _Entry | None = None


class _Search:
    def __init__(self, model: Model, partition: Hashable, operations: Sequence[Operation], steps_max: int) -> None:
        self._model = model
        self._partition = partition
        self._steps_max = steps_max
        self._head = _linked(operations)
        self._known_left = sum(operation.ended_s is not None for operation in operations)
        self._taken: list[tuple[_Entry, Any]] = []
        self._best: tuple[Operation, ...] = ()
        self._blocked: Operation | None = None

    def run(self) -> Verdict:
        state, bits, steps = self._model.initial(), 0, 0
        seen: set[tuple[int, Any]] = set()
        entry = self._head.after
        while self._known_left:
            if steps == self._steps_max:
                return Verdict(Result.UNDECIDED, self._partition, self._best, None, steps)
            steps += 1
            if entry is not None and entry.returned is not None:
                is_allowed, next_state = self._model.step(state, _operation(entry))
                reached = (bits | entry.bit, next_state)
                if is_allowed and reached not in seen:
                    seen.add(reached)
                    self._take(entry, state)
                    bits, state = reached
                    entry = self._head.after
                else:
                    entry = entry.after
                continue
            # A return whose call was not taken (or the end of the list): the last one was taken too early.
            self._remember(entry)
            if not self._taken:
                return Verdict(Result.NOT_LINEARIZABLE, self._partition, self._best, self._blocked, steps)
            entry, state = self._put_back()
            bits &= ~entry.bit
            entry = entry.after
        order = tuple(_operation(taken) for taken, _ in self._taken)
        return Verdict(Result.LINEARIZABLE, self._partition, order, None, steps)

    def _take(self, entry: _Entry, state: Any) -> None:
        self._taken.append((entry, state))
        self._known_left -= _operation(entry).ended_s is not None
        _lift(entry)
        if entry.returned is not None:
            _lift(entry.returned)

    def _put_back(self) -> tuple[_Entry, Any]:
        entry, state = self._taken.pop()
        self._known_left += _operation(entry).ended_s is not None
        if entry.returned is not None:
            _unlift(entry.returned)
        _unlift(entry)
        return entry, state

    def _remember(self, blocked: _Entry | None) -> None:
        if self._blocked is None or len(self._taken) > len(self._best):
            self._best = tuple(_operation(taken) for taken, _ in self._taken)
            self._blocked = None if blocked is None else blocked.operation


def _operation(entry: _Entry) -> Operation:
    if entry.operation is None:
        raise ValueError("the head of the list is no operation")
    return entry.operation


def _linked(operations: Sequence[Operation]) -> _Entry:
    """The head of the list. At one moment calls come before returns, so that operations which touch are concurrent."""
    timed: list[tuple[float, int, int, _Entry]] = []
    for number, operation in enumerate(operations):
        ended_s = float("inf") if operation.ended_s is None else operation.ended_s
        if ended_s < operation.began_s:
            raise ValueError(f"an operation ended before it began: {operation}")
        returned = _Entry(operation, 0, None)
        timed.append((operation.began_s, 0, number, _Entry(operation, 1 << number, returned)))
        timed.append((ended_s, 1, number, returned))
    head = last = _Entry(None, 0, None)
    for _, _, _, entry in sorted(timed, key=lambda item: item[:3]):
        last.after, entry.before = entry, last
        last = entry
    return head


def _lift(entry: _Entry) -> None:
    if entry.before is not None:
        entry.before.after = entry.after
    if entry.after is not None:
        entry.after.before = entry.before


def _unlift(entry: _Entry) -> None:
    if entry.before is not None:
        entry.before.after = entry
    if entry.after is not None:
        entry.after.before = entry
