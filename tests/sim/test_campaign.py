"""Many seeds over several processes, and what is said of them."""

from pathlib import Path

import msgspec
import pytest
from quorate_simulation.campaign import Campaign, SeedResult, Summary
from quorate_simulation.command import Options, main, run
from quorate_simulation.profiles import PROFILES

SEED = 11


def test_a_campaign_runs_every_seed_once_and_adds_them_up() -> None:
    told: list[str] = []
    summary = Campaign(SEED, ["calm"], seeds=3, seconds=None, workers=2, write=told.append).run()
    assert summary.seeds == 3
    assert summary.profiles == {"calm": 3}
    assert summary.broken == []
    assert summary.operations > 0
    assert summary.virtual_s > 3 * PROFILES["calm"].duration_s
    assert "3 seeds from 11 on, 0 of them broken" in told[-1]


def test_a_campaign_ends_when_its_time_is_up() -> None:
    summary = Campaign(SEED, ["calm"], seeds=None, seconds=0.0, workers=1, write=lambda _text: None).run()
    assert summary.seeds == 0


def test_a_worker_that_dies_costs_its_seed_and_is_replaced() -> None:
    told: list[str] = []
    summary = Campaign(SEED, ["no such profile"], seeds=2, seconds=None, workers=1, write=told.append).run()
    assert [result.seed for result in summary.broken] == [SEED, SEED + 1]
    assert {result.broken for result in summary.broken} == {"the worker died or hung"}
    assert f"--seed {SEED}" in told[-1]


def test_the_command_says_that_nothing_was_broken_and_keeps_the_sum(tmp_path: Path) -> None:
    told: list[str] = []
    assert run(Options(seed=SEED, profile="calm"), told.append) == 0
    assert told[0].startswith(f"seed {SEED}, profile calm: nothing was broken in ")
    kept = tmp_path / "summary.json"
    assert run(Options(seed=SEED, seeds=1, profile="calm", workers=1, summary=kept), told.append) == 0
    assert msgspec.json.decode(kept.read_bytes(), type=Summary).seeds == 1


def test_what_was_broken_is_told_with_the_command_that_shows_it_again() -> None:
    summary = Summary(first_seed=1)
    summary.add(SeedResult(1, "default", broken="election safety", diagnosis="n1 and n2 both lead term 3"))
    told = summary.tell()
    assert "./quorate sim --seed 1 --profile default: election safety: n1 and n2 both lead term 3" in told
    assert "1 of them broken" in told


def test_the_full_timeline_is_printed_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", str(SEED), "--profile", "calm", "--full"]) == 0
    printed = capsys.readouterr().out
    assert "starts, for the 1. time" in printed
    assert "would you vote for me?" in printed
