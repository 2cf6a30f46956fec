"""Who the client is, and what the service is told of it: Forwarded (RFC 7239), X-Forwarded-* and Via.

What a client says of itself is never believed: the fields that it sends are dropped, and made anew from the address of
its connection. A peer in one of the trusted networks is a proxy in front of this gateway, and its word counts. Then the
client is the right-most address of the chain that is not itself of a trusted proxy: whatever stands left of that was
said by the client. The chain is passed on with the peer's address appended.

Of the two chains a proxy may speak one and pass the other through as the client wrote it. So when both are there and
name different clients, neither counts, and the peer itself is the client. The same goes for a chain that does not say
an address where one is needed: the last proxy that is known is the client.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from quorate_gateway.proxy.framing import HOST_PATTERN, RequestFields

HOPS_MAX = 32
"""Proxies in front of the gateway that a chain is followed through."""
ADDRESSES_REMEMBERED = 4_096
PSEUDONYM = b"quorate"
"""In Via (RFC 9110, section 7.6.3)."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb"\"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+\""
_PAIR = re.compile(rb"(%b)=(%b|%b)" % (_TOKEN, _TOKEN, _QUOTED))
_ELEMENT = re.compile(
    rb"[ \t]*(%b=(?:%b|%b)(?:[ \t]*;[ \t]*%b=(?:%b|%b))*+)[ \t]*(?:,|\Z)" % ((_TOKEN, _TOKEN, _QUOTED) * 2)
)
_PORT = re.compile(rb"(\[[^\]]*\]|[^:]*)(?::[0-9]{1,5})?")
_FORWARDED_FOR = re.compile(rb"\r\n[Xx](?i:-forwarded-for):[ \t]*([^\r]*)")
_FORWARDED = re.compile(rb"\r\n[Ff](?i:orwarded):[ \t]*([^\r]*)")
_PROTO = re.compile(rb"\r\n[Xx](?i:-forwarded-proto):[ \t]*([^\r]*)")
_HOST = re.compile(rb"\r\n[Xx](?i:-forwarded-host):[ \t]*([^\r]*)")
_SCHEMES = frozenset({b"http", b"https"})


class Described(NamedTuple):
    """`client` is its address as text; `fields` say so to the service, each with its CRLF in front."""

    client: bytes
    fields: bytes


class _Hop(NamedTuple):
    node: bytes
    """As it came; empty when the element has none."""
    address: Address | None
    proto: bytes = b""
    host: bytes = b""


class Forwarding:
    """Describes clients. `trusted` are the networks of proxies in front of the gateway, such as `10.0.0.0/8`. Raises
    ValueError for what is no network."""

    __slots__ = ("networks", "trusts")

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        self.networks = networks = tuple(ipaddress.ip_network(text) for text in trusted)
        self.trusts: Callable[[bytes], bool] = lru_cache(ADDRESSES_REMEMBERED)(
            lambda address: bool(networks) and _is_in(_read_address(address), networks)
        )

    def describe_direct(self, peer: bytes, fields: RequestFields, *, is_secure: bool, minor: int = 1) -> Described:
        """A client whose connection this is."""
        return Described(peer, _encode(b"", b"", peer, fields.host, b"https" if is_secure else b"http", minor))

    def describe(self, peer: bytes, fields: RequestFields, *, is_secure: bool, minor: int = 1) -> Described:
        """Whoever is behind `peer`, which is trusted."""
        block, scheme = fields.block, b"https" if is_secure else b"http"
        listed = b", ".join(_FORWARDED_FOR.findall(block))
        forwarded = b", ".join(_FORWARDED.findall(block))
        by_list = self._client(_read_list(listed)) if listed else None
        by_elements = self._client(_read_elements(forwarded)) if forwarded else None
        if by_list and by_elements and by_list.address != by_elements.address:
            return self.describe_direct(peer, fields, is_secure=is_secure, minor=minor)
        client = by_elements or by_list
        if client is None:  # the peer speaks for itself, or says nothing that can be read
            listed = forwarded = b""
            client = _Hop(peer, _read_address(peer))
        proto = _only(_PROTO.findall(block)) or client.proto
        host = _only(_HOST.findall(block)) or client.host
        if not listed:
            listed = b", ".join(_readable(_read_elements(forwarded)))
        elif not forwarded:
            forwarded = b", ".join(b"for=" + _node(node) for node in _readable(_read_list(listed)))
        return Described(
            str(client.address).encode() if client.address is not None else peer,
            _encode(
                listed, forwarded, peer, host if HOST_PATTERN.fullmatch(host) else fields.host,
                proto if proto in _SCHEMES else scheme, minor,
            ),
        )  # fmt: skip

    def _client(self, hops: Sequence[_Hop]) -> _Hop | None:
        """The right-most that is not trusted; the left-most when all are; None when not even the last is known."""
        found: _Hop | None = None
        for hop in reversed(hops[-HOPS_MAX:]):
            if hop.address is None:
                return found
            found = hop
            if not _is_in(hop.address, self.networks):
                return found
        return found


