"""`translate_modules.py FOLDER PACKAGE FILE…`: make extension modules of Python files of PACKAGE by mypyc, in FOLDER.

Run it where the top package lies. `compile_gateway.py` does, and shows what this prints when it fails.
"""

import sys
from pathlib import Path

from setuptools import setup  # type: ignore[import-untyped]  # it has no types

# NB: after setuptools, which puts its own distutils in the place of Python's.
from mypyc.build import mypycify  # isort: skip


def main(folder: Path, package: str, files: list[str]) -> None:
    """The modules are in `folder`/lib, in the folders of their packages, and with them the library with their code."""
    # Imports are followed for their types alone: `make check` is where these are checked.
    mypy = ["--follow-imports=silent", "--ignore-missing-imports", f"--cache-dir={folder / 'types'}"]
    extensions = mypycify(
        [*mypy, *files], opt_level="3", debug_level="0", target_dir=str(folder / "c"), group_name=f"{package}.compiled"
    )
    options = ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "objects")]
    setup(name=package, packages=[], ext_modules=extensions, script_args=["build_ext", *options])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
