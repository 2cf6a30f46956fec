"""Consensus as the HTTP API for operators sees it, without consensus: a membership that obeys the core's own rules."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quorate_core.errors import NotProposed
from quorate_raft.core.membership import Membership, MembershipChange, apply_change
from quorate_store.replicated_log import CallHandler


@dataclass(frozen=True)
class Follower:
    match_index: int = 0
    is_recently_active: bool = True


@dataclass(frozen=True)
class Status:
    name: str
    role: str
    leader: str
    membership: Membership
    progress: Mapping[str, Follower]
    last_index: int = 100
    first_index: int = 11
    snapshot_index: int = 20


@dataclass
class ScriptedCluster:
    """`name` is the member that is asked, `leader` who leads, empty for nobody. `followers`: what the leader knows."""

    name: str
    membership: Membership
    leader: str = ""
    followers: dict[str, Follower] = field(default_factory=dict)
    refusals: list[Exception] = field(default_factory=list)
    """Raised by the next changes, in this order."""
    changes: list[MembershipChange] = field(default_factory=list)
    handlers: dict[str, CallHandler] = field(default_factory=dict)

    def status(self) -> Status:
        """As the leader sees itself while it answers a call, else as the member that is asked does."""
        is_leader = self.name == self.leader
        return Status(
            self.name, "leader" if is_leader else "follower", self.leader, self.membership,
            self.followers if is_leader else {},
        )  # fmt: skip

    async def change_membership(self, change: MembershipChange, timeout_s: float) -> Membership:
        assert timeout_s > 0
        if self.refusals:
            raise self.refusals.pop(0)
        self.require_leader()
        self.membership = apply_change(self.membership, change)
        self.changes.append(change)
        return self.membership

    async def transfer_leadership(self, to: str, timeout_s: float) -> str:
        assert timeout_s > 0
        self.require_leader()
        self.leader = to or next(iter(self.membership.others(self.leader)))
        return self.leader

    async def call_leader(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        assert timeout_s > 0
        self.require_leader()
        asked, self.name = self.name, self.leader
        try:
            return await self.handlers[method](asked, payload)
        finally:
            self.name = asked

    def register_call(self, method: str, handler: CallHandler) -> None:
        self.handlers[method] = handler

    def require_leader(self) -> None:
        if not self.leader:
            raise NotProposed("no leader is known at present; try again")
