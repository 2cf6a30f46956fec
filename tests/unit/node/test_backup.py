"""How a node gives a backup away: one at a time, within its disk, whole or broken off, and with nothing left of it."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import ManualClock
from quorate_core.errors import NotProposed, TooManyRequests, Unavailable
from quorate_core.tasks import TaskOwner
from quorate_node import backup as backups
from quorate_node.backup import BackupApi, MemberBackups
from quorate_raft import Membership
from quorate_store.backup import BackupHeader, BackupReader, DamagedBackup
from quorate_store.database import StateUnusable
from quorate_store.model import PutOp
from quorate_store.state import StateMachine
from support import plain_http
from support.node_app import LOOPBACK, client_of, served
from support.store_backups import MIB, apply, opened

NOTED_S = 1_782_907_200.0
URL = "/v1/cluster/snapshot"
WAIT_S_MAX = 10


@dataclass(frozen=True)
class Member:
    name: str = "node-1"
    membership: Membership = field(default_factory=lambda: Membership.of_voters({"node-1": "10.0.0.1:7501"}))


@dataclass
class Log:
    """A member's log, with a leader that answers or does not."""

    refusal: Exception | None = None
    barriers: int = 0

    async def read_index(self, timeout_s: float) -> int:
        assert timeout_s > 0
        self.barriers += 1
        if self.refusal is not None:
            raise self.refusal
        return 0

    def status(self) -> Member:
        return Member()


@asynccontextmanager
async def member(folder: Path, log: Log | None = None) -> AsyncIterator[tuple[StateMachine, MemberBackups]]:
    machine = opened(folder / "state")
    apply(machine, *(PutOp(b"k%d" % number, os.urandom(1000)) for number in range(2_000)))
    yield machine, MemberBackups(machine, log or Log(), "cluster", folder, ManualClock(NOTED_S))
    machine.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0)


def read(data: bytes) -> BackupHeader:
    reader = BackupReader()
    reader.feed(data)
    return reader.finish()


async def test_what_is_sent_is_a_whole_backup_that_says_of_whom_and_when(tmp_path: Path) -> None:
    log = Log()
    async with member(tmp_path, log) as (machine, made), made.take(may_be_stale=False) as backup:
        data = b"".join([piece async for piece in backup.pieces()])
        header = read(data)
        assert len(data) == backup.size_bytes
        assert (header.cluster_id, header.member, header.taken_at) == ("cluster", "node-1", "2026-07-01T12:00:00Z")
        assert (header.index, header.term, header.revision) == (machine.applied_index, 3, machine.revision)
        assert [each.address for each in header.members] == ["10.0.0.1:7501"]
        assert (header.is_complete, log.barriers) == (True, 1)
        # There is no name for it any more: whatever becomes of the process, nothing is left.
        assert names(tmp_path) == ["state"]


async def test_it_is_as_of_one_entry_while_others_are_applied(tmp_path: Path) -> None:
    async with member(tmp_path) as (machine, made), made.take(may_be_stale=False) as backup:
        index = machine.applied_index
        pieces = backup.pieces()
        data = await anext(pieces)
        apply(machine, *(PutOp(b"k%d" % number, b"later") for number in range(2_000)))
        data += b"".join([piece async for piece in pieces])
        assert read(data).index == index


async def test_a_member_that_can_ask_no_leader_gives_only_what_it_is_told_to(tmp_path: Path) -> None:
    log = Log(NotProposed("no leader is known"))
    async with member(tmp_path, log) as (_, made):
        with pytest.raises(NotProposed):
            await made.take(may_be_stale=False).__aenter__()
        async with made.take(may_be_stale=True) as backup:
            assert backup.header.is_complete is False


async def test_there_is_one_at_a_time(tmp_path: Path) -> None:
    async with member(tmp_path) as (_, made):
        async with made.take(may_be_stale=False):
            with pytest.raises(TooManyRequests):
                await made.take(may_be_stale=False).__aenter__()
        async with made.take(may_be_stale=False) as backup:
            assert backup.header.index == 2_000


async def test_the_room_that_the_log_needs_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "ROOM_LEFT_BYTES_MIN", 2**62)
    async with member(tmp_path) as (_, made):
        with pytest.raises(Unavailable, match="ask another member"):
            await made.take(may_be_stale=False).__aenter__()
    assert names(tmp_path) == ["state"]


class FullDisk(StateMachine):
    """A state that no copy can be made of, while it has room for itself."""

    def save_snapshot(self, path: Path) -> tuple[int, int]:
        path.write_bytes(b"as much as there was room for")
        raise StateUnusable("the disk is full")


async def test_a_copy_that_fails_leaves_nothing_and_another_one_can_be_tried(tmp_path: Path) -> None:
    machine = FullDisk(tmp_path / "state", map_bytes=MIB)
    made = MemberBackups(machine, Log(), "cluster", tmp_path, ManualClock(NOTED_S))
    for _ in range(2):
        with pytest.raises(StateUnusable, match="the disk is full"):
            await made.take(may_be_stale=False).__aenter__()
        assert names(tmp_path) == ["state"]
    machine.close()


