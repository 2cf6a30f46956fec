"""Snapshots of one member: taken now and then, sent to followers that lack too much, taken over from a leader; and the
log that is cut behind them.

Theory of operation. The durable truth is the newest snapshot and the log after it, and the log is never cut past that
snapshot. So each step is durable before the next one begins, and a crash between two of them leaves more than is
needed, never less:

- *Take*: the state is copied to a file (aside, synced, renamed); the log gets a new base; segments and entries in
  memory that are older are dropped, but for some that a slow follower may still want; older snapshot files go.
- *Take over*: the file arrives whole; the core says whether it is wanted (`Ready.snapshot`); everything is made ready
  from it; the log gets its new base and forgets what was before; the state is swapped.

Copying, reading and preparing are long, and run aside of the log's own disk work, so that neither appends nor
heartbeats wait for them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

import structlog
from quorate_core.errors import Conflict, InvariantViolation, QuorateError, TooManyRequests
from quorate_core.tasks import TaskOwner

from quorate_raft.core.membership import ForgottenMember
from quorate_raft.core.messages import MemberName, SnapshotMeta
from quorate_raft.core.node import RaftNode
from quorate_raft.runtime import metrics
from quorate_raft.runtime.ports import Disk, Network, SnapshotOffer, StateMachine, Ticker
from quorate_raft.runtime.snapshots import DamagedSnapshot, SnapshotStore, StoredSnapshot
from quorate_raft.runtime.wal import Wal

COMPACT_SLICE_ENTRIES = 5_000
"""Entries dropped from memory in one turn of the event loop: a millisecond or two."""

SEND_AGAIN_S_MIN = 0.1
SEND_AGAIN_S_MAX = 5.0
"""A snapshot that was not taken over is not tried again at once: the follower's disk may be full for hours."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """A snapshot is due `entries` entries after the last one, or when the entries since take `bytes_min` bytes and half
    of what a snapshot takes: copying the state then costs at most twice of what was written anyway."""

    entries: int
    bytes_min: int
    trailing_entries: int
    """Kept in the log before a snapshot, for followers that are behind a little: they are cheaper than a snapshot."""


class SnapshotKeeper:
    """Of one running member. `on_progress` wakes the driver; `on_failure` ends it."""

    def __init__(
        self,
        policy: SnapshotPolicy,
        node: RaftNode,
        wal: Wal,
        store: SnapshotStore,
        disk: Disk,
        machine: StateMachine,
        network: Network,
        tasks: TaskOwner,
        name: MemberName,
        on_progress: Callable[[], None],
        on_failure: Callable[[BaseException], None],
        wait: Ticker,
    ) -> None:
        self._policy = policy
        self._node = node
        self._wal = wal
        self._store = store
        self._disk = disk
        self._machine = machine
        self._network = network
        self._tasks = tasks
        self._name = name
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._wait = wait
        self._newest = self._newest_in_log()
        """Which the log goes on from; one that was received and not taken over need not be."""
        self._received: StoredSnapshot | None = None
        self._taking: asyncio.Task[None] | None = None
        self._sending: dict[MemberName, int] = {}
        """To whom a snapshot is on its way, and its index; 0 while there is none yet."""
        self._attempts_failed: dict[MemberName, int] = {}
        """In a row."""
        self._is_receiving = False
        self._is_restoring = False
        self._saved_total = metrics.SNAPSHOTS_TAKEN.labels(name)
        self._sent_total = metrics.SNAPSHOTS_SENT.labels(name)
        self._received_total = metrics.SNAPSHOTS_RECEIVED.labels(name)

    @property
    def newest_index(self) -> int:
        """Of the newest snapshot here; 0 when there is none."""
        return 0 if self._newest is None else self._newest.meta.index

    def take_if_due(self) -> None:
        """To be called after entries were applied."""
        if self._taking is None and not self._is_restoring and self._is_due():
            self._taking = self._tasks.start(self._take(), "take snapshot")

    def send(self, to: MemberName) -> None:
        """Begin to send a snapshot to a follower that wants one."""
        if to not in self._sending:
            self._sending[to] = 0
            self._tasks.start(self._send(to), f"send snapshot to {to}")

    async def receive(self, sender: MemberName, offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> SnapshotMeta:
        """Make an offered snapshot durable, or find that it is not needed. Raises Conflict for one of a leader that was
        deposed, TooManyRequests while another one comes, and QuorateError for one that is not whole."""
        node, snapshot = self._node, offer.snapshot
        if offer.term < node.standing.term:
            raise Conflict(
                f"{self._name} is in term {node.standing.term}, and the snapshot is of a leader of {offer.term}"
            )
        if snapshot.index <= node.log.commit_index:
            # It was taken over, and the answer lost; or the log has brought it all. NB: a leader that does not hear so
            # sends it again, for ever.
            return snapshot
        if node.membership.is_empty and snapshot.membership.is_voter(self._name):
            forgotten = ForgottenMember.named(self._name)
            self._on_failure(forgotten)
            raise forgotten
        # NB: one that was received may wait long for a slow disk before its turn to be restored comes.
        if self._is_receiving or self._is_restoring or node.is_restoring:
            raise TooManyRequests(f"{self._name} is taking another snapshot over")
        self._is_receiving = True
        try:
            await self._receive(offer, chunks)
        finally:
            self._is_receiving = False
        log.info("snapshot_received", member=self._name, sender=sender, index=snapshot.index, bytes=offer.size_bytes)
        self._received_total.inc()
        return snapshot

    async def restore(self, snapshot: SnapshotMeta) -> None:
        """Begin the log anew after `snapshot`, and replace the state by it. An error is final."""
        self._is_restoring = True
        try:
            stored, self._received = self._received, None
            if stored is None or stored.meta.index != snapshot.index:
                raise InvariantViolation(f"the snapshot of entry {snapshot.index} was taken over, and is not there")
            swap = await self._disk.run_aside(partial(self._machine.restore_snapshot, stored.path))
            # NB: the base first. A state that is ahead of its log would be refused at the next start.
            await self._disk.run(partial(self._wal.rebase, snapshot, snapshot.index + 1))
            swap()
            self._newest = stored
            await self._disk.run_aside(partial(self._store.remove_older_than, snapshot.index))
        finally:
            self._is_restoring = False
        log.info("snapshot_restored", member=self._name, index=snapshot.index, term=snapshot.term)

    async def close(self) -> None:
        """Ends with what is under way; the owner of the tasks cancels the rest."""
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.wait({self._taking})

    def _newest_in_log(self) -> StoredSnapshot | None:
        stored, raft_log = self._store.newest(), self._node.log
        if stored is None or stored.meta.index > raft_log.applied_index:
            return None
        return stored if raft_log.term_at(stored.meta.index) in (None, stored.meta.term) else None

    def _is_due(self) -> bool:
        raft_log, policy = self._node.log, self._policy
        since = max(self.newest_index, raft_log.previous_index)
        entries = raft_log.applied_index - since
        if entries >= policy.entries:
            return True
        if entries <= 0:
            return False
        size_bytes = raft_log.size_bytes(since + 1, raft_log.applied_index)
        return size_bytes >= policy.bytes_min and size_bytes >= self._machine.size_bytes // 2

    async def _take(self) -> None:
        try:
            await self._save()
        except QuorateError as error:
            # The log still has everything, so the member goes on; a disk that is really lost shows at the next append.
            log.error("snapshot_not_taken", member=self._name, reason=error.detail)
        except Exception as error:
            self._on_failure(error)
        finally:
            self._taking = None

    async def _save(self) -> StoredSnapshot:
        stored: StoredSnapshot = await self._disk.run_aside(
            # Applied entries are never cut, so what the log says of their configuration holds in any thread.
            partial(self._store.save, self._machine.save_snapshot, self._node.membership_at)
        )
        # A snapshot of a leader may have overtaken it: then its place in the log is gone.
        if stored.meta.index > max(self.newest_index, self._node.log.previous_index) and not self._is_restoring:
            self._newest = stored
            self._saved_total.inc()
            log.info("snapshot_taken", member=self._name, index=stored.meta.index, bytes=stored.size_bytes)
            await self._cut_behind(stored.meta)
        return stored

    async def _cut_behind(self, snapshot: SnapshotMeta) -> None:
        """Give the log its new base, and drop what nobody will ask for."""
        kept = min([snapshot.index - self._policy.trailing_entries, *filter(None, self._sending.values())])
        try:
            await self._disk.run(partial(self._wal.rebase, snapshot, max(kept, 0) + 1))
        except Exception as error:
            self._on_failure(error)
            raise
        raft_log = self._node.log
        while raft_log.previous_index < kept:
            self._node.compact(min(kept, raft_log.previous_index + COMPACT_SLICE_ENTRIES))
            await asyncio.sleep(0)
        await self._disk.run_aside(
            partial(self._store.remove_older_than, min([snapshot.index, *filter(None, self._sending.values())]))
        )

    async def _send(self, to: MemberName) -> None:
        sent_index = 0
        try:
            stored = await self._snapshot_to_send(to)
            log.info("snapshot_sending", member=self._name, to=to, index=stored.meta.index, bytes=stored.size_bytes)
            offer = SnapshotOffer(self._node.standing.term, stored.meta, stored.size_bytes, stored.checksum)

            async def read(offset: int, size_bytes: int) -> bytes:
                part: bytes = await self._disk.run_aside(partial(self._disk.read, stored.name, offset, size_bytes))
                return part

            await self._network.send_snapshot(to, offer, read)
            sent_index = stored.meta.index
            self._sent_total.inc()
            log.info("snapshot_sent", member=self._name, to=to, index=sent_index)
        except QuorateError as error:
            log.warning("snapshot_not_sent", member=self._name, to=to, reason=error.detail)
        finally:
            del self._sending[to]
        if sent_index:
            self._attempts_failed.pop(to, None)
            self._node.snapshot_sent(to, sent_index)
        else:
            # The core asks for no other one before it is told.
            failed = self._attempts_failed[to] = self._attempts_failed.get(to, 0) + 1
            await self._wait(min(SEND_AGAIN_S_MAX, SEND_AGAIN_S_MIN * 2 ** min(failed - 1, 10)))
            self._node.snapshot_failed(to)
        self._on_progress()

    async def _snapshot_to_send(self, to: MemberName) -> StoredSnapshot:
        """The newest one, if it is whole and the log goes on where it ends; else one that is taken now."""
        while self._taking is not None:
            await asyncio.wait({self._taking})
        stored = self._newest
        if stored is None or stored.meta.index < self._node.log.previous_index or not await self._is_whole(stored):
            stored = await self._save()
        self._sending[to] = stored.meta.index
        return stored

    async def _is_whole(self, stored: StoredSnapshot) -> bool:
        """One that is not does not count from here on; its entries are in the state all the same."""
        try:
            await self._disk.run_aside(partial(self._store.verify, stored))
        except DamagedSnapshot as error:
            log.error("snapshot_damaged", member=self._name, reason=error.detail)
            self._newest = self._newest_in_log()
            return False
        return True

    async def _receive(self, offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
        aside = self._disk.run_aside
        writer = await aside(partial(self._store.receive, offer))
        try:
            async for chunk in chunks:
                await aside(partial(writer.append, chunk))
            self._received = await aside(writer.finish)
        except BaseException:
            await aside(writer.abandon)
            raise
