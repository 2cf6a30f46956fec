"""A state that is copied beside the work that goes on, and replaced as a whole: by a snapshot, whenever it crashes."""

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from quorate_core.errors import Compacted
from quorate_raft.core.messages import Entry
from quorate_store import generations
from quorate_store.commands import Command, Compact, LeaseGrant, encode_command
from quorate_store.database import StateUnusable
from quorate_store.model import DeleteOp, PutOp, RangeOp
from quorate_store.state import StateMachine
from quorate_store.watches import WatchFeed

MIB = 1024 * 1024
ALL = RangeOp(b"\0", b"\0")


def entries_after(machine: StateMachine, *commands: Command) -> list[Entry]:
    first = machine.applied_index + 1
    return [Entry(first + at, 1, data=encode_command(command)) for at, command in enumerate(commands)]


def opened(folder: Path, boot_id: str = "boot-1") -> StateMachine:
    return StateMachine(folder, map_bytes=64 * MIB, boot_id=boot_id)


def grow(machine: StateMachine, keys: int, tag: bytes = b"v") -> None:
    machine.apply(entries_after(machine, *(PutOp(b"k%d" % number, tag) for number in range(keys))))


@pytest.fixture
def source(tmp_path: Path) -> Iterator[StateMachine]:
    """A state with history, deletions, a lease and a compaction."""
    machine = opened(tmp_path / "source")
    machine.apply(entries_after(machine, LeaseGrant(7, 60), PutOp(b"leased", b"x", lease=7)))
    grow(machine, 50)
    machine.apply(entries_after(machine, DeleteOp(b"k3"), Compact(20)))
    grow(machine, 20, b"newer")
    yield machine
    machine.close()


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[StateMachine]:
    machine = opened(tmp_path / "behind")
    grow(machine, 5, b"old")
    yield machine
    machine.close()


def taken(source: StateMachine, tmp_path: Path) -> Path:
    path = tmp_path / "snapshot.mdb"
    assert source.save_snapshot(path) == (source.applied_index, 1)
    return path


def test_a_restored_state_is_the_one_that_was_saved(source: StateMachine, behind: StateMachine, tmp_path: Path) -> None:
    path = taken(source, tmp_path)
    before = path.read_bytes()
    behind.restore_snapshot(path)()
    assert behind.state_hash() == source.state_hash()
    assert behind.range(ALL) == source.range(ALL)
    assert behind.applied_index == source.applied_index
    assert list(behind.leases.keys(7)) == [b"leased"]
    assert path.read_bytes() == before, "a snapshot stays as it is"
    # Both go on alike, and the copy is a copy.
    for machine in (source, behind):
        machine.apply(entries_after(machine, PutOp(b"after", b"x")))
    assert behind.state_hash() == source.state_hash()


def test_members_that_differ_have_different_hashes(source: StateMachine, behind: StateMachine, tmp_path: Path) -> None:
    behind.restore_snapshot(taken(source, tmp_path))()
    source.apply(entries_after(source, PutOp(b"k1", b"here")))
    behind.apply(entries_after(behind, PutOp(b"k1", b"there")))
    assert behind.state_hash() != source.state_hash()


def test_sweeping_does_not_change_the_hash(source: StateMachine) -> None:
    before = source.state_hash()
    while not source.is_swept:
        source.sweep(7)
    assert source.state_hash() == before


def test_a_snapshot_is_of_one_applied_index_though_work_goes_on(source: StateMachine, tmp_path: Path) -> None:
    path = taken(source, tmp_path)
    index, content = source.applied_index, source.range(ALL)
    grow(source, 30, b"later")
    other = opened(tmp_path / "other")
    other.restore_snapshot(path)()
    assert other.applied_index == index
    assert other.range(ALL) == content
    other.close()


def test_a_restored_state_is_there_after_a_restart(source: StateMachine, behind: StateMachine, tmp_path: Path) -> None:
    behind.restore_snapshot(taken(source, tmp_path))()
    behind.abandon()  # as kill -9 leaves it
    again = opened(tmp_path / "behind")
    assert again.state_hash() == source.state_hash()
    again.close()


def test_a_crash_before_the_swap_leaves_the_old_state(
    source: StateMachine, behind: StateMachine, tmp_path: Path
) -> None:
    before = behind.state_hash()
    behind.restore_snapshot(taken(source, tmp_path))  # and never swapped
    behind.abandon()
    again = opened(tmp_path / "behind")
    assert again.state_hash() == before
    again.restore_snapshot(tmp_path / "snapshot.mdb")()
    assert again.state_hash() == source.state_hash()
    again.close()


