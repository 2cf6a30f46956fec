"""Data folders with which a new cluster begins from a backup.

Every member of the new cluster is given a folder that is made from the same file, by the same words; each for itself,
maybe on machines that do not reach each other. What they must agree in goes into the id of the new cluster: the file,
the members, and by how much the revision is raised. So members that were not restored alike refuse each other, and so
do members of the old cluster, and those of an earlier restoration if that had another id.

A folder is made within itself, since it may be where a volume is mounted. What makes it usable is made last
(`quorate_raft.runtime.restoring`), and after a failure nothing is left of it.
"""

import contextlib
import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from quorate_core.errors import Conflict, InvalidRequest
from quorate_raft import FileDisk, Membership
from quorate_raft.runtime.restoring import begin_from_snapshot
from quorate_store.backup import OnProgress
from quorate_store.revival import Contents, OpenedBackup, opened_backup

from quorate_node.fleet import NODES_PREFIX
from quorate_node.memory import RAFT_FOLDER
from quorate_node.settings import CLUSTER_ID_CHARS_MAX, Members, is_cluster_id

SCRATCH_FOLDER = "restoring"
_FINGERPRINT_CHARS = 8
_NOT_DATA = frozenset({"lost+found"})
"""What a file system puts into the folder where it is mounted."""


@dataclass(frozen=True, slots=True)
class Restoration:
    """What is restored, alike on all members. `cluster_id` must be one that was never used."""

    file: Path
    members: Members
    cluster_id: str
    bump_revisions: int


@dataclass(frozen=True, slots=True)
class Restored:
    """`cluster_id` is the one that the members are to be started with; `contents` what the file held; `revision` what
    the new cluster begins with."""

    contents: Contents
    cluster_id: str
    revision: int


def restore(wanted: Restoration, folders: Mapping[str, Path], on_progress: OnProgress | None = None) -> Restored:
    """Make the data folder of each member that `folders` names; they must be empty, or not there. Blocking.

    Raises InvalidRequest for members and ids that cannot be, Conflict for a folder that holds data or the id of the
    old cluster, DamagedBackup, and what the disk raises; all folders are then as they were.
    """
    membership = _membership_of(wanted, folders)
    with contextlib.ExitStack() as made:
        for folder in folders.values():
            made.enter_context(_made_or_unmade(folder))
        scratch = next(iter(folders.values())) / SCRATCH_FOLDER
        scratch.mkdir(mode=0o700)
        with opened_backup(wanted.file, scratch, on_progress) as backup:
            restored = _begin_anew(wanted, backup)
            for name, folder in folders.items():
                with FileDisk(folder / RAFT_FOLDER) as disk:
                    begin_from_snapshot(
                        disk, restored.cluster_id, name, membership, backup.save, random.SystemRandom().randrange
                    )
        shutil.rmtree(scratch)
    return restored


def _begin_anew(wanted: Restoration, backup: OpenedBackup) -> Restored:
    contents = backup.contents()
    cluster_id = f"{wanted.cluster_id}-{_fingerprint(wanted, backup.header.sha256)}"
    if backup.header.cluster_id in (cluster_id, wanted.cluster_id):
        raise Conflict(
            f"{backup.header.cluster_id} is the cluster that the snapshot was taken of; the new one needs an id of its "
            "own, so that no member of the old one can join it"
        )
    return Restored(contents, cluster_id, backup.begin_anew(wanted.bump_revisions, NODES_PREFIX))


def _membership_of(wanted: Restoration, folders: Mapping[str, Path]) -> Membership:
    """Raises InvalidRequest."""
    strangers = [name for name in folders if name not in wanted.members]
    if strangers:
        raise InvalidRequest(f"{', '.join(strangers)} is not among the members {wanted.members}")
    longest = CLUSTER_ID_CHARS_MAX - _FINGERPRINT_CHARS - 1
    if not is_cluster_id(wanted.cluster_id) or len(wanted.cluster_id) > longest:
        raise InvalidRequest(f"a cluster id takes letters, digits, '.', '_' and '-', here at most {longest}")
    if len(wanted.members) > 1 and any(address.port == 0 for address in wanted.members.values()):
        raise InvalidRequest("members of a cluster need fixed peer ports; port 0 is for a single member")
    return Membership.of_voters({name: str(address) for name, address in wanted.members.items()})


def _fingerprint(wanted: Restoration, sha256: str) -> str:
    """Of all that must be alike on all members, however it was written."""
    members = sorted((name, str(address)) for name, address in wanted.members.items())
    alike = json.dumps([sha256, members, wanted.bump_revisions])
    return hashlib.sha256(alike.encode()).hexdigest()[:_FINGERPRINT_CHARS]


@contextlib.contextmanager
def _made_or_unmade(folder: Path) -> Iterator[None]:
    """`folder` is there and empty; when it is left by an error, it is as it was. Raises Conflict when it holds data."""
    was_there = folder.is_dir()
    if was_there:
        held = sorted(path.name for path in folder.iterdir() if path.name not in _NOT_DATA)
        if held:
            raise Conflict(
                f"{folder} is not empty ({', '.join(held[:3])}): a snapshot is restored into a folder of its own. Move "
                "what is there away, if it is of no use any more"
            )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for name in (RAFT_FOLDER, SCRATCH_FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
