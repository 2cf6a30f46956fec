"""Bodies of HTTP/1 messages (RFC 9112, sections 6 and 7): where each ends, and what of it is passed on.

One interface: `feed` takes bytes and returns those to pass on; once `done`, `rest` holds what came after the body.
Pure, and the same however the stream was cut.
"""

import re

from quorate_gateway.proxy.framing import CHUNKED, UNTIL_CLOSE, is_field_line
from quorate_gateway.proxy.refusals import Refusal

CHUNK_LINE_BYTES_MAX = 256
TRAILER_BYTES_MAX = 8_192

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb"\"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+\""
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})((?:;%b(?:=(?:%b|%b))?)*+)\r\n" % (_TOKEN, _TOKEN, _QUOTED))
_NEVER_TRAILERS = frozenset({b"content-length", b"transfer-encoding", b"host", b"connection", b"trailer"})
_CHUNK_LINE_START = re.compile(rb"[0-9A-Fa-f]{1,15}(?:(?:;[\t\x20-\x7e\x80-\xff]*)?\r?)?")


class LengthBody:
    """A body of known length."""

    __slots__ = ("done", "received_bytes", "remaining", "rest")

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.received_bytes = 0
        self.done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        count = len(data)
        if count < self.remaining:
            self.remaining -= count
            self.received_bytes += count
            return data
        self.done = True
        self.received_bytes += self.remaining
        if count > self.remaining:
            data, self.rest = data[: self.remaining], data[self.remaining :]
        self.remaining = 0
        return data


class UntilCloseBody:
    """A response body that ends with its connection: only its receiver knows when it is done."""

    __slots__ = ("done", "received_bytes", "rest")

    def __init__(self) -> None:
        self.received_bytes = 0
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        self.received_bytes += len(data)
        return data


class ChunkedBody:
    """A chunked body, checked to the letter.

    With `keeps_chunks` the chunks are passed on as they came, apart from extensions and trailers, which are
    dropped (both are allowed to be, and both have been used to smuggle); without, the bare content is.

    States: a size line (`_in_line`), data (`_remaining` > 0), the CRLF after data (`_after_data`), trailers
    (`_in_trailer`), done. An incomplete line is held back in `_held`, which is bounded.
    """

    __slots__ = ("_after_data", "_held", "_in_trailer", "_keeps_chunks", "_remaining", "_status", "_trailer_bytes",
                 "done", "received_bytes", "rest")  # fmt: skip

    def __init__(self, *, keeps_chunks: bool, refusal_status: int = 400) -> None:
        self._keeps_chunks = keeps_chunks
        self._status = refusal_status
        self._held = b""
        self._remaining = 0
        self._after_data = False
        self._in_trailer = False
        self._trailer_bytes = 0
        self.received_bytes = 0
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Raises Refusal for what is no valid chunk."""
        if self._held:
            data, self._held = self._held + data, b""
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._remaining:
                taken = min(self._remaining, len(data) - at)
                pieces.append(data[at : at + taken])
                self.received_bytes += taken
                self._remaining -= taken
                at += taken
                self._after_data = self._remaining == 0
                continue
            if self._after_data:
                after = self._line_break(data, at, pieces)
            elif self._in_trailer:
                after = self._trailer_line(data, at, pieces)
            else:
                after = self._size_line(data, at, pieces)
            if after == at:
                self._held = data[at:]
                return b"".join(pieces)
            at = after
        if self.done:
            self.rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _line_break(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        found = data[at : at + 2]
        if found == b"\r\n":
            self._after_data = False
            if self._keeps_chunks:
                pieces.append(b"\r\n")
            return at + 2
        if found != b"\r":
            raise self._refused("its data is longer than its size says")
        return at

    def _size_line(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        line = _CHUNK_LINE.match(data, at)
        if line is None:
            start = data[at : at + CHUNK_LINE_BYTES_MAX]
            if _CHUNK_LINE_START.fullmatch(start) is None or len(start) == CHUNK_LINE_BYTES_MAX:
                raise self._refused("its size line is not valid")
            return at
        if line.end() - at > CHUNK_LINE_BYTES_MAX:
            raise self._refused("its size line is too long")
        self._remaining = int(line[1], 16)
        self._in_trailer = self._remaining == 0
        if self._keeps_chunks:
            pieces.append(line[1] + b"\r\n" if line[2] else line[0])
        return line.end()

    def _trailer_line(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        end = data.find(b"\r\n", at)
        if end == at:
            self.done = True
            if self._keeps_chunks:
                pieces.append(b"\r\n")
            return at + 2
        size = (end if end > 0 else len(data)) - at
        if self._trailer_bytes + size > TRAILER_BYTES_MAX:
            raise self._refused(f"its trailers are over {TRAILER_BYTES_MAX} bytes")
        if end < 0:
            return at
        if not is_field_line(data[at:end]):
            raise self._refused("a trailer is not of the form 'Name: value'")
        if data[at:end].partition(b":")[0].lower() in _NEVER_TRAILERS:
            raise self._refused("a trailer must not be about framing or routing")
        self._trailer_bytes += size + 2
        return end + 2

    def _refused(self, why: str) -> Refusal:
        return Refusal("bad-chunk", self._status, f"a chunk of the body is not valid: {why}")


Body = LengthBody | ChunkedBody | UntilCloseBody


def request_body(length: int) -> LengthBody | ChunkedBody:
    """For the `length` of a request head."""
    return ChunkedBody(keeps_chunks=True) if length == CHUNKED else LengthBody(length)


def response_body(length: int, *, keeps_chunks: bool) -> Body:
    """For the `length` of a response head."""
    if length == CHUNKED:
        return ChunkedBody(keeps_chunks=keeps_chunks, refusal_status=502)
    return UntilCloseBody() if length == UNTIL_CLOSE else LengthBody(length)
