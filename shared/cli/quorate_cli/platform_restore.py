"""All nodes of a local platform, set back to what a snapshot holds, while none of it runs.

The new folders are made aside, while the present ones are still in place. Then the present ones are moved away, never
removed, the new ones take their places, and last the platform's own record names the new cluster. After a crash between
these moves the nodes' folders and the record name different clusters, and no node starts; to restore again does all of
it anew.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from quorate_core.errors import Conflict
from quorate_core.settings import HostPort
from quorate_node.restoring import Restoration, Restored, restore
from quorate_node.settings import Members
from quorate_store.backup import OnProgress

from quorate_cli.layout import Layout, RunLock, new_cluster_id, open_cluster, write_cluster
from quorate_cli.parts import HOST, node_name
from quorate_cli.run_state import read_run_state

PEER_PORT_FIRST = 7501
"""`quorate up` gives its nodes their addresses by itself, and they count; these are only where it begins."""
_MAKING = "restoring"
_BEFORE = "before-restore-"


@dataclass(frozen=True, slots=True)
class RestoredPlatform:
    """`moved_to`: where the data went that the nodes had, if they had any. `left_out`: folders of members that are not
    among the platform's own nodes."""

    restored: Restored
    nodes: tuple[str, ...]
    moved_to: Path | None
    left_out: tuple[str, ...]


def restore_platform(
    layout: Layout,
    file: Path,
    bump_revisions: int,
    stamp: str,
    confirm: Callable[[str], None],
    reading: Callable[[], AbstractContextManager[OnProgress]],
) -> RestoredPlatform:
    """Raises Conflict while the platform runs, DamagedBackup, and what the disk raises. `stamp` names the folder that
    the present data goes to; `reading` shows how far the file is read; `confirm` is asked, and may raise, before
    anything is moved."""
    layout.make()
    with _not_running(layout):
        cluster, _ = open_cluster(layout, None)
        nodes = tuple(node_name(at) for at in range(cluster.nodes))
        members = Members({name: HostPort(HOST, PEER_PORT_FIRST + at) for at, name in enumerate(nodes)})
        making = layout.data_dir / _MAKING
        shutil.rmtree(making, ignore_errors=True)
        try:
            wanted = Restoration(file, members, new_cluster_id(), bump_revisions)
            with reading() as on_progress:
                restored = restore(wanted, {name: making / name for name in nodes}, on_progress)
            moved = _present_folders(layout, nodes)
            confirm(_question(layout, restored, moved))
            moved_to = _exchange(layout, nodes, moved, making, stamp)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        write_cluster(
            layout,
            replace(cluster, cluster_id=restored.cluster_id, begun_nodes=nodes, removed_nodes=(), has_documents=True),
        )
    return RestoredPlatform(restored, nodes, moved_to, tuple(name for name in moved if name not in nodes))


def _present_folders(layout: Layout, nodes: tuple[str, ...]) -> list[str]:
    """Of all members that were ever kept here, those too that were added later."""
    members = {path.parent.name for path in layout.data_dir.glob("*/raft")} - {_MAKING}
    return sorted(members | {name for name in nodes if (layout.data_dir / name).exists()})


def _question(layout: Layout, restored: Restored, moved: list[str]) -> str:
    header = restored.contents.header
    present = f"The present data of {', '.join(moved)} is moved aside" if moved else "The nodes have no data yet"
    return (
        f"{present}, and the nodes in {layout.root} begin anew with {restored.contents.keys:,} keys as of "
        f"{header.taken_at}. Go on?"
    )


def _exchange(layout: Layout, nodes: tuple[str, ...], moved: list[str], making: Path, stamp: str) -> Path | None:
    moved_to = layout.data_dir / f"{_BEFORE}{stamp}"
    if moved:
        moved_to.mkdir(mode=0o700)
    for name in moved:
        (layout.data_dir / name).rename(moved_to / name)
    for name in nodes:
        (making / name).rename(layout.data_dir / name)
    return moved_to if moved else None


@contextmanager
def _not_running(layout: Layout) -> Iterator[None]:
    lock = RunLock(layout)
    if not lock.try_acquire():
        raise Conflict(f"the platform in {layout.root} runs; stop it first: quorate down")
    try:
        state = read_run_state(layout)
        if state is not None and state.living_parts:
            raise Conflict(
                f"parts of the last run are still ending: {', '.join(state.living_parts)}; stop them: quorate down"
            )
        yield
    finally:
        lock.release()
