"""Writes that are applied once, however often they are sent: by whom, to which member, and over whatever engine.

Theory of operation. A write with a request id is guarded by a marker in the same transaction (`request_guard`). The
first attempt that the store applies leaves it; all others find it, and get the first one's answer again, from the
marker alone or with the help of history (`past_answer`). When history does not reach back, who repeats is told the
revision at which the write was applied. So an attempt whose outcome nobody saw is simply made again, and that is done
here, until the write's deadline: most callers never see an unknown outcome. An attempt that is given up may still be
under way. That is no harm as long as its marker is remembered; but a refusal of a later attempt (the store is full, a
lease has ended) says nothing about it then, so the outcome stays unknown.

Markers hang on leases that are never renewed, so they vanish by themselves, up to `MARKERS_PER_LEASE_MAX` at a time: no
marker is swept by a loop, and none is forgotten. A request is remembered for `REMEMBERED_S` at least. NB: whoever
repeats it later than that writes it again: a client that has not heard for so long must read what has become of its
write, as it had to without an id. Retries of the SDK and of this module end far sooner.

A lease that is gone before its time (revoked by hand, or with a snapshot that was restored) is seen when a marker
cannot be put on it; nothing was written then, and another lease is taken.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from quorate_core.clock import Clock
from quorate_core.errors import (
    Compacted,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    InvariantViolation,
    NotFound,
    NotProposed,
    OutcomeUnknown,
    QuorateError,
    QuotaExceeded,
    TooManyRequests,
    Unavailable,
)

from quorate_store.model import (
    DeleteOp,
    DeleteResult,
    KeyValue,
    OperationResult,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    TxnOp,
    TxnResult,
    prefix_end,
)
from quorate_store.past_answer import PastAnswer, answer_without_history
from quorate_store.port import Store
from quorate_store.request_guard import REQUESTS_PREFIX, Guard, Marker, Write
from quorate_store.transactions import is_read_only

REMEMBERED_S = 300
"""At least so long after a write was applied, its id is known."""
WRITE_TIMEOUT_S = 5.0
"""From the first attempt on; after that the outcome is what it is by then."""
ATTEMPT_TIMEOUT_S = 2.0
"""Above what a change of leaders takes, so that few attempts are given up which would have been answered."""
BACKOFF_S_MIN = 0.02
BACKOFF_S_MAX = 0.5
"""Between two attempts: doubled each time, and a random half of it taken off."""
MARKERS_PER_LEASE_MAX = 1_000
"""What one end of a lease deletes at once: about ten milliseconds."""
LEASE_SHARED_S = 60
"""Markers are put on one lease for so long."""
MARKER_TTL_S_MIN = REMEMBERED_S + LEASE_SHARED_S + 30
"""Of a lease. The rest is for a write that is slow, and for clocks that run at different rates."""
MARKER_TTL_SPREAD_BITS = 6
"""Up to so much more, by chance: a new leader gives many leases their whole time again, all at one moment, and they are
not to end at one moment too."""
MARKERS_MAX = 400_000
"""In a store: a thousand writes a second for as long as they are remembered. Looked at when a lease is granted."""

_JITTER_BITS = 16
_REPEATED = (NotProposed, OutcomeUnknown, DeadlineExceeded, Unavailable)
"""What an attempt may end with and another be made. The third is of reads."""


class MarkerLeases:
    """The leases on which one member's markers hang, one after the other."""

    def __init__(self, store: Store, clock: Clock, random_bits: Callable[[int], int]) -> None:
        self._store = store
        self._clock = clock
        self._random_bits = random_bits
        self._granting = asyncio.Lock()
        self._lease = 0
        self._places = 0
        """For how many more markers the lease is good."""
        self._until_s = 0.0

    async def take(self) -> int:
        """The lease for one more marker. Raises NotProposed, or TooManyRequests when there are too many markers."""
        async with self._granting:
            if not self._places or self._clock.monotonic_s() >= self._until_s:
                await self._grant()
            self._places -= 1
            return self._lease

    async def is_gone(self, lease: int) -> bool:
        """Whether `lease` has ended before its time; it is not given out any more then."""
        try:
            await self._store.lease_time_to_live(lease)
        except NotFound:
            if lease == self._lease:
                self._places = 0
            return True
        return False

    async def _grant(self) -> None:
        try:
            markers = await self._store.range(REQUESTS_PREFIX, prefix_end(REQUESTS_PREFIX), count_only=True)
            if markers.count >= MARKERS_MAX:
                raise TooManyRequests(
                    f"{markers.count} requests are remembered, and {MARKERS_MAX} is the limit; each is forgotten after "
                    f"some {REMEMBERED_S} s"
                )
            # NB: before the grant, so that the lease lives longer than its share of time in any case.
            asked_s = self._clock.monotonic_s()
            ttl_s = MARKER_TTL_S_MIN + self._random_bits(MARKER_TTL_SPREAD_BITS)
            granted = await self._store.lease_grant(ttl_s)
        except (OutcomeUnknown, DeadlineExceeded) as error:
            raise NotProposed(f"there is no lease for the marker of the request yet: {error.detail}") from error
        self._lease, self._places, self._until_s = granted.lease, MARKERS_PER_LEASE_MAX, asked_s + LEASE_SHARED_S


