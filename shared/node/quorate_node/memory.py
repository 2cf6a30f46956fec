"""What a member must not forget between two runs, beyond its log: that it had one, and that it was removed.

A member that has lost its log and starts with an empty one could vote for members that lack what it once helped to
commit; two such make a majority, and history begins a second time. So a member that was part of a cluster starts with
its log or not at all. Who tells it that it was: `--cluster-state existing`, or the begun-file, which the member writes
itself as soon as it has a log, and which lies where it is not lost together with the log. A member that is begun
with `join` is one that the cluster does not count on yet; with a log it goes on as any other.

A member that was removed from the cluster (`MemberRemoved`) leaves a mark in its data folder. Nothing that it does is
of use any more, so it does not start again; whoever runs it can see why (`quorate up` does).
"""

import os
from pathlib import Path

from quorate_core.errors import SettingsError
from quorate_raft import MemberRemoved, holds_log

from quorate_node.settings import ClusterState, NodeSettings

RAFT_FOLDER = "raft"
REMOVED_MARK = "removed"
"""In the data folder, beside the log: holds the sentence that says by whom."""


def require_memory(settings: NodeSettings) -> None:
    """Check, before anything is written, that this member may start.

    Raises MemberRemoved for one that was removed, and SettingsError for one that has lost its log.
    """
    mark = settings.data_dir / REMOVED_MARK
    if mark.exists():
        raise MemberRemoved(mark.read_text().strip())
    folder = settings.data_dir / RAFT_FOLDER
    why = _why_begun(settings)
    if why and not holds_log(folder):
        raise SettingsError(
            f"{folder} holds no log, but {settings.name} has been a member of this cluster ({why}): "
            "a member that has forgotten what it acknowledged must not vote. Put its folder back if it was moved. If "
            "it is lost, remove the member and add one under a new name: quorate cluster remove, quorate cluster add; "
            "if those of all members are lost, begin a new cluster: quorate reset"
        )


def note_begun(settings: NodeSettings) -> None:
    """Write the begun-file, if there is to be one; the log exists. Raises SettingsError when it cannot be written."""
    path = settings.begun_file
    if path is None or path.exists():
        return
    try:
        _write_durably(path, f"{settings.name} of {settings.cluster_id}\n")
    except OSError as error:
        raise SettingsError(f"--begun-file {path} cannot be written: {error.strerror}") from error


def note_removed(settings: NodeSettings, removal: MemberRemoved) -> MemberRemoved:
    """Leave the mark; returns the error to end with, which says what to do with the folder."""
    told = f"{removal.detail}. {settings.data_dir} can be deleted"
    try:
        _write_durably(settings.data_dir / REMOVED_MARK, told + "\n")
    except OSError as error:
        told += f" (it could not be marked: {error.strerror})"
    return MemberRemoved(told)


def _why_begun(settings: NodeSettings) -> str:
    if settings.cluster_state is ClusterState.EXISTING:
        return "--cluster-state existing"
    if settings.begun_file is not None and settings.begun_file.exists():
        return f"--begun-file {settings.begun_file} is there"
    return ""


def _write_durably(path: Path, text: str) -> None:
    """Whoever reads `path`, after a crash too, sees it whole or not at all."""
    aside = path.with_name(f"{path.name}.new")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
