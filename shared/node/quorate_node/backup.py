"""`/v1/cluster/snapshot`: a backup of this member's state (`quorate_store.backup`), streamed to whoever keeps it.

The state is first copied to a file beside it, while entries are applied, and only then sent: however slow the receiver
is, LMDB keeps no old pages for it. The file has no name any more by then, so that nothing is left of it when this
process ends, whichever way. One backup at a time is made, and only while the disk has room for more than it.

What was acknowledged before the request is in it: the member asks the leader how far that is, and waits until it has
come so far. Without a leader it can be told to take what it has.
"""

import asyncio
import datetime
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Protocol

import structlog
from fastapi import APIRouter, FastAPI, Query, Response
from quorate_core.clock import Clock
from quorate_core.errors import NotImplementedHere, TooManyRequests, Unavailable
from quorate_core.http_protocol import ABORT_EXTENSION
from quorate_raft.core.membership import Membership
from quorate_store.backup import CHUNK_BYTES, FORMAT_VERSION, BackupHeader, BackupMember, encode_head
from quorate_store.database import DATA_FILE_NAME
from quorate_store.revival import read_meta
from starlette.types import Receive, Scope, Send

BACKUP_FOLDER = "backup"
BARRIER_TIMEOUT_S = 5.0
ROOM_LEFT_BYTES_MIN = 64 * 1024 * 1024
"""Must still be free beside a copy: four segments of the log. A member whose disk is full stops."""
SEND_STALL_S = 30.0
"""A receiver that takes nothing for so long is given up."""
SEND_BYTES = 256 * 1024
"""Read and sent at once."""

_HEADERS = [
    (b"content-type", b"application/octet-stream"),
    (b"content-disposition", b'attachment; filename="quorate.snapshot"'),
    (b"cache-control", b"no-store"),
]

log = structlog.get_logger(__name__)


class CopiedState(Protocol):
    """`quorate_store.state.StateMachine`, as far as it is copied."""

    @property
    def size_bytes(self) -> int: ...
    def save_snapshot(self, path: Path) -> tuple[int, int]: ...


class CopiedMember(Protocol):
    """`quorate_raft.RaftStatus`, as far as it is told."""

    @property
    def name(self) -> str: ...
    @property
    def membership(self) -> Membership: ...


class CopiedLog(Protocol):
    """`quorate_raft.RaftDriver`, as far as it is asked."""

    async def read_index(self, timeout_s: float) -> int: ...
    def status(self) -> CopiedMember: ...


