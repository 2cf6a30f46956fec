"""Several workers' reports as one. Pure.

Counters and what is in progress are summed. Of a breaker, which each worker has for itself, the state that keeps most
away is told, with the counts of the workers that are in it and how many these are.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from quorate_resilience import BreakerState

from quorate_gateway.proxy.balancing import EndpointReport
from quorate_gateway.served import (
    BreakerReport,
    LimitReport,
    LoadReport,
    PoolReport,
    RedisReport,
    RouteReport,
    Totals,
)

_SEVERITY = {
    state: rank
    for rank, state in enumerate(
        (
            BreakerState.FORCED_CLOSED, BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN,
            BreakerState.FORCED_OPEN,
        )
    )
}  # fmt: skip
NO_ENDPOINT = EndpointReport(0, 0.0, 0, 0.0)


def sum_routes(reports: Sequence[RouteReport]) -> RouteReport:
    return RouteReport(
        sum(one.active for one in reports), _columns(one.ended for one in reports),
        _columns(one.latency_buckets for one in reports), sum(one.latency_sum_s for one in reports),
        sum(one.retries for one in reports), sum(one.retries_refused for one in reports),
    )  # fmt: skip


def sum_limits(reports: Sequence[LimitReport]) -> LimitReport:
    return LimitReport(
        sum(one.admitted for one in reports), sum(one.limited for one in reports),
        sum(one.forgotten_early for one in reports), sum(one.waiting for one in reports),
        sum(one.local for one in reports),
    )  # fmt: skip


def merge_breakers(reports: Sequence[BreakerReport], departed: BreakerReport | None = None) -> BreakerReport:
    """`reports` is not empty. Of `departed`, only what it had counted from the beginning on counts."""
    worst = max((one.state for one in reports), key=_SEVERITY.__getitem__)
    like = [one for one in reports if one.state is worst]
    counted = [*reports, departed] if departed is not None else reports
    return BreakerReport(
        worst, sum(one.calls for one in like), sum(one.failed for one in like), sum(one.slow for one in like),
        min(one.retry_after_s for one in reports), sum(one.refused for one in counted),
        dict(sum((Counter(one.entered) for one in counted), Counter())), (len(like), len(reports)),
    )  # fmt: skip


def sum_pools(reports: Sequence[PoolReport]) -> PoolReport:
    """One that somebody still uses is not retired."""
    return PoolReport(
        sum(one.idle for one in reports), sum(one.busy for one in reports), sum(one.connecting for one in reports),
        sum(one.waiting for one in reports), sum(one.connect_failures for one in reports),
        all(one.retired for one in reports),
    )  # fmt: skip


def merge_endpoints(reports: Sequence[EndpointReport]) -> EndpointReport:
    """The latency is the highest, as is the time for which a worker still passes it over."""
    if not reports:
        return NO_ENDPOINT
    return EndpointReport(
        sum(one.active for one in reports), max(one.latency_s for one in reports),
        max(one.failures for one in reports), max(one.ejected_s for one in reports),
    )  # fmt: skip


def sum_totals(reports: Sequence[Totals]) -> Totals:
    refusals: Counter[str] = Counter()
    for one in reports:
        refusals.update(one.refusals)
    return Totals(
        sum(one.connections for one in reports), sum(one.accepted for one in reports),
        sum(one.refused for one in reports), sum(one.truncated for one in reports),
        sum(one.ejected for one in reports), _sum_loads([one.load for one in reports]), dict(refusals),
    )  # fmt: skip


def merge_redis(reports: Sequence[RedisReport], departed: RedisReport | None = None) -> RedisReport | None:
    """Up when it is for all of `reports`; of `departed`, only what it had counted counts."""
    counted = [*reports, departed] if departed is not None else reports
    if not counted:
        return None
    return RedisReport(
        bool(reports) and all(one.is_up for one in reports), sum(one.answered for one in counted),
        sum(one.late for one in counted), sum(one.errors for one in counted), sum(one.times_down for one in counted),
    )  # fmt: skip


def of_departed(totals: Totals) -> Totals:
    """What stays of a worker that has gone: what it had counted, and nothing that it had."""
    load = LoadReport(refused=totals.load.refused)
    return Totals(0, totals.accepted, totals.refused, totals.truncated, totals.ejected, load, totals.refusals)


def keep_counted(route: RouteReport) -> RouteReport:
    """The same for a route."""
    return RouteReport(
        0, route.ended, route.latency_buckets, route.latency_sum_s, route.retries, route.retries_refused
    )  # fmt: skip


def by_name(reports: Iterable[Mapping[str, RouteReport]]) -> dict[str, RouteReport]:
    """Each route's, of all that have it."""
    found: dict[str, list[RouteReport]] = {}
    for one in reports:
        for name, report in one.items():
            found.setdefault(name, []).append(report)
    return {name: sum_routes(of_route) for name, of_route in found.items()}


def _sum_loads(loads: Sequence[LoadReport]) -> LoadReport:
    return LoadReport(
        sum(one.active for one in loads), sum(one.active_max for one in loads),
        max((one.lag_s for one in loads), default=0.0), max((one.lag_s_max for one in loads), default=1.0),
        _columns(one.limits for one in loads), _columns(one.refused for one in loads),
    )  # fmt: skip


def _columns(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*rows, strict=True)))
