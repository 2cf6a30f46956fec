"""What is being served, as the admin API and the metrics see it: one view of one data plane, or of several together.

`Served` is that view. `LocalPlane` is the view of the data plane in this process, read at the moment when somebody
asks; `quorate_gateway.workers.fleet.Fleet` is that of all workers together, from what they last reported. A report is
plain numbers: a worker sends it as it is.
"""

import os
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec
from quorate_resilience import BreakerState, CircuitBreaker

from quorate_gateway.matching import CompiledRoute
from quorate_gateway.policies.limit import RouteLimit
from quorate_gateway.policies.shared_limit import SharedLimits, SharedRouteLimit
from quorate_gateway.proxy.balancing import EndpointReport
from quorate_gateway.proxy.counters import RouteCounters
from quorate_gateway.proxy.plane import DataPlane
from quorate_gateway.proxy.upstream import EndpointPool
from quorate_gateway.snapshot import Snapshot

CLIENTS_SHOWN_MAX = 1_000
Forced = Literal["open", "closed"]


class RouteReport(msgspec.Struct, frozen=True, array_like=True):
    """One route's counters, as in `RouteCounters`."""

    active: int
    ended: tuple[int, ...]
    latency_buckets: tuple[int, ...]
    latency_sum_s: float
    retries: int
    retries_refused: int = 0


class LimitReport(msgspec.Struct, frozen=True, array_like=True):
    """What a route's limit has counted since it was last changed. `local`: of the checks, those of a shared limit that
    the own share has decided."""

    admitted: int
    limited: int
    forgotten_early: int
    waiting: int
    local: int


class BreakerReport(msgspec.Struct, frozen=True, array_like=True):
    """A route's circuit breaker; the counts are those that its state rests on. `workers`: how many of all are in this
    state."""

    state: BreakerState
    calls: int
    failed: int
    slow: int
    retry_after_s: float
    refused: int
    entered: dict[str, int]
    workers: tuple[int, int] = (1, 1)


class PoolReport(msgspec.Struct, frozen=True, array_like=True):
    """The connections to one endpoint. `retired`: it is routed no more."""

    idle: int
    busy: int
    connecting: int
    waiting: int
    connect_failures: int
    retired: bool


class LoadReport(msgspec.Struct, frozen=True, array_like=True):
    """How much there is to do. `limits` and `refused` are by priority; see `quorate_resilience.shedding`."""

    active: int = 0
    active_max: int = 0
    lag_s: float = 0.0
    lag_s_max: float = 1.0
    limits: tuple[int, ...] = (0, 0, 0)
    refused: tuple[int, ...] = (0, 0, 0)

    @property
    def saturation(self) -> float:
        """1.0 when full; may be above."""
        return max(self.active / max(self.active_max, 1), self.lag_s / self.lag_s_max)


class RedisReport(msgspec.Struct, frozen=True, array_like=True):
    """The connection that shared limits are counted by."""

    is_up: bool
    answered: int
    late: int
    errors: int
    times_down: int = 0


class ClientReport(msgspec.Struct, frozen=True, array_like=True):
    address: str
    state: str


class Totals(msgspec.Struct, frozen=True, array_like=True):
    """What is counted of a whole data plane. `connections` are open now; all else is since its start."""

    connections: int = 0
    accepted: int = 0
    refused: int = 0
    truncated: int = 0
    ejected: int = 0
    load: LoadReport = LoadReport()
    refusals: dict[str, int] = {}


class WorkerReport(NamedTuple):
    """One process that serves. `state`: `serving`, `starting`, `silent` (it does not report) or `gone`; `applied` is
    the newest revision that it serves by; `lag_s`, how late its event loop is."""

    number: int
    pid: int
    state: str
    connections: int
    accepted: int
    requests_active: int
    memory_bytes: int
    cpu_s: float
    lag_s: float
    applied: int


class Served(Protocol):
    """All of it is of one moment, which `refresh` may make this one."""

    monotonic_s: Callable[[], float]
    wall_s: Callable[[], float]
    restarts: int
    """Workers that were replaced."""

    @property
    def snapshot(self) -> Snapshot: ...

    @property
    def totals(self) -> Totals: ...

    @property
    def routes(self) -> Mapping[str, RouteReport]: ...

    @property
    def pools(self) -> Mapping[str, PoolReport]: ...

    @property
    def redis(self) -> RedisReport | None: ...

    @property
    def workers(self) -> Sequence[WorkerReport]: ...

    @property
    def clients(self) -> Sequence[ClientReport]:
        """At most CLIENTS_SHOWN_MAX of them."""
        ...

    def limit(self, route: CompiledRoute) -> LimitReport | None: ...

    def breaker(self, route: CompiledRoute) -> BreakerReport | None: ...

    def endpoint(self, instance_id: str, authority: str) -> EndpointReport: ...

    def force(self, route: CompiledRoute, forced: Forced | None) -> None:
        """Force a breaker that the route has, or release it."""
        ...

    async def refresh(self) -> None:
        """Ask again, where what is known is of a former moment."""
        ...


