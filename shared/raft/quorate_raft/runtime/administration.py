"""What operators ask of consensus: who is a member, and who leads. Asked of any member, done by the leader.

A change of the membership is an entry like any other, and its caller waits until it is applied. A transfer is over when
another member leads; it changes nothing that is durable, so a caller that hears nothing may just look.
"""

import asyncio
from collections.abc import Callable

import msgspec
from quorate_core.clock import Clock
from quorate_core.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    NotProposed,
    QuorateError,
    SettingsError,
)

from quorate_raft.core.membership import NO_MEMBER, MemberName, MembershipChange, encode_membership
from quorate_raft.core.node import RaftNode
from quorate_raft.core.ready import Role
from quorate_raft.runtime.ports import Network
from quorate_raft.runtime.proposals import Proposals

MEMBERSHIP_METHOD = "raft.membership"
TRANSFER_METHOD = "raft.transfer"


class MemberRemoved(SettingsError):
    """The cluster has removed this member for good. To start it again is useless."""

    @classmethod
    def named(cls, name: MemberName, by: str) -> "MemberRemoved":
        return cls(
            f"{name} was removed from the cluster, {by}: its data folder is of no use any more. A member that comes "
            "back needs a new name and an empty folder"
        )


class ChangeCall(msgspec.Struct, frozen=True, array_like=True):
    change: MembershipChange
    timeout_s: float


class TransferCall(msgspec.Struct, frozen=True, array_like=True):
    """`to` empty: to whom the leader likes."""

    to: MemberName
    timeout_s: float


encode_call = msgspec.msgpack.Encoder().encode
_change_decoder = msgspec.msgpack.Decoder(ChangeCall)
_transfer_decoder = msgspec.msgpack.Decoder(TransferCall)


class Administration:
    """Of one running member; `wake` has the driver look at the core again."""

    def __init__(
        self,
        name: MemberName,
        node: RaftNode,
        proposals: Proposals,
        network: Network,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._name = name
        self._node = node
        self._proposals = proposals
        self._network = network
        self._clock = clock
        self._wake = wake
        self._standing_changed = asyncio.Event()

    def on_standing_changed(self) -> None:
        self._standing_changed.set()

    async def on_change_call(self, _sender: MemberName, payload: bytes) -> bytes:
        """Leader: change the membership; answers with the new one when that is applied here."""
        try:
            call = _change_decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"a change of the membership makes no sense: {error}") from error
        proposal = self._proposals.admit(b"", self._clock.monotonic_s() + call.timeout_s)
        try:
            _, proposal.term = self._node.change_membership(call.change, proposal.request_id)
            self._wake()
            outcome = await proposal.outcome
        finally:
            self._proposals.discard(proposal)
        if isinstance(outcome, QuorateError):
            raise outcome
        return encode_membership(self._node.membership)

    async def on_transfer_call(self, _sender: MemberName, payload: bytes) -> bytes:
        """Leader: hand over; answers with the new leader's name."""
        try:
            call = _transfer_decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"a transfer of the leadership makes no sense: {error}") from error
        return (await self.transfer(call.to, call.timeout_s)).encode()

    async def transfer(self, to: MemberName, timeout_s: float) -> MemberName:
        """Leader: let `to` take over, or whoever lacks least when that is empty; returns who leads then.

        Raises NotProposed when this member does not lead, NotFound or Conflict for one that cannot, and
        DeadlineExceeded when it did not take over in time (the leadership then stays, or is elected anew).
        """
        node = self._node
        if node.standing.role is not Role.LEADER:
            raise NotProposed(f"{self._name} does not lead")
        successor = self._require_successor(to)
        if successor == self._name:
            return successor
        node.transfer(successor)
        self._wake()
        try:
            async with asyncio.timeout(timeout_s):
                # Its own vote may be needed, so a leader that closes stays until the other one leads.
                while (leader := await self.next_leader(NO_MEMBER)) == self._name:
                    self._standing_changed.clear()
                    await self._standing_changed.wait()
        except TimeoutError as error:
            raise DeadlineExceeded(f"{successor} did not take the leadership over within {timeout_s:g} s") from error
        return leader

    async def next_leader(self, other_than: MemberName) -> MemberName:
        """Wait until somebody else than `other_than` is known to lead."""
        while (leader := self._node.standing.leader) in (NO_MEMBER, other_than):
            self._standing_changed.clear()
            await self._standing_changed.wait()
        return leader

    def _require_successor(self, to: MemberName) -> MemberName:
        node = self._node
        if not to:
            successor = node.most_caught_up([*self._network.connected()])
            if not successor:
                raise Conflict("there is no other voter that is connected and could lead")
            return successor
        if to not in node.membership:
            raise NotFound(f"{to} is no member; there are {', '.join(node.membership.names)}")
        if not node.membership.is_voter(to):
            raise Conflict(f"{to} is a learner; promote it first")
        return to
