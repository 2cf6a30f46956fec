"""Answers of upstreams: what is accepted of them llhttp reads alike, before and after the gateway, however damaged."""

from typing import Any

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quorate_gateway.proxy.bodies import response_body
from quorate_gateway.proxy.framing import UNTIL_CLOSE, ResponseHead, read_response_head
from quorate_gateway.proxy.refusals import Refusal

TOKEN = st.text("abcXYZ09!#$%&'*+-.^_`|~", min_size=1, max_size=12).map(str.encode)
VALUE = st.text('abc 09\t,;="/:%\u00e9', max_size=20).map(lambda text: text.encode("latin-1").strip(b" \t"))
RESERVED = {b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"proxy-connection"}


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """A valid response, of known length or chunked."""
    fields = [
        (name, value)
        for name, value in draw(st.lists(st.tuples(TOKEN, VALUE), max_size=5))
        if name.lower() not in RESERVED
    ]
    body = draw(st.binary(max_size=60))
    if draw(st.booleans()):
        fields.append((b"Content-Length", b"%d" % len(body)))
        wire = body
    else:
        fields.append((b"Transfer-Encoding", b"chunked"))
        size = draw(st.integers(1, 20))
        extension = draw(st.sampled_from([b"", b";a=b", b';a="x \\"";b']))
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        wire = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
        wire += b"0\r\n" + draw(st.sampled_from([b"", b"X-T: 1\r\n", b"Date: now\r\n"])) + b"\r\n"
    status = draw(st.sampled_from([b"200 OK", b"404 Not Found", b"500 ", b"201", b"299 \xe9"]))
    lines = b"".join(b"%b: %b\r\n" % field for field in fields)
    return b"HTTP/1.%d %b\r\n%b\r\n%b" % (draw(st.integers(0, 1)), status, lines, wire)


