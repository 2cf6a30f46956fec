"""The repository as its own tests see it: the files git knows or would add, and the members."""

import functools
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    """Every file that is committed, or would be by `git add -A`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    return tuple(sorted({ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()}))


def python_files() -> tuple[Path, ...]:
    return tuple(path for path in tracked_files() if path.suffix == ".py")


@dataclass(frozen=True)
class Member:
    """One installable part: its folder, and its pyproject.toml."""

    folder: Path
    project: dict[str, Any]

    @property
    def import_name(self) -> str:
        return "quorate_" + self.folder.name.replace("-", "_")

    @property
    def modules(self) -> tuple[Path, ...]:
        return tuple(path for path in python_files() if path.is_relative_to(self.folder / self.import_name))


@functools.cache
def members() -> tuple[Member, ...]:
    projects = [path for path in tracked_files() if path.name == "pyproject.toml" and path.parent != ROOT]
    return tuple(Member(path.parent, tomllib.loads(path.read_text())) for path in projects)
