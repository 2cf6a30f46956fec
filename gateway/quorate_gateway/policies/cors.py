"""CORS by the Fetch standard: which pages of other origins may ask, and read the answer.

The gateway answers preflights itself: they carry no credentials, and a service need not know of them. An answer names
the origin that asked when it is one of the route's, and no origin otherwise: a browser then keeps the answer from the
page. That is all a gateway can do and all it should: CORS protects users of browsers and is no access control.

An answer that depends on who asks says so (`Vary: Origin`), also to those who are not named in it, since a cache may
give it to others. What the service itself says about CORS is dropped: two answers to one question make browsers refuse
both, and a service's `*` would be a way around the route's list. Access from public pages to private networks
(`Access-Control-Request-Private-Network`) is never granted.
"""

import re

from quorate_gateway.documents.access import RouteCors
from quorate_gateway.policies.header_changes import ChangeBlock
from quorate_gateway.proxy.framing import RequestFields, RequestHead
from quorate_gateway.proxy.refusals import Reply

ORIGIN_BYTES_MAX = 512

_ORIGIN = re.compile(rb"\r\n(?i:origin):[ \t]*([^\r]*)")
_ASKED_METHOD = re.compile(rb"\r\n(?i:access-control-request-method):[ \t]*[^\r \t]")
_OF_THE_SERVICE = re.compile(
    rb"\r\n(?i:access-control-(?:allow-(?:origin|credentials|methods|headers|private-network)|expose-headers|max-age)):"
    rb"[^\r]*"
)
_VARY = b"\r\nvary: Origin"


class CorsAnswers:
    """What one route answers to pages of other origins. Fields are encoded, each with its CRLF in front."""

    __slots__ = ("_every_answer", "_exact", "_named_answer", "_named_preflight", "_pattern", "_takes_all")

    def __init__(self, document: RouteCors) -> None:
        self._takes_all = "*" in document.origins
        self._exact = frozenset(origin.encode("ascii") for origin in document.origins if "*" not in origin)
        self._pattern = _compile_wildcards([origin for origin in document.origins if "*." in origin])
        credentials = b"\r\naccess-control-allow-credentials: true" if document.credentials else b""
        self._named_answer = credentials
        if document.expose:
            self._named_answer += b"\r\naccess-control-expose-headers: %b" % _listed(document.expose)
        self._named_preflight = credentials + b"\r\naccess-control-allow-methods: %b" % _listed(document.methods)
        if document.headers:
            self._named_preflight += b"\r\naccess-control-allow-headers: %b" % _listed(document.headers)
        self._named_preflight += b"\r\naccess-control-max-age: %d" % document.max_age_s
        self._every_answer = b"" if self._takes_all else _VARY

    def preflight(self, fields: RequestFields, head: RequestHead) -> Reply | None:
        """The answer to a preflight; None for every other request. It names what the route allows, whatever was asked:
        to compare is the browser's part (Fetch standard, CORS-preflight fetch)."""
        if head.method != b"OPTIONS" or not _ASKED_METHOD.search(fields.block) or not _ORIGIN.search(fields.block):
            return None
        named = self._name(fields)
        return Reply(204, self._every_answer + (named + self._named_preflight if named else b""))

    def answer_fields(self, fields: RequestFields) -> bytes:
        """For the answer to any request of the route that is no preflight."""
        named = self._name(fields)
        return self._every_answer + (named + self._named_answer if named else b"")

    def _name(self, fields: RequestFields) -> bytes:
        """The field with the request's origin when it is allowed, or nothing."""
        found: list[bytes] = _ORIGIN.findall(fields.block)
        if len(found) != 1:
            return b""
        if self._takes_all:
            return b"\r\naccess-control-allow-origin: *"
        origin = found[0].rstrip(b" \t")
        if origin in self._exact or (
            self._pattern is not None and len(origin) <= ORIGIN_BYTES_MAX and self._pattern.fullmatch(origin)
        ):
            return b"\r\naccess-control-allow-origin: " + origin
        return b""


def compile_cors(document: RouteCors | None) -> CorsAnswers | None:
    return None if document is None else CorsAnswers(document)


def without_service_cors(cors: CorsAnswers | None, changes: ChangeBlock | None) -> ChangeBlock | None:
    """The changes of a route's answers, of which what the service says about CORS is left out first."""
    if cors is None:
        return changes
    strip = _OF_THE_SERVICE.sub
    if changes is None:
        return lambda block: strip(b"", block)
    change = changes
    return lambda block: change(strip(b"", block))


def _compile_wildcards(origins: list[str]) -> re.Pattern[bytes] | None:
    """`https://*.shop.example` takes every name below, at any depth, and not `https://shop.example` itself."""
    if not origins:
        return None
    return re.compile(
        b"|".join(
            re.escape(origin.encode("ascii")).replace(rb"\*\.", rb"(?:[a-z0-9_-]+\.)+") for origin in sorted(origins)
        )
    )


def _listed(values: list[str]) -> bytes:
    return ", ".join(values).encode("ascii")
