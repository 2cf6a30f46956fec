"""Real processes of the shop, and of one control-plane node, as a user starts them."""

import asyncio
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
from quorate_core.serving import bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from support import plain_http

WAIT_S_MAX = 30.0
POLL_INTERVAL_S = 0.02

T = TypeVar("T")


async def eventually(what: str, probe: Callable[[], Awaitable[T | None]]) -> T:
    """The first truthy answer of `probe`, asked again and again; fails with its last answer or error."""
    last: object = None
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            while True:
                try:
                    last = answer = await probe()
                    if answer:
                        return answer
                except httpx.HTTPError as error:
                    last = error
                # Another process: nothing here can be awaited, only asked.
                await asyncio.sleep(POLL_INTERVAL_S)
    except TimeoutError:
        raise AssertionError(f"not within {WAIT_S_MAX} s: {what}; last seen: {last!r}") from None


class Process:
    """One process with its log. `until_logged` waits for a line on its stderr."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._lines: list[str] = []
        self._changed = asyncio.Condition()
        self._reader = TaskOwner(name).start(self._read(), "log")

    @classmethod
    async def start(cls, name: str, *arguments: str) -> "Process":
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        return cls(name, process)

    async def _read(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        while line := await stream.readline():
            async with self._changed:
                self._lines.append(line.decode(errors="replace"))
                self._changed.notify_all()
        async with self._changed:
            self._lines.append("")  # the end: whoever waits for more looks again
            self._changed.notify_all()

    @property
    def log(self) -> str:
        return "".join(self._lines)

    async def until_logged(self, *words: str) -> str:
        def found() -> str | None:
            for line in self._lines:
                if all(word in line for word in words):
                    return line
            if self._lines and self._lines[-1] == "":
                raise AssertionError(f"{self.name} ended without logging {words}:\n{self.log}")
            return None

        async with asyncio.timeout(WAIT_S_MAX), self._changed:
            await self._changed.wait_for(lambda: found() is not None)
        line = found()
        assert line is not None
        return line

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT_S_MAX):
            await self._reader
            return await self._process.wait()

    async def end(self, number: signal.Signals) -> int:
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self.ended()


@dataclass
class RunningShop:
    """`folder` holds the data of all; parts are found by their names."""

    folder: Path
    node_http: HostPort
    node_peer: HostPort
    processes: dict[str, Process] = field(default_factory=dict)
    http: httpx.AsyncClient = field(default_factory=lambda: plain_http.async_client(timeout=5.0))

    @property
    def node_url(self) -> str:
        return f"http://{self.node_http}"

    async def start_node(self) -> None:
        """Start the control plane, and wait until it is ready."""
        self.processes["node-1"] = await Process.start(
            "node-1", "quorate_node", "--name", "node-1", "--data-dir", str(self.folder / "node-1"), "--http",
            str(self.node_http), "--peer", str(self.node_peer), "--members", f"node-1={self.node_peer}",
            "--cluster-id", "test", "--cluster-secret-file", str(self.folder / "secret"),
        )  # fmt: skip

        async def is_ready() -> bool:
            return (await self.http.get(f"{self.node_url}/readyz")).status_code == 200

        await eventually("the node is ready", is_ready)

    async def start(self, name: str) -> Process:
        """Start an instance such as `order-1`, and wait until it is ready."""
        member = name.partition("-")[0]
        process = await Process.start(
            name, f"quorate_{member}", "--name", name, "--data-dir", str(self.folder / member), "--endpoints",
            self.node_url,
        )  # fmt: skip
        self.processes[name] = process
        await process.until_logged("ready", "url=")
        return process

    async def kill(self, name: str) -> None:
        await self.processes[name].end(signal.SIGKILL)

    async def instances(self, service: str) -> dict[str, str]:
        """URLs by instance, as the registry has them."""
        answer = await self.http.get(f"{self.node_url}/v1/registry/default/services/{service}")
        return {each["id"]: f"http://{each['host']}:{each['port']}" for each in answer.json()["instances"]}


async def migrate(member: str, folder: Path, *options: str) -> Process:
    return await Process.start(f"{member}-migrate", f"quorate_{member}.migrate", "--data-dir", str(folder), *options)


@asynccontextmanager
async def running_shop(folder: Path, stock: str) -> AsyncIterator[RunningShop]:
    """One node, and two instances each of order and inventory."""
    secret = folder / "secret"
    secret.write_text(secrets.token_urlsafe(32))
    secret.chmod(0o600)
    shop = RunningShop(folder, free_address(), free_address())
    try:
        migrations = [
            await migrate("order", folder / "order"),
            await migrate("inventory", folder / "inventory", "--stock", stock),
        ]
        assert [await each.ended() for each in migrations] == [0, 0], [each.log for each in migrations]
        await shop.start_node()
        await asyncio.gather(*(shop.start(name) for name in ("order-1", "order-2", "inventory-1", "inventory-2")))
        yield shop
    finally:
        await asyncio.gather(*(process.end(signal.SIGKILL) for process in shop.processes.values()))
        await shop.http.aclose()


def free_address() -> HostPort:
    listener = open_listener(HostPort("127.0.0.1", 0), "test")
    try:
        return bound_address(listener)
    finally:
        listener.close()
