"""The command line of `make bench`."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.rounds import Timing

QUICK = Timing(rounds=2, measure_s=3, warm_up_s=1)
FULL = Timing(rounds=5, measure_s=10, warm_up_s=2)
KEYS_QUICK = 50_000
KEYS_FULL = 1_000_000
KEYS_MIN = 1_000
KEYS_MAX = 10_000_000
INSTANCES_QUICK = 10_000
INSTANCES_FULL = 100_000
INSTANCES_MIN = 100
INSTANCES_MAX = 1_000_000
SECONDS_MAX = 600
ROUNDS_MAX = 100
CORES_USED = 2


@dataclass(frozen=True)
class Options:
    """`only` names contenders, and `loads` are parts of the names of loads; empty means all. `profile` takes a profile
    of ours after the rounds. `keys` and `instances` are how many a store or a registry is filled with, where that is
    what is measured."""

    scenarios: tuple[str, ...]
    timing: Timing
    are_seconds_given: bool
    is_full: bool
    only: tuple[str, ...]
    loads: tuple[str, ...]
    keys: int
    cores: tuple[int, ...]
    write: bool
    profile: bool
    json_file: Path | None
    instances: int = INSTANCES_QUICK

    def timing_of(self, full_measure_s: int | None) -> Timing:
        """That of a scenario whose measurements in the full run take so long, where it is not everybody's time."""
        if full_measure_s is None or not self.is_full or self.are_seconds_given:
            return self.timing
        return replace(self.timing, measure_s=full_measure_s)


def parse_options(arguments: Sequence[str], scenarios: Mapping[str, str], contenders: Sequence[str]) -> Options:
    """`scenarios` are names with what each measures. Exits with status 2 and a line of explanation when the arguments
    are wrong."""
    parser = _parser(scenarios, contenders)
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
        are_seconds_given=parsed.seconds is not None, is_full=parsed.full, only=only, loads=tuple(parsed.load),
        keys=parsed.keys or (KEYS_FULL if parsed.full else KEYS_QUICK), cores=cores, write=parsed.write,
        profile=parsed.profile, json_file=parsed.json,
        instances=parsed.instances or (INSTANCES_FULL if parsed.full else INSTANCES_QUICK),
    )  # fmt: skip


def _parser(scenarios: Mapping[str, str], contenders: Sequence[str]) -> argparse.ArgumentParser:
    width = max(map(len, scenarios))
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Measures Quorate beside real peers, in one run on the same cores.\n\nscenarios:\n"
        + "\n".join(f"  {name:<{width}}  {summary}" for name, summary in scenarios.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="scenario", help=f"{', '.join(scenarios)}; default: all")
    add("--full", action="store_true", help=f"{_words(FULL)}; the default is {_words(QUICK)}")
    add("--rounds", type=_between(1, ROUNDS_MAX), help="how often each contender takes its turn")
    add("--seconds", type=_between(1, SECONDS_MAX), help="of each measurement")
    add("--warm-up", type=_between(1, SECONDS_MAX), help="seconds of load before each measurement")
    add("--only", default="", help=f"contenders, with commas between: {', '.join(contenders)}")
    add("--load", action="append", default=[], help="only loads with this in their name ('put, 64'); repeat for more")
    add("--keys", type=_between(KEYS_MIN, KEYS_MAX), help=f"of the scenario keys: {KEYS_QUICK:,}, full {KEYS_FULL:,}")
    add(
        "--instances", type=_between(INSTANCES_MIN, INSTANCES_MAX),
        help=f"of the scenario registry-filled: {INSTANCES_QUICK:,}, full {INSTANCES_FULL:,}",
    )  # fmt: skip
    add("--cores", type=_cores, help="at least two: the gateway takes the first, its load the others")
    add("--profile", action="store_true", help="say where our own time goes, in one more run")
    add("--write", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    add("--json", type=Path, metavar="FILE", help="write every single measurement there")
    return parser


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
