"""One folder on a real disk."""

import asyncio
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from quorate_core.errors import SettingsError
from quorate_raft.runtime.disk import ASIDE_SUFFIX, LOCK_NAME, ZEROS_BYTES, DiskFailed, FileDisk, write_zeros


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FileDisk]:
    with FileDisk(tmp_path / "data") as opened:
        yield opened


def test_a_folder_is_made_for_its_owner_only(disk: FileDisk, tmp_path: Path) -> None:
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    assert disk.names() == []


def test_what_is_appended_can_be_read_and_written_over(disk: FileDisk) -> None:
    file = disk.open("file", create=True)
    file.append(b"one ")
    file.append(b"two")
    file.sync()
    assert disk.read("file", 0, 100) == b"one two"
    file.continue_at(4)
    file.append(b"2")
    file.close()
    file.close()
    again = disk.open("file", create=False)
    again.append(b"!")
    again.close()
    assert disk.read("file", 0, 100) == b"one 2wo!"
    assert [disk.read("file", 4, 3), disk.read("file", 6, 9), disk.read("file", 9, 9)] == [b"2wo", b"o!", b""]
    assert disk.size_bytes("file") == 8
    assert disk.names() == ["file"]
    disk.remove("file")
    disk.sync_folder()
    assert disk.names() == []


def test_creating_what_is_there_and_opening_what_is_not_fails(disk: FileDisk) -> None:
    disk.open("file", create=True).close()
    with pytest.raises(DiskFailed, match="cannot open"):
        disk.open("file", create=True)
    with pytest.raises(DiskFailed, match="cannot open"):
        disk.open("nothing", create=False)
    with pytest.raises(DiskFailed, match="cannot remove"):
        disk.remove("nothing")
    with pytest.raises(DiskFailed, match=r"cannot read .*nothing: No such file"):
        disk.read("nothing", 0, 1)
    with pytest.raises(DiskFailed, match="cannot look at"):
        disk.size_bytes("nothing")
    with pytest.raises(DiskFailed, match="cannot sync"):
        disk.publish("nothing", "something")


def test_room_that_is_set_aside_is_zeros_over_which_appends_go(disk: FileDisk) -> None:
    file = disk.open("file", create=True)
    file.append(b"one")
    file.preallocate(10)
    file.append(b"two")
    file.preallocate(4)
    file.sync()
    file.close()
    assert disk.read("file", 0, 100) == b"onetwo" + bytes(4)


def test_room_is_really_taken_from_the_disk(disk: FileDisk, tmp_path: Path) -> None:
    """A file that is only long would find the disk full when it is written."""
    file = disk.open("file", create=True)
    file.preallocate(1 << 20)
    file.close()
    assert (tmp_path / "data" / "file").stat().st_blocks * 512 >= 1 << 20


def test_where_no_room_can_be_set_aside_zeros_are_written(tmp_path: Path) -> None:
    """Over nothing that is there."""
    path = tmp_path / "file"
    path.write_bytes(b"one")
    descriptor = os.open(path, os.O_RDWR)
    write_zeros(descriptor, 3, ZEROS_BYTES + 5)
    os.close(descriptor)
    assert path.read_bytes() == b"one" + bytes(ZEROS_BYTES + 5)


def test_what_somebody_else_wrote_is_published_whole(disk: FileDisk) -> None:
    disk.write_atomically("file", b"old")
    disk.path("new").write_bytes(b"new")
    disk.publish("new", "file")
    assert disk.names() == ["file"]
    assert disk.path("file").read_bytes() == b"new"


def test_a_file_is_written_whole_or_not_at_all(disk: FileDisk, tmp_path: Path) -> None:
    disk.write_atomically("file", b"old")
    disk.write_atomically("file", b"new")
    assert (tmp_path / "data" / "file").read_bytes() == b"new"
    assert disk.names() == ["file"]


def test_what_a_crash_left_half_written_is_removed_at_start(tmp_path: Path) -> None:
    (tmp_path / f"file{ASIDE_SUFFIX}").write_bytes(b"half")
    (tmp_path / "file").write_bytes(b"whole")
    with FileDisk(tmp_path) as disk:
        assert disk.names() == ["file"]


