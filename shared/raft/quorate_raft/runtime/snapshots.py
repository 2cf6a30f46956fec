"""Snapshot files: the state as of one entry, beside the log that goes on after it.

Theory of operation. A snapshot is two files. `snapshot-<index>.mdb` is what the state machine wrote; it is made aside,
checksummed, synced and renamed. Then `snapshot-<index>.json` is written the same way: it says what the other one holds,
how long it is, and its checksum. A snapshot exists when its json does. It is removed in the other order, with a sync in
between, so that no crash leaves a json without its data. What a crash does leave (files aside, data without json) is
removed at the next start.

Both files are written atomically, so one that does not fit its description has rotted. At the start, and before each
use, that is looked for: sizes at the start, checksums in `verify`. A damaged snapshot is reported and left where it is,
as evidence, but does not count. It does not keep the member from starting by itself: a state that is whole does not
need it, and the next snapshot takes its place. A state that does need one (`to_rebuild_from`) takes any whole one that
the log goes on from; if there is none, the member refuses to start, naming the damaged files.

The methods block, but for `newest`: they run in the disk's thread for long work, one at a time.
"""

import contextlib
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
from quorate_core.errors import InvalidContent, PayloadTooLarge, SettingsError

from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import SnapshotMeta
from quorate_raft.runtime.disk import ASIDE_SUFFIX, DiskFailed, reason_of
from quorate_raft.runtime.ports import Disk, DiskFile, SnapshotOffer
from quorate_raft.runtime.wal_recovery import Recovered, WalIdentity

FORMAT_VERSION = 1
CHUNK_BYTES = 256 * 1024
"""Read at once; so much of a snapshot is in memory, and no more."""
SNAPSHOT_BYTES_MAX = 64 * 1024 * 1024 * 1024
"""Taken over from a leader; far above any quota of a store."""
MANIFEST_BYTES_MAX = 4 * 1024 * 1024
INDEX_MAX = 10**16 - 1
"""What the sixteen digits of a name can say."""

_TAKEN_ASIDE = f"snapshot-taken{ASIDE_SUFFIX}"
_RECEIVED_ASIDE = f"snapshot-received{ASIDE_SUFFIX}"
_NAME = re.compile(r"snapshot-(\d{16})\.(mdb|json)")

log = structlog.get_logger(__name__)

WriteState = Callable[[Path], tuple[int, int]]
"""`StateMachine.save_snapshot`."""


class DamagedSnapshot(SettingsError):
    """A snapshot is not what was written. Starting again without a change is useless."""


class ManifestVersion(msgspec.Struct, frozen=True):
    """What is read of a json file first: another format may lack everything else."""

    format_version: int


class Manifest(msgspec.Struct, frozen=True):
    """The json file. `checksum` is the CRC-32 of the data, `manifest_checksum` that of this with 0 in its place."""

    format_version: int
    cluster_id: str
    meta: SnapshotMeta
    size_bytes: int
    checksum: int
    manifest_checksum: int = 0


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """One that is durable. `name` is its data's, in the disk's folder; `path` where that is."""

    meta: SnapshotMeta
    size_bytes: int
    checksum: int
    name: str
    path: Path