class LocalPlane:
    """`Served` of the data plane in this process."""

    restarts = 0

    def __init__(self, plane: DataPlane, shared: SharedLimits | None = None) -> None:
        self.plane = plane
        self.monotonic_s = plane.monotonic_s
        self.wall_s = plane.wall_s
        self._shared = shared

    @property
    def snapshot(self) -> Snapshot:
        return self.plane.snapshot

    @property
    def totals(self) -> Totals:
        counters, load = self.plane.counters, self.plane.load
        return Totals(
            len(self.plane.clients), counters.connections_accepted, counters.connections_refused, counters.truncated,
            self.plane.balancing.ejected,
            LoadReport(
                load.active, load.active_max, load.lag_s, load.lag_s_max, tuple(load.limits), tuple(load.refused)
            ),
            dict(counters.refusals),
        )  # fmt: skip

    @property
    def routes(self) -> Mapping[str, RouteReport]:
        return {name: _route_report(counters) for name, counters in self.plane.counters.routes.items()}

    @property
    def pools(self) -> Mapping[str, PoolReport]:
        return {authority: _pool_report(pool) for authority, pool in self.plane.pools.items()}

    @property
    def redis(self) -> RedisReport | None:
        shared = self._shared
        return None if shared is None else _redis_report(shared)

    @property
    def workers(self) -> Sequence[WorkerReport]:
        totals, cost = self.totals, process_cost()
        return (
            WorkerReport(
                1, os.getpid(), "serving", totals.connections, totals.accepted, totals.load.active, cost.memory_bytes,
                cost.cpu_s, totals.load.lag_s, self.snapshot.revisions.newest,
            ),
        )  # fmt: skip

    @property
    def clients(self) -> Sequence[ClientReport]:
        shown = zip(self.plane.clients, range(CLIENTS_SHOWN_MAX), strict=False)
        return [ClientReport(client.address, client.state) for client, _ in shown]

    def limit(self, route: CompiledRoute) -> LimitReport | None:
        return None if route.limit is None else _limit_report(route.limit)

    def breaker(self, route: CompiledRoute) -> BreakerReport | None:
        return None if route.breaker is None else _breaker_report(route.breaker, self.monotonic_s())

    def endpoint(self, instance_id: str, authority: str) -> EndpointReport:
        return self.plane.balancing.report(instance_id, authority)

    def force(self, route: CompiledRoute, forced: Forced | None) -> None:
        if route.breaker is not None:
            force_breaker(route.breaker, forced, self.monotonic_s())

    async def refresh(self) -> None:
        """It is always of this moment."""


class Cost(NamedTuple):
    """Of a process: resident memory, and the time of a processor that it has had."""

    memory_bytes: int
    cpu_s: float


def process_cost() -> Cost:
    """Of this one. The memory counts what it shares with others, such as libraries, once in each."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Cost(resident_pages * resource.getpagesize(), used.ru_utime + used.ru_stime)


def force_breaker(breaker: CircuitBreaker, forced: Forced | None, now_s: float) -> None:
    """Force it open or closed, or release it."""
    act = {"open": breaker.force_open, "closed": breaker.force_closed, None: breaker.release}
    act[forced](now_s)


def _route_report(counters: RouteCounters) -> RouteReport:
    return RouteReport(
        counters.active, tuple(counters.ended), tuple(counters.latency_buckets), counters.latency_sum_s,
        counters.retries, counters.retries_refused,
    )  # fmt: skip


def _limit_report(limit: RouteLimit) -> LimitReport:
    local = limit.decided_locally if isinstance(limit, SharedRouteLimit) else 0
    return LimitReport(limit.admitted, limit.limited, limit.limiter.forgotten_early, limit.waiting, local)


def _breaker_report(breaker: CircuitBreaker, now_s: float) -> BreakerReport:
    breaker.advance(now_s)
    calls, failed, slow = breaker.counts(now_s)
    entered = {state.value: count for state, count in breaker.entered.items() if count}
    return BreakerReport(
        breaker.state, calls, failed, slow, breaker.retry_after_s(now_s), breaker.refused, entered
    )  # fmt: skip


def _redis_report(shared: SharedLimits) -> RedisReport:
    return RedisReport(shared.is_up, shared.answered, shared.late, shared.errors, shared.times_down)


def _pool_report(pool: EndpointPool) -> PoolReport:
    return PoolReport(pool.idle, pool.busy, pool.connecting, pool.waiting, pool.connect_failures, pool.retired)
