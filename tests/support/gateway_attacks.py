"""Requests that must not be passed on: what is wrong with each, its bytes, and the answer's status and rule."""

from typing import NamedTuple

AMBIGUOUS, UNKNOWN_CODING, BAD_CONNECTION = "ambiguous-length", "unknown-transfer-coding", "bad-connection-field"
BAD_HANDSHAKE = "bad-handshake"
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
"""Of RFC 6455, section 1.3."""
HOST = b"Host: shop.example\r\n"


class Attack(NamedTuple):
    what: str
    request: bytes
    status: int
    rule: str


def _get(fields: bytes = b"", target: bytes = b"/orders") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + HOST + fields + b"\r\n"


def _post(fields: bytes, body: bytes) -> bytes:
    return b"POST /orders HTTP/1.1\r\n" + HOST + fields + b"\r\n" + body


_SMUGGLED = b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"

LENGTHS = [
    Attack("CL.TE", _post(b"Content-Length: 6\r\n" + _CHUNKED, b"0\r\n\r\nG"), 400, AMBIGUOUS),
    Attack("TE.CL", _post(_CHUNKED + b"Content-Length: 3\r\n", b"8\r\nSMUGGLED\r\n0\r\n\r\n"), 400, AMBIGUOUS),
    Attack(
        "two lengths that differ",
        _post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"),
        400,
        "ambiguous-length",
    ),
    Attack(
        "two equal lengths", _post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), 400, "ambiguous-length"
    ),
    Attack("a list of lengths", _post(b"Content-Length: 5, 5\r\n", b"hello"), 400, AMBIGUOUS),
    Attack("a signed length", _post(b"Content-Length: +5\r\n", b"hello"), 400, AMBIGUOUS),
    Attack("a negative length", _post(b"Content-Length: -1\r\n", b""), 400, AMBIGUOUS),
    Attack("a hexadecimal length", _post(b"Content-Length: 0x5\r\n", b"hello"), 400, AMBIGUOUS),
    Attack("an empty length", _post(b"Content-Length:\r\n", b"hello"), 400, AMBIGUOUS),
    Attack("a length with a space in it", _post(b"Content-Length: 1 0\r\n", b"hello"), 400, AMBIGUOUS),
    Attack(
        "a length of twenty digits", _post(b"Content-Length: 18446744073709551617\r\n", b"h"), 400, "ambiguous-length"
    ),
    Attack(
        "two codings in one field",
        _post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
        400,
        "ambiguous-length",
    ),
    Attack(
        "two coding fields", _post(_CHUNKED + b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"), 400, "ambiguous-length"
    ),
    Attack("chunked twice", _post(_CHUNKED + _CHUNKED, b"0\r\n\r\n"), 400, AMBIGUOUS),
    Attack(
        "an unknown coding", _post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), 501, "unknown-transfer-coding"
    ),
    Attack("a quoted coding", _post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"), 501, UNKNOWN_CODING),
    Attack(
        "a vertical tab",
        _post(b"Transfer-Encoding:\x0bchunked\r\n", b"0\r\n\r\n"),
        400,
        "control-character",
    ),
    Attack(
        "chunked, and then identity", _post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"), 400, AMBIGUOUS
    ),
    Attack(
        "a coding with a parameter", _post(b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n"), 501, UNKNOWN_CODING
    ),
    Attack("a coding behind a tab", _post(b"Transfer-Encoding:\tchunked\r\n", b"0\r\n\r\n"), 501, UNKNOWN_CODING),
    Attack("identity alone", _post(b"Transfer-Encoding: identity\r\n", b""), 501, UNKNOWN_CODING),
    Attack("an empty coding", _post(b"Transfer-Encoding:\r\n", b""), 501, UNKNOWN_CODING),
    Attack("a NUL behind a length", _post(b"Content-Length: 5\x00\r\n", b"hello"), 400, "control-character"),
    Attack("a length with a fraction", _post(b"Content-Length: 5.0\r\n", b"hello"), 400, AMBIGUOUS),
    Attack("a length behind a tab", _post(b"Content-Length:\t5\r\n", b"hello"), 400, AMBIGUOUS),
    Attack("Content_Length, as CGI reads it", _post(b"Content_Length: 5\r\n", b"hello"), 400, AMBIGUOUS),
    Attack("Transfer_Encoding", _post(b"Transfer_Encoding: chunked\r\n", b"0\r\n\r\n"), 400, AMBIGUOUS),
    Attack(
        "chunked in HTTP/1.0",
        b"POST /orders HTTP/1.0\r\n" + HOST + _CHUNKED + b"\r\n0\r\n\r\n",
        400,
        "ambiguous-length",
    ),
]

LINES = [
    Attack("a field that is folded", _get(b"X-A: 1\r\n Content-Length: 5\r\n"), 400, "folded-field"),
    Attack("a first field that is folded", b"GET /orders HTTP/1.1\r\n Host: x\r\n\r\n", 400, "folded-field"),
    Attack("a space before the colon", _get(b"Transfer-Encoding : chunked\r\n"), 400, "bad-field"),
    Attack("a field without a colon", _get(b"Content-Length\r\n"), 400, "bad-field"),
    Attack("a field without a name", _get(b": chunked\r\n"), 400, "bad-field"),
    Attack("a name with a bracket", _get(b"X[a]: 1\r\n"), 400, "bad-field"),
    Attack("a LF alone between fields", _get(b"X-A: 1\nTransfer-Encoding: chunked\r\n"), 400, "bare-line-break"),
    Attack("a CR alone in a value", _get(b"X-A: 1\rTransfer-Encoding: chunked\r\n"), 400, "bare-line-break"),
    Attack("a LF alone before the empty line", _get(b"X-A: 1\n"), 400, "bare-line-break"),
    Attack("two CRs before a LF", _get(b"X-A: 1\r"), 400, "bare-line-break"),
    Attack("a space behind a folded name", _get(b"Content-Length\t: 5\r\n"), 400, "bad-field"),
    Attack("a UTF-8 space in a name", _get(b"Transfer\xa0Encoding: chunked\r\n"), 400, "bad-field"),
    Attack("lines that end with LF alone", b"GET /orders HTTP/1.1\nHost: x\n\n", 400, "bare-line-break"),
    Attack("a NUL in a value", _get(b"X-A: a\x00b\r\n"), 400, "control-character"),
    Attack("a NUL in a name", _get(b"X-\x00A: b\r\n"), 400, "control-character"),
    Attack("a DEL in a value", _get(b"X-A: a\x7f\r\n"), 400, "control-character"),
    Attack("two spaces in the first line", b"GET  /orders HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad-request-line"),
    Attack("a tab in the first line", b"GET\t/orders HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad-request-line"),
    Attack("a space in the target", _get(target=b"/orders /admin"), 400, "bad-request-line"),
    Attack("a space after the version", b"GET /orders HTTP/1.1 \r\n" + HOST + b"\r\n", 400, "bad-request-line"),
    Attack("no version, as in HTTP/0.9", b"GET /orders\r\n" + HOST + b"\r\n", 400, "bad-request-line"),
    Attack("a version in lower case", b"GET /orders http/1.1\r\n" + HOST + b"\r\n", 400, "bad-request-line"),
    Attack("a fragment in the target", _get(target=b"/orders#top"), 400, "bad-request-line"),
    Attack("a backslash in the target", _get(target=b"/orders\\..\\admin"), 400, "bad-request-line"),
    Attack("UTF-8 in the target", _get(target="/órdenes".encode()), 400, "bad-request-line"),
    Attack("HTTP/0.9 alone", b"GET /orders\r\n\r\n", 400, "bad-request-line"),
    Attack("a version of two digits", b"GET /orders HTTP/1.10\r\n" + HOST + b"\r\n", 400, "bad-request-line"),
    Attack("a version with a sign", b"GET /orders HTTP/+1.1\r\n" + HOST + b"\r\n", 400, "bad-request-line"),
    Attack("a method in brackets", b"<GET> /orders HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad-request-line"),
    Attack("a space before the method", b" GET /orders HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad-request-line"),
    Attack("a later minor version", b"GET /orders HTTP/1.2\r\n" + HOST + b"\r\n", 505, "http-version"),
    Attack("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http-version"),
    Attack("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "not-http"),
]

TARGETS = [
    Attack("no Host", b"GET /orders HTTP/1.1\r\n\r\n", 400, "bad-host"),
    Attack("an empty Host", b"GET /orders HTTP/1.1\r\nHost:\r\n\r\n", 400, "bad-host"),
    Attack("two Hosts", _get(b"Host: admin.example\r\n"), 400, "bad-host"),
    Attack("a Host with a path", b"GET /orders HTTP/1.1\r\nHost: x/admin\r\n\r\n", 400, "bad-host"),
    Attack("a Host with user information", b"GET /orders HTTP/1.1\r\nHost: a@b\r\n\r\n", 400, "bad-host"),
    Attack("a list of Hosts", b"GET /orders HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, "bad-host"),
    Attack("an authority that is not the Host", _get(target=b"http://admin.example/orders"), 400, "bad-host"),
    Attack("user information in an authority", _get(target=b"http://a@shop.example/orders"), 400, "bad-host"),
    Attack("a Host with a port that is none", b"GET /orders HTTP/1.1\r\nHost: x:y\r\n\r\n", 400, "bad-host"),
    Attack("a Host in two lines of one value", _get(HOST), 400, "bad-host"),
    Attack("no slash before the path", _get(target=b"orders"), 400, "bad-target"),
    Attack("CONNECT", b"CONNECT shop.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", 501, "bad-target"),
    Attack("an asterisk", b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad-target"),
    Attack("another scheme", _get(target=b"ftp://shop.example/orders"), 400, "bad-target"),
    Attack("a dot segment", _get(target=b"/orders/../admin"), 400, "ambiguous-path"),
    Attack("an escaped dot segment", _get(target=b"/orders/%2e%2E/admin"), 400, "ambiguous-path"),
    Attack("a half-escaped dot segment", _get(target=b"/orders/.%2e"), 400, "ambiguous-path"),
    Attack("an escaped NUL", _get(target=b"/orders%00"), 400, "bad-target"),
    Attack("an escaped LF", _get(target=b"/orders%0a"), 400, "bad-target"),
    Attack("an escape that is none", _get(target=b"/orders/%zz"), 400, "bad-target"),
    Attack("an escape that is cut", _get(target=b"/orders/%2"), 400, "bad-target"),
]

_H2C = b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"
_NAMES = b"Connection: " + b",".join(b"x%d" % number for number in range(100)) + b"\r\n"
_OWN_LENGTH = b"Content-Length: 5\r\nConnection: content-length\r\n"


def _websocket(connection: bytes = b"Upgrade", version: bytes = b"13", key: bytes = KEY) -> bytes:
    return b"Upgrade: websocket\r\nConnection: %b\r\nSec-WebSocket-Version: %b\r\nSec-WebSocket-Key: %b\r\n" % (
        connection,
        version,
        key,
    )


_WEBSOCKET = _websocket()
HANDSHAKE = _get(_WEBSOCKET)
HANDSHAKE_UNROUTED = Attack("WebSocket where no route tunnels", HANDSHAKE, 501, "upgrade-refused")

CONNECTIONS = [
    Attack(
        "h2c",
        _get(_H2C),
        501,
        "upgrade-refused",
    ),
    Attack("h2c and WebSocket", _get(b"Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n"), 501, "upgrade-refused"),
    Attack("TLS in the clear", _get(b"Upgrade: TLS/1.3\r\nConnection: Upgrade\r\n"), 501, "upgrade-refused"),
    Attack("WebSocket twice", _get(_WEBSOCKET + b"Upgrade: websocket\r\n"), 501, "upgrade-refused"),
    Attack("WebSocket that Connection does not name", _get(_websocket(b"keep-alive")), 400, BAD_HANDSHAKE),
    Attack("WebSocket of an old version", _get(_websocket(version=b"8")), 426, "websocket-version"),
    Attack("WebSocket of two versions", _get(_websocket(version=b"13, 8")), 426, "websocket-version"),
    Attack(
        "WebSocket without a version", _get(b"Upgrade: websocket\r\nConnection: Upgrade\r\n"), 426, "websocket-version"
    ),
    Attack("WebSocket with a short key", _get(_websocket(key=b"c2hvcnQ=")), 400, BAD_HANDSHAKE),
    Attack("WebSocket with two keys", _get(_WEBSOCKET + b"Sec-WebSocket-Key: " + KEY + b"\r\n"), 400, BAD_HANDSHAKE),
    Attack("WebSocket with a body", _get(_WEBSOCKET + b"Content-Length: 5\r\n") + b"hello", 400, BAD_HANDSHAKE),
    Attack("WebSocket with chunks", _get(_WEBSOCKET + _CHUNKED) + b"0\r\n\r\n", 400, BAD_HANDSHAKE),
    Attack("WebSocket by POST", _post(_WEBSOCKET, b""), 400, BAD_HANDSHAKE),
    Attack("Connection names Host", _get(b"Connection: close, Host\r\n"), 400, BAD_CONNECTION),
    Attack(
        "Connection names Content-Length",
        _post(_OWN_LENGTH, b"hello"),
        400,
        "bad-connection-field",
    ),
    Attack(
        "Connection names a hundred fields",
        _get(_NAMES),
        400,
        "bad-connection-field",
    ),
    Attack("an unknown expectation", _get(b"Expect: the-impossible\r\n"), 417, "unknown-expectation"),
    Attack("two expectations", _get(b"Expect: 100-continue\r\nExpect: 100-continue\r\n"), 417, "unknown-expectation"),
]

SIZES = [
    Attack("a target over its limit", _get(target=b"/orders/" + b"a" * 8_192), 414, "target-too-long"),
    Attack("a target that never ends", b"GET /" + b"a" * 40_000, 414, "target-too-long"),
    Attack("a head over its limit", _get(b"X-A: " + b"a" * 33_000 + b"\r\n"), 431, "head-too-large"),
    Attack("a head that never ends", _get(b"X-A: " + b"a" * 33_000)[:-2], 431, "head-too-large"),
    Attack("too many fields", _get(b"X: 1\r\n" * 101), 431, "too-many-fields"),
]

CHUNKS = [
    Attack(what, _post(_CHUNKED, body), 400, "bad-chunk")
    for what, body in [
        ("a size that is no number", b"zz\r\nhello\r\n0\r\n\r\n"),
        ("a negative size", b"-5\r\nhello\r\n0\r\n\r\n"),
        ("a size with 0x", b"0x5\r\nhello\r\n0\r\n\r\n"),
        ("a size behind a space", b" 5\r\nhello\r\n0\r\n\r\n"),
        ("a size before a space", b"5 \r\nhello\r\n0\r\n\r\n"),
        ("a size that overflows", b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("a size line that ends with LF", b"5\nhello\r\n0\r\n\r\n"),
        ("an extension with a LF", b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("an extension with a space", b"5; a\r\nhello\r\n0\r\n\r\n"),
        ("an extension with an open quote", b'5;a="\r\nhello\r\n0\r\n\r\n'),
        ("an extension that never ends", b"5;" + b"a" * 300),
        ("a size line over its limit", b"5;" + b"a" * 260 + b"\r\nhello\r\n0\r\n\r\n"),
        ("data longer than its size", b"5\r\nhello!\r\n0\r\n\r\n"),
        ("data that ends with LF", b"5\r\nhello\n0\r\n\r\n"),
        ("data that ends with CR and more", b"5\r\nhello\rX0\r\n\r\n"),
        ("an empty size line", b"\r\nhello\r\n0\r\n\r\n"),
        ("a trailer without a colon", b"0\r\nsmuggled\r\n\r\n"),
        ("a trailer about length", b"0\r\nContent-Length: 5\r\n\r\n"),
        ("a folded trailer", b"0\r\nX-A: 1\r\n b\r\n\r\n"),
        ("a trailer about chunks", b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("a trailer about the host", b"0\r\nHost: admin.example\r\n\r\n"),
        ("a trailer about the connection", b"0\r\nConnection: close\r\n\r\n"),
        ("a trailer with a space before the colon", b"0\r\nX-A : 1\r\n\r\n"),
        ("a trailer that ends with LF", b"0\r\nX-A: 1\n\r\n"),
        ("chunks that end with LF", b"0\r\n\n"),
        ("a size with an underscore", b"1_0\r\nhello\r\n0\r\n\r\n"),
        ("a size with a sign", b"+5\r\nhello\r\n0\r\n\r\n"),
        ("a size behind a tab", b"\t5\r\nhello\r\n0\r\n\r\n"),
        ("a size of sixteen digits", b"0000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("a NUL behind a size", b"5\x00\r\nhello\r\n0\r\n\r\n"),
        ("a CR in an extension", b"5;a=\rb\r\nhello\r\n0\r\n\r\n"),
        ("a trailer with a NUL", b"0\r\nX-A: \x00\r\n\r\n"),
        ("trailers over their limit", b"0\r\n" + b"X-A: " + b"a" * 9_000 + b"\r\n\r\n"),
    ]
]

HEAD_ATTACKS = [*LENGTHS, *LINES, *TARGETS, *CONNECTIONS, *SIZES]
ATTACKS = [*HEAD_ATTACKS, *CHUNKS]
