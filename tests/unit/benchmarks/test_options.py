"""The command line."""

import os
from pathlib import Path

import pytest

from benchmarks.options import FULL, QUICK, Options, parse_options
from benchmarks.rounds import Timing

ALLOWED = sorted(os.sched_getaffinity(0))
CORES = ",".join(map(str, ALLOWED[:2]))


def options(*arguments: str) -> Options:
    return parse_options([*arguments, "--cores", CORES], ["gateway", "store"], ["nginx", "etcd", "quorate"])


@pytest.fixture(autouse=True)
def _two_cores() -> None:
    if len(ALLOWED) < 2:
        pytest.skip("this machine lets us use one core only")


def test_everything_is_measured_quickly_by_default_and_nothing_written() -> None:
    assert options() == Options(
        ("gateway", "store"), QUICK, (), tuple(ALLOWED[:2]), write=False, profile=False, json_file=None
    )


def test_single_values_take_the_place_of_those_of_the_mode() -> None:
    assert options("--full").timing == FULL
    assert options("--full", "--rounds", "9").timing == Timing(9, FULL.measure_s, FULL.warm_up_s)
    assert options("--seconds", "7", "--warm-up", "3").timing == Timing(QUICK.rounds, 7, 3)


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
        parse_options(arguments, ["gateway", "store"], ["nginx", "etcd", "quorate"])
    assert exit_info.value.code == 2
    assert said in capsys.readouterr().err
