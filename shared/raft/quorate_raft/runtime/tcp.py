"""Peers over TCP. Each member dials every other: on that connection go its messages, its calls, and their answers. A
snapshot goes on a connection of its own.

Theory of operation. Who the others are is said by `set_members`, as often as it changes; until a configuration is
known, they are those of the settings. For each there is a `_Peer`, and a task that keeps a link to it dialled: when the
link ends it is dialled again, with exponential backoff and jitter, or at once when the peer shows up by itself. Whoever
connects proves who it is (`handshake`): a member is let in, one that was removed is told so, and who is not known here
is a guest for as long as it stays connected: it may lead a configuration that this member has still to hear of, so it
is dialled as well. A peer has at most one connection of each purpose here: a newer one replaces the older, which is one
of a process that has died, or of a network that was cut. When a peer is gone from the configuration, its task, its
links and its counters go too.

A message must be from the member that the link was proven for, to this one (`wire`). A peer that does not keep to the
protocol loses that connection, and no other peer notices.
"""

import asyncio
import contextlib
import random
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from quorate_core.errors import InvalidRequest, InvariantViolation, QuorateError, SettingsError, Unavailable
from quorate_core.frames import FrameTooLarge
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner

from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import MemberName, Message
from quorate_raft.core.state import RandomBelow
from quorate_raft.runtime import metrics
from quorate_raft.runtime.calls import OutgoingCalls, ServedCalls
from quorate_raft.runtime.handshake import (
    NONCE_BYTES,
    AcceptorHandshake,
    Callers,
    Credentials,
    DialerHandshake,
    Purpose,
    ToldRemoved,
)
from quorate_raft.runtime.link import Link, LinkLimits, LinkLost
from quorate_raft.runtime.ports import PeerReceiver, ReadPart, SnapshotOffer
from quorate_raft.runtime.snapshot_streams import (
    STREAM_TIMES,
    IncomingSnapshot,
    SnapshotDesk,
    SnapshotSender,
    StreamTimes,
    stream_limits,
)
from quorate_raft.runtime.wire import CALL, MESSAGE, decode_call, decode_message, encode

QUEUE_BYTES_MAX = 64 * 1024 * 1024
"""What is queued for a peer that does not read; more than the core keeps in flight for one follower."""
PEER_FRAME_BYTES_MAX = 32 * 1024 * 1024
"""Some of the largest entries. What a member can make another hold by one frame, decoded, is some twenty times that."""
CONNECT_TIMEOUT_S = 2.0
"""The kernel sends a second SYN after one second, and the third after three (RFC 6298): a new attempt is sooner."""
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 0.5
"""With the timeout above: when a network heals, its links are back after less than two seconds."""
STRANGERS_MAX = 32
"""Connections that are not proven yet."""
GUESTS_MAX = 18
"""As many as the largest cluster has members, all of whom may be new to one that was away for long."""
CLOSE_TIMEOUT_S = 1.0
FORGET_GRACE_S = 1.0
"""A member that asked for its own removal gets the answer before it is hung up on."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """`peers`: where members are reached, this one maybe among them. An address here wins over the one that the
    membership has, so that an operator can move a member. `secret` is the cluster's."""

    name: MemberName
    cluster_id: str
    secret: str
    peers: Mapping[MemberName, HostPort]
    queue_bytes_max: int = QUEUE_BYTES_MAX
    frame_bytes_max: int = PEER_FRAME_BYTES_MAX
    handshake_timeout_s: float = 3.0
    snapshot_times: StreamTimes = STREAM_TIMES
    random_below: RandomBelow = random.SystemRandom().randrange


