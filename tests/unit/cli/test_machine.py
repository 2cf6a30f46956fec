"""What is asked of the machine: ports, their holders, processes."""

import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from quorate_cli import down, up
from quorate_cli.layout import Layout
from quorate_cli.ports import AUTO_PORT_MAX, free_ports, holder_of, is_free
from quorate_cli.run_state import PartRun, RunState, is_process, read_run_state, start_ticks_of, write_run_state
from quorate_core.errors import QuorateError, SettingsError
from quorate_core.settings import HostPort


def test_a_port_is_not_free_while_somebody_listens_on_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = HostPort("127.0.0.1", listener.getsockname()[1])
        assert not is_free(address)
    assert is_free(address)


def test_a_port_that_is_taken_on_all_addresses_is_not_free() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        assert not is_free(HostPort("127.0.0.1", listener.getsockname()[1]))


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the holder is read from /proc")
def test_the_holder_of_a_port_is_named_with_its_pid() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        holder = holder_of(listener.getsockname()[1])
    assert holder is not None
    assert f"(pid {os.getpid()})" in holder


def test_ports_that_are_handed_out_differ_are_free_and_are_not_the_kernels_own() -> None:
    ports = free_ports(20, "127.0.0.1", random.Random(7))
    assert len(set(ports)) == 20
    assert all(is_free(HostPort("127.0.0.1", port)) for port in ports)
    assert max(ports) < AUTO_PORT_MAX
    kernel_range = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if kernel_range.exists():
        assert max(ports) < int(kernel_range.read_text().split()[0])


def test_a_port_that_is_taken_or_excluded_is_not_handed_out() -> None:
    first, second = free_ports(2, "127.0.0.1", random.Random(7))
    with socket.create_server(("127.0.0.1", first)):
        chosen = free_ports(5, "127.0.0.1", random.Random(7), frozenset({second}))
    assert not {first, second} & set(chosen)


def test_ports_are_taken_from_the_range_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_PORT_RANGE", "20000-20063")
    assert all(20_000 <= port <= 20_063 for port in free_ports(8, "127.0.0.1", random.Random(7)))


@pytest.mark.parametrize("wanted", ["20000", "20010-20000", "0-10", "20000-70000", "a-b", "-1-5"])
def test_a_range_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("QUORATE_PORT_RANGE", wanted)
    with pytest.raises(SettingsError, match="write it as 20000-20999"):
        free_ports(1, "127.0.0.1", random.Random(7))


def test_a_process_is_known_by_its_start_and_not_by_its_pid_alone() -> None:
    ticks = start_ticks_of(os.getpid())
    assert is_process(os.getpid(), ticks)
    if ticks is not None:
        assert not is_process(os.getpid(), ticks + 1)
    assert not is_process(0, None)


def test_a_process_that_has_ended_and_was_not_reaped_runs_no_more() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        ticks = start_ticks_of(child.pid)
        assert is_process(child.pid, ticks)
        os.kill(child.pid, 9)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not is_process(child.pid, ticks) or ticks is None


def test_the_run_state_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    layout = Layout(tmp_path / ".quorate")
    layout.make()
    part = PartRun(kind="node", pid=os.getpid(), start_ticks=start_ticks_of(os.getpid()), url="http://127.0.0.1:1",
                   state="ready", restarts=2, log=str(layout.log_file("node-1")))  # fmt: skip
    gone = part.model_copy(update={"pid": 0, "start_ticks": None})
    state = RunState(pid=1, start_ticks=0, started_at="2031-01-01T00:00:00+00:00", state="ready", endpoints=["http://a"],
                     gateway="http://g", admin="http://h", parts={"node-1": part, "node-2": gone})  # fmt: skip
    write_run_state(layout, state)
    assert read_run_state(layout) == state
    assert list(state.living_parts) == ["node-1"]


@pytest.mark.parametrize("content", ["", "{", '{"pid": "x"}', "[]"])
def test_a_run_state_that_cannot_be_understood_counts_as_none(tmp_path: Path, content: str) -> None:
    layout = Layout(tmp_path / ".quorate")
    layout.make()
    assert read_run_state(layout) is None
    layout.state_file.write_text(content)
    assert read_run_state(layout) is None


def test_what_is_left_of_the_last_run_is_named_and_never_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "LEFTOVER_WAIT_S", 0.0)
    monkeypatch.setattr(down, "PARTS_WAIT_S", 0.0)
    layout = Layout(tmp_path / ".quorate")
    layout.make()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        part = PartRun(kind="node", pid=child.pid, start_ticks=start_ticks_of(child.pid), url="http://127.0.0.1:1",
                       state="ready", restarts=0, log=str(layout.log_file("node-1")))  # fmt: skip
        write_run_state(layout, RunState(pid=0, start_ticks=None, started_at="", state="ready", endpoints=[],
                                         gateway="", admin="", parts={"node-1": part}))  # fmt: skip
        for attempt in (lambda: up.up(root=layout.root), lambda: down.down(root=layout.root)):
            with pytest.raises(QuorateError, match=rf"node-1 \(pid {child.pid}\)"):
                attempt()
        assert child.poll() is None
        child.kill()


def test_a_copy_of_a_folder_does_not_speak_of_the_processes_of_the_original(tmp_path: Path) -> None:
    original = Layout(tmp_path / "original" / ".quorate")
    original.make()
    part = PartRun(kind="node", pid=os.getpid(), start_ticks=start_ticks_of(os.getpid()), url="http://127.0.0.1:1",
                   state="ready", restarts=0, log=str(original.log_file("node-1")))  # fmt: skip
    state = RunState(pid=os.getpid(), start_ticks=start_ticks_of(os.getpid()), started_at="", state="ready",
                     endpoints=[], gateway="", admin="", parts={"node-1": part})  # fmt: skip
    write_run_state(original, state)
    shutil.copytree(original.root, tmp_path / "copy" / ".quorate")
    (tmp_path / "link").symlink_to(tmp_path / "original")
    assert read_run_state(Layout(tmp_path / "copy" / ".quorate")) is None
    assert read_run_state(Layout(tmp_path / "link" / ".quorate")) == state
