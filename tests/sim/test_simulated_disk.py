"""The simulated disk keeps the real one's promises, and after a power loss no others."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from quorate_raft.runtime.disk import ASIDE_SUFFIX, DiskFailed, FileDisk
from quorate_raft.runtime.ports import Disk
from quorate_simulation.clock import MachineClock
from quorate_simulation.disk import SimulatedDisk, Storage
from quorate_simulation.loop import ProcessDied, SimulatedLoop, SimulatedProcess
from quorate_simulation.randomness import Stream

WRITTEN = b"".join(bytes([number]) * 300 for number in range(1, 9))
"""Some sectors, no two alike."""


def new_process() -> SimulatedProcess:
    loop = SimulatedLoop()
    loop.close()  # nobody waits for anything here
    return SimulatedProcess("n1", loop, MachineClock(loop.true_time, 1.0, 0.0), lambda: None)


def storage_of(seed: int, folder: Path) -> Storage:
    return Storage(Stream(str(seed)), folder)


@pytest.fixture(params=["real", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "real":
        with FileDisk(tmp_path / "data") as opened:
            yield opened
    else:
        yield SimulatedDisk(storage_of(1, tmp_path / "data"), new_process())


def test_what_is_appended_is_read_back(disk: Disk) -> None:
    file = disk.open("file", create=True)
    file.append(b"one ")
    file.append(b"two")
    file.sync()
    file.continue_at(4)
    file.append(b"2")
    file.close()
    again = disk.open("file", create=False)
    again.append(b"!")
    again.close()
    assert disk.read("file", 0, 100) == b"one 2wo!"
    assert disk.read("file", 6, 9) == b"o!"
    assert disk.size_bytes("file") == 8
    assert disk.names() == ["file"]


def test_room_that_is_set_aside_is_zeros_that_appends_go_over(disk: Disk) -> None:
    file = disk.open("file", create=True)
    file.append(b"head")
    file.preallocate(16)
    file.append(b"er")
    file.preallocate(4)
    assert disk.read("file", 0, 99) == b"header" + bytes(10)


def test_publishing_replaces_what_had_the_name(disk: Disk) -> None:
    disk.write_atomically("file", b"old")
    file = disk.open("new" + ASIDE_SUFFIX, create=True)
    file.append(b"new")
    disk.publish("new" + ASIDE_SUFFIX, "file")
    assert disk.names() == ["file"]
    assert disk.read("file", 0, 9) == b"new"


def test_what_is_written_by_its_path_can_be_published_read_and_removed(disk: Disk) -> None:
    disk.path("copy" + ASIDE_SUFFIX).write_bytes(b"a copy")
    disk.publish("copy" + ASIDE_SUFFIX, "copy")
    assert disk.read("copy", 2, 9) == b"copy"
    assert disk.path("copy").read_bytes() == b"a copy"
    disk.remove("copy")
    assert disk.names() == []


def test_what_was_appended_can_be_read_by_its_path(disk: Disk) -> None:
    disk.open("file", create=True).append(b"data")
    assert disk.path("file").read_bytes() == b"data"


@pytest.mark.parametrize(
    "call",
    [
        lambda disk: disk.open("there", create=True),
        lambda disk: disk.open("nothing", create=False),
        lambda disk: disk.remove("nothing"),
        lambda disk: disk.read("nothing", 0, 1),
        lambda disk: disk.size_bytes("nothing"),
        lambda disk: disk.publish("nothing", "there"),
    ],
)
def test_what_cannot_be_done_fails(disk: Disk, call: Callable[[Disk], object]) -> None:
    disk.open("there", create=True).close()
    with pytest.raises(DiskFailed):
        call(disk)


def test_work_is_done_in_order_and_hands_its_result_or_its_error_over(tmp_path: Path) -> None:
    process = new_process()
    disk = SimulatedDisk(storage_of(1, tmp_path / "data"), process)
    done: list[int] = []

    async def work() -> None:
        results = await asyncio.gather(*(disk.run(lambda number=number: done.append(number)) for number in range(5)))
        assert results == [None] * 5
        with pytest.raises(DiskFailed):
            await disk.run(lambda: disk.remove("nothing"))

    loop = asyncio.get_event_loop_policy().new_event_loop()
    try:
        loop.run_until_complete(work())
    finally:
        loop.close()
    assert done == list(range(5))


@pytest.mark.parametrize("seed", range(40))
def test_a_power_loss_takes_nothing_that_was_synced(seed: int, tmp_path: Path) -> None:
    storage = storage_of(seed, tmp_path / "data")
    disk = SimulatedDisk(storage, new_process())
    file = disk.open("file", create=True)
    file.append(WRITTEN)
    file.sync()
    disk.sync_folder()
    file.append(b"not synced" * 300)
    storage.lose_power()
    assert storage.names() == ["file"]
    assert storage.inode("file").read(0, len(WRITTEN)) == WRITTEN
    assert storage.inode("file").size_bytes <= len(WRITTEN) + 3_000


def test_it_may_take_leave_tear_or_spoil_what_was_not_synced(tmp_path: Path) -> None:
    found: set[str] = set()
    for seed in range(200):
        storage = storage_of(seed, tmp_path / str(seed))
        file = SimulatedDisk(storage, new_process()).open("file", create=True)
        storage.sync_folder()
        file.append(WRITTEN)
        storage.lose_power()
        left = storage.inode("file").read(0, 9_999)
        found.add(_fate(left))
    assert found == {"gone", "whole", "torn", "holes", "garbage"}


def _fate(left: bytes) -> str:
    if left in (b"", WRITTEN):
        return "whole" if left else "gone"
    if WRITTEN.startswith(left):
        return "torn"
    return "holes" if all(one in (0, written) for one, written in zip(left, WRITTEN, strict=False)) else "garbage"


def test_it_may_undo_a_name_whose_folder_was_not_synced(tmp_path: Path) -> None:
    found: set[tuple[str, ...]] = set()
    for seed in range(60):
        storage = storage_of(seed, tmp_path / str(seed))
        disk = SimulatedDisk(storage, new_process())
        disk.write_atomically("old", b"old")
        disk.open("new", create=True).sync()
        disk.remove("old")
        storage.lose_power()
        found.add(tuple(storage.names()))
    assert {("old",), ("new", "old"), ("new",)} <= found


@pytest.mark.parametrize("seed", range(20))
def test_what_was_published_stays_and_holds_what_it_held(seed: int, tmp_path: Path) -> None:
    storage = storage_of(seed, tmp_path / "data")
    disk = SimulatedDisk(storage, new_process())
    disk.write_atomically("memory", b"memory")
    disk.path("aside").write_bytes(b"real")
    disk.publish("aside", "real")
    storage.lose_power()
    assert disk.read("memory", 0, 9) == b"memory"
    assert disk.read("real", 0, 9) == b"real"


def test_a_full_disk_lets_nothing_grow_and_what_was_set_aside_be_written(tmp_path: Path) -> None:
    storage = storage_of(1, tmp_path / "data")
    disk = SimulatedDisk(storage, new_process())
    file = disk.open("file", create=True)
    file.preallocate(4)
    storage.is_full = True
    file.append(b"data")
    with pytest.raises(DiskFailed, match="the disk is full"):
        file.append(b"more")
    with pytest.raises(DiskFailed, match="final"):
        file.sync()
    with pytest.raises(DiskFailed, match="the disk is full"):
        disk.open("another", create=True)


def test_after_a_failed_sync_nobody_knows_what_is_there(tmp_path: Path) -> None:
    found: set[bytes] = set()
    for seed in range(20):
        storage = storage_of(seed, tmp_path / str(seed))
        file = SimulatedDisk(storage, new_process()).open("file", create=True)
        file.append(b"data")
        storage.fails_syncs = True
        with pytest.raises(DiskFailed, match="cannot sync file: Input/output error"):
            file.sync()
        storage.fails_syncs = False
        with pytest.raises(DiskFailed, match="final"):
            file.sync()
        found.add(storage.inode("file").read(0, 9))
    assert found == {b"", b"data"}


def test_a_dead_process_reaches_its_disk_no_more(tmp_path: Path) -> None:
    process = new_process()
    disk = SimulatedDisk(storage_of(1, tmp_path / "data"), process)
    file = disk.open("file", create=True)
    process.kill_after_writes = 2
    file.append(b"one")
    with pytest.raises(ProcessDied):
        file.append(b"two")
    for call in (file.sync, disk.names, lambda: file.append(b"three")):
        with pytest.raises(ProcessDied):
            call()
    assert disk.storage.inode("file").read(0, 99) == b"onetwo", "what the kernel has, a kill does not take"
