"""The supervisor's driver with real child processes: small scripts that do what they are told."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from quorate_cli.layout import Layout
from quorate_cli.part_logs import last_lines
from quorate_cli.parts import Part, PartKind
from quorate_cli.ports import free_ports
from quorate_cli.readiness import Readiness
from quorate_cli.run_state import start_ticks_of
from quorate_cli.supervision import PartState
from quorate_cli.supervisor import Supervisor
from quorate_core.clock import SystemClock
from quorate_core.settings import HostPort
from support import plain_http

WAIT_S = 20.0

SERVE = """
import http.server, signal, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *_): pass
host, _, port = sys.argv[1].rpartition(":")
server = http.server.HTTPServer((host, int(port)), Ready)
"""
SERVE_UNTIL_TERM = (
    SERVE
    + "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('serving', flush=True); server.serve_forever()"
)
SERVE_FOR_EVER = SERVE + "signal.signal(signal.SIGTERM, signal.SIG_IGN); server.serve_forever()"


@dataclass(frozen=True, slots=True)
class ScriptPart(Part):
    """A part whose process is a script."""

    script: str = ""
    """`sys.argv[2]` is the mark by which it says that it is retired."""

    def command(self, python: str) -> tuple[str, ...]:
        return (python, "-c", self.script, str(self.address), str(self.retired_mark))


def commands_of_children() -> str:
    """The command lines of this process's children, one a line."""
    listing = ["ps", "--ppid", str(os.getpid()), "-o", "args="]
    return subprocess.run(listing, capture_output=True, text=True, check=False).stdout


class Scene:
    """A supervisor on a folder of its own, and what it announced."""

    def __init__(self, root: Path, client: httpx.AsyncClient) -> None:
        self.layout = Layout(root / ".quorate")
        self.layout.make()
        self.announced: list[str] = []
        self.relocate: Callable[[Part], Part] = lambda part: part
        self.supervisor = Supervisor(
            self.layout, SystemClock(), Readiness(client, []), self._relocate,
            self.announced.append, lambda: None,
        )  # fmt: skip

    def _relocate(self, part: Part) -> Part:
        return self.relocate(part)

    def start(self, script: str, name: str = "node-1") -> Part:
        (port,) = free_ports(1, "127.0.0.1", random.Random())
        address = HostPort("127.0.0.1", port)
        mark = self.layout.data_dir / f"{name}.removed"
        part = ScriptPart(name, PartKind.NODE, (), "--http", address, address, retired_mark=mark, script=script)
        self.supervisor.start(part)
        return part

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.supervisor.until(holds)

    async def until_ready(self, name: str = "node-1") -> int:
        """The pid of the ready process."""
        await self.until(lambda: self.supervisor.statuses[name].state is PartState.READY)
        return self.supervisor.statuses[name].pid

    async def until_backing_off(self, name: str = "node-1") -> None:
        await self.until(lambda: self.supervisor.statuses[name].state is PartState.BACKING_OFF)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with plain_http.async_client() as client:
        scene = Scene(tmp_path, client)
        async with scene.supervisor:
            yield scene


async def test_a_part_that_is_killed_comes_back_and_both_are_told(scene: Scene) -> None:
    part = scene.start(SERVE_UNTIL_TERM)
    first = await scene.until_ready()
    os.kill(first, signal.SIGKILL)
    await scene.until_backing_off()
    second = await scene.until_ready()
    assert second != first
    assert scene.announced == [
        "node-1 was killed by SIGKILL; restarting in 0.2 s",
        f"node-1 is back at {part.url} (pid {second})",
    ]
    assert scene.supervisor.statuses["node-1"].restarts == 1


async def test_a_part_that_says_that_it_was_removed_is_not_started_again_and_its_reason_stays(scene: Scene) -> None:
    script = """
import pathlib, sys
print("node-1 was removed by node-2", flush=True)
pathlib.Path(sys.argv[2]).write_text("removed")
sys.exit(78)
"""
    scene.start(script)
    status = await scene.supervisor.until_settled("node-1")
    assert (status.state, status.spawns, status.pid) == (PartState.RETIRED, 1, 0)
    assert scene.supervisor.reasons == {"node-1": "node-1 was removed by node-2"}
    assert scene.announced == [
        "node-1 was removed from the cluster, and is not started again",
        "  node-1 | node-1 was removed by node-2",
    ]
    assert await scene.supervisor.stop(["node-1"], 1.0) == []


async def test_a_crash_is_no_removal_though_the_mark_is_there(scene: Scene) -> None:
    scene.start("import pathlib, sys; pathlib.Path(sys.argv[2]).write_text('removed'); sys.exit(3)")
    await scene.until_backing_off()
    assert scene.supervisor.statuses["node-1"].last_exit_code == 3


async def test_a_part_that_keeps_failing_waits_longer_each_time(scene: Scene) -> None:
    scene.start("raise SystemExit(3)")
    await scene.until(lambda: scene.supervisor.statuses["node-1"].exits_in_a_row == 3)
    delays = [line.rpartition("restarting in ")[2] for line in scene.announced]
    assert delays == ["0.2 s", "0.4 s", "0.8 s"]
    assert "node-1 failed with exit code 3" in scene.announced[0]


async def test_refused_settings_fail_the_start_and_are_shown(scene: Scene) -> None:
    scene.start("import sys; print('--http: 127.0.0.1:1 is in use', file=sys.stderr); sys.exit(78)")
    async with asyncio.timeout(WAIT_S):
        status = await scene.supervisor.until_settled("node-1")
    assert status.has_failed_to_start
    assert [line.strip() for line in scene.announced] == [
        "node-1 cannot start; restarting in 15 s",
        "node-1 | --http: 127.0.0.1:1 is in use",
    ]
    assert scene.supervisor.reasons == {"node-1": "--http: 127.0.0.1:1 is in use"}


