"""Requests that make no sense, and a client that sends them byte for byte and says what became of its connection.

Bodies are named, so that a failing test reads as what was sent. What a body is refused for is the API's own business;
that it is refused clearly, in time, and with a connection that goes on or ends as HTTP has it, is what is tested.
"""

import json
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from support.node_processes import NodeProcess
from support.repository import ROOT

PATIENCE_S = 20.0
DEPTH = 100_000
READ_BYTES = 65_536
BODY_BYTES_MAX = 3 * 1024 * 1024
"""Of a node."""

NO_MESSAGE = {
    "half an object": b"{",
    "a list": b"[]",
    "a string": b'"key"',
    "a number": b"7",
    "not a number": b"NaN",
    "no JSON": b"key=Zm9v",
    "half a string": b'{"key":"Zm9',
    "half an escape": b'{"key":"\\u00',
    "UTF-16": '{"key":"Zm9v"}'.encode("utf-16"),
    "a null byte": b"\0",
    "a control character in a string": b'{"key":"Zm\x019v"}',
    "lists nested too deep": b"[" * DEPTH,
    "objects nested too deep": b'{"key":' * DEPTH,
    "a whole list that is nested too deep": b'{"unknown":' + b"[" * DEPTH + b"]" * DEPTH + b"}",
    "a comma too many": b'{"key":"Zm9v",}',
    "single quotes": b"{'key':'Zm9v'}",
    "a comment": b'{/* */"key":"Zm9v"}',
    "a hundred thousand quotes": b'"' * DEPTH,
    "XML": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
}
"""Nothing that any endpoint takes."""

WRONG_NUMBERS = {
    "a fraction": b"1.5",
    "a fraction in a string": b'"1.5"',
    "not a number": b"NaN",
    "infinity": b"1e999",
    "over 64 bits": b"9223372036854775808",
    "over 64 bits in a string": b'"9223372036854775808"',
    "under 64 bits": b"-9223372036854775809",
    "ten thousand digits": b"9" * 10_000,
    "ten thousand digits in a string": b'"' + b"9" * 10_000 + b'"',
    "hexadecimal": b'"0x10"',
    "with an underscore": b'"1_000"',
    "digits of another script": '"\u0661\u0662"'.encode(),
    "a list": b"[1]",
    "an object": b"{}",
    "true": b"true",
}
"""In the place of a 64-bit integer."""

WRONG_BYTES = {
    "an alphabet of its own": b'"$$$$"',
    "one character": b'"a"',
    "padding alone": b'"===="',
    "a lone surrogate": b'"\\ud800"',
    "a byte that is no UTF-8": b'"\xff\xfe=="',
    "a number": b"7",
    "true": b"true",
    "a list": b'["Zm9v"]',
    "an object": b'{"a":1}',
}
"""In the place of bytes in base64."""

