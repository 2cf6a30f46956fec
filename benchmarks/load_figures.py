"""What a load generator says at its end: one line of JSON, the same from wrk, from our own clients and from a peer's.

Latencies are microseconds there, so that no figure is rounded before it is compared.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.failures import BenchmarkFailed

PREFIX = "figures "
FAILURES = ("connect_errors", "read_errors", "write_errors", "timeouts", "bad_statuses")
OUTPUT_CHARS_SHOWN_MAX = 1_000


@dataclass(frozen=True)
class LoadFigures:
    """What one run of a load generator saw. `failed` counts connections that broke, replies that did not come or were
    wrong, and statuses from 400 on. `extra` is what this generator says beyond the others."""

    requests: int
    duration_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    failed: int
    extra: Mapping[str, int] = field(default_factory=dict)

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.duration_s


def figures_line(
    requests: int, duration_s: float, latencies_s: tuple[float, float, float], failures: Mapping[str, int],
    **extra: int,
) -> str:  # fmt: skip
    """The line of a generator of our own. `latencies_s` are median, 99th percentile and longest."""
    p50_us, p99_us, max_us = (round(each * 1e6) for each in latencies_s)
    said = {
        "requests": requests, "duration_us": round(duration_s * 1e6), "p50_us": p50_us, "p99_us": p99_us,
        "max_us": max_us, **dict.fromkeys(FAILURES, 0), **failures, **extra,
    }  # fmt: skip
    return PREFIX + json.dumps(said)


def parse_figures(output: str) -> LoadFigures:
    """From the line among `output`. Raises BenchmarkFailed when there is none, or when it counted nothing."""
    line = next((line for line in output.splitlines() if line.startswith(PREFIX)), None)
    if line is None:
        raise BenchmarkFailed(f"the load generator gave no figures:\n{output[-OUTPUT_CHARS_SHOWN_MAX:]}")
    return figures_of(json.loads(line.removeprefix(PREFIX)))


def figures_of(said: dict[str, Any]) -> LoadFigures:
    """From what a generator says, read already. Raises BenchmarkFailed when it counted nothing."""
    said = dict(said)
    known = {name: said.pop(name) for name in ("requests", "duration_us", "p50_us", "p99_us", "max_us", *FAILURES)}
    failed = sum(known[name] for name in FAILURES)
    if known["requests"] <= 0 or known["duration_us"] <= 0:
        raise BenchmarkFailed(f"the load generator had no answer at all ({failed} failures)")
    return LoadFigures(
        requests=known["requests"], duration_s=known["duration_us"] / 1e6, p50_ms=known["p50_us"] / 1e3,
        p99_ms=known["p99_us"] / 1e3, max_ms=known["max_us"] / 1e3, failed=failed, extra=said,
    )  # fmt: skip