@dataclass(frozen=True, slots=True)
class Backup:
    """One that is ready to be sent, for as long as its context is open."""

    header: BackupHeader
    head: bytes
    descriptor: int

    @property
    def size_bytes(self) -> int:
        return len(self.head) + self.header.size_bytes

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it. Reads off the event loop."""
        yield self.head
        offset = 0
        while offset < self.header.size_bytes:
            piece = await asyncio.to_thread(os.pread, self.descriptor, SEND_BYTES, offset)
            if not piece:
                raise OSError(f"the copy ends after {offset} of {self.header.size_bytes} bytes")
            offset += len(piece)
            yield piece


class MemberBackups:
    """Makes the backups of one running member, in a folder of its own beside its data."""

    def __init__(
        self, machine: CopiedState, raft_log: CopiedLog, cluster_id: str, data_dir: Path, clock: Clock
    ) -> None:
        self._machine = machine
        self._log = raft_log
        self._cluster_id = cluster_id
        self._folder = data_dir / BACKUP_FOLDER
        self._clock = clock
        self._is_busy = False
        self._clear_away()

    @asynccontextmanager
    async def take(self, *, may_be_stale: bool) -> AsyncIterator[Backup]:
        """A backup of now. `may_be_stale`: do not ask the leader whether anything is missing here.

        Raises NotProposed or DeadlineExceeded when there is no leader to ask, TooManyRequests while another one is
        taken, Unavailable when the disk has no room for it, and StateUnusable.
        """
        if self._is_busy:
            raise TooManyRequests("another snapshot of this member is being taken; one at a time")
        self._is_busy = True
        try:
            if not may_be_stale:
                await self._log.read_index(BARRIER_TIMEOUT_S)
            self._require_room()
            member = self._log.status()
            backup = await _to_its_end(partial(self._copy, member, is_complete=not may_be_stale))
            try:
                yield backup
            finally:
                _close_aside(backup)
        finally:
            self._is_busy = False

    @property
    def is_busy(self) -> bool:
        """One is being taken, or sent."""
        return self._is_busy

    def _require_room(self) -> None:
        free_bytes, wanted_bytes = shutil.disk_usage(self._folder.parent).free, self._machine.size_bytes
        if free_bytes < wanted_bytes + ROOM_LEFT_BYTES_MIN:
            raise Unavailable(
                f"a snapshot takes {wanted_bytes} bytes here for as long as it is sent, and the disk of "
                f"{self._folder.parent} has {free_bytes} free, of which {ROOM_LEFT_BYTES_MIN} are for the log; ask "
                "another member"
            )

    def _copy(self, member: CopiedMember, *, is_complete: bool) -> Backup:
        """Blocking, for a thread."""
        self._clear_away()
        self._folder.mkdir(mode=0o700)
        path = self._folder / DATA_FILE_NAME
        try:
            index, term = self._machine.save_snapshot(path)
            meta = read_meta(self._folder)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            self._clear_away()
        try:
            size_bytes, sha256 = _checksum_of(descriptor)
            header = BackupHeader(
                format_version=FORMAT_VERSION, cluster_id=self._cluster_id, member=member.name,
                members=tuple(BackupMember(each.name, each.address, each.is_learner)
                              for each in member.membership.members),
                index=index, term=term, revision=meta.revision, compact_revision=meta.compact_revision,
                is_complete=is_complete, taken_at=_readable_time(self._clock.wall_s()),
                written_by=version("quorate-node"), size_bytes=size_bytes, sha256=sha256,
            )  # fmt: skip
            return Backup(header, encode_head(header), descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def _clear_away(self) -> None:
        """Of this copy, or of one that a killed process has left."""
        shutil.rmtree(self._folder, ignore_errors=True)


class BackupApi:
    """The endpoint. `backups` is None on a node that is no member of the store."""

    def __init__(self, backups: MemberBackups | None, stopping: asyncio.Event) -> None:
        self._backups = backups
        self._stopping = stopping

    def mount(self, api: FastAPI) -> None:
        router = APIRouter(prefix="/v1/cluster", tags=["cluster"])
        octets = {"description": "The file.", "content": {"application/octet-stream": {}}}
        router.get("/snapshot", response_class=Response, responses={200: octets})(self.snapshot)
        api.include_router(router)

    async def snapshot(
        self, stale: Annotated[bool, Query(description="Do not ask a leader whether anything is missing.")] = False
    ) -> Response:
        """The state of this member, as a file for `quorate cluster snapshot`."""
        if self._backups is None:
            raise NotImplementedHere("this node is no member of the store, and has no state: ask a node that is one")
        return _BackupResponse(self._backups, stale, self._stopping)


class _BackupResponse(Response):
    """Takes a backup and sends it. One that cannot be sent to its end is broken off by the connection's end, so that
    nobody takes the part for the whole."""

    def __init__(self, backups: MemberBackups, may_be_stale: bool, stopping: asyncio.Event) -> None:
        super().__init__()
        self._backups = backups
        self._may_be_stale = may_be_stale
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._backups.take(may_be_stale=self._may_be_stale) as backup:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(_send_all(backup, send))
                ends = [sending, group.create_task(_until_gone(receive)), group.create_task(self._stopping.wait())]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                is_whole = sending.done()
                for task in ends:
                    task.cancel()
            if not (is_whole and sending.result()):
                _abort(scope)
                await asyncio.sleep(0)  # until the server has heard of it
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_all(backup: Backup, send: Send) -> bool:
    """False when the receiver takes nothing any more, or the copy cannot be read."""
    try:
        async for piece in backup.pieces():
            async with asyncio.timeout(SEND_STALL_S):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    except (TimeoutError, OSError) as error:
        log.warning("snapshot_not_sent", reason=str(error) or f"the receiver took nothing for {SEND_STALL_S:g} s")
        return False
    return True


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _abort(scope: Scope) -> None:
    extension = scope.get("extensions", {}).get(ABORT_EXTENSION)
    if extension is not None:
        extension["abort"]()


async def _to_its_end(work: Callable[[], Backup]) -> Backup:
    """Run `work` in a thread. NB: it goes on there when this is cancelled, and must have ended before anybody begins
    another one."""
    working = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        if working.exception() is None:
            _close_aside(working.result())
        raise


def _close_aside(backup: Backup) -> None:
    """In a thread: it gives back the file's room, and hundreds of megabytes would hold the event loop."""
    asyncio.get_running_loop().run_in_executor(None, os.close, backup.descriptor)


def _checksum_of(descriptor: int) -> tuple[int, str]:
    size_bytes, sha256 = 0, hashlib.sha256()
    while piece := os.pread(descriptor, CHUNK_BYTES, size_bytes):
        sha256.update(piece)
        size_bytes += len(piece)
    return size_bytes, sha256.hexdigest()


def _readable_time(wall_s: float) -> str:
    return datetime.datetime.fromtimestamp(wall_s, datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