def _readable(hops: Sequence[_Hop]) -> list[bytes]:
    """The nodes from the last one that cannot be read on: what stands in the one chain may mean more in the other."""
    nodes: list[bytes] = []
    for hop in reversed(hops):
        if hop.address is None:
            break
        nodes.append(hop.node)
    return nodes[::-1]


def _encode(listed: bytes, forwarded: bytes, peer: bytes, host: bytes, scheme: bytes, minor: int) -> bytes:
    before, elements = listed + b", " if listed else b"", forwarded + b", " if forwarded else b""
    if not host:
        return b"\r\nx-forwarded-for: %b%b\r\nx-forwarded-proto: %b\r\nforwarded: %bfor=%b;proto=%b\r\nvia: 1.%d %b" % (
            before,
            peer,
            scheme,
            elements,
            _node(peer),
            scheme,
            minor,
            PSEUDONYM,
        )
    return (
        b"\r\nx-forwarded-for: %b%b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: %b"
        b'\r\nforwarded: %bfor=%b;host="%b";proto=%b\r\nvia: 1.%d %b'
        % (before, peer, scheme, host, elements, _node(peer), host, scheme, minor, PSEUDONYM)
    )


def _node(address: bytes) -> bytes:
    """As RFC 7239, section 6, writes one."""
    if b":" not in address:
        return address
    return b'"%b"' % address if address.startswith(b"[") else b'"[%b]"' % address


def _read_list(listed: bytes) -> list[_Hop]:
    return [_Hop(node, _read_address(node)) for text in listed.split(b",") if (node := text.strip(b" \t"))]


def _read_elements(forwarded: bytes) -> list[_Hop]:
    """The elements of a Forwarded field; none when it is not of its form."""
    hops: list[_Hop] = []
    at = 0
    while at < len(forwarded):
        element = _ELEMENT.match(forwarded, at)
        if element is None:
            return []
        pairs = {name.lower(): _unquoted(value) for name, value in _PAIR.findall(element[1])}
        node = pairs.get(b"for", b"")
        hops.append(_Hop(node, _read_address(node), pairs.get(b"proto", b"").lower(), pairs.get(b"host", b"")))
        at = element.end()
    return hops


def _unquoted(value: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", value[1:-1]) if value.startswith(b'"') else value


def _read_address(node: bytes) -> Address | None:
    """Of `192.0.2.1`, `192.0.2.1:8080`, `2001:db8::1`, `[2001:db8::1]` and `[2001:db8::1]:8080`."""
    if node.startswith(b"[") or node.count(b":") == 1:
        found = _PORT.fullmatch(node)
        node = found[1].strip(b"[]") if found is not None else b""
    try:
        address = ipaddress.ip_address(node.decode("ascii").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_in(address: Address | None, networks: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in networks)


def _only(values: Sequence[bytes]) -> bytes:
    return values[0].strip(b" \t").lower() if len(values) == 1 else b""
