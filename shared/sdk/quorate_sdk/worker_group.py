"""The processes that serve one listening socket, and which of them keeps its one registration.

uvicorn's and gunicorn's workers accept from the same socket, so to everybody else they are one instance. Each of them
runs a keeper (`quorate_sdk.heartbeat`); the group decides, by files in a folder that they share, which keeper acts:

    member      has joined: its own file is locked for as long as it lives.
    keeper      the one member that holds the lock on `keeper`. It stamps the file at every step. When it dies, however
                that happens, the kernel frees the lock, and another member takes it at its next look.
    standing by all others. One that finds the stamp too old (a keeper that is stopped, or held up by a C call that
                does not give up the interpreter's lock) sends one heartbeat in its place, and stamps.
    leaving     told to end. Who is not the last member only lets go of the lock: the others go on. The last one leaves
                the registry first, and ends then.

gunicorn tells its old workers to end while the new ones still import the application. So the last one, before it calls
itself that, waits for such a process, and keeps the registration meanwhile: it joins, or ends, or takes too long.

Locks are flock's: they belong to an open file, so a forked child closes its copies, lest it hold its parent's lock
after the parent has died. The folder must be the user's own and closed to others. Where it is not, or cannot be made,
each process keeps the registration for itself, as one process alone does.
"""

import fcntl
import hashlib
import json
import os
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import structlog

STAMP_AGE_PER_TTL = 0.5
"""A keeper stamps at least each third of the time to live. At half of it, there is still time to renew."""
STAND_BY_S_MIN, STAND_BY_S_MAX = 0.1, 1.0
STAND_BY_PER_TTL = 0.1
"""How often one that stands by looks: a heartbeat is missed for so long at most when the keeper is killed."""
BOOT_S_MAX = 10.0
"""How long the last member waits for one that is being started; it goes on serving meanwhile. Within gunicorn's
graceful timeout of 30 s."""
BOOT_PROBE_S = 0.05
STAMP_BYTES = 256
MEMBERS_MAX = 4_096
"""Files of members that are looked at; far above the workers of one machine."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the acting member last did. `at_s`: on the machine's monotonic clock, which processes share. `spec`: a
    digest of what was registered. `revision`: of the registration; 0 while there is none."""

    at_s: float
    spec: str
    revision: int

    def is_overdue(self, now_s: float, ttl_s: float) -> bool:
        """A stamp from the future is one of before the machine was started again."""
        return not 0.0 <= now_s - self.at_s <= ttl_s * STAMP_AGE_PER_TTL


class Farewell(Enum):
    """What leaving the group means for the registration."""

    OTHERS_GO_ON = "others go on"
    """It is theirs now."""
    LAST = "last"
    """Whoever leaves deregisters, and calls `Group.close` then."""
    UNDECIDED = "undecided"
    """A member is being started, or another one that leaves has not let go yet: keep it, and ask again soon."""


def stand_by_s(ttl_s: float) -> float:
    """Seconds between two looks of a member that stands by."""
    return min(STAND_BY_S_MAX, max(STAND_BY_S_MIN, ttl_s * STAND_BY_PER_TTL))


class Group(Protocol):
    """What a keeper asks. Every call returns at once."""

    def is_keeper(self) -> bool:
        """Whether this member is to act; takes the place if it is free."""
        ...

    def stamp(self, stamp: Stamp) -> None: ...

    def last_stamp(self) -> Stamp | None: ...

    def leave(self) -> Farewell: ...

    def close(self) -> None: ...


class Alone:
    """The group of a process that shares its socket with nobody."""

    def is_keeper(self) -> bool:
        return True

    def stamp(self, stamp: Stamp) -> None:
        pass

    def last_stamp(self) -> Stamp | None:
        return None

    def leave(self) -> Farewell:
        return Farewell.LAST

    def close(self) -> None:
        pass


