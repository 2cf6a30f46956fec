"""The leader's work on leases: keepalives, expiry, checkpoints. What is decided is decided in `leases.py`.

Keepalives are no log entries: a member sends them to the leader, which answers once a majority has confirmed that it
still leads. So no deposed leader promises a lease's life that its successor knows nothing of, and none ends a lease
either: it must be confirmed before it proposes that, and the entry holds in its own term only.

While the event loop stands still (a paused process, a suspended machine), no keepalive can come in, so that time does
not count. It can stand still at any await: a task of its own therefore notes, tick by tick, that the loop lives, and
whoever is about to believe the clock looks first how long ago that was.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog
from quorate_core.clock import Clock
from quorate_core.errors import DeadlineExceeded, InvariantViolation, NotProposed, OutcomeUnknown, QuorateError

from quorate_store.commands import (
    Command,
    LeaseCheckpoint,
    LeaseExpire,
    LeaseIncarnation,
    LeaseRemaining,
    encode_command,
)
from quorate_store.leases import CHECKPOINT_BATCH_MAX, Inherited, Lessor
from quorate_store.model import LeaseStatus
from quorate_store.replicated_log import ReplicatedLog
from quorate_store.state import Applied, StateMachine

TICK_INTERVAL_S = 0.1
STALL_S_MIN = 0.05
"""A tick this late is a loop that stood still, and not jitter."""
CALL_TIMEOUT_S = 5.0
CONFIRM_TIMEOUT_S = 2.0
KEYS_ENDED_MAX = 1_000
"""Keys that one log entry deletes with their leases, unless one lease alone has more: about ten milliseconds."""
KEEPALIVE_BATCH_MAX = 10_000
"""Leases renewed by one call to the leader."""

_KEEPALIVE = "store.lease.keepalive"
_TIME_TO_LIVE = "store.lease.time-to-live"

log = structlog.get_logger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_leases_decoder = msgspec.msgpack.Decoder(list[int])
_query_decoder = msgspec.msgpack.Decoder(tuple[int, bool])
_status_decoder = msgspec.msgpack.Decoder(LeaseStatus)


class LeaseKeeper:
    """Make it before the log starts, so that it hears of the first leadership; then let `run` run."""

    def __init__(
        self,
        replicated_log: ReplicatedLog,
        machine: StateMachine,
        clock: Clock,
        loop_time_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`loop_time_s`: by which it shows that the event loop stood still, whatever clock leases go by. NB: not the
        loop's own time, which uvloop reads once an iteration."""
        self._log = replicated_log
        self._machine = machine
        self._clock = clock
        self._loop_time_s = loop_time_s
        self._lessor: Lessor | None = None
        """Only while this member leads."""
        self._term = 0
        self._alive_s = 0.0
        """When the event loop was last seen to live; 0: never yet."""
        self._settled = asyncio.Event()
        """Clear while the end of expiring leases is being proposed."""
        self._settled.set()
        replicated_log.register_call(_KEEPALIVE, self._on_keepalive)
        replicated_log.register_call(_TIME_TO_LIVE, self._on_time_to_live)
        replicated_log.add_leadership_listener(self._on_leadership)
        machine.add_applied_listener(self._on_applied)
        machine.add_replaced_listener(self._on_replaced)

    @property
    def is_leading(self) -> bool:
        return self._lessor is not None

    async def keepalive(self, leases: Sequence[int]) -> list[int]:
        """Renew, wherever the leader is. Returns those that do not exist."""
        unknown: list[int] = []
        for first in range(0, len(leases), KEEPALIVE_BATCH_MAX):
            batch = list(leases[first : first + KEEPALIVE_BATCH_MAX])
            unknown += _leases_decoder.decode(await self._log.call_leader(_KEEPALIVE, _encode(batch), CALL_TIMEOUT_S))
        return unknown

    async def time_to_live(self, lease: int, *, keys: bool) -> LeaseStatus:
        """Raises NotFound."""
        try:
            answer = await self._log.call_leader(_TIME_TO_LIVE, _encode((lease, keys)), CALL_TIMEOUT_S)
        except OutcomeUnknown as error:
            raise DeadlineExceeded(f"the leader did not say in time what is left of lease {lease}") from error
        return _status_decoder.decode(answer)

    async def watch_stalls(self, wait: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Note that the event loop lives, until cancelled."""
        while True:
            self._note_stall()
            await wait(TICK_INTERVAL_S)

    def _note_stall(self) -> None:
        now_s = self._loop_time_s()
        stalled_s = now_s - self._alive_s - TICK_INTERVAL_S
        is_first, self._alive_s = self._alive_s == 0.0, now_s
        if stalled_s > STALL_S_MIN and self._lessor is not None and not is_first:
            self._lessor.add_stall(stalled_s)

    def _now_s(self) -> float:
        """By the clock that leases go by, with no stall before it that the lessor does not know of."""
        now_s = self._clock.monotonic_s()
        self._note_stall()
        return now_s

    async def run(self, wait: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Expire and checkpoint until cancelled; `watch_stalls` runs beside it."""
        postponed = ""
        while True:
            await wait(TICK_INTERVAL_S)
            lessor = self._lessor
            if lessor is None:
                continue
            while lessor is self._lessor and lessor.adopt():  # noqa: ASYNC110 - the others' turn, and no event
                await asyncio.sleep(0)
            try:
                await self._expire_due(lessor)
                await self._checkpoint_due(lessor)
                postponed = ""
            except InvariantViolation:
                raise
            except QuorateError as error:
                if error.detail != postponed:  # once, and not every tick
                    postponed = error.detail
                    log.info("lease_duty_postponed", reason=postponed)

    def _on_leadership(self, is_leader: bool, term: int) -> None:
        self._term = term
        if not is_leader:
            self._lessor = None
            return
        lessor, table = Lessor(), self._machine.leases

        def lookup(lease: int) -> Inherited | None:
            row = table.get(lease)
            return None if row is None else Inherited(row.generation, row.ttl_s, row.remaining_ms)

        lessor.inherit(table.ids(), lookup, self._now_s())
        self._lessor = lessor

    def _on_replaced(self) -> None:
        """Only followers take snapshots over. Should it ever happen here, every lease has its whole time again, and
        whoever waits for the lessor of before is told to try again."""
        if self._lessor is not None:
            self._on_leadership(True, self._term)

    def _on_applied(self, applied: Applied) -> None:
        lessor = self._lessor
        if lessor is None:
            return
        for lease in applied.leases_ended:
            lessor.remove(lease)
        for lease in applied.leases_granted:
            row = self._machine.leases.get(lease)
            if row is not None:
                lessor.add_granted(lease, row.generation, row.ttl_s, self._now_s())

    async def _expire_due(self, lessor: Lessor) -> None:
        due = lessor.due(self._now_s())
        if not due:
            return
        self._settled.clear()
        try:
            while due:
                count = self._ended_together(due)
                batch, due = due[:count], due[count:]
                await self._end(lessor, batch)
        except BaseException:
            lessor.expiry_failed(due)
            raise
        finally:
            self._settled.set()

    def _ended_together(self, due: list[LeaseIncarnation]) -> int:
        """How many of these, and at least one, one entry ends: their keys are deleted in one go."""
        keys = 0
        for count, one in enumerate(due):
            keys += self._machine.leases.key_count(one.lease)
            if count and keys > KEYS_ENDED_MAX:
                return count
        return len(due)

    async def _end(self, lessor: Lessor, due: list[LeaseIncarnation]) -> None:
        """Returns when these are gone, or may be renewed again, or this member leads no more."""
        while lessor is self._lessor:
            try:
                term = await self._confirmed_term(lessor)
                await self._propose(LeaseExpire(term, tuple(due)))
                return
            except OutcomeUnknown as error:
                # It may be in the log, so these must not be renewed; to propose it again does no harm.
                log.info("lease_expiry_repeated", leases=len(due), reason=error.detail)
            except BaseException:
                lessor.expiry_failed(due)
                raise

    async def _checkpoint_due(self, lessor: Lessor) -> None:
        due = lessor.checkpoints_due(self._now_s())
        if due and lessor is self._lessor:
            await self._propose(LeaseCheckpoint(self._term, tuple(due)))

    async def _propose(self, command: Command) -> None:
        await self._log.propose(encode_command(command), CALL_TIMEOUT_S)

    async def _confirmed_term(self, lessor: Lessor) -> int:
        """The term that `lessor` is of, confirmed by a majority just now. Raises NotProposed."""
        term = await self._log.confirm_leadership(CONFIRM_TIMEOUT_S)
        self._require_leading(lessor)
        if term != self._term:
            raise NotProposed(f"this member has come to lead again, in term {term}; try again")
        return term

    def _require_leading(self, lessor: Lessor | None) -> Lessor:
        if lessor is None or lessor is not self._lessor:
            raise NotProposed("this member does not lead any more; try again")
        return lessor

    async def _on_keepalive(self, _sender: str, payload: bytes) -> bytes:
        leases = _leases_decoder.decode(payload)
        lessor = self._require_leading(self._lessor)
        term = await self._confirmed_term(lessor)
        if any(lease not in lessor for lease in leases):
            # A grant may be committed and not be applied here yet, though the asker has applied it.
            await self._log.read_index(CONFIRM_TIMEOUT_S)
        while any(lessor.is_expiring(lease) for lease in leases) and lessor is self._lessor:
            await self._settled.wait()
        self._require_leading(lessor)
        now_s = self._now_s()
        unknown = [lease for lease in leases if not lessor.renew(lease, now_s)]
        await self._clear_checkpoints(lessor, term, leases)
        return _encode(unknown)

    async def _clear_checkpoints(self, lessor: Lessor, term: int, leases: list[int]) -> None:
        """A checkpoint would outlive the renewal in the log, and a later leader would believe it."""
        numbers = {lease: number for lease in leases if (number := lessor.checkpoint_to_clear(lease))}
        stale = [
            LeaseRemaining(lease, row.generation, 0)
            for lease in numbers
            if (row := self._machine.leases.get(lease)) is not None
        ]
        for first in range(0, len(stale), CHECKPOINT_BATCH_MAX):
            await self._propose(LeaseCheckpoint(term, tuple(stale[first : first + CHECKPOINT_BATCH_MAX])))
        self._require_leading(lessor)
        for lease, number in numbers.items():
            lessor.checkpoint_cleared(lease, number)

    async def _on_time_to_live(self, _sender: str, payload: bytes) -> bytes:
        lease, keys = _query_decoder.decode(payload)
        lessor = self._require_leading(self._lessor)
        await self._confirmed_term(lessor)
        await self._log.read_index(CONFIRM_TIMEOUT_S)
        self._require_leading(lessor)
        remaining_s = lessor.remaining_s(lease, self._now_s())
        return _encode(self._machine.lease_status(lease, remaining_s, keys=keys))
