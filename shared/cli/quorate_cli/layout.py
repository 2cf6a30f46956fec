"""Where a local platform keeps its things: one folder, `.quorate/` unless another is named.

cluster.json           the cluster's id, its number of nodes, and what was begun; also the mark that the folder is ours
cluster.secret  token  generated at first start, readable by their owner only
data/<part>/           what must survive: the nodes' logs and state, the services' databases, last good copies
logs/<part>.log        what each part printed
run/lock               held by the supervisor for as long as it lives
run/state.json         what runs where, for the other commands (`quorate_cli.run_state`)
"""

import fcntl
import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from quorate_core.errors import Conflict, InvalidContent, NotFound
from quorate_core.secrets import load_or_create_secret

ROOT_VARIABLE = "QUORATE_ROOT"
PROJECT_VARIABLE = "QUORATE_PROJECT"
"""The checkout that the launcher script stands in; its `.quorate/` is used when the current folder has none."""
ROOT_NAME = ".quorate"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the first start decided and no later start may change, and what must not be begun a second time."""

    cluster_id: str
    nodes: int
    begun_nodes: tuple[str, ...] = ()
    """Nodes that have been ready once: what they acknowledged is in their folders, and they do not start without it."""
    removed_nodes: tuple[str, ...] = ()
    """Nodes that the cluster has removed. They are never started again, and their folders may be gone."""
    has_documents: bool = False
    """The default documents were published. One that is missing since then was deleted on purpose."""


@dataclass(frozen=True, slots=True)
class Layout:
    root: Path

    @property
    def cluster_file(self) -> Path:
        return self.root / "cluster.json"

    @property
    def secret_file(self) -> Path:
        return self.root / "cluster.secret"

    @property
    def token_file(self) -> Path:
        return self.root / "token"

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def logs_dir(self) -> Path:
        return self.root / "logs"

    @property
    def run_dir(self) -> Path:
        return self.root / "run"

    @property
    def lock_file(self) -> Path:
        return self.run_dir / "lock"

    @property
    def state_file(self) -> Path:
        return self.run_dir / "state.json"

    def log_file(self, part: str) -> Path:
        return self.logs_dir / f"{part}.log"

    def make(self) -> None:
        """Make the folders. Only their owner may enter: secrets and customers' data lie in them."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.data_dir, self.logs_dir, self.run_dir):
            folder.mkdir(mode=0o700, exist_ok=True)


def find_root(explicit: Path | None = None) -> Path:
    """The platform's folder: `explicit`, else QUORATE_ROOT, else the nearest `.quorate/` from here upwards, else the
    one of the checkout that the launcher stands in, else `.quorate/` here. It need not exist yet."""
    if explicit is not None:
        return explicit.absolute()
    named = os.environ.get(ROOT_VARIABLE)
    if named:
        return Path(named).absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ROOT_NAME / "cluster.json").is_file():
            return folder / ROOT_NAME
    return Path(os.environ.get(PROJECT_VARIABLE) or here).absolute() / ROOT_NAME


def open_cluster(layout: Layout, nodes: int | None) -> tuple[Cluster, bool]:
    """The cluster kept in the folder, made with its secrets on the first start (then the second value is true).

    `nodes` is how many are asked for; None takes what the folder has, or three. Raises Conflict when the folder's
    cluster has another number, since members cannot be added or removed by starting more or fewer.
    """
    is_first = not layout.cluster_file.exists()
    if is_first:
        cluster = Cluster(new_cluster_id(), nodes or 3)
        write_cluster(layout, cluster)
    else:
        cluster = _read_cluster(layout.cluster_file)
    if nodes is not None and nodes != cluster.nodes:
        raise Conflict(
            f"the data in {layout.root} is that of a cluster of {cluster.nodes} node(s), not of {nodes}. "
            f"Start it with --nodes {cluster.nodes}, or remove the data first: quorate reset. A member more or less, "
            "while it runs: quorate cluster add, quorate cluster remove"
        )
    load_or_create_secret(layout.secret_file)
    load_or_create_secret(layout.token_file)
    return cluster, is_first


def new_cluster_id() -> str:
    """An id that no other cluster has."""
    return "quorate-" + secrets.token_hex(8)


def write_cluster(layout: Layout, cluster: Cluster) -> None:
    """Durable when it returns. Raises OSError."""
    write_atomically(layout.cluster_file, json.dumps(asdict(cluster)))


def _read_cluster(path: Path) -> Cluster:
    try:
        found = json.loads(path.read_text())
        begun = tuple(str(name) for name in found.get("begun_nodes", ()))
        removed = tuple(str(name) for name in found.get("removed_nodes", ()))
        return Cluster(str(found["cluster_id"]), int(found["nodes"]), begun, removed, bool(found.get("has_documents")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidContent(
            f"{path} cannot be understood ({error}). It names the cluster that the data belongs to: "
            "restore it from a copy, or remove all data: quorate reset"
        ) from error


def write_atomically(path: Path, text: str, is_durable: bool = True) -> None:
    """Whoever reads `path` sees the old content or the new, never a part of it; `is_durable`: also after a crash."""
    aside = path.with_name(f"{path.name}.new")
    with aside.open("w") as file:
        file.write(text)
        if is_durable:
            file.flush()
            os.fsync(file.fileno())
    aside.replace(path)
    if is_durable:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class RunLock:
    """The exclusive right to run or remove what is in one folder. The kernel gives it back when its holder ends."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.lock_file
        self._descriptor = -1

    def try_acquire(self) -> bool:
        """False when another process has it."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            # NB: `reset` unlinks the file; a lock on a file that nobody can find any more locks nothing.
            if self._is_current(descriptor):
                self._descriptor = descriptor
                return True
            os.close(descriptor)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_current(self, descriptor: int) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        mine = os.fstat(descriptor)
        return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def remove_everything(layout: Layout) -> None:
    """Remove what the platform keeps, and nothing that others have put into the folder. The caller holds the lock.

    Raises NotFound when the folder does not bear our mark.
    """
    if not layout.cluster_file.exists():
        raise NotFound(f"{layout.root} holds no data of a platform; nothing was removed")
    for folder in (layout.data_dir, layout.logs_dir):
        shutil.rmtree(folder, ignore_errors=False) if folder.exists() else None
    for file in (layout.secret_file, layout.token_file, layout.state_file):
        file.unlink(missing_ok=True)
    # NB: the mark goes after the data, so that a removal that was interrupted can be repeated.
    layout.cluster_file.unlink()
    shutil.rmtree(layout.run_dir)
    if not any(layout.root.iterdir()):
        layout.root.rmdir()
