"""Instances of a service as real processes, by uvicorn or gunicorn, and hands to break them.

Whatever is done to an instance is said to the observer's truth as it happens.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from support import plain_http
from support.fault_discovery import Truth
from support.node_processes import LOG_CHARS_SHOWN_MAX, free_ports, until

TESTS = Path(__file__).resolve().parent.parent
APPLICATION = "support.registered_service:app"
ASK_S_MAX = 1.0
START_S_MAX = 40.0
STOP_S_MAX = 25.0
UVICORN = ("uvicorn", APPLICATION, "--host", "127.0.0.1", "--log-level", "warning")
GUNICORN = ("gunicorn", APPLICATION, "--worker-class", "uvicorn.workers.UvicornWorker", "--graceful-timeout", "10")


class ServiceProcess:
    """One instance, with all of its workers, in a process group of its own."""

    def __init__(
        self, name: str, folder: Path, urls: Sequence[str], truth: Truth, *, ttl_s: int, workers: int = 1,
        server: Sequence[str] = UVICORN,
    ) -> None:  # fmt: skip
        """`urls` of the nodes."""
        (self.port,) = free_ports(1)
        self.name = name
        self._truth = truth
        self._log_file = folder / f"{name}.log"
        address = ("--port", str(self.port)) if server[0] == "uvicorn" else ("--bind", f"127.0.0.1:{self.port}")
        self._command = [sys.executable, "-m", *server, *address, "--workers", str(workers)]
        self._environment = {
            **os.environ, "PYTHONPATH": str(TESTS), "QUORATE_ENDPOINTS": ",".join(urls), "OBSERVED_ID": name,
            "OBSERVED_PORT": str(self.port), "OBSERVED_TTL_S": str(ttl_s),
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    def start(self) -> None:
        """Start it and wait until it answers. It is live from then on, and may have been for a moment."""
        self._truth.is_unsettled(self.name)
        with self._log_file.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._wait_answers()

    def pid(self) -> int:
        """Of the worker that happens to answer. Raises httpx.HTTPError."""
        return int(self._get("/").json()["pid"])

    def kill(self) -> None:
        """kill -9 of all of it at once."""
        os.killpg(self._group, signal.SIGKILL)
        self._running.wait(STOP_S_MAX)
        self._truth.is_dead(self.name)

    def kill_worker(self) -> None:
        """kill -9 of one of its workers, while others go on; returns when another one answers."""
        killed = self.pid()
        os.kill(killed, signal.SIGKILL)
        until(f"another worker of {self.name} answers", lambda: self.pid() != killed, START_S_MAX)

    def pause(self) -> None:
        """SIGSTOP: connections to it are taken, and never answered."""
        os.killpg(self._group, signal.SIGSTOP)
        self._truth.is_dead(self.name)

    def resume(self) -> None:
        self._truth.is_unsettled(self.name)
        os.killpg(self._group, signal.SIGCONT)
        self._wait_answers()

    def terminate(self) -> int:
        """SIGTERM, and wait for its end; from then on it is dead, and until then it may be there or not."""
        self._truth.is_unsettled(self.name)
        self._running.terminate()
        status = self._running.wait(STOP_S_MAX)
        self._truth.is_dead(self.name)
        return status

    @contextmanager
    def blocked(self, seconds: float) -> Iterator[None]:
        """The event loop of the worker that takes the request is held for so long, from before the block on."""
        url = f"http://127.0.0.1:{self.port}/block?seconds={seconds}"
        asking = threading.Thread(target=lambda: plain_http.get(url, timeout=seconds + ASK_S_MAX), daemon=True)
        asking.start()
        until("its event loop is blocked", lambda: not self._answers())
        yield
        asking.join(seconds + STOP_S_MAX)
        self._wait_answers()

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._group, signal.SIGKILL)
            self._process.wait(STOP_S_MAX)

    def _wait_answers(self) -> None:
        try:
            until(f"{self.name} answers", self._answers, START_S_MAX)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-LOG_CHARS_SHOWN_MAX:]}") from None
        self._truth.answers(self.name)

    def _answers(self) -> bool:
        assert self._running.poll() is None, f"{self.name} has ended:\n{self.log[-LOG_CHARS_SHOWN_MAX:]}"
        try:
            return bool(self._get("/").json()["by"] == self.name)
        except httpx.HTTPError:
            return False

    def _get(self, path: str) -> httpx.Response:
        return plain_http.get(f"http://127.0.0.1:{self.port}{path}", timeout=ASK_S_MAX)

    @property
    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    @property
    def _group(self) -> int:
        return self._running.pid


@contextmanager
def service_processes(*services: ServiceProcess) -> Iterator[None]:
    """All of them, started and answering; what is left of them at the end is killed."""
    try:
        for service in services:
            service.start()
        yield
    finally:
        for service in services:
            service.end()
