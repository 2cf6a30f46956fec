"""Who is a member, seen and changed from any node: what `/v1/cluster/members` does.

Only the leader knows how far each member is, so a node that is asked asks the leader, one hop on the peer link
(`RaftDriver.call_leader`), and so do changes. Without a leader a node answers with the membership that it knows itself.
Where members serve HTTP is not consensus' business: that comes from the fleet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from quorate_core.errors import Conflict, InvalidRequest, NotFound, NotProposed, QuorateError
from quorate_core.settings import HostPort
from quorate_raft.core.membership import (
    AddLearner,
    MemberName,
    Membership,
    MembershipChange,
    PromoteLearner,
    RemoveMember,
)
from quorate_sdk.wire import AddMember, ClusterMember, MemberList, MemberRole, Transfer, Transferred
from quorate_store.apps import Fleet
from quorate_store.replicated_log import CallHandler

PROGRESS_METHOD = "node.progress"
ASK_TIMEOUT_S = 1.0
CHANGE_TIMEOUT_S = 5.0
TRANSFER_TIMEOUT_S = 3.0


class FollowerStatus(Protocol):
    @property
    def match_index(self) -> int: ...
    @property
    def is_recently_active(self) -> bool: ...


class ControlStatus(Protocol):
    """`membership` is the newest in this member's log; `progress` says something on the leader only."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def leader(self) -> str: ...
    @property
    def last_index(self) -> int: ...
    @property
    def first_index(self) -> int: ...
    @property
    def snapshot_index(self) -> int: ...
    @property
    def membership(self) -> Membership: ...
    @property
    def progress(self) -> Mapping[MemberName, FollowerStatus]: ...


class ClusterControl(Protocol):
    """What consensus lets an operator do, from any member. `quorate_raft.RaftDriver` fits it."""

    def status(self) -> ControlStatus: ...
    async def change_membership(self, change: MembershipChange, timeout_s: float) -> Membership:
        """Returns the new one once it is agreed on. Raises Conflict, NotFound or InvalidRequest when it is refused,
        NotProposed when it was surely not done, OutcomeUnknown when it may have been."""
        ...

    async def transfer_leadership(self, to: MemberName, timeout_s: float) -> MemberName:
        """Returns who leads then. `to` empty: whoever lacks least."""
        ...

    async def call_leader(self, method: str, payload: bytes, timeout_s: float) -> bytes: ...
    def register_call(self, method: str, handler: CallHandler) -> None: ...


class _Reach(msgspec.Struct, frozen=True):
    match_index: int
    is_reachable: bool


class _LeaderWord(msgspec.Struct, frozen=True):
    """What the leader knows. `reach` names the members other than itself."""

    leader: MemberName
    last_index: int
    membership: Membership
    reach: dict[MemberName, _Reach]


_encode = msgspec.msgpack.Encoder().encode
_word_decoder = msgspec.msgpack.Decoder(_LeaderWord)


@dataclass(frozen=True, slots=True)
class _View:
    membership: Membership
    word: _LeaderWord | None


class Members:
    """The members of the cluster that `control` is part of."""

    def __init__(self, control: ClusterControl, fleet: Fleet, cluster_id: str) -> None:
        self._control = control
        self._fleet = fleet
        self._cluster_id = cluster_id
        control.register_call(PROGRESS_METHOD, self._on_progress_call)

    async def list(self) -> MemberList:
        """As the leader sees them, or as this node knows them when no leader answers."""
        view = await self._view()
        urls = {node.name: node.url for node in await self._fleet.nodes()}
        leader = "" if view.word is None else view.word.leader
        return MemberList(
            cluster_id=self._cluster_id,
            leader=leader,
            members=[_member(view, name, urls.get(name, "")) for name in view.membership.names],
            removed=list(view.membership.removed),
        )

    async def add(self, wanted: AddMember) -> MemberList:
        """Add a learner. Raises InvalidRequest for an address that is none, Conflict for one that another has."""
        try:
            address = HostPort.parse(wanted.address)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        if address.port == 0:
            raise InvalidRequest(f"{address} is no address that others can reach: a member needs a fixed port")
        for member in self._control.status().membership.members:
            if member.address == str(address) and member.name != wanted.name:
                raise Conflict(f"{address} is the address of {member.name}")
        return await self._change(AddLearner(wanted.name, str(address)))

    async def promote(self, name: MemberName) -> MemberList:
        """Make a learner a voter. A Conflict because it lacks too much has `lag_entries`, and may be tried again."""
        return await self._change(PromoteLearner(name))

    async def remove(self, name: MemberName) -> MemberList:
        """Remove a member for good; one that was removed already is. Raises Conflict when the voters that are left and
        alive would be no majority."""
        try:
            return await self._change(RemoveMember(name))
        except NotFound:
            # NB: a leader that removes itself may be gone before its answer: the caller then asks another node again.
            found = await self.list()
            if name not in found.removed:
                raise
            return found

    async def transfer(self, wanted: Transfer) -> Transferred:
        return Transferred(leader=await self._control.transfer_leadership(wanted.to, TRANSFER_TIMEOUT_S))

    async def _change(self, change: MembershipChange) -> MemberList:
        await self._control.change_membership(change, CHANGE_TIMEOUT_S)
        return await self.list()

    async def _view(self) -> _View:
        try:
            answer = await self._control.call_leader(PROGRESS_METHOD, b"", ASK_TIMEOUT_S)
            word = _word_decoder.decode(answer)
        except (QuorateError, msgspec.MsgspecError):
            return _View(self._control.status().membership, None)
        return _View(word.membership, word)

    async def _on_progress_call(self, _sender: MemberName, _payload: bytes) -> bytes:
        """Leader: what it knows of the others."""
        status = self._control.status()
        if status.role != "leader":
            raise NotProposed(f"{status.name} does not lead")
        reach = {name: _Reach(each.match_index, each.is_recently_active) for name, each in status.progress.items()}
        return _encode(_LeaderWord(status.name, status.last_index, status.membership, reach))


def _member(view: _View, name: MemberName, url: str) -> ClusterMember:
    membership, word = view.membership, view.word
    role = MemberRole.LEARNER if membership.is_learner(name) else MemberRole.VOTER
    peer = membership.address_of(name) or ""
    if word is None:
        return ClusterMember(name=name, peer=peer, role=role, url=url)
    is_leader = name == word.leader
    known = _Reach(word.last_index, True) if is_leader else word.reach.get(name, _Reach(0, False))
    return ClusterMember(
        name=name, peer=peer, role=role, is_leader=is_leader, url=url, is_reachable=known.is_reachable,
        match_index=known.match_index, lag_entries=max(0, word.last_index - known.match_index),
    )  # fmt: skip


def difference(flags: Sequence[tuple[MemberName, str]], membership: Membership) -> str:
    """How the members that a command line names, with their addresses, differ from those that the log has; empty when
    they do not. It is told and not refused: a member that came later is missing from older command lines."""
    named = dict(flags)
    only_log = [name for name in membership.names if name not in named]
    only_flags = [name for name in named if name not in membership]
    moved = [
        f"{name} is at {address} and not at {membership.address_of(name)}"
        for name, address in named.items()
        if name in membership and membership.address_of(name) not in (address, "")
    ]
    parts = [
        f"only the log has {', '.join(only_log)}" if only_log else "",
        f"only the command line has {', '.join(only_flags)}" if only_flags else "",
        f"by the command line {', '.join(moved)}" if moved else "",
    ]
    return "; ".join(filter(None, parts))
