"""The locks that the image is built from, read as pip reads them."""

import re
import tomllib

from support.repository import ROOT


def lock_entries(name: str) -> dict[str, str]:
    """Each entry's text by its package. `name`: a path in the repository."""
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())
    return {entry.partition("==")[0]: entry.strip() for entry in entries}


def locked_packages(name: str) -> dict[str, str]:
    """Each package of a lock in `docker/`, with the marker that says where it is wanted, or an empty one."""
    first_lines = {package: entry.splitlines()[0] for package, entry in lock_entries(f"docker/{name}").items()}
    return {package: line.rstrip(" \\").partition(";")[2].strip() for package, line in first_lines.items()}


def hashes(entry: str) -> set[str]:
    return set(re.findall(r"sha256:[0-9a-f]{64}", entry))


def workspace_tools() -> set[str]:
    """What whoever works on the members needs, and nobody who runs them."""
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"])
