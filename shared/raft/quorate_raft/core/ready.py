"""What the core is configured with, and what it hands to its caller."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec
from quorate_core.errors import SettingsError

from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import Entry, HardState, MemberName, Message, SnapshotMeta


class Role(StrEnum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """`election_ticks` is T: election timeouts are drawn from T to 2T, and a leader that has not heard from a majority
    for T steps down. Every limit is for one follower, except `committed_entries_max`, which is for one `Ready`."""

    name: MemberName
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    append_bytes_max: int = 1024 * 1024
    inflight_messages_max: int = 64
    inflight_bytes_max: int = 8 * 1024 * 1024
    committed_entries_max: int = 256
    withholds_commit: bool = False
    """Leader: a higher commit index is not sent at once when it is all that there is to send. It goes with the next
    entries or heartbeat, and when `tell_commit` is called. A follower that has asked for it does not wait."""

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise SettingsError(
                f"heartbeats every {self.heartbeat_ticks} ticks cannot hold off elections after {self.election_ticks}"
            )


class ReadResult(msgspec.Struct, frozen=True):
    """The answer to `read_index(context)`: state at `index` or later is linearizable. `index` 0: refused, ask again."""

    context: int
    index: int


class Standing(msgspec.Struct, frozen=True):
    """Who leads, and what this member is. `leader` is empty when none is known."""

    role: Role
    leader: MemberName
    term: int


class Ready(msgspec.Struct, frozen=True):
    """What the caller must do now; `node` says in which order."""

    hard_state: HardState | None
    """Changed; to be made durable."""
    entries: tuple[Entry, ...]
    """To be appended to the durable log; the first may overwrite what is there from its index on."""
    must_sync: bool
    """Whether there is anything to make durable, and so `persisted()` is owed."""
    messages: tuple[Message, ...]
    """May leave at once."""
    messages_after_persist: tuple[Message, ...]
    """Promise what this Ready, or one before it, makes durable."""
    committed: tuple[Entry, ...]
    """To be applied, in order; durable on this member already."""
    reads: tuple[ReadResult, ...]
    standing: Standing | None
    """Changed since the last Ready."""
    snapshot: SnapshotMeta | None = None
    """To be taken over before `entries` are appended: restore the state machine from the snapshot of this index, and
    begin the durable log anew after it."""
    snapshots_wanted: tuple[MemberName, ...] = ()
    """Leader: followers that lack entries which the log has no more. Send each a snapshot; say what became of it."""
    membership: Membership | None = None
    """Changed since the last Ready: `RaftNode.contacts`, for the network."""
