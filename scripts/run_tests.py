"""Run the tests stage by stage, cheapest first, and say how long each took. A stage that fails stops no other.

Arguments name stages; none means all but those that run only when they are named. A stage's groups run at the same
time, each in a process of its own, and take the ports which have to be known before they are bound from ranges of their
own. Groups are cut so that two processors have about the same to do; tests that wait leave theirs to others, so there
may be more groups than processors.

The pure members' branch coverage is measured in one group, which has all of their tests. Tracing makes a program many
times as slow, so tests that count to many are not traced; see `tests/unit/resilience/conftest.py`.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# NB: folders, not module names: to find `quorate_raft.core`, coverage would import its parent, and asyncio with it, and
# then take both out of sys.modules; a second asyncio beside the first one cancels nothing any more.
PURE_MEMBERS = "shared/raft/quorate_raft/core,shared/resilience/quorate_resilience"
PURE_COVERAGE_PERCENT_MIN = 95
PORTS_FROM = 14_000
PORTS_A_GROUP = 3_500
"""Five groups end below 32,000, where `quorate up` stops to look for free ports, as its tests have it."""


@dataclass(frozen=True)
class Group:
    """Folders and files whose tests run one after the other."""

    paths: tuple[str, ...]
    measures_coverage: bool = False

    @property
    def present(self) -> list[str]:
        """Those that have a test in them."""
        return [path for path in self.paths if (ROOT / path).is_file() or any((ROOT / path).rglob("test_*.py"))]


@dataclass(frozen=True)
class Stage:
    name: str
    groups: tuple[Group, ...]
    is_on_request: bool = False
    """Whether it runs only when it is named."""
    gateway_compiled: str = "off"
    """Whether the gateway's compiled modules are used (`quorate_gateway.compiled`). Other stages test the source."""

    @property
    def present(self) -> list[Group]:
        """The groups that have a test in them."""
        return [group for group in self.groups if group.present]


def _within(folder: str, *names: str) -> Group:
    return Group(tuple(f"{folder}/{name}" for name in names))


STAGES = (
    Stage(
        "unit",
        (
            Group(("tests/raft", "tests/unit/resilience"), measures_coverage=True),
            _within("tests", "unit/raft", "unit/messaging"),
            _within("tests", "unit/node", "unit/store", "unit/testing"),
            _within("tests", "unit/registry", "unit/sdk", "unit/services"),
            _within(
                "tests", "unit/benchmarks", "unit/cli", "unit/config_center", "unit/core", "unit/gateway", "tidy",
            ),
        ),
    ),
    Stage("contract", (_within("tests/contract", "store"), _within("tests/contract", "v3"))),
    Stage(
        "sim",
        (
            _within("tests/sim", "test_planted_bugs.py"),
            _within(
                "tests/sim", "test_campaign.py", "test_linearizability.py", "test_seeds.py", "test_simulated_disk.py",
                "test_simulated_loop.py", "test_verdicts.py",
            ),
        ),
    ),
    Stage(
        "integration",
        (
            _within("tests/integration", "cli", "containers", "services"),
            _within(
                "tests/integration/registry", "test_bad_input.py", "test_calls.py", "test_changes.py",
                "test_live_settings.py", "test_processes.py", "test_sdk.py", "test_sync_client.py",
            ),
            _within(
                "tests/integration", "node/test_backup.py", "node/test_delivery.py", "node/test_membership.py",
                "node/test_public_clients.py", "registry/test_checks.py", "registry/test_divergence.py",
            ),
            _within(
                "tests/integration", "node/test_api_fuzz.py", "node/test_one_node.py", "node/test_store_url.py",
                "node/test_three_nodes.py", "registry/test_drain.py", "registry/test_mass_removal.py",
            ),
            _within("tests/integration", "gateway"),
        ),
    ),
    Stage("e2e", (_within("tests", "e2e"),)),
    Stage(
        "faults",
        (
            _within(
                "tests/faults", "test_discovery_judge.py", "test_gateway_attacks.py", "test_gateway_load.py",
                "test_gateway_services.py", "test_partitions.py", "test_registry_processes.py",
            ),
            _within("tests/faults", "test_full_disk.py", "test_judges.py", "test_processes.py", "test_watches.py"),
        ),
    ),
    Stage(
        "compiled",
        (
            _within("tests", "unit/gateway", "faults/test_gateway_attacks.py", "faults/test_gateway_services.py"),
            _within("tests", "integration/gateway", "faults/test_gateway_load.py"),
        ),
        is_on_request=True,
        gateway_compiled="required",
    ),
)  # fmt: skip


