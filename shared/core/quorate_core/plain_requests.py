"""Plain requests: a POST or a GET that has come whole, with a short and ordinary head. Pure.

An API that is asked the same few things by the same clients gets the same heads again and again. What such a head says
is worked out once and kept; the next request with it costs a search and a look into a table. Only what has one meaning
under any reading of RFC 9112 counts as plain: one length in digits (none for a GET, which has no body), one host, no
transfer coding, no expectation, no upgrade, no list of connection options, and nothing behind the body. Everything else
is left to the parser that knows all of HTTP.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

PLAIN_HEAD_BYTES_MAX = 1024
HEADS_KEPT_MAX = 1024
"""Of one server. When there are more, all are forgotten: clients of a node send a handful."""

_HEAD = re.compile(
    rb"(?:POST (/[A-Za-z0-9/_.~-]*)|GET (/[A-Za-z0-9/_.~-]*)(?:\?([A-Za-z0-9_.~=&-]*))?) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z0-9!#$%&'*+.^_`|~-]+:"
    rb"[ \t]*(?:[\x21-\x7e\x80-\xff]+(?:[ \t]+[\x21-\x7e\x80-\xff]+)*)?[ \t]*\r\n)+)\r\n"
)
_LENGTH = re.compile(rb"[0-9]{1,9}")
_NEEDS_MORE = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"proxy-connection"))
_END = b"\r\n\r\n"

Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")
Resolve = Callable[[str, Headers], T | None]
"""Who answers a POST to this path with these headers; None when that is not for plain requests."""
ResolveGet = Callable[[str, str, Headers], T | None]
"""The same of a GET of this path with this query."""


@dataclass(frozen=True, slots=True)
class PlainHead:
    """`headers` have names in lower case, as ASGI has them. `query` is what stands behind a `?`, or empty."""

    path: str
    headers: Headers
    body_bytes: int
    method: str = "POST"
    query: str = ""


@dataclass(frozen=True, slots=True)
class PlainRequest(Generic[T]):
    """What all requests with one head have in common. `size_bytes`: of head and body."""

    head: PlainHead
    head_bytes: int
    size_bytes: int
    target: T


class PlainRequests(Generic[T]):
    """What has been made of heads so far."""

    def __init__(self, resolve: Resolve[T], resolve_get: ResolveGet[T] | None = None) -> None:
        self._resolve = resolve
        self._resolve_get = resolve_get
        self._known: dict[bytes, PlainRequest[T]] = {}

    def find(self, data: bytes) -> PlainRequest[T] | None:
        """What `data` is, if it is one plain request that somebody answers, with its body and nothing more."""
        end = data.find(_END, 0, PLAIN_HEAD_BYTES_MAX)
        if end < 0:
            return None
        head_data = data[: end + len(_END)]
        request = self._known.get(head_data) or self._look_into(head_data)
        return request if request is not None and len(data) == request.size_bytes else None

    def _look_into(self, head_data: bytes) -> PlainRequest[T] | None:
        head = parse_plain_head(head_data)
        target = None if head is None else self._target_of(head)
        if head is None or target is None:
            return None
        if len(self._known) >= HEADS_KEPT_MAX:
            self._known.clear()
        request = PlainRequest(head, len(head_data), len(head_data) + head.body_bytes, target)
        self._known[head_data] = request
        return request

    def _target_of(self, head: PlainHead) -> T | None:
        if head.method == "POST":
            return self._resolve(head.path, head.headers)
        return None if self._resolve_get is None else self._resolve_get(head.path, head.query, head.headers)


def parse_plain_head(data: bytes) -> PlainHead | None:
    """`data` up to and with the empty line. None when it is not plain, or not right."""
    match = _HEAD.fullmatch(data)
    if match is None:
        return None
    headers: Headers = []
    posted, got, query, fields_data = match.groups()
    for line in fields_data.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    names = [name for name, _ in headers]
    lengths_wanted = 0 if posted is None else 1
    if names.count(b"host") != 1 or names.count(b"content-length") != lengths_wanted:
        return None
    if not _NEEDS_MORE.isdisjoint(names):
        return None
    fields = dict(headers)
    length, connection = fields.get(b"content-length", b"0"), fields.get(b"connection", b"keep-alive")
    if not _LENGTH.fullmatch(length) or names.count(b"connection") > 1 or connection.lower() != b"keep-alive":
        return None
    if posted is None:
        return PlainHead(got.decode(), headers, 0, "GET", (query or b"").decode())
    return PlainHead(posted.decode(), headers, int(length))