class SnapshotStore:
    """The snapshots of one member. Opening it removes what a crash has left half written. Raises SettingsError for
    another cluster's, or another format's."""

    def __init__(self, disk: Disk, identity: WalIdentity) -> None:
        self._disk = disk
        self._cluster_id = identity.cluster_id
        self._damaged: list[str] = []
        names = [name for name in disk.names() if name.startswith("snapshot-")]
        self._remove_left_overs(names)
        self._stored: tuple[StoredSnapshot, ...] = ()
        """Oldest first. Replaced as a whole, since it is read in other threads."""
        for name in names:
            if _kind(name) == "json":
                self._take_stock_of(name, names)

    def newest(self) -> StoredSnapshot | None:
        return self._stored[-1] if self._stored else None

    def to_rebuild_from(self, recovered: Recovered) -> StoredSnapshot:
        """The newest snapshot that the log goes on from, its checksum verified. One that was received, and that the log
        was not begun anew with before a crash, need not fit: its entry may be another one in this log.

        Raises DamagedSnapshot when there is none, or none that is whole.
        """
        fitting = [
            stored
            for stored in self._stored
            if stored.meta.index >= recovered.base.index and recovered.term_at(stored.meta.index) == stored.meta.term
        ]
        for stored in reversed(fitting):
            with contextlib.suppress(DamagedSnapshot):
                self.verify(stored)
                return stored
        reasons = "; ".join(self._damaged) or "there is none"
        raise DamagedSnapshot(
            f"{self._disk.folder}: the log begins after entry {recovered.base.index}, the state beside it does not "
            f"reach that, and no snapshot can replace it: {reasons}. Put this member's whole data folder back from a "
            "copy, or remove the member from the cluster and add a new one"
        )

    def verify(self, stored: StoredSnapshot) -> None:
        """Read all of it. Raises DamagedSnapshot when it is not what was written; it does not count from then on, and
        another one of the same entry may take its place."""
        size_bytes, checksum = self._checksum_of(stored.name)
        if (size_bytes, checksum) == (stored.size_bytes, stored.checksum):
            return
        self._stored = tuple(each for each in self._stored if each != stored)
        error = DamagedSnapshot(
            f"{stored.name} has {size_bytes} bytes with the checksum {checksum:08x}, but was written with "
            f"{stored.size_bytes} bytes and {stored.checksum:08x}"
        )
        self._report(error)
        raise error

    def save(self, write: WriteState, membership_at: Callable[[int], Membership]) -> StoredSnapshot:
        """Have `write` make a snapshot, and keep it. Returns the one that is there if nothing was applied since.

        Raises QuorateError, and leaves nothing behind, when the disk is full or fails.
        """
        self._remove_if_there(_TAKEN_ASIDE)
        path = self._disk.path(_TAKEN_ASIDE)
        try:
            index, term = write(path)
            size_bytes, checksum = self._checksum_of(_TAKEN_ASIDE)
            return self._keep(_TAKEN_ASIDE, SnapshotMeta(index, term, membership_at(index)), size_bytes, checksum)
        except OSError as error:
            self._clear_away(_TAKEN_ASIDE)
            raise DiskFailed(f"cannot write {path}: {reason_of(error)}") from error
        except BaseException:
            self._clear_away(_TAKEN_ASIDE)
            raise

    def receive(self, offer: SnapshotOffer) -> "SnapshotWriter":
        """Begin to take a snapshot over; one at a time. Raises DiskFailed now when there is no room for all of it."""
        if offer.size_bytes > SNAPSHOT_BYTES_MAX:
            raise PayloadTooLarge(
                f"a snapshot of {offer.size_bytes} bytes is offered; the limit is {SNAPSHOT_BYTES_MAX}"
            )
        if offer.size_bytes < 1 or not 1 <= offer.snapshot.index <= INDEX_MAX:
            raise InvalidContent(f"there is no snapshot of entry {offer.snapshot.index} in {offer.size_bytes} bytes")
        self._remove_if_there(_RECEIVED_ASIDE)
        file = self._disk.open(_RECEIVED_ASIDE, create=True)
        try:
            file.preallocate(offer.size_bytes)
        except BaseException:
            file.close()
            self._clear_away(_RECEIVED_ASIDE)
            raise
        return SnapshotWriter(self, file, offer)

    def remove_older_than(self, index: int) -> None:
        """Keep the snapshots of `index` and after. Damaged ones go too: the one that is kept stands in for them."""
        self._stored = tuple(stored for stored in self._stored if stored.meta.index >= index)
        gone = [name for name in self._disk.names() if (match := _NAME.fullmatch(name)) and int(match[1]) < index]
        for name in gone:
            if _kind(name) == "json":
                self._disk.remove(name)
        self._disk.sync_folder()
        for name in gone:
            if _kind(name) == "mdb":
                self._disk.remove(name)

    def keep_received(self, offer: SnapshotOffer) -> StoredSnapshot:
        """For `SnapshotWriter`."""
        return self._keep(_RECEIVED_ASIDE, offer.snapshot, offer.size_bytes, offer.checksum)

    def clear_received(self) -> None:
        """For `SnapshotWriter`."""
        self._clear_away(_RECEIVED_ASIDE)

    def _keep(self, aside: str, meta: SnapshotMeta, size_bytes: int, checksum: int) -> StoredSnapshot:
        there = next((stored for stored in self._stored if stored.meta.index == meta.index), None)
        if there is not None:
            # NB: never exchanged. Between its data and its json a crash would leave neither the old nor the new one.
            self._disk.remove(aside)
            return there
        name = _data_name(meta.index)
        self._disk.publish(aside, name)
        manifest = Manifest(FORMAT_VERSION, self._cluster_id, meta, size_bytes, checksum)
        self._disk.write_atomically(_manifest_name(meta.index), _encode_manifest(manifest))
        stored = StoredSnapshot(meta, size_bytes, checksum, name, self._disk.path(name))
        self._stored = tuple(sorted((*self._stored, stored), key=lambda each: each.meta.index))
        return stored

    def _take_stock_of(self, name: str, names: Sequence[str]) -> None:
        try:
            self._stored = (*self._stored, self._described_by(name, names))
        except DamagedSnapshot as error:
            self._report(error)

    def _report(self, error: DamagedSnapshot) -> None:
        self._damaged.append(error.detail)
        log.error("snapshot_damaged", folder=str(self._disk.folder), reason=error.detail)

    def _described_by(self, name: str, names: Sequence[str]) -> StoredSnapshot:
        """What the json `name` describes. Raises DamagedSnapshot, or SettingsError for somebody else's."""
        manifest = _decode_manifest(self._disk.path(name), self._disk.read(name, 0, MANIFEST_BYTES_MAX))
        if manifest.cluster_id != self._cluster_id:
            raise SettingsError(
                f"{self._disk.path(name)} belongs to cluster {manifest.cluster_id!r}, and this process to "
                f"{self._cluster_id!r}: choose another folder"
            )
        meta = manifest.meta
        data_name = _data_name(meta.index)
        if name != _manifest_name(meta.index):
            raise DamagedSnapshot(f"{name} describes {data_name}")
        size_bytes = self._disk.size_bytes(data_name) if data_name in names else 0
        if size_bytes != manifest.size_bytes:
            raise DamagedSnapshot(f"{data_name} has {size_bytes} bytes, but was written with {manifest.size_bytes}")
        return StoredSnapshot(meta, size_bytes, manifest.checksum, data_name, self._disk.path(data_name))

    def _remove_left_overs(self, names: Sequence[str]) -> None:
        """Files aside, and data that no json speaks of yet, or any more."""
        described = {Path(name).stem for name in names if _kind(name) == "json"}
        for name in names:
            if name.endswith(ASIDE_SUFFIX) or (_kind(name) == "mdb" and Path(name).stem not in described):
                self._disk.remove(name)

    def _checksum_of(self, name: str) -> tuple[int, int]:
        size_bytes, checksum = 0, 0
        while chunk := self._disk.read(name, size_bytes, CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
            size_bytes += len(chunk)
        return size_bytes, checksum

    def _remove_if_there(self, name: str) -> None:
        if name in self._disk.names():
            self._disk.remove(name)

    def _clear_away(self, name: str) -> None:
        """After a failure, whose reason matters more than what this may meet."""
        try:
            self._remove_if_there(name)
        except DiskFailed as error:
            log.warning("snapshot_left_over", name=name, reason=error.detail)


class SnapshotWriter:
    """A snapshot that is on its way here. Made by `SnapshotStore.receive`; ends with `finish` or `abandon`."""

    def __init__(self, store: SnapshotStore, file: DiskFile, offer: SnapshotOffer) -> None:
        self._store = store
        self._file = file
        self._offer = offer
        self._size_bytes = 0
        self._checksum = 0

    def append(self, chunk: bytes) -> None:
        """Raises InvalidContent when more comes than was offered."""
        if self._size_bytes + len(chunk) > self._offer.size_bytes:
            raise InvalidContent(f"more than the {self._offer.size_bytes} bytes came that were offered")
        self._file.append(chunk)
        self._size_bytes += len(chunk)
        self._checksum = zlib.crc32(chunk, self._checksum)

    def finish(self) -> StoredSnapshot:
        """Returns when it is durable. Raises InvalidContent when it is not what was offered."""
        offer = self._offer
        if (self._size_bytes, self._checksum) != (offer.size_bytes, offer.checksum):
            raise InvalidContent(
                f"{self._size_bytes} bytes came, with the checksum {self._checksum:08x}; {offer.size_bytes} with "
                f"{offer.checksum:08x} were offered"
            )
        self._file.close()
        return self._store.keep_received(offer)

    def abandon(self) -> None:
        """Leave nothing behind. After `finish` has returned it does nothing."""
        self._file.close()
        self._store.clear_received()


def _data_name(index: int) -> str:
    return f"snapshot-{index:016d}.mdb"


def _manifest_name(index: int) -> str:
    return f"snapshot-{index:016d}.json"


def _kind(name: str) -> str:
    match = _NAME.fullmatch(name)
    return match[2] if match else ""


def _encode_manifest(manifest: Manifest) -> bytes:
    summed = msgspec.structs.replace(manifest, manifest_checksum=_manifest_checksum(manifest))
    return msgspec.json.format(msgspec.json.encode(summed), indent=1) + b"\n"


def _decode_manifest(path: Path, data: bytes) -> Manifest:
    """Raises DamagedSnapshot, or SettingsError for another format."""
    try:
        version = msgspec.json.decode(data, type=ManifestVersion).format_version
        if version != FORMAT_VERSION:
            raise SettingsError(f"{path} has format {version}; this version reads {FORMAT_VERSION} only")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedSnapshot(f"{path.name} makes no sense: {error}") from error
    if _manifest_checksum(manifest) != manifest.manifest_checksum:
        raise DamagedSnapshot(f"{path.name} does not have its own checksum any more")
    return manifest


def _manifest_checksum(manifest: Manifest) -> int:
    return zlib.crc32(msgspec.json.encode(msgspec.structs.replace(manifest, manifest_checksum=0)))
