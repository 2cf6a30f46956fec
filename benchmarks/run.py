"""One run of `make bench`: every scenario that was asked for, its tables, and what is written of them."""

import json
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.failures import BenchmarkFailed
from benchmarks.gateway import GatewayScenario, PythonProxiesScenario
from benchmarks.keys import KeysResults, KeysScenario, run_keys
from benchmarks.machine import Machine, describe_machine
from benchmarks.options import Options, parse_options
from benchmarks.peers import WORKING_FOLDER, read_programs
from benchmarks.profiles import profile
from benchmarks.python_peer import PythonPeerScenario
from benchmarks.registry import RegistryScenario
from benchmarks.registry_filled import STEADY_S, RegistryFilledScenario, run_filled
from benchmarks.registry_routing import RegistryRoutingScenario
from benchmarks.registry_watch import RegistryWatchScenario
from benchmarks.results import describe_keys, describe_results, profile_block, results_block, write_block
from benchmarks.rounds import Bench, Choice, Results, Scenario, run_rounds
from benchmarks.store import StoreScenario
from benchmarks.tables import profile_table
from benchmarks.watch import WatchScenario

CONTENDERS = (
    "nginx", "haproxy", "envoy", "envoy-bare", "etcd", "pysyncobj", "pysyncobj-unbatched", "quorate",
    "quorate-compiled", "quorate-bare", "quorate-2", "aiohttp", "fastapi",
)  # fmt: skip
EXIT_INTERRUPTED = 130


AnyScenario = Scenario | KeysScenario | RegistryFilledScenario


def scenarios() -> dict[str, AnyScenario]:
    found: list[AnyScenario] = [
        GatewayScenario(), PythonProxiesScenario(), StoreScenario(), WatchScenario(), KeysScenario(),
        PythonPeerScenario(), RegistryScenario(), RegistryWatchScenario(), RegistryRoutingScenario(),
        RegistryFilledScenario(),
    ]  # fmt: skip
    return {each.name: each for each in found}


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 when all was measured, whatever the figures; 1 when something failed or answered wrongly."""
    if sys.platform != "linux":
        tell("make bench needs Linux: it pins processes to cores and reads /proc")
        return 1
    known = scenarios()
    options = parse_options(arguments, {each.name: each.summary for each in known.values()}, CONTENDERS)
    # As on Ctrl-C, everything that was started is ended on the way out.
    signal.signal(signal.SIGTERM, _interrupt)
    runs = WORKING_FOLDER / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=runs))
    try:
        programs = read_programs()
        machine = describe_machine(folder, options.cores, programs.versions)
        tell("\n".join(machine.lines()))
        command = " ".join(("make bench", *([f"ARGS={shlex.quote(shlex.join(arguments))}"] if arguments else [])))
        done = [
            _run_scenario(known[name], Bench(folder, programs, options.cores), options, machine, command)
            for name in options.scenarios
        ]
    except BenchmarkFailed as error:
        tell(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json_file is not None:
        options.json_file.write_text(json.dumps([asdict(results) for results in done], indent=1) + "\n")
    return int(any(results.failures for results in done))


def _run_scenario(
    scenario: AnyScenario, bench: Bench, options: Options, machine: Machine, command: str
) -> Results | KeysResults:
    if isinstance(scenario, KeysScenario | RegistryFilledScenario):
        return _run_filled(scenario, bench, options, machine, command)
    tell(f"\n{scenario.title}")
    timing, choice = options.timing_of(scenario.full_measure_s), Choice(options.only, options.loads)
    results = run_rounds(scenario, bench, timing, choice, tell)
    described = describe_results(scenario, results, timing)
    tell("\n" + described)
    if options.write:
        write_block(scenario.name, results_block(described, machine, command))
    if options.profile:
        profiles = profile(scenario, bench, timing, choice, tell)
        for each in profiles:
            tell("\n" + profile_table(each))
        if options.write:
            write_block(f"{scenario.name} profile", profile_block(profiles, command))
    return results


def _run_filled(
    scenario: KeysScenario | RegistryFilledScenario, bench: Bench, options: Options, machine: Machine, command: str
) -> KeysResults:
    rounds = options.timing.rounds
    if isinstance(scenario, KeysScenario):
        tell(f"\n{scenario.title(options.keys)}")
        results = run_keys(bench, options.keys, rounds, options.only, tell)
    else:
        tell(f"\n{scenario.title(options.instances)}")
        steady_s = options.timing.measure_s if options.are_seconds_given else STEADY_S
        results = run_filled(bench, options.instances, rounds, steady_s, options.only, tell)
    described = describe_keys(results)
    tell("\n" + described)
    if options.write:
        write_block(scenario.name, results_block(described, machine, command))
    return results


def tell(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - this is a command, and that is its output


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
