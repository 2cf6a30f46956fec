"""Heads that are passed on: what is read of them, what of them is forwarded, and that nothing else is touched."""

import pytest
from quorate_gateway.proxy.framing import (
    CHUNKED,
    UNTIL_CLOSE,
    RequestHead,
    ResponseHead,
    read_request_head,
    read_response_head,
)
from quorate_gateway.proxy.limits import HEAD_BYTES_MAX, ConnectionLimits
from quorate_gateway.proxy.refusals import Refusal

TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def request(
    fields: bytes = b"", line: bytes = b"GET /orders/7?full=1 HTTP/1.1", host: bytes = b"Host: shop\r\n"
) -> RequestHead:
    head = read_request_head(line + b"\r\n" + host + fields + b"\r\nrest")
    assert head is not None
    return head


def response(data: bytes, *, to_head_request: bool = False) -> ResponseHead:
    head = read_response_head(data, to_head_request=to_head_request)
    assert head is not None
    return head


def test_a_head_is_read_once_it_is_complete() -> None:
    data = b"GET /orders/7?full=1 HTTP/1.1\r\nHost: shop\r\n\r\n"
    assert all(read_request_head(data[:end]) is None for end in range(len(data)))
    head = request()
    assert (head.method, head.target, head.path, head.minor) == (b"GET", b"/orders/7?full=1", b"/orders/7", 1)
    assert head.end == len(data)


def test_fields_that_are_nobodys_business_are_forwarded_as_they_came() -> None:
    fields = b"Accept:*/*\r\nX-Odd:\t spaced \r\ncOOKIE: a=b; c=\xe9\r\nEmpty:\r\n"
    assert request(fields).fields.forward == b"\r\nHost: shop\r\n" + fields[:-2]


@pytest.mark.parametrize(
    "field",
    [
        b"Connection: keep-alive", b"KEEP-ALIVE: timeout=5", b"Proxy-Connection: close", b"TE: gzip",
        b"X-Quorate-Subject: root", b"x_quorate_api_key_id: root", b"X_Forwarded_For: 1.2.3.4", b"X-Real_IP: 1.2.3.4",
        b"X-Request-Timeout-Ms: 5", b"X_Request_Id: mine",
        b"Proxy-Authorization: Basic abc", b"Proxy: http://evil", b"X-Forwarded-For: 1.2.3.4",
        b"x-forwarded-proto: https", b"X-Forwarded-Host: evil", b"X-Forwarded-Prefix: /x", b"Forwarded: for=1.2.3.4",
        b"X-Real-IP: 1.2.3.4", b"X-Request-Id: mine", b"Traceparent: " + TRACE, b"Expect: 100-continue",
        b"HTTP2-Settings: AAA",
    ],
)  # fmt: skip
def test_fields_of_this_hop_and_claims_about_the_client_are_not_forwarded(field: bytes) -> None:
    head = request(b"A: 1\r\n" + field + b"\r\nB: 2\r\n")
    assert head.fields.forward == b"\r\nHost: shop\r\nA: 1\r\nB: 2"


@pytest.mark.parametrize(
    "name", [b"Connected", b"X-Connection", b"Tea", b"Hosts", b"X-Forwarded", b"Upgrade-Insecure-Requests"]
)
def test_a_field_whose_name_only_looks_alike_is_forwarded(name: bytes) -> None:
    assert request(name + b": 1\r\n").fields.forward.endswith(b"\r\n" + name + b": 1")


def test_fields_that_connection_names_are_not_forwarded() -> None:
    head = request(b"X-Hop: 1\r\nConnection: close, x-hop\r\nX-Hop-Not: 2\r\n")
    assert head.fields.forward == b"\r\nHost: shop\r\nX-Hop-Not: 2"
    assert head.fields.wants_close


def test_the_gateway_takes_trailers_for_a_client_that_does_and_says_so_itself() -> None:
    assert request(b"TE: gzip;q=0.5, trailers\r\nConnection: TE\r\n").fields.forward == (
        b"\r\nHost: shop\r\nconnection: te\r\nte: trailers"
    )


def test_the_names_of_trailers_to_come_are_passed_on_unless_they_are_for_this_hop() -> None:
    assert request(b"Trailer: X-A\r\n").fields.forward == b"\r\nHost: shop\r\nTrailer: X-A"
    assert request(b"Trailer: X-A\r\nConnection: trailer\r\n").fields.forward == b"\r\nHost: shop"


def test_the_time_that_a_caller_still_waits_is_read_when_it_is_said_once() -> None:
    assert request(b"X-Request-Timeout-Ms: 250\r\n").fields.timeout_ms == b"250"
    assert request(b"X-Request-Timeout-Ms: 250\r\nx-request-timeout-ms: 9\r\n").fields.timeout_ms == b""
    assert request(b"X-Request-Timeout-Ms: soon\r\n").fields.timeout_ms == b""


