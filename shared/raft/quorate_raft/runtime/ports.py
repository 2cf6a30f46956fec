"""What the driver stands on. A simulation replaces `Disk`, `Network` and `Clock`; everything else runs unchanged."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from quorate_core.clock import Clock

from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import Entry, MemberName, Message, SnapshotMeta

__all__ = [
    "Clock",
    "Disk",
    "DiskFile",
    "Network",
    "PeerReceiver",
    "ReadPart",
    "SnapshotOffer",
    "StateMachine",
    "Ticker",
]


class DiskFile(Protocol):
    """A file that is open for appending. Offsets and sizes are bytes. One that is opened again is appended to at its
    end, unless `continue_at` says where."""

    def append(self, data: bytes) -> None: ...
    def sync(self) -> None:
        """fdatasync: returns when everything appended so far survives a power loss. An error here is terminal."""
        ...

    def preallocate(self, size_bytes: int) -> None:
        """Make the file so long, with zeros after what it holds, so that a disk without room says so now. What is
        appended next still goes behind what was written, over the zeros. Durable with the next `sync`."""
        ...

    def continue_at(self, offset: int) -> None:
        """What is appended next goes there, over what there is. Nothing is changed by this alone."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """One folder. All calls block; the driver makes them off the event loop."""

    @property
    def folder(self) -> Path:
        """Which one, for people."""
        ...

    def names(self) -> Sequence[str]: ...
    def open(self, name: str, *, create: bool) -> DiskFile: ...
    def write_atomically(self, name: str, data: bytes) -> None:
        """Write aside, sync, rename, sync the folder."""
        ...

    def remove(self, name: str) -> None: ...
    def sync_folder(self) -> None: ...
    def path(self, name: str) -> Path:
        """Where somebody else, such as LMDB, writes or reads the file. What they write is worth nothing before
        `publish`."""
        ...

    def publish(self, aside: str, name: str) -> None:
        """Sync the file `aside`, rename it to `name`, sync the folder."""
        ...

    def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        """A part of a file; shorter at its end."""
        ...

    def size_bytes(self, name: str) -> int: ...
    async def run(self, work: Callable[[], Any]) -> Any:
        """Run blocking `work` off the event loop, one at a time and in order."""
        ...

    async def run_aside(self, work: Callable[[], Any]) -> Any:
        """The same for long work, such as copying a snapshot: in another thread, one at a time, and in no order with
        what `run` runs."""
        ...


class SnapshotOffer(msgspec.Struct, frozen=True, array_like=True):
    """What a leader of `term` says of a snapshot before it sends it. `checksum` is the CRC-32 of the whole file."""

    term: int
    snapshot: SnapshotMeta
    size_bytes: int
    checksum: int


ReadPart = Callable[[int, int], Awaitable[bytes]]
"""`(offset, size in bytes)` to that part of a file; shorter at its end."""


class PeerReceiver(Protocol):
    """The driver, as the network sees it."""

    def on_message(self, message: Message) -> None: ...
    async def on_call(self, sender: MemberName, method: str, payload: bytes) -> bytes:
        """Answer a peer's call (forwarded writes, lease keepalives). May raise any QuorateError."""
        ...

    async def on_snapshot(self, sender: MemberName, offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
        """Take a snapshot over: returns when it is durable here and the core has been told. `chunks` raises a
        QuorateError when the connection breaks. May raise any QuorateError, which the sender then gets."""
        ...

    def on_removed(self, by: MemberName) -> None:
        """`by`, proven to be a member, says that this member was removed from the cluster."""
        ...


class Network(Protocol):
    """Links to the peers. Messages may be lost, and are never duplicated or reordered while a link holds."""

    async def start(self, receiver: PeerReceiver) -> None: ...
    def set_members(self, membership: Membership) -> None:
        """Who there is from now on; called before `start` and at every change. Members that are new are dialled, those
        that are gone are hung up on, and those that were removed are told so when they call."""
        ...

    def send(self, message: Message) -> None:
        """Queue for `message.to`; drops (and counts) when the link is down or its queue is full. Never waits."""
        ...

    async def call(self, to: MemberName, method: str, payload: bytes, timeout_s: float) -> bytes:
        """One hop, one answer. Raises NotProposed when it was surely not delivered, OutcomeUnknown when the link
        broke or time ran out after it was sent, and whatever error the peer answered with."""
        ...

    async def send_snapshot(self, to: MemberName, offer: SnapshotOffer, read: ReadPart) -> None:
        """Stream a snapshot on a connection of its own, so that heartbeats do not wait behind it. Returns when `to` has
        taken it over; raises a QuorateError when it has not, or may not have."""
        ...

    def connected(self) -> Sequence[MemberName]: ...
    async def close(self) -> None: ...


class StateMachine(Protocol):
    """What committed entries are applied to. Deterministic: the same entries give the same state and results."""

    @property
    def applied_index(self) -> int:
        """The last index applied; stored in the same transaction as its effects."""
        ...

    def apply(self, entries: Sequence[Entry]) -> Sequence[Any]:
        """Apply a batch, in order, as one durable-together step. One result an entry; an error that the command
        deserves is a result (a QuorateError instance), not an exception. Not called for indexes already applied."""
        ...

    @property
    def size_bytes(self) -> int:
        """About the size of a snapshot."""
        ...

    def save_snapshot(self, path: Path) -> tuple[int, int]:
        """Write the state as of one applied index to `path`, which is not there yet; not synced. Returns the index and
        the term of the last entry in it. Blocking: called off the event loop, while `apply` goes on."""
        ...

    def restore_snapshot(self, path: Path) -> Callable[[], None]:
        """Make everything ready from a snapshot, which stays as it is. What is returned is called on the event loop,
        and replaces the state by it at once. Blocking: called off the event loop, while nothing is applied. Raises
        a QuorateError for a file that cannot be one."""
        ...


Ticker = Callable[[float], Awaitable[None]]
"""Waits this many seconds; `asyncio.sleep` outside simulations."""
