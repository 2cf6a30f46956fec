"""Clients, and what they saw.

Each has one operation under way at a time, at a member drawn anew for each. What an operation's outcome tells is kept
apart with care: *ok*; *failed*, when it was surely not done and never will be; and *unknown*, when it may have been, or
still be, done: such a one stays open to the end of the history.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from quorate_core.errors import Compacted, InvariantViolation, NotFound, QuorateError, Retry
from quorate_store.model import Compare, CompareResult, CompareTarget, Event, PutOp, RangeOp, RangeResult, prefix_end
from quorate_store.port import Store

from quorate_simulation.members import CLOCK_SKEW_MAX, Member, Parts, ProcessGone
from quorate_simulation.randomness import Stream
from quorate_simulation.timeline import Timeline

KEY_PREFIX = b"key/"
LEASE_PREFIX = b"lease/"
CLIENT_TIMEOUT_S = 7.0
"""Above the store's own, so that its answers come, unless the member is paused."""
THINK_S_MIN = 0.005
THINK_S_MAX = 0.4
KEEPALIVES_PER_TTL = 3.0
RENEWAL_SPREAD = (0.4, 2.2)
"""Of that interval: some come so late that the leader has written down what is left."""
LEASE_TTL_S_MAX = 7
STALL_UNSEEN_S = 0.2
"""A jump of its clock that the leader cannot tell from its own pace: one tick, and what it takes for jitter."""

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


@dataclass(slots=True)
class Attempt:
    """One operation. Times are true ones, in seconds; `end_s` is None for an unknown outcome.

    `expected` (of a compare-and-set) and `value` are what was asked for; None stands for an absent key. `found`: what a
    read found, or a compare-and-set that failed; `succeeded`: of a compare-and-set; `revision`: of what was written,
    or the key's last change when it was read, 0 for an absent key; `deleted`: how many keys.
    """

    client: int
    kind: Kind
    key: bytes
    begin_s: float
    value: bytes | None = None
    expected: bytes | None = None
    outcome: Outcome = Outcome.UNKNOWN
    end_s: float | None = None
    found: bytes | None = None
    succeeded: bool = False
    revision: int = 0
    deleted: int = 0


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
    except QuorateError as error:
        return Outcome.UNKNOWN if error.kind.retry is Retry.UNKNOWN else Outcome.FAILED


class Client:
    """Puts, gets, compare-and-sets and deletes on a few keys, with values that nobody else writes."""

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
        chance = self._chance
        kind = chance.choices((Kind.PUT, Kind.GET, Kind.CAS, Kind.DELETE), weights=(4, 5, 4, 1))[0]
        one = Attempt(self.number, kind, chance.one_of(self._keys), self._stage.now_s)
        if kind in (Kind.PUT, Kind.CAS):
            self._values += 1
            one.value = f"{self.number}.{self._values}".encode()
        one.expected = self._seen.get(one.key)
        self.attempts.append(one)
        result = await attempt(self._stage, member, lambda parts: _perform(parts.store, one))
        one.outcome = result if isinstance(result, Outcome) else Outcome.OK
        if one.outcome is not Outcome.UNKNOWN:
            one.end_s = self._stage.now_s
        if one.outcome is Outcome.OK:
            self._seen[one.key] = one.value if one.kind is Kind.PUT or one.succeeded else one.found
        self._timeline.add(f"client {self.number}", "client", f"{describe(one)}, at {member.name}")


async def _perform(store: Store, one: Attempt) -> None:
    if one.kind is Kind.PUT:
        one.revision = (await store.put(one.key, one.value or b"")).revision
    elif one.kind is Kind.DELETE:
        deleted = await store.delete(one.key)
        one.deleted, one.revision = deleted.deleted, deleted.revision
    elif one.kind is Kind.GET:
        _take_found(one, await store.range(one.key))
    else:
        result = await store.txn([_expecting(one)], [PutOp(one.key, one.value or b"")], [RangeOp(one.key)])
        one.succeeded = result.succeeded
        if result.succeeded:
            one.revision = result.revision
        elif isinstance(result.results[0], RangeResult):
            _take_found(one, result.results[0])


def _expecting(one: Attempt) -> Compare:
    if one.expected is None:
        return Compare(one.key, CompareTarget.VERSION, CompareResult.EQUAL, 0)
    return Compare(one.key, CompareTarget.VALUE, CompareResult.EQUAL, one.expected)


def _take_found(one: Attempt, result: RangeResult) -> None:
    one.found = result.kvs[0].value if result.kvs else None
    one.revision = result.kvs[0].mod_revision if result.kvs else 0


def describe(one: Attempt) -> str:
    key = one.key.decode()
    told = {
        Kind.PUT: f"put {key} = {_text(one.value)}",
        Kind.GET: f"get {key}",
        Kind.CAS: f"if {key} = {_text(one.expected)} put {_text(one.value)}",
        Kind.DELETE: f"delete {key}",
    }[one.kind]
    if one.outcome is not Outcome.OK:
        return f"{told}: {one.outcome}"
    result = f"revision {one.revision}"
    if one.kind is Kind.GET:
        result = f"{_text(one.found)}, {result}"
    elif one.kind is Kind.CAS:
        result = f"done, {result}" if one.succeeded else f"it is {_text(one.found)}"
    elif one.kind is Kind.DELETE:
        result = f"{one.deleted} deleted, {result}"
    return f"{told}: {result}; since {one.begin_s:.6f}"


def _text(value: bytes | None) -> str:
    return "nothing" if value is None else value.decode()


