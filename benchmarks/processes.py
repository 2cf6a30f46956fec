"""Processes to measure: pinned to cores, ended by their own ids, their CPU time and memory read from /proc.

A process starts in a session of its own, and what it starts itself (nginx's worker) is found by that. When the harness
dies, however it dies, the kernel ends what it has started.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import httpx

from benchmarks.failures import BenchmarkFailed

START_S_MAX = 60.0
STOP_S_MAX = 15.0
POLL_INTERVAL_S = 0.02
LOG_CHARS_SHOWN_MAX = 2_000

_PR_SET_PDEATHSIG = 1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class Process:
    """One started program. Use it as a context manager: at the end it is ended."""

    def __init__(
        self, name: str, command: Sequence[str], cores: Iterable[int], folder: Path, environment: Mapping[str, str]
    ) -> None:
        """Start it on `cores`, its output going to `folder`/`name`.log. Raises BenchmarkFailed when it cannot start."""
        self.name = name
        self.log_file = folder / f"{name}.log"
        wanted = frozenset(cores)

        def in_child() -> None:
            os.sched_setaffinity(0, wanted)
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        with self.log_file.open("wb") as output:
            try:
                self._popen = subprocess.Popen(  # noqa: S603 - the commands are ours
                    command, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True,
                    preexec_fn=in_child,  # noqa: PLW1509 - two system calls, and the harness starts no thread before
                )  # fmt: skip
            except OSError as error:
                raise BenchmarkFailed(f"{name} cannot be started: {error}") from error

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    def wait(self, within_s: float) -> int | None:
        """The exit status, or None when it still runs after `within_s` seconds."""
        try:
            return self._popen.wait(within_s)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: signal.Signals) -> None:
        if self._popen.poll() is None:
            self._popen.send_signal(number)

    def failure(self, what: str) -> BenchmarkFailed:
        """An error with the end of this process's output."""
        return BenchmarkFailed(f"{self.name} {what}\n{self.log[-LOG_CHARS_SHOWN_MAX:]}".strip())

    def end(self) -> None:
        """SIGTERM, and after STOP_S_MAX seconds SIGKILL, to it and to whatever it has left behind."""
        children = [pid for pid in pids_of_session(self.pid) if pid != self.pid]
        self.signal(signal.SIGTERM)
        if self.wait(STOP_S_MAX) is None:
            self._popen.kill()
            self._popen.wait()
        left = set(children) & set(pids_of_session(self.pid))
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def cpu_s(self) -> float:
        """Processor time of its session so far."""
        return sum(_cpu_s(fields) for _, fields in _session(self.pid))

    def anonymous_bytes(self) -> int:
        """That part of its resident memory which no file stands behind: what the kernel cannot take back by itself."""
        return sum(_anonymous_bytes(pid) for pid, _ in _session(self.pid))

    def memory_bytes(self) -> int:
        """Resident memory of its session. Pages that two of its processes share count twice."""
        return sum(int(fields[21]) * _PAGE_BYTES for _, fields in _session(self.pid))


def until(
    what: str, probe: Callable[[], T | None], processes: Sequence[Process], within_s: float = START_S_MAX,
    interval_s: float = POLL_INTERVAL_S,
) -> T:  # fmt: skip
    """The first truthy answer of `probe`, for which HTTP errors mean "not yet". Raises BenchmarkFailed when it does not
    come in time, or when one of `processes` ends meanwhile."""
    deadline_s = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < deadline_s:
        for process in processes:
            if process.exit_status() is not None:
                raise process.failure(f"ended with {process.exit_status()} before {what}:")
        try:
            last = answer = probe()
            if answer:
                return answer
        except httpx.HTTPError as error:
            last = error
        time.sleep(interval_s)
    logs = "\n".join(process.log[-LOG_CHARS_SHOWN_MAX:] for process in processes)
    raise BenchmarkFailed(f"not within {within_s:.0f} s: {what}; last seen: {last!r}\n{logs}".strip())


def pids_of_session(session: int) -> list[int]:
    """All processes of the session that `session` leads, itself included, that have not ended."""
    return [pid for pid, fields in _session(session) if fields[0] != "Z"]


def _session(session: int) -> list[tuple[int, list[str]]]:
    """Of each process in the session: its id, and the fields of its stat line from the state on (proc(5))."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = parse_stat((entry / "stat").read_text())
        except OSError:
            continue  # it has ended since
        if int(fields[3]) == session:
            found.append((int(entry.name), fields))
    return found


def parse_stat(line: str) -> list[str]:
    """Fields of /proc/<pid>/stat from the third on. The second, the command in parentheses, may hold anything."""
    return line.rpartition(")")[2].split()


def _anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0  # it has ended since
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def _cpu_s(fields: Sequence[str]) -> float:
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