def test_after_a_crash_of_the_machine_the_state_is_empty_and_can_be_restored(
    source: StateMachine, behind: StateMachine, tmp_path: Path
) -> None:
    path = taken(source, tmp_path)
    behind.abandon()
    again = opened(tmp_path / "behind", boot_id="boot-2")
    assert again.applied_index == 0
    again.restore_snapshot(path)()
    assert again.state_hash() == source.state_hash()
    again.close()


def test_a_snapshot_of_no_more_than_is_there_is_refused(source: StateMachine, tmp_path: Path) -> None:
    path = taken(source, tmp_path)
    before = source.state_hash()
    with pytest.raises(StateUnusable, match="is applied"):
        source.restore_snapshot(path)
    assert source.state_hash() == before


@pytest.mark.parametrize("content", [b"", b"no pages of lmdb" * 4096], ids=["empty", "rubbish"])
def test_a_file_that_is_no_snapshot_is_refused_and_the_state_goes_on(
    behind: StateMachine, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "broken.mdb"
    path.write_bytes(content)
    with pytest.raises(StateUnusable):
        behind.restore_snapshot(path)
    grow(behind, 3, b"goes on")
    assert len(list((tmp_path / "behind").glob("generation-*"))) == 1, "nothing is left behind"


def test_a_disk_without_room_for_the_copy_is_named_and_the_state_goes_on(
    source: StateMachine, behind: StateMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = taken(source, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(generations.shutil, "copyfile", full)
        with pytest.raises(StateUnusable, match="the disk is full"):
            behind.restore_snapshot(path)
    grow(behind, 3, b"goes on")
    behind.restore_snapshot(path)()
    assert behind.state_hash() == source.state_hash()


async def test_watches_see_every_event_once_across_a_restored_state(
    source: StateMachine, behind: StateMachine, tmp_path: Path
) -> None:
    """What the snapshot jumped over comes from its history (etcd #17780, #18089)."""
    feed = WatchFeed(behind)
    behind.add_applied_listener(feed.on_applied)
    behind.add_replaced_listener(feed.on_replaced)
    start = 30
    async with feed.watch(b"\0", b"\0", start_revision=start, previous=False) as watch:
        behind.restore_snapshot(taken(source, tmp_path))()
        behind.apply(entries_after(behind, PutOp(b"after", b"x")))
        seen: list[int] = []
        async with asyncio.timeout(20):
            async for batch in watch:
                seen += [event.kv.mod_revision for event in batch.events]
                if seen and seen[-1] == behind.revision:
                    break
    events, reached = behind.events(start, b"\0", b"\0", previous=False, rows_max=10_000)
    assert reached == behind.revision
    assert seen == [event.kv.mod_revision for event in events]


async def test_a_current_watch_is_handed_what_the_snapshot_jumped_over(tmp_path: Path) -> None:
    source, behind = opened(tmp_path / "source"), opened(tmp_path / "behind")
    for machine in (source, behind):
        grow(machine, 5, b"both")
    feed = WatchFeed(behind)
    behind.add_applied_listener(feed.on_applied)
    behind.add_replaced_listener(feed.on_replaced)
    async with feed.watch(b"\0", b"\0", start_revision=0, previous=False) as watch:
        assert (await anext(watch)).revision == 6
        grow(source, 7, b"missed")
        behind.restore_snapshot(taken(source, tmp_path))()
        behind.apply(entries_after(behind, PutOp(b"after", b"x")))
        while feed.is_behind:
            feed.catch_up()
        seen: list[int] = []
        async with asyncio.timeout(20):
            while not seen or seen[-1] < behind.revision:
                seen += [event.kv.mod_revision for event in (await anext(watch)).events]
    assert seen == list(range(7, behind.revision + 1))
    source.close()
    behind.close()


async def test_a_watch_that_the_snapshot_has_no_history_for_is_told_so(
    source: StateMachine, behind: StateMachine, tmp_path: Path
) -> None:
    """It must not go on with a gap."""
    feed = WatchFeed(behind)
    behind.add_applied_listener(feed.on_applied)
    behind.add_replaced_listener(feed.on_replaced)
    async with feed.watch(b"\0", b"\0", start_revision=0, previous=False) as watch:
        assert (await anext(watch)).events == ()
        behind.restore_snapshot(taken(source, tmp_path))()
        while feed.is_behind:
            feed.catch_up()
        with pytest.raises(Compacted):
            async with asyncio.timeout(20):
                await anext(watch)
