"""A real HTTP server on loopback that answers by a script and remembers what it was asked."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from quorate_cli.__main__ import main

Make = Callable[..., Any]


@dataclass
class Answer:
    """`body` bytes are sent as they are, anything else as JSON. `breaks_off`: closed without an answer."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    breaks_off: bool = False


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class ScriptedServer:
    """Answers in the order of the script; its last answer for ever."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.asked: list[Asked] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.asked.append(Asked(self.command, self.path, headers, body))
                server.answer(self)

            do_GET = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - the base class's names

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if answer.breaks_off:
            handler.close_connection = True
            return
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        handler.send_response(answer.status)
        for name, value in {"content-length": str(len(body)), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def problem(status: int, slug: str, detail: str, retry: str = "never", **more: object) -> Answer:
    """What the platform answers when something is wrong."""
    body = {"type": f"urn:quorate:problem:{slug}", "title": slug, "status": status, "detail": detail, "retry": retry}
    return Answer(status, {**body, **more}, {"content-type": "application/problem+json"})


@pytest.fixture
def new_server() -> Iterator[Callable[..., ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def make(*script: Answer) -> ScriptedServer:
        servers.append(ScriptedServer())
        servers[-1].script = list(script)
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def make_problem() -> Callable[..., Answer]:
    return problem


@pytest.fixture
def make_answer() -> Callable[..., Answer]:
    return Answer


@pytest.fixture
def quorate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command with its arguments; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    for variable in ("QUORATE_ENDPOINTS", "QUORATE_ROOT", "QUORATE_PROJECT", "QUORATE_TOKEN", "QUORATE_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quorate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, out, err

    return run


@pytest.fixture
def named(new_server: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A server with a script, named by QUORATE_ENDPOINTS."""

    def make(*script: object) -> Any:
        server = new_server(*script)
        monkeypatch.setenv("QUORATE_ENDPOINTS", server.url)
        return server

    return make
