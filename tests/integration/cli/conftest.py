"""`quorate up` as a user starts it: a process, its output line by line, and the commands beside it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

READY_S = 60.0
LINE_S = 30.0
LINES_MAX = 2_000


class Quorate:
    """Runs `quorate` commands on one root. `environment` is added to the process's own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment: dict[str, str] = {}
        self.up: asyncio.subprocess.Process | None = None
        self.said: list[str] = []

    async def start(self, *options: str) -> None:
        """Begin `quorate up` in a session of its own, as a terminal would."""
        self.up = await self._spawn("up", "--root", str(self.root), *options, errors=asyncio.subprocess.STDOUT)
        self.said = []

    async def until_said(self, text: str, timeout_s: float = LINE_S) -> str:
        """The next line that has `text` in it. Fails with everything said when it does not come."""
        assert self.up is not None
        assert self.up.stdout is not None
        async with asyncio.timeout(timeout_s):
            while line := (await self.up.stdout.readline()).decode():
                self.said.append(line.rstrip())
                assert len(self.said) < LINES_MAX
                if text in line:
                    return line.rstrip()
        pytest.fail(f"`up` never said {text!r}; it said:\n" + "\n".join(self.said))

    async def until_ready(self, *options: str) -> None:
        await self.start("--ports", "auto", *options)
        await self.until_said("Ready after", READY_S)

    async def ended(self) -> int:
        """The exit code of `up`, once all it says was read."""
        assert self.up is not None
        assert self.up.stdout is not None
        async with asyncio.timeout(LINE_S):
            while line := (await self.up.stdout.readline()).decode():
                self.said.append(line.rstrip())
            return await self.up.wait()

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Another command beside it: exit code, stdout, stderr."""
        process = await self._spawn(*arguments, errors=asyncio.subprocess.PIPE)
        async with asyncio.timeout(READY_S):
            out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    @property
    def state(self) -> dict[str, Any]:
        found = json.loads((self.root / "run" / "state.json").read_text())
        assert isinstance(found, dict)
        return found

    def interrupt(self) -> None:
        """Ctrl-C: the signal goes to the whole foreground process group."""
        assert self.up is not None
        os.killpg(self.up.pid, signal.SIGINT)

    async def close(self) -> None:
        if self.up is not None and self.up.returncode is None:
            self.up.send_signal(signal.SIGTERM)
            try:
                await self.ended()
            except TimeoutError:
                self.up.kill()
                await self.up.wait()

    async def _spawn(self, *arguments: str, errors: int) -> asyncio.subprocess.Process:
        environment = {**os.environ, "QUORATE_ROOT": str(self.root), **self.environment}
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "quorate_cli", *arguments, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=errors, env=environment, start_new_session=True,
        )  # fmt: skip


@pytest.fixture
async def quorate(tmp_path: Path) -> AsyncIterator[Quorate]:
    quorate = Quorate(tmp_path / ".quorate")
    yield quorate
    await quorate.close()


@pytest.fixture
def until_ended() -> Callable[[int], Awaitable[None]]:
    """Waits for the end of a process that is not our child, by the kernel's own word."""

    async def wait(pid: int) -> None:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            async with asyncio.timeout(LINE_S):
                await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    return wait
