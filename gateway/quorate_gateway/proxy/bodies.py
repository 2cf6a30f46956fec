"""Bodies of HTTP/1 messages (RFC 9112, sections 6 and 7): where each ends, and what of it is passed on.

One interface: `feed` takes bytes and returns those to pass on; once `done`, `rest` holds what came after the body.
Pure, and the same however the stream was cut.
"""

import re

from quorate_gateway.proxy.framing import CHUNKED, IMPOSSIBLE, UNTIL_CLOSE, is_field_line
from quorate_gateway.proxy.refusals import Refusal

CHUNK_LINE_BYTES_MAX = 256
TRAILER_BYTES_MAX = 8_192

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb"\"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+\""
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})((?:;%b(?:=(?:%b|%b))?)*+)\r\n" % (_TOKEN, _TOKEN, _QUOTED))
_NEVER_TRAILERS = frozenset(
    {b"connection", b"content-length", b"host", b"keep-alive", b"proxy-connection", b"te", b"trailer",
     b"transfer-encoding", b"upgrade"}
)  # fmt: skip
"""About framing, routing and this hop: in a trailer they are an attack (RFC 9110, section 6.5.1)."""
_DROPPED_TRAILERS = re.compile(
    rb"(?i:age|authorization|cache-control|content-(?:encoding|range|type)|cookie|date|expect|expires|forwarded|if-.*"
    rb"|max-forwards|location|pragma|proxy.*|range|retry-after|sec-.*|set-cookie|traceparent|tracestate|vary|via"
    rb"|warning|www-authenticate"
    rb"|x[-_]forwarded[-_].*|x[-_]quorate[-_].*|x[-_]real[-_]ip|x[-_]request[-_]id|x-request-timeout-ms)"
)
"""What must be known before the body is read, or says who asks: whoever merges trailers into the head, as some do, must
not be told another thing by them than the head has said."""
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

    With `keeps_chunks` the chunks and trailers are passed on as they came, apart from chunk extensions and the trailers
    of _DROPPED_TRAILERS (both are allowed to be dropped, and have been used to smuggle); without, the bare content is.

    States: a size line (`_in_line`), data (`_remaining` > 0), the CRLF after data (`_after_data`), trailers
    (`_in_trailer`), done. An incomplete line is held back in `_held`, which is bounded.

    Within a call, everything before `_at` is read; what is passed on of it is in `_pieces`, and then from `_from` on.
    So data of which nothing is dropped is passed on as the object that came, without a copy.
    """

    __slots__ = ("_after_data", "_from", "_held", "_in_trailer", "_keeps_chunks", "_pieces", "_remaining", "_status",
                 "_trailer_bytes", "done", "received_bytes", "rest")  # fmt: skip

    def __init__(self, *, keeps_chunks: bool, refusal_status: int = 400) -> None:
        self._keeps_chunks = keeps_chunks
        self._status = refusal_status
        self._held = b""
        self._remaining = 0
        self._after_data = False
        self._in_trailer = False
        self._trailer_bytes = 0
        self._pieces: list[bytes] = []
        self._from = 0
        self.received_bytes = 0
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Raises Refusal for what is no valid chunk."""
        if self._held:
            data, self._held = self._held + data, b""
        at, size = 0, len(data)
        while at < size and not self.done:
            if self._remaining:
                taken = min(self._remaining, size - at)
                self.received_bytes += taken
                self._remaining -= taken
                at += taken
                self._after_data = self._remaining == 0
                continue
            if self._after_data:
                after = self._line_break(data, at)
            elif self._in_trailer:
                after = self._trailer_line(data, at)
            else:
                after = self._size_line(data, at)
            if after == at:
                self._held = data[at:]
                break
            at = after
        if self.done:
            self.rest = data[at:]
        if self._pieces or self._from:
            self._drop(data, at, at)
            pieces, self._pieces, self._from = self._pieces, [], 0
            return b"".join(pieces)
        return data if at == size else data[:at]

    def _drop(self, data: bytes, start: int, end: int) -> None:
        """What lies between is not passed on."""
        if self._from < start:
            self._pieces.append(data[self._from : start])
        self._from = end

    def _line_break(self, data: bytes, at: int) -> int:
        found = data[at : at + 2]
        if found == b"\r\n":
            self._after_data = False
            if not self._keeps_chunks:
                self._drop(data, at, at + 2)
            return at + 2
        if found != b"\r":
            raise self._refused("its data is longer than its size says")
        return at

    def _size_line(self, data: bytes, at: int) -> int:
        line = _CHUNK_LINE.match(data, at)
        if line is None:
            start = data[at : at + CHUNK_LINE_BYTES_MAX]
            if _CHUNK_LINE_START.fullmatch(start) is None or len(start) == CHUNK_LINE_BYTES_MAX:
                raise self._refused("its size line is not valid")
            return at
        end = line.end()
        if end - at > CHUNK_LINE_BYTES_MAX:
            raise self._refused("its size line is too long")
        self._remaining = int(line[1], 16)
        self._in_trailer = self._remaining == 0
        if not self._keeps_chunks:
            self._drop(data, at, end)
        elif line[2]:
            self._drop(data, line.end(1), end - 2)
        return end

    def _trailer_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at)
        if end == at:
            self.done = True
            if not self._keeps_chunks:
                self._drop(data, at, at + 2)
            return at + 2
        size = (end if end > 0 else len(data)) - at
        if self._trailer_bytes + size > TRAILER_BYTES_MAX:
            raise self._refused(f"its trailers are over {TRAILER_BYTES_MAX} bytes")
        if end < 0:
            if IMPOSSIBLE.search(data, at) is not None:
                raise self._refused("a trailer has a line break or a control character in it")
            return at
        if not is_field_line(data[at:end]):
            raise self._refused("a trailer is not of the form 'Name: value'")
        name = data[at:end].partition(b":")[0].lower()
        if name in _NEVER_TRAILERS:
            raise self._refused("a trailer must not be about framing, routing or the connection")
        if not self._keeps_chunks or _DROPPED_TRAILERS.fullmatch(name) is not None:
            self._drop(data, at, end + 2)
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
