"""The gateway's metrics, read from plain counters when they are asked for: of one data plane, or of all workers as one.

A gauge is of the moment of the scrape. What is counted by route goes when the route goes; what a limit or a breaker
counts begins anew when its parameters change.
"""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from quorate_resilience import BreakerState
from quorate_resilience.shedding import Priority

from quorate_gateway.control import Control
from quorate_gateway.proxy import COMPILED
from quorate_gateway.proxy.counters import LATENCY_BOUNDS_S
from quorate_gateway.proxy.tls import Certificate
from quorate_gateway.served import RouteReport, Served

_CLASSES = ("client_gone", "1xx", "2xx", "3xx", "4xx", "5xx")
_STATES = {
    BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2,
    BreakerState.FORCED_CLOSED: 0, BreakerState.FORCED_OPEN: 2,
}  # fmt: skip
"""Forced states show as what they do; the transitions tell them apart."""


class GatewayCollector(Collector):
    """Register it once in a Prometheus registry. `certificate` is that of the port that clients come to."""

    def __init__(self, served: Served, control: Control, certificate: Certificate | None = None) -> None:
        self._served = served
        self._control = control
        self._certificate = certificate

    def collect(self) -> Iterable[Metric]:
        yield from self._routes()
        yield from self._limits()
        yield from self._breakers()
        yield from self._connections()
        yield from self._endpoints()
        yield from self._load()
        yield from self._redis()
        yield from self._token_keys()
        yield from self._workers()
        yield from self._snapshot()

    def _routes(self) -> Iterable[Metric]:
        requests = _counter("requests", "Requests that have ended, by class of status", "route", "status")
        seconds = HistogramMetricFamily(
            "quorate_gateway_request_seconds", "From a request's head to the end of its answer", labels=["route"]
        )
        retries = _counter("retries", "Tries after the first", "route")
        unpaid = _counter("retries_refused", "Tries that the route's retry budget did not allow", "route")
        active = _gauge("requests_active", "Requests now in progress", "route")
        for name, report in self._served.routes.items():
            for label, count in zip(_CLASSES, report.ended, strict=True):
                if count:
                    requests.add_metric([name, label], count)
            seconds.add_metric([name], _cumulative(report), report.latency_sum_s)
            retries.add_metric([name], report.retries)
            unpaid.add_metric([name], report.retries_refused)
            active.add_metric([name], report.active)
        refusals = _counter("refusals", "Answers that the gateway made itself, by rule", "rule")
        for rule, count in self._served.totals.refusals.items():
            refusals.add_metric([rule], count)
        return (requests, seconds, retries, unpaid, active, refusals)

    def _limits(self) -> Iterable[Metric]:
        checked = _counter("rate_limit", "Requests that met a rate limit, by what it said", "route", "outcome")
        keys = _gauge("rate_limit_keys", "Keys that have a bucket now", "route")
        waiting = _gauge("rate_limit_waiting", "Requests now in the queue of a leaky bucket", "route")
        local = _counter("rate_limit_local", "Checks of a shared limit that the gateway's own share decided", "route")
        for route in self._served.snapshot.routes:
            report = self._served.limit(route)
            if route.limit is None or report is None:
                continue
            checked.add_metric([route.name, "admitted"], report.admitted)
            checked.add_metric([route.name, "limited"], report.limited)
            keys.add_metric([route.name], len(route.limit.limiter))
            waiting.add_metric([route.name], report.waiting)
            if route.limit.document.shared:
                local.add_metric([route.name], report.local)
        return (checked, keys, waiting, local)

    def _breakers(self) -> Iterable[Metric]:
        state = _gauge("circuit_breaker_state", "0 closed, 1 half-open, 2 open; of workers, the highest", "route")
        changes = _counter("circuit_breaker_transitions", "Changes of state, by the one entered", "route", "state")
        refused = _counter("circuit_breaker_refused", "Requests that it did not let through", "route")
        for route in self._served.snapshot.routes:
            report = self._served.breaker(route)
            if report is None:
                continue
            state.add_metric([route.name], _STATES[report.state])
            refused.add_metric([route.name], report.refused)
            for entered in BreakerState:
                changes.add_metric([route.name, entered.value], report.entered.get(entered.value, 0))
        return (state, changes, refused)

    def _connections(self) -> Iterable[Metric]:
        pools = _gauge("upstream_connections", "Connections to an endpoint, by state", "endpoint", "state")
        failures = _counter("connect_failures", "Connections that could not be made", "endpoint")
        for authority, pool in self._served.pools.items():
            for state in ("idle", "busy", "connecting", "waiting"):
                pools.add_metric([authority, state], getattr(pool, state))
            failures.add_metric([authority], pool.connect_failures)
        yield pools
        yield failures
        totals = self._served.totals
        yield _counted("connections_accepted", "Client connections accepted", totals.accepted)
        yield _counted("connections_refused", "Client connections over the limit", totals.refused)
        yield _counted("answers_truncated", "Answers that were cut short", totals.truncated)
        yield _value("connections", "Client connections now open", totals.connections)
        if self._certificate is not None:
            yield _value(
                "tls_certificate_not_after_seconds", "When the certificate ends, in seconds since the Unix epoch",
                self._certificate.not_after_s,
            )  # fmt: skip

    def _endpoints(self) -> Iterable[Metric]:
        """Of routed services."""
        routed = _gauge("endpoints", "Instances that take traffic", "service")
        ejected = _gauge("endpoints_ejected", "Of these, those passed over for their failures now", "service")
        for service, endpoints in self._served.snapshot.endpoints.items():
            reports = (self._served.endpoint(one.instance_id, one.authority) for one in endpoints)
            routed.add_metric([service], len(endpoints))
            ejected.add_metric([service], sum(report.ejected_s > 0 for report in reports))
        yield routed
        yield ejected
        yield _counted("ejections", "Endpoints passed over for their failures, since the start",
                       self._served.totals.ejected)  # fmt: skip

    def _load(self) -> Iterable[Metric]:
        load = self._served.totals.load
        shed = _counter("requests_shed", "Requests refused for want of room, by priority", "priority")
        limits = _gauge("requests_active_limit", "Requests in progress above which a priority is refused", "priority")
        for priority in Priority:
            shed.add_metric([priority.name.lower()], load.refused[priority])
            limits.add_metric([priority.name.lower()], load.limits[priority])
        yield shed
        yield limits
        yield _value("saturation_ratio", "1 when the gateway is full, by requests in progress or by lag",
                     load.saturation)  # fmt: skip
        yield _value("lag_seconds", "How late the event loop is; of workers, the latest", load.lag_s)

    def _redis(self) -> Iterable[Metric]:
        redis = self._served.redis
        if redis is None:
            return
        yield _value("redis_up", "1 while shared limits are counted in Redis", int(redis.is_up))
        yield _counted("redis_answers", "Questions that Redis answered in time", redis.answered)
        yield _counted("redis_late", "Questions that it did not answer in time", redis.late)
        yield _counted("redis_errors", "Questions that it answered with an error", redis.errors)
        yield _counted("redis_downs", "How often it was given up for a while", redis.times_down)

    def _token_keys(self) -> Iterable[Metric]:
        """By provider of tokens, of those whose keys are fetched."""
        ages = _gauge("jwks_age_seconds", "Since the provider's keys were last fetched", "provider")
        failing = _gauge("jwks_failing", "1 while the last fetch failed", "provider")
        failures = _counter("jwks_fetch_failures", "Fetches that failed", "provider")
        now_s = self._served.monotonic_s()
        for provider, source in self._control.context.tokens.fetched.items():
            if source.fetched_at_s is not None:
                ages.add_metric([provider], max(0.0, now_s - source.fetched_at_s))
            failing.add_metric([provider], int(source.failure is not None))
            failures.add_metric([provider], source.failures)
        return (ages, failing, failures)

    def _workers(self) -> Iterable[Metric]:
        up = _gauge("worker_up", "1 while the worker serves", "worker")
        connections = _gauge("worker_connections", "Client connections of a worker", "worker")
        active = _gauge("worker_requests_active", "Requests in progress in a worker", "worker")
        memory = _gauge("worker_memory_bytes", "Resident memory of a worker", "worker")
        cpu = _counter("worker_cpu_seconds", "Processor time of a worker since its start", "worker")
        for worker in self._served.workers:
            label = [str(worker.number)]
            up.add_metric(label, int(worker.state == "serving"))
            connections.add_metric(label, worker.connections)
            active.add_metric(label, worker.requests_active)
            memory.add_metric(label, worker.memory_bytes)
            cpu.add_metric(label, worker.cpu_s)
        restarts = _counted("worker_restarts", "Workers that were replaced by another one", self._served.restarts)
        return (up, connections, active, memory, cpu, restarts)

    def _snapshot(self) -> Iterable[Metric]:
        control, revisions = self._control, self._control.revisions
        yield _value("compiled", "1 when what every request goes through runs compiled", int(COMPILED.is_compiled))
        yield _value("snapshot_revision", "Newest store revision in the snapshot", revisions.newest)
        yield _value("routes_version", "Version of the routes document that is served", revisions.routes_version)
        yield _value(
            "snapshot_age_seconds", "0 while connected; else since the control plane last confirmed it", control.stale_s
        )
        yield _value("control_plane_connected", "1 while both watches are open", int(control.connected))
        yield _value("routes_rejected", "1 while the newest published routes are invalid", int(bool(control.rejected)))


def _counter(name: str, documentation: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"quorate_gateway_{name}", documentation, labels=labels)


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"quorate_gateway_{name}", documentation, labels=labels)


def _counted(name: str, documentation: str, count: float) -> Metric:
    return CounterMetricFamily(f"quorate_gateway_{name}", documentation, value=count)


def _value(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"quorate_gateway_{name}", documentation, value=value)


def _cumulative(report: RouteReport) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*map(str, LATENCY_BOUNDS_S), "+Inf"), report.latency_buckets, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