HANDSHAKE = (
    b"Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def test_a_websocket_handshake_asks_the_upstream_anew() -> None:
    fields = request(HANDSHAKE).fields
    assert fields.upgrade == b"websocket"
    assert fields.forward == (
        b"\r\nHost: shop\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        b"\r\nconnection: upgrade\r\nupgrade: websocket"
    )


@pytest.mark.parametrize("fields", [HANDSHAKE, b"Upgrade: h2c\r\nConnection: Upgrade\r\n"])
def test_an_upgrade_in_http_1_0_is_ignored_also_when_the_block_is_known(fields: bytes) -> None:
    old = request(fields, line=b"GET / HTTP/1.0")
    assert old.fields.upgrade == b""
    assert b"pgrade" not in old.fields.forward
    if fields is HANDSHAKE:
        data = b"GET / HTTP/1.0\r\nHost: shop\r\n" + fields + b"\r\n"
        again = read_request_head(data, request(fields).fields)
        assert again is not None
        assert again.fields == old.fields


def test_a_known_handshake_does_not_excuse_another_method() -> None:
    data = b"POST / HTTP/1.1\r\nHost: shop\r\n" + HANDSHAKE + b"\r\n"
    with pytest.raises(Refusal):
        read_request_head(data, request(HANDSHAKE).fields)


def test_options_and_trace_go_so_many_hops_and_others_do_not_care() -> None:
    fields = b"Max-Forwards: 3\r\n"
    first = request(fields, line=b"OPTIONS / HTTP/1.1").fields
    assert first.forward == b"\r\nHost: shop\r\nmax-forwards: 2"
    again = read_request_head(b"TRACE / HTTP/1.1\r\nHost: shop\r\n" + fields + b"\r\n", first)
    assert again is not None
    assert again.fields.forward == first.forward
    assert request(b"Max-Forwards: 0\r\n").fields.forward == b"\r\nHost: shop\r\nMax-Forwards: 0"
    with pytest.raises(Refusal) as refused:
        request(b"Max-Forwards: 0\r\n", line=b"TRACE / HTTP/1.1")
    assert refused.value.rule == "max-forwards"


def test_limits_of_a_head_are_exact() -> None:
    head = b"GET / HTTP/1.1\r\nHost: shop\r\nA: " + b"a" * 100 + b"\r\n\r\n"
    end = len(head) - 4
    assert read_request_head(head, None, 0, ConnectionLimits(head_bytes_max=end)) is not None
    assert read_request_head(head, None, 0, ConnectionLimits(head_fields_max=2)) is not None
    for limits in (ConnectionLimits(head_bytes_max=end - 1), ConnectionLimits(head_fields_max=1)):
        with pytest.raises(Refusal) as refused:
            read_request_head(head, None, 0, limits)
        assert refused.value.status == 431


def test_a_sane_request_id_and_a_valid_trace_are_kept() -> None:
    fields = request(b"X-Request-Id: abc-1\r\nTraceparent: " + TRACE + b"\r\nTracestate: a=b\r\n").fields
    assert (fields.request_id, fields.traceparent) == (b"abc-1", TRACE)
    assert b"Tracestate: a=b" in fields.forward


@pytest.mark.parametrize("value", [b"", b"a b", b"x" * 129, b"<script>", b'a"b', b"\xff"])
def test_a_request_id_that_is_not_sane_is_dropped(value: bytes) -> None:
    assert request(b"X-Request-Id: " + value + b"\r\n").fields.request_id == b""


def test_two_request_ids_are_none() -> None:
    assert request(b"X-Request-Id: a\r\nX-Request-Id: b\r\n").fields.request_id == b""


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00-abc",
        TRACE.upper(),
        b"ff" + TRACE[2:],
        b"00-" + b"0" * 32 + TRACE[35:],
        TRACE[:36] + b"0" * 16 + b"-01",
    ],
)
def test_an_invalid_trace_is_dropped_with_its_state(value: bytes) -> None:
    fields = request(b"Traceparent: " + value + b"\r\nTracestate: a=b\r\n").fields
    assert fields.traceparent == b""
    assert b"racestate" not in fields.forward


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        (b"", 0),
        (b"Content-Length: 0\r\n", 0),
        (b"content-length:17 \r\n", 17),
        (b"Transfer-Encoding: Chunked\r\n", CHUNKED),
    ],
)
def test_the_body_has_the_length_that_one_field_says(fields: bytes, length: int) -> None:
    assert request(fields).fields.length == length


def test_absolute_form_becomes_origin_form() -> None:
    assert request(line=b"GET http://SHOP/a?b HTTP/1.1").target == b"/a?b"
    assert request(line=b"GET http://shop HTTP/1.1").target == b"/"
    assert request(line=b"GET https://shop/a HTTP/1.1").target == b"/a"


