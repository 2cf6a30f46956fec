"""What workers report, as one: sums that never go back, also when workers go and routes come and go."""

from hypothesis import given
from hypothesis import strategies as st
from quorate_gateway.served import BreakerReport, LimitReport, RedisReport, RouteReport, Totals
from quorate_gateway.workers.merging import by_name, merge_breakers, merge_redis, sum_totals
from quorate_gateway.workers.messages import Report
from quorate_gateway.workers.tally import Departed, Tally
from quorate_resilience import BreakerState
from support.gateway_snapshots import snapshot

ROUTE = """\
  - {name: orders, match: {path_prefix: /orders}, service: order, rate_limit: {requests_per_second: 5},
     circuit_breaker: {}}
"""
OTHER = ROUTE.replace("orders", "others")


def route_report(ended: int, active: int = 0) -> RouteReport:
    return RouteReport(active, (0, 0, ended, 0, 0, 0), (ended, *[0] * 14), 0.5 * ended, ended)


def breaker_report(state: BreakerState, refused: int = 0, retry_after_s: float = 0.0) -> BreakerReport:
    return BreakerReport(state, 4, 2, 1, retry_after_s, refused, {"open": refused})


def report(ended: int, active: int = 0) -> Report:
    return Report(
        0, Totals(connections=active, accepted=ended, refusals={"no-route": ended}),
        {"orders": route_report(ended, active)}, {"orders": LimitReport(ended, ended, 0, active, 0)},
        {"orders": breaker_report(BreakerState.CLOSED, ended)}, [], RedisReport(True, ended, 0, 0), 1, 1.0,
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.booleans())))
def test_sums_never_go_back_and_lose_only_what_was_never_reported(steps: list[tuple[int, int, bool]]) -> None:
    departed, tallies = Departed(), [Tally() for _ in range(3)]
    departed.follow(snapshot(ROUTE))
    counts, expected = [0, 0, 0], 0
    for number, more, dies in steps:
        counts[number] += more
        expected += more
        tallies[number].take(report(counts[number], active=1))
        if dies:
            departed.add(tallies[number])
            tallies[number], counts[number] = Tally(), 0
        totals = sum_totals([departed.totals, *(tally.totals for tally in tallies)])
        routes = by_name([departed.routes, *(tally.routes for tally in tallies)])
        assert totals.accepted == expected
        assert totals.refusals.get("no-route", 0) == expected
        redis = merge_redis([tally.redis for tally in tallies if tally.redis is not None], departed.redis)
        assert (0 if redis is None else redis.answered) == expected
        assert redis is None or redis.is_up == any(tally.redis is not None for tally in tallies), "by the living alone"
        assert totals.connections == sum(bool(tally.routes) for tally in tallies), "of the living alone"
        if "orders" in routes:
            assert routes["orders"].ended[2] == routes["orders"].retries == expected
            assert routes["orders"].active == totals.connections


def test_what_a_worker_had_counted_stays_while_its_route_does_and_is_the_same() -> None:
    departed, tally = Departed(), Tally()
    first = snapshot(ROUTE + OTHER)
    departed.follow(first)
    tally.take(report(3))
    departed.add(tally)
    assert (departed.routes["orders"].ended[2], departed.limits["orders"].admitted) == (3, 3)
    assert departed.breakers["orders"].refused == 3
    changed = snapshot(ROUTE.replace("second: 5", "second: 6") + OTHER)
    departed.follow(changed)
    assert departed.routes["orders"].ended[2] == 3
    assert departed.limits == {}
    departed.follow(snapshot(OTHER))
    assert departed.routes == {}
    assert departed.breakers == {}


def test_a_route_that_a_worker_has_no_more_is_not_counted_for_it() -> None:
    tally = Tally()
    tally.take(report(3))
    tally.take(Report(0, Totals(), {}, {}, {}, ["orders"], None, 1, 1.0))
    assert (tally.routes, tally.limits, tally.breakers) == ({}, {}, {})


def test_of_breakers_the_state_that_keeps_most_away_is_told_with_how_many_are_in_it() -> None:
    opened = breaker_report(BreakerState.OPEN, refused=7, retry_after_s=3.0)
    closed = breaker_report(BreakerState.CLOSED, refused=1)
    merged = merge_breakers([closed, opened, closed], departed=breaker_report(BreakerState.FORCED_OPEN, refused=2))
    assert (merged.state, merged.workers) == (BreakerState.OPEN, (1, 3))
    assert (merged.calls, merged.failed, merged.slow) == (4, 2, 1)
    assert merged.retry_after_s == 0.0, "others of the workers take requests"
    assert merged.refused == 11
    assert merged.entered == {"open": 11}
