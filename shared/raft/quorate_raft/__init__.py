"""Raft consensus: a core without I/O, and the runtime that persists, sends and applies for it.

A process that wants to be a member makes a `FileDisk` and a `TcpNetwork`, gives them to a `RaftDriver` with its state
machine, and proposes through that. Whoever wants consensus without this runtime takes `core.node.RaftNode`.
"""

from quorate_raft.core.messages import Entry, EntryKind, HardState, MemberName
from quorate_raft.core.node import RaftNode
from quorate_raft.core.ready import RaftConfig, Ready, Role
from quorate_raft.runtime.disk import DiskFailed, FileDisk
from quorate_raft.runtime.driver import DriverConfig, RaftDriver, RaftStatus
from quorate_raft.runtime.ports import Disk, DiskFile, Network, PeerReceiver, StateMachine
from quorate_raft.runtime.tcp import TcpConfig, TcpNetwork
from quorate_raft.runtime.wal import DamagedLog, holds_log

__all__ = [
    "DamagedLog",
    "Disk",
    "DiskFailed",
    "DiskFile",
    "DriverConfig",
    "Entry",
    "EntryKind",
    "FileDisk",
    "HardState",
    "MemberName",
    "Network",
    "PeerReceiver",
    "RaftConfig",
    "RaftDriver",
    "RaftNode",
    "RaftStatus",
    "Ready",
    "Role",
    "StateMachine",
    "TcpConfig",
    "TcpNetwork",
    "holds_log",
]