async def test_what_a_killed_process_has_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "data.mdb").write_bytes(b"half a copy")
    async with member(tmp_path):
        assert not (tmp_path / "backup").exists()


class SlowDisk(StateMachine):
    """A state whose copy takes until it is let go."""

    begun = threading.Event()
    let_go = threading.Event()

    def save_snapshot(self, path: Path) -> tuple[int, int]:
        self.begun.set()
        assert self.let_go.wait(WAIT_S_MAX)
        return super().save_snapshot(path)


async def test_one_that_is_cancelled_while_it_is_copied_makes_room_when_the_copy_has_ended(tmp_path: Path) -> None:
    machine = SlowDisk(tmp_path / "state", map_bytes=MIB)
    apply(machine, PutOp(b"k", b"v"))
    made = MemberBackups(machine, Log(), "cluster", tmp_path, ManualClock(NOTED_S))

    async def take() -> None:
        async with made.take(may_be_stale=False):
            pass

    async with TaskOwner("test") as tasks, asyncio.timeout(WAIT_S_MAX):
        taking = tasks.start(take(), "take")
        await until(machine.begun.is_set)
        taking.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert made.is_busy, "the thread still writes there"
        machine.let_go.set()
        await asyncio.wait({taking})
    await take()
    assert names(tmp_path) == ["state"]
    machine.close()


def api_of(made: MemberBackups | None) -> tuple[Surface, httpx.AsyncClient]:
    surface = Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None))
    api = create_app(surface)
    BackupApi(made, surface.stopping).mount(api)
    return surface, client_of(api)


async def test_over_http_it_is_a_file(tmp_path: Path) -> None:
    async with member(tmp_path) as (machine, made):
        answer = await api_of(made)[1].get(URL)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
        assert read(answer.content).index == machine.applied_index


async def test_over_http_a_refusal_is_a_problem(tmp_path: Path) -> None:
    async with member(tmp_path, Log(NotProposed("no leader is known"))) as (_, made):
        client = api_of(made)[1]
        answer = await client.get(URL)
        assert (answer.status_code, answer.json()["retry"]) == (503, "safe")
        assert (await client.get(URL, params={"stale": "true"})).status_code == 200
    answer = await api_of(None)[1].get(URL)
    assert (answer.status_code, "no member of the store" in answer.json()["detail"]) == (501, True)


@asynccontextmanager
async def begun(made: MemberBackups, surface: Surface, app: object) -> AsyncIterator[asyncio.StreamReader]:
    """A client that has asked, and reads no further than the head."""
    async with served(app) as url:
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET %b HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" % URL.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        yield reader
        writer.close()


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """All that still comes; a connection that was aborted ends it."""
    data = b""
    try:
        while piece := await reader.read(65_536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def unchunked(data: bytes) -> tuple[bytes, bool]:
    """The body, as far as it came, and whether it was ended."""
    body = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size or b"0", 16)
        if length == 0:
            return body, True
        body += rest[:length]
        data = rest[length + 2 :]
    return body, False


@pytest.mark.parametrize("why", ["stopping", "stalled"])
async def test_one_that_cannot_be_sent_to_its_end_does_not_look_like_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "stalled":
        monkeypatch.setattr(backups, "SEND_STALL_S", 0.05)
    machine = opened(tmp_path / "state")
    apply(machine, *(PutOp(b"k%d" % number, os.urandom(1_000_000)) for number in range(20)))
    made = MemberBackups(machine, Log(), "cluster", tmp_path, ManualClock(NOTED_S))
    surface = Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None))
    api = create_app(surface)
    BackupApi(made, surface.stopping).mount(api)
    async with asyncio.timeout(WAIT_S_MAX), begun(made, surface, api) as reader:
        if why == "stopping":
            surface.stopping.set()
        await until(lambda: not made.is_busy)
        body, is_ended = unchunked(await rest_of(reader))
    assert not is_ended
    with pytest.raises(DamagedBackup):
        read(body)
    machine.close()


async def test_a_client_that_goes_away_makes_room_for_the_next(tmp_path: Path) -> None:
    machine = opened(tmp_path / "state")
    apply(machine, *(PutOp(b"k%d" % number, os.urandom(1_000_000)) for number in range(20)))
    made = MemberBackups(machine, Log(), "cluster", tmp_path, ManualClock(NOTED_S))
    surface = Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None))
    api = create_app(surface)
    BackupApi(made, surface.stopping).mount(api)
    async with asyncio.timeout(WAIT_S_MAX), served(api) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET %b HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" % URL.encode())
        await until(lambda: made.is_busy)
        writer.transport.abort()
        await until(lambda: not made.is_busy)
        async with plain_http.async_client() as client:
            assert read((await client.get(url + URL)).content).index == 20
    machine.close()
