"""Which addresses a node may be sent to by what users register. Pure.

Whoever may register an instance chooses where a node connects to. Private and loopback addresses are what instances
have, so they are allowed; what is refused is where no instance is, and where a machine's own secrets are: link-local
addresses, among them the metadata services of clouds, the same services at their other fixed addresses, and
unspecified, multicast and broadcast ones. An IPv6 address that carries an IPv4 address is judged by that one too.

A host is judged twice: as it is written, when it is registered, and each address that its name has at the moment of a
connection, since a name may lead elsewhere by then.
"""

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

IpAddress = IPv4Address | IPv6Address

METADATA_ADDRESSES: Final = frozenset(
    map(
        ip_address,
        (
            "100.100.100.200",  # Alibaba Cloud
            "168.63.129.16",  # Azure's wire server
            "192.0.0.192",  # Oracle Cloud, formerly
            "fd00:ec2::254",  # AWS, by IPv6
            "fd20:ce::254",  # Google Cloud, by IPv6
        ),
    )
)
"""Those outside of the link-local ranges."""

_NAT64 = IPv6Network("64:ff9b::/96")
_THIS_NETWORK_OCTET = 0
_IPV4_COMPATIBLE = IPv6Network("::/96")


def refused_host(host: str) -> str | None:
    """Why no instance can be at `host` as it is written, or None. A name is judged by its addresses, later."""
    address = _written_address(host)
    return None if address is None else refused_address(address)


def refused_address(address: IpAddress) -> str | None:
    """Why a node does not connect to `address`, or None."""
    for each in (address, *_carried(address)):
        kind = _refused_kind(each)
        if kind is not None:
            return f"{address} is {kind}, which no instance may have"
    return None


def _refused_kind(address: IpAddress) -> str | None:
    if address in METADATA_ADDRESSES:
        return "the address of a cloud's metadata service"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_unspecified or (isinstance(address, IPv4Address) and address.packed[0] == _THIS_NETWORK_OCTET):
        return "an unspecified address"
    if address == IPv4Address("255.255.255.255"):
        return "the broadcast address"
    return None


def _carried(address: IpAddress) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that packets to it may be taken to (RFC 4291 2.5.5, RFC 3056, RFC 6052)."""
    if isinstance(address, IPv4Address):
        return ()
    last = IPv4Address(address.packed[-4:])
    in_low_bits = address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 1)
    carried = (address.ipv4_mapped, address.sixtofour, last if in_low_bits else None)
    return tuple(each for each in carried if each is not None)


def _written_address(host: str) -> IpAddress | None:
    """What `host` is an address of, as resolvers read it: `0xa9fea9fe` and `169.254.43518` are IPv4 addresses there."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None
