"""What one worker has reported so far, and what is kept of those that have gone: counters never go back."""

from collections.abc import Mapping

from quorate_gateway.matching import CompiledRoute
from quorate_gateway.served import BreakerReport, LimitReport, RedisReport, RouteReport, Totals
from quorate_gateway.snapshot import Snapshot
from quorate_gateway.workers.merging import (
    by_name,
    keep_counted,
    merge_breakers,
    merge_redis,
    of_departed,
    sum_limits,
    sum_totals,
)
from quorate_gateway.workers.messages import Details, Report

NO_DETAILS = Details({}, {}, [])


class Tally:
    """One worker's, from report to report."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.routes: dict[str, RouteReport] = {}
        self.limits: dict[str, LimitReport] = {}
        self.breakers: dict[str, BreakerReport] = {}
        self.redis: RedisReport | None = None
        self.details = NO_DETAILS
        self.memory_bytes = 0
        self.cpu_s = 0.0

    def take(self, report: Report) -> None:
        self.totals, self.redis = report.totals, report.redis
        self.memory_bytes, self.cpu_s = report.memory_bytes, report.cpu_s
        for name in report.routes_left:
            self._forget(name)
        self.routes.update(report.routes)
        self.limits.update(report.limits)
        self.breakers.update(report.breakers)
        if report.details is not None:
            self.details = report.details

    def _forget(self, name: str) -> None:
        self.routes.pop(name, None)
        self.limits.pop(name, None)
        self.breakers.pop(name, None)


class Departed:
    """What workers that have gone had counted. Of a route it is kept while the route is there; of its limit and its
    breaker, while these are the same, as their own counts are."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.routes: dict[str, RouteReport] = {}
        self.limits: dict[str, LimitReport] = {}
        self.breakers: dict[str, BreakerReport] = {}
        self.redis: RedisReport | None = None
        self._snapshot_routes: Mapping[str, CompiledRoute] = {}

    def add(self, gone: Tally) -> None:
        self.totals = sum_totals([self.totals, of_departed(gone.totals)])
        self.redis = merge_redis([one for one in (self.redis, gone.redis) if one is not None])
        counted = {name: keep_counted(report) for name, report in gone.routes.items() if name in self._snapshot_routes}
        self.routes = by_name([self.routes, counted])
        for name, route in self._snapshot_routes.items():
            limit, breaker = gone.limits.get(name), gone.breakers.get(name)
            if limit is not None and route.limit is not None:
                former = self.limits.get(name)
                self.limits[name] = limit if former is None else sum_limits([former, limit])
            if breaker is not None and route.breaker is not None:
                self.breakers[name] = merge_breakers([breaker], self.breakers.get(name))

    def follow(self, snapshot: Snapshot) -> None:
        """Forget what is no more."""
        former, now = self._snapshot_routes, {route.name: route for route in snapshot.routes}
        self._snapshot_routes = now
        for name in self.routes.keys() - now.keys():
            del self.routes[name]
        for name in tuple(self.limits):
            if name not in now or now[name].limit is not former[name].limit:
                del self.limits[name]
        for name in tuple(self.breakers):
            if name not in now or now[name].breaker is not former[name].breaker:
                del self.breakers[name]