class OnceWriter:
    """Over a `store`, of which it uses only writes without request ids. One for each store that a process has."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        random_bits: Callable[[int], int] = secrets.randbits,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._clock = clock
        self._random_bits = random_bits
        self._wait = wait
        self._leases = MarkerLeases(store, clock, random_bits)

    async def put(self, op: PutOp, request_id: str) -> PutResult:
        """As `port.Store.put`. Raises Conflict when the id stands for another write, or its answer is not kept."""
        result: PutResult = await self._write(op, request_id)
        return result

    async def delete(self, op: DeleteOp, request_id: str) -> DeleteResult:
        """As `port.Store.delete`. Raises Conflict as `put` does, and QuotaExceeded: a marker takes room."""
        try:
            result: DeleteResult = await self._write(op, request_id)
        except QuotaExceeded as error:
            raise QuotaExceeded(f"{error.detail}. To remember a request takes room: delete without an id") from error
        return result

    async def txn(self, op: TxnOp, request_id: str) -> TxnResult:
        """As `port.Store.txn`; one that can only read is simply done again."""
        if is_read_only(op):
            return await self._store.txn(op.compare, op.success, op.failure)
        result: TxnResult = await self._write(op, request_id)
        return result

    async def _write(self, write: Write, request_id: str) -> Any:
        request = _Request(self._store, self._leases, Guard(write, request_id))
        deadline_s = self._clock.monotonic_s() + WRITE_TIMEOUT_S
        backoff_s = BACKOFF_S_MIN
        while True:
            left_s = deadline_s - self._clock.monotonic_s()
            try:
                async with asyncio.timeout(min(left_s, ATTEMPT_TIMEOUT_S)):
                    return await request.attempt()
            except TimeoutError:
                last: QuorateError = request.gave_up()
            except _REPEATED as error:
                last = error
            pause_s = backoff_s * (1 - self._random_bits(_JITTER_BITS) / (2 << _JITTER_BITS))
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
            if self._clock.monotonic_s() + pause_s >= deadline_s:
                raise request.outcome(last)
            await self._wait(pause_s)


class _Request:
    """One write with an id, and what its attempts have come to."""

    def __init__(self, store: Store, leases: MarkerLeases, guard: Guard) -> None:
        self._store = store
        self._leases = leases
        self._guard = guard
        self._is_out = False
        """The store has been asked to write, and has not answered."""
        self._doubt = ""
        """Why an attempt may be applied at any time, or has been; empty while none can be."""

    async def attempt(self) -> OperationResult:
        """Raises what the engine does, but for refusals that say nothing of an earlier attempt; and Conflict."""
        try:
            result = await self._send()
            while result is None:
                result = await self._send()
        except (*_REPEATED, InvariantViolation):
            raise
        except QuorateError as error:
            if self._doubt:
                raise self.outcome(error) from error
            raise
        marker = self._guard.marker_in(result)
        return self._guard.answer_in(result) if marker is None else await self._answer_again(marker)

    def gave_up(self) -> QuorateError:
        """The attempt under way took too long."""
        if self._is_out:
            self._doubt = "the store did not answer an attempt in time"
        return self.outcome(NotProposed("the store did not come to write in time"))

    def outcome(self, last: QuorateError) -> QuorateError:
        """What there is to say after the `last` attempt when there will be no other."""
        if not self._doubt or isinstance(last, OutcomeUnknown):
            return last
        return OutcomeUnknown(f"{self._doubt}; the last attempt: {last.detail}")

    async def _send(self) -> TxnResult | None:
        """None when the marker's lease has ended before its time."""
        lease = await self._leases.take()
        guarded = self._guard.transaction(lease)
        try:
            self._is_out = True
            result = await self._store.txn(guarded.compare, guarded.success, guarded.failure)
            self._is_out = False
            return result
        except OutcomeUnknown as error:
            self._doubt = error.detail
            raise
        except NotFound:
            self._is_out = False
            if await self._leases.is_gone(lease):
                return None
            raise
        except QuorateError:
            self._is_out = False
            raise

    async def _answer_again(self, marker: KeyValue) -> OperationResult:
        guard, revision = self._guard, marker.create_revision
        left = Marker.decode(marker.value)
        if left.digest != guard.digest:
            raise Conflict(
                f"request id {guard.request_id!r} was used for another write, at revision {revision}; "
                "every write needs an id of its own",
                used_at_revision=revision,
            )
        answer = answer_without_history(guard.write, revision, succeeded=left.succeeded)
        if answer is not None:
            return answer
        self._doubt = f"the write was applied at revision {revision}, and its answer was not read in time"
        try:
            return await self._from_history(revision)
        except (Compacted, InvalidRequest) as error:  # the latter when the answer is too large to be read again
            raise Conflict(
                f"request {guard.request_id!r} was applied at revision {revision}, and what it answered cannot be "
                f"said again: {error.detail}",
                applied_revision=revision,
            ) from error

    async def _from_history(self, revision: int) -> OperationResult:
        past = PastAnswer(self._guard.write, revision)
        decided = past.decide(await self._read(past.reads_of_comparisons()))
        return past.answer(decided, await self._read(past.reads_of_operations(decided)))

    async def _read(self, ops: list[RangeOp]) -> dict[RangeOp, RangeResult]:
        return {
            op: await self._store.range(
                op.key, op.range_end, limit=op.limit, revision=op.revision, keys_only=op.keys_only,
                count_only=op.count_only,
            )
            for op in dict.fromkeys(ops)
        }  # fmt: skip
