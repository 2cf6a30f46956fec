"""The store's semantics as a plain dictionary a revision, for comparison with the real state machine, and what can
be observed of a machine from outside."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from quorate_core.errors import Compacted, FutureRevision, NotFound, QuorateError
from quorate_raft.core.messages import Entry
from quorate_store.commands import Command, Compact, LeaseExpire, LeaseGrant, LeaseRevoke, encode_command
from quorate_store.model import (
    RANGE_ALL,
    Arrangement,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    DeleteResult,
    Event,
    EventKind,
    KeyValue,
    LeaseStatus,
    Operation,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    SortOrder,
    TxnOp,
    TxnResult,
)
from quorate_store.refusals import KeyNotFound, LeaseExists
from quorate_store.state import StateMachine

Snapshot = dict[bytes, KeyValue]
TERM = 1


def entries_of(commands: Iterable[Command], first_index: int = 1, term: int = TERM) -> list[Entry]:
    return [Entry(first_index + offset, term, data=encode_command(command)) for offset, command in enumerate(commands)]


def apply_one(machine: StateMachine, command: Command, term: int = TERM) -> Any:
    [result] = machine.apply(entries_of([command], machine.applied_index + 1, term))
    return result


def in_range(keys: Iterable[bytes], first: bytes, range_end: bytes) -> list[bytes]:
    if not range_end:
        return [key for key in keys if key == first]
    return sorted(key for key in keys if key >= first and (range_end == RANGE_ALL or key < range_end))


@dataclass
class DictStore:
    """Every revision's whole content is kept, so nothing here can be clever."""

    snapshots: dict[int, Snapshot] = field(default_factory=lambda: {1: {}})
    events: dict[int, list[Event]] = field(default_factory=dict)
    leases: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Time to live and generation."""
    revision: int = 1
    compact_revision: int = 0
    index: int = 0

    def apply(self, command: Command, term: int = TERM) -> Any:
        self.index += 1
        try:
            return self._apply(command, term)
        except QuorateError as error:
            return error

    def _apply(self, command: Command, term: int) -> Any:
        match command:
            case PutOp() | DeleteOp():
                return self._txn(TxnOp((), (command,))).results[0]
            case TxnOp():
                return self._txn(command)
            case Compact(revision):
                return self._compact(revision)
            case LeaseGrant(lease, ttl_s):
                if lease in self.leases:
                    raise LeaseExists("taken")
                self.leases[lease] = (ttl_s, self.index)
                return LeaseStatus(lease, ttl_s, float(ttl_s))
            case LeaseRevoke(lease):
                if lease not in self.leases:
                    raise NotFound("no such lease")
                self._end(lease)
                return self.revision
            case LeaseExpire(expire_term, leases):
                for one in leases:
                    known = self.leases.get(one.lease)
                    if expire_term == term and known is not None and known[1] == one.generation:
                        self._end(one.lease)
                return None
        raise NotImplementedError(command)

    def _compact(self, revision: int) -> None:
        if revision <= self.compact_revision:
            raise Compacted("gone")
        if revision > self.revision:
            raise FutureRevision("not yet")
        self.compact_revision = revision

    def _end(self, lease: int) -> None:
        now = self.snapshots[self.revision]
        keys = sorted(key for key, kv in now.items() if kv.lease == lease)
        del self.leases[lease]
        if keys:
            self._txn(TxnOp((), tuple(DeleteOp(key) for key in keys)))

    def _txn(self, txn: TxnOp) -> TxnResult:
        before = self.snapshots[self.revision]
        path = self._path(txn, before)
        for op in _leaves(path):
            if isinstance(op, RangeOp):
                if op.revision > self.revision:
                    raise FutureRevision("not yet")
                if 0 < op.revision < self.compact_revision:
                    raise Compacted("gone")
            if isinstance(op, PutOp) and (op.ignore_value or op.ignore_lease) and op.key not in before:
                raise KeyNotFound("nothing to keep")
            if isinstance(op, PutOp) and op.lease and op.lease not in self.leases:
                raise NotFound("no such lease")
        now, events = dict(before), list[Event]()
        result = self._run(path, now, events)
        if events:
            self.revision += 1
            self.snapshots[self.revision] = now
            self.events[self.revision] = events
        return result

    def _path(self, txn: TxnOp, now: Snapshot) -> tuple[bool, list[Any]]:
        succeeded = all(self._holds(compare, now) for compare in txn.compare)
        branch = txn.success if succeeded else txn.failure
        return succeeded, [self._path(op, now) if isinstance(op, TxnOp) else op for op in branch]

    def _holds(self, compare: Compare, now: Snapshot) -> bool:
        keys = in_range(now, compare.key, compare.range_end)
        candidates = [now[key] for key in keys] or [None]
        return all(_compares(compare, kv) for kv in candidates)

    def _run(self, path: tuple[bool, list[Any]], now: Snapshot, events: list[Event]) -> TxnResult:
        succeeded, ops = path
        results = tuple(self._do(op, now, events) for op in ops)
        return TxnResult(self.revision + bool(events), succeeded, results)

    def _do(self, op: Any, now: Snapshot, events: list[Event]) -> Any:
        main = self.revision + 1
        if isinstance(op, tuple):
            return self._run(op, now, events)
        if isinstance(op, RangeOp):
            content = now if op.revision == 0 else self.snapshots[op.revision]
            return range_of(content, op, self.revision + bool(events))
        if isinstance(op, PutOp):
            old = now.get(op.key)
            created, version = (main, 1) if old is None else (old.create_revision, old.version + 1)
            value = now[op.key].value if op.ignore_value else op.value
            lease = now[op.key].lease if op.ignore_lease else op.lease
            now[op.key] = KeyValue(op.key, value, created, main, version, lease)
            events.append(Event(EventKind.PUT, now[op.key], old))
            return PutResult(main, old if op.previous else None)
        gone = [now.pop(key) for key in in_range(list(now), op.key, op.range_end)]
        events += [Event(EventKind.DELETE, KeyValue(kv.key, b"", 0, main, 0), kv) for kv in gone]
        return DeleteResult(self.revision + bool(events), len(gone), tuple(gone) if op.previous else ())


def range_of(content: Snapshot, op: RangeOp, revision: int) -> RangeResult:
    keys = in_range(content, op.key, op.range_end)
    if op.arrangement is not None and not op.count_only:
        found = _arranged([content[key] for key in keys], op.arrangement)
        cut = found[: op.limit] if op.limit else found
        kvs = [msgspec.structs.replace(kv, value=b"") for kv in cut] if op.keys_only else cut
        return RangeResult(revision, tuple(kvs), len(keys), len(kvs) < len(found))
    if op.arrangement is not None:
        return RangeResult(revision, (), len(keys))
    kvs = [] if op.count_only else [content[key] for key in (keys[: op.limit] if op.limit else keys)]
    if op.keys_only:
        kvs = [KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in kvs]
    return RangeResult(revision, tuple(kvs), len(keys), not op.count_only and len(kvs) < len(keys))


def _arranged(kvs: list[KeyValue], wanted: Arrangement) -> list[KeyValue]:
    subject = ["key", "version", "create_revision", "mod_revision", "value"][wanted.target]
    within = [
        kv
        for kv in kvs
        if wanted.mod_revision_min <= kv.mod_revision <= (wanted.mod_revision_max or kv.mod_revision)
        and wanted.create_revision_min <= kv.create_revision <= (wanted.create_revision_max or kv.create_revision)
    ]
    backwards = wanted.order is SortOrder.DESCEND
    return sorted(within, key=lambda kv: getattr(kv, subject), reverse=backwards)


def _leaves(path: tuple[bool, list[Any]]) -> Iterable[Operation]:
    for op in path[1]:
        if isinstance(op, tuple):
            yield from _leaves(op)
        else:
            yield op


def _compares(compare: Compare, kv: KeyValue | None) -> bool:
    if kv is None and compare.target is CompareTarget.VALUE:
        return False
    kv = kv or KeyValue(b"", b"", 0, 0, 0)
    actual: Any = {
        CompareTarget.VERSION: kv.version,
        CompareTarget.CREATE: kv.create_revision,
        CompareTarget.MOD: kv.mod_revision,
        CompareTarget.VALUE: kv.value,
        CompareTarget.LEASE: kv.lease,
    }[compare.target]
    return {
        CompareResult.EQUAL: actual == compare.operand,
        CompareResult.NOT_EQUAL: actual != compare.operand,
        CompareResult.GREATER: actual > compare.operand,
        CompareResult.LESS: actual < compare.operand,
    }[compare.result]


EVERYTHING = RangeOp(b"\0", RANGE_ALL)


def observable(machine: StateMachine) -> dict[str, Any]:
    """All that anybody can learn from a machine; equal for machines that have applied the same entries."""
    oldest = max(1, machine.compact_revision)
    return {
        "applied": (machine.applied_index, machine.applied_term),
        "revisions": (machine.revision, machine.compact_revision),
        "quota": (machine.logical_bytes, machine.quota_bytes),
        "content": [
            machine.range(RangeOp(b"\0", RANGE_ALL, revision=revision)).kvs
            for revision in range(oldest, machine.revision + 1)
        ],
        "events": machine.events(oldest, b"\0", RANGE_ALL, previous=True, rows_max=10**9)[0],
        "leases": {lease: (row, machine.leases.keys(lease)) for lease, row in machine.leases},
    }


def same_outcome(real: Any, expected: Any) -> bool:
    """Errors are the same when they are of one class; everything else must be equal."""
    if isinstance(expected, QuorateError):
        return type(real) is type(expected)
    return bool(real == expected)


def commands_of(machine: StateMachine, commands: Sequence[Command]) -> list[Any]:
    return [apply_one(machine, command) for command in commands]
