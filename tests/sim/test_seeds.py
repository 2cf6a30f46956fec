"""Whole clusters, from seeds that nobody has chosen: those of the commit, so that each commit is looked at anew."""

import os
import subprocess
import sys

import pytest
from quorate_simulation.profiles import DEFAULT_PROFILE, PROFILES
from quorate_simulation.report import tell
from quorate_simulation.world import run_seed
from support.repository import ROOT

SEEDS_OF_THE_COMMIT = 8
SEED_DIGITS = 7
"""Of the hash."""


def commit_seed() -> int:
    """Of the commit that is checked out; 1 where there is no repository."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return int(found.stdout[:SEED_DIGITS], 16) if found.returncode == 0 else 1


@pytest.mark.parametrize("offset", range(SEEDS_OF_THE_COMMIT))
def test_a_cluster_keeps_its_promises_whatever_goes_wrong(offset: int) -> None:
    result = run_seed(commit_seed() + offset, PROFILES[DEFAULT_PROFILE])
    assert result.broken is None, tell(result)


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != DEFAULT_PROFILE])
def test_and_in_each_kind_of_trouble(profile: str) -> None:
    result = run_seed(commit_seed(), PROFILES[profile])
    assert result.broken is None, tell(result)
    assert result.committed > 0
    assert result.operations > 0


def test_without_faults_nobody_is_elected_twice_and_every_operation_is_done() -> None:
    result = run_seed(commit_seed(), PROFILES["calm"])
    assert result.broken is None, tell(result)
    assert result.elections == 1
    assert result.unknown == 0


def test_the_same_seed_gives_the_same_run_in_another_process() -> None:
    """With other hashes of strings, other addresses and at another time."""
    seed = commit_seed()
    program = (
        "from quorate_simulation.profiles import PROFILES\n"
        "from quorate_simulation.world import run_seed\n"
        f"print(run_seed({seed}, PROFILES[{DEFAULT_PROFILE!r}]).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True,
            text=True, check=True, timeout=60,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }  # fmt: skip
    assert digests == {run_seed(seed, PROFILES[DEFAULT_PROFILE]).digest}


def test_another_seed_gives_another_run() -> None:
    first, second = (run_seed(commit_seed() + offset, PROFILES["calm"]).digest for offset in (0, 1))
    assert first != second


def test_a_run_that_breaks_says_what_how_and_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate_simulation.world.PROGRESS_S_MAX", 0.0)
    result = run_seed(commit_seed(), PROFILES["calm"])
    told = tell(result)
    assert result.broken is not None
    assert "BROKEN: progress" in told
    assert f"./quorate sim --seed {commit_seed()} --profile calm" in told
    assert "I lead; committed up to" in told, "the timeline is there, with its messages"
    assert len(tell(result, full=True).splitlines()) > 1_000
