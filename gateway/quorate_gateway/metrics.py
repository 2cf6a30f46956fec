"""The gateway's metrics, read from the data plane's plain counters when they are asked for."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from quorate_resilience import BreakerState

from quorate_gateway.control import Control
from quorate_gateway.proxy.counters import LATENCY_BOUNDS_S, RouteCounters
from quorate_gateway.proxy.plane import DataPlane

_CLASSES = ("client_gone", "1xx", "2xx", "3xx", "4xx", "5xx")
_STATES = {
    BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2,
    BreakerState.FORCED_CLOSED: 0, BreakerState.FORCED_OPEN: 2,
}  # fmt: skip
"""Forced states show as what they do; the transitions tell them apart."""


class GatewayCollector(Collector):
    """Register it once in a Prometheus registry."""

    def __init__(self, plane: DataPlane, control: Control) -> None:
        self._plane = plane
        self._control = control

    def collect(self) -> Iterable[Metric]:
        yield from self._routes()
        yield from self._policies()
        yield from self._connections()
        yield from self._snapshot()

    def _routes(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "quorate_gateway_requests", "Requests that have ended, by class of status", labels=["route", "status"]
        )  # fmt: skip
        seconds = HistogramMetricFamily(
            "quorate_gateway_request_seconds", "From a request's head to the end of its answer", labels=["route"]
        )
        retries = CounterMetricFamily("quorate_gateway_retries", "Tries after the first", labels=["route"])
        active = GaugeMetricFamily("quorate_gateway_requests_active", "Requests now in progress", labels=["route"])
        for name, counters in self._plane.counters.routes.items():
            for label, count in zip(_CLASSES, counters.ended, strict=True):
                if count:
                    requests.add_metric([name, label], count)
            seconds.add_metric([name], _cumulative(counters), counters.latency_sum_s)
            retries.add_metric([name], counters.retries)
            active.add_metric([name], counters.active)
        refusals = CounterMetricFamily(
            "quorate_gateway_refusals", "Answers that the gateway made itself, by rule", labels=["rule"]
        )
        for rule, count in self._plane.counters.refusals.items():
            refusals.add_metric([rule], count)
        return (requests, seconds, retries, active, refusals)

    def _policies(self) -> Iterable[Metric]:
        checked = CounterMetricFamily(
            "quorate_gateway_rate_limit", "Requests that met a rate limit, by what it said", labels=["route", "outcome"]
        )
        keys = GaugeMetricFamily("quorate_gateway_rate_limit_keys", "Keys that have a bucket now", labels=["route"])
        state = GaugeMetricFamily(
            "quorate_gateway_circuit_breaker_state", "0 closed, 1 half-open, 2 open", labels=["route"]
        )
        changes = CounterMetricFamily(
            "quorate_gateway_circuit_breaker_transitions", "Changes of state, by the one entered",
            labels=["route", "state"],
        )  # fmt: skip
        refused = CounterMetricFamily(
            "quorate_gateway_circuit_breaker_refused", "Requests that it did not let through", labels=["route"]
        )
        for route in self._plane.snapshot.routes:
            limit, breaker = route.limit, route.breaker
            if limit is not None:
                checked.add_metric([route.name, "admitted"], limit.admitted)
                checked.add_metric([route.name, "limited"], limit.limited)
                keys.add_metric([route.name], len(limit.limiter))
            if breaker is not None:
                state.add_metric([route.name], _STATES[breaker.state])
                refused.add_metric([route.name], breaker.refused)
                for entered, count in breaker.entered.items():
                    changes.add_metric([route.name, entered.value], count)
        return (checked, keys, state, changes, refused)

    def _connections(self) -> Iterable[Metric]:
        counters = self._plane.counters
        pools = GaugeMetricFamily(
            "quorate_gateway_upstream_connections", "Connections to an endpoint, by state", labels=["endpoint", "state"]
        )
        failures = CounterMetricFamily(
            "quorate_gateway_connect_failures", "Connections that could not be made", labels=["endpoint"]
        )
        for authority, pool in self._plane.pools.items():
            for state in ("idle", "busy", "connecting", "waiting"):
                pools.add_metric([authority, state], getattr(pool, state))
            failures.add_metric([authority], pool.connect_failures)
        accepted = CounterMetricFamily("quorate_gateway_connections_accepted", "Client connections accepted")
        accepted.add_metric([], counters.connections_accepted)
        refused = CounterMetricFamily("quorate_gateway_connections_refused", "Client connections over the limit")
        refused.add_metric([], counters.connections_refused)
        truncated = CounterMetricFamily("quorate_gateway_answers_truncated", "Answers that were cut short")
        truncated.add_metric([], counters.truncated)
        clients = GaugeMetricFamily("quorate_gateway_connections", "Client connections now open")
        clients.add_metric([], len(self._plane.clients))
        return (pools, failures, accepted, refused, truncated, clients)

    def _snapshot(self) -> Iterable[Metric]:
        revisions, rejected = self._control.revisions, self._control.rejected is not None
        values = (
            ("snapshot_revision", "Newest store revision in the snapshot", revisions.newest),
            ("routes_version", "Version of the routes document that is served", revisions.routes_version),
            ("snapshot_age_seconds", "0 while connected; else since the control plane last confirmed it",
             self._control.stale_s),
            ("control_plane_connected", "1 while both watches are open", int(self._control.connected)),
            ("routes_rejected", "1 while the newest published routes are invalid", int(rejected)),
        )  # fmt: skip
        for name, documentation, value in values:
            family = GaugeMetricFamily(f"quorate_gateway_{name}", documentation)
            family.add_metric([], value)
            yield family


def _cumulative(counters: RouteCounters) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*map(str, LATENCY_BOUNDS_S), "+Inf"), counters.latency_buckets, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
