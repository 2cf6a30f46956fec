"""The registry's answers over HTTP, without the registry: for what an SDK process asks, and what it never asks."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

from quorate_sdk.registration import Registration
from quorate_sdk.wire import InstanceSpec

WAIT_S_MAX = 20.0


def register_in_child(url: str, pipe: Connection) -> None:
    """What a child does that serves something itself: `order-2`, until the pipe says to leave."""
    registration = Registration([url], None, "order", "order-2", InstanceSpec(host="127.0.0.1", port=9002, ttl_s=2))
    registration.start()
    pipe.send("started")
    pipe.recv()
    registration.leave()


class PlainRegistry:
    """Says yes to everybody, on a free port of loopback, and remembers who asked what."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def asked(self) -> list[str]:
        return [method for method, _ in self._calls]

    def paths_of(self, method: str) -> list[str]:
        return [path for asked, path in self._calls if asked == method]

    def note(self, method: str, path: str) -> None:
        with self._changed:
            self._calls.append((method, path))
            self._changed.notify_all()

    def wait_for(self, method: str, count: int = 1) -> None:
        """Until `method` has been asked `count` times."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.asked.count(method) >= count, WAIT_S_MAX), self._calls

    def __enter__(self) -> "PlainRegistry":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler_of(registry: PlainRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            spec = json.loads(self._body())
            names = dict(zip(("namespace", "service", "id"), self.path.split("/")[3::2], strict=True))
            self._answer({**spec, **names, "revision": 1})

        def do_POST(self) -> None:
            self._body()
            self._answer({"renewed": 1, "unknown": []})

        def do_PATCH(self) -> None:
            self._body()
            self._answer({})

        def do_DELETE(self) -> None:
            self._answer({})

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("content-length", "0")))

        def _answer(self, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            registry.note(self.command, self.path)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
            pass

    return Handler
