"""Run the tests stage by stage, cheapest first, and say how long each took. A stage that fails stops no other.

Arguments name stages; none means all. A stage's groups run at the same time, each in a process of its own, and take the
ports which have to be known before they are bound from ranges of their own. The pure members' branch coverage
is measured in the first group of the `unit` stage, which has all of their tests.
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
PORTS_FROM = 15_000
PORTS_A_GROUP = 8_000


Group = tuple[str, ...]
"""Folders whose tests run one after the other."""


@dataclass(frozen=True)
class Stage:
    name: str
    groups: tuple[Group, ...]
    measures_coverage: bool = False

    @property
    def present(self) -> list[list[str]]:
        """The groups, with those of their folders that have a test in them."""
        found = [[folder for folder in group if any((ROOT / folder).rglob("test_*.py"))] for group in self.groups]
        return [group for group in found if group]


def _within(folder: str, *names: str) -> Group:
    return tuple(f"{folder}/{name}" for name in names)


STAGES = (
    Stage(
        "unit",
        (
            ("tests/raft", "tests/unit/raft", "tests/unit/resilience"),
            (
                *(
                    f"tests/unit/{part}"
                    for part in ("benchmarks", "cli", "config_center", "core", "gateway", "messaging")
                ),
                *(f"tests/unit/{part}" for part in ("node", "registry", "sdk", "services", "store")),
                "tests/tidy",
            ),
        ),
        measures_coverage=True,
    ),
    Stage("contract", (("tests/contract",),)),
    Stage("sim", (("tests/sim",),)),
    Stage(
        "integration",
        (
            _within("tests/integration", "cli", "containers", "services"),
            _within("tests/integration", "node"),
            _within("tests/integration", "gateway", "registry"),
        ),
    ),
    Stage("e2e", (("tests/e2e",),)),
    Stage("faults", (("tests/faults",),)),
)


def main(wanted: list[str]) -> int:
    unknown = sorted(set(wanted) - {stage.name for stage in STAGES})
    if unknown:
        print(f"no such stage: {', '.join(unknown)}; there are: {', '.join(stage.name for stage in STAGES)}")
        return 2
    if forgotten := unlisted():
        print(f"tests that no stage runs: {', '.join(forgotten)}; name their folder in {Path(__file__).name}")
        return 2
    chosen = [stage for stage in STAGES if not wanted or stage.name in wanted]
    results = [(stage, *run(stage)) for stage in chosen]
    print("\nstage          result     seconds")
    for stage, result, seconds in results:
        print(f"{stage.name:<14} {result:<9} {seconds:8.1f}")
    print(f"{'all':<14} {'':<9} {sum(seconds for _, _, seconds in results):8.1f}")
    return int(any(result == "FAILED" for _, result, _ in results))


def unlisted() -> list[str]:
    """Files with tests that are in no stage's folders."""
    listed = [ROOT / folder for stage in STAGES for group in stage.groups for folder in group]
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in found if not any(path.is_relative_to(each) for each in listed)]


def run(stage: Stage) -> tuple[str, float]:
    """What became of the stage, and how many seconds it took."""
    groups = stage.present
    if not groups:
        return "no tests", 0.0
    started_s = time.monotonic()
    commands = [
        [*(coverage_command() if stage.measures_coverage and at == 0 else [sys.executable]), *pytest_command(group)]
        for at, group in enumerate(groups)
    ]
    passed = run_side_by_side(stage.name, groups, commands)
    if stage.measures_coverage:
        # Both verdicts are wanted: failing tests must not hide missing coverage.
        passed = report_coverage() and passed
    return "passed" if passed else "FAILED", time.monotonic() - started_s


def run_side_by_side(name: str, groups: list[list[str]], commands: list[list[str]]) -> bool:
    """The first group's output is shown as it comes, the others' when it has ended."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"{at}.txt" for at in range(1, len(commands))]
        files = [path.open("wb") for path in outputs]
        others = [
            subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment(at))
            for at, (command, file) in enumerate(zip(commands[1:], files, strict=True), start=1)
        ]
        print(f"\n== {name}: {' '.join(groups[0])}", flush=True)
        codes = [subprocess.run(commands[0], cwd=ROOT, check=False, env=environment(0)).returncode]
        for group, other, file, output in zip(groups[1:], others, files, outputs, strict=True):
            codes.append(other.wait())
            file.close()
            print(f"\n== {name}, at the same time: {' '.join(group)}", flush=True)
            print(output.read_text(errors="replace"), flush=True)
    return not any(codes)


def environment(group: int) -> dict[str, str]:
    """Groups must not hand out each other's ports."""
    first = PORTS_FROM + group * PORTS_A_GROUP
    return {**os.environ, "QUORATE_PORT_RANGE": f"{first}-{first + PORTS_A_GROUP - 1}"}


def coverage_command() -> list[str]:
    return [sys.executable, "-m", "coverage", "run", "--branch", f"--source={PURE_MEMBERS}"]


def report_coverage() -> bool:
    report = [sys.executable, "-m", "coverage", "report", "--skip-covered", "--show-missing",
              f"--fail-under={PURE_COVERAGE_PERCENT_MIN}"]  # fmt: skip
    return subprocess.run(report, cwd=ROOT, check=False).returncode == 0


def pytest_command(folders: list[str]) -> list[str]:
    # The slowest tests are named, so that a stage that grows long shows why. What was skipped is named with its reason.
    return ["-m", "pytest", "--durations=5", "--durations-min=1", "-rs", *folders]


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
