"""Starting, stopping, and starting again: data stays, no process does."""

import os
import signal
from pathlib import Path

import pytest
from support.platform import Platform, eventually


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def fresh(tmp_path: Path) -> Platform:
    return Platform(tmp_path)


def test_up_again_finds_its_data_and_a_killed_supervisor_takes_its_children_along(fresh: Platform) -> None:
    try:
        fresh.start("--nodes", "1")
        second = fresh.cli("up", "--root", str(fresh.root), "--ports", "auto")
        assert second.returncode != 0
        assert str(fresh.state()["pid"]) in second.stderr + second.stdout
        placed = fresh.place(3).json()
        assert fresh.final(placed["id"])["status"] == "CONFIRMED"
        stock = fresh.stock()
        pids = [part["pid"] for part in fresh.state()["parts"].values()]
        assert fresh.stop() == 0
        assert all(is_gone(pid) for pid in pids)

        fresh.start("--nodes", "1")
        assert fresh.order(placed["id"])["status"] == "CONFIRMED"
        assert fresh.stock() == stock
        pids = [part["pid"] for part in fresh.state()["parts"].values()]
        assert fresh.process is not None
        os.kill(fresh.process.pid, signal.SIGKILL)
        fresh.process.wait(10)
        eventually("no child is left", lambda: all(is_gone(pid) for pid in pids), 30)
    finally:
        fresh.stop()
        fresh.http.close()
