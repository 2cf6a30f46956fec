"""Whether the modules that every request goes through run compiled: which they are, and when a build of them is used.

Theory of operation. `scripts/compile_gateway.py` translates MODULES to C by mypyc, as they are, and leaves extension
modules of the same names in FOLDER, beside the source as Python's own `__pycache__` is. With them is BUILD_FILE, which
says for which interpreter they are, and of which source.

`quorate_gateway.proxy` asks `choose` before any of its modules is imported. When the build is of the source as it is
now, FOLDER comes first among the places where that package looks for its modules, and Python finds those there; all
others, and without a build all of them, are the source's. A build of any other source, or for another interpreter, is
never used: it would do what the source no longer says. Nothing else knows of it.

The digest is of all Python files of the gateway and of `quorate_resilience`, and not of MODULES alone: compiled code
rests on what the types of the others promise.
"""

import hashlib
import importlib.util
import json
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PACKAGE = "quorate_gateway.proxy"
MODULES = (
    "balancing", "bodies", "clusters", "counters", "downstream", "endpoint_states", "exchange", "framing", "heads",
    "joined", "tries",
)  # fmt: skip
"""Of PACKAGE. The others run too seldom to matter, or are what tests put their own in the place of."""
FOLDER = Path(__file__).resolve().parent / "proxy" / "__compiled__"
BUILD_FILE = "build.json"
VARIABLE = "QUORATE_GATEWAY_COMPILED"
"""`auto`, the default, uses a build that is current; `off` uses none; `required` refuses to start without."""


class Choice(NamedTuple):
    """How the modules run. `reason`: why not compiled; empty when they are. `refusal`: why the process must not start;
    None when it may."""

    is_compiled: bool
    reason: str = ""
    refusal: str | None = None


def choose(path: list[str], wanted: str, folder: Path = FOLDER, sources: Iterable[Path] | None = None) -> Choice:
    """Puts `folder` first into `path`, where a package looks for its modules, when its build is to be used. `wanted` is
    the value of VARIABLE; `sources` are the packages that the build must be of, the installed ones when left out."""
    if wanted not in ("", "auto", "off", "required"):
        refusal = f"{VARIABLE} is auto, off or required, not {wanted!r}"
        return Choice(False, refusal, refusal)
    if wanted == "off":
        return Choice(False, f"{VARIABLE} is off")
    reason = why_not_current(folder, sources)
    if reason is None:
        path.insert(0, str(folder))
        return Choice(True)
    return Choice(False, reason, f"{VARIABLE} is required, and {reason}" if wanted == "required" else None)


def why_not_current(folder: Path = FOLDER, sources: Iterable[Path] | None = None) -> str | None:
    """Why the build in `folder` must not be used, if there is one; None when it may."""
    try:
        build = json.loads((folder / BUILD_FILE).read_bytes())
    except FileNotFoundError:
        return "the gateway was not compiled"
    except (OSError, ValueError) as error:
        return f"what was compiled cannot be read: {error}"
    if build == describe(installed_packages() if sources is None else sources):
        return None
    return "what was compiled is of another source, or for another interpreter"


def describe(sources: Iterable[Path]) -> dict[str, str]:
    """What BUILD_FILE holds of a build of the packages `sources` for this interpreter."""
    return {"interpreter": str(sysconfig.get_config_var("EXT_SUFFIX")), "sources_sha256": digest(sources)}


def digest(sources: Iterable[Path]) -> str:
    """Of names and contents of all Python files in these packages."""
    found = hashlib.sha256()
    for package in sources:
        for file in sorted(package.rglob("*.py")):
            content = file.read_bytes()
            # With its length, so that no byte can move from one file to the next unnoticed.
            found.update(b"%b %d\n" % (str(file.relative_to(package.parent)).encode(), len(content)))
            found.update(content)
    return found.hexdigest()


def installed_packages() -> list[Path]:
    """The folders of the packages that a build is of."""
    folders = [Path(__file__).resolve().parent]
    resilience = importlib.util.find_spec("quorate_resilience")
    if resilience is not None and resilience.origin is not None:
        folders.append(Path(resilience.origin).resolve().parent)
    return folders