@dataclass(slots=True)
class HeldLease:
    """What its holder knows of a lease. `asked_s`: when the last call began that may have given it its whole time;
    `revoked_s`: when its end was asked for."""

    lease: int
    ttl_s: int
    asked_s: float
    revoked_s: float | None = None
    is_told_gone: bool = False
    renewals: list[float] = field(default_factory=list)
    """When each call began that gave it its whole time, the grant first."""

    def safe_until_s(self, renewed_s: float, jumps: int) -> float:
        """Until when it must live after the renewal `renewed_s`, though `jumps` clocks jumped meanwhile."""
        return renewed_s + self.ttl_s / (1 + CLOCK_SKEW_MAX) - STALL_UNSEEN_S * (1 + jumps)


class LeaseHolder:
    """Takes a lease, puts a key under it, keeps it alive for a while, and lets it end."""

    def __init__(self, number: int, stage: Stage, chance: Stream, timeline: Timeline) -> None:
        self._name = f"holder {number}"
        self._stage = stage
        self._chance = chance
        self._timeline = timeline
        self.leases: list[HeldLease] = []

    async def run(self) -> None:
        while not self._stage.is_over:
            await asyncio.sleep(self._chance.between(0.05, 0.5))
            member = self._stage.choose(self._chance)
            if member is not None:
                await self._hold(member)

    async def _hold(self, member: Member) -> None:
        ttl_s, begin_s = self._chance.randrange(1, LEASE_TTL_S_MAX + 1), self._stage.now_s
        granted = await attempt(self._stage, member, lambda parts: parts.store.lease_grant(ttl_s))
        if isinstance(granted, Outcome):
            return
        held = HeldLease(granted.lease, ttl_s, begin_s, renewals=[begin_s])
        self.leases.append(held)
        self._timeline.add(self._name, "client", f"lease {held.lease:x} of {ttl_s} s granted at {member.name}")
        await attempt(self._stage, member, lambda parts: self._attach(parts, held))
        for _ in range(self._chance.randrange(8)):
            await asyncio.sleep(ttl_s / KEEPALIVES_PER_TTL * self._chance.between(*RENEWAL_SPREAD))
            if self._stage.is_over or not await self._renew(held):
                return
        if self._chance.happens(0.2) and (last := self._stage.choose(self._chance)) is not None:
            held.revoked_s = self._stage.now_s
            await attempt(self._stage, last, lambda parts: parts.store.lease_revoke(held.lease))

    async def _attach(self, parts: Parts, held: HeldLease) -> None:
        try:
            await parts.store.put(LEASE_PREFIX + str(held.lease).encode(), b"here", lease=held.lease)
        except NotFound:
            held.is_told_gone = True

    async def _renew(self, held: HeldLease) -> bool:
        member = self._stage.choose(self._chance)
        if member is None:
            return True
        held.asked_s = begin_s = self._stage.now_s
        unknown = await attempt(self._stage, member, lambda parts: parts.store.lease_keepalive([held.lease]))
        if isinstance(unknown, Outcome):
            return True
        if held.lease in unknown:
            held.is_told_gone = True
            self._timeline.add(self._name, "client", f"lease {held.lease:x} is gone, says {member.name}")
            return False
        held.renewals.append(begin_s)
        self._timeline.add(self._name, "client", f"lease {held.lease:x} renewed at {member.name}; since {begin_s:.6f}")
        return True


class Observer:
    """Watches all of the clients' keys, at one member after the other, and must see every event once, in order."""

    def __init__(self, number: int, stage: Stage, chance: Stream, timeline: Timeline) -> None:
        self._name = f"watcher {number}"
        self._stage = stage
        self._chance = chance
        self._timeline = timeline
        self._watches = 0
        self.next_revision = 1
        self.seen: list[tuple[int, tuple[Event, ...]]] = []
        """(revision through which it is complete, events)."""
        self.gaps: list[tuple[int, int]] = []
        """Revisions, both included, that were compacted away before it could see them."""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._chance.between(0.01, 0.2))
            member = self._stage.choose(self._chance)
            if member is None:
                continue
            self._timeline.add(self._name, "client", f"watches at {member.name} from revision {self.next_revision}")
            try:
                async with asyncio.timeout(self._chance.skewed(0.5, 20.0)):
                    await member.ask(self._watch)
            except Compacted as error:
                self._skip(error, member)
            except (TimeoutError, ProcessGone):
                pass
            except InvariantViolation:
                raise
            except QuorateError:
                pass
            finally:
                self._watches += 1

    async def _watch(self, parts: Parts) -> None:
        prefix = KEY_PREFIX
        self._watches += 1
        number = self._watches
        async with parts.store.watch(prefix, prefix_end(prefix), start_revision=self.next_revision) as watch:
            async for batch in watch:
                if number == self._watches:  # else it was given up, and its process has not noticed yet
                    self._take(batch.revision, batch.events)

    def _take(self, revision: int, events: Sequence[Event]) -> None:
        if events:
            self.seen.append((revision, tuple(events)))
            self.next_revision = max(self.next_revision, events[-1].kv.mod_revision + 1)

    def _skip(self, error: Compacted, member: Member) -> None:
        machine = member.machine
        oldest = 0 if machine is None else machine.compact_revision
        if oldest >= self.next_revision:
            self.gaps.append((self.next_revision, oldest))
            self.next_revision = oldest + 1
            self._timeline.add(self._name, "client", f"history before {oldest} is gone: {error.detail}")

    def has_skipped(self, revision: int) -> bool:
        return any(first <= revision <= last for first, last in self.gaps)

    def is_complete(self, present: int, revisions: Mapping[int, Sequence[Event]]) -> bool:
        """Whether everything of its keys up to the revision `present` was seen, or is gone."""
        return not any(
            event.kv.key.startswith(KEY_PREFIX)
            for revision in range(self.next_revision, present + 1)
            for event in revisions.get(revision, ())
        )
