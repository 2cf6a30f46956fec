"""What is read from a node's metrics."""

import math

import pytest

from benchmarks.failures import BenchmarkFailed
from benchmarks.node_metrics import NodeMetrics, Pauses

TEXT = """\
# HELP quorate_raft_elections_total Elections
quorate_raft_elections_total{member="a"} 2.0
quorate_raft_elections_total{member="b"} 3.0
quorate_loop_pause_seconds_bucket{le="0.025"} 90.0
quorate_loop_pause_seconds_bucket{le="0.05"} 97.0
quorate_loop_pause_seconds_bucket{le="0.1"} 99.0
quorate_loop_pause_seconds_bucket{le="+Inf"} 100.0
quorate_loop_pause_seconds_count 100.0
"""


def test_a_counter_is_the_sum_over_its_labels() -> None:
    metrics = NodeMetrics(TEXT)
    assert metrics.total("quorate_raft_elections_total") == 5.0
    assert metrics.total("no_such_total") == 0.0


def test_pauses_are_counted_by_how_long_they_were() -> None:
    pauses = NodeMetrics(TEXT).pauses
    assert pauses.count == 100
    assert pauses.longer_than(0.05) == 3
    assert pauses.all_within_s == math.inf


def test_a_difference_is_about_what_came_in_between_alone() -> None:
    before = NodeMetrics(TEXT).pauses
    after = Pauses({bound: count + (12 if bound >= 0.05 else 10) for bound, count in before.within.items()})
    between = after - before
    assert (between.count, between.longer_than(0.025), between.longer_than(0.05)) == (12, 2, 0)
    assert between.all_within_s == 0.05
    assert (before - before).all_within_s == 0.025
    assert (before - before).count == 0


def test_a_node_that_measures_no_pauses_is_not_taken_for_one_that_has_none() -> None:
    with pytest.raises(BenchmarkFailed, match="quorate_loop_pause"):
        _ = NodeMetrics("quorate_raft_elections_total 1.0\n").pauses
