"""The load generator wrk: how it is called, and what it says."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.failures import BenchmarkFailed
from benchmarks.peers import Program
from benchmarks.processes import Process

LUA_FOLDER = Path(__file__).resolve().parent / "lua"
REPLY_TIMEOUT_S = 10
OVERRUN_S_MAX = 30.0
PROBE_INTERVAL_S = 0.25
_PREFIX = "figures "


@dataclass(frozen=True)
class WrkFigures:
    """What one run of wrk saw. `failed` counts connections that broke, replies that did not come, and statuses from 400
    on."""

    requests: int
    duration_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    failed: int

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.duration_s


def parse_figures(output: str) -> WrkFigures:
    """From the line that `report.lua` writes. Raises BenchmarkFailed when there is none, or when it counted nothing."""
    line = next((line for line in output.splitlines() if line.startswith(_PREFIX)), None)
    if line is None:
        raise BenchmarkFailed(f"wrk gave no figures:\n{output[-1_000:]}")
    said = json.loads(line.removeprefix(_PREFIX))
    failed = sum(said[name] for name in ("connect_errors", "read_errors", "write_errors", "timeouts", "bad_statuses"))
    if said["requests"] <= 0 or said["duration_us"] <= 0:
        raise BenchmarkFailed(f"wrk had no answer at all ({failed} failures)")
    return WrkFigures(
        requests=said["requests"], duration_s=said["duration_us"] / 1e6, p50_ms=said["p50_us"] / 1e3,
        p99_ms=said["p99_us"] / 1e3, max_ms=said["max_us"] / 1e3, failed=failed,
    )  # fmt: skip


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
) -> WrkFigures:  # fmt: skip
    """Run it to its end, calling `probe` meanwhile. Raises BenchmarkFailed when any request failed."""
    environment = {**program.environment, "QUORATE_BENCH_LUA": str(LUA_FOLDER)}
    deadline_s = time.monotonic() + duration_s + OVERRUN_S_MAX
    with Process("wrk", command, cores, folder, environment) as process:
        while (status := process.wait(PROBE_INTERVAL_S)) is None:
            if time.monotonic() > deadline_s:
                raise process.failure(f"still runs {OVERRUN_S_MAX:.0f} s after its time:")
            probe()
    if status != 0:
        raise process.failure(f"ended with {status}:")
    figures = parse_figures(process.log)
    if figures.failed:
        raise process.failure(f"counted {figures.failed} failed requests:")
    return figures
