"""Compiled modules are used only when they are of the very source that is there, and when that is wanted."""

import json
import os
import sys
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

import pytest
from quorate_gateway import proxy
from quorate_gateway.compiled import BUILD_FILE, FOLDER, MODULES, PACKAGE, VARIABLE, Choice, choose, describe
from quorate_gateway.proxy import downstream, plane

SOURCE_PATH = ["where the source is"]


class Built:
    """A package, and a build that is current. `path` is where the package's modules are looked for."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "package"
        (self.package / "inner").mkdir(parents=True)
        (self.package / "a.py").write_text("A = 1\n")
        (self.package / "inner" / "b.py").write_text("B = 2\n")
        self.build = folder / "build"
        self.build.mkdir()
        self.describe(**describe([self.package]))
        self.path = list(SOURCE_PATH)

    def describe(self, **content: str) -> None:
        (self.build / BUILD_FILE).write_text(json.dumps(content))

    def choose(self, wanted: str) -> Choice:
        return choose(self.path, wanted, self.build, [self.package])


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return Built(tmp_path)


@pytest.mark.parametrize("wanted", ["", "auto", "required"])
def test_a_current_build_is_looked_into_before_the_source(built: Built, wanted: str) -> None:
    assert built.choose(wanted) == (True, "", None)
    assert built.path == [str(built.build), *SOURCE_PATH]


def change(built: Built) -> None:
    (built.package / "inner" / "b.py").write_text("B = 3\n")


def add(built: Built) -> None:
    (built.package / "c.py").touch()


def remove(built: Built) -> None:
    (built.package / "a.py").unlink()


def rename(built: Built) -> None:
    (built.package / "a.py").rename(built.package / "d.py")


def move_a_byte(built: Built) -> None:
    """From the end of one file to the beginning of the next."""
    (built.package / "a.py").write_text("A = 1")
    (built.package / "inner" / "b.py").write_text("\nB = 2\n")


def take_another_interpreter(built: Built) -> None:
    built.describe(**{**describe([built.package]), "interpreter": ".cpython-310-x86_64-linux-gnu.so"})


@pytest.mark.parametrize("make_stale", [change, add, remove, rename, move_a_byte, take_another_interpreter])
def test_a_build_of_anything_else_is_never_used(built: Built, make_stale: Callable[[Built], None]) -> None:
    make_stale(built)
    reason = "what was compiled is of another source, or for another interpreter"
    assert built.choose("auto") == (False, reason, None)
    assert built.choose("required") == (False, reason, f"{VARIABLE} is required, and {reason}")
    assert built.path == SOURCE_PATH


def test_what_python_leaves_beside_the_source_does_not_count(built: Built) -> None:
    (built.package / "__pycache__").mkdir()
    (built.package / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"\0")
    assert built.choose("auto").is_compiled


def test_without_a_build_the_source_runs_unless_one_is_required(built: Built) -> None:
    (built.build / BUILD_FILE).unlink()
    assert built.choose("") == (False, "the gateway was not compiled", None)
    assert built.choose("required")[2] == f"{VARIABLE} is required, and the gateway was not compiled"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"build"', "{}"])
def test_a_build_that_does_not_say_what_it_is_of_is_not_used(built: Built, content: str) -> None:
    (built.build / BUILD_FILE).write_text(content)
    is_compiled, reason, refusal = built.choose("auto")
    assert (is_compiled, refusal) == (False, None)
    assert reason


def test_none_is_used_where_it_is_switched_off(built: Built) -> None:
    assert built.choose("off") == (False, f"{VARIABLE} is off", None)
    assert built.path == SOURCE_PATH


@pytest.mark.parametrize("wanted", ["yes", "1", "AUTO", " off"])
def test_a_wish_that_nobody_understands_is_refused(built: Built, wanted: str) -> None:
    is_compiled, _, refusal = built.choose(wanted)
    assert (is_compiled, refusal) == (False, f"{VARIABLE} is auto, off or required, not {wanted!r}")
    assert built.path == SOURCE_PATH


def test_these_tests_run_by_the_modules_that_they_were_told_to() -> None:
    """And by no mixture: all of MODULES are compiled, or none is."""
    wanted = os.environ[VARIABLE]
    assert wanted in {"off", "required"}
    assert proxy.COMPILED.is_compiled == (wanted == "required"), proxy.COMPILED.reason
    loaded = [sys.modules[f"{PACKAGE}.{name}"] for name in MODULES]
    are_extensions = {isinstance(module.__loader__, ExtensionFileLoader) for module in loaded}
    assert are_extensions == {wanted == "required"}
    assert (Path(str(downstream.__file__)).parent == FOLDER) == (wanted == "required")
    assert str(plane.__file__).endswith("plane.py"), "what tests put their own in the place of is never compiled"
