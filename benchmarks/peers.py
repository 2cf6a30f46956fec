"""The programs to measure against, as `scripts/fetch_peers.py` found them, and their configurations."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.failures import BenchmarkFailed

ROOT = Path(__file__).resolve().parent.parent
WORKING_FOLDER = ROOT / ".quorate-bench"
MANIFEST = WORKING_FOLDER / "peers" / "peers.json"
CONFIGURATIONS = Path(__file__).resolve().parent / "peers"

_PLACEHOLDER = re.compile(r"@\{(\w+)\}")


@dataclass(frozen=True)
class Program:
    """A peer's program. `environment` is what it needs beside that of the harness."""

    name: str
    path: str
    version: str
    environment: Mapping[str, str]


class Programs:
    """All that were found; asking for another one says why it is missing."""

    def __init__(self, found: Mapping[str, Program], missing: Mapping[str, str]) -> None:
        self._found = found
        self._missing = missing

    def __getitem__(self, name: str) -> Program:
        """Raises BenchmarkFailed when the program could not be had."""
        if name not in self._found:
            reason = self._missing.get(name, "it was never looked for; run scripts/fetch_peers.py")
            raise BenchmarkFailed(f"{name} is missing: {reason}")
        return self._found[name]

    @property
    def versions(self) -> dict[str, str]:
        return {name: program.version for name, program in sorted(self._found.items())}


def read_programs(manifest: Path = MANIFEST) -> Programs:
    """Raises BenchmarkFailed when nobody has looked for the peers yet."""
    try:
        content = json.loads(manifest.read_text())
    except FileNotFoundError:
        raise BenchmarkFailed(f"there is no {manifest.name} yet; run scripts/fetch_peers.py") from None
    found = {name: _program(name, entry, os.environ) for name, entry in content["found"].items()}
    return Programs(found, content["missing"])


def _program(name: str, entry: Mapping[str, Any], inherited: Mapping[str, str]) -> Program:
    folders = [*entry["library_folders"], *filter(None, [inherited.get("LD_LIBRARY_PATH")])]
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(folders)} if entry["library_folders"] else {}
    return Program(name, entry["program"], entry["version"], environment)


def render(template: str, values: Mapping[str, object]) -> str:
    """The template with each `@{name}` filled in. Raises BenchmarkFailed for a name that has no value, and for a value
    that no place asks for: either means that a configuration is not what its writer thinks."""
    wanted = set(_PLACEHOLDER.findall(template))
    if wanted != set(values):
        raise BenchmarkFailed(
            f"the template wants {sorted(wanted - set(values))} in vain, "
            f"and has no place for {sorted(set(values) - wanted)}"
        )
    return _PLACEHOLDER.sub(lambda place: str(values[place[1]]), template)


def write_configuration(template_name: str, folder: Path, values: Mapping[str, object]) -> Path:
    """The committed template of that name, filled in and written into `folder`."""
    path = folder / template_name
    path.write_text(render((CONFIGURATIONS / template_name).read_text(), values))
    return path
