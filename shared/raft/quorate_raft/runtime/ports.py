"""What the driver stands on. A simulation replaces `Disk`, `Network` and `Clock`; everything else runs unchanged."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from quorate_core.clock import Clock

from quorate_raft.core.messages import Entry, MemberName, Message

__all__ = ["Clock", "Disk", "DiskFile", "Network", "PeerReceiver", "StateMachine", "Ticker"]


class DiskFile(Protocol):
    """An append-only file that is open. Offsets and sizes are bytes."""

    def append(self, data: bytes) -> None: ...
    def sync(self) -> None:
        """fdatasync: returns when everything appended so far survives a power loss. An error here is terminal."""
        ...

    def read_all(self) -> bytes: ...
    def truncate(self, size: int) -> None: ...
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
    async def run(self, work: Callable[[], Any]) -> Any:
        """Run blocking `work` off the event loop, one at a time and in order."""
        ...


class PeerReceiver(Protocol):
    """The driver, as the network sees it."""

    def on_message(self, message: Message) -> None: ...
    async def on_call(self, sender: MemberName, method: str, payload: bytes) -> bytes:
        """Answer a peer's call (forwarded writes, lease keepalives). May raise any QuorateError."""
        ...


class Network(Protocol):
    """Links to the peers. Messages may be lost, and are never duplicated or reordered while a link holds."""

    async def start(self, receiver: PeerReceiver) -> None: ...
    def send(self, message: Message) -> None:
        """Queue for `message.to`; drops (and counts) when the link is down or its queue is full. Never waits."""
        ...

    async def call(self, to: MemberName, method: str, payload: bytes, timeout_s: float) -> bytes:
        """One hop, one answer. Raises NotProposed when it was surely not delivered, OutcomeUnknown when the link
        broke or time ran out after it was sent, and whatever error the peer answered with."""
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


Ticker = Callable[[float], Awaitable[None]]
"""Waits this many seconds; `asyncio.sleep` outside simulations."""
