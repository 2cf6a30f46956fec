"""Load generators as processes of their own: wrk, and how any of them is run and read."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.load_figures import LoadFigures, parse_figures
from benchmarks.peers import Program
from benchmarks.processes import Process

LUA_FOLDER = Path(__file__).resolve().parent / "lua"
REPLY_TIMEOUT_S = 10
OVERRUN_S_MAX = 30.0
PROBE_INTERVAL_S = 0.25


def command_line(
    program: str, url: str, connections: int, duration_s: int, script: str, arguments: Sequence[str]
) -> list[str]:
    """One thread: it has one core, and more threads would only take turns on it."""
    return [
        program, "--threads", "1", "--connections", str(connections), "--duration", f"{duration_s}s",
        "--timeout", f"{REPLY_TIMEOUT_S}s", "--script", str(LUA_FOLDER / script), url, "--", *arguments,
    ]  # fmt: skip


def run_wrk(
    program: Program, command: Sequence[str], duration_s: int, cores: Sequence[int], folder: Path,
    probe: Callable[[], None],
) -> LoadFigures:  # fmt: skip
    """Run it to its end, calling `probe` meanwhile. Raises BenchmarkFailed when any request failed."""
    environment = {**program.environment, "QUORATE_BENCH_LUA": str(LUA_FOLDER)}
    with Process("wrk", command, cores, folder, environment) as process:
        return read_to_end(process, duration_s + OVERRUN_S_MAX, probe)


def read_to_end(process: Process, within_s: float, probe: Callable[[], None] = lambda: None) -> LoadFigures:
    """The figures of a load generator that runs, once it has ended; `probe` is called meanwhile. Raises BenchmarkFailed
    when that takes longer, when it fails, and when any of its requests did."""
    deadline_s = time.monotonic() + within_s
    while (status := process.wait(PROBE_INTERVAL_S)) is None:
        if time.monotonic() > deadline_s:
            raise process.failure(f"still runs after {within_s:.0f} s:")
        probe()
    if status != 0:
        raise process.failure(f"ended with {status}:")
    figures = parse_figures(process.log)
    if figures.failed:
        raise process.failure(f"counted {figures.failed} failed requests:")
    return figures
