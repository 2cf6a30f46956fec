"""Peers over TCP on loopback for tests: networks with receivers that keep what comes, and connections made by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from quorate_core.frames import FRAME_BYTES_MAX, HEADER_BYTES, encode_frame
from quorate_core.serving import bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_raft.core.messages import Message
from quorate_raft.runtime.handshake import (
    NONCE_BYTES,
    AcceptorHandshake,
    Callers,
    Credentials,
    DialerHandshake,
    Purpose,
)
from quorate_raft.runtime.link import Link
from quorate_raft.runtime.ports import SnapshotOffer
from quorate_raft.runtime.tcp import TcpConfig, TcpNetwork
from quorate_raft.runtime.wire import open_sealed, seal
from support.raft_members import CLUSTER_ID, LOOPBACK, PATIENCE_S, SECRET

Handler = Callable[[str, bytes], Awaitable[bytes]]
SnapshotTaker = Callable[[SnapshotOffer, AsyncIterator[bytes]], Awaitable[None]]


@dataclass
class Receiver:
    """Keeps what comes, answers calls by `handler`, and takes snapshots over by `taker`."""

    messages: "asyncio.Queue[Message]" = field(default_factory=asyncio.Queue)
    removed_by: "asyncio.Queue[str]" = field(default_factory=asyncio.Queue)
    snapshots: list[tuple[str, SnapshotOffer, bytes]] = field(default_factory=list)
    handler: Handler | None = None
    taker: SnapshotTaker | None = None
    on_each: Callable[[Message], None] | None = None

    def on_message(self, message: Message) -> None:
        if self.on_each is not None:
            self.on_each(message)
        self.messages.put_nowait(message)

    async def on_call(self, sender: str, method: str, payload: bytes) -> bytes:
        if self.handler is None:
            return f"{method} of {sender}: ".encode() + payload
        return await self.handler(method, payload)

    async def on_snapshot(self, sender: str, offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
        if self.taker is not None:
            await self.taker(offer, chunks)
            return
        self.snapshots.append((sender, offer, b"".join([chunk async for chunk in chunks])))

    def on_removed(self, by: str) -> None:
        self.removed_by.put_nowait(by)

    async def next(self) -> Message:
        async with asyncio.timeout(PATIENCE_S):
            return await self.messages.get()


@dataclass
class Site:
    """One network and what it is made of."""

    network: TcpNetwork
    receiver: Receiver
    tasks: TaskOwner

    @property
    def address(self) -> HostPort:
        return bound_address(self.network._listener)

    @property
    def links(self) -> list[Link]:
        return list(self.network._links)

    @property
    def held_bytes(self) -> int:
        """What its links hold of frames that are not whole, and of what they have to send."""
        return sum(link.held_bytes for link in self.links)

    def link_to(self, peer: str) -> Link:
        link = self.network._peers[peer].link
        assert link is not None
        return link

    async def up(self, peer: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.network.wait_until_connected(peer)

    async def close(self) -> None:
        await self.network.close()
        await self.tasks.close()


class Town:
    """Addresses, and the networks that were started on them."""

    def __init__(self, names: str) -> None:
        self.listeners = {name: open_listener(LOOPBACK, name) for name in names}
        self.addresses = {name: bound_address(listener) for name, listener in self.listeners.items()}
        self.sites: dict[str, Site] = {}

    def make(self, name: str, **changes: Any) -> Site:
        """A network that is not started."""
        listener = self.listeners.pop(name, None) or open_listener(self.addresses[name], name)
        tasks = TaskOwner(name)
        config = TcpConfig(
            **{"name": name, "cluster_id": CLUSTER_ID, "secret": SECRET, "peers": self.addresses, **changes}
        )
        site = self.sites[name] = Site(TcpNetwork(config, listener, tasks), Receiver(), tasks)
        return site

    async def start(self, name: str, **changes: Any) -> Site:
        site = self.make(name, **changes)
        await site.network.start(site.receiver)
        return site

    async def stop(self, name: str) -> None:
        await self.sites.pop(name).close()

    async def close(self) -> None:
        for name in list(self.sites):
            await self.stop(name)
        for listener in self.listeners.values():
            listener.close()


@contextlib.asynccontextmanager
async def town(names: str) -> AsyncIterator[Town]:
    built = Town(names)
    try:
        yield built
    finally:
        await built.close()


async def turn() -> None:
    """Let the loop's other work go on, and the kernel's."""
    await asyncio.to_thread(int)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await turn()


def watch_loop() -> list[dict[str, Any]]:
    """What the running loop has to catch from now on, since nobody else did."""
    caught: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context))
    return caught


@dataclass
class Raw:
    """A connection by hand, for what no member would say."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, payload: bytes) -> None:
        """A frame of the handshake."""
        self.writer.write(encode_frame(payload))
        await self.writer.drain()

    async def tell(self, kind: bytes, body: bytes) -> None:
        """A frame after the handshake."""
        self.writer.write(seal(kind, body, FRAME_BYTES_MAX))
        await self.writer.drain()

    async def hear(self) -> bytes:
        """The next frame; empty when the other side has closed."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                size = int.from_bytes(await self.reader.readexactly(HEADER_BYTES), "big")
                return await self.reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError):
                return b""

    async def hear_sealed(self) -> tuple[bytes, bytes]:
        """The next frame's kind and body; empty when the other side has closed."""
        payload = await self.hear()
        if not payload:
            return b"", b""
        kind, body = open_sealed(payload)
        return kind, bytes(body)

    def close(self) -> None:
        self.writer.close()


@contextlib.asynccontextmanager
async def raw_connection(address: HostPort) -> AsyncIterator[Raw]:
    raw = Raw(*await asyncio.open_connection(address.host, address.port))
    try:
        yield raw
    finally:
        raw.close()
        with contextlib.suppress(ConnectionError):
            await raw.writer.wait_closed()


def credentials(name: str, secret: str = SECRET) -> Credentials:
    return Credentials(CLUSTER_ID, name, secret.encode())


async def shake_hands(raw: Raw, name: str, to: str, secret: str = SECRET, purpose: Purpose = Purpose.MESSAGES) -> None:
    handshake = DialerHandshake(credentials(name, secret), to, b"n" * NONCE_BYTES, purpose)
    await raw.say(handshake.opening())
    while not handshake.is_complete:
        answer = handshake.receive(await raw.hear())
        if answer:
            await raw.say(answer)


@contextlib.asynccontextmanager
async def proven_connection(site: Site, name: str, to: str, purpose: Purpose = Purpose.MESSAGES) -> AsyncIterator[Raw]:
    """As `name` has it, who holds the secret and may say anything."""
    async with raw_connection(site.address) as raw:
        await shake_hands(raw, name, to, purpose=purpose)
        yield raw


@contextlib.asynccontextmanager
async def fake_peer(
    built: Town, serve: Callable[[Raw], Awaitable[None]], purpose: Purpose = Purpose.MESSAGES
) -> AsyncIterator[None]:
    """Somebody at `b`'s address who holds the secret, and then does as `serve` says on connections of `purpose`."""

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw = Raw(reader, writer)
        handshake = AcceptorHandshake(credentials("b"), Callers({"a"}), b"m" * NONCE_BYTES)
        while not handshake.is_complete:
            await raw.say(handshake.receive(await raw.hear()))
        try:
            if handshake.purpose is purpose:
                await serve(raw)
            else:
                await raw.hear()
        finally:
            raw.close()

    server = await asyncio.start_server(on_connection, sock=built.listeners.pop("b"))
    try:
        yield
    finally:
        server.close()
