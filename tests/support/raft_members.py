"""Real members for tests: files in a temporary folder, TCP on loopback, and the faults that a test injects."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from quorate_core.clock import Clock, SystemClock
from quorate_core.errors import Conflict, NotProposed, Unavailable
from quorate_core.serving import bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import Entry, EntryKind, MemberName, Message
from quorate_raft.runtime.disk import DiskFailed, FileDisk
from quorate_raft.runtime.driver import DriverConfig, RaftDriver
from quorate_raft.runtime.ports import DiskFile, PeerReceiver, ReadPart, SnapshotOffer
from quorate_raft.runtime.tcp import TcpConfig, TcpNetwork

CLUSTER_ID = "test-cluster"
SECRET = "a secret of tests, with enough characters in it"
LOOPBACK = HostPort.parse("127.0.0.1:0")
PATIENCE_S = 20.0
"""Bounds every wait for an event that is to come."""


class _SavedWords(msgspec.Struct):
    index: int
    term: int
    words: list[bytes]


class WordList:
    """A state machine: a list of words. Its result is how many there are; a word that starts with `!` is refused."""

    def __init__(self) -> None:
        self.words: list[bytes] = []
        self.applied_index = self.applied_term = 0
        self.changed = asyncio.Event()
        self.failure: Exception | None = None

    def apply(self, entries: Sequence[Entry]) -> Sequence[Any]:
        if self.failure is not None:
            raise self.failure
        results = [self._apply(entry) for entry in entries]
        self.applied_index, self.applied_term = entries[-1].index, entries[-1].term
        self.changed.set()
        return results

    def _apply(self, entry: Entry) -> Any:
        if entry.kind is not EntryKind.NORMAL:
            return None
        if entry.data.startswith(b"!"):
            return Conflict(f"{entry.data!r} is refused")
        self.words.append(entry.data)
        return len(self.words)

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.words))

    def save_snapshot(self, path: Path) -> tuple[int, int]:
        saved = _SavedWords(self.applied_index, self.applied_term, list(self.words))
        path.write_bytes(msgspec.msgpack.encode(saved))
        return saved.index, saved.term

    def restore_snapshot(self, path: Path) -> Callable[[], None]:
        saved = msgspec.msgpack.decode(path.read_bytes(), type=_SavedWords)

        def swap() -> None:
            self.words, self.applied_index, self.applied_term = saved.words, saved.index, saved.term
            self.changed.set()

        return swap

    async def has(self, word: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while word not in self.words:
                self.changed.clear()
                await self.changed.wait()


class FaultyDisk:
    """A `FileDisk` whose syncs fail, or wait, when a test says so."""

    def __init__(self, disk: FileDisk) -> None:
        self._disk = disk
        self.fails = False
        self.folder, self.names, self.remove, self.sync_folder = disk.folder, disk.names, disk.remove, disk.sync_folder
        self.write_atomically, self.publish = disk.write_atomically, disk.publish
        self.path, self.read, self.size_bytes, self.run_aside = disk.path, disk.read, disk.size_bytes, disk.run_aside
        self.let_go = asyncio.Event()
        self.let_go.set()

    def open(self, name: str, *, create: bool) -> DiskFile:
        return _FaultyFile(self, self._disk.open(name, create=create))

    async def run(self, work: Callable[[], Any]) -> Any:
        await self.let_go.wait()
        return await self._disk.run(work)


class _FaultyFile:
    def __init__(self, disk: FaultyDisk, file: DiskFile) -> None:
        self._disk = disk
        self._file = file
        self.append, self.close = file.append, file.close
        self.preallocate, self.continue_at = file.preallocate, file.continue_at

    def sync(self) -> None:
        if self._disk.fails:
            raise DiskFailed("cannot sync: input/output error")
        self._file.sync()


class CuttableNetwork:
    """A `TcpNetwork` that loses what goes to, and comes from, the peers that a test has cut off."""

    def __init__(self, network: TcpNetwork) -> None:
        self._network = network
        self._receiver: PeerReceiver | None = None
        self.cut: set[MemberName] = set()
        self.loses_calls = False
        """Calls of peers arrive, and are never answered."""
        self.call_lost = asyncio.Event()
        self.close = network.close

    async def start(self, receiver: PeerReceiver) -> None:
        self._receiver = receiver
        await self._network.start(self)

    def send(self, message: Message) -> None:
        if message.to not in self.cut:
            self._network.send(message)

    async def call(self, to: MemberName, method: str, payload: bytes, timeout_s: float) -> bytes:
        if to in self.cut:
            raise NotProposed(f"{to} is cut off")
        return await self._network.call(to, method, payload, timeout_s)

    def set_members(self, membership: Membership) -> None:
        self._network.set_members(membership)

    async def send_snapshot(self, to: MemberName, offer: SnapshotOffer, read: ReadPart) -> None:
        async def read_unless_cut(offset: int, size_bytes: int) -> bytes:
            self._require_link(to)
            return await read(offset, size_bytes)

        self._require_link(to)
        await self._network.send_snapshot(to, offer, read_unless_cut)

    def connected(self) -> Sequence[MemberName]:
        return [name for name in self._network.connected() if name not in self.cut]

    def on_message(self, message: Message) -> None:
        if message.sender not in self.cut and self._receiver is not None:
            self._receiver.on_message(message)

    async def on_call(self, sender: MemberName, method: str, payload: bytes) -> bytes:
        assert self._receiver is not None
        if self.loses_calls:
            self.call_lost.set()
            await asyncio.Event().wait()
        return await self._receiver.on_call(sender, method, payload)

    async def on_snapshot(self, sender: MemberName, offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
        async def chunks_until_cut() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                self._require_link(sender)
                yield chunk

        assert self._receiver is not None
        self._require_link(sender)
        await self._receiver.on_snapshot(sender, offer, chunks_until_cut())

    def on_removed(self, by: MemberName) -> None:
        if by not in self.cut and self._receiver is not None:
            self._receiver.on_removed(by)

    def _require_link(self, peer: MemberName) -> None:
        if peer in self.cut:
            raise Unavailable(f"{peer} is cut off")


class RunningMember:
    """One driver with all beneath it. `stop` closes it as a process would; `kill` ends it without a word."""

    def __init__(
        self,
        config: DriverConfig,
        folder: Path,
        listener: socket.socket,
        addresses: Mapping[MemberName, HostPort],
        clock: Clock,
    ) -> None:
        self.name = config.name
        self.failures: list[BaseException] = []
        self.failed = asyncio.Event()
        self.machine = WordList()
        self.tasks = TaskOwner(config.name, self._on_failure)
        self._file_disk = FileDisk(folder / config.name)
        self.disk = FaultyDisk(self._file_disk)
        self.listener = listener
        self.tcp = TcpNetwork(TcpConfig(config.name, CLUSTER_ID, SECRET, addresses), listener, self.tasks)
        self.network = CuttableNetwork(self.tcp)
        self.driver = RaftDriver(config, self.disk, self.network, clock, self.machine, self.tasks)

    def _on_failure(self, error: BaseException) -> None:
        self.failures.append(error)
        self.failed.set()

    async def stop(self) -> None:
        await self.driver.close()
        await self.tasks.close()
        self._file_disk.close()

    async def kill(self) -> None:
        self.disk.let_go.set()
        await self.tasks.close()
        await self.tcp.close()
        await self.driver.close()
        self._file_disk.close()


class RunningCluster:
    def __init__(self, names: str, folder: Path, config: DriverConfig, clock: Clock) -> None:
        self._folder = folder
        self._config = config
        self._clock = clock
        self._listeners = {name: open_listener(LOOPBACK, name) for name in names}
        self._addresses = {name: bound_address(listener) for name, listener in self._listeners.items()}
        self._leadership_changed = asyncio.Event()
        self._leading: set[MemberName] = set()
        self.members: dict[MemberName, RunningMember] = {}

    def __getitem__(self, name: MemberName) -> RunningMember:
        return self.members[name]

    def address(self, name: MemberName) -> str:
        return str(self._addresses[name])

    def make(self, name: MemberName, *, joins: bool = False) -> RunningMember:
        """A member that is not started yet; one that is not among the first voters joins."""
        listener = self._listeners.pop(name, None) or open_listener(self._addresses[name], name)
        is_first = name in self._config.membership and not joins
        config = replace(self._config, name=name, membership=self._config.membership if is_first else Membership())
        member = RunningMember(config, self._folder, listener, self._addresses, self._clock)
        self.members[name] = member

        def on_leadership(leads: bool, _term: int) -> None:
            (self._leading.add if leads else self._leading.discard)(name)
            self._leadership_changed.set()

        member.driver.add_leadership_listener(on_leadership)
        return member

    def close(self) -> None:
        """Let go of the addresses of members that were never made."""
        for listener in self._listeners.values():
            listener.close()

    async def end(self, name: MemberName, *, kill: bool = False) -> None:
        member = self.members.pop(name)
        await (member.kill() if kill else member.stop())
        self._leading.discard(name)

    async def leader(self, *, other_than: str = "") -> RunningMember:
        """Wait until one leads that has applied an entry of its term."""
        async with asyncio.timeout(PATIENCE_S):
            while not (leading := self._leading - set(other_than)):
                self._leadership_changed.clear()
                await self._leadership_changed.wait()
        return self.members[min(leading)]

    async def follower(self) -> RunningMember:
        """A member that knows the leader, and is not it."""
        leader = await self.leader()
        follower = next(m for m in self.members.values() if m is not leader)
        await follower.driver.read_index(PATIENCE_S)
        return follower

    async def write(self, name: MemberName, word: bytes) -> Any:
        """Propose until it is taken: a leader may just be changing."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await self.members[name].driver.propose(word, PATIENCE_S)
                except NotProposed:
                    await self.members[name].driver.read_index(PATIENCE_S)


_SMALL: dict[str, Any] = {"cluster_id": CLUSTER_ID, "tick_interval_s": 0.02, "segment_bytes_max": 1024 * 1024}


@contextlib.asynccontextmanager
async def running_cluster(
    names: str, folder: Path, *, voters: str = "", started: str = "", clock: Clock | None = None, **config: Any
) -> AsyncIterator[RunningCluster]:
    """Members that are started (all, or those of `started`), on a tick of 20 ms unless `config` says otherwise, and
    stopped at the end. `voters`: those that the cluster begins with, when others are to join."""
    membership = Membership.of_voters(voters or names)
    base = DriverConfig(names[0], membership, **{**_SMALL, **config})
    cluster = RunningCluster(names, folder, base, clock or SystemClock())
    try:
        for name in started or names:
            cluster.make(name)
        for member in cluster.members.values():
            await member.driver.start()
        yield cluster
    finally:
        for name in list(cluster.members):
            await cluster.end(name, kill=True)
        cluster.close()