class Llhttp:
    """What llhttp, by httptools, makes of the same bytes."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.responses = 0
        self.complete = False
        self.parser: Any = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.responses += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.body and not self.complete:
            self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def read(data: bytes, *, keeps_chunks: bool) -> tuple[ResponseHead, bytes, bytes] | None:
    """Head, the body as it is passed on, and what came after it; None when it is refused, or not all there."""
    try:
        head = read_response_head(data, to_head_request=False)
        if head is None or head.status < 200 or head.status in (204, 304) or head.length == UNTIL_CLOSE:
            return None
        body = response_body(head.length, keeps_chunks=keeps_chunks)
        passed_on = body.feed(data[head.end :])
        return (head, passed_on, body.rest) if body.done else None
    except Refusal:
        return None


def assert_read_alike(data: bytes) -> bool:
    """False when we refuse, or wait for more."""
    kept, bare = read(data, keeps_chunks=True), read(data, keeps_chunks=False)
    if kept is None or bare is None:
        return False
    head, passed_on, rest = kept
    before, after = Llhttp(), Llhttp()
    before.parser.feed_data(data[: len(data) - len(rest)])
    assert (before.complete, before.responses, before.body) == (True, 1, bare[1])
    assert before.parser.get_status_code() == head.status
    after.parser.feed_data(head.line + head.forward + b"\r\n\r\n" + passed_on)
    assert (after.complete, after.responses, after.body) == (True, 1, bare[1])
    ours = [line.partition(b":") for line in head.forward.split(b"\r\n")[1:]]
    theirs = [(name, value.strip(b" \t")) for name, value in before.fields]
    assert all((name.lower(), value.strip(b" \t")) in theirs for name, _, value in ours)
    return True


@given(responses())
def test_a_valid_answer_is_accepted_and_read_alike(data: bytes) -> None:
    assert assert_read_alike(data)


INSERTIONS = [
    *(bytes([octet]) for octet in b"\r\n \t:\0\x0b01;,\x80\x7f"),
    *(b"", b"\r\n", b"chunked", b"HTTP/1.1 200 OK\r\n", b"\r\nContent-Length: 3"),
    *(b"\r\nTransfer-Encoding: chunked", b"\r\nContent-Length : 3", b"\r\n\r\n"),
]
MUTATIONS = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(INSERTIONS), st.integers(0, 3)), min_size=1, max_size=4
)


@settings(max_examples=600)
@given(responses(), MUTATIONS)
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", [(34, b"0", 0)])
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", [(34, b"\r\nContent-Length: 3", 0)])
def test_what_is_accepted_of_a_damaged_answer_is_read_alike(
    data: bytes, mutations: list[tuple[int, bytes, int]]
) -> None:
    for place, inserted, removed in mutations:
        at = place % (len(data) + 1)
        data = data[:at] + inserted + data[at + removed :]
    try:
        assert_read_alike(data)
    except httptools.HttpParserError as error:
        pytest.fail(f"we pass on what llhttp refuses ({error}): {data!r}")


CHUNKY = st.lists(
    st.sampled_from(
        [b"0\r\n", b"1\r\nx\r\n", b"a\r\n0123456789\r\n", b"\r\n", b"X-A: 1\r\n", b";a=b", b"5", b"\r", b"\n", b" ",
         b"0", b"x", b"1\r\nx", b'"', b"\t", b"\x00", b"f" * 16, b"1\r\n\n\r\n", b"-1\r\n"]
    ),
    max_size=8,
).map(b"".join)  # fmt: skip


@settings(max_examples=800)
@given(CHUNKY)
@example(b"1\r\nxyz0\r\n\r\n")
def test_the_chunked_decoder_accepts_only_what_llhttp_reads_alike(body: bytes) -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    try:
        assert_read_alike(data)
    except httptools.HttpParserError as error:
        pytest.fail(f"we pass on what llhttp refuses ({error}): {data!r}")


def test_the_comparison_does_compare() -> None:
    assert assert_read_alike(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: 1\r\n\r\nHTTP")
    assert assert_read_alike(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP")


FIELDS_OF_EVERY_KIND = [
    *(
        b"Content-Length: 5",
        b"content-length:  7 ",
        b"Content-Length: 5, 5",
        b"Content-Length: 5\t",
        b"Content-Length:",
    ),
    *(b"Connection: keep-alive", b"connection:Keep-Alive ", b"Connection: close", b"Connection: keep-alive, X-A"),
    *(
        b"Transfer-Encoding: chunked",
        b"Content_Length: 9",
        b"Upgrade: h2c",
        b"TE: trailers",
        b"Proxy-Connection: close",
    ),
    *(
        b"Date: now",
        b"date:",
        b"X-Date: now",
        b"X-A: Connection: keep-alive",
        b"Content-Length-Of: 3",
        b"Tea: 1",
        b"A:",
    ),
]


@settings(max_examples=400)
@given(
    st.sampled_from(
        [b"1.1 200 OK", b"1.1 200", b"1.1 503 ", b"1.1 204 None", b"1.1 304 Same", b"1.1 600 ?", b"1.0 200 OK"]
    ),
    st.lists(st.sampled_from(FIELDS_OF_EVERY_KIND), max_size=6),
    st.booleans(),
)
@example(b"1.1 200 OK", [b"Connection: keep-alive", b"Content-Length: 5", b"connection:Keep-Alive "], False)
@example(b"1.1 200 OK", [b"Content-Length: 5", *[b"A:"] * 99], False)
@example(b"1.1 200 OK", [b"Content-Length: 5", *[b"A:"] * 100], False)
def test_one_search_over_the_head_says_what_reading_field_by_field_says(
    status: bytes, fields: list[bytes], to_head_request: bool
) -> None:
    """A field for this hop alone, dropped from what is passed on, is what no usual head has. It stands in the place of
    one that is passed on, so that both heads have as many."""
    lines = b"HTTP/" + status + b"".join(b"\r\n" + field for field in fields)
    usual = outcome(lines + b"\r\nB: 1\r\n\r\nhello", to_head_request=to_head_request)
    by_field = outcome(lines + b"\r\nKeep-Alive: timeout=5\r\n\r\nhello", to_head_request=to_head_request)
    if isinstance(usual, str) or isinstance(by_field, str):
        assert usual == by_field
        return
    assert usual.forward.replace(b"\r\nB: 1", b"") == by_field.forward
    assert usual.line == by_field.line
    assert (usual.status, usual.length, usual.keeps_alive, usual.has_date) == (
        by_field.status, by_field.length, by_field.keeps_alive, by_field.has_date,
    )  # fmt: skip
    assert usual.end == len(lines + b"\r\nB: 1\r\n\r\n")
    came_whole = usual.passed == lines + b"\r\nB: 1"
    assert usual.is_unchanged is (came_whole and not status.startswith(b"1.0"))


def outcome(data: bytes, *, to_head_request: bool) -> ResponseHead | str:
    try:
        head = read_response_head(data, to_head_request=to_head_request)
    except Refusal as refusal:
        return refusal.detail
    assert head is not None
    return head
