"""Heads of HTTP/1 messages (RFC 9112), strictly: validated whole by one compiled pattern, not rewritten field by field.

A second pattern finds the few fields that a proxy must understand; all others are forwarded as the bytes that came.
Whatever two implementations could read differently is refused: a bare CR or LF, folded fields, space before a colon,
control characters, repeated or list-valued Content-Length, Content-Length beside Transfer-Encoding, any transfer
coding but `chunked`, no Host or several, dot segments in a path.

Everything here is pure: bytes in; a head, None (more bytes are wanted) or a `Refusal` out. A header *block* is the
head's fields, each with its CRLF in front and none at the end.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from quorate_core.errors import Retry

from quorate_gateway.proxy.limits import DEFAULT_LIMITS, HEAD_BYTES_MAX, HEAD_FIELDS_MAX, ConnectionLimits
from quorate_gateway.proxy.refusals import Refusal

TARGET_BYTES_MAX = 8_192
FIELD_BYTES_MIN = len(b"\r\na:")
NOMINATED_MAX = 16
"""Fields that a Connection field may name as hop-by-hop."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(
    rb"(%b{1,32}) ([^\x00-\x20\x7f-\xff#\\\"<>]{1,%d}) HTTP/1\.([01])(?=\r\n)" % (_TOKEN, TARGET_BYTES_MAX)
)
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?(?=\r\n)")
_BLOCK = re.compile(rb"(?:\r\n%b++:[\t\x20-\x7e\x80-\xff]*+)*+" % _TOKEN)
IMPOSSIBLE = re.compile(rb"(?<!\r)\n|\r(?![\n]|\Z)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""What no head can hold, wherever it was cut."""

_HOP_BY_HOP = (
    rb"[Cc](?i:onnection)|[Kk](?i:eep-alive)|[Pp](?i:roxy-connection)|[Tt](?i:e)|[Uu](?i:pgrade)"
    rb"|[Hh](?i:ttp2-settings)"
)
_REPLACED = (
    rb"[Ee](?i:xpect)|[Ff](?i:orwarded)|[Pp](?i:roxy|roxy-authorization)"
    rb"|[Xx](?i:[-_]forwarded[-_][a-z0-9_-]+|[-_]real[-_]ip|[-_]request[-_]id|-request-timeout-ms)"
    rb"|[Xx](?i:[-_]quorate[-_][a-z0-9_-]+)|[Tt](?i:raceparent)"
)
"""Never passed on as they came: consumed here, or set anew because nobody outside may set them. With `_` in the name
too, since CGI and its heirs read both as one."""
_CONFUSED = rb"[Cc](?i:ontent_length)|[Tt](?i:ransfer_encoding)"
_READ_ONLY = rb"[Ss](?i:ec-websocket-(?:key|version))|[Mm](?i:ax-forwards)"
_FRAMING = rb"[Cc](?i:ontent-length)|[Tt](?i:ransfer-encoding)"
_VALUE = rb": *+([^\r]*+)"
"""Of the fields that are read here; a tab around such a value is no part of it for some, and is for others."""
_REQUEST_FOUND = re.compile(
    rb"\r\n((?:%b|%b|%b|%b|%b|[Hh](?i:ost)|[Tt](?i:racestate))(?=:))%b"
    % (_FRAMING, _CONFUSED, _HOP_BY_HOP, _REPLACED, _READ_ONLY, _VALUE)
)
_REQUEST_STRIPPED = re.compile(rb"\r\n(?:%b|%b):[^\r]*+" % (_HOP_BY_HOP, _REPLACED))
_RESPONSE_FOUND = re.compile(rb"\r\n((?:%b|%b)(?=:))%b" % (_FRAMING, _HOP_BY_HOP, _VALUE))
_RESPONSE_STRIPPED = re.compile(rb"\r\n(?:%b):[^\r]*+" % _HOP_BY_HOP)
_LENGTH_STRIPPED = re.compile(rb"\r\n(?:%b):[^\r]*+" % _FRAMING)
_PLAIN = rb"(?:\r\n(?!(?:%b|%b):)%b++:[\t\x20-\x7e\x80-\xff]*+)*+" % (_FRAMING, _HOP_BY_HOP, _TOKEN)
_KEPT = rb"(\r\n[Cc](?i:onnection): *+(?i:keep-alive) *+(?=\r))"
_USUAL_RESPONSE = re.compile(
    rb"(HTTP/1\.1 ([2-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?+)%b(?:%b%b)?+"
    rb"\r\n[Cc](?i:ontent-length): *+([0-9]{1,18}) *+(?=\r)%b(?:%b%b)?+\r\n\r\n"
    % (_PLAIN, _KEPT, _PLAIN, _PLAIN, _KEPT, _PLAIN)
)
"""Of an answer of known length whose connection stays open, said or not: nearly all are. One search validates the head,
and finds its end and all that counts in it. What does not match is read, or refused, field by field."""
_DATE = re.compile(rb"\r\n[Dd](?i:ate):")
_MAX_FORWARDS = re.compile(rb"\r\n[Mm](?i:ax-forwards):[^\r]*+")
_COUNTED_METHODS = frozenset({b"OPTIONS", b"TRACE"})
_TRACESTATE_STRIPPED = re.compile(rb"\r\n(?i:tracestate):[^\r]*+")

HOST_PATTERN = re.compile(rb"(?:[A-Za-z0-9._~%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_HOPS = re.compile(rb"[0-9]{1,9}")
_DIGITS = re.compile(rb"-?[0-9]{1,12}")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, section 3.2."""
_ABSOLUTE = re.compile(rb"https?://([^/?]+)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")
_DOT_SEGMENT = re.compile(rb"/\.{1,2}(?:/|\Z)")
_UNRESERVED = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
_PASSED_ON = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"tracestate", b"sec-websocket-key", b"sec-websocket-version",
     b"max-forwards"}
)  # fmt: skip
_WEBSOCKET_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")
"""The base64 of 16 bytes (RFC 6455, section 4.1)."""
_UPGRADE_FIELDS = b"\r\nconnection: upgrade\r\nupgrade: websocket"
_TRAILERS_FIELDS = b"\r\nconnection: te\r\nte: trailers"
_BODILESS = frozenset({204, 304})
_UNSHOWN = re.compile(r"[^A-Za-z0-9/., -]")
_NONE: tuple[bytes, ...] = ()
_NOT_NOMINATED = frozenset({b"host", b"content-length", b"transfer-encoding", b"cache-control", b"authorization"})


@dataclass(frozen=True, slots=True)
class RequestFields:
    """What the header block of a request says. `length` is -1 for a chunked body.

    Read many times and seldom made, and so no tuple: those are made quickly, and read slowly by name.
    """

    block: bytes
    """As it came; two requests with the same block have the same fields."""
    forward: bytes
    """The block that may be passed on: without hop-by-hop fields and without those that the gateway sets."""
    host: bytes
    """Empty when there is none, which HTTP/1.0 allows."""
    length: int
    wants_close: bool
    wants_keep_alive: bool
    expects_continue: bool
    request_id: bytes
    """Empty when there is none that is sane."""
    traceparent: bytes
    """Empty when there is none that is valid."""
    timeout_ms: bytes = b""
    """The one value of x-request-timeout-ms as it came; empty when there is none, or several."""
    upgrade: bytes = b""
    """`websocket` for a handshake that is valid (RFC 6455, section 4.1), whose `forward` asks for it; else empty."""
    max_forwards: bytes = b""
    """The one value of Max-Forwards, when it is a number."""


class RequestHead(NamedTuple):
    """`target` is in origin-form; `path` is it without the query. `end` counts the head's bytes."""

    method: bytes
    target: bytes
    path: bytes
    minor: int
    """Of the HTTP version: 0 or 1."""
    fields: RequestFields
    end: int


class ResponseHead(NamedTuple):
    """`length`: the body's, -1 for chunked, -2 for a body that ends with the connection. `end` counts the head."""

    status: int
    passed: bytes
    """The status line as HTTP/1.1, and the block that may be passed on."""
    line_end: int
    """Where in `passed` the block begins."""
    length: int
    keeps_alive: bool
    is_unchanged: bool
    """Whether `passed` is made of the very bytes that came."""
    has_date: bool
    end: int

    @property
    def line(self) -> bytes:
        """The status line, without CRLF."""
        return self.passed[: self.line_end]

    @property
    def forward(self) -> bytes:
        """The block that may be passed on."""
        return self.passed[self.line_end :]


CHUNKED = -1
UNTIL_CLOSE = -2
_new_tuple = tuple.__new__
"""As `RequestHead(...)`, in half the time."""


def read_request_head(
    data: bytes, known: RequestFields | None = None, scanned: int = 0, limits: ConnectionLimits = DEFAULT_LIMITS
) -> RequestHead | None:
    """The request head at the start of `data`, or None when it is not complete.

    `known` are the fields of an earlier request: the same block is not read again. `scanned` bytes of `data` were
    seen before, and held no end. Raises Refusal.
    """
    end = data.find(b"\r\n\r\n", scanned - 3 if scanned > 3 else 0)
    if end < 0 or end > limits.head_bytes_max:
        _check_incomplete(data, scanned, end, limits.head_bytes_max)
        return None
    line = _REQUEST_LINE.match(data)
    if line is None:
        raise _explain_request_line(data)
    method, target, minor = line.groups()
    block = data[line.end() : end]
    is_old = minor == b"0"
    fields = known if known is not None and known.block == block else read_request_fields(block, limits, is_old=is_old)
    if is_old:
        _check_old_version(fields)
        if fields.upgrade:
            fields = read_request_fields(block, limits, is_old=True)
    elif not fields.host:
        raise Refusal("bad-host", 400, "an HTTP/1.1 request must have exactly one Host field")
    elif fields.upgrade and method != b"GET":
        raise _bad_handshake("its method is not GET")
    if fields.max_forwards and method in _COUNTED_METHODS:
        fields = _count_hop(fields)
    if target[0] != 47 or b"%" in target or b"/." in target:
        target = _normalise(method, target, fields.host)
    path = target.partition(b"?")[0]
    return _new_tuple(RequestHead, (method, target, path, 0 if is_old else 1, fields, end + 4))


def read_request_fields(
    block: bytes, limits: ConnectionLimits = DEFAULT_LIMITS, *, is_old: bool = False
) -> RequestFields:
    """What the fields of `block` mean. `is_old`: in HTTP/1.0, where Upgrade has none (RFC 9110, section 7.8). Raises
    Refusal."""
    if _BLOCK.fullmatch(block) is None:
        raise _explain_block(block)
    if block.count(b"\n") > limits.head_fields_max:
        raise Refusal("too-many-fields", 431, f"a request may have {limits.head_fields_max} header fields")
    found: dict[bytes, list[bytes]] = {}
    for name, value in _REQUEST_FOUND.findall(block):
        found.setdefault(name.lower(), []).append(value.rstrip(b" "))
    hosts = found.get(b"host", _NONE)
    if len(hosts) > 1 or (hosts and HOST_PATTERN.fullmatch(hosts[0]) is None):
        raise Refusal("bad-host", 400, "a request must have exactly one Host field, of the form host or host:port")
    tokens = _tokens(found.get(b"connection", _NONE))
    forward = block
    if not found.keys() <= _PASSED_ON:
        if b"content_length" in found or b"transfer_encoding" in found:
            raise _ambiguous("a field about its length that has '_' in its name", "a request", 400)
        forward = _REQUEST_STRIPPED.sub(b"", block)
    traceparent = _single(found.get(b"traceparent", _NONE), _TRACEPARENT)
    if not traceparent and b"tracestate" in found:
        forward = _TRACESTATE_STRIPPED.sub(b"", forward)  # it means nothing without its parent
    forward = _without_nominated(forward, tokens, "a request")
    length = _body_length(found, "a request", 400)
    upgrade = b""
    if b"upgrade" in found and not is_old:
        upgrade = _read_upgrade(found, tokens, length)
        forward += _UPGRADE_FIELDS
    elif b"te" in found and b"trailers" in _tokens(found[b"te"]):
        forward += _TRAILERS_FIELDS  # said anew, since the gateway passes them on (RFC 9110, section 10.1.4)
    return RequestFields(
        block=block,
        forward=forward,
        host=hosts[0] if hosts else b"",
        length=length,
        wants_close=b"close" in tokens,
        wants_keep_alive=b"keep-alive" in tokens,
        expects_continue=b"expect" in found and _check_expect(found[b"expect"]),
        request_id=_single(found.get(b"x-request-id", _NONE), _REQUEST_ID),
        traceparent=traceparent,
        timeout_ms=_single(found.get(b"x-request-timeout-ms", _NONE), _DIGITS),
        upgrade=upgrade,
        max_forwards=_single(found.get(b"max-forwards", _NONE), _HOPS),
    )


def read_response_head(data: bytes, *, to_head_request: bool) -> ResponseHead | None:
    """The response head at the start of `data`, or None when it is not complete. Raises Refusal (502)."""
    usual = None if to_head_request else _USUAL_RESPONSE.match(data)
    if usual is not None:
        head = _read_usual(data, usual)
        if head is not None:
            return head
    end = data.find(b"\r\n\r\n")
    if end < 0 or end > HEAD_BYTES_MAX:
        if len(data) > HEAD_BYTES_MAX or IMPOSSIBLE.search(data):
            raise _bad_response("its head is too large, or no HTTP/1 head at all")
        return None
    line = _STATUS_LINE.match(data)
    if line is None:
        raise _bad_response("it does not begin with an HTTP/1 status line")
    start = line.end()
    block = data[start:end]
    if _BLOCK.fullmatch(block) is None or block.count(b"\n") > HEAD_FIELDS_MAX:
        raise _bad_response("its header fields are not valid, or too many")
    status, is_old = int(line[2]), line[1] == b"0"
    found: dict[bytes, list[bytes]] = {}
    for name, value in _RESPONSE_FOUND.findall(block):
        found.setdefault(name.lower(), []).append(value.rstrip(b" "))
    tokens = _tokens(found.get(b"connection", _NONE))
    forward = block if found.keys() <= _PASSED_ON else _RESPONSE_STRIPPED.sub(b"", block)
    forward = _without_nominated(forward, tokens, "a response")
    has_length = b"content-length" in found or b"transfer-encoding" in found
    length = _body_length(found, "the response", 502) if has_length else UNTIL_CLOSE
    if status < 200 or status == 204:
        # They have no body whatever they say, and must not announce one (RFC 9110, section 8.6).
        length, forward = 0, _LENGTH_STRIPPED.sub(b"", forward) if has_length else forward
    elif to_head_request or status == 304:
        length = 0
    return ResponseHead(
        status=status,
        passed=b"HTTP/1.1" + data[8:start] + forward,
        line_end=start,
        length=length,
        keeps_alive=not is_old and b"close" not in tokens and length != UNTIL_CLOSE,
        is_unchanged=not is_old and forward is block,
        has_date=_DATE.search(forward) is not None,
        end=end + 4,
    )


def _read_usual(data: bytes, usual: re.Match[bytes]) -> ResponseHead | None:
    """The same as reading field by field gives; None where that has to be done."""
    line, code, kept_before, length, kept_behind = usual.groups()
    status, end = int(code), usual.end()
    if (
        status in _BODILESS
        or (kept_before and kept_behind)
        or end - 4 > HEAD_BYTES_MAX
        or (end > FIELD_BYTES_MIN * HEAD_FIELDS_MAX and data.count(b"\n", 0, end) - 2 > HEAD_FIELDS_MAX)
    ):
        return None
    passed, is_unchanged = data[: end - 4], True
    if kept_before or kept_behind:
        start, behind = usual.span(3 if kept_before else 5)
        passed, is_unchanged = passed[:start] + passed[behind:], False
    has_date = _DATE.search(passed) is not None
    return _new_tuple(ResponseHead, (status, passed, len(line), int(length), True, is_unchanged, has_date, end))


def without_transfer_encoding(block: bytes) -> bytes:
    """For a client of HTTP/1.0, which is sent the bare body."""
    return _LENGTH_STRIPPED.sub(b"", block)


def is_field_line(line: bytes) -> bool:
    """Whether `line`, without its CRLF, is one valid field: trailers are checked by it."""
    return _BLOCK.fullmatch(b"\r\n" + line) is not None


def _count_hop(fields: RequestFields) -> RequestFields:
    """This gateway is one of the hops that Max-Forwards allows (RFC 9110, section 7.6.2)."""
    left = int(fields.max_forwards)
    if not left:
        raise Refusal("max-forwards", 501, "Max-Forwards ends here, where requests are only passed on")
    return replace(fields, forward=_MAX_FORWARDS.sub(b"\r\nmax-forwards: %d" % (left - 1), fields.forward))


def _single(values: Sequence[bytes], form: re.Pattern[bytes]) -> bytes:
    """The one value, when there is just one and it has this form; otherwise nothing."""
    return values[0] if len(values) == 1 and form.fullmatch(values[0]) else b""


def _body_length(found: Mapping[bytes, Sequence[bytes]], what: str, status: int) -> int:
    """RFC 9112, section 6.3, without the leniencies that it allows."""
    lengths, codings = found.get(b"content-length", _NONE), found.get(b"transfer-encoding", _NONE)
    if codings:
        if lengths:
            raise _ambiguous("both Content-Length and Transfer-Encoding", what, status)
        if len(codings) > 1 or b"," in codings[0]:
            raise _ambiguous("more than one transfer coding", what, status)
        if codings[0].lower() != b"chunked":
            detail = "of the transfer codings, only 'chunked' is understood here"
            raise Refusal("unknown-transfer-coding", 501 if status == 400 else status, detail, _retry_of(status))
        return CHUNKED
    if not lengths:
        return 0
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise _ambiguous("a Content-Length that is repeated or no number", what, status)
    return int(lengths[0])


def _check_old_version(fields: RequestFields) -> None:
    if fields.length == CHUNKED:
        raise _ambiguous("Transfer-Encoding in HTTP/1.0", "a request", 400)


def _normalise(method: bytes, target: bytes, host: bytes) -> bytes:
    """Origin-form, with escapes of unreserved characters resolved (RFC 3986, section 6.2.2.2), so that a route is
    matched by what an upstream will read."""
    if target[:1] != b"/":
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            detail = f"{method.decode()} with this form of target is not served by a gateway; send a path"
            raise Refusal("bad-target", 501 if method == b"CONNECT" else 400, detail)
        if absolute[1].lower() != host.lower():
            raise Refusal("bad-host", 400, "the target's authority and the Host field differ")
        target = (absolute[2] or b"/") + (absolute[3] or b"")
    path, question, query = target.partition(b"?")
    path = _ESCAPE.sub(_resolve_escape, path)
    if _DOT_SEGMENT.search(path):
        raise Refusal("ambiguous-path", 400, "a path with '.' or '..' as a segment is not passed on")
    return path + question + query


def _resolve_escape(match: re.Match[bytes]) -> bytes:
    if match[1] is None:
        raise Refusal("bad-target", 400, "'%' in a path must be followed by two hexadecimal digits")
    octet = int(match[1], 16)
    if octet < 32 or octet == 127:
        raise Refusal("bad-target", 400, "a control character in a path, escaped or not, is not passed on")
    return bytes([octet]) if octet in _UNRESERVED else match[0]


def _check_expect(values: Sequence[bytes]) -> bool:
    if len(values) > 1 or values[0].lower() != b"100-continue":
        raise Refusal("unknown-expectation", 417, "of the expectations, only '100-continue' is understood here")
    return True


def _read_upgrade(found: Mapping[bytes, Sequence[bytes]], tokens: frozenset[bytes], length: int) -> bytes:
    """What the connection is to become: nothing but WebSocket, asked for to the letter of RFC 6455, section 4.1."""
    wanted, versions = found[b"upgrade"], found.get(b"sec-websocket-version", _NONE)
    if len(wanted) > 1 or wanted[0].lower() != b"websocket":
        raise upgrade_refused(b", ".join(wanted))
    if b"upgrade" not in tokens:
        raise _bad_handshake("Connection does not name Upgrade")
    if length:
        raise _bad_handshake("it has a body")
    if len(versions) != 1 or versions[0] != b"13":
        fields = (("upgrade", "websocket"), ("sec-websocket-version", "13"))
        raise Refusal("websocket-version", 426, "of WebSocket, version 13 alone is spoken", fields=fields)
    if not _single(found.get(b"sec-websocket-key", _NONE), _WEBSOCKET_KEY):
        raise _bad_handshake("Sec-WebSocket-Key is not the base64 of 16 bytes")
    return b"websocket"


def _tokens(values: Sequence[bytes]) -> frozenset[bytes]:
    if not values:
        return frozenset()
    return frozenset(token.strip(b" \t").lower() for value in values for token in value.split(b","))


def _without_nominated(block: bytes, tokens: frozenset[bytes], what: str) -> bytes:
    """Fields that Connection names are for this hop only (RFC 9110, section 7.6.1)."""
    names = tokens - {b"close", b"keep-alive", b"te", b"upgrade", b"http2-settings", b""}
    if not names:
        return block
    status = 400 if what == "a request" else 502
    if len(names) > NOMINATED_MAX or names & _NOT_NOMINATED:
        raise Refusal("bad-connection-field", status, f"the Connection field of {what} names fields that it must not")
    pattern = rb"\r\n(?i:%b):[^\r]*+" % b"|".join(re.escape(name) for name in sorted(names))
    return re.sub(pattern, b"", block)


def _check_incomplete(data: bytes, scanned: int, end: int, bytes_max: int) -> None:
    """Refuse early what can no longer become a valid head."""
    if end < 0:
        found = IMPOSSIBLE.search(data, scanned - 1 if scanned else 0)
        if found is not None:
            raise _explain_impossible(data, found)
    if len(data) > bytes_max:
        if b"\r\n" not in data[: TARGET_BYTES_MAX + 64]:
            raise Refusal("target-too-long", 414, f"a request target may have {TARGET_BYTES_MAX} bytes")
        raise Refusal("head-too-large", 431, f"the head of a request may have {bytes_max} bytes")


def _explain_impossible(data: bytes, found: re.Match[bytes]) -> Refusal:
    if data[:1] == b"\x16":
        return Refusal("not-http", 400, "this looks like TLS; here plain HTTP/1.1 is spoken")
    if found[0] in (b"\r", b"\n"):
        return Refusal("bare-line-break", 400, "a CR or LF alone; lines of a head end with CRLF")
    return Refusal("control-character", 400, f"the control character 0x{found[0][0]:02x} in the head")


def _explain_request_line(data: bytes) -> Refusal:
    line = data.partition(b"\r\n")[0]
    impossible = IMPOSSIBLE.search(line)
    if impossible is not None:
        return _explain_impossible(data, impossible)
    if re.search(rb" HTTP/(?:[02-9]|1\.[2-9]|\d\d)", line):
        return Refusal("http-version", 505, "here HTTP/1.1 and HTTP/1.0 are spoken")
    if len(line) > TARGET_BYTES_MAX:
        return Refusal("target-too-long", 414, f"a request target may have {TARGET_BYTES_MAX} bytes")
    return Refusal("bad-request-line", 400, "the first line is not of the form 'METHOD target HTTP/1.1'")


def _explain_block(block: bytes) -> Refusal:
    impossible = IMPOSSIBLE.search(block)
    if impossible is not None:
        return _explain_impossible(block, impossible)
    if re.search(rb"\r\n[ \t]", block):
        return Refusal("folded-field", 400, "a header field that goes on in the next line (obs-fold) is not accepted")
    return Refusal("bad-field", 400, "a header field is not of the form 'Name: value'")


def upgrade_refused(wanted: bytes) -> Refusal:
    """What asks for a protocol that the gateway, or the route, does not tunnel."""
    shown = _UNSHOWN.sub("?", wanted[:32].decode("latin-1"))
    return Refusal("upgrade-refused", 501, f"here no upgrade to {shown!r} is tunnelled; ask without Upgrade")


def _bad_handshake(why: str) -> Refusal:
    return Refusal("bad-handshake", 400, f"a WebSocket handshake is not valid: {why}")


def _ambiguous(found: str, what: str, status: int) -> Refusal:
    return Refusal("ambiguous-length", status, f"{what} with {found} can be read in two ways", _retry_of(status))


def _retry_of(status: int) -> Retry:
    """A request that is refused stays what it is; one whose answer is refused may have been done."""
    return Retry.NEVER if status == 400 else Retry.UNKNOWN


def _bad_response(why: str) -> Refusal:
    return Refusal("bad-upstream-response", 502, f"the upstream's response is not passed on: {why}", Retry.UNKNOWN)
