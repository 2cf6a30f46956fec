"""Services as their users start them: real servers with real workers, and hands to break them.

The service is a file of the test's own, so that a reloader has something to watch.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.node_processes import LOG_CHARS_SHOWN_MAX, STOP_S_MAX, free_ports, until

ASGI_SERVICE = """\
import os
import quorate_sdk as quorate
from fastapi import FastAPI

VERSION = "1"
registered = quorate.lifespan(
    "greeter", port=int(os.environ["PORT"]), ttl_s=2, version=VERSION, instance_id="greeter-1"
)
app = FastAPI(lifespan=registered)

@app.get("/pid")
async def pid() -> int:
    return os.getpid()

@app.get("/block")
async def block(until: str) -> str:
    return open(until).read()  # a FIFO: holds the event loop until somebody writes

@app.get("/hold")
def hold(until: str) -> str:
    return open(until).read()  # in a thread: a request that takes its time
"""
ASKING_SERVICE = """\
import quorate_sdk as quorate
from fastapi import FastAPI

http = quorate.http()
app = FastAPI(lifespan=quorate.lifespan("asking", port=1))

@app.get("/ask")
async def ask() -> int:
    return (await http.get("http://greeter/pid")).json()
"""
PLAIN_PROGRAM = """\
import asyncio
import os
import quorate_sdk as quorate

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 1\\r\\nconnection: close\\r\\n\\r\\n1")
    writer.close()

async def main():
    port = int(os.environ["PORT"])
    async with await asyncio.start_server(answer, "127.0.0.1", port), quorate.Client.from_environment() as client:
        with client.stop_signals() as told_to_stop:
            await client.register(service="greeter", instance_id="greeter-1", host="127.0.0.1", port=port, ttl_s=2)
            await told_to_stop()

asyncio.run(main())
"""
WSGI_SERVICE = """\
import os
import quorate_sdk as quorate

VERSION = "1"

def greet(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]

app = quorate.wsgi(greet, "greeter", port=int(os.environ["PORT"]), ttl_s=2, version=VERSION, instance_id="greeter-1")
"""


class ServedProcess:
    """A server in a session of its own, started in `folder`, where `service.py` is."""

    def __init__(self, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        [self.port] = free_ports(1)
        self._folder = folder
        self._log = folder / "server.log"
        place = {
            "PORT": str(self.port),
            "QUORATE_RUNTIME_DIR": str(folder / "run"),
            "HOME": str(folder),
            "PYTHONPATH": str(folder),
        }
        inherited = os.environ.get("PYTHONPATH")
        if inherited:
            place["PYTHONPATH"] += os.pathsep + inherited
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(argument.format(port=self.port) for argument in arguments)],
                cwd=folder, env={**os.environ, **environment, **place}, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")[-LOG_CHARS_SHOWN_MAX:]

    @property
    def workers(self) -> set[int]:
        """The process ids of those that have joined the group of this registration."""
        return {int(path.name.split("-")[1]) for path in (self._folder / "run").glob("quorate/*/member-*")}

    @property
    def keeper(self) -> int:
        """The process id of the worker that holds the registration, as the kernel says."""
        return until("a worker holds the registration", self._find_keeper)

    def _find_keeper(self) -> int | None:
        for path in (self._folder / "run").glob("quorate/*/keeper"):
            inode = str(path.stat().st_ino)
            for line in Path("/proc/locks").read_text().splitlines():
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode:
                    return int(fields[4])
        return None

    def is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def tell(self, number: signal.Signals) -> None:
        """To the master alone, as a supervisor does."""
        os.kill(self.process.pid, number)

    def exit_status(self) -> int:
        try:
            return self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs\n{self.log}") from None

    def end(self) -> None:
        """Kill the whole session, whoever is left of it."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(STOP_S_MAX)


def is_running(pid: int) -> bool:
    """Whether it is there, and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@contextmanager
def serving(
    folder: Path, service: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[ServedProcess]:
    """`python -m` with these arguments, where `{port}` is a free port; killed at the end."""
    folder.mkdir(exist_ok=True)
    (folder / "service.py").write_text(service)
    served = ServedProcess(folder, arguments, environment)
    try:
        yield served
    except BaseException as error:
        error.add_note(served.log)
        raise
    finally:
        served.end()
