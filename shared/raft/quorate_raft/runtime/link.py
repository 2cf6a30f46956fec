"""One connection between two members: the handshake, then frames both ways.

A frame's payload is one byte for its kind and msgpack. What is written in one turn of the loop leaves together
(uvloop gathers it); what a slow or dead peer does not take is bounded, and over the bound it is refused.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import structlog
from quorate_core.errors import QuorateError
from quorate_core.frames import FrameDecoder, FrameTooLarge, encode_frame

from quorate_raft.runtime.handshake import (
    HANDSHAKE_BYTES_MAX,
    AcceptorHandshake,
    DialerHandshake,
    HandshakeRefused,
)

SILENCE_MAX_MS = 5_000
"""A peer that does not acknowledge what was sent for so long is gone (TCP_USER_TIMEOUT, RFC 5482)."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LinkLimits:
    frame_bytes_max: int
    queue_bytes_max: int
    handshake_timeout_s: float


class LinkLost(QuorateError):
    """The connection ended, or never was."""


class Link(asyncio.Protocol):
    """Give it to `create_connection` or `create_server`.

    `on_ready(link)` is called when the peer is proven; `on_payload(link, payload)` for every frame then;
    `on_lost(link)` once, at the end, if it was ready before.
    """

    def __init__(
        self,
        handshake: DialerHandshake | AcceptorHandshake,
        limits: LinkLimits,
        on_ready: "Callable[[Link], None]",
        on_payload: "Callable[[Link, bytes], None]",
        on_lost: "Callable[[Link], None]",
    ) -> None:
        self._handshake = handshake
        self._limits = limits
        self._on_ready = on_ready
        self._on_payload = on_payload
        self._on_lost = on_lost
        self._decoder = FrameDecoder(HANDSHAKE_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.is_ready = False
        self.end_reason: str | None = None
        """Why this side ended it; None while it lives, or when the other side did."""
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[str | None] = loop.create_future()
        """None when the peer is proven, else why it is not."""
        self.closed: asyncio.Future[None] = loop.create_future()

    @property
    def peer(self) -> str:
        return self._handshake.peer

    @property
    def is_stranger(self) -> bool:
        """Whether somebody connected, and has not proven who that is."""
        return not self.is_ready and isinstance(self._handshake, AcceptorHandshake)

    def send(self, payload: bytes) -> bool:
        """Queue a frame; False when the link is down or its queue is full. Raises FrameTooLarge."""
        transport = self._transport
        if transport is None or not self.is_ready or transport.is_closing():
            return False
        if transport.get_write_buffer_size() + len(payload) > self._limits.queue_bytes_max:
            return False
        transport.write(encode_frame(payload, self._limits.frame_bytes_max))
        return True

    def close(self) -> None:
        """End it when what is queued has left."""
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End it at once."""
        self.end_reason = self.end_reason or reason
        if self._transport is not None:
            self._transport.abort()

    def give_up(self) -> None:
        """No connection was made for it, or it is not wanted any more."""
        if self._transport is not None:
            self._transport.abort()
        else:
            self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # NB: uvloop's transports are no subclasses of asyncio's.
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        if self.end_reason is not None:
            transport.abort()
            return
        _tune(transport.get_extra_info("socket"))
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._limits.handshake_timeout_s, self.abort, "the handshake took too long")
        if isinstance(self._handshake, DialerHandshake):
            transport.write(encode_frame(self._handshake.opening()))

    def data_received(self, data: bytes) -> None:
        decoder = self._decoder
        try:
            for payload in decoder.feed(data):
                if self.is_ready:
                    self._on_payload(self, payload)
                else:
                    self._continue_handshake(payload)
                if self._transport is None or self._transport.is_closing():
                    return
        except FrameTooLarge as error:
            log.warning("peer_refused", peer=self.peer or self._address(), reason=error.detail)
            self.abort(error.detail)
            return
        if decoder is not self._decoder and decoder.pending_bytes:
            self.abort("frames came before the handshake was over")

    def connection_lost(self, error: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._transport = None
        if not self.opened.done():
            self.opened.set_result(self.end_reason or (str(error) if error else "the peer closed the connection"))
        was_ready, self.is_ready = self.is_ready, False
        if was_ready:
            self._on_lost(self)
        if not self.closed.done():
            self.closed.set_result(None)

    def _continue_handshake(self, payload: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        try:
            answer = self._handshake.receive(payload)
        except HandshakeRefused as refusal:
            log.warning("peer_refused", peer=self.peer or self._address(), reason=refusal.detail)
            self.end_reason = refusal.detail
            if refusal.answer:
                transport.write(encode_frame(refusal.answer))
            transport.close()
            return
        if answer:
            transport.write(encode_frame(answer))
        if self._handshake.is_complete:
            self._become_ready()

    def _become_ready(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self.is_ready = True
        # Neither side sends a frame before it knows that the handshake is over, so the small decoder holds nothing.
        self._decoder = FrameDecoder(self._limits.frame_bytes_max)
        if not self.opened.done():
            self.opened.set_result(None)
        self._on_ready(self)

    def _address(self) -> str:
        return str(self._transport.get_extra_info("peername")) if self._transport is not None else "unknown"


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MAX_MS)
