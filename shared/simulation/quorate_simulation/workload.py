"""Clients, and what they saw.

Each has one operation under way at a time, at a member drawn anew for each. What an operation's outcome tells is kept
apart with care: *ok*; *failed*, when it was surely not done and never will be; and *unknown*, when it may have been, or
still be, done: such a one stays open to the end of the history. About half of all writes have a request id: who is not
answered, or refused, sends the same again to another member, as often as it likes, and still it must be done once.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from quorate_core.errors import Conflict, InvariantViolation, QuorateError, Retry
from quorate_store.model import (
    Compare,
    CompareResult,
    CompareTarget,
    OperationResult,
    PutOp,
    RangeOp,
    RangeResult,
)
from quorate_store.port import Store

from quorate_simulation.members import Member, Parts, ProcessGone
from quorate_simulation.randomness import Stream
from quorate_simulation.timeline import Timeline

KEY_PREFIX = b"key/"
GROUP_PREFIX = KEY_PREFIX + b"group/"
"""Keys that are read and written by transactions over several of them only."""
GROUP_KEYS = tuple(GROUP_PREFIX + b"%d" % place for place in range(3))
LEASE_PREFIX = b"lease/"
CLIENT_TIMEOUT_S = 7.0
"""Above the store's own, so that its answers come, unless the member is paused."""
THINK_S_MIN = 0.005
THINK_S_MAX = 0.4
WITH_ID = 0.5
"""Of the writes."""
TRIES_MAX = 4
"""Of one write with an id."""
TRY_PAUSE_S_MAX = 0.5

T = TypeVar("T")


class Outcome(StrEnum):
    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Kind(StrEnum):
    PUT = "put"
    GET = "get"
    CAS = "compare-and-set"
    DELETE = "delete"
    READ_GROUP = "read some"
    SWAP_GROUP = "compare-and-set some"


_WEIGHTS = {Kind.PUT: 4, Kind.GET: 4, Kind.CAS: 3, Kind.DELETE: 1, Kind.READ_GROUP: 1, Kind.SWAP_GROUP: 2}
_WRITES = {Kind.PUT, Kind.CAS, Kind.DELETE, Kind.SWAP_GROUP}


@dataclass(slots=True)
class Attempt:
    """One operation on one key, or on some of the group. Times are true ones, in seconds; `end_s` is None for an
    unknown outcome.

    `values` and `expected` (of a compare-and-set), one for each key, are what was asked for; None stands for an absent
    key. `found`: what a read found, or a compare-and-set that failed, and `revisions`: of the last changes of what was
    found, 0 for an absent key; `succeeded`: of a compare-and-set; `revision`: of what was written; `deleted`: how many
    keys. `request_id` is empty for a write without one.
    """

    client: int
    kind: Kind
    keys: tuple[bytes, ...]
    begin_s: float
    values: tuple[bytes, ...] = ()
    expected: tuple[bytes | None, ...] = ()
    request_id: str = ""
    tries: int = 0
    outcome: Outcome = Outcome.UNKNOWN
    end_s: float | None = None
    found: tuple[bytes | None, ...] = ()
    revisions: tuple[int, ...] = ()
    succeeded: bool = False
    revision: int = 0
    deleted: int = 0

    @property
    def is_of_group(self) -> bool:
        return self.kind in (Kind.READ_GROUP, Kind.SWAP_GROUP)


class Stage(Protocol):
    """What clients need of the world."""

    @property
    def now_s(self) -> float: ...
    @property
    def is_over(self) -> bool:
        """No new operations are wanted."""
        ...

    def choose(self, chance: Stream) -> Member | None:
        """A member that seems to be there."""
        ...


async def attempt(stage: Stage, member: Member, work: Callable[[Parts], Coroutine[Any, Any, T]]) -> T | Outcome:
    """What the work gave, or FAILED or UNKNOWN. Raises InvariantViolation, which no client may ever get."""
    try:
        async with asyncio.timeout(CLIENT_TIMEOUT_S):
            return await member.ask(work)
    except (TimeoutError, ProcessGone):
        return Outcome.UNKNOWN
    except InvariantViolation:
        raise
    except Conflict as error:
        # The write was done, and nobody knows any more what it answered.
        return Outcome.UNKNOWN if "applied_revision" in error.extensions else Outcome.FAILED
    except QuorateError as error:
        return Outcome.UNKNOWN if error.kind.retry is Retry.UNKNOWN else Outcome.FAILED