async def test_the_last_words_of_a_part_that_failed_are_shown_until_it_is_back(scene: Scene) -> None:
    marker = scene.layout.root / "put-right"
    fails = f"import os; os.path.exists({str(marker)!r}) or sys.exit('started\\ncannot write wal: the disk is full')"
    part = scene.start("import sys;" + fails + "\n" + SERVE_UNTIL_TERM)
    await scene.until_backing_off()
    reason = "cannot write wal: the disk is full"
    assert scene.supervisor.reasons == {"node-1": reason}
    marker.touch()
    pid = await scene.until_ready()
    first = ["node-1 failed with exit code 1; restarting in 0.2 s", f"  node-1 | {reason}"]
    assert scene.announced[:2] == first
    assert scene.announced[-1] == f"node-1 is back at {part.url} (pid {pid})"
    assert scene.supervisor.reasons == {}


async def test_of_a_part_that_is_killed_no_earlier_words_are_shown_as_its_reason(scene: Scene) -> None:
    scene.start(SERVE_UNTIL_TERM)
    os.kill(await scene.until_ready(), signal.SIGKILL)
    await scene.until_backing_off()
    assert scene.supervisor.reasons == {}
    assert not any("serving" in line for line in scene.announced)


async def test_a_part_that_may_move_comes_back_where_it_was_moved_to(scene: Scene) -> None:
    scene.start(SERVE_UNTIL_TERM)
    first = await scene.until_ready()
    (port,) = free_ports(1, "127.0.0.1", random.Random())
    scene.relocate = lambda part: part.moved_to(port)
    os.kill(first, signal.SIGKILL)
    await scene.until_backing_off()
    await scene.until_ready()
    assert scene.supervisor.parts["node-1"].address.port == port
    assert f"127.0.0.1:{port}" in scene.announced[-1]


async def test_a_stop_lets_a_part_drain_and_kills_one_that_does_not(scene: Scene) -> None:
    scene.start(SERVE_UNTIL_TERM, "polite")
    scene.start(SERVE_FOR_EVER, "stubborn")
    pids = [await scene.until_ready("polite"), await scene.until_ready("stubborn")]
    ticks = [start_ticks_of(pid) for pid in pids]
    assert await scene.supervisor.stop(["polite", "stubborn", "never-started"], grace_s=0.5) == ["stubborn"]
    assert [start_ticks_of(pid) == tick for pid, tick in zip(pids, ticks, strict=True)] == [False, False]
    codes = {name: status.last_exit_code for name, status in scene.supervisor.statuses.items()}
    assert codes == {"polite": 0, "stubborn": -9}
    assert all(status.state is PartState.STOPPED for status in scene.supervisor.statuses.values())
    assert scene.announced == []


async def test_a_part_that_waits_to_be_restarted_stops_at_once(scene: Scene) -> None:
    scene.start("raise SystemExit(78)")
    await scene.until_backing_off()
    async with asyncio.timeout(WAIT_S):
        assert await scene.supervisor.stop(["node-1"], grace_s=WAIT_S) == []
    assert scene.supervisor.statuses["node-1"].state is PartState.STOPPED


async def test_a_part_that_is_told_to_stop_while_it_is_being_spawned_does_not_live_on(scene: Scene) -> None:
    scene.start(SERVE_FOR_EVER)
    # One turn of the loop: the keeper has begun to spawn, and the process is not known yet.
    await asyncio.sleep(0)
    await scene.supervisor.stop(["node-1"], grace_s=WAIT_S)
    status = scene.supervisor.statuses["node-1"]
    assert (status.state, status.pid) == (PartState.STOPPED, 0)
    assert "server.serve_forever()" not in commands_of_children()


async def test_a_program_that_cannot_be_started_is_tried_again_and_told(scene: Scene) -> None:
    part = scene.start(SERVE_UNTIL_TERM)
    await scene.until_ready()

    class Missing(ScriptPart):
        def command(self, python: str) -> tuple[str, ...]:
            return ("/nowhere/python",)

    scene.relocate = lambda _: Missing(part.name, part.kind, (), "--http", part.address, part.address)
    os.kill(scene.supervisor.statuses["node-1"].pid, signal.SIGKILL)
    await scene.until(lambda: scene.supervisor.statuses["node-1"].exits_in_a_row == 2)
    assert any("node-1 could not be started" in line for line in scene.announced)
    scene.relocate = lambda _: part
    await scene.until_ready()


async def test_what_a_part_prints_is_in_its_log_and_a_session_of_its_own_keeps_ctrl_c_away(scene: Scene) -> None:
    scene.start(SERVE_UNTIL_TERM)
    pid = await scene.until_ready()
    assert last_lines(scene.layout.log_file("node-1"), 1) == ["serving"]
    assert os.getsid(pid) == pid != os.getsid(0)


async def test_a_command_that_runs_once_gives_its_exit_code(scene: Scene) -> None:
    command = (sys.executable, "-c", "print('migrated'); raise SystemExit(4)")
    assert await scene.supervisor.run_once("order-migrate", command) == 4
    assert last_lines(scene.layout.log_file("order-migrate"), 1) == ["migrated"]


async def test_leaving_the_supervisor_kills_what_still_runs(tmp_path: Path) -> None:
    async with plain_http.async_client() as client:
        scene = Scene(tmp_path, client)
        async with scene.supervisor:
            scene.start(SERVE_FOR_EVER)
            pid = await scene.until_ready()
            ticks = start_ticks_of(pid)
        assert start_ticks_of(pid) != ticks
