"""Proposals of a follower's callers, on their one hop to the leader: all that gather in one turn go in one call."""

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec
from quorate_core.errors import DeadlineExceeded, InvalidRequest, NotProposed, QuorateError, Retry
from quorate_core.tasks import TaskOwner

from quorate_raft.core.ready import Role, Standing
from quorate_raft.runtime.ports import Clock, Network
from quorate_raft.runtime.proposals import Proposal

PROPOSE_METHOD = "raft.propose"
CALLS_OUT_MAX = 4
"""Calls under way at once; what comes meanwhile gathers for the next."""
CALL_BYTES_MAX = 1024 * 1024
"""A call carries at least one proposal, and otherwise no more than this."""
CALL_TIMEOUT_MIN_S = 0.001


class Forwarded(msgspec.Struct, frozen=True, array_like=True):
    """`term`: only the leader of this term may propose these, so that their entries can have no other."""

    term: int
    proposals: tuple[tuple[int, bytes], ...]
    """Request id and data of each."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Forwarded).decode


def decode_forwarded(payload: bytes) -> Forwarded:
    """Raises InvalidRequest."""
    try:
        return _decode(payload)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"forwarded proposals make no sense: {error}") from error


class Forwarder:
    """Holds what is not sent yet. Whoever waits for a proposal learns its outcome from `Proposals`; here it is only
    settled when the leader surely did not take it."""

    def __init__(self, network: Network, clock: Clock, tasks: TaskOwner, on_call_ended: Callable[[], None]) -> None:
        self._network = network
        self._clock = clock
        self._tasks = tasks
        self._on_call_ended = on_call_ended
        self._unsent: deque[Proposal] = deque()
        self._calls_out: dict[asyncio.Task[None], int] = {}

    def add(self, proposal: Proposal) -> None:
        self._unsent.append(proposal)

    def send(self, standing: Standing) -> None:
        """Begin calls to the leader for what waits."""
        if not self._unsent:
            return
        if not standing.leader or standing.role is Role.LEADER:
            while self._unsent:
                self._unsent.popleft().settle(NotProposed("the leader changed before it was asked; try again"))
        while self._unsent and len(self._calls_out) < CALLS_OUT_MAX:
            batch = self._take_batch(standing.term)
            if batch:
                call = self._tasks.start(self._call(standing, batch), "forward")
                self._calls_out[call] = standing.term
                call.add_done_callback(self._ended)

    def on_standing_changed(self, standing: Standing) -> None:
        """No answer of a leader that is replaced is worth a wait: what it took shows when entries are applied."""
        for call, term in self._calls_out.items():
            if term < standing.term:
                call.cancel()

    def _take_batch(self, term: int) -> list[Proposal]:
        batch: list[Proposal] = []
        size_bytes = 0
        while self._unsent:
            proposal = self._unsent[0]
            if batch and size_bytes + len(proposal.data) > CALL_BYTES_MAX:
                break
            self._unsent.popleft()
            if not proposal.outcome.done():
                proposal.term = term
                batch.append(proposal)
                size_bytes += len(proposal.data)
        return batch

    async def _call(self, standing: Standing, batch: list[Proposal]) -> None:
        payload = _encode(Forwarded(standing.term, tuple((p.request_id, p.data) for p in batch)))
        timeout_s = max(p.deadline_s for p in batch) - self._clock.monotonic_s()
        try:
            await self._network.call(standing.leader, PROPOSE_METHOD, payload, max(timeout_s, CALL_TIMEOUT_MIN_S))
        except QuorateError as error:
            if error.kind.retry is Retry.UNKNOWN or isinstance(error, DeadlineExceeded):
                return
            for proposal in batch:
                proposal.settle(type(error)(error.detail, **error.extensions))

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._calls_out.pop(call, None)
        self._on_call_ended()
