"""The page on testing, followed literally: its service and its tests, in a project and a pytest of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support.repository import ROOT

PAGE = ROOT / "docs" / "reference" / "testing.md"
RUN_S_MAX = 100


def files_of(page: str) -> dict[str, str]:
    """The code blocks that stand after a file's name in backticks."""
    return dict(re.findall(r"^`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


def test_the_tests_of_the_page_pass_in_a_project_of_their_own(tmp_path: Path) -> None:
    files = files_of(PAGE.read_text())
    assert set(files) == {"greeter.py", "test_greeter.py"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QUORATE_")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=RUN_S_MAX, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout


def test_its_tests_can_fail(tmp_path: Path) -> None:
    """Else they would show nothing of the page."""
    files = files_of(PAGE.read_text())
    (tmp_path / "greeter.py").write_text(files["greeter.py"].replace("settings.current.greeting", "'Hello'"))
    (tmp_path / "test_greeter.py").write_text(files["test_greeter.py"])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=RUN_S_MAX, check=False,
    )  # fmt: skip
    assert "1 failed, 2 passed" in run.stdout, run.stdout + run.stderr
