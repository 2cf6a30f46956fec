"""Whose requests are counted, hashed or kept together: from a request and its caller to a key of bytes."""

import hashlib
import ipaddress
import re
from collections.abc import Callable

from quorate_gateway.documents.limits import RouteRateLimit
from quorate_gateway.policies.caller import Caller
from quorate_gateway.proxy.framing import RequestFields

KEY_BYTES_MAX = 64
"""Of a value that the caller chose; a longer one is remembered by its digest."""
IPV6_PREFIX_BITS = 64
"""What one subscriber is given at least (RFC 6177): of its addresses it has as many as it likes."""
_NO_KEY = b""
_HEADER = "header:"
_JWT = "jwt:"

KeyOf = Callable[[RequestFields, Caller], bytes]
"""Empty when there is none."""


def compile_key(key: str) -> KeyOf:
    """`key` is as `documents.limits.check_key` accepts it.

    Requests without the field, and those that have it more than once, which upstreams read differently, have no key.
    """
    if key == "route":
        return lambda _fields, _caller: _NO_KEY
    if key == "client":
        return lambda _fields, caller: caller.client_key
    if key == "api_key":
        return lambda _fields, caller: caller.api_key_id
    if key.startswith(_JWT):
        claim = key.removeprefix(_JWT)
        return lambda _fields, caller: _claimed(caller.claims.get(claim))
    name = re.escape(key.removeprefix(_HEADER).encode("ascii"))
    find = re.compile(rb"\r\n(?i:%b):[ \t]*([^\r]*)" % name).findall

    def key_of(fields: RequestFields, _caller: Caller) -> bytes:
        found: list[bytes] = find(fields.block)
        return bounded(found[0].rstrip(b" \t")) if len(found) == 1 else _NO_KEY

    return key_of


def _claimed(value: object) -> bytes:
    """A claim that is a text or a number; others, such as lists, are nobody's. JSON can escape half a character."""
    if isinstance(value, str):
        return bounded(value.encode("utf-8", "surrogatepass"))
    return bounded(b"%d" % value) if isinstance(value, int) and not isinstance(value, bool) else _NO_KEY


def bounded(value: bytes) -> bytes:
    """`value`, or its digest when it is long."""
    return value if len(value) <= KEY_BYTES_MAX else hashlib.blake2b(value, digest_size=32).digest()


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
    """A limit's key for people. The value of a header field may be a credential, and that of a claim a person's name:
    only their digests are shown."""
    if not key:
        return "all" if document.key == "route" else "without a key"
    if document.key.startswith((_HEADER, _JWT)):
        return "digest " + hashlib.blake2b(key, digest_size=6).hexdigest()
    return key.decode("latin-1")
