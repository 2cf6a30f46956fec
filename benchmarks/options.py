"""The command line of `make bench`."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rounds import Timing

QUICK = Timing(rounds=2, measure_s=3, warm_up_s=1)
FULL = Timing(rounds=5, measure_s=10, warm_up_s=2)
SECONDS_MAX = 600
ROUNDS_MAX = 100
CORES_USED = 2


@dataclass(frozen=True)
class Options:
    """`only` names contenders; empty means all. `profile` takes a profile of ours after the rounds."""

    scenarios: tuple[str, ...]
    timing: Timing
    only: tuple[str, ...]
    cores: tuple[int, ...]
    write: bool
    profile: bool
    json_file: Path | None


def parse_options(arguments: Sequence[str], scenarios: Sequence[str], contenders: Sequence[str]) -> Options:
    """Exits with status 2 and a line of explanation when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="make bench", description="Measures Quorate beside real peers, in one run on the same cores."
    )
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"{', '.join(scenarios)}; default: all")
    parser.add_argument("--full", action="store_true", help=f"{_words(FULL)}; the default is {_words(QUICK)}")
    parser.add_argument("--rounds", type=_between(1, ROUNDS_MAX), help="how often each contender takes its turn")
    parser.add_argument("--seconds", type=_between(1, SECONDS_MAX), help="of each measurement")
    parser.add_argument("--warm-up", type=_between(1, SECONDS_MAX), help="seconds of load before each measurement")
    parser.add_argument("--only", default="", help=f"contenders, with commas between: {', '.join(contenders)}")
    parser.add_argument("--cores", type=_cores, help="at least two: the gateway takes the first, its load the others")
    parser.add_argument("--profile", action="store_true", help="say where our own time goes, in one more run")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there")
    parsed = parser.parse_args(arguments)
    only = tuple(name for name in parsed.only.split(",") if name)
    for kind, given, known in (("scenario", parsed.scenarios, scenarios), ("contender", only, contenders)):
        unknown = sorted(set(given) - set(known))
        if unknown:
            parser.error(f"no such {kind}: {', '.join(unknown)}; there are: {', '.join(known)}")
    allowed = sorted(os.sched_getaffinity(0))
    cores = parsed.cores or tuple(allowed[:CORES_USED])
    if len(cores) < CORES_USED or not set(cores) <= set(allowed):
        parser.error(f"two different cores are wanted, of those that may be used here: {', '.join(map(str, allowed))}")
    base = FULL if parsed.full else QUICK
    return Options(
        scenarios=tuple(parsed.scenarios or scenarios),
        timing=Timing(
            parsed.rounds or base.rounds, parsed.seconds or base.measure_s, parsed.warm_up or base.warm_up_s
        ),
        only=only, cores=cores, write=parsed.write, profile=parsed.profile, json_file=parsed.json,
    )  # fmt: skip


def _words(timing: Timing) -> str:
    return f"{timing.rounds} rounds of {timing.measure_s} s"


class _between:  # noqa: N801 - argparse shows a type's name as a word of its message
    """An int from `low` to `high`."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> int:
        number = int(text)
        if not self._low <= number <= self._high:
            raise argparse.ArgumentTypeError(f"{number} is not between {self._low} and {self._high}")
        return number


def _cores(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))
