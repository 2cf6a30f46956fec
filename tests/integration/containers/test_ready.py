"""The image's health check: what it says of a process that is ready, not ready, or not there."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.repository import ROOT

SCRIPT = ROOT / "docker" / "ready.py"


@contextmanager
def answering(*pieces: bytes) -> Iterator[int]:
    """A server that answers one request by `pieces`, each sent by itself; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def check(port: int) -> tuple[int, str]:
    """Exit code and stderr."""
    done = subprocess.run(
        [sys.executable, "-IS", str(SCRIPT), str(port)], capture_output=True, text=True, check=False, timeout=30
    )
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize(
    "pieces", [(b"HTTP/1.1 200 OK\r\n\r\nok\n",), (b"HT", b"TP/1.1 20", b"0 OK\r\ncontent-length: 3\r\n\r\nok\n")]
)
def test_a_process_that_is_ready_is_healthy(pieces: tuple[bytes, ...]) -> None:
    with answering(*pieces) as port:
        assert check(port) == (0, "")


def test_a_process_that_is_not_ready_is_not_and_its_reason_is_shown() -> None:
    with answering(b"HTTP/1.1 503 Service Unavailable\r\n\r\nthe store has no leader\n") as port:
        assert check(port) == (1, "HTTP/1.1 503 Service Unavailable: the store has no leader")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 2000 Odd\r\n\r\n", b"something else"])
def test_what_is_no_answer_is_not_healthy(answer: bytes) -> None:
    with answering(answer) as port:
        assert check(port)[0] == 1


def test_a_port_where_nobody_listens_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        code, said = check(port)
    assert code == 1
    assert f"port {port}: " in said
