"""What is measured, and what is said of many measurements: medians, spreads, and ratios between contenders.

Ratios are taken within a round and only then summarised: what disturbs the machine for a minute disturbs both sides of
a ratio, and moves it less than it moves either figure.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Measurement:
    """One load on one contender in one round. `cores_busy` and `memory_mib` are of the contender alone."""

    round: int
    contender: str
    load: str
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cores_busy: float
    memory_mib: float

    @property
    def cpu_us_per_request(self) -> float:
        return self.cores_busy / self.requests_per_s * 1e6


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the lowest and the highest of them."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Raises ValueError when there are none."""
        found = list(values)
        if not found:
            raise ValueError("nothing was measured")
        return cls(statistics.median(found), min(found), max(found), len(found))


class Figure(Enum):
    """A figure by which contenders are compared."""

    RATE = "requests/s"
    P50 = "p50"
    P99 = "p99"
    CPU = "CPU a request"

    def of(self, measurement: Measurement) -> float:
        return _READ[self](measurement)


_READ: Mapping[Figure, Callable[[Measurement], float]] = {
    Figure.RATE: lambda each: each.requests_per_s,
    Figure.P50: lambda each: each.p50_ms,
    Figure.P99: lambda each: each.p99_ms,
    Figure.CPU: lambda each: each.cpu_us_per_request,
}


@dataclass(frozen=True)
class Goal:
    """What the ratio of `us` to `peer` under `load` should be: at least, or (where less is better) at most `bound`."""

    load: str
    us: str
    peer: str
    figure: Figure
    bound: float

    @property
    def less_is_better(self) -> bool:
        return self.figure is not Figure.RATE

    def is_met_by(self, ratio: float) -> bool:
        return ratio <= self.bound if self.less_is_better else ratio >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.less_is_better else '≥'} {self.bound:g}"


@dataclass(frozen=True)
class Bound:
    """What a figure of `us` should be by itself, whatever the peers': at most so many milliseconds."""

    load: str
    us: str
    figure: Figure
    most_ms: float

    def verdict(self, measured: Spread) -> str:
        kept = "met" if measured.median <= self.most_ms else "missed"
        return f"{self.us}, {self.load}: {self.figure.value} {measured.median:.1f} ms (≤ {self.most_ms:g} ms {kept})"


@dataclass(frozen=True)
class Comparison:
    """The ratio of two contenders under one load by one figure, and the goal where there is one."""

    load: str
    us: str
    peer: str
    figure: Figure
    ratio: Spread
    goal: Goal | None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return f"{self.goal} {'met' if self.goal.is_met_by(self.ratio.median) else 'missed'}"


def spread_of(
    measurements: Sequence[Measurement], load: str, contender: str, read: Callable[[Measurement], float]
) -> Spread | None:
    """None when this contender was never measured under this load."""
    values = [read(each) for each in measurements if (each.load, each.contender) == (load, contender)]
    return Spread.of(values) if values else None


def compare(
    measurements: Sequence[Measurement], load: str, us: str, peer: str, figure: Figure, goals: Sequence[Goal] = ()
) -> Comparison | None:
    """None when there is no round in which both were measured."""
    by_round = {
        name: {each.round: each for each in measurements if (each.load, each.contender) == (load, name)}
        for name in (us, peer)
    }
    shared = sorted(by_round[us].keys() & by_round[peer].keys())
    if not shared:
        return None
    ratio = Spread.of(figure.of(by_round[us][each]) / figure.of(by_round[peer][each]) for each in shared)
    key = (load, us, peer, figure)
    goal = next((goal for goal in goals if (goal.load, goal.us, goal.peer, goal.figure) == key), None)
    return Comparison(load, us, peer, figure, ratio, goal)


def turn_order(names: Sequence[str], round_number: int) -> list[str]:
    """The contenders' order in a round, counted from 0: each round begins with the next of them, so that none always
    runs first, or always behind the same one."""
    start = round_number % len(names) if names else 0
    return [*names[start:], *names[:start]]
