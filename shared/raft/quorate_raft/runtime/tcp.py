"""Peers over TCP. Each member dials every other: on that connection go its messages, its calls, and their answers.

Frame payloads: `m` and a message; `c` and a call; `a` and an answer. A message must be from the member that the link
was proven for, to this one. Links that end are dialled again, with exponential backoff and jitter, or at once when the
peer shows up by itself.
"""

import asyncio
import random
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from quorate_core.errors import (
    InvalidRequest,
    NotProposed,
    OutcomeUnknown,
    Problem,
    QuorateError,
    SettingsError,
    TooManyRequests,
    error_from_problem,
)
from quorate_core.frames import FRAME_BYTES_MAX, FrameTooLarge
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner

from quorate_raft.core.messages import MemberName, Message
from quorate_raft.core.state import RandomBelow
from quorate_raft.runtime import metrics
from quorate_raft.runtime.handshake import NONCE_BYTES, AcceptorHandshake, Credentials, DialerHandshake
from quorate_raft.runtime.link import Link, LinkLimits, LinkLost
from quorate_raft.runtime.ports import PeerReceiver

QUEUE_BYTES_MAX = 64 * 1024 * 1024
"""What is queued for a peer that does not read; more than the core keeps in flight for one follower."""
CONNECT_TIMEOUT_S = 3.0
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 1.0
STRANGERS_MAX = 32
"""Connections that are not proven yet."""
CALLS_SERVED_MAX = 1024
"""Calls of all peers that are under way here."""
CLOSE_TIMEOUT_S = 1.0

_MESSAGE, _CALL, _ANSWER = b"m", b"c", b"a"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """`peers`: where each other member is reached; this member itself may be among them. `secret` is the cluster's."""

    name: MemberName
    cluster_id: str
    secret: str
    peers: Mapping[MemberName, HostPort]
    queue_bytes_max: int = QUEUE_BYTES_MAX
    frame_bytes_max: int = FRAME_BYTES_MAX
    handshake_timeout_s: float = 3.0
    random_below: RandomBelow = random.SystemRandom().randrange


class _Call(msgspec.Struct, frozen=True, array_like=True):
    call_id: int
    method: str
    payload: bytes
    timeout_s: float


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    call_id: int
    payload: bytes
    problem: dict[str, Any] | None = None


_encode = msgspec.msgpack.Encoder(enc_hook=str).encode
_decode_message = msgspec.msgpack.Decoder(Message).decode
_decode_call = msgspec.msgpack.Decoder(_Call).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode


class _Peer:
    """One other member: the link that this member dialled, if it is up, and who waits for answers on it."""

    def __init__(self, name: MemberName, address: HostPort, own: MemberName) -> None:
        self.name = name
        self.address = address
        self.link: Link | None = None
        self.calls: dict[int, asyncio.Future[bytes | QuorateError]] = {}
        self.showed_up = asyncio.Event()
        self.is_up = asyncio.Event()
        self.dropped = metrics.MESSAGES_DROPPED.labels(own, name)