def test_escapes_of_unreserved_characters_are_resolved_and_others_kept() -> None:
    head = request(line=b"GET /%6frders/a%2Fb%20c?x=%zz HTTP/1.1")
    assert head.target == b"/orders/a%2Fb%20c?x=%zz"
    assert head.path == b"/orders/a%2Fb%20c"


def test_dots_that_are_no_segment_are_kept() -> None:
    assert request(line=b"GET /.well-known/a.b/... HTTP/1.1").path == b"/.well-known/a.b/..."


def test_http_1_0_needs_no_host() -> None:
    head = request(line=b"GET / HTTP/1.0", host=b"", fields=b"Connection: Keep-Alive\r\n")
    assert (head.minor, head.fields.host, head.fields.wants_keep_alive) == (0, b"", True)


def test_the_same_block_is_not_read_again_and_another_one_is() -> None:
    first = request(b"A: 1\r\n")
    again = read_request_head(b"PUT /b HTTP/1.1\r\nHost: shop\r\nA: 1\r\n\r\n", first.fields)
    other = read_request_head(b"PUT /b HTTP/1.1\r\nHost: shop\r\nA: 2\r\n\r\n", first.fields)
    assert again is not None
    assert other is not None
    assert again.fields is first.fields
    assert other.fields.forward == b"\r\nHost: shop\r\nA: 2"


def test_a_known_block_with_a_host_does_not_excuse_a_request_without() -> None:
    with pytest.raises(Refusal):
        read_request_head(b"GET / HTTP/1.1\r\nA: 1\r\n\r\n", request(b"A: 1\r\n").fields)


# Responses.


def test_a_response_with_nothing_for_this_hop_is_unchanged() -> None:
    head = response(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: x\r\n\r\nok")
    assert (head.status, head.length, head.keeps_alive, head.is_unchanged, head.end) == (200, 2, True, True, 49)


def test_fields_of_this_hop_are_not_passed_to_the_client() -> None:
    head = response(
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nA: 1\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    assert head.forward == b"\r\nA: 1\r\nContent-Length: 0"
    assert head.keeps_alive
    assert not head.is_unchanged


@pytest.mark.parametrize(
    "connection", [b"Connection: keep-alive", b"connection:Keep-Alive", b"CONNECTION:  KEEP-ALIVE"]
)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_an_answer_that_keeps_its_connection_is_read_alike_in_few_steps_and_in_many(
    connection: bytes, place: int
) -> None:
    """A field more for this hop takes the long way."""
    fields = [b"A: Connection: keep-alive", b"Content-Length: 2", b"Connection-Id: 7"]
    fields.insert(place, connection)
    lines = b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(fields)
    short, long = response(lines + b"\r\n\r\n"), response(lines + b"\r\nKeep-Alive: timeout=5\r\n\r\n")
    assert short.forward == long.forward == b"\r\nA: Connection: keep-alive\r\nContent-Length: 2\r\nConnection-Id: 7"
    assert short[:-1] == long[:-1]
    assert (short.length, short.keeps_alive, short.is_unchanged) == (2, True, False)


@pytest.mark.parametrize(
    ("data", "to_head_request", "length"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", False, UNTIL_CLOSE),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", False, CHUNKED),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", True, 0),
        (b"HTTP/1.1 200 OK\r\n\r\n", True, 0),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", False, 0),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, 0),
        (b"HTTP/1.1 100 Continue\r\n\r\n", False, 0),
    ],
)
def test_where_a_response_ends(data: bytes, to_head_request: bool, length: int) -> None:
    assert response(data, to_head_request=to_head_request).length == length


def test_a_204_announces_no_body() -> None:
    head = response(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\nA: 1\r\n\r\nhello")
    assert (head.length, head.forward, head.is_unchanged) == (0, b"\r\nA: 1", False)


def test_a_response_of_http_1_0_is_passed_on_as_1_1_and_its_connection_not_kept() -> None:
    head = response(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (head.line, head.keeps_alive, head.is_unchanged) == (b"HTTP/1.1 200 OK", False, False)


def test_a_reason_may_be_absent_or_anything() -> None:
    assert response(b"HTTP/1.1 200\r\n\r\n").line == b"HTTP/1.1 200"
    assert response(b"HTTP/1.1 200 \r\n\r\n").line == b"HTTP/1.1 200 "
    assert response(b"HTTP/1.1 404 pas trouv\xe9\r\n\r\n").status == 404


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"hello\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/1.1 2000 High\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\nB: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: 1\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * HEAD_BYTES_MAX,
        b"\x00\x01",
    ],
)
def test_a_response_that_is_ambiguous_or_no_http_is_a_bad_gateway(data: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        read_response_head(data, to_head_request=False)
    assert refused.value.status == 502
