"""Processes that are measured: real ones, pinned, watched and ended."""

import os
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.failures import BenchmarkFailed
from benchmarks.processes import Process, parse_stat, pids_of_session, until

CORE = min(os.sched_getaffinity(0))
WAITS = "import signal; print('up', flush=True); signal.pause()"
LEAVES_A_CHILD = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print("child", child.pid, flush=True)
signal.pause()
"""
WORKS = """
import signal, time
while time.process_time() < 0.2:
    pass
print("up", flush=True)
signal.pause()
"""


def started(folder: Path, code: str, **environment: str) -> Process:
    return Process("tested", [sys.executable, "-c", code], [CORE], folder, environment)


def wait_for(process: Process, word: str) -> str:
    return until(f"{word} is printed", lambda: process.log if word in process.log else None, [process])


def test_it_runs_on_the_cores_given_with_the_environment_given_and_ends_on_sigterm(tmp_path: Path) -> None:
    with started(tmp_path, "import os; print(os.environ['GIVEN'], flush=True);" + WAITS, GIVEN="value") as process:
        wait_for(process, "up")
        assert "value" in process.log
        assert os.sched_getaffinity(process.pid) == {CORE}
        assert process.pid in pids_of_session(process.pid)
    assert process.exit_status() == -signal.SIGTERM
    assert pids_of_session(process.pid) == []


def test_what_it_has_started_and_left_behind_is_ended_too(tmp_path: Path) -> None:
    with started(tmp_path, LEAVES_A_CHILD) as process:
        child = int(wait_for(process, "child").split()[1])
        assert child in pids_of_session(process.pid)
    until("the child is gone", lambda: child not in pids_of_session(process.pid), [], within_s=10)


def test_processor_time_and_memory_are_those_of_the_process(tmp_path: Path) -> None:
    with started(tmp_path, WORKS) as process:
        wait_for(process, "up")
        assert 0.15 <= process.cpu_s() <= 60
        assert 1_000_000 < process.anonymous_bytes() < process.memory_bytes()


def test_one_that_ends_instead_of_becoming_ready_is_told_of_with_its_output(tmp_path: Path) -> None:
    with (
        started(tmp_path, "raise SystemExit('the port is taken')") as process,
        pytest.raises(BenchmarkFailed, match=r"tested ended with 1 before ready:\n.*the port is taken"),
    ):
        until("ready", lambda: None, [process])


def test_one_that_never_becomes_ready_is_given_up_with_what_was_seen_last(tmp_path: Path) -> None:
    with (
        started(tmp_path, WAITS) as process,
        pytest.raises(BenchmarkFailed, match="not within 0 s: ready; last seen: 0"),
    ):
        until("ready", lambda: 0, [process], within_s=0.05)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkFailed, match="tested cannot be started"):
        Process("tested", ["/nonexistent/program"], [CORE], tmp_path, {})


def test_a_command_may_hold_anything_and_its_fields_are_still_found() -> None:
    fields = parse_stat("4711 (a) (b c)) S 1 4711 4711 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 100 1000 250")
    assert (fields[0], fields[3], fields[11], fields[12]) == ("S", "4711", "7", "5")