NO_HTTP = {
    "random bytes": bytes(range(256)),
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "a version that is none": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "a method that is none": b"BREW /v3/kv/put HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a bad length": b"POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: ten\r\n\r\n",
    "a negative length": b"POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "a length of a hundred digits": b"POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: %b\r\n\r\n"
    % (b"9" * 100),
    "two lengths": b"POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a length and chunks": b"POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bad chunk": b"POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "a space before the colon": b"POST /v3/kv/put HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "a null byte in a field": b"POST /v3/kv/put HTTP/1.1\r\nHost: local\0host\r\n\r\n",
    "a path of raw bytes": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
"""Each is answered once, and its connection is closed. HTTP/0.9 is refused for the host that it does not name."""

STRANGE_PATHS = {
    "a null byte": b"/v3/kv/put%00",
    "a null byte between": b"/v3%00/kv/put",
    "a way up": b"/v3/../../../../etc/passwd",
    "an encoded way up": b"/v3/%2e%2e/%2e%2e/etc/passwd",
    "an encoded slash": b"/v3%2fkv%2fput",
    "two slashes": b"//v3//kv//put",
    "a slash at the end": b"/v3/kv/put/",
    "upper case": b"/V3/KV/PUT",
    "half an escape": b"/v3/kv/put%4",
    "an escape that is none": b"/v3/kv/put%zz",
    "bytes that are no UTF-8": b"/v3/kv/put%ff%fe",
    "ten thousand characters": b"/v3/" + b"a" * 10_000,
    "a matrix parameter": b"/v3/kv/put;a=b",
    "an absolute address elsewhere": b"http://127.0.0.1/v3/kv/put/x",
    "an instance's name with a null byte": b"/v1/registry/default/services/a%00b/instances/c",
    "an instance's name with a line end": b"/v1/registry/default/services/a%0d%0ab/instances/c",
    "a document's name that goes up": b"/v1/config/default/..%2f../secret",
}
"""None of them is anything."""

_LEAKS = re.compile(rf"Traceback|File \"|\.py\b|site-packages|{re.escape(str(ROOT))}|{re.escape(sys.prefix)}")


@dataclass(frozen=True)
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes

    def require_clear_error(self, *statuses: int) -> None:
        """One of these, in etcd's form or as a problem, with a sentence, and with nothing of what is inside."""
        text = self.body.decode()
        assert self.status in statuses, f"{self.status} {text[:1000]}"
        body = json.loads(text)
        if self.fields["content-type"] == "application/problem+json":
            assert body["status"] == self.status, text
            assert body["detail"], text
        else:
            assert body["message"] == body["error"] != "", text
            assert isinstance(body["code"], int), text
        assert len(text) < READ_BYTES, "what was wrong is not said back at any length"
        assert not _LEAKS.search(text), text


class Wire:
    """One connection, and nothing between it and the bytes."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._read = bytearray()

    def send(self, data: bytes) -> None:
        """Raises ConnectionError when the other side has closed."""
        self.socket.sendall(data)

    def ask(self, path: str, body: bytes, *fields: bytes, method: str = "POST") -> Answer:
        self.send(request(path, body, *fields, method=method))
        return self.answer()

    def answer(self) -> Answer:
        """The next one. Raises EOFError when there is none, and TimeoutError."""
        head = self._take_through(b"\r\n\r\n").decode("latin-1")
        status_line, *lines = head.strip().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        if fields.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        else:
            body = self._take(int(fields["content-length"]))
        return Answer(int(status_line.split()[1]), fields, body)

    def head(self) -> Answer:
        """An answer's head alone, where its body comes bit by bit."""
        head = self._take_through(b"\r\n\r\n").decode("latin-1")
        status_line, *lines = head.strip().split("\r\n")
        return Answer(int(status_line.split()[1]), dict(line.lower().split(": ", 1) for line in lines), b"")

    def chunk(self) -> bytes:
        """Of a chunked body; empty at its end."""
        size = int(self._take_through(b"\r\n").strip(), 16)
        return self._take(size + 2)[:-2]

    def is_closed(self) -> bool:
        """Waits for the other side to close; False when it says more instead. Raises TimeoutError."""
        try:
            return not self._read and self.socket.recv(READ_BYTES) == b""
        except ConnectionError:
            return True

    def reset(self) -> None:
        """Close without a goodbye: what is on its way is answered by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _take_through(self, end: bytes) -> bytes:
        while end not in self._read:
            self._fill()
        return self._take(self._read.index(end) + len(end))

    def _take(self, size: int) -> bytes:
        while len(self._read) < size:
            self._fill()
        taken = bytes(self._read[:size])
        del self._read[:size]
        return taken

    def _fill(self) -> None:
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise EOFError(f"closed after {bytes(self._read[:200])!r}")
        self._read += data


@contextmanager
def wire(url: str, receive_bytes: int | None = None) -> Iterator[Wire]:
    """`receive_bytes`: of the client's own buffer, so that a sender soon has to wait."""
    parts = urlsplit(url)
    with socket.socket() as connected:
        connected.settimeout(PATIENCE_S)
        if receive_bytes is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connected.connect((parts.hostname, parts.port))
        yield Wire(connected)


def request(path: str, body: bytes, *fields: bytes, method: str = "POST") -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method.encode(), path.encode()), b"Host: localhost", *fields]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def chunked(path: str, *chunks: bytes, method: str = "POST", fields: Sequence[bytes] = ()) -> bytes:
    """Without the last chunk, so that the body goes on."""
    lines = [b"%b %b HTTP/1.1" % (method.encode(), path.encode()), b"Host: localhost", *fields]
    head = b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""])
    return head + b"".join(chunk_of(chunk) for chunk in chunks)


def chunk_of(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def resident_bytes(node: NodeProcess) -> int:
    return int(_proc(node, "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(node: NodeProcess) -> int:
    return len(list(_proc(node, "fd").iterdir()))


def _proc(node: NodeProcess, name: str) -> Path:
    assert node.process is not None
    return Path(f"/proc/{node.process.pid}/{name}")
