"""Raft consensus: a core without I/O, and the runtime that persists, sends and applies for it.

A process that wants to be a member makes a `FileDisk` and a `TcpNetwork`, gives them to a `RaftDriver` with its state
machine, and proposes through that. Whoever wants consensus without this runtime takes `core.node.RaftNode`.
"""

from quorate_raft.core.membership import (
    AddLearner,
    Member,
    Membership,
    MembershipChange,
    PromoteLearner,
    RemoveMember,
)
from quorate_raft.core.messages import Entry, EntryKind, HardState, MemberName, SnapshotMeta
from quorate_raft.core.node import RaftNode
from quorate_raft.core.progress import FollowerStatus, ProgressState
from quorate_raft.core.ready import RaftConfig, Ready, Role
from quorate_raft.runtime.administration import MemberRemoved
from quorate_raft.runtime.disk import DiskFailed, FileDisk
from quorate_raft.runtime.driver import DriverConfig, RaftDriver, RaftStatus
from quorate_raft.runtime.ports import Disk, DiskFile, Network, PeerReceiver, SnapshotOffer, StateMachine
from quorate_raft.runtime.snapshots import DamagedSnapshot
from quorate_raft.runtime.tcp import TcpConfig, TcpNetwork
from quorate_raft.runtime.wal import holds_log
from quorate_raft.runtime.wal_recovery import DamagedLog

__all__ = [
    "AddLearner",
    "DamagedLog",
    "DamagedSnapshot",
    "Disk",
    "DiskFailed",
    "DiskFile",
    "DriverConfig",
    "Entry",
    "EntryKind",
    "FileDisk",
    "FollowerStatus",
    "HardState",
    "Member",
    "MemberName",
    "MemberRemoved",
    "Membership",
    "MembershipChange",
    "Network",
    "PeerReceiver",
    "ProgressState",
    "PromoteLearner",
    "RaftConfig",
    "RaftDriver",
    "RaftNode",
    "RaftStatus",
    "Ready",
    "RemoveMember",
    "Role",
    "SnapshotMeta",
    "SnapshotOffer",
    "StateMachine",
    "TcpConfig",
    "TcpNetwork",
    "holds_log",
]
