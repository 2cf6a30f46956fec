"""A TCP connection to where an instance is said to be, or a sentence that says why there is none.

The name is resolved here, each address is judged, and the connection goes to the very address that was judged: a name
that is answered differently a moment later changes nothing. One address that is refused refuses the host, since a name
with an honest and a dishonest address is a way around the rule.
"""

import asyncio
import errno
import socket
from collections.abc import Sequence
from contextlib import suppress

from quorate_registry.checks.addresses import IpAddress, refused_address
from quorate_registry.checks.outcome import Undecided
from quorate_registry.checks.resolver import NameUnresolved, Resolver

OWN_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""These tell of this node, and nothing of who was to be asked."""


class NotConnected(Exception):
    """Says why. `is_refused`: every address of the host has answered that nobody listens there. `is_doubtful`: of some
    address nothing was heard, so that it may be the network between."""

    def __init__(self, reason: str, *, is_refused: bool = False, is_doubtful: bool = False) -> None:
        super().__init__(reason)
        self.is_refused = is_refused
        self.is_doubtful = is_doubtful


async def connect(resolver: Resolver, host: str, port: int, timeout_s: float) -> socket.socket:
    """A connected, non-blocking socket, which is the caller's to close. Raises NotConnected, after `timeout_s` seconds
    at the latest, and Undecided for want of this node's own resources."""
    loop = asyncio.get_running_loop()
    ends_at_s = loop.time() + timeout_s
    addresses = await _permitted(resolver, host, timeout_s)
    refusals = []
    failures = []
    for number, address in enumerate(addresses):
        # One that swallows packets leaves their share of the time to those after it.
        share_s = max(0.0, ends_at_s - loop.time()) / (len(addresses) - number)
        try:
            async with asyncio.timeout(share_s):
                return await _connect(address, port)
        except ConnectionRefusedError:
            refusals.append(f"nobody listens at {_endpoint(address, port)}")
        except TimeoutError:
            failures.append(f"no connection to {_endpoint(address, port)} within {share_s:.2g} s")
        except OSError as error:
            if _is_own(error, address):
                raise Undecided(f"this node can open no connection: {_cause(error)}") from error
            failures.append(f"no connection to {_endpoint(address, port)}: {_cause(error)}")
    raise NotConnected("; ".join(failures + refusals), is_refused=not failures, is_doubtful=bool(failures))


async def _permitted(resolver: Resolver, host: str, timeout_s: float) -> Sequence[IpAddress]:
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await resolver.resolve(host)
    except NameUnresolved as error:
        raise NotConnected(str(error), is_doubtful=True) from error
    except TimeoutError:
        raise NotConnected(f"{host} was not resolved within {timeout_s:g} s", is_doubtful=True) from None
    for address in addresses:
        reason = refused_address(address)
        if reason is not None:
            raise NotConnected(
                f"not asked: {reason}" if host == str(address) else f"not asked: {host} leads to {reason}"
            )
    return addresses


async def _connect(address: IpAddress, port: int) -> socket.socket:
    """Raises OSError."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (str(address), port))
        # A connection from a port to itself: on loopback, an outgoing one may be given the very port that it asks for.
        if connection.getsockname()[:2] == connection.getpeername()[:2]:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "it is this connection itself that answers")
    except BaseException:
        connection.close()
        raise
    with suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _endpoint(address: IpAddress, port: int) -> str:
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def _is_own(error: OSError, address: IpAddress) -> bool:
    """Of IPv4, EADDRNOTAVAIL says that all ports are taken; of IPv6, more often that this machine has none of it."""
    return error.errno in OWN_ERRORS or (error.errno == errno.EADDRNOTAVAIL and address.version == 4)


def _cause(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
