"""The loop of a benchmark: each contender in turn is started, checked, measured, checked, ended; and all over again.

A contender that fails in a round has no figure for it, and the failure is told with the results; the others go on.
"""

import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
from quorate_cli.ports import free_ports

from benchmarks.failures import BenchmarkFailed
from benchmarks.load_figures import LoadFigures
from benchmarks.measurements import Bound, Goal, Measurement, turn_order
from benchmarks.peers import Programs
from benchmarks.processes import Process
from benchmarks.wrk import command_line, run_wrk

CHECKS_AROUND = 8
"""Checked requests before and after each measurement: enough to meet every endpoint of a balancer."""
BUSY_SHARE_MIN = 0.9
"""Below this share of its cores a contender was waiting for the load, and could have done more."""
IDLE_REMARK = "did not fill its core (it waited for the load, or others worked there), and could have done more"
_MIB = 1024**2

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """What a load generator does. `script` is a file of `lua/`, where wrk is the generator; `work` says what the
    requests are, in the words of the scenario. One that `is_paced` comes at a fixed rate, and fills no core."""

    name: str
    connections: int
    path: str
    script: str = "report.lua"
    work: str = ""
    is_paced: bool = False


@dataclass
class Bench:
    """Where a benchmark runs. Where contender and load are kept apart, `tested` is the core of the one, and `loading`
    are those of wrk and of everything else; otherwise both share `cores`."""

    folder: Path
    programs: Programs
    cores: tuple[int, ...]
    random_source: random.Random = field(default_factory=random.Random)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def tested(self) -> tuple[int, ...]:
        return self.cores[:1]

    @property
    def loading(self) -> tuple[int, ...]:
        return self.cores[1:]

    def ports(self, count: int) -> list[int]:
        return free_ports(count, "127.0.0.1", self.random_source)

    def subfolder(self, name: str) -> Path:
        """A new folder for one part of one turn; what is left of it at the end of the run goes then."""
        path = self.folder / f"{next(self._numbers):03}-{name}"
        path.mkdir()
        return path


class Contender(Protocol):
    """One side of a comparison, up and ready. Every method raises BenchmarkFailed."""

    processes: Sequence[Process]
    """Those whose processor time and memory are its own."""
    sampled: Process | None
    """The one whose samples make the profile, when this one was started to be profiled."""

    def prepare(self, load: Load) -> None:
        """Do what the load needs beforehand."""
        ...

    def run(self, load: Load, seconds: int) -> LoadFigures:
        """Put the load on it for so long."""
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

    def verify(self, load: Load, figures: LoadFigures) -> Iterable[str]:
        """Whether what was measured has really happened; returns remarks for the reader of the figures."""
        ...


Start = Callable[[], AbstractContextManager[Contender]]


class Scenario(Protocol):
    """Contenders and loads that belong together. The first of `ours` is what the goals are about."""

    name: str
    title: str
    summary: str
    """What it measures, for `--help`."""
    ours: tuple[str, ...]
    loads: Sequence[Load]
    goals: Sequence[Goal]
    bounds: Sequence[Bound]
    are_cores_shared: bool
    """Whether contender and load run on the same cores, and not on cores of their own."""
    full_measure_s: int | None
    """How long a measurement of the full run takes where it is not as long as everybody's."""

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


@dataclass(frozen=True)
class Choice:
    """What to run of a scenario: contenders by name, and loads with one of these texts in theirs; none means all."""

    contenders: Sequence[str] = ()
    loads: Sequence[str] = ()

    def loads_of(self, scenario: Scenario) -> list[Load]:
        return [load for load in scenario.loads if not self.loads or any(part in load.name for part in self.loads)]


def run_rounds(scenario: Scenario, bench: Bench, timing: Timing, choice: Choice, tell: Tell) -> Results:
    results = Results()
    try:
        with scenario.contenders(bench) as starts:
            chosen = [name for name in starts if not choice.contenders or name in choice.contenders]
            for number in range(timing.rounds):
                for name in turn_order(chosen, number):
                    turn = Turn(name, starts[name], choice.loads_of(scenario), number)
                    _try_turn(scenario, turn, bench, timing, results, tell)
    except BenchmarkFailed as error:
        results.failures.append(f"{scenario.name}: {error}")
    return results


@dataclass(frozen=True)
class Turn:
    """One contender's in one round, counted from 0."""

    name: str
    start: Start
    loads: Sequence[Load]
    round: int


def _try_turn(scenario: Scenario, turn: Turn, bench: Bench, timing: Timing, results: Results, tell: Tell) -> None:
    try:
        _take_turn(scenario, turn, bench, timing, results, tell)
    except (BenchmarkFailed, httpx.HTTPError) as error:
        text = f"round {turn.round + 1}, {turn.name}: {str(error) or type(error).__name__}"
        results.failures.append(text)
        tell(f"  FAILED: {text}")


def _take_turn(scenario: Scenario, turn: Turn, bench: Bench, timing: Timing, results: Results, tell: Tell) -> None:
    # What the one before has written and not synced is not for this one's disk to write.
    os.sync()
    with turn.start() as contender:
        for load in turn.loads:
            figures, used = measure(contender, load, timing)
            measurement = Measurement(
                round=turn.round, contender=turn.name, load=load.name, requests_per_s=figures.requests_per_s,
                p50_ms=figures.p50_ms, p99_ms=figures.p99_ms, max_ms=figures.max_ms, cores_busy=used.cores_busy,
                memory_mib=used.memory_mib,
            )  # fmt: skip
            results.measurements.append(measurement)
            for remark in contender.verify(load, figures):
                results.remark(f"{load.name}: {remark}", turn.name)
            tell(
                f"  {turn.name:<19} {load.name:<34} {figures.requests_per_s:>9,.0f}/s   p50 {figures.p50_ms:.2f} ms"
                f"   p99 {figures.p99_ms:.2f} ms   max {figures.max_ms:.2f} ms"
            )
            may_wait = scenario.are_cores_shared or load.is_paced
            if not may_wait and measurement.cores_busy < BUSY_SHARE_MIN * len(bench.tested):
                results.remark(f"{load.name}: {IDLE_REMARK}", turn.name)


@dataclass(frozen=True)
class Used:
    """Of the contender alone, during the measurement."""

    cores_busy: float
    memory_mib: float


def measure(contender: Contender, load: Load, timing: Timing) -> tuple[LoadFigures, Used]:
    """Check, warm up, measure, check. Raises BenchmarkFailed when any answer was wrong."""
    contender.prepare(load)

    def check() -> None:
        for _ in range(CHECKS_AROUND):
            contender.check(load)

    check()
    contender.run(load, timing.warm_up_s)
    contender.begin(load)
    before_s = sum(process.cpu_s() for process in contender.processes)
    figures = contender.run(load, timing.measure_s)
    used_s = sum(process.cpu_s() for process in contender.processes) - before_s
    memory = sum(process.memory_bytes() for process in contender.processes)
    contender.end(load)
    check()
    return figures, Used(used_s / figures.duration_s, memory / _MIB)


def run_wrk_load(
    bench: Bench, contender: Contender, load: Load, url: str, seconds: int, *, arguments: Sequence[str] = (),
    cores: Sequence[int],
) -> LoadFigures:  # fmt: skip
    """wrk's turn at `url`, the contender's answers checked meanwhile."""
    wrk = bench.programs["wrk"]
    command = command_line(wrk.path, url, load.connections, seconds, load.script, arguments)
    return run_wrk(wrk, command, seconds, cores, bench.folder, lambda: contender.check(load))
