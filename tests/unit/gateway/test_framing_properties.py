"""Properties of framing: the same however the stream is cut, and never read otherwise than llhttp reads it."""

import itertools
from typing import Any

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quorate_gateway.proxy.bodies import ChunkedBody, LengthBody, request_body
from quorate_gateway.proxy.framing import RequestHead, read_request_head
from quorate_gateway.proxy.refusals import Refusal

TOKEN = st.text("abcXYZ09!#$%&'*+-.^_`|~", min_size=1, max_size=12).map(str.encode)
VALUE = st.text('abc 09\t,;="/:%\u00e9', max_size=20).map(lambda text: text.encode("latin-1").strip(b" \t"))
PATH = st.text("abc/09-_~!$&'()*+,;=:@", max_size=20).map(lambda text: b"/" + text.encode())
BODY = st.binary(max_size=60)
RESERVED = {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade", b"te", b"via"}


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A valid request and its body's content."""
    fields = [
        (name, value)
        for name, value in draw(st.lists(st.tuples(TOKEN, VALUE), max_size=5))
        if name.lower() not in RESERVED
    ]
    fields.insert(draw(st.integers(0, len(fields))), (b"Host", b"shop"))
    body, wire = draw(BODY), b""
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "none":
        body = b""
    elif framing == "length":
        fields.append((b"Content-Length", b"%d" % len(body)))
        wire = body
    else:
        fields.append((b"Transfer-Encoding", b"chunked"))
        size = draw(st.integers(1, 20))
        extension = draw(st.sampled_from([b"", b";a=b", b';a="x \\"";b']))
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        wire = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
        wire += b"0\r\n" + draw(st.sampled_from([b"", b"X-T: 1\r\n"])) + b"\r\n"
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"]))
    lines = b"".join(b"%b: %b\r\n" % field for field in fields)
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, draw(PATH), lines, wire), body


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


def read(pieces: list[bytes]) -> tuple[RequestHead, bytes, bytes]:
    """Head, the body as it is passed on, and what came after it."""
    buffer, scanned, head, passed_on = b"", 0, None, b""
    body: LengthBody | ChunkedBody | None = None
    for piece in pieces:
        if body is not None:
            if body.done:
                body.rest += piece
            else:
                passed_on += body.feed(piece)
            continue
        buffer += piece
        head = read_request_head(buffer, None, scanned)
        scanned = len(buffer)
        if head is not None:
            body = request_body(head.fields.length)
            passed_on += body.feed(buffer[head.end :])
    assert head is not None
    assert body is not None
    assert body.done
    return head, passed_on, body.rest


@given(requests(), st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from([b"", b"GET /next"]))
def test_a_stream_means_the_same_wherever_it_is_cut(
    request: tuple[bytes, bytes], places: list[int], following: bytes
) -> None:
    try:
        whole = read([request[0] + following])
    except Refusal:
        return  # paths with dot segments and the like are for the attack table
    assert read(cut(request[0] + following, places)) == whole
    assert whole[2] == following


@given(requests(), st.lists(st.integers(0, 10_000), max_size=6))
def test_a_chunked_body_carries_the_same_content_when_its_chunks_are_removed(
    request: tuple[bytes, bytes], places: list[int]
) -> None:
    data, content = request
    head = read_request_head(data)
    if head is None or head.fields.length != -1:
        return
    bare, kept = ChunkedBody(keeps_chunks=False), ChunkedBody(keeps_chunks=True)
    pieces = cut(data[head.end :], places)
    assert b"".join(bare.feed(piece) for piece in pieces) == content
    again = ChunkedBody(keeps_chunks=False)
    assert again.feed(b"".join(kept.feed(piece) for piece in pieces)) == content
    assert bare.received_bytes == kept.received_bytes == len(content)
    assert bare.done
    assert kept.done
    assert again.done


class Llhttp:
    """What llhttp, by httptools, makes of the same bytes."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.requests = 0
        self.complete = False
        self.parser: Any = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.requests += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            self.fields.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def assert_read_alike(data: bytes) -> bool:
    """What we pass on is what llhttp reads in the bytes as they came; False when we refuse or wait for more."""
    try:
        head = read_request_head(data)
        if head is None:
            return False
        body = request_body(head.fields.length)
        content = ChunkedBody(keeps_chunks=False) if isinstance(body, ChunkedBody) else LengthBody(head.fields.length)
        expected = content.feed(data[head.end :])
        if not content.done:
            return False
    except Refusal:
        return False
    llhttp = Llhttp()
    end = len(data) - len(content.rest)
    llhttp.parser.feed_data(data[:end])
    assert llhttp.complete, "llhttp waits for more where we see the end"
    assert llhttp.requests == 1
    assert llhttp.parser.get_method() == head.method
    assert llhttp.parser.get_http_version() == f"1.{head.minor}"
    assert llhttp.body == expected
    names = [name.lower() for name, _ in llhttp.fields]
    assert names.count(b"host") == (1 if head.fields.host else 0)
    ours = [line.partition(b":") for line in head.fields.forward.split(b"\r\n")[1:]]
    theirs = [(name, value.strip(b" \t")) for name, value in llhttp.fields]
    assert all((name, value.strip(b" \t")) in theirs for name, _, value in ours)
    assert_sent_alike(head, body, data, expected)
    return True


def assert_sent_alike(head: RequestHead, body: LengthBody | ChunkedBody, data: bytes, content: bytes) -> None:
    """What we send upstream is, to llhttp, one request with the same content."""
    sent = b"%b %b HTTP/1.1%b\r\n\r\n%b" % (head.method, head.target, head.fields.forward, body.feed(data[head.end :]))
    llhttp = Llhttp()
    llhttp.parser.feed_data(sent)
    assert (llhttp.complete, llhttp.requests, llhttp.body) == (True, 1, content)
    assert llhttp.url == head.target


@given(requests())
def test_what_is_accepted_llhttp_reads_alike(request: tuple[bytes, bytes]) -> None:
    assert_read_alike(request[0])


INSERTIONS = [
    *(bytes([octet]) for octet in b"\r\n \t:\0\x0b01;,\x80\x7f"),
    *(b"", b"\r\n", b"chunked", b"%2e", b"/../", b"Content-Length:5\r\n"),
    *(b"\r\nContent-Length: 3", b"\r\nTransfer-Encoding: chunked"),
]
MUTATIONS = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(INSERTIONS), st.integers(0, 3)), min_size=1, max_size=4
)


@settings(max_examples=600)
@given(requests(), MUTATIONS)
@example((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b""), [(4, b"http://x", 0)])
def test_what_is_accepted_of_damaged_requests_llhttp_reads_alike(
    request: tuple[bytes, bytes], mutations: list[tuple[int, bytes, int]]
) -> None:
    data = request[0]
    for place, inserted, removed in mutations:
        at = place % (len(data) + 1)
        data = data[:at] + inserted + data[at + removed :]
    try:
        assert_read_alike(data)
    except httptools.HttpParserInvalidMethodError:
        pass  # it knows a list of methods, where any token is one (RFC 9110, section 9.1)
    except httptools.HttpParserError as error:
        pytest.fail(f"we pass on what llhttp refuses ({error}): {data!r}")


def test_the_comparison_does_compare() -> None:
    assert assert_read_alike(
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET"
    )
    assert assert_read_alike(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET")
