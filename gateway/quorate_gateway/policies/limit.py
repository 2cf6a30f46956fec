"""The rate limit of a route: who is counted together, what is told of it, and 429 for what is over it.

`RateLimit` and `RateLimit-Policy` are those of draft-ietf-httpapi-ratelimit-headers-11. The policy has the route's
name; `q` is what may come at once, `w` the seconds in which so much is there again. On an answer, `r` is what is left
and `t` the seconds until the bucket is full; on a 429, `t` is what `Retry-After` says.
"""

import hashlib
import ipaddress
import math
import re
from collections.abc import Callable

from quorate_core.errors import Retry
from quorate_resilience import Decision, TokenBucket

from quorate_gateway.policy_documents import RouteRateLimit
from quorate_gateway.proxy.framing import RequestFields
from quorate_gateway.proxy.refusals import Refusal

KEY_BYTES_MAX = 64
"""Of a header field's value; a longer one is remembered by its digest."""
IPV6_PREFIX_BITS = 64
"""What one subscriber is given at least (RFC 6177): of its addresses it has as many as it likes."""
_NO_KEY = b""
_HEADER = "header:"

KeyOf = Callable[[RequestFields, bytes], bytes]
"""From a request's fields and its client's `client_key` to the key of its bucket."""


class RouteLimit:
    """One route's limit, and how often it admitted and limited. `document` is what it was made from."""

    __slots__ = ("_field", "_key_of", "_policy", "admitted", "bucket", "document", "limited", "route_name")

    def __init__(self, route_name: str, document: RouteRateLimit) -> None:
        self.route_name = route_name
        self.document = document
        self.admitted = 0
        self.limited = 0
        burst = document.burst_requests
        self.bucket = TokenBucket(document.requests_per_second, burst)
        self._key_of = compile_key(document.key)
        window_s = max(1, math.ceil(burst / document.requests_per_second))
        self._policy = f'"{route_name}";q={burst};w={window_s}'
        self._field = b'\r\nratelimit: "%b";r=%%d;t=%%d' % route_name.encode().replace(b"%", b"%%")

    def check(self, fields: RequestFields, client_key: bytes, now_s: float) -> bytes | Refusal:
        """The header field for the answer of a request that is admitted, each with its CRLF in front."""
        decision = self.bucket.decide(self._key_of(fields, client_key), now_s)
        if decision.admitted:
            self.admitted += 1
            return self._field % (decision.remaining, math.ceil(decision.reset_s))
        self.limited += 1
        return self._refusal(decision)

    def left(self, fields: RequestFields, client_key: bytes, now_s: float) -> int:
        """How many such requests would be admitted now; takes nothing."""
        return self.bucket.decide(self._key_of(fields, client_key), now_s, cost=0).remaining

    @property
    def summary(self) -> str:
        """Such as `100 requests a second, 200 at once, by client`."""
        rate, burst = self.document.requests_per_second, self.document.burst_requests
        return f"{rate:g} requests a second, {burst} at once, by {self.document.key}"

    def _refusal(self, decision: Decision) -> Refusal:
        wait_s = max(1, math.ceil(decision.retry_after_s))
        return Refusal(
            "rate-limited", 429, f"rate_limit of this route is {self.summary}", Retry.SAFE,
            (("ratelimit-policy", self._policy), ("ratelimit", f'"{self.route_name}";r=0;t={wait_s}')),
            retry_after_s=wait_s, extensions={"violated-policies": [self.route_name]},
        )  # fmt: skip


def compile_limit(route_name: str, document: RouteRateLimit | None) -> RouteLimit | None:
    return None if document is None else RouteLimit(route_name, document)


def compile_key(key: str) -> KeyOf:
    """Requests without the field, and those that have it more than once, which upstreams read differently, are
    counted together: neither is a way around the limit."""
    if key == "route":
        return lambda _fields, _client_key: _NO_KEY
    if key == "client":
        return lambda _fields, client_key: client_key
    name = re.escape(key.removeprefix(_HEADER).encode("ascii"))
    find = re.compile(rb"\r\n(?i:%b):[ \t]*([^\r]*)" % name).findall

    def key_of(fields: RequestFields, _client_key: bytes) -> bytes:
        found: list[bytes] = find(fields.block)
        if len(found) != 1:
            return _NO_KEY
        value = found[0].rstrip(b" \t")
        return value if len(value) <= KEY_BYTES_MAX else hashlib.blake2b(value, digest_size=32).digest()

    return key_of


def client_key(address: bytes) -> bytes:
    """Which addresses are counted as one client: of IPv6 those of one subscriber; IPv4 in any form is itself."""
    if b":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.decode("ascii").partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped).encode()
    return str(ipaddress.IPv6Network((parsed, IPV6_PREFIX_BITS), strict=False)).encode()


def shown_key(key: bytes, document: RouteRateLimit) -> str:
    """A bucket's key for people. The value of a header field may be a credential, and only its digest is shown."""
    if not key:
        return "all" if document.key == "route" else "without a key"
    if document.key.startswith(_HEADER):
        return "digest " + hashlib.blake2b(key, digest_size=6).hexdigest()
    return key.decode("latin-1")
