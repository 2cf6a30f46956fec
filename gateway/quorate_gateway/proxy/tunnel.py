"""WebSocket tunnels (RFC 6455): after the handshake, bytes both ways, which the gateway does not read.

Theory of operation. A handshake is a request like any other until its answer: it is matched, admitted, balanced and
counted, and anything but a 101 is passed on as an ordinary answer. A 101 that accepts this very handshake makes a
tunnel of the two connections; what the client sent behind its handshake then belongs to the tunnel, and if the upstream
refuses, to the next request. So both sides always agree on where HTTP ends (what an upstream that refuses, and a proxy
that believes otherwise, would make a way around the gateway).

A tunnel is

- *open*: what one side sends is written to the other; a side is not read while the other's buffer is full, so that at
  most one read and one buffer wait each way;
- *over*: one side has ended, or a time limit has. A side that ended in order leaves what it had sent to be flushed to
  the other, for at most FLUSH_TIMEOUT_S; after a reset, or a time limit, both are cut off.

What an exchange does with a 101: `switching_head`, which may raise; write that to the client; detach the upstream's
connection from its pool; call the client's `tunnelled` as its last act.
"""

import asyncio
import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Protocol

from quorate_core.errors import Retry

from quorate_gateway.proxy.framing import RequestHead, ResponseHead
from quorate_gateway.proxy.refusals import Refusal

FLUSH_TIMEOUT_S = 10.0
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, section 1.3."""
_KEY = re.compile(rb"\r\n(?i:sec-websocket-key):[ \t]*([^\r \t]*)")
_ANSWERED = re.compile(rb"\r\n((?i:sec-websocket-accept|upgrade|connection)):[ \t]*([^\r]*)")


class TunnelClient(Protocol):
    """What a tunnel needs of the client's connection."""

    transport: asyncio.Transport

    def tunnel_ended(self, *, cut_off: bool) -> None:
        """The upstream's side has ended, or a limit: flush and close, or with `cut_off` close at once."""
        ...


class TunnelUpstream(Protocol):
    """What a tunnel needs of the upstream's connection."""

    transport: asyncio.Transport


def switching_head(request: RequestHead, data: bytes, answer: ResponseHead) -> bytes:
    """The 101 for the client, whole, without its last CRLF CRLF. `data` begins with the upstream's head. Raises Refusal
    for a 101 that does not accept this handshake (RFC 6455, section 4.1)."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in _ANSWERED.findall(data[: answer.end - 2]):
        found.setdefault(name.lower(), []).append(value.strip(b" \t"))
    keys = _KEY.findall(request.fields.block)
    accepts, upgrades = found.get(b"sec-websocket-accept", []), found.get(b"upgrade", [])
    tokens = {token.strip(b" \t").lower() for value in found.get(b"connection", []) for token in value.split(b",")}
    if len(keys) != 1 or len(accepts) != 1 or not hmac.compare_digest(accepts[0], accept_of(keys[0])):
        raise _not_accepted("its Sec-WebSocket-Accept is not that of the key")
    if [upgrade.lower() for upgrade in upgrades] != [b"websocket"] or b"upgrade" not in tokens:
        raise _not_accepted("it does not say 'Upgrade: websocket' and 'Connection: upgrade'")
    return b"%b%b\r\nconnection: upgrade\r\nupgrade: websocket" % (answer.line, answer.forward)


def accept_of(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455, section 4.2.2)."""
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest)


def _not_accepted(why: str) -> Refusal:
    detail = f"the upstream's 101 is not passed on: {why}"
    return Refusal("bad-upstream-response", 502, detail, Retry.UNKNOWN)


class Tunnel:
    """Two connections, once their handshake is done.

    `idle_timeout_s` is with no byte either way; `ends_at_s` the monotonic time at which it ends in any case, or None.
    """

    __slots__ = ("_client", "_ends_at_s", "_flush_timer", "_heard_s", "_idle_timeout_s", "_monotonic_s", "_over",
                 "_upstream", "holds_client")  # fmt: skip

    def __init__(
        self,
        client: TunnelClient,
        upstream: TunnelUpstream,
        monotonic_s: Callable[[], float],
        idle_timeout_s: float,
        ends_at_s: float | None = None,
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._monotonic_s = monotonic_s
        self._idle_timeout_s = idle_timeout_s
        self._ends_at_s = ends_at_s
        self._heard_s = monotonic_s()
        self._over = False
        self.holds_client = False
        """Whether the client is not read, for the upstream's buffer is full."""
        self._flush_timer: asyncio.TimerHandle | None = None

    # From the client's connection.

    def client_sent(self, data: bytes) -> None:
        if not self._over:
            self._heard_s = self._monotonic_s()
            self._upstream.transport.write(data)

    def client_gone(self) -> None:
        """The client's connection has ended: what it had sent is flushed, and nothing more is heard."""
        if self._over:
            return
        self._over = True
        transport = self._upstream.transport
        if transport.get_write_buffer_size():
            # NB: this side is in no pool and in no sweep any more.
            self._flush_timer = asyncio.get_running_loop().call_later(FLUSH_TIMEOUT_S, transport.abort)
        transport.close()

    def client_paused(self, paused: bool) -> None:
        _set_reading(self._upstream.transport, not paused)

    def expire(self, now_s: float) -> None:
        """End it when it has been silent for too long, or open for as long as it may be."""
        is_due = self._ends_at_s is not None and now_s >= self._ends_at_s
        if not self._over and (is_due or now_s - self._heard_s >= self._idle_timeout_s):
            self._over = True
            self._upstream.transport.abort()
            self._client.tunnel_ended(cut_off=True)

    # From the upstream's connection.

    def received(self, data: bytes) -> None:
        if not self._over:
            self._heard_s = self._monotonic_s()
            self._client.transport.write(data)

    def upstream_lost(self, error: Exception | None) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        if not self._over:
            self._over = True
            self._client.tunnel_ended(cut_off=error is not None)

    def upstream_paused(self, paused: bool) -> None:
        if not self._over:
            self.holds_client = paused
            _set_reading(self._client.transport, not paused)


def _set_reading(transport: asyncio.Transport, wanted: bool) -> None:
    if transport.is_closing():
        return
    if wanted:
        transport.resume_reading()
    else:
        transport.pause_reading()
