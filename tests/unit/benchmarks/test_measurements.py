"""Medians, spreads, ratios within rounds, goals, and whose turn it is."""

import pytest

from benchmarks.measurements import Bound, Figure, Goal, Measurement, Spread, compare, spread_of, turn_order


def measured(round_number: int, contender: str, rate: float, p99_ms: float = 2.0, load: str = "put") -> Measurement:
    return Measurement(
        round_number, contender, load, rate, p50_ms=1.0, p99_ms=p99_ms, max_ms=9.0, cores_busy=0.5, memory_mib=64
    )


def test_a_spread_is_the_median_with_the_lowest_and_the_highest() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0, 3)
    assert Spread.of([1.0, 2.0]).median == 1.5
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])


def test_ratios_are_taken_within_a_round_before_their_median_is() -> None:
    # The machine was twice as fast in the second round, for both: no ratio moves.
    rounds = [measured(0, "us", 100), measured(0, "peer", 50), measured(1, "peer", 100), measured(1, "us", 200)]
    comparison = compare(rounds, "put", "us", "peer", Figure.RATE)
    assert comparison is not None
    assert comparison.ratio == Spread(2.0, 2.0, 2.0, 2)
    assert comparison.verdict == ""


def test_a_round_in_which_one_side_failed_counts_for_no_ratio() -> None:
    rounds = [measured(0, "us", 100), measured(1, "us", 300), measured(1, "peer", 100)]
    comparison = compare(rounds, "put", "us", "peer", Figure.RATE)
    assert comparison is not None
    assert comparison.ratio == Spread(3.0, 3.0, 3.0, 1)
    assert compare(rounds[:2], "put", "us", "peer", Figure.RATE) is None
    assert compare(rounds, "get", "us", "peer", Figure.RATE) is None


def test_a_goal_for_the_rate_is_a_least_and_one_for_a_latency_a_most() -> None:
    rate = Goal("put", "us", "peer", Figure.RATE, 1.5)
    latency = Goal("put", "us", "peer", Figure.P99, 1.0)
    rounds = [measured(0, "us", 149, p99_ms=2.0), measured(0, "peer", 100, p99_ms=2.0)]

    def verdict(figure: Figure) -> str:
        comparison = compare(rounds, "put", "us", "peer", figure, [rate, latency])
        assert comparison is not None
        return comparison.verdict

    assert verdict(Figure.RATE) == "≥ 1.5 missed"
    assert verdict(Figure.P99) == "≤ 1 met"
    assert verdict(Figure.P50) == ""
    assert rate.is_met_by(1.5)
    assert not latency.is_met_by(1.01)


def test_a_goal_counts_only_for_its_own_peer_and_load() -> None:
    goal = Goal("put", "us", "another", Figure.RATE, 1.5)
    comparison = compare([measured(0, "us", 9), measured(0, "peer", 9)], "put", "us", "peer", Figure.RATE, [goal])
    assert comparison is not None
    assert comparison.goal is None


def test_processor_time_of_a_request_is_the_cores_busy_over_the_rate() -> None:
    assert measured(0, "us", 10_000).cpu_us_per_request == pytest.approx(50.0)
    assert Figure.CPU.of(measured(0, "us", 10_000)) == pytest.approx(50.0)


def test_a_contender_that_was_never_measured_has_no_spread() -> None:
    rounds = [measured(0, "us", 100), measured(0, "us", 900, load="get")]
    assert spread_of(rounds, "put", "peer", Figure.RATE.of) is None
    assert spread_of(rounds, "put", "us", Figure.RATE.of) == Spread(100, 100, 100, 1)


def test_each_round_begins_with_the_next_contender() -> None:
    names = ["a", "b", "c"]
    orders = [turn_order(names, number) for number in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
    assert turn_order([], 3) == []


def test_a_bound_is_kept_by_the_median_and_told_with_the_figure() -> None:
    bound = Bound("put", "us", Figure.P99, 100.0)
    assert bound.verdict(Spread.of([90.0, 100.0, 300.0])) == "us, put: p99 100.0 ms (≤ 100 ms met)"
    assert bound.verdict(Spread.of([100.1])) == "us, put: p99 100.1 ms (≤ 100 ms missed)"
