"""The tutorial, followed to the letter: its file is written, its commands run, and what it says must come out."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from quorate_cli.ports import free_ports
from support.platform import Platform, eventually
from support.repository import ROOT

PAGE = (ROOT / "docs" / "tutorials" / "add-a-service.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
END_S_MAX = 20.0
COMMAND_S_MAX = 60.0
GOOD_DAY = '"Good day, ada!"'


def blocks(language: str) -> list[str]:
    return [found[2] for found in BLOCK.finditer(PAGE) if found[1] == language]


class Reader:
    """Somebody who follows the page. Only ports and the folder are their own."""

    def __init__(self, folder: Path, platform: Platform) -> None:
        self._folder = folder
        first, second = free_ports(2, "127.0.0.1", random.Random())
        programs = Path(sys.executable).parent
        self._other = {
            "http://127.0.0.1:8080": platform.gateway, "9001": str(first), "9002": str(second),
            ".venv/bin/": f"{programs}/", "./quorate": f"{programs / 'quorate'}",
        }  # fmt: skip
        self._environment = {
            **os.environ, "QUORATE_ENDPOINTS": ",".join(platform.endpoints), "COLUMNS": "200", "NO_COLOR": "1",
            "QUORATE_RUNTIME_DIR": str(folder / "runtime"),
        }  # fmt: skip
        self.started: list[subprocess.Popen[bytes]] = []

    def follow(self, script: str) -> str:
        """Run these lines; returns what the last one says. One that ends in & is left running."""
        for other, own in self._other.items():
            script = script.replace(other, own)
        output = ""
        for line in script.splitlines():
            if line.endswith("&"):
                self._leave_running(line.removesuffix("&").strip())
                continue
            done = subprocess.run(
                ["sh", "-e", "-c", line], cwd=self._folder, env=self._environment, capture_output=True, text=True,
                timeout=COMMAND_S_MAX, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            output = done.stdout
        return output

    def _leave_running(self, line: str) -> None:
        words = shlex.split(line)
        own = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))
        with (self._folder / f"greeter-{len(self.started)}.log").open("wb") as log:
            self.started.append(
                subprocess.Popen(
                    [word for word in words if word.partition("=")[0] not in own], cwd=self._folder, stdout=log,
                    stderr=subprocess.STDOUT, env={**self._environment, **own}, start_new_session=True,
                )
            )  # fmt: skip

    def end(self) -> list[int]:
        for process in self.started:
            process.send_signal(signal.SIGTERM)
        return [process.wait(END_S_MAX) for process in self.started]


@pytest.fixture
def reader(tmp_path: Path, platform: Platform) -> Iterator[Reader]:
    following = Reader(tmp_path, platform)
    try:
        yield following
    finally:
        for process in following.started:
            if process.poll() is None:
                process.kill()
                process.wait(END_S_MAX)


def test_the_tutorial_works_as_it_is_written(tmp_path: Path, platform: Platform, reader: Reader) -> None:
    # As `make up` leaves it: other journeys on this platform have published routes of their own.
    routes = f"{platform.endpoints[0]}/v1/config/default/gateway/routes.yaml"
    platform.http.post(f"{routes}/rollback", json={"version": 1}).raise_for_status()
    [program] = blocks("python")
    (tmp_path / "greeter.py").write_text(program)
    start, shown, route, live, other, changes = blocks("sh")
    reader.follow(start)
    eventually("both listen", lambda: platform.cli("services", "greeter").stdout.count("UP") == 2, COMMAND_S_MAX)
    assert reader.follow(shown).count("UP") == 2
    before = platform.cli("config", "get", "default", "gateway", "routes.yaml").stdout
    try:
        *publish, ask = route.splitlines()
        reader.follow("\n".join(publish))
        eventually("the route is served", lambda: reader.follow(ask) == '"Hello, ada!"', COMMAND_S_MAX)
        *publish, ask = live.splitlines()
        reader.follow("\n".join(publish))
        eventually("the settings are live", lambda: {reader.follow(ask) for _ in range(8)} == {GOOD_DAY}, COMMAND_S_MAX)
        assert "widgets." in reader.follow(other)
        listed = [line.split()[0] for line in reader.follow(shown).splitlines() if "UP" in line and "greeter-" in line]
        drained = platform.cli("services", "drain", "greeter", listed[0])
        assert drained.returncode == 0, drained.stdout + drained.stderr
        assert [reader.follow(ask) for _ in range(4)] == [GOOD_DAY] * 4
        assert reader.end() == [-signal.SIGTERM] * 2, "as uvicorn ends, once it has left in good order"
        told = reader.follow(changes)
        assert "greeter" in told
        assert "deregistered" in told
    finally:
        (tmp_path / "before.yaml").write_text(before)
        platform.cli("config", "put", "default", "gateway", "routes.yaml", str(tmp_path / "before.yaml"))
        platform.cli("config", "delete", "default", "greeter", "settings.yaml", "--yes")
