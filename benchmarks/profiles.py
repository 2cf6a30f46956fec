"""Where our own processor time goes: a separate run, since being sampled costs a little."""

import json
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.failures import BenchmarkFailed
from benchmarks.processes import POLL_INTERVAL_S, Process
from benchmarks.quorate_processes import SAMPLES_FILE
from benchmarks.rounds import Bench, Choice, Contender, Load, Scenario, Tell, Timing, measure

ROWS_MAX = 15
WRITE_S_MAX = 10.0


@dataclass(frozen=True)
class ProfileRow:
    """A function's share of the samples: in itself (with the C functions that it calls), and with all that it calls."""

    function: str
    own: float
    total: float


@dataclass(frozen=True)
class Profile:
    load: str
    requests_per_s: float
    samples: int
    packages: Sequence[tuple[str, float]]
    """Share of each package's own functions, most first."""
    rows: Sequence[ProfileRow]


def summarize(content: dict[str, Any]) -> list[ProfileRow]:
    """The functions by own share, most first. Raises BenchmarkFailed when there is no sample."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for count, stack in content["stacks"]:
        own[stack[0]] += count
        for function in set(stack):
            total[function] += count
    samples = own.total()
    if not samples:
        raise BenchmarkFailed("the profile holds no sample: the process used no processor time")
    return [ProfileRow(name, count / samples, total[name] / samples) for name, count in own.most_common()]


def by_package(rows: Sequence[ProfileRow]) -> list[tuple[str, float]]:
    """Own shares summed by the folder that stands first in a function's name."""
    shares: dict[str, float] = {}
    for row in rows:
        package = row.function.partition("/")[0].partition(":")[0]
        shares[package] = shares.get(package, 0.0) + row.own
    return sorted(shares.items(), key=lambda item: -item[1])


def profile(scenario: Scenario, bench: Bench, timing: Timing, choice: Choice, tell: Tell) -> list[Profile]:
    """One profile for each load, of the first of ours, freshly started."""
    found = []
    with scenario.contenders(bench, profiled=True) as starts:
        for load in choice.loads_of(scenario):
            tell(f"  profiling {scenario.ours[0]}, {load.name}")
            with starts[scenario.ours[0]]() as contender:
                found.append(_profile_load(contender, load, timing))
    return found


def _profile_load(contender: Contender, load: Load, timing: Timing) -> Profile:
    process = contender.sampled
    if process is None:
        raise BenchmarkFailed("nothing was started to be profiled")
    sampled = _Sampled(contender, process)
    figures, _ = measure(sampled, load, timing)
    content = _read_samples(process, process.log_file.parent / SAMPLES_FILE)
    rows = summarize(content)
    return Profile(
        load.name, figures.requests_per_s, int(content["samples"]), by_package(rows)[:ROWS_MAX], rows[:ROWS_MAX]
    )


class _Sampled:
    """A contender whose process is sampled while it is measured, and at no other time."""

    def __init__(self, contender: Contender, process: Process) -> None:
        self._contender = contender
        self.processes = contender.processes
        self.sampled: Process | None = process
        self._process = process
        self.prepare, self.run, self.check = contender.prepare, contender.run, contender.check
        self.verify = contender.verify

    def begin(self, load: Load) -> None:
        self._contender.begin(load)
        self._process.signal(signal.SIGUSR1)

    def end(self, load: Load) -> None:
        self._process.signal(signal.SIGUSR1)
        self._contender.end(load)


def _read_samples(process: Process, path: Path) -> dict[str, Any]:
    deadline_s = time.monotonic() + WRITE_S_MAX
    while not path.exists():
        if time.monotonic() > deadline_s or process.exit_status() is not None:
            raise process.failure("wrote no samples:")
        time.sleep(POLL_INTERVAL_S)
    return dict(json.loads(path.read_text()))
