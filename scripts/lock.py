"""Write requirements.lock: every third-party package that any member or the workspace needs, pinned with hashes.

No address of any package index is recorded; `tests/tidy` checks that.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"


def member_projects() -> list[Path]:
    """Every member's pyproject.toml, in a stable order."""
    found = ROOT.glob("*/pyproject.toml"), ROOT.glob("*/*/pyproject.toml")
    return sorted(path for group in found for path in group if not path.parent.name.startswith("."))


def third_party_requirements() -> list[str]:
    """What the members ask for, less the members themselves, and the workspace's own tools."""
    wanted: set[str] = set()
    for path in member_projects():
        project = tomllib.loads(path.read_text())
        wanted.update(project["build-system"]["requires"])
        wanted.update(project["project"]["dependencies"])
    wanted.update(tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"])
    return sorted(name for name in wanted if not name.startswith("quorate-"))


def main() -> int:
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "-", "--universal", "--generate-hashes", "--no-header",
        "--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--python-version", "3.11",
        "--output-file", str(LOCK), *sys.argv[1:],
    ]  # fmt: skip
    return subprocess.run(command, input="\n".join(third_party_requirements()), text=True, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