class TcpNetwork:
    """A `Network`. `listener` is bound and listening; it is closed with the network."""

    def __init__(self, config: TcpConfig, listener: socket.socket, tasks: TaskOwner) -> None:
        if not config.cluster_id or not config.secret:
            raise SettingsError("peers need a cluster id and a cluster secret")
        self._config = config
        self._listener = listener
        self._tasks = tasks
        self._credentials = Credentials(config.cluster_id, config.name, config.secret.encode())
        self._limits = LinkLimits(config.frame_bytes_max, config.queue_bytes_max, config.handshake_timeout_s)
        self._peers = {
            name: _Peer(name, address, config.name) for name, address in config.peers.items() if name != config.name
        }
        self._incoming: dict[MemberName, Link] = {}
        self._links: set[Link] = set()
        self._served: set[asyncio.Task[None]] = set()
        self._dialling: list[asyncio.Task[None]] = []
        self._receiver: PeerReceiver | None = None
        self._server: asyncio.Server | None = None
        self._next_call_id = 1

    async def start(self, receiver: PeerReceiver) -> None:
        self._receiver = receiver
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, sock=self._listener)
        self._dialling = [
            self._tasks.start(self._keep_dialled(peer), f"dial {peer.name}") for peer in self._peers.values()
        ]

    def send(self, message: Message) -> None:
        peer = self._peers.get(message.to)
        if peer is None:
            return
        try:
            if peer.link is None or not peer.link.send(_MESSAGE + _encode(message)):
                peer.dropped.inc()
        except FrameTooLarge as error:
            peer.dropped.inc()
            log.error("message_not_sent", peer=peer.name, reason=error.detail)

    async def call(self, to: MemberName, method: str, payload: bytes, timeout_s: float) -> bytes:
        peer = self._peers.get(to)
        if peer is None or peer.link is None:
            raise NotProposed(f"{to} cannot be reached from {self._config.name} now; try again")
        call_id = self._next_call_id
        self._next_call_id += 1
        if not peer.link.send(_CALL + _encode(_Call(call_id, method, payload, timeout_s))):
            raise NotProposed(f"the queue of {self._config.name} for {to} is full; try again")
        waiting: asyncio.Future[bytes | QuorateError] = asyncio.get_running_loop().create_future()
        peer.calls[call_id] = waiting
        try:
            async with asyncio.timeout(timeout_s):
                answer = await waiting
        except TimeoutError as error:
            raise OutcomeUnknown(f"{to} did not answer {method} within {timeout_s:.3g} s") from error
        finally:
            peer.calls.pop(call_id, None)
        if isinstance(answer, QuorateError):
            raise answer
        return answer

    def connected(self) -> Sequence[MemberName]:
        return sorted(peer.name for peer in self._peers.values() if peer.link is not None)

    async def wait_until_connected(self, peer: MemberName) -> None:
        await self._peers[peer].is_up.wait()

    async def close(self) -> None:
        """Let what is queued leave, within CLOSE_TIMEOUT_S, and end every link."""
        if self._server is not None:
            self._server.close()
        self._listener.close()
        for task in (*self._dialling, *self._served):
            task.cancel()
        await asyncio.gather(*self._dialling, *self._served, return_exceptions=True)
        for link in self._links:
            link.close()
        if self._links:
            await asyncio.wait([link.closed for link in self._links], timeout=CLOSE_TIMEOUT_S)
        for link in list(self._links):
            link.abort("closing")
        if self._links:
            await asyncio.wait([link.closed for link in self._links])

    async def _keep_dialled(self, peer: _Peer) -> None:
        failures, logged_reason = 0, ""
        while True:
            try:
                await self._dial(peer)
                failures, logged_reason = 0, ""
            except (OSError, LinkLost, TimeoutError) as error:
                failures += 1
                reason = str(error) or type(error).__name__
                if reason != logged_reason:
                    log.warning("peer_unreachable", member=self._config.name, peer=peer.name, reason=reason)
                    logged_reason = reason
            await self._pause(peer, failures)

    async def _dial(self, peer: _Peer) -> None:
        """Connect, and return when the link has ended. Raises when it did not come up."""
        handshake = DialerHandshake(self._credentials, peer.name, secrets.token_bytes(NONCE_BYTES))
        loop = asyncio.get_running_loop()
        link: Link | None = None

        def make_link() -> Link:
            nonlocal link
            link = Link(handshake, self._limits, self._on_dialled, self._on_answer, self._on_dialled_lost)
            self._keep(link)
            return link

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, link = await loop.create_connection(make_link, peer.address.host, peer.address.port)
        except BaseException:
            if link is not None:
                link.give_up()
            raise
        try:
            refusal = await link.opened
            if refusal is not None:
                raise LinkLost(refusal)
            log.info("peer_connected", member=self._config.name, peer=peer.name)
            await link.closed
            log.info("peer_disconnected", member=self._config.name, peer=peer.name)
        except asyncio.CancelledError:
            link.close()
            raise

    async def _pause(self, peer: _Peer, failures: int) -> None:
        longest_ms = int(1000 * min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(failures, 10)))
        pause_ms = longest_ms // 2 + self._config.random_below(longest_ms // 2 + 1)
        try:
            async with asyncio.timeout(pause_ms / 1000):
                await peer.showed_up.wait()
        except TimeoutError:
            pass  # the pause is over
        peer.showed_up.clear()

    def _accept(self) -> Link:
        handshake = AcceptorHandshake(self._credentials, self._peers.keys(), secrets.token_bytes(NONCE_BYTES))
        link = Link(handshake, self._limits, self._on_accepted, self._on_request, self._on_accepted_lost)
        strangers = sum(other.is_stranger for other in self._links)
        self._keep(link)
        if strangers >= STRANGERS_MAX:
            asyncio.get_running_loop().call_soon(link.abort, f"{strangers} connections wait to be proven")
        return link

    def _keep(self, link: Link) -> None:
        self._links.add(link)
        link.closed.add_done_callback(lambda _: self._links.discard(link))

    def _on_dialled(self, link: Link) -> None:
        peer = self._peers[link.peer]
        peer.link = link
        peer.is_up.set()

    def _on_dialled_lost(self, link: Link) -> None:
        peer = self._peers[link.peer]
        if peer.link is link:
            peer.link = None
            peer.is_up.clear()
        for waiting in peer.calls.values():
            if not waiting.done():
                waiting.set_result(OutcomeUnknown(f"the link to {peer.name} broke before it answered"))
        peer.calls.clear()

    def _on_accepted(self, link: Link) -> None:
        before = self._incoming.get(link.peer)
        self._incoming[link.peer] = link
        if before is not None:
            before.abort("the peer has connected anew")
        self._peers[link.peer].showed_up.set()

    def _on_accepted_lost(self, link: Link) -> None:
        if self._incoming.get(link.peer) is link:
            del self._incoming[link.peer]

    def _on_request(self, link: Link, payload: bytes) -> None:
        """A frame on a link that the peer dialled."""
        receiver = self._receiver
        if receiver is None:
            return
        kind, body = payload[:1], memoryview(payload)[1:]
        try:
            if kind == _MESSAGE:
                message = _decode_message(body)
                if message.sender != link.peer or message.to != self._config.name:
                    raise InvalidRequest(f"it speaks as {message.sender!r} to {message.to!r}")
                receiver.on_message(message)
            elif kind == _CALL:
                self._serve(link, receiver, _decode_call(body))
            else:
                raise InvalidRequest(f"frames of kind {kind!r} are unknown")
        except (InvalidRequest, msgspec.MsgspecError) as error:
            log.warning("peer_refused", member=self._config.name, peer=link.peer, reason=str(error))
            link.abort(str(error))

    def _on_answer(self, link: Link, payload: bytes) -> None:
        """A frame on a link that this member dialled."""
        try:
            if payload[:1] != _ANSWER:
                raise InvalidRequest(f"frames of kind {payload[:1]!r} do not come this way")
            answer = _decode_answer(memoryview(payload)[1:])
        except (InvalidRequest, msgspec.MsgspecError) as error:
            log.warning("peer_refused", member=self._config.name, peer=link.peer, reason=str(error))
            link.abort(str(error))
            return
        waiting = self._peers[link.peer].calls.get(answer.call_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.payload if answer.problem is None else error_from_problem(answer.problem))

    def _serve(self, link: Link, receiver: PeerReceiver, call: _Call) -> None:
        if len(self._served) >= CALLS_SERVED_MAX:
            _answer(link, call, TooManyRequests(f"{len(self._served)} calls are under way at {self._config.name}"))
            return
        task = self._tasks.start(_serve_call(link, receiver, call), f"call {call.method}")
        self._served.add(task)
        task.add_done_callback(self._served.discard)


async def _serve_call(link: Link, receiver: PeerReceiver, call: _Call) -> None:
    result: bytes | QuorateError
    try:
        async with asyncio.timeout(call.timeout_s):
            result = await receiver.on_call(link.peer, call.method, call.payload)
    except TimeoutError:
        return  # whoever asked has given up by now
    except QuorateError as error:
        result = error
    except Exception:
        log.exception("call_failed", peer=link.peer, method=call.method)
        result = QuorateError(f"{call.method} failed; the member's log says how")
    _answer(link, call, result)


def _answer(link: Link, call: _Call, result: bytes | QuorateError) -> None:
    if isinstance(result, QuorateError):
        answer = _Answer(call.call_id, b"", Problem.of(result).body())
    else:
        answer = _Answer(call.call_id, result)
    try:
        link.send(_ANSWER + _encode(answer))
    except FrameTooLarge as error:
        link.send(_ANSWER + _encode(_Answer(call.call_id, b"", Problem.of(error).body())))
