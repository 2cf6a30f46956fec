"""Which process of those that serve one socket keeps its registration: real files, locks and processes."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_sdk.worker_group import (
    STAND_BY_S_MAX,
    STAND_BY_S_MIN,
    Alone,
    Farewell,
    Stamp,
    WorkerGroup,
    join_group,
    runtime_folder,
    stand_by_s,
)

FORKS = 20
STAMP = Stamp(at_s=100.0, spec="a", revision=7)
MEMBER = """
import sys
from pathlib import Path
from quorate_sdk.worker_group import WorkerGroup
group = WorkerGroup(Path(sys.argv[1]))
print(group.is_keeper(), flush=True)
sys.stdin.read()
"""

FORK = """
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@contextmanager
def member_elsewhere(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", bool]]:
    """A member in a process of its own, and whether it keeps the registration."""
    with subprocess.Popen(
        [sys.executable, "-c", MEMBER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline() == "True\n"
        finally:
            process.kill()


def test_the_first_one_keeps_it_and_the_next_one_has_it_when_that_leaves(tmp_path: Path) -> None:
    first, second = WorkerGroup(tmp_path / "g"), WorkerGroup(tmp_path / "g")
    assert [first.is_keeper(), second.is_keeper(), first.is_keeper()] == [True, False, True]
    assert first.leave() is Farewell.OTHERS_GO_ON
    assert second.is_keeper()
    first.close()
    assert second.leave() is Farewell.LAST
    second.close()


def test_who_stands_by_leaves_and_the_keeper_stays(tmp_path: Path) -> None:
    first, second = WorkerGroup(tmp_path / "g"), WorkerGroup(tmp_path / "g")
    assert first.is_keeper()
    assert second.leave() is Farewell.OTHERS_GO_ON
    second.close()
    assert first.is_keeper()
    first.close()


def test_of_those_who_leave_together_the_last_one_is_told_so_once_the_lock_is_free(tmp_path: Path) -> None:
    first, second, third = (WorkerGroup(tmp_path / "g") for _ in range(3))
    assert first.is_keeper()
    assert second.leave() is Farewell.OTHERS_GO_ON
    assert first.leave() is Farewell.OTHERS_GO_ON
    assert third.leave() is Farewell.LAST, "those before are on their way, whether closed or not"
    for group in (first, second, third):
        group.close()


def test_one_that_joins_while_another_deregisters_waits_for_it(tmp_path: Path) -> None:
    leaving = WorkerGroup(tmp_path / "g")
    assert leaving.leave() is Farewell.LAST
    joining = WorkerGroup(tmp_path / "g")
    assert not joining.is_keeper(), "what it registered would be deregistered"
    leaving.close()
    assert joining.is_keeper()
    joining.close()


def test_a_killed_keeper_is_succeeded_and_its_file_is_cleared_away(tmp_path: Path) -> None:
    with member_elsewhere(tmp_path / "g") as (process, keeps):
        assert keeps
        group = WorkerGroup(tmp_path / "g")
        assert not group.is_keeper()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert group.is_keeper()
        assert group.leave() is Farewell.LAST
        assert len(list((tmp_path / "g").glob("member-*"))) == 1
        group.close()


def test_the_folder_goes_with_the_last_member_and_is_made_again(tmp_path: Path) -> None:
    for _ in range(2):
        first, second = WorkerGroup(tmp_path / "g"), WorkerGroup(tmp_path / "g")
        first.close()
        assert (tmp_path / "g").is_dir()
        second.close()
        assert not (tmp_path / "g").exists()


def test_who_waited_for_a_mutex_that_went_with_its_folder_takes_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    folder.mkdir()
    joined: list[WorkerGroup] = []
    with (folder / "mutex").open("w") as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)
        joining = threading.Thread(target=lambda: joined.append(WorkerGroup(folder)))
        joining.start()
        (folder / "mutex").unlink()
        folder.rmdir()
    joining.join()
    assert joined[0].is_keeper()
    other = WorkerGroup(folder)
    assert not other.is_keeper()
    assert joined[0].leave() is Farewell.OTHERS_GO_ON
    for group in (other, *joined):
        group.close()


def test_a_stopped_process_that_holds_the_mutex_is_not_waited_for(tmp_path: Path) -> None:
    group = WorkerGroup(tmp_path / "g")
    with (tmp_path / "g" / "mutex").open() as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)
        assert group.leave() is Farewell.UNDECIDED
        with pytest.raises(TimeoutError, match="mutex"):
            WorkerGroup(tmp_path / "g")
    assert group.leave() is Farewell.LAST
    group.close()


def test_a_fork_in_the_midst_of_joining_leaves_no_lock_behind(tmp_path: Path) -> None:
    """A child that is made at any moment, and lives on, holds nothing."""
    ending = threading.Event()

    def join_and_leave() -> None:
        while not ending.is_set():
            WorkerGroup(tmp_path / "g").close()

    joining = threading.Thread(target=join_and_leave)
    joining.start()
    reading, writing = os.pipe()
    children = []
    for _ in range(FORKS):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        children.append(child)
    ending.set()
    joining.join()
    group = WorkerGroup(tmp_path / "g")
    assert group.is_keeper()
    assert group.leave() is Farewell.LAST
    group.close()
    os.close(writing)
    os.close(reading)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * FORKS


def test_what_was_stamped_is_read_by_all_and_nonsense_is_no_stamp(tmp_path: Path) -> None:
    first, second = WorkerGroup(tmp_path / "g"), WorkerGroup(tmp_path / "g")
    assert second.last_stamp() is None
    first.stamp(STAMP)
    assert second.last_stamp() == STAMP
    (tmp_path / "g" / "keeper").write_text('{"at_s": 1}')
    assert second.last_stamp() is None
    first.close()
    second.close()


@given(ttl_s=st.integers(min_value=2, max_value=86_400), age_s=st.floats(min_value=-1e6, max_value=1e6))
def test_a_stamp_is_overdue_after_a_heartbeat_should_have_come_and_before_the_time_to_live_ends(
    ttl_s: int, age_s: float
) -> None:
    stamp = Stamp(at_s=0.0, spec="", revision=1)
    if 0 <= age_s <= ttl_s / 3:
        assert not stamp.is_overdue(age_s, ttl_s)
    if age_s < 0 or age_s > ttl_s * 0.51:
        assert stamp.is_overdue(age_s, ttl_s)


@given(st.integers(min_value=2, max_value=86_400))
def test_who_stands_by_looks_often_enough_to_renew_in_time(ttl_s: int) -> None:
    """A heartbeat at worst a third old when its sender dies, or half when it is only stopped, and one more look."""
    assert STAND_BY_S_MIN <= stand_by_s(ttl_s) <= STAND_BY_S_MAX
    assert ttl_s / 2 + stand_by_s(ttl_s) < ttl_s


def test_instances_of_other_names_and_other_control_planes_are_other_groups(tmp_path: Path) -> None:
    environment = {"QUORATE_RUNTIME_DIR": str(tmp_path)}
    names = [
        (["http://a:1"], "default", "order", "order-1"),
        (["http://b:1"], "default", "order", "order-1"),
        (["http://a:1"], "test", "order", "order-1"),
        (["http://a:1"], "default", "order", "order-2"),
    ]
    groups = [join_group(*name, environment=environment) for name in names]
    assert all(group.is_keeper() for group in groups)
    same = join_group(*names[0], environment=environment)
    assert not same.is_keeper()
    for group in (*groups, same):
        group.close()


def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "quorate").mkdir()
    (tmp_path / "quorate").chmod(0o777)
    environment = {"QUORATE_RUNTIME_DIR": str(tmp_path)}
    with pytest.raises(PermissionError, match="only this user"):
        runtime_folder(environment)
    assert isinstance(join_group(["http://a:1"], "default", "order", "order-1", environment), Alone)


def test_a_folder_that_is_a_link_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "quorate").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="only this user"):
        runtime_folder({"QUORATE_RUNTIME_DIR": str(tmp_path)})


def test_a_child_that_outlives_its_parent_holds_no_lock_of_it(tmp_path: Path) -> None:
    """flock's locks are shared by copies of a file: without care, the keeper's child would keep it for ever."""
    code = f"import os\n{MEMBER}".replace("sys.stdin.read()", FORK)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "g")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        child = int(process.stdout.readline())
        process.wait()
        os.kill(child, 0)  # it is there
        group = WorkerGroup(tmp_path / "g")
        assert group.is_keeper()
        assert group.leave() is Farewell.LAST
        group.close()