def test_two_never_share_a_folder(tmp_path: Path) -> None:
    """Not in one process, not in two; and the lock of a process that was killed is free again."""
    first = FileDisk(tmp_path)
    with pytest.raises(SettingsError, match="in use by another process"):
        FileDisk(tmp_path)
    first.close()
    first.close()
    program = (
        "import sys; from pathlib import Path; from quorate_raft import FileDisk\n"
        "disk = FileDisk(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(SettingsError, match="in use by another process"):
            FileDisk(tmp_path)
        other.kill()
        other.wait()
    FileDisk(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"the data folder .*file/below cannot be used: Not a directory"):
        FileDisk(tmp_path / "file" / "below")
    with pytest.raises(SettingsError, match=r"the data folder .*file cannot be used: Not a directory"):
        FileDisk(tmp_path / "file")
    with pytest.raises(SettingsError, match=r"the data folder /proc/nowhere cannot be used"):
        FileDisk(Path("/proc/nowhere"))


def test_a_folder_in_which_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    """For anybody: root may write where the mode forbids it, but nobody makes files in /proc."""
    with pytest.raises(SettingsError, match=r"the data folder /proc/self/fd cannot be used: "):
        FileDisk(Path("/proc/self/fd"))


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    with FileDisk(tmp_path / "one" / "two" / "three") as disk:
        disk.write_atomically("file", b"content")
    with FileDisk(tmp_path / "one" / "two" / "three") as disk:
        assert disk.names() == ["file"]


async def test_work_runs_in_order_in_one_thread_off_the_loop(disk: FileDisk) -> None:
    seen: list[tuple[int, int]] = []

    def work(number: int) -> int:
        seen.append((number, threading.get_ident()))
        return number * 2

    results = await asyncio.gather(*(disk.run(lambda number=number: work(number)) for number in range(20)))
    assert results == [number * 2 for number in range(20)]
    assert [number for number, _ in seen] == list(range(20))
    assert len({thread for _, thread in seen} | {threading.get_ident()}) == 2


async def test_the_errors_of_work_reach_who_awaits_it(disk: FileDisk) -> None:
    with pytest.raises(DiskFailed, match="cannot open"):
        await disk.run(lambda: disk.open("nothing", create=False))


async def test_work_whose_waiter_gave_up_is_done_all_the_same(disk: FileDisk) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(10)
        disk.write_atomically("file", b"done")

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(disk.run(work))
        failing = group.create_task(disk.run(lambda: disk.remove("nothing")))
        await asyncio.to_thread(begun.wait, 10)
        waiting.cancel()
        failing.cancel()
        go_on.set()
    assert await disk.run(disk.names) == ["file"]


async def test_long_work_runs_aside_and_holds_nothing_up(disk: FileDisk) -> None:
    go_on = threading.Event()
    threads: list[str] = []

    def long_work() -> str:
        go_on.wait(10)
        threads.append(threading.current_thread().name)
        return "long"

    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(disk.run_aside(long_work)) for _ in range(2)]
        for _ in range(3):
            assert await disk.run(disk.names) == []
        assert not any(task.done() for task in waiting)
        go_on.set()
    assert [task.result() for task in waiting] == ["long", "long"]
    assert threads == ["disk data aside"] * 2, "one thread, however much there is to do"
    with pytest.raises(DiskFailed, match="cannot open"):
        await disk.run_aside(lambda: disk.open("nothing", create=False))


async def test_closing_a_folder_ends_what_was_begun_and_takes_no_more_work(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path)
    done: list[str] = []
    begun = threading.Event()

    def work() -> None:
        begun.wait(10)
        done.append("aside")

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(disk.run_aside(work))
        await disk.run(lambda: None)
        begun.set()
        disk.close()
        assert done == ["aside"]
        await waiting
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(f"disk {tmp_path.name}")]
    for run in (disk.run, disk.run_aside):
        with pytest.raises(DiskFailed, match="is closed"):
            await run(disk.names)
    assert (tmp_path / LOCK_NAME).exists()


def test_a_disk_that_takes_no_more_is_a_final_failure(disk: FileDisk) -> None:
    """The kernel refuses the write; the file is not used again even when there is room, since a part may be there."""
    file = disk.open("file", create=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(DiskFailed, match=r"cannot append to .*file: File too large"):
            file.append(b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for again in (lambda: file.append(b"y"), file.sync, lambda: file.preallocate(10)):
        with pytest.raises(DiskFailed, match="an earlier failure is final"):
            again()
    file.close()


def test_a_full_disk_says_so(disk: FileDisk) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(DiskFailed, match="the disk is full"), disk.failing("append to", "file"):
            os.write(full, b"x")
    finally:
        os.close(full)


def test_a_sync_that_fails_is_never_tried_again(disk: FileDisk) -> None:
    """Pitfall (fsyncgate)."""
    file = disk.open("file", create=True)
    file.append(b"data")
    os.close(file._descriptor)
    with pytest.raises(DiskFailed, match="cannot sync"):
        file.sync()
    with pytest.raises(DiskFailed, match="final"):
        file.sync()
    file._descriptor = -1
