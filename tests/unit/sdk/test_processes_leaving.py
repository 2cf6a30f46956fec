"""Signals reach the server's handler only after the registry has been left: real signals, in processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# `leave` says that it has begun, and ends when it is told to by a line. Each program then prints what its server hears.
PROGRAM = """
import asyncio, os, queue, signal, sys, threading
from quorate_sdk.leaving import leaving_first

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # one write a line, whichever thread says it

go_on = threading.Event()
def listen():
    for line in sys.stdin:
        go_on.set()
threading.Thread(target=listen, daemon=True).start()

def leave(number):
    say("leaving", signal.Signals(number).name)
    go_on.wait()
    say("left")
"""
BY_SIGNAL = """
stopped = queue.SimpleQueue()  # an event's lock is none that a handler may take
def on_signal(number, frame):
    say("server hears", signal.Signals(number).name)
    stopped.put(number)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, on_signal)
with leaving_first(leave):
    say("ready")
    while stopped.empty():
        threading.Event().wait(0.02)  # the kernel may give a signal to another thread, which wakes nobody here
say("handlers are back", signal.getsignal(signal.SIGTERM) is on_signal)
"""
BY_LOOP = """
async def main():
    stopped = asyncio.Event()
    def on_signal(name):
        say("server hears", name)
        stopped.set()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    with leaving_first(leave):
        say("ready")
        await stopped.wait()
    say("handlers are back", loop._signal_handlers[signal.SIGTERM]._callback is on_signal)
asyncio.run(main())
"""
BY_UVLOOP = BY_LOOP.replace("asyncio.run", "import uvloop\nuvloop.run").replace(
    'say("handlers are back", loop._signal_handlers[signal.SIGTERM]._callback is on_signal)', "go_on.wait()"
)
BLOCKED = """
async def main():
    stopped = asyncio.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: say("server hears SIGTERM"))
    with leaving_first(leave):
        say("ready")
        blocked = threading.Event()
        while not go_on.is_set():
            blocked.wait(0.01)  # holds the loop; only signals come through
asyncio.run(main())
"""
DEFAULT = """
with leaving_first(leave):
    say("ready")
    threading.Event().wait()
"""
DEFECT = (
    """
def leave(number):
    raise RuntimeError("a defect")
"""
    + BY_SIGNAL
)


@contextmanager
def program(code: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert line(process) == "ready"
            yield process
        finally:
            process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("code", [BY_SIGNAL, BY_LOOP], ids=["signal.signal", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_hears_of_a_signal_after_the_registry_was_left(code: str, number: signal.Signals) -> None:
    with program(code) as process:
        os.kill(process.pid, number)
        assert line(process) == f"leaving {number.name}"
        go_on(process)
        assert [line(process) for _ in range(3)] == ["left", f"server hears {number.name}", "handlers are back True"]


@pytest.mark.parametrize("code", [BY_SIGNAL, BY_LOOP], ids=["signal.signal", "asyncio"])
def test_a_supervisor_that_repeats_what_the_terminal_said_hastens_nothing(code: str) -> None:
    """Ctrl-C goes to every process of the terminal, and the master then sends SIGTERM to its workers."""
    with program(code) as process:
        os.kill(process.pid, signal.SIGINT)
        assert line(process) == "leaving SIGINT"
        os.kill(process.pid, signal.SIGTERM)
        go_on(process)
        assert line(process) == "left"
        assert line(process).startswith("server hears")


@pytest.mark.parametrize("code", [BY_SIGNAL, BY_LOOP], ids=["signal.signal", "asyncio"])
def test_the_same_signal_again_is_handed_on_at_once(code: str) -> None:
    with program(code) as process:
        os.kill(process.pid, signal.SIGINT)
        assert line(process) == "leaving SIGINT"
        os.kill(process.pid, signal.SIGINT)
        assert line(process) == "server hears SIGINT"


def test_on_uvloop_the_registry_is_left_at_the_same_time() -> None:
    """uvloop runs its own handlers whatever stands in their place."""
    with program(BY_UVLOOP) as process:
        os.kill(process.pid, signal.SIGTERM)
        said = {line(process), line(process)}
        assert said == {"leaving SIGTERM", "server hears SIGTERM"}


def test_a_blocked_event_loop_holds_up_nothing() -> None:
    with program(BLOCKED) as process:
        os.kill(process.pid, signal.SIGTERM)
        assert line(process) == "leaving SIGTERM"
        go_on(process)
        assert line(process) == "left"
        assert line(process) == "server hears SIGTERM"


def test_a_process_without_a_handler_ends_by_the_signal_after_it_has_left() -> None:
    with program(DEFAULT) as process:
        os.kill(process.pid, signal.SIGTERM)
        assert line(process) == "leaving SIGTERM"
        go_on(process)
        assert line(process) == "left"
        assert process.wait() == -signal.SIGTERM


def test_a_failure_to_leave_keeps_no_signal_from_the_server() -> None:
    with program(DEFECT) as process:
        os.kill(process.pid, signal.SIGTERM)
        assert process.stdout is not None
        assert any(said == "server hears SIGTERM\n" for said in process.stdout), "besides the log's account of it"
