"""What one of our nodes says of itself on `/metrics`, and the pauses of its event loop among it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from benchmarks.failures import BenchmarkFailed

PAUSE_S_MAX = 0.05
"""The design's bound on a pause of a node's event loop."""

_SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)
_PAUSES = "quorate_loop_pause_seconds_bucket"


@dataclass(frozen=True)
class Pauses:
    """A histogram of how late timers of an event loop were: of each bound in seconds, how many were within it. The
    difference of two is what has come between them."""

    within: Mapping[float, float]

    def __sub__(self, before: "Pauses") -> "Pauses":
        return Pauses({bound: count - before.within[bound] for bound, count in self.within.items()})

    @property
    def count(self) -> int:
        return int(max(self.within.values(), default=0.0))

    def longer_than(self, bound_s: float) -> int:
        """`bound_s` is one of the histogram's own."""
        return self.count - int(self.within[bound_s])

    @property
    def all_within_s(self) -> float:
        """The lowest bound that all of them kept to; infinite when some were longer than the highest."""
        return next((bound for bound, count in sorted(self.within.items()) if count == self.count), 0.0)


class NodeMetrics:
    """One look at a node's metrics."""

    def __init__(self, text: str) -> None:
        found = _SAMPLE.finditer(text)
        self._samples = [(each["name"], each["labels"] or "", float(each["value"])) for each in found]

    def total(self, metric: str) -> float:
        """The sum over all labels."""
        return sum(value for name, _, value in self._samples if name == metric)

    @property
    def pauses(self) -> Pauses:
        """Raises BenchmarkFailed when the node measures none with the bound that matters."""
        within = {
            math.inf if (bound := labels.partition('le="')[2].partition('"')[0]) == "+Inf" else float(bound): value
            for name, labels, value in self._samples
            if name == _PAUSES
        }
        if PAUSE_S_MAX not in within:
            raise BenchmarkFailed(f"the node has no {_PAUSES} of {PAUSE_S_MAX} s")
        return Pauses(within)


def read_metrics(http: httpx.Client, url: str) -> NodeMetrics:
    return NodeMetrics(http.get(f"{url}/metrics").text)
