"""Compile the modules of the gateway that every request goes through, for the interpreter that runs this.

`quorate_gateway.compiled` says which they are, where the build goes, and when it is used. mypyc translates them to C,
and a C compiler makes one library of them; both take about 30 s of a core. Nothing is done when the build is current.

With `--optional` it is no failure when there is no compiler, or no header of Python: the gateway runs without a build.
"""

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from quorate_gateway import compiled

TRANSLATE_S_MAX = 600.0
OUTPUT_LINES_MAX = 40


class CannotCompile(Exception):
    """With the reason, for people."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--optional", action="store_true", help="end well where it cannot be done")
    optional = parser.parse_args(arguments).optional
    if compiled.why_not_current() is None:
        print("the gateway's compiled modules are current")
        return 0
    started_s = time.monotonic()
    try:
        check_tools()
        described = compiled.describe(compiled.installed_packages())
        with tempfile.TemporaryDirectory(prefix="quorate-compile-") as scratch:
            libraries = build(Path(scratch))
            if compiled.describe(compiled.installed_packages()) != described:
                raise CannotCompile("the source was changed meanwhile; run it again")
            install(libraries, described)
    except CannotCompile as error:
        print(f"the gateway is not compiled, and runs from its source: {error}")
        return 0 if optional else 1
    print(f"compiled {len(compiled.MODULES)} modules of the gateway in {time.monotonic() - started_s:.0f} s")
    return 0


def check_tools() -> None:
    """Raises CannotCompile, naming what is missing and how it comes."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        raise CannotCompile(f"there is no C compiler {compiler} (on Debian and Ubuntu: apt-get install gcc libc6-dev)")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise CannotCompile(f"there is no {header} (on Debian and Ubuntu: apt-get install python3-dev)")
    for module in ("mypyc", "setuptools"):
        if importlib.util.find_spec(module) is None:
            raise CannotCompile(f"{module} is not installed for {sys.executable}")


def build(folder: Path) -> list[Path]:
    """The extension modules, in `folder`. Raises CannotCompile with the end of what the tools have said."""
    package = Path(*compiled.PACKAGE.split("."))
    files = [str(package / f"{module}.py") for module in compiled.MODULES]
    program = Path(__file__).resolve().parent / "translate_modules.py"
    command = [sys.executable, str(program), str(folder), compiled.PACKAGE, *files]
    # From a copy that lies alone: where packages are installed, mypy would take others that lie there for ours too. Run
    # beside it, so that traces name files as they are imported.
    source = folder / "source"
    package_folder = Path(compiled.__file__).resolve().parent
    shutil.copytree(package_folder, source / package_folder.name, ignore=shutil.ignore_patterns("__*__", "__*__.new"))
    try:
        done = subprocess.run(
            command, cwd=source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            timeout=TRANSLATE_S_MAX,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompile(str(error)) from error
    libraries = sorted((folder / "lib" / package).glob("*.so"))
    if done.returncode or len(libraries) <= len(compiled.MODULES):
        raise CannotCompile("\n".join(["mypyc or the compiler failed:", *done.stdout.splitlines()[-OUTPUT_LINES_MAX:]]))
    return libraries


def install(libraries: Sequence[Path], described: dict[str, str], folder: Path = compiled.FOLDER) -> None:
    """In the place of an older build. BUILD_FILE comes last: without it the others are not used. Processes that run
    keep what they have loaded."""
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for library in libraries:
        shutil.copy(library, new)
    (new / compiled.BUILD_FILE).write_text(json.dumps(described) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
