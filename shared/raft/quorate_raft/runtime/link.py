"""One connection between two members: the handshake, then frames both ways (`wire`).

What is written in one turn of the loop leaves together (uvloop gathers it). What a slow or dead peer does not take is
bounded: a sender either is refused over the bound (`send`), or waits until there is room (`writable`).

Theory of operation. *Opening*: the handshake goes on, and whoever dialled speaks first. *Ready*: `on_ready` was called
and has said, by `attach`, who takes frames from now on. *Ended*: `closed` is done, and whoever took frames was told.
Either side may end it at any time; nothing is retried here.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import structlog
from quorate_core.errors import InvalidRequest, QuorateError
from quorate_core.frames import FrameDecoder, encode_frame

from quorate_raft.core.messages import MemberName
from quorate_raft.runtime.handshake import (
    HANDSHAKE_BYTES_MAX,
    AcceptorHandshake,
    DialerHandshake,
    HandshakeRefused,
    Purpose,
)
from quorate_raft.runtime.wire import open_sealed, seal

SILENCE_MAX_MS = 2_000
"""A peer that does not acknowledge what was sent for so long is gone (TCP_USER_TIMEOUT, RFC 5482): some election
timeouts, for Raft has asked somebody else by then. When the network heals, a new connection is there sooner than the
next retransmission on the old one, whose interval doubles each time."""
STREAM_SILENCE_MAX_MS = 15_000
"""The same while a snapshot streams. A receiver that is slow to write closes its window, which counts as silence too;
so this is above the bound of the stream itself."""
KEEPALIVE_IDLE_S = 2
"""A connection on which nothing is sent, such as that of one follower to another, is looked after by probes."""
KEEPALIVE_INTERVAL_S = 1

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LinkLimits:
    frame_bytes_max: int
    queue_bytes_max: int
    handshake_timeout_s: float


class LinkLost(QuorateError):
    """The connection ended, or never was."""


class Link(asyncio.Protocol):
    """Give it to `create_connection` or `create_server`. `on_ready(link)` is called when the peer is proven."""

    def __init__(
        self,
        handshake: DialerHandshake | AcceptorHandshake,
        limits: LinkLimits,
        on_ready: "Callable[[Link], None]",
    ) -> None:
        self._handshake = handshake
        self._limits = limits
        self._on_ready = on_ready
        self._on_frame: Callable[[bytes, memoryview], None] = _refuse_frame
        self._on_lost: Callable[[], None] = _ignore_loss
        self._decoder = FrameDecoder(HANDSHAKE_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.is_ready = False
        self.end_reason: str | None = None
        """Why this side ended it; None while it lives, or when the other side did."""
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[QuorateError | None] = loop.create_future()
        """None when the peer is proven, else why it is not. NB: wait for it, and for `closed`, by `asyncio.wait`: to
        await a future is to cancel it when the waiting task is cancelled."""
        self.closed: asyncio.Future[None] = loop.create_future()

    @property
    def peer(self) -> MemberName:
        return self._handshake.peer

    @property
    def peer_address(self) -> str:
        """Where a peer that has dialled says that it is reached, proven when the link is ready; "" for others."""
        return self._handshake.address if isinstance(self._handshake, AcceptorHandshake) else ""

    @property
    def purpose(self) -> Purpose:
        return self._handshake.purpose

    @property
    def is_stranger(self) -> bool:
        """Whether somebody connected, and has not proven who that is."""
        return not self.is_ready and isinstance(self._handshake, AcceptorHandshake) and not self.closed.done()

    @property
    def held_bytes(self) -> int:
        """What is held for it: a frame that is not whole yet, and what is queued to leave."""
        queued = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return self._decoder.pending_bytes + queued

    def attach(
        self,
        on_frame: Callable[[bytes, memoryview], None],
        on_lost: Callable[[], None],
        limits: LinkLimits | None = None,
    ) -> None:
        """To be called within `on_ready`. `on_frame(kind, body)` is called for every frame from then on, and
        `on_lost()` once, at the end; what `on_frame` cannot make sense of it raises as InvalidRequest, which ends the
        link. `limits` replace those of before."""
        self._on_frame, self._on_lost = on_frame, on_lost
        if limits is not None:
            self._limits = limits

    def send(self, kind: bytes, body: bytes) -> bool:
        """Queue a frame; False when the link is down or its queue is full. Raises FrameTooLarge."""
        transport = self._transport
        if transport is None or not self.is_ready or transport.is_closing():
            return False
        if transport.get_write_buffer_size() + len(body) > self._limits.queue_bytes_max:
            return False
        transport.write(seal(kind, body, self._limits.frame_bytes_max))
        return True

    def limit_writes(self, bytes_max: int) -> None:
        """`writable` waits while more than this is queued."""
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high=bytes_max)

    async def writable(self) -> None:
        """Wait until the queue has room. Returns at once when the link has ended; `send` says so."""
        await self._has_room.wait()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """End it when what is queued has left."""
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End it at once. One that has no connection yet has ended when this returns: it may never get one, for loops
        ask for a protocol and then fail, as asyncio does when its server is closed between the two."""
        self.end_reason = self.end_reason or reason
        if self._transport is not None:
            self._transport.abort()
        elif not self.closed.done():
            self.connection_lost(None)

    def refuse(self, reason: str) -> None:
        """The peer does not keep to the protocol."""
        log.warning("peer_refused", peer=self.peer or self._address(), reason=reason)
        self.abort(reason)

    def give_up(self, reason: str) -> None:
        """No connection was made for it, or it is not wanted any more. It has ended when this returns: a connection
        that was cancelled while it was made may be closed by the loop without a word (uvloop does so)."""
        self.abort(reason)
        self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # NB: uvloop's transports are no subclasses of asyncio's.
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        if self.end_reason is not None:
            transport.abort()
            return
        _tune(transport.get_extra_info("socket"), self.purpose)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._limits.handshake_timeout_s, self.abort, "the handshake took too long")
        if isinstance(self._handshake, DialerHandshake):
            transport.write(encode_frame(self._handshake.opening()))

    def data_received(self, data: bytes) -> None:
        decoder = self._decoder
        try:
            for payload in decoder.feed(data):
                if decoder is not self._decoder:
                    break
                if self.is_ready:
                    self._on_frame(*open_sealed(payload))
                else:
                    self._continue_handshake(payload)
                if self._transport is None or self._transport.is_closing():
                    return
            else:
                if decoder is self._decoder or not decoder.pending_bytes:
                    return
            # The side that waits for the last step of the handshake has no business to be heard before it.
            self.refuse("frames came before the handshake was over")
        except InvalidRequest as error:
            self.refuse(error.detail)

    def pause_writing(self) -> None:
        self._has_room.clear()

    def resume_writing(self) -> None:
        self._has_room.set()

    def connection_lost(self, error: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._transport = None
        self.end_reason = self.end_reason or (str(error) if error else "the peer closed the connection")
        if not self.opened.done():
            self.opened.set_result(LinkLost(self.end_reason))
        was_ready, self.is_ready = self.is_ready, False
        self._has_room.set()
        if was_ready:
            self._on_lost()
        if not self.closed.done():
            self.closed.set_result(None)

    def _continue_handshake(self, payload: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        try:
            answer = self._handshake.receive(payload)
        except HandshakeRefused as refusal:
            if isinstance(self._handshake, AcceptorHandshake):  # who dials logs it once, and not at every attempt
                log.warning("peer_refused", peer=self.peer or self._address(), reason=refusal.detail)
            self.end_reason = refusal.detail
            self.opened.set_result(refusal)
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
        if not self.opened.done():
            self.opened.set_result(None)
        self._on_ready(self)
        self._decoder = FrameDecoder(self._limits.frame_bytes_max)

    def _address(self) -> str:
        return str(self._transport.get_extra_info("peername")) if self._transport is not None else "unknown"


def _refuse_frame(kind: bytes, _body: memoryview) -> None:
    raise InvalidRequest(f"nobody asked for a frame of kind {kind!r}")


def _ignore_loss() -> None:
    """Nobody took the link yet."""


def _tune(connection: socket.socket, purpose: Purpose) -> None:
    silence_max_ms = SILENCE_MAX_MS if purpose is Purpose.MESSAGES else STREAM_SILENCE_MAX_MS
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_USER_TIMEOUT", silence_max_ms),
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
    ):
        if hasattr(socket, name):  # they are not everywhere
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
