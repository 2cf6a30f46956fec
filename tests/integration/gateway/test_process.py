"""The process: what it needs to start, what it says when it cannot, and how it ends."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from support.gateway_client import Client
from support.gateway_upstream import WAIT_S_MAX, unused_port

LISTENING = re.compile(r"listening .*admin=http://127\.0\.0\.1:(\d+).* url=http://127\.0\.0\.1:(\d+)")


async def start(tmp_path: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "quorate_gateway", "--name", "gateway", "--data-dir", str(tmp_path / "data"), *arguments,
        stderr=asyncio.subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip


async def run(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """To its end: exit status and what it said."""
    process = await start(tmp_path, *arguments)
    async with asyncio.timeout(3 * WAIT_S_MAX):
        _, said = await process.communicate()
    return process.returncode or 0, said.decode()


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int, int]]:
    """The process, and the ports of clients and of the admin API."""
    endpoint = f"http://127.0.0.1:{unused_port()}"
    process = await start(tmp_path, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--endpoints", endpoint)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(3 * WAIT_S_MAX):
            async for line in process.stderr:
                found = LISTENING.search(line.decode())
                if found is not None:
                    break
        assert found is not None
        yield process, int(found[2]), int(found[1])
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def client_of(port: int) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield client
    finally:
        client.close()
        with suppress(ConnectionError):
            await client.writer.wait_closed()


async def test_it_answers_before_it_knows_any_routes_and_ends_on_sigterm(tmp_path: Path) -> None:
    async with (
        running(tmp_path) as (process, port, admin),
        client_of(port) as client,
        client_of(admin) as operator,
    ):
        assert (await client.get()).status == 503
        await operator.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        metrics = (await operator.rest()).decode()
        assert "quorate_gateway_connections 1.0" in metrics
        assert "quorate_loop_pause_seconds" in metrics
        process.send_signal(signal.SIGTERM)
        assert await client.rest() == b""
        async with asyncio.timeout(WAIT_S_MAX):
            assert await process.wait() == 0


async def test_a_port_in_use_is_named_with_the_exit_status_of_bad_settings(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = {"--listen": "127.0.0.1:0", "--admin": "127.0.0.1:0"}
        for flag in options:
            arguments = [word for pair in {**options, flag: address}.items() for word in pair]
            status, said = await run(tmp_path, *arguments, "--endpoints", "http://127.0.0.1:9")
            assert status == 78
            assert f"{flag}: {address} is in use" in said
            assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--endpoints"),
        (["--endpoints", "http://127.0.0.1:9", "--listen", "nowhere"], "--listen"),
        (["--endpoints", "http://127.0.0.1:9", "--admin", "0.0.0.0:0"], "--token-file"),
        (["--endpoints", "http://127.0.0.1:9", "--token-file", "/nonexistent/token"], "/nonexistent/token"),
        (["--endpoints", "http://127.0.0.1:9", "--data-dir", "/dev/null/x"], "--data-dir"),
    ],
)
async def test_bad_settings_are_named_in_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    status, output = await run(tmp_path, *arguments)
    assert status == 78
    assert said in output
    assert "Traceback" not in output
