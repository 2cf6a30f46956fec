"""The replicated key-value store: etcd's semantics on Raft and LMDB.

`Store` is the port that apps stand on, with its values in `model`. `RaftStore` is the engine in which this process
is a member: make a `StateMachine`, a log over it, and the store over both. `mount_v3` serves a store by etcd's JSON
API. `apps` says what a node and an app are to each other.
"""

from quorate_store.apps import APPS_GROUP, App, AppContext, Fleet, FleetAnswer, FleetNode
from quorate_store.port import Store, Watch
from quorate_store.raft_engine import RaftStore
from quorate_store.replicated_log import ReplicatedLog
from quorate_store.state import StateMachine
from quorate_store.v3 import mount_v3

__all__ = [
    "APPS_GROUP",
    "App",
    "AppContext",
    "Fleet",
    "FleetAnswer",
    "FleetNode",
    "RaftStore",
    "ReplicatedLog",
    "StateMachine",
    "Store",
    "Watch",
    "mount_v3",
]
