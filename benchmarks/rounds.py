"""The loop of a benchmark: each contender in turn is started, checked, measured, checked, ended; and all over again.

A contender that fails in a round has no figure for it, and the failure is told with the results; the others go on.
"""

import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
from quorate_cli.ports import free_ports

from benchmarks.failures import BenchmarkFailed
from benchmarks.measurements import Goal, Measurement, turn_order
from benchmarks.peers import Programs
from benchmarks.processes import Process
from benchmarks.wrk import WrkFigures, command_line, run_wrk

CHECKS_AROUND = 8
"""Checked requests before and after each measurement: enough to meet every endpoint of a balancer."""
BUSY_SHARE_MIN = 0.9
"""Below this share of its cores a contender was waiting for the load, and could have done more."""
IDLE_REMARK = "did not fill its core (it waited for the load, or others worked there), and could have done more"
_MIB = 1024**2

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """What wrk does. `script` is a file of `lua/`."""

    name: str
    connections: int
    path: str
    script: str = "report.lua"


@dataclass
class Bench:
    """Where a benchmark runs. Where contender and load are kept apart, `tested` is the core of the one, and `loading`
    are those of wrk and of everything else; otherwise both share `cores`."""

    folder: Path
    programs: Programs
    cores: tuple[int, ...]
    random_source: random.Random = field(default_factory=random.Random)

    @property
    def tested(self) -> tuple[int, ...]:
        return self.cores[:1]

    @property
    def loading(self) -> tuple[int, ...]:
        return self.cores[1:]

    def ports(self, count: int) -> list[int]:
        return free_ports(count, "127.0.0.1", self.random_source)

    def subfolder(self, name: str) -> Path:
        """A new folder for one part of one turn, kept until the end of the run."""
        number = sum(1 for _ in self.folder.iterdir())
        path = self.folder / f"{number:03}-{name}"
        path.mkdir()
        return path


class Contender(Protocol):
    """One side of a comparison, up and ready. Every method raises BenchmarkFailed."""

    processes: Sequence[Process]
    """Those whose processor time and memory are its own."""
    sampled: Process | None
    """The one whose samples make the profile, when this one was started to be profiled."""

    def url(self, load: Load) -> str: ...

    def prepare(self, load: Load) -> Sequence[str]:
        """Do what the load needs beforehand; returns the arguments of its script."""
        ...

    def check(self, load: Load) -> None:
        """One request of our own with its answer looked at."""
        ...

    def begin(self, load: Load) -> None:
        """The measurement begins."""
        ...

    def end(self, load: Load) -> None:
        """The measurement has ended."""
        ...

    def verify(self, load: Load, figures: WrkFigures) -> Iterable[str]:
        """Whether what was measured has really happened; returns remarks for the reader of the figures."""
        ...


Start = Callable[[], AbstractContextManager[Contender]]


class Scenario(Protocol):
    """Contenders and loads that belong together. The first of `ours` is what the goals are about."""

    name: str
    title: str
    ours: tuple[str, ...]
    loads: Sequence[Load]
    goals: Sequence[Goal]
    are_cores_shared: bool
    """Whether contender and load run on the same cores, and not on cores of their own."""

    def contenders(self, bench: Bench, profiled: bool = False) -> AbstractContextManager[Mapping[str, Start]]:
        """How to start each; what they share is up meanwhile."""
        ...


@dataclass(frozen=True)
class Timing:
    rounds: int
    measure_s: int
    warm_up_s: int


@dataclass
class Results:
    measurements: list[Measurement] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    """What has to be known beside the figures, and of whom."""

    def remark(self, text: str, whom: str) -> None:
        about = self.remarks.setdefault(text, [])
        if whom not in about:
            about.append(whom)


def run_rounds(scenario: Scenario, bench: Bench, timing: Timing, only: Sequence[str], tell: Tell) -> Results:
    """`only` names the contenders to run; none means all."""
    results = Results()
    try:
        with scenario.contenders(bench) as starts:
            chosen = [name for name in starts if not only or name in only]
            for number in range(timing.rounds):
                for name in turn_order(chosen, number):
                    _try_turn(scenario, name, starts[name], bench, timing, number, results, tell)
    except BenchmarkFailed as error:
        results.failures.append(f"{scenario.name}: {error}")
    return results


def _try_turn(
    scenario: Scenario, name: str, start: Start, bench: Bench, timing: Timing, number: int, results: Results, tell: Tell
) -> None:
    try:
        _take_turn(scenario, name, start, bench, timing, number, results, tell)
    except (BenchmarkFailed, httpx.HTTPError) as error:
        text = f"round {number + 1}, {name}: {str(error) or type(error).__name__}"
        results.failures.append(text)
        tell(f"  FAILED: {text}")


def _take_turn(
    scenario: Scenario, name: str, start: Start, bench: Bench, timing: Timing, number: int, results: Results, tell: Tell
) -> None:
    # What the one before has written and not synced is not for this one's disk to write.
    os.sync()
    with start() as contender:
        for load in scenario.loads:
            wrk_cores = bench.cores if scenario.are_cores_shared else bench.loading
            figures, used = measure(contender, load, bench, wrk_cores, timing)
            measurement = Measurement(
                round=number, contender=name, load=load.name, requests_per_s=figures.requests_per_s,
                p50_ms=figures.p50_ms, p99_ms=figures.p99_ms, cores_busy=used.cores_busy, memory_mib=used.memory_mib,
            )  # fmt: skip
            results.measurements.append(measurement)
            for remark in contender.verify(load, figures):
                results.remark(f"{load.name}: {remark}", name)
            tell(
                f"  {name:<14} {load.name:<26} {measurement.requests_per_s:>9,.0f}/s   p50 {measurement.p50_ms:.2f} ms"
                f"   p99 {measurement.p99_ms:.2f} ms"
            )
            if not scenario.are_cores_shared and measurement.cores_busy < BUSY_SHARE_MIN * len(bench.tested):
                results.remark(f"{load.name}: {IDLE_REMARK}", name)


@dataclass(frozen=True)
class Used:
    """Of the contender alone, during the measurement."""

    cores_busy: float
    memory_mib: float


def measure(
    contender: Contender, load: Load, bench: Bench, wrk_cores: tuple[int, ...], timing: Timing
) -> tuple[WrkFigures, Used]:
    """Check, warm up, measure, check. Raises BenchmarkFailed when any answer was wrong."""
    wrk, url = bench.programs["wrk"], contender.url(load)
    arguments = contender.prepare(load)

    def run(seconds: int) -> WrkFigures:
        command = command_line(wrk.path, url, load.connections, seconds, load.script, arguments)
        return run_wrk(wrk, command, seconds, wrk_cores, bench.folder, lambda: contender.check(load))

    def check() -> None:
        for _ in range(CHECKS_AROUND):
            contender.check(load)

    check()
    run(timing.warm_up_s)
    contender.begin(load)
    before_s = sum(process.cpu_s() for process in contender.processes)
    figures = run(timing.measure_s)
    used_s = sum(process.cpu_s() for process in contender.processes) - before_s
    memory = sum(process.memory_bytes() for process in contender.processes)
    contender.end(load)
    check()
    return figures, Used(used_s / figures.duration_s, memory / _MIB)
