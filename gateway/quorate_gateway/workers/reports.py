"""What a worker tells of itself: counters several times a second, and details when it is asked."""

from typing import TypeVar

from quorate_gateway.served import BreakerReport, LimitReport, LocalPlane, RouteReport, process_cost
from quorate_gateway.workers.messages import Details, Report, endpoint_key

T = TypeVar("T")


class Reporter:
    """Makes the reports of one worker. Of routes it tells only what is other than in the report before."""

    def __init__(self, served: LocalPlane) -> None:
        self._served = served
        self._routes: dict[str, RouteReport] = {}
        self._limits: dict[str, LimitReport] = {}
        self._breakers: dict[str, BreakerReport] = {}

    def report(self, answers: int = 0) -> Report:
        """`answers` is the number of who asked, and wants the details; 0 for nobody."""
        served, cost = self._served, process_cost()
        routes = dict(served.routes)
        limits = {route.name: limit for route in served.snapshot.routes if (limit := served.limit(route)) is not None}
        breakers = {
            route.name: breaker for route in served.snapshot.routes if (breaker := served.breaker(route)) is not None
        }
        former = self._routes.keys() | self._limits.keys() | self._breakers.keys()
        left = former - (routes.keys() | limits.keys() | breakers.keys())
        report = Report(
            answers, served.totals, _others(self._routes, routes), _others(self._limits, limits),
            _others(self._breakers, breakers), sorted(left), served.redis, cost.memory_bytes, cost.cpu_s,
            self._details() if answers else None,
        )  # fmt: skip
        self._routes, self._limits, self._breakers = routes, limits, breakers
        return report

    def _details(self) -> Details:
        served = self._served
        endpoints = {}
        for found in served.snapshot.endpoints.values():
            for endpoint in found:
                told = served.endpoint(endpoint.instance_id, endpoint.authority)
                if any(told):
                    endpoints[endpoint_key(endpoint.instance_id, endpoint.authority)] = told
        return Details(dict(served.pools), endpoints, list(served.clients))


def _others(former: dict[str, T], now: dict[str, T]) -> dict[str, T]:
    return {name: value for name, value in now.items() if former.get(name) != value}