class WorkerGroup:
    """One process's membership. Used by one thread, save that `close` may come from another one at the end."""

    def __init__(self, folder: Path) -> None:
        """Joins. `folder`: the group's, made when it is missing. Raises OSError."""
        self._folder = folder
        self._own = folder / f"member-{os.getpid()}-{os.urandom(4).hex()}"
        self._holds_keeper = False
        self._keeper = self._member = -1
        with self._mutex():
            self._keeper = _open(folder / "keeper")
            self._member = _open(self._own)
            fcntl.flock(self._member, fcntl.LOCK_EX)
            self._note(leaving=False)
        _groups.add(self)

    def is_keeper(self) -> bool:
        if not self._holds_keeper and self._keeper >= 0:
            self._holds_keeper = _try_lock(self._keeper)
        return self._holds_keeper

    def stamp(self, stamp: Stamp) -> None:
        content = json.dumps(asdict(stamp)).encode().ljust(STAMP_BYTES)
        os.pwrite(self._keeper, content, 0)

    def last_stamp(self) -> Stamp | None:
        try:
            return Stamp(**json.loads(os.pread(self._keeper, STAMP_BYTES, 0)))
        except (ValueError, TypeError):
            return None  # none yet, or read while it was written: the next look sees it

    def leave(self) -> Farewell:
        with self._mutex():
            self._note(leaving=True)
            members = list(self._others())
            if any(not leaving for _, leaving in members):
                self._let_go()
                return Farewell.OTHERS_GO_ON
            is_booting = bool(_booting_siblings(pid for pid, _ in members))
            return Farewell.LAST if self.is_keeper() and not is_booting else Farewell.UNDECIDED

    def close(self) -> None:
        """Removes the folder after the last member. Under gunicorn the member's own lock is kept until the process
        ends, so that others see that this process is none that is being started."""
        _groups.discard(self)
        if self._keeper < 0:
            return
        with self._mutex():
            self._let_go()
            os.close(self._keeper)
            self._keeper = -1
            if _is_gunicorn_worker():
                return
            os.close(self._member)
            self._member = -1
            self._own.unlink(missing_ok=True)
            if not any(True for _ in self._others()):
                for name in ("keeper", "mutex"):
                    (self._folder / name).unlink(missing_ok=True)
                self._folder.rmdir()

    def close_in_child(self) -> None:
        """After a fork: let go of the copies, which unlocks nothing for the parent."""
        for descriptor in (self._keeper, self._member):
            if descriptor >= 0:
                os.close(descriptor)
        self._keeper = self._member = -1
        self._holds_keeper = False

    def _let_go(self) -> None:
        if self._holds_keeper:
            self._holds_keeper = False
            fcntl.flock(self._keeper, fcntl.LOCK_UN)

    def _note(self, *, leaving: bool) -> None:
        os.pwrite(self._member, json.dumps({"pid": os.getpid(), "leaving": leaving}).encode().ljust(STAMP_BYTES), 0)

    def _others(self) -> Iterator[tuple[int, bool]]:
        """The other members that live: process id, and whether it is leaving. Removes the files of those that have
        died. Call it with the mutex, so that no member is between making its file and locking it."""
        for position, path in enumerate(sorted(self._folder.glob("member-*"))):
            if position >= MEMBERS_MAX:
                return
            if path == self._own:
                continue
            descriptor = _open(path)
            try:
                if _try_lock(descriptor):
                    path.unlink(missing_ok=True)
                    continue
                noted = json.loads(os.pread(descriptor, STAMP_BYTES, 0))
                yield int(noted["pid"]), bool(noted["leaving"])
            except (ValueError, KeyError, TypeError):
                yield 0, False  # whoever it is lives, and has not said that it leaves
            finally:
                os.close(descriptor)

    @contextmanager
    def _mutex(self) -> Iterator[None]:
        """Held for a few system calls; a process that is stopped within them holds up only joining and leaving."""
        descriptor = _lock_mutex(self._folder)
        try:
            yield
        finally:
            os.close(descriptor)


_groups: "weakref.WeakSet[WorkerGroup]" = weakref.WeakSet()


def _close_all_in_child() -> None:
    for group in list(_groups):
        group.close_in_child()
    _groups.clear()


os.register_at_fork(after_in_child=_close_all_in_child)


def join_group(
    endpoints: Iterable[str],
    namespace: str,
    service: str,
    instance_id: str,
    environment: Mapping[str, str] | None = None,
) -> Group:
    """The group of those on this machine who register this instance at this control plane; `Alone` where there is no
    folder for it."""
    named = json.dumps([sorted(endpoints), namespace, service, instance_id])
    name = f"{service}-{hashlib.sha256(named.encode()).hexdigest()[:24]}"
    try:
        folder = runtime_folder(os.environ if environment is None else environment)
        return WorkerGroup(folder / name)
    except OSError as error:
        log.warning("registration_not_shared", service=service, id=instance_id, error=str(error))
        return Alone()


def runtime_folder(environment: Mapping[str, str]) -> Path:
    """QUORATE_RUNTIME_DIR, else a folder of the user's own among the machine's temporary ones. Raises OSError for one
    that others could write to, or that is another user's: a lock in it would be anybody's."""
    given = environment.get("QUORATE_RUNTIME_DIR") or environment.get("XDG_RUNTIME_DIR")
    folder = Path(given) / "quorate" if given else Path(tempfile.gettempdir()) / f"quorate-{os.geteuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not a folder that only this user can write to")
    return folder


def _is_gunicorn_worker() -> bool:
    return "gunicorn.arbiter" in sys.modules


def _booting_siblings(known: Iterable[int]) -> set[int]:
    """Processes of this one's gunicorn master that have not joined: they are importing the application, it may be.
    Empty under other servers, and where there is no /proc."""
    if not _is_gunicorn_worker():
        return set()
    parent = os.getppid()
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return set()
    return {int(child) for child in children} - set(known) - {os.getpid()}


def _lock_mutex(folder: Path) -> int:
    """Locks the group's mutex, made if need be. Who has waited for one that was removed with its folder meanwhile has
    locked nothing, and takes the new one."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            descriptor = _open(folder / "mutex")
        except FileNotFoundError:
            continue  # the folder was removed in between
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.fstat(descriptor).st_ino == (folder / "mutex").stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