def main(wanted: list[str]) -> int:
    unknown = sorted(set(wanted) - {stage.name for stage in STAGES})
    if unknown:
        print(f"no such stage: {', '.join(unknown)}; there are: {', '.join(stage.name for stage in STAGES)}")
        return 2
    if forgotten := unlisted():
        print(f"tests that no stage runs: {', '.join(forgotten)}; name them in {Path(__file__).name}")
        return 2
    chosen = [stage for stage in STAGES if stage.name in wanted or not (wanted or stage.is_on_request)]
    results = [(stage, *run(stage)) for stage in chosen]
    print("\nstage          result     seconds")
    for stage, result, seconds in results:
        print(f"{stage.name:<14} {result:<9} {seconds:8.1f}")
    print(f"{'all':<14} {'':<9} {sum(seconds for _, _, seconds in results):8.1f}")
    return int(any(result == "FAILED" for _, result, _ in results))


def unlisted() -> list[str]:
    """Files with tests that no stage has."""
    listed = [ROOT / path for stage in STAGES for group in stage.groups for path in group.paths]
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in found if not any(path.is_relative_to(each) for each in listed)]


def run(stage: Stage) -> tuple[str, float]:
    """What became of the stage, and how many seconds it took."""
    groups = stage.present
    if not groups:
        return "no tests", 0.0
    started_s = time.monotonic()
    passed = run_side_by_side(stage, groups)
    if any(group.measures_coverage for group in groups):
        # Both verdicts are wanted: failing tests must not hide missing coverage.
        passed = report_coverage() and passed
    return "passed" if passed else "FAILED", time.monotonic() - started_s


def run_side_by_side(stage: Stage, groups: list[Group]) -> bool:
    """The first group's output is shown as it comes, the others' when it has ended."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"{at}.txt" for at in range(1, len(groups))]
        files = [path.open("wb") for path in outputs]
        others = [
            subprocess.Popen(
                command(group), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment(stage, at)
            )
            for at, (group, file) in enumerate(zip(groups[1:], files, strict=True), start=1)
        ]
        print(f"\n== {stage.name}: {' '.join(groups[0].present)}", flush=True)
        codes = [subprocess.run(command(groups[0]), cwd=ROOT, check=False, env=environment(stage, 0)).returncode]
        for group, other, file, output in zip(groups[1:], others, files, outputs, strict=True):
            codes.append(other.wait())
            file.close()
            print(f"\n== {stage.name}, at the same time: {' '.join(group.present)}", flush=True)
            print(output.read_text(errors="replace"), flush=True)
    return not any(codes)


def environment(stage: Stage, group: int) -> dict[str, str]:
    """Groups must not hand out each other's ports. Compiled modules are kept, whatever this shell wants: hundreds of
    processes start, each of which would compile the whole source anew."""
    first = PORTS_FROM + group * PORTS_A_GROUP
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    ports = f"{first}-{first + PORTS_A_GROUP - 1}"
    return {**kept, "QUORATE_PORT_RANGE": ports, "QUORATE_GATEWAY_COMPILED": stage.gateway_compiled}


def command(group: Group) -> list[str]:
    measured = ["-m", "coverage", "run", "--branch", f"--source={PURE_MEMBERS}"] if group.measures_coverage else []
    # The slowest tests are named, so that a stage that grows long shows why. What was skipped is named with its reason.
    return [sys.executable, *measured, "-m", "pytest", "--durations=5", "--durations-min=1", "-rs", *group.present]


def report_coverage() -> bool:
    report = [sys.executable, "-m", "coverage", "report", "--skip-covered", "--show-missing",
              f"--fail-under={PURE_COVERAGE_PERCENT_MIN}"]  # fmt: skip
    return subprocess.run(report, cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
