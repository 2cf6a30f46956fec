"""What members say to each other, and what a member remembers: plain values, encoded by msgspec.

Names follow the Raft paper (Ongaro and Ousterhout, extended version) and etcd-io/raft. A member is known by its
name, a short string that is unique in the cluster and never used again for another member.
"""

from enum import IntEnum
from typing import Annotated

import msgspec

from quorate_raft.core.membership import NO_MEMBER, MemberName, Membership

__all__ = [
    "NO_MEMBER",
    "AppendRequest",
    "AppendResponse",
    "Entry",
    "EntryKind",
    "HardState",
    "HeartbeatRequest",
    "HeartbeatResponse",
    "InstallSnapshot",
    "MemberName",
    "Message",
    "ReadIndexRequest",
    "ReadIndexResponse",
    "SnapshotMeta",
    "TimeoutNow",
    "VoteRequest",
    "VoteResponse",
]


NUMBER_MAX = 2**62
"""Of terms and indexes: far beyond any use, and such that one more than what a peer says can still be written."""
Count = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]


class EntryKind(IntEnum):
    NORMAL = 0
    """`data` belongs to the state machine."""
    NO_OP = 1
    """Proposed by a new leader, so that entries of earlier terms can be committed (paper, section 5.4.2)."""
    MEMBERSHIP = 2
    """`data` is the whole new configuration, as `membership.encode_membership` writes it."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One slot of the log. `index` counts from 1; `request_id` is 0 or was chosen by the proposing member's driver,
    unique over all members and boots, so that the proposer can tell its own entry when it is applied."""

    index: Count
    term: Count
    kind: EntryKind = EntryKind.NORMAL
    data: bytes = b""
    request_id: int = 0


class HardState(msgspec.Struct, frozen=True, array_like=True):
    """What must be durable before any message that depends on it leaves (paper, figure 2)."""

    term: Count = 0
    vote: MemberName = NO_MEMBER
    commit: Count = 0
    """A hint that saves work after a restart; losing it is harmless."""


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot holds: the state after the entry `index`, which was of `term`, and the configuration then.

    It is also the base of a log: all entries up to `index` are in the snapshot. A new cluster's log stands on
    `SnapshotMeta(0, 0, …)`, for which no snapshot is needed.
    """

    index: Count = 0
    term: Count = 0
    membership: Membership = Membership()


class _Message(msgspec.Struct, frozen=True, array_like=True, tag_field="kind"):
    sender: MemberName
    to: MemberName
    term: Count


class VoteRequest(_Message, frozen=True, array_like=True, tag="vote?"):
    """RequestVote. With `pre` it asks only whether the vote would be given; nobody's term changes (thesis, 9.6)."""

    last_index: Count
    last_term: Count
    pre: bool = False
    transfer: bool = False
    """The leader itself asked for this election: members do not refuse it because they hear from a leader."""


class VoteResponse(_Message, frozen=True, array_like=True, tag="vote!"):
    granted: bool
    pre: bool = False


class AppendRequest(_Message, frozen=True, array_like=True, tag="append?"):
    """AppendEntries with entries, or empty as a probe."""

    previous_index: Count
    previous_term: Count
    entries: tuple[Entry, ...]
    commit: Count


class AppendResponse(_Message, frozen=True, array_like=True, tag="append!"):
    """`match_index`: the last index known to agree. When rejected, it is the `previous_index` that did not fit, and
    the hint names the follower's last index not after it whose term is not above the request's (fast backtracking)."""

    match_index: Count
    rejected: bool = False
    hint_index: Count = 0
    hint_term: Count = 0
    needs_snapshot: bool = False
    """It joins: it knows no configuration yet, and the log alone would not tell it the first one."""


class HeartbeatRequest(_Message, frozen=True, array_like=True, tag="beat?"):
    """`commit` is never above what the receiver is known to have. `read_context` 0 means: no read asks."""

    commit: Count
    read_context: int = 0


class HeartbeatResponse(_Message, frozen=True, array_like=True, tag="beat!"):
    read_context: int = 0


class ReadIndexRequest(_Message, frozen=True, array_like=True, tag="read?"):
    """A follower asks the leader for a read index (thesis, 6.4). `context` is unique for the asking member."""

    context: int


class ReadIndexResponse(_Message, frozen=True, array_like=True, tag="read!"):
    """`index` 0: refused, ask again (no leader here, or nothing committed yet in this term)."""

    context: int
    index: Count


class TimeoutNow(_Message, frozen=True, array_like=True, tag="timeout-now"):
    """The leader asks its chosen successor to start an election at once (thesis, 3.10)."""


class InstallSnapshot(_Message, frozen=True, array_like=True, tag="snapshot"):
    """InstallSnapshot (paper, section 7), as far as the core has a say. The file comes on a connection of its own; when
    it is durable, the receiver's driver hands this to its core, with the sender's term. It never travels by itself."""

    snapshot: SnapshotMeta


Message = (
    VoteRequest
    | VoteResponse
    | AppendRequest
    | AppendResponse
    | HeartbeatRequest
    | HeartbeatResponse
    | ReadIndexRequest
    | ReadIndexResponse
    | TimeoutNow
    | InstallSnapshot
)
