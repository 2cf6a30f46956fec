"""The command line of the simulation: one seed, told to a person, or a campaign of many."""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import msgspec

from quorate_simulation.campaign import Campaign, SeedResult, Write
from quorate_simulation.profiles import DEFAULT_PROFILE, PROFILES
from quorate_simulation.report import tell
from quorate_simulation.world import run_seed

SEED_BELOW = 2**31
WORKERS_DEFAULT = 2
ALL_PROFILES = "all"


@dataclass(frozen=True, slots=True)
class Options:
    """`seed`: which, or the first of a campaign; None: a random one. A campaign has `seeds` or `hours`."""

    seed: int | None = None
    seeds: int | None = None
    hours: float | None = None
    profile: str = DEFAULT_PROFILE
    full: bool = False
    workers: int = WORKERS_DEFAULT
    summary: Path | None = None


def run(options: Options, write: Write) -> int:
    """Returns the exit code: 0 when nothing was broken."""
    seed = random.SystemRandom().randrange(SEED_BELOW) if options.seed is None else options.seed
    if options.seeds is None and options.hours is None:
        name = DEFAULT_PROFILE if options.profile == ALL_PROFILES else options.profile
        result = run_seed(seed, PROFILES[name])
        write(f"{tell(result, full=options.full)}\n")
        return int(result.broken is not None)
    seconds = None if options.hours is None else options.hours * 3600
    campaign = Campaign(seed, _names(options.profile), options.seeds, seconds, options.workers, write)
    summary = campaign.run()
    if options.summary is not None:
        options.summary.write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    return int(bool(summary.broken))


def serve(requests: TextIO, write: Write) -> None:
    """A campaign's worker: a seed and a profile a line, and a line of JSON for each."""
    for line in requests:
        seed, profile = line.split()
        result = SeedResult.of(run_seed(int(seed), PROFILES[profile]))
        write(msgspec.json.encode(result).decode() + "\n")


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    if given.worker:
        serve(sys.stdin, _write_now)
        return 0
    return run(
        Options(given.seed, given.seeds, given.hours, given.profile, given.full, given.workers, given.summary),
        _write_now,
    )


def _names(profile: str) -> list[str]:
    """The profiles that a campaign takes in turn; the default one, with everything in it, most often."""
    if profile != ALL_PROFILES:
        return [profile]
    others = [name for name in PROFILES if name != DEFAULT_PROFILE]
    return [name for other in others for name in (DEFAULT_PROFILE, other)]


def _write_now(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m quorate_simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="which one, or a campaign's first; a random one if not given")
    parser.add_argument("--seeds", type=int, help="run a campaign of so many")
    parser.add_argument("--hours", type=float, help="run a campaign for so long")
    parser.add_argument("--profile", choices=[*PROFILES, ALL_PROFILES], default=DEFAULT_PROFILE)
    parser.add_argument("--full", action="store_true", help="print everything that happened")
    parser.add_argument("--workers", type=int, default=WORKERS_DEFAULT, help="processes of a campaign")
    parser.add_argument("--summary", type=Path, help="write a campaign's summary there, as JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser
