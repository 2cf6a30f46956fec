"""The image's starter: a module runs as by `python -m`, and a SIGTERM that comes before its own handler ends it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.repository import ROOT

SCRIPT = ROOT / "docker" / "start.py"


def start(module: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), module.stem, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={"PYTHONPATH": str(module.parent), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip


@pytest.fixture
def module(tmp_path: Path) -> Path:
    return tmp_path / "some_process.py"


def test_the_module_sees_its_own_name_and_command_line(module: Path) -> None:
    module.write_text("import sys\nprint(__name__, __spec__.name, sys.argv[1:])\nsys.exit(7)\n")
    process = start(module, "--name", "node-1")
    out, err = process.communicate(timeout=30)
    assert (out, err) == ("__main__ some_process ['--name', 'node-1']\n", "")
    assert process.returncode == 7


def test_a_sigterm_during_the_import_ends_it_though_the_kernel_would_drop_it(module: Path) -> None:
    # As the first process of a container has it: what is not handled is not delivered. So it must be handled by now.
    module.write_text(
        "import signal, sys\nprint(callable(signal.getsignal(signal.SIGTERM)), flush=True)\nsignal.pause()\n"
    )
    process = start(module)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + signal.SIGTERM, "")


def test_the_modules_own_handler_takes_over(module: Path) -> None:
    module.write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    process = start(module)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
