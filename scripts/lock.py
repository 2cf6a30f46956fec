"""Write the locks: every third-party package that is needed, pinned with hashes.

requirements.lock has all that any member or the workspace asks for; docker/runtime.lock the part of it that the members
need to run, docker/build.lock the part that makes wheels of them, and docker/compile.lock the part that compiles
modules of the gateway: an image is built from these three.
No address of any package index is recorded; tests check that.
"""

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
RUNTIME_LOCK = ROOT / "docker" / "runtime.lock"
BUILD_LOCK = ROOT / "docker" / "build.lock"
COMPILE_LOCK = ROOT / "docker" / "compile.lock"
COMPILE_REQUIREMENTS = frozenset({"mypy", "setuptools"})
"""What `compile_gateway.py` imports."""
NOT_IN_IMAGES = frozenset({"quorate-testing"})
"""Members that users' tests import; .dockerignore leaves them out."""


def member_projects() -> list[Path]:
    """Every member's pyproject.toml, in a stable order."""
    found = ROOT.glob("*/pyproject.toml"), ROOT.glob("*/*/pyproject.toml")
    return sorted(path for group in found for path in group if not path.parent.name.startswith("."))


def _members() -> list[dict[str, Any]]:
    return [tomllib.loads(path.read_text()) for path in member_projects()]


def runtime_requirements() -> set[str]:
    """What the members of an image import, less the members themselves."""
    return _requirements(member for member in _members() if member["project"]["name"] not in NOT_IN_IMAGES)


def member_requirements() -> set[str]:
    """The same of all members."""
    return _requirements(_members())


def _requirements(members: Iterable[dict[str, Any]]) -> set[str]:
    wanted = {name for member in members for name in member["project"]["dependencies"]}
    return {name for name in wanted if not name.startswith("quorate-")}


def build_requirements() -> set[str]:
    """What makes wheels of the members."""
    return {name for member in _members() for name in member["build-system"]["requires"]}


def workspace_requirements() -> set[str]:
    """The tools of whoever works on the members."""
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"])


def write(lock: Path, requirements: set[str], *options: str) -> None:
    """Raises CalledProcessError; the cause is on stderr then."""
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "-", "--universal", "--generate-hashes", "--no-header",
        "--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--python-version", "3.11",
        "--output-file", str(lock), *options, *sys.argv[1:],
    ]  # fmt: skip
    subprocess.run(command, input="\n".join(sorted(requirements)), text=True, check=True)


def main() -> int:
    try:
        write(LOCK, member_requirements() | build_requirements() | workspace_requirements())
        # NB: under the first one's pins, so that what runs in an image is what was tested.
        write(RUNTIME_LOCK, runtime_requirements(), "--constraint", str(LOCK))
        write(BUILD_LOCK, build_requirements(), "--constraint", str(LOCK))
        write(COMPILE_LOCK, set(COMPILE_REQUIREMENTS), "--constraint", str(LOCK))
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