class Client:
    """Puts, gets, compare-and-sets and deletes on a few keys, and transactions over some of a group, with values that
    nobody else writes."""

    def __init__(self, number: int, stage: Stage, chance: Stream, keys: int, timeline: Timeline) -> None:
        self.number = number
        self._stage = stage
        self._chance = chance
        self._keys = [KEY_PREFIX + str(key).encode() for key in range(keys)]
        self._timeline = timeline
        self._values = 0
        self._seen: dict[bytes, bytes | None] = {}
        self.attempts: list[Attempt] = []

    async def run(self) -> None:
        while not self._stage.is_over:
            await asyncio.sleep(self._chance.skewed(THINK_S_MIN, THINK_S_MAX))
            member = self._stage.choose(self._chance)
            if member is not None:
                await self._operate(member)

    async def _operate(self, member: Member) -> None:
        one = self._draw()
        self.attempts.append(one)
        one.outcome = await self._try(one, member)
        if one.outcome is not Outcome.UNKNOWN:
            one.end_s = self._stage.now_s
        if one.outcome is Outcome.OK:
            self._learn(one)
        self._timeline.add(f"client {self.number}", "client", f"{describe(one)}, at {member.name}")

    def _draw(self) -> Attempt:
        chance = self._chance
        kind = chance.choices(tuple(_WEIGHTS), weights=tuple(_WEIGHTS.values()))[0]
        is_of_group = kind in (Kind.READ_GROUP, Kind.SWAP_GROUP)
        keys = tuple(chance.some_of(GROUP_KEYS, 2)) if is_of_group else (chance.one_of(self._keys),)
        one = Attempt(self.number, kind, keys, self._stage.now_s)
        if kind in (Kind.PUT, Kind.CAS, Kind.SWAP_GROUP):
            self._values += 1
            one.values = tuple(f"{self.number}.{self._values}.{place}".encode() for place in range(len(keys)))
        if kind in (Kind.CAS, Kind.SWAP_GROUP):
            one.expected = tuple(self._seen.get(key) for key in keys)
        if kind in _WRITES and chance.happens(WITH_ID):
            one.request_id = f"{self.number}/{len(self.attempts)}"
        return one

    async def _try(self, one: Attempt, member: Member) -> Outcome:
        """Without an id once; with one at some members, one after the other, until one answers."""
        is_doubtful = False
        for _ in range(TRIES_MAX if one.request_id else 1):
            if one.tries:
                await asyncio.sleep(self._chance.between(0, TRY_PAUSE_S_MAX))
                member = self._stage.choose(self._chance) or member
            one.tries += 1
            result = await attempt(self._stage, member, lambda parts: _perform(parts.store, one))
            if not isinstance(result, Outcome):
                return Outcome.OK
            is_doubtful |= result is Outcome.UNKNOWN
        return Outcome.UNKNOWN if is_doubtful else Outcome.FAILED

    def _learn(self, one: Attempt) -> None:
        known = one.values if one.kind is Kind.PUT or one.succeeded else one.found
        if one.kind is Kind.DELETE:
            known = (None,)
        self._seen.update(zip(one.keys, known, strict=True))


async def _perform(store: Store, one: Attempt) -> None:
    key, request_id = one.keys[0], one.request_id
    if one.kind is Kind.PUT:
        one.revision = (await store.put(key, one.values[0], request_id=request_id)).revision
    elif one.kind is Kind.DELETE:
        deleted = await store.delete(key, request_id=request_id)
        one.deleted, one.revision = deleted.deleted, deleted.revision
    elif one.kind is Kind.GET:
        _take_found(one, [await store.range(key)])
    elif one.kind is Kind.READ_GROUP:
        _take_found(one, (await store.txn([], [RangeOp(key) for key in one.keys])).results)
    else:
        compare = [_expecting(key, value) for key, value in zip(one.keys, one.expected, strict=True)]
        puts = [PutOp(key, value) for key, value in zip(one.keys, one.values, strict=True)]
        result = await store.txn(compare, puts, [RangeOp(key) for key in one.keys], request_id=request_id)
        one.succeeded = result.succeeded
        if result.succeeded:
            one.revision = result.revision
        else:
            _take_found(one, result.results)


def _expecting(key: bytes, value: bytes | None) -> Compare:
    if value is None:
        return Compare(key, CompareTarget.VERSION, CompareResult.EQUAL, 0)
    return Compare(key, CompareTarget.VALUE, CompareResult.EQUAL, value)


def _take_found(one: Attempt, results: Sequence[OperationResult]) -> None:
    found = [result.kvs[0] if result.kvs else None for result in results if isinstance(result, RangeResult)]
    one.found = tuple(None if kv is None else kv.value for kv in found)
    one.revisions = tuple(0 if kv is None else kv.mod_revision for kv in found)


def describe(one: Attempt) -> str:
    keys, values = _texts(one.keys), _texts(one.values)
    told = {
        Kind.PUT: f"put {keys} = {values}",
        Kind.GET: f"get {keys}",
        Kind.CAS: f"if {keys} = {_texts(one.expected)} put {values}",
        Kind.DELETE: f"delete {keys}",
        Kind.READ_GROUP: f"get {keys}",
        Kind.SWAP_GROUP: f"if {keys} = {_texts(one.expected)} put {values}",
    }[one.kind]
    if one.request_id:
        told += f", request {one.request_id}{f', {one.tries} times' if one.tries > 1 else ''}"
    if one.outcome is not Outcome.OK:
        return f"{told}: {one.outcome}"
    result = f"revision {one.revision}"
    if one.kind in (Kind.GET, Kind.READ_GROUP):
        result = f"{_texts(one.found)}, of revision {', '.join(map(str, one.revisions))}"
    elif one.kind in (Kind.CAS, Kind.SWAP_GROUP):
        result = f"done, {result}" if one.succeeded else f"it is {_texts(one.found)}"
    elif one.kind is Kind.DELETE:
        result = f"{one.deleted} deleted, {result}"
    return f"{told}: {result}; since {one.begin_s:.6f}"


def _texts(values: Sequence[bytes | None]) -> str:
    return " and ".join("nothing" if value is None else value.decode() for value in values)
