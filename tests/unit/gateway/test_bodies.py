"""Bodies: where each kind ends, what is passed on of it, and what is dropped."""

import pytest
from quorate_gateway.proxy.bodies import TRAILER_BYTES_MAX, ChunkedBody, LengthBody, UntilCloseBody, response_body
from quorate_gateway.proxy.framing import CHUNKED, UNTIL_CLOSE
from quorate_gateway.proxy.refusals import Refusal


def test_a_body_of_known_length_ends_there_and_keeps_the_rest() -> None:
    body = LengthBody(5)
    assert (body.feed(b"hel"), body.done) == (b"hel", False)
    assert (body.feed(b"loGET"), body.done, body.rest) == (b"lo", True, b"GET")
    assert body.received_bytes == 5


def test_a_body_of_no_bytes_is_done_at_once() -> None:
    assert LengthBody(0).done
    assert response_body(0, keeps_chunks=True).done


def test_a_body_that_ends_with_the_connection_is_never_done() -> None:
    body = response_body(UNTIL_CLOSE, keeps_chunks=True)
    assert isinstance(body, UntilCloseBody)
    assert (body.feed(b"hello"), body.done, body.received_bytes) == (b"hello", False, 5)


def test_chunks_are_passed_on_as_they_came() -> None:
    data = b"5\r\nhello\r\n00a\r\n0123456789\r\n0\r\n\r\n"
    body = ChunkedBody(keeps_chunks=True)
    assert (body.feed(data + b"GET"), body.done, body.rest) == (data, True, b"GET")


def test_data_of_which_nothing_is_dropped_is_passed_on_without_a_copy() -> None:
    body = ChunkedBody(keeps_chunks=True)
    for data in (b"5\r\nhello\r\n", b"100\r\n" + b"x" * 100, b"y" * 156 + b"\r\n0\r\nX-A: 1\r\n\r\n"):
        assert body.feed(data) is data
    assert body.done


def test_chunk_extensions_are_dropped() -> None:
    body = ChunkedBody(keeps_chunks=True)
    assert body.feed(b'5;a="\\"b;";c=d\r\nhello\r\n0;last\r\n\r\nGET') == b"5\r\nhello\r\n0\r\n\r\n"
    assert (body.done, body.rest) == (True, b"GET")


def test_trailers_are_passed_on_to_whoever_reads_chunks() -> None:
    data = b"5\r\nhello\r\n0\r\nX-Checksum: 1\r\ngrpc-status:0\r\n\r\n"
    assert ChunkedBody(keeps_chunks=True).feed(data) == data
    assert ChunkedBody(keeps_chunks=False).feed(data) == b"hello"


@pytest.mark.parametrize(
    "name",
    [
        b"Authorization", b"cookie", b"X-Forwarded-For", b"Forwarded", b"X-Quorate-Subject", b"Proxy-Authorization",
        b"If-Match", b"Content-Type", b"Set-Cookie", b"X-Request-Id", b"Sec-WebSocket-Key", b"EXPECT",
        b"x_forwarded_for",
    ],
)  # fmt: skip
def test_a_trailer_that_could_change_what_the_head_has_said_is_dropped(name: bytes) -> None:
    body = ChunkedBody(keeps_chunks=True)
    pieces = b"0\r\nX-A: 1\r\n", name + b": root\r\n", b"X-B: 2\r\n\r\n"
    assert body.feed(b"".join(pieces)) == pieces[0] + pieces[2]
    assert body.done


def test_a_client_that_knows_no_chunks_gets_the_content() -> None:
    body = response_body(CHUNKED, keeps_chunks=False)
    assert (body.feed(b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"), body.done) == (b"hello!", True)


def test_trailers_of_many_lines_are_bounded_in_sum() -> None:
    body = ChunkedBody(keeps_chunks=True)
    body.feed(b"0\r\n")
    lines = TRAILER_BYTES_MAX // len(b"X-A: 12\r\n")
    for _ in range(lines):
        body.feed(b"X-A: 12\r\n")
    with pytest.raises(Refusal):
        body.feed(b"X-A: 12\r\n")


def test_a_bad_chunk_of_an_upstream_is_a_bad_gateway() -> None:
    with pytest.raises(Refusal) as refused:
        response_body(CHUNKED, keeps_chunks=True).feed(b"zz\r\n")
    assert refused.value.status == 502


def test_a_half_line_is_held_back_until_it_is_whole() -> None:
    body = ChunkedBody(keeps_chunks=True)
    assert [body.feed(bytes([octet])) for octet in b"5;x\r\nhello\r\n0\r\n\r\n"] == [
        b"", b"", b"", b"", b"5\r\n", b"h", b"e", b"l", b"l", b"o", b"", b"\r\n", b"", b"", b"0\r\n", b"", b"\r\n",
    ]  # fmt: skip
