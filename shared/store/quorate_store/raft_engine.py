"""The `Store` on Raft: this process is a member. Requests are checked before they are proposed; reads are answered
here, after a linearizable barrier unless the caller says otherwise."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, TypeVar

from quorate_core.clock import Clock
from quorate_core.errors import (
    Compacted,
    Conflict,
    InvalidRequest,
    InvariantViolation,
    NotFound,
    QuorateError,
    TooManyRequests,
)
from quorate_core.tasks import TaskOwner

from quorate_store.commands import Command, Compact, LeaseGrant, LeaseRevoke, encode_command
from quorate_store.database import QUOTA_BYTES_DEFAULT
from quorate_store.lease_keeper import LeaseKeeper
from quorate_store.maintenance import HISTORY_REVISIONS_KEPT_DEFAULT, Maintenance
from quorate_store.model import (
    Compare,
    DeleteOp,
    DeleteResult,
    LeaseStatus,
    MemberHead,
    MemberStatus,
    Operation,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    StateHash,
    TxnOp,
    TxnResult,
)
from quorate_store.once import OnceWriter
from quorate_store.port import Watch
from quorate_store.refusals import LeaseTtlTooLarge
from quorate_store.replicated_log import ReplicatedLog
from quorate_store.state import StateMachine
from quorate_store.transactions import (
    LEASE_TTL_S_MAX,
    is_read_only,
    require_integer,
    require_key,
    validate_operation,
    validate_txn,
)
from quorate_store.watches import WatchFeed

T = TypeVar("T")

WRITE_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 5.0
RANGE_SLICE_KEYS = 500
"""Keys of one long range that are read in one turn of the event loop: a few milliseconds."""
RANGE_SLICES_A_TURN = 4
"""Of all long ranges together."""
SHORT_RANGE_KEYS = 16
"""So many are read at once, whatever their size."""
READ_ATTEMPTS_MAX = 3
"""A long read of the present begins again when compaction has overtaken it."""
LEASE_ID_ATTEMPTS_MAX = 3
LEASE_ID_BITS = 63
HASHES_WAITING_MAX = 16


class RaftStore:
    """`port.Store`. Make it before the log starts, so that it hears of the first leadership; `start` after it."""

    AWAITS_FUTURES_ONLY: ClassVar[bool] = True
    """See `v3.kv`. NB: whoever makes `range`, `put` or `txn` wait in another way has to make this False."""

    def __init__(
        self,
        replicated_log: ReplicatedLog,
        machine: StateMachine,
        clock: Clock,
        tasks: TaskOwner,
        *,
        quota_bytes: int = QUOTA_BYTES_DEFAULT,
        history_revisions_kept: int = HISTORY_REVISIONS_KEPT_DEFAULT,
        random_bits: Callable[[int], int] = secrets.randbits,
        loop_time_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = replicated_log
        self._machine = machine
        self._tasks = tasks
        self._random_bits = random_bits
        self._feed = WatchFeed(machine)
        machine.add_applied_listener(self._feed.on_applied)
        machine.add_replaced_listener(self._feed.on_replaced)
        self._leases = LeaseKeeper(replicated_log, machine, clock, loop_time_s)
        self._maintenance = Maintenance(
            replicated_log, machine, lambda: self._leases.is_leading,
            quota_bytes=quota_bytes, history_revisions_kept=history_revisions_kept,
        )  # fmt: skip
        self._once = OnceWriter(self, clock, random_bits=random_bits)
        self._name = ""
        self._range_turns = asyncio.Semaphore(RANGE_SLICES_A_TURN)
        self._hashing = asyncio.Lock()
        self._hashes_waiting = 0
        self._running: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin background work; does not wait for a leader. Raises InvariantViolation when the state is ahead of
        the log: then one of the two is not this member's."""
        last_index = self._log.status().last_index
        if self._machine.applied_index > last_index:
            raise InvariantViolation(
                f"the state has applied entry {self._machine.applied_index}, and the log ends at {last_index}"
            )
        self._running = [
            self._tasks.start(self._feed.run(), "watch feed"),
            self._tasks.start(self._leases.watch_stalls(), "lease stalls"),
            self._tasks.start(self._leases.run(), "leases"),
            self._tasks.start(self._maintenance.run(), "maintenance"),
        ]

    async def close(self) -> None:
        """End watches and background work. The log and the state machine are their owner's to close, in this order."""
        self._feed.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def range(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        serializable: bool = False,
        counted: bool = True,
    ) -> RangeResult:
        """See `port.Store.range`."""
        op = RangeOp(key, range_end, limit, revision, keys_only, count_only)
        validate_operation(op)
        if not serializable:
            await self._log.read_index(READ_TIMEOUT_S)
        if self._is_short(op):
            return self._machine.range(op)
        for _ in range(READ_ATTEMPTS_MAX - 1):
            try:
                return await self._scan(op, counted)
            except Compacted:
                if op.revision:
                    raise
        return await self._scan(op, counted)

    def _is_short(self, op: RangeOp) -> bool:
        if not op.range_end:
            return True
        if op.revision:
            return False
        return op.count_only or self._machine.live_count(op.key, op.range_end, op.limit) <= SHORT_RANGE_KEYS

    async def _scan(self, op: RangeOp, is_counted: bool) -> RangeResult:
        scan, is_done = self._machine.scan(op, is_counted=is_counted), False
        while not is_done:
            async with self._range_turns:
                is_done = scan.step(RANGE_SLICE_KEYS)
                await asyncio.sleep(0)
        return scan.result()

    async def put(
        self, key: bytes, value: bytes, *, lease: int = 0, previous: bool = False, request_id: str = ""
    ) -> PutResult:
        """See `port.Store.put`."""
        op = PutOp(key, value, lease, previous)
        validate_operation(op)
        if request_id:
            return await self._once.put(op, request_id)
        result: PutResult = await self._propose(op)
        return result

    async def delete(
        self, key: bytes, range_end: bytes = b"", *, previous: bool = False, request_id: str = ""
    ) -> DeleteResult:
        """See `port.Store.delete`."""
        op = DeleteOp(key, range_end, previous)
        validate_operation(op)
        if request_id:
            return await self._once.delete(op, request_id)
        result: DeleteResult = await self._propose(op)
        return result

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
        *,
        request_id: str = "",
    ) -> TxnResult:
        """See `port.Store.txn`."""
        op = TxnOp(tuple(compare), tuple(success), tuple(failure))
        validate_txn(op)
        if request_id:
            return await self._once.txn(op, request_id)
        if is_read_only(op):
            await self._log.read_index(READ_TIMEOUT_S)
            return self._machine.read_txn(op)
        result: TxnResult = await self._propose(op)
        return result

    async def compact(self, revision: int) -> None:
        """See `port.Store.compact`."""
        require_integer("revision", revision)
        await self._propose(Compact(revision))

    async def lease_grant(self, ttl_s: int, lease: int = 0) -> LeaseStatus:
        """See `port.Store.lease_grant`."""
        if ttl_s > LEASE_TTL_S_MAX:
            raise LeaseTtlTooLarge(f"a time to live of {ttl_s} s; the limit is {LEASE_TTL_S_MAX} s")
        if ttl_s < 1:
            raise InvalidRequest(f"a time to live of {ttl_s} s; it must be at least 1 s")
        require_integer("lease", lease)
        if lease:
            return await self._grant(lease, ttl_s)
        for _ in range(LEASE_ID_ATTEMPTS_MAX - 1):
            try:
                return await self._grant(self._new_lease_id(), ttl_s)
            except Conflict:
                continue
        return await self._grant(self._new_lease_id(), ttl_s)

    async def _grant(self, lease: int, ttl_s: int) -> LeaseStatus:
        granted: LeaseStatus = await self._propose(LeaseGrant(lease, ttl_s))
        return granted

    def _new_lease_id(self) -> int:
        return self._random_bits(LEASE_ID_BITS) or 1

    async def lease_keepalive(self, leases: Sequence[int]) -> Sequence[int]:
        """See `port.Store.lease_keepalive`."""
        for lease in leases:
            require_integer("lease", lease)
        return await _fairly(self._leases.keepalive(leases))

    async def lease_revoke(self, lease: int) -> int:
        """See `port.Store.lease_revoke`."""
        require_integer("lease", lease)
        revision: int = await self._propose(LeaseRevoke(lease))
        return revision

    async def lease_time_to_live(self, lease: int, *, keys: bool = False) -> LeaseStatus:
        """See `port.Store.lease_time_to_live`."""
        require_integer("lease", lease)
        if lease == 0:
            raise NotFound("lease 0 does not exist: it stands for no lease")
        return await _fairly(self._leases.time_to_live(lease, keys=keys))

    async def lease_list(self) -> Sequence[int]:
        """See `port.Store.lease_list`."""
        await self._log.read_index(READ_TIMEOUT_S)
        return sorted(lease for lease, _ in self._machine.leases)

    def granted_ttl_s(self, lease: int) -> int | None:
        """What a lease was granted for, in seconds; None when this member knows of no such lease, or not yet."""
        row = self._machine.leases.get(lease)
        return None if row is None else row.ttl_s

    def watch(
        self, key: bytes, range_end: bytes = b"", *, start_revision: int = 0, previous: bool = False
    ) -> AbstractAsyncContextManager[Watch]:
        """See `port.Store.watch`."""
        require_key(key)
        require_integer("start_revision", start_revision)
        return self._feed.watch(key, range_end, start_revision=start_revision, previous=previous)

    async def hash(self, revision: int = 0) -> StateHash:
        """See `port.Store.hash`. One is worked out at a time, in a thread."""
        require_integer("revision", revision)
        if self._hashes_waiting >= HASHES_WAITING_MAX:
            raise TooManyRequests(f"{HASHES_WAITING_MAX} others wait for a hash, which takes seconds; ask again later")
        self._hashes_waiting += 1
        try:
            async with self._hashing:
                return await asyncio.to_thread(self._machine.revisions_hash, revision)
        finally:
            self._hashes_waiting -= 1

    def head(self) -> MemberHead:
        """What every answer says of this member; costs nothing. The term is that of the newest entry applied here."""
        if not self._name:
            self._name = self._log.status().name
        return MemberHead(self._name, self._machine.applied_term, self._machine.revision)

    async def status(self) -> MemberStatus:
        """This member as it sees itself; needs no leader."""
        status = self._log.status()
        return MemberStatus(
            name=status.name,
            role=str(status.role),
            leader=status.leader,
            term=status.term,
            commit_index=status.commit_index,
            applied_index=self._machine.applied_index,
            revision=self._machine.revision,
            store_bytes=self._machine.logical_bytes,
            members=tuple(status.members),
            connected=tuple(status.connected),
            quota_bytes=self._machine.quota_bytes,
        )

    async def _propose(self, command: Command) -> Any:
        return await _fairly(self._log.propose(encode_command(command), WRITE_TIMEOUT_S))


async def _fairly(call: Awaitable[T]) -> T:
    """NB: without a leader the log refuses at once, in the same turn of the event loop; a caller that tries again
    and again must not keep the election from happening."""
    try:
        return await call
    except QuorateError:
        await asyncio.sleep(0)
        raise
