"""Run the tests stage by stage, cheapest first, and say how long each took. A stage that fails stops no other.

Arguments name stages; none means all. The pure members' branch coverage is measured in the `unit` stage.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# NB: folders, not module names: to find `quorate_raft.core`, coverage would import its parent, and asyncio with it, and
# then take both out of sys.modules; a second asyncio beside the first one cancels nothing any more.
PURE_MEMBERS = "shared/raft/quorate_raft/core,shared/resilience/quorate_resilience"
PURE_COVERAGE_PERCENT_MIN = 95


@dataclass(frozen=True)
class Stage:
    name: str
    folders: tuple[str, ...]
    measures_coverage: bool = False

    @property
    def present(self) -> list[str]:
        """The folders that have a test in them."""
        return [folder for folder in self.folders if any((ROOT / folder).rglob("test_*.py"))]


STAGES = (
    Stage("unit", ("tests/unit", "tests/raft", "tests/tidy"), measures_coverage=True),
    Stage("contract", ("tests/contract",)),
    Stage("sim", ("tests/sim",)),
    Stage("integration", ("tests/integration",)),
    Stage("e2e", ("tests/e2e",)),
)


def main(wanted: list[str]) -> int:
    unknown = sorted(set(wanted) - {stage.name for stage in STAGES})
    if unknown:
        print(f"no such stage: {', '.join(unknown)}; there are: {', '.join(stage.name for stage in STAGES)}")
        return 2
    chosen = [stage for stage in STAGES if not wanted or stage.name in wanted]
    results = [(stage, *run(stage)) for stage in chosen]
    print("\nstage          result     seconds")
    for stage, result, seconds in results:
        print(f"{stage.name:<14} {result:<9} {seconds:8.1f}")
    print(f"{'all':<14} {'':<9} {sum(seconds for _, _, seconds in results):8.1f}")
    return int(any(result == "FAILED" for _, result, _ in results))


def run(stage: Stage) -> tuple[str, float]:
    """What became of the stage, and how many seconds it took."""
    folders = stage.present
    if not folders:
        return "no tests", 0.0
    print(f"\n== {stage.name}: {' '.join(folders)}", flush=True)
    started_s = time.monotonic()
    passed = (
        run_with_coverage(folders) if stage.measures_coverage else run_pytest([sys.executable, "-m", "pytest"], folders)
    )
    return "passed" if passed else "FAILED", time.monotonic() - started_s


def run_with_coverage(folders: list[str]) -> bool:
    measure = [sys.executable, "-m", "coverage", "run", "--branch", f"--source={PURE_MEMBERS}", "-m", "pytest"]
    report = [sys.executable, "-m", "coverage", "report", "--skip-covered", "--show-missing",
              f"--fail-under={PURE_COVERAGE_PERCENT_MIN}"]  # fmt: skip
    passed = run_pytest(measure, folders)
    # Both verdicts are wanted: failing tests must not hide missing coverage.
    return subprocess.run(report, cwd=ROOT, check=False).returncode == 0 and passed


def run_pytest(command: list[str], folders: list[str]) -> bool:
    # The slowest tests are named, so that a stage that grows long shows why. What was skipped is named with its reason.
    code = subprocess.run(
        [*command, "--durations=5", "--durations-min=1", "-rs", *folders], cwd=ROOT, check=False
    ).returncode
    return code == 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
