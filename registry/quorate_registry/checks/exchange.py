"""One connection of a check: bytes out, bytes in, never more than a bound, and gone at the end without waiting.

Of a peer's certificate nothing is wanted: a check carries no secret, and reads only whether the instance is well, whose
certificate is made for a service's name and seldom for the address that is asked here.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache

from quorate_registry.checks.dialing import connect
from quorate_registry.checks.outcome import Target, Unhealthy
from quorate_registry.checks.resolver import Resolver

RECEIVED_BYTES_MAX = 64 * 1024
"""Of one peer in one check."""
READ_BYTES = 4_096
TLS_SCHEMES = ("https",)


class Exchange:
    """`deadline` ends whatever is done with it, by TimeoutError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deadline: asyncio.Timeout) -> None:
        self.deadline = deadline
        self._reader = reader
        self._writer = writer
        self._received_bytes = 0

    def send(self, data: bytes) -> None:
        """A check sends a few hundred bytes in all, so nothing waits for the peer to take them."""
        if data:
            self._writer.write(data)

    async def receive(self) -> bytes:
        """Empty at the end of what the peer sends. Raises Unhealthy for more than RECEIVED_BYTES_MAX, and OSError."""
        data = await self._reader.read(READ_BYTES)
        self._received_bytes += len(data)
        if self._received_bytes > RECEIVED_BYTES_MAX:
            raise Unhealthy(f"it has sent over {RECEIVED_BYTES_MAX} bytes and no answer")
        return data


@asynccontextmanager
async def opened(
    resolver: Resolver, target: Target, timeout_s: float, alpn: tuple[str, ...] = ()
) -> AsyncIterator[Exchange]:
    """A connection to `target`, with TLS if its scheme says so, all of it within `timeout_s` seconds. Raises
    NotConnected, and once it is connected TimeoutError and OSError."""
    ends_at_s = asyncio.get_running_loop().time() + timeout_s
    connection = await connect(resolver, target.host, target.port, timeout_s)
    tls = _tls(alpn) if target.scheme in TLS_SCHEMES else None
    async with asyncio.timeout_at(ends_at_s) as deadline:
        try:
            reader, writer = await asyncio.open_connection(
                sock=connection, limit=READ_BYTES, ssl=tls, server_hostname=target.host if tls is not None else None
            )
        except BaseException:
            connection.close()
            raise
        try:
            yield Exchange(reader, writer, deadline)
        finally:
            # A peer that reads nothing, or goes on sending, is not waited for.
            writer.transport.abort()


@lru_cache
def _tls(alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context
