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
after the parent has died; no fork happens between opening a file and noting it for that. The folder must be the user's
own and closed to others. Where it is not, or cannot be made, each process keeps the registration for itself, as one
process alone does. Nothing here is needed for the registration to come right: members that do not find each other,
because somebody has removed the files, deregister at worst what the others register again with their next heartbeat.
"""

import fcntl
import hashlib
import json
import os
import stat
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from quorate_sdk.forks import ForkSafeLogger, fork_lock

STAMP_AGE_PER_TTL = 0.5
"""A keeper stamps at least each third of the time to live. At half of it, there is still time to renew."""
STAND_BY_S_MIN, STAND_BY_S_MAX = 0.1, 1.0
STAND_BY_PER_TTL = 0.1
"""How often one that stands by looks: a heartbeat is missed for so long at most when the keeper is killed."""
BOOT_S_MAX = 10.0
"""How long the last member waits for one that is being started; it goes on serving meanwhile. Within gunicorn's
graceful timeout of 30 s."""
BOOT_PROBE_S = 0.05
MUTEX_S_MAX = 2.0
"""The mutex is held for a few system calls. Who holds it longer is stopped, and is not waited for."""
MUTEX_PROBE_S = 0.005
STAMP_BYTES = 256
MEMBERS_MAX = 4_096
"""Files of members that are looked at; far above the workers of one machine."""

log = ForkSafeLogger(__name__)


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
        self._has_master = gunicorn_is_in("spawn_worker")
        with self._mutex():
            _groups.add(self)
            self._keeper = _open(folder / "keeper")
            self._member = _open(self._own)
            fcntl.flock(self._member, fcntl.LOCK_EX)
            self._note(leaving=False)

    def is_keeper(self) -> bool:
        if not self._holds_keeper and self._keeper >= 0:
            self._holds_keeper = _try_lock(self._keeper)
        return self._holds_keeper

    def stamp(self, stamp: Stamp) -> None:
        content = json.dumps(asdict(stamp)).encode().ljust(STAMP_BYTES)
        try:
            os.pwrite(self._keeper, content, 0)
        except OSError as error:
            # A full disk must not cost the registration: at worst others renew it besides.
            log.warning("registration_not_stamped", folder=str(self._folder), error=str(error))

    def last_stamp(self) -> Stamp | None:
        try:
            return Stamp(**json.loads(os.pread(self._keeper, STAMP_BYTES, 0)))
        except (ValueError, TypeError):
            return None  # none yet, or read while it was written: the next look sees it

    def leave(self) -> Farewell:
        try:
            with self._mutex():
                self._note(leaving=True)
                members = list(self._others())
                if any(not leaving for _, leaving in members):
                    self._let_go()
                    return Farewell.OTHERS_GO_ON
                is_booting = self._has_master and bool(_siblings() - {pid for pid, _ in members})
                return Farewell.LAST if self.is_keeper() and not is_booting else Farewell.UNDECIDED
        except TimeoutError:
            return Farewell.UNDECIDED

    def close(self) -> None:
        """Removes the folder after the last member. Under gunicorn the member's own lock is kept until the process
        ends, so that others see that this process is none that is being started."""
        try:
            with self._mutex():
                self._close()
                if not self._has_master and not any(True for _ in self._others()):
                    for name in ("keeper", "mutex"):
                        (self._folder / name).unlink(missing_ok=True)
                    self._folder.rmdir()
        except OSError as error:
            self._close()
            log.warning("registration_folder_left", folder=str(self._folder), error=str(error))

    def _close(self) -> None:
        self._let_go()
        _groups.discard(self)
        if self._keeper >= 0:
            os.close(self._keeper)
            self._keeper = -1
        if self._member >= 0 and not self._has_master:
            fcntl.flock(self._member, fcntl.LOCK_UN)
            os.close(self._member)
            self._member = -1
            self._own.unlink(missing_ok=True)

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
        """Raises TimeoutError when a process that is stopped holds it."""
        descriptor = _lock_mutex(self._folder)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)
            fork_lock.release()


_groups: "weakref.WeakSet[WorkerGroup]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for group in list(_groups):
        group.close_in_child()
    _groups.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


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


def gunicorn_is_in(function: str) -> bool:
    """Whether gunicorn's arbiter has called us, by this function of its own: `setup` in a master that imports the
    application, `spawn_worker` in a worker. It has no public way to ask."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - documented for debuggers
    while frame is not None:
        if frame.f_globals.get("__name__") == "gunicorn.arbiter" and frame.f_code.co_name == function:
            return True
        frame = frame.f_back
    return False


def _siblings() -> set[int]:
    """The other children of this process's parent. Of gunicorn's master, those that are no members are importing the
    application, it may be. Empty where there is no /proc."""
    parent = os.getppid()
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return set()
    return {int(child) for child in children} - {os.getpid()}


def _lock_mutex(folder: Path) -> int:
    """Locks the group's mutex, made if need be, and `fork_lock`: a child made meanwhile would have copies of files that
    nobody closes. Who has waited for one that was removed with its folder meanwhile has locked nothing, and takes the
    new one. Raises TimeoutError after MUTEX_S_MAX seconds."""
    deadline_s = time.monotonic() + MUTEX_S_MAX
    while time.monotonic() < deadline_s:
        fork_lock.acquire()
        is_locked = False
        descriptor = -1
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = _open(folder / "mutex")
            is_locked = _try_lock(descriptor) and os.fstat(descriptor).st_ino == (folder / "mutex").stat().st_ino
            if is_locked:
                return descriptor
        except FileNotFoundError:
            pass  # the folder was removed in between
        finally:
            if not is_locked:
                if descriptor >= 0:
                    os.close(descriptor)
                fork_lock.release()
        time.sleep(MUTEX_PROBE_S)
    raise TimeoutError(f"another process holds {folder / 'mutex'} and goes on with nothing")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