class _Peer:
    """One other member. `address` is None when nobody can tell where it is: it may call, and is not dialled."""

    def __init__(
        self, own: MemberName, name: MemberName, address: HostPort | None, tasks: TaskOwner, *, is_guest: bool = False
    ) -> None:
        self.name = name
        self.address = address
        self.is_guest = is_guest
        """Not known here: it goes when its connections do, unless a configuration has named it by then."""
        self.link: Link | None = None
        """The link that this member dialled, if it is up."""
        self.incoming: dict[Purpose, Link] = {}
        """Those that the peer dialled."""
        self.streams: set[Link] = set()
        """Snapshots on their way to it."""
        self.calls = OutgoingCalls(own, name)
        self.served = ServedCalls(own, tasks)
        self.dialling: asyncio.Task[None] | None = None
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
        self._stream_limits = stream_limits(config.handshake_timeout_s)
        self._peers: dict[MemberName, _Peer] = {}
        self._callers = Callers(members=self._peers.keys(), guests_left=GUESTS_MAX)
        self._own_address = str(config.peers.get(config.name, ""))
        self._links: dict[Link, None] = {}
        """All there are, oldest first."""
        self._receiver: PeerReceiver | None = None
        self._desk: SnapshotDesk | None = None
        self._server: asyncio.Server | None = None
        self._is_closing = False
        self._update_peers(config.peers)

    async def start(self, receiver: PeerReceiver) -> None:
        self._receiver = receiver
        self._desk = SnapshotDesk(self._config.name, receiver, self._tasks, self._config.snapshot_times)
        self._server = await asyncio.get_running_loop().create_server(self._accept, sock=self._listener)
        for peer in self._peers.values():
            self._keep_dialled(peer)

    def set_members(self, membership: Membership) -> None:
        if self._is_closing:
            return
        self._callers.removed = frozenset(membership.removed)
        if self._config.name not in self._config.peers:
            self._own_address = membership.address_of(self._config.name) or ""
        if membership.is_empty:
            self._update_peers(self._config.peers)
        else:
            self._update_peers(
                {member.name: self._address(member.name, member.address) for member in membership.members}
            )

    def send(self, message: Message) -> None:
        peer = self._peers.get(message.to)
        if peer is None:
            return
        try:
            if peer.link is None or not peer.link.send(MESSAGE, encode(message)):
                peer.dropped.inc()
        except FrameTooLarge as error:
            peer.dropped.inc()
            log.error("message_not_sent", peer=peer.name, reason=error.detail)

    async def call(self, to: MemberName, method: str, payload: bytes, timeout_s: float) -> bytes:
        peer = self._peers.get(to)
        calls = OutgoingCalls(self._config.name, to) if peer is None else peer.calls
        return await calls.call(None if peer is None else peer.link, method, payload, timeout_s)

    async def send_snapshot(self, to: MemberName, offer: SnapshotOffer, read: ReadPart) -> None:
        peer = self._peers.get(to)
        if peer is None or peer.address is None or self._is_closing:
            raise Unavailable(f"{self._config.name} does not know where {to} is")
        sender: SnapshotSender | None = None

        def on_ready(link: Link) -> None:
            nonlocal sender
            sender = SnapshotSender(link, self._config.snapshot_times)

        link = await self._connect(peer, peer.address, Purpose.SNAPSHOT, on_ready)
        if sender is None:
            raise InvariantViolation(f"the connection for a snapshot to {to} opened without being ready")
        peer.streams.add(link)
        try:
            await sender.run(offer, read)
        finally:
            peer.streams.discard(link)

    def connected(self) -> Sequence[MemberName]:
        return sorted(peer.name for peer in self._peers.values() if peer.link is not None)

    async def wait_until_connected(self, peer: MemberName) -> None:
        await self._peers[peer].is_up.wait()

    async def close(self) -> None:
        """Let what is queued leave, within CLOSE_TIMEOUT_S, and end every link."""
        self._is_closing = True
        if self._server is not None:
            self._server.close()
        self._listener.close()
        ending = [] if self._desk is None else self._desk.cancel()
        for peer in self._peers.values():
            ending += peer.served.cancel()
            if peer.dialling is not None:
                peer.dialling.cancel()
                ending.append(peer.dialling)
        await asyncio.gather(*ending, return_exceptions=True)
        for link in list(self._links):
            link.close() if link.purpose is Purpose.MESSAGES else link.abort("closing")
        if self._links:
            await asyncio.wait([link.closed for link in self._links], timeout=CLOSE_TIMEOUT_S)
        for link in list(self._links):
            link.abort("closing")
        if self._links:
            await asyncio.wait([link.closed for link in self._links])

    def _address(self, name: MemberName, written: str) -> HostPort | None:
        if name in self._config.peers:
            return self._config.peers[name]
        try:
            return HostPort.parse(written)
        except ValueError as error:
            log.error("peer_address_unusable", member=self._config.name, peer=name, reason=str(error))
            return None

    def _update_peers(self, addresses: Mapping[MemberName, HostPort | None]) -> None:
        own = self._config.name
        for peer in list(self._peers.values()):
            if peer.name in addresses:
                if addresses[peer.name] == peer.address:
                    peer.is_guest = False
                else:
                    self._forget(peer)
            elif not peer.is_guest or peer.name in self._callers.removed:
                self._forget(peer)
        for name in sorted(addresses.keys() - self._peers.keys() - {own}):
            self._add(_Peer(own, name, addresses[name], self._tasks))
        self._count_guests()

    def _add(self, peer: _Peer) -> None:
        self._peers[peer.name] = peer
        if self._server is not None:
            log.info(
                "peer_added", member=self._config.name, peer=peer.name, address=str(peer.address), guest=peer.is_guest
            )
            self._keep_dialled(peer)

    def _welcome_guest(self, link: Link) -> _Peer:
        address = self._address(link.peer, link.peer_address) if link.peer_address else None
        guest = _Peer(self._config.name, link.peer, address, self._tasks, is_guest=True)
        self._add(guest)
        self._count_guests()
        return guest

    def _count_guests(self) -> None:
        self._callers.guests_left = GUESTS_MAX - sum(peer.is_guest for peer in self._peers.values())

    def _forget(self, peer: _Peer) -> None:
        """Hang up on who is gone from the configuration, or has moved. What is queued for it may still leave."""
        log.info("peer_forgotten", member=self._config.name, peer=peer.name)
        del self._peers[peer.name]
        if peer.dialling is not None:
            peer.dialling.cancel()
        for link in (*peer.incoming.values(), *peer.streams):
            if link.purpose is Purpose.MESSAGES and peer.served.is_busy:
                self._tasks.start(self._hang_up_after_answers(peer, link), f"last answers to {peer.name}")
            else:
                link.abort("the peer is gone from the configuration")
        with contextlib.suppress(KeyError):  # two members of one name in one process share a counter
            metrics.MESSAGES_DROPPED.remove(self._config.name, peer.name)

    async def _hang_up_after_answers(self, peer: _Peer, link: Link) -> None:
        try:
            await peer.served.wait(FORGET_GRACE_S)
        finally:
            link.close()

    def _keep_dialled(self, peer: _Peer) -> None:
        if peer.address is not None:
            peer.dialling = self._tasks.start(self._dial_again_and_again(peer, peer.address), f"dial {peer.name}")

    async def _dial_again_and_again(self, peer: _Peer, address: HostPort) -> None:
        own = self._config.name
        failures, logged_reason = 0, ""
        while True:
            try:
                link = await self._connect(peer, address, Purpose.MESSAGES, partial(self._on_dialled, peer))
                lived_s = await self._outlive(link)
                # A link that is hardly up before it ends, over and over, is no better than one that does not come up.
                failures = 0 if lived_s > BACKOFF_MAX_S else failures + 1
                logged_reason = ""
            except QuorateError as error:
                failures += 1
                if error.detail != logged_reason:
                    log.warning("peer_unreachable", member=own, peer=peer.name, reason=error.detail)
                    logged_reason = error.detail
                if isinstance(error, ToldRemoved) and self._receiver is not None:
                    self._receiver.on_removed(peer.name)
            await self._pause(peer, failures)

    async def _outlive(self, link: Link) -> float:
        """Wait until the link has ended; returns for how many seconds it was up."""
        own, loop = self._config.name, asyncio.get_running_loop()
        log.info("peer_connected", member=own, peer=link.peer)
        began_s = loop.time()
        try:
            await asyncio.wait({link.closed})
        finally:
            link.close()
        log.info("peer_disconnected", member=own, peer=link.peer, reason=link.end_reason)
        return loop.time() - began_s

    async def _connect(
        self, peer: _Peer, address: HostPort, purpose: Purpose, on_ready: Callable[[Link], None]
    ) -> Link:
        """A link whose peer is proven. Raises LinkLost or HandshakeRefused."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        handshake = DialerHandshake(self._credentials, peer.name, nonce, purpose, self._own_address)
        limits = self._limits if purpose is Purpose.MESSAGES else self._stream_limits
        link = Link(handshake, limits, on_ready)
        self._keep(link)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(lambda: link, address.host, address.port)
            await asyncio.wait({link.opened})
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one of a host
            link.give_up("no connection was made")
            raise LinkLost(f"{address}: {str(error) or 'no connection in time'}") from error
        except BaseException:
            link.give_up("it is not wanted any more")
            raise
        failure = link.opened.result()
        if failure is not None:
            raise failure
        return link

    async def _pause(self, peer: _Peer, failures: int) -> None:
        longest_ms = int(1000 * min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(failures, 10)))
        pause_ms = longest_ms // 2 + self._config.random_below(longest_ms // 2 + 1)
        try:
            async with asyncio.timeout(pause_ms / 1000):
                await peer.showed_up.wait()
        except TimeoutError:
            pass  # the pause is over
        peer.showed_up.clear()

    def _on_dialled(self, peer: _Peer, link: Link) -> None:
        link.attach(peer.calls.on_frame, partial(self._on_dialled_lost, peer))
        peer.link = link
        peer.is_up.set()

    def _on_dialled_lost(self, peer: _Peer) -> None:
        peer.link = None
        peer.is_up.clear()
        peer.calls.on_link_lost()

    def _accept(self) -> Link:
        strangers = [link for link in self._links if link.is_stranger]
        if len(strangers) >= STRANGERS_MAX:
            # The oldest: a member needs some milliseconds to prove itself, and whoever says nothing is soon the oldest.
            strangers[0].abort(f"{len(strangers)} connections wait to be proven")
        handshake = AcceptorHandshake(self._credentials, self._callers, secrets.token_bytes(NONCE_BYTES))
        link = Link(handshake, self._limits, self._on_accepted)
        self._keep(link)
        if self._is_closing:
            link.abort("closing")
        return link

    def _keep(self, link: Link) -> None:
        self._links[link] = None
        link.closed.add_done_callback(lambda _: self._links.pop(link, None))

    def _on_accepted(self, link: Link) -> None:
        desk = self._desk
        if desk is None:
            raise InvariantViolation(f"{link.peer!r} was let in, and {self._config.name} has not started")
        peer = self._peers.get(link.peer) or self._welcome_guest(link)
        before = peer.incoming.get(link.purpose)
        peer.incoming[link.purpose] = link
        if before is not None:
            before.abort("the peer has connected anew")
        on_lost = partial(self._on_accepted_lost, peer, link)
        if link.purpose is Purpose.SNAPSHOT:
            IncomingSnapshot(link, desk, on_lost)
        else:
            link.attach(partial(self._on_request, peer, link, desk.receiver), on_lost)
            peer.showed_up.set()

    def _on_accepted_lost(self, peer: _Peer, link: Link) -> None:
        if peer.incoming.get(link.purpose) is link:
            del peer.incoming[link.purpose]
            if peer.is_guest and not peer.incoming and self._peers.get(peer.name) is peer and not self._is_closing:
                self._forget(peer)
                self._count_guests()

    def _on_request(self, peer: _Peer, link: Link, receiver: PeerReceiver, kind: bytes, body: memoryview) -> None:
        """A frame on a link that the peer dialled. Raises InvalidRequest."""
        if self._peers.get(peer.name) is not peer:
            return  # it only waits for its last answers
        if kind == MESSAGE:
            receiver.on_message(decode_message(body, peer.name, self._config.name))
        elif kind == CALL:
            peer.served.serve(link, receiver.on_call, decode_call(body))
        else:
            raise InvalidRequest(f"frames of kind {kind!r} are unknown")
