"""Programs that are forked from a process which has imported them, so that a start costs no imports.

`python -m quorate_node` spends most of its start on imports, the same each time, and the tests start nodes and gateways
by the hundred. `start` keeps one *launcher* for each program that is started: `python -m support.forked_programs`, a
process of one thread and no event loop, which has imported the program and waits. For each start it forks a child,
and the child becomes the program: a session of its own, with the arguments, environment, working directory and output
that it is given, whose `__main__` is run from the beginning by `runpy`. From then on it is a process like any other:
it is killed, stopped, waited for and looked at in /proc by its id, and ends with its own exit status.

    tests                              launcher                     child
      | start: arguments, output ------> | fork ---------------------> | runs the program
      | <------------------------------------------ its process id --- |
      | (pidfd: the kernel says that the child has ended)              | ends
      | reap: process id --------------> | waitpid
      | <-------- its exit status ------ |

The launcher waits for a child only when it is asked to. Until then the id of an ended child is nobody else's, as with
`subprocess.Popen`. When the tests' end of the socket closes, however they ended, the launcher kills the sessions of all
children that are left, and ends.

What a child would share with its siblings, though processes do not, modules draw anew after a fork
(`os.register_at_fork`). What imports depend on must be the same for the launcher and for the start: where a variable of
`IMPORT_VARIABLES` or a namespace differs, `start` starts a process in the plain way. Tests of the start itself call
`subprocess`.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

TESTS = Path(__file__).resolve().parent.parent
IMPORTED = {
    "quorate_node": ("quorate_node.bootstrap",),
    str(TESTS / "support" / "counted_gateway.py"): ("quorate_gateway.bootstrap",),
}
"""By program, a module or a script: what its launcher imports, which is all but the program's own `__main__`."""
IMPORT_VARIABLES = ("QUORATE_GATEWAY_COMPILED", "PYTHON")
"""Beginnings of the names of variables that imports depend on."""
NAMESPACES = ("net", "mnt", "pid", "user")
MESSAGE_BYTES_MAX = 128 * 1024
LAUNCH_S_MAX = 60.0


class ForkedProcess:
    """A running program, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, launcher: "Launcher", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._launcher = launcher
        self._pidfd = os.pidfd_open(pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; negative for a signal. Raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _status(self, within_s: float | None) -> int | None:
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        if self.returncode is None and ended.poll(None if within_s is None else within_s * 1_000):
            with self._lock:
                if self.returncode is None:
                    self.returncode = int(self._launcher.ask({"reap": self.pid})["status"])
        return self.returncode

    def __del__(self) -> None:
        os.close(self._pidfd)  # not sooner: another thread may wait for it


def start(
    program: Sequence[str], arguments: Sequence[str], output: IO[bytes], environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes] | ForkedProcess":
    """Start `python *program *arguments` in a session of its own, with stdout and stderr to `output`.

    `program` is ("-m", module) or (script,). It is forked if it is one of `IMPORTED` and nothing that its imports
    depend on differs, and started in the plain way otherwise. `environment` is the whole of it; None means this one's.
    """
    wanted = dict(os.environ if environment is None else environment)
    if program[-1] in IMPORTED:
        launcher = _launcher(program[-1])
        if launcher.imported_under(wanted):
            return launcher.fork(arguments, output, wanted)
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        stdout=output, stderr=subprocess.STDOUT, env=wanted, start_new_session=True,
    )  # fmt: skip


@cache
def _launcher(program: str) -> "Launcher":
    launcher = Launcher(program)
    atexit.register(launcher.close)
    return launcher


class Launcher:
    """The tests' end of a launcher. Any thread may ask; one at a time is answered."""

    def __init__(self, program: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(LAUNCH_S_MAX)
        self._lock = threading.Lock()
        self._variables = _import_variables(os.environ)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.forked_programs", str(theirs.fileno()), program],
                cwd=TESTS, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        self._namespaces = _namespaces(f"{self._process.pid}")

    def imported_under(self, environment: Mapping[str, str]) -> bool:
        """Whether what it has imported is what a process with this environment, started by this thread, would."""
        return _import_variables(environment) == self._variables and _namespaces("thread-self") == self._namespaces

    def fork(self, arguments: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> ForkedProcess:
        request = {"arguments": list(arguments), "environment": dict(environment), "folder": str(Path.cwd())}
        return ForkedProcess(self, int(self.ask(request, output.fileno())["pid"]))

    def ask(self, request: Mapping[str, Any], *descriptors: int) -> dict[str, Any]:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            answer = self._socket.recv(MESSAGE_BYTES_MAX)
        assert answer, "the launcher has ended; what it said is on stderr"
        return dict(json.loads(answer))

    def close(self) -> None:
        self._socket.close()
        self._process.wait(LAUNCH_S_MAX)


def _import_variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(IMPORT_VARIABLES)}


def _namespaces(process: str) -> list[str]:
    return [str(Path("/proc", process, "ns", name).readlink()) for name in NAMESPACES]


# What follows runs in the launcher and in its children.


@dataclass(frozen=True)
class _Start:
    """What a child is to become."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    output: int


def _serve(asked: socket.socket) -> _Start | None:
    """Fork and reap as asked. Returns in each child what it is to become, and None in the launcher at the end."""
    children: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, MESSAGE_BYTES_MAX, 1)
        if not message:
            break
        request = json.loads(message)
        if "reap" in request:
            pid, status = os.waitpid(request["reap"], 0)
            children.discard(pid)
            asked.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
        else:
            pid = os.fork()
            if not pid:
                return _Start(**request, output=descriptors[0])
            os.close(descriptors[0])
            children.add(pid)  # which answers itself, once it has a session of its own
    for pid in children:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return None


def _become_another_process(start: _Start, module_or_script: str, asked: socket.socket) -> None:
    """Make new what `exec` makes new, and apart what two processes have apart; then tell the process id."""
    os.setsid()
    os.dup2(start.output, 1)
    os.dup2(start.output, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(start.environment)
    os.chdir(start.folder)
    sys.path[0] = str(Path(module_or_script).parent) if module_or_script.endswith(".py") else start.folder
    sys.argv = [module_or_script, *start.arguments]
    asked.send(json.dumps({"pid": os.getpid()}).encode())
    asked.close()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _main(descriptor: int, program: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' end of the socket says when to end
    for name in IMPORTED[program]:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()  # so that no collection of a child writes on the pages that all share
    asked = socket.socket(fileno=descriptor)
    start = _serve(asked)
    if start is None:
        return
    _become_another_process(start, program, asked)
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
