"""Small pieces: files and functions stay readable, names say what they hold, no test sleeps, each test can fail."""

import ast
from pathlib import Path

import pytest
from support.repository import ROOT, python_files

FILE_LINES_MAX = 700
FUNCTION_LINES_MAX = 70
NAMELESS = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py", "base.py"}
FILES = pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))


@FILES
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES_MAX
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


@FILES
def test_a_file_is_named_by_what_it_holds(path: Path) -> None:
    assert path.name not in NAMELESS


@FILES
def test_every_module_of_a_member_says_what_it_is(path: Path) -> None:
    if path.stat().st_size:
        assert ast.get_docstring(ast.parse(path.read_text())), "a module starts with its docstring"


def name_of(function: ast.expr) -> str:
    """`module.name`, or nothing of what is called in another way."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return f"{function.value.id}.{function.attr}"
    return ""


def sleeps(tree: ast.AST) -> list[int]:
    """Lines of `sleep(x)` where x is anything but 0: `asyncio.sleep(0)` only lets other tasks run."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) in {"time.sleep", "asyncio.sleep", "anyio.sleep"}:
            argument = node.args[0] if node.args else None
            if not (isinstance(argument, ast.Constant) and argument.value == 0):
                found.append(node.lineno)
    return found


# The time of the simulated loop is an argument: to sleep there is to drive the clock.
VIRTUAL_TIME = {ROOT / "tests" / "sim" / "test_simulated_loop.py", ROOT / "tests" / "sim" / "test_simulated_disk.py"}


@FILES
def test_no_test_sleeps_to_wait(path: Path) -> None:
    is_test = path.is_relative_to(ROOT / "tests") and not path.is_relative_to(ROOT / "tests" / "support")
    if is_test and path not in VIRTUAL_TIME:
        assert sleeps(ast.parse(path.read_text())) == []
