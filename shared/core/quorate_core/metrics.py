"""Metrics in Prometheus' text format, and the one metric that every process has: pauses of its event loop.

Counters and gauges are prometheus_client's own; name them `quorate_<part>_<what>_<unit>`.
"""

import asyncio

from prometheus_client import REGISTRY, CollectorRegistry, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from quorate_core.clock import Clock, SystemClock

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
LOOP_PROBE_INTERVAL_S = 0.02

LOOP_PAUSE = Histogram(
    "quorate_loop_pause_seconds",
    "How late the event loop ran a timer: the pause that everything on this loop has felt",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)


def render_metrics(registry: CollectorRegistry = REGISTRY) -> bytes:
    """All metrics of `registry` as Prometheus text."""
    return generate_latest(registry)


async def measure_loop_pauses(clock: Clock | None = None) -> None:
    """Feed `quorate_loop_pause_seconds` until cancelled."""
    clock = clock or SystemClock()
    while True:
        due_s = clock.monotonic_s() + LOOP_PROBE_INTERVAL_S
        await asyncio.sleep(LOOP_PROBE_INTERVAL_S)
        LOOP_PAUSE.observe(max(0.0, clock.monotonic_s() - due_s))
