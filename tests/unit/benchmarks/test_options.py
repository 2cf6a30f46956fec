"""The command line."""

import os
from pathlib import Path

import pytest

from benchmarks.options import FULL, KEYS_FULL, KEYS_QUICK, QUICK, Options, parse_options
from benchmarks.rounds import Timing

ALLOWED = sorted(os.sched_getaffinity(0))
SCENARIOS = {"gateway": "proxies", "store": "puts and ranges"}
CORES = ",".join(map(str, ALLOWED[:2]))


def options(*arguments: str) -> Options:
    return parse_options([*arguments, "--cores", CORES], SCENARIOS, ["nginx", "etcd", "quorate"])


@pytest.fixture(autouse=True)
def _two_cores() -> None:
    if len(ALLOWED) < 2:
        pytest.skip("this machine lets us use one core only")


def test_everything_is_measured_quickly_by_default_and_nothing_written() -> None:
    assert options() == Options(
        ("gateway", "store"), QUICK, are_seconds_given=False, is_full=False, only=(), loads=(), keys=KEYS_QUICK,
        cores=tuple(ALLOWED[:2]), write=False, profile=False, json_file=None,
    )  # fmt: skip


def test_single_values_take_the_place_of_those_of_the_mode() -> None:
    assert options("--full").timing == FULL
    assert options("--full", "--rounds", "9").timing == Timing(9, FULL.measure_s, FULL.warm_up_s)
    assert options("--seconds", "7", "--warm-up", "3").timing == Timing(QUICK.rounds, 7, 3)


def test_a_scenario_may_take_longer_in_the_full_run_unless_seconds_are_given() -> None:
    assert options("--full").timing_of(30) == Timing(FULL.rounds, 30, FULL.warm_up_s)
    assert options("--full").timing_of(None) == FULL
    assert options().timing_of(30) == QUICK
    assert options("--full", "--seconds", "7").timing_of(30).measure_s == 7


def test_the_full_run_has_more_keys_unless_their_number_is_given() -> None:
    assert options("--full").keys == KEYS_FULL
    assert options("--full", "--keys", "20000").keys == 20_000


def test_loads_are_chosen_by_any_part_of_their_names() -> None:
    assert options("--load", "put, 64", "--load", "range").loads == ("put, 64", "range")


def test_help_says_of_each_scenario_what_it_measures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_options(["store", "--help"], SCENARIOS, [])
    assert exit_info.value.code == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {"gateway proxies", "store puts and ranges"} <= set(lines)


def test_what_was_chosen_is_kept() -> None:
    chosen = options("store", "--only", "etcd,quorate", "--write", "--profile", "--json", "x.json")
    assert (chosen.scenarios, chosen.only, chosen.write, chosen.profile) == (
        ("store",),
        ("etcd", "quorate"),
        True,
        True,
    )
    assert chosen.json_file == Path("x.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stroe"], "no such scenario: stroe; there are: gateway, store"),
        (["--only", "caddy"], "no such contender: caddy"),
        (["--rounds", "0"], "0 is not between 1 and"),
        (["--keys", "10"], "10 is not between"),
        (["--seconds", "1e9"], "--seconds"),
        (["--cores", "0"], "two different cores"),
        (["--cores", "0,0"], "two different cores"),
        (["--cores", "0,9999"], "two different cores"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_options(arguments, SCENARIOS, ["nginx", "etcd", "quorate"])
    assert exit_info.value.code == 2
    assert said in capsys.readouterr().err
