"""The log with which a member of a new cluster begins, when the cluster does not begin with nothing.

It is the log of a member that has taken a snapshot, and cut everything behind it: the snapshot's files, and one segment
without entries that stands on them. All members of the new cluster begin with a snapshot of the same entry and the
same membership, so their logs agree up to there, and none of them has voted for anybody. From then on they are members
like any other: they find their state behind their log, make it from the snapshot, and elect a leader.

The segment is what makes the folder a log, and it is made last. A crash before that leaves a folder that no member
starts with.
"""

from quorate_core.errors import Conflict

from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import NO_MEMBER, HardState, MemberName, SnapshotMeta
from quorate_raft.core.state import RandomBelow
from quorate_raft.runtime.ports import Disk
from quorate_raft.runtime.snapshots import SnapshotStore, WriteState
from quorate_raft.runtime.wal import SEGMENT_BYTES_MAX, Wal, WalIdentity
from quorate_raft.runtime.wal_recovery import LogEnd, LogExtent


def begin_from_snapshot(
    disk: Disk,
    cluster_id: str,
    name: MemberName,
    membership: Membership,
    write_state: WriteState,
    random_below: RandomBelow,
    segment_bytes_max: int = SEGMENT_BYTES_MAX,
) -> SnapshotMeta:
    """Make the log of `name`, a voter of `membership`, in the empty folder of `disk`, on the state that `write_state`
    writes. Blocking; durable when it returns. Returns what the log stands on.

    `cluster_id` must be one that no other cluster has had. Raises Conflict for a folder that is not empty, and whatever
    `write_state` and the disk raise; what is in the folder then is of no use.
    """
    names = disk.names()
    if names:
        raise Conflict(f"{disk.folder} is not empty: there is {names[0]}")
    if not membership.is_voter(name):
        raise Conflict(f"{name} is not among the members {', '.join(membership.voters)}")
    identity = WalIdentity(cluster_id, name)
    base = SnapshotStore(disk, identity).save(write_state, lambda _index: membership).meta
    end = LogEnd(base, HardState(base.term, NO_MEMBER, base.index))
    wal = Wal(disk, identity, random_below, segment_bytes_max, end, LogExtent(base.index))
    try:
        wal.begin()
    finally:
        wal.close()
    return base
