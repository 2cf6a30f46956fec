"""What is in a backup, and the beginning of a new cluster from it.

A new cluster has the backup's keys, history and leases, but is another one: its members have a membership and a cluster
id of their own, so that no member of the old cluster can ever join it. All of them begin with the same backup, each for
itself, and must come to the same state, so everything here depends on the file and on what is asked for alone.

What is changed in the state before it is begun with:

- Leases have their whole time to live again: how long nobody could renew them is not known.
- The revision is raised by `bump_revisions`, and everything before is compacted away. Clients that outlived the old
  cluster have seen revisions that the backup knows nothing of. Given out a second time, with other content, these would
  deceive them; and as long as the store has not come so far again, a client that waits for what comes after the last
  one that it saw hears nothing at all. So the new cluster begins beyond them, and who asks for anything older learns
  that it is compacted, and reads anew. The first revision is a change of `RESTORED_KEY`, which says what was restored,
  and the end of keys that say who was up then: they would name processes of the old cluster.
"""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmdb
import msgspec
from quorate_core.errors import InvalidRequest, InvariantViolation, QuorateError

from quorate_store.backup import BackupHeader, DamagedBackup, OnProgress, read_backup
from quorate_store.database import DATA_FILE_NAME, MAP_BYTES_MAX, Database, Meta
from quorate_store.loading import LoadedState, load_state
from quorate_store.model import RANGE_ALL, RESTORED_KEY, StateHash, prefix_end
from quorate_store.mvcc import RevisionWriter, range_keys
from quorate_store.state_hash import hash_of_revisions

BUMP_REVISIONS_DEFAULT = 1_000_000_000
"""More than a cluster makes between two backups: 10,000 a second, for a day."""
BUMP_REVISIONS_MAX = 10**15


@dataclass(frozen=True, slots=True)
class Contents:
    """What a look into a backup has found, all of it verified. `keys` are those alive at its revision."""

    header: BackupHeader
    keys: int
    leases: int
    store_bytes: int
    """What counts against the quota."""
    quota_bytes: int
    hash: StateHash
    """What the members of the cluster had at that revision, if it was compacted as far."""


class OpenedBackup:
    """A backup whose data is unpacked and loaded. The file itself stays as it is."""

    def __init__(self, header: BackupHeader, state: LoadedState) -> None:
        self.header = header
        self.state = state

    def contents(self) -> Contents:
        state = self.state
        meta = state.meta
        return Contents(
            self.header,
            keys=state.mvcc.index.live_count(b"\0", RANGE_ALL),
            leases=len(state.leases),
            store_bytes=meta.written_bytes - meta.reclaimed_bytes + state.leases.cost_bytes,
            quota_bytes=meta.quota_bytes,
            hash=hash_of_revisions(state.database, meta.revision),
        )

    def begin_anew(self, bump_revisions: int, ended_prefix: bytes = b"") -> int:
        """Make the state that of a new cluster; returns its revision. To be called once.

        The keys with `ended_prefix`, if it is not empty, are deleted; unless `bump_revisions` is 0, since then nothing
        is changed.
        """
        if not 0 <= bump_revisions <= BUMP_REVISIONS_MAX:
            raise InvalidRequest(
                f"the revision can be raised by 0 to {BUMP_REVISIONS_MAX}, and not by {bump_revisions}"
            )
        state = self.state
        with state.database.write() as txn:
            for lease, row in list(state.leases):
                if row.remaining_ms:
                    state.leases.checkpoint(txn, lease, 0)
            if bump_revisions:
                self._raise_revision(txn, bump_revisions, ended_prefix)
            state.database.save_meta(txn, state.meta)
        return state.meta.revision

    def save(self, path: Path) -> tuple[int, int]:
        """Write the state to the new file `path`; returns the index and the term of the last entry in it."""
        return self.state.database.copy(path)

    def _raise_revision(self, txn: lmdb.Transaction, bump_revisions: int, ended_prefix: bytes) -> None:
        state = self.state
        state.meta.revision += bump_revisions - 1
        writer = RevisionWriter(state.mvcc, state.database, txn)
        writer.put(RESTORED_KEY, self._record(), lease=0)
        if ended_prefix:
            for key in range_keys(state.mvcc, ended_prefix, prefix_end(ended_prefix)):
                writer.delete(key)
        revision = writer.close()
        state.mvcc.compact(txn, revision)

    def _record(self) -> bytes:
        """NB: nothing of the place and the time of the restoration, which differ from member to member."""
        header = self.header
        record = {
            "cluster_id": header.cluster_id, "revision": header.revision, "taken_at": header.taken_at,
            "sha256": header.sha256,
        }  # fmt: skip
        return json.dumps(record).encode()


@contextmanager
def opened_backup(path: Path, scratch: Path, on_progress: OnProgress | None = None) -> Iterator[OpenedBackup]:
    """Unpack `path` into the empty folder `scratch`, which needs room for it, and open what it holds.

    Raises DamagedBackup, StateUnusable when the disk refuses, and OSError. What is left in `scratch` is of no use.
    """
    data = scratch / DATA_FILE_NAME
    with data.open("xb") as file:
        header = read_backup(path, file.write, on_progress)
    database = Database(scratch, MAP_BYTES_MAX, is_copy=True)
    try:
        state = _load(path, header, database)
        yield OpenedBackup(header, state)
    finally:
        database.abandon()


def read_meta(folder: Path) -> Meta:
    """The counters of a copy of the state, made by `StateMachine.save_snapshot` as `folder`/DATA_FILE_NAME."""
    database = Database(folder, MAP_BYTES_MAX, is_copy=True)
    try:
        return database.load_meta()
    finally:
        database.abandon()


def _load(path: Path, header: BackupHeader, database: Database) -> LoadedState:
    """What the checksum vouches for was written so. Who has written it, and with what in mind, it does not say."""
    try:
        with database.failing("read"):
            state = load_state(database)
    except (InvariantViolation, msgspec.MsgspecError, struct.error) as error:
        reason = error.detail if isinstance(error, QuorateError) else str(error)
        raise DamagedBackup(f"{path} cannot be used: its data makes no sense: {reason}") from error
    meta = state.meta
    said = (header.index, header.term, header.revision, header.compact_revision)
    found = (meta.applied_index, meta.applied_term, meta.revision, meta.compact_revision)
    if said != found:
        raise DamagedBackup(
            f"{path} cannot be used: its header and its data do not belong together (index, term, revision, compacted "
            f"up to: {said} and {found})"
        )
    return state
