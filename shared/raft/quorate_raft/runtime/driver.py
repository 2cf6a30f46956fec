"""`RaftDriver`: carries out what the core decides, for callers that await.

Everything happens on the event loop's thread. Whatever gives the core something to do (a message, a proposal, a read,
a tick, a finished sync) schedules one pump for the loop's next turn; the pump takes each `Ready` and sends, applies
and answers. So all that arrives in one turn shares one append request a follower, one sync and one read round. Only
the sync leaves the loop: `_persist_loop` has one out at a time, while messages go on. Snapshots are `snapshotting`'s
work, what operators ask is `administration`'s.

A failure to persist, a broken invariant, or a state machine that raises, halts the driver: every caller is told, and
the error ends a task of the `TaskOwner`, so that the process stops.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from quorate_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotImplementedHere,
    NotProposed,
    OutcomeUnknown,
    PayloadTooLarge,
    QuorateError,
    SettingsError,
    TooManyRequests,
    Unavailable,
)
from quorate_core.tasks import TaskOwner

from quorate_raft.core.membership import Membership, MembershipChange, RemoveMember, decode_membership
from quorate_raft.core.messages import NO_MEMBER, Entry, InstallSnapshot, MemberName, Message
from quorate_raft.core.node import RaftNode
from quorate_raft.core.progress import FollowerStatus
from quorate_raft.core.ready import RaftConfig, Ready, Role, Standing
from quorate_raft.core.state import RandomBelow
from quorate_raft.runtime import metrics
from quorate_raft.runtime.administration import (
    MEMBERSHIP_METHOD,
    TRANSFER_METHOD,
    Administration,
    ChangeCall,
    MemberRemoved,
    TransferCall,
    encode_call,
)
from quorate_raft.runtime.barriers import ReadBarriers
from quorate_raft.runtime.forwarding import CALL_TIMEOUT_MIN_S, PROPOSE_METHOD, Forwarder, decode_forwarded
from quorate_raft.runtime.ports import Clock, Disk, Network, SnapshotOffer, StateMachine, Ticker
from quorate_raft.runtime.proposals import Proposal, Proposals
from quorate_raft.runtime.snapshots import SnapshotStore, StoredSnapshot
from quorate_raft.runtime.snapshotting import SnapshotKeeper, SnapshotPolicy
from quorate_raft.runtime.wal import SEGMENT_BYTES_MAX, Wal, open_wal
from quorate_raft.runtime.wal_recovery import Recovered, WalIdentity

COMMIT_WITHHELD_S = 0.001
"""Followers are told what is committed with the next entries, or after this time when none come."""
TICKS_AT_ONCE_MAX = 2
"""After a stall of the event loop, so many missed ticks count: what a live leader sent meanwhile is still unread."""

_ID_BELOW = 2**62
"""Request ids and read contexts count from a random start, so that no two boots or members share one."""

CallHandler = Callable[[MemberName, bytes], Awaitable[bytes]]
LeadershipListener = Callable[[bool, int], None]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DriverConfig:
    """The election timeout T is `tick_interval_s * election_ticks`. `proposals_max` and `proposal_bytes_max` bound
    what is proposed and not applied, here and, on a leader, in its whole log."""

    name: MemberName
    membership: Membership
    """What a new cluster begins with; empty for a member that joins one. Once there is a log, that knows better."""
    cluster_id: str
    tick_interval_s: float = 0.05
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    entry_bytes_max: int = 8 * 1024 * 1024
    proposals_max: int = 16_384
    proposal_bytes_max: int = 64 * 1024 * 1024
    readers_max: int = 65_536
    segment_bytes_max: int = SEGMENT_BYTES_MAX
    snapshot_entries: int = 100_000
    snapshot_bytes_min: int = 64 * 1024 * 1024
    trailing_entries: int = 10_000
    """See `SnapshotPolicy`."""
    transfer_timeout_s: float = 1.0
    """How long `close` waits for another member to take the leadership over."""
    random_below: RandomBelow = random.SystemRandom().randrange
    ticker: Ticker = asyncio.sleep


@dataclass(frozen=True, slots=True)
class RaftStatus:
    """A member as it sees itself. `connected`: peers whose link is up. `first_index`: what the log still holds begins
    there. `snapshot_index`: the last entry in the newest snapshot, 0 without one. `progress`: a leader's view of the
    others."""

    name: MemberName
    role: Role
    leader: MemberName
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    members: tuple[MemberName, ...]
    connected: tuple[MemberName, ...]
    membership: Membership
    first_index: int
    snapshot_index: int
    progress: Mapping[MemberName, FollowerStatus]


class RaftDriver:
    """One member. `start` it, `propose` and `read_index` through it, `close` it."""

    def __init__(
        self,
        config: DriverConfig,
        disk: Disk,
        network: Network,
        clock: Clock,
        machine: StateMachine,
        tasks: TaskOwner,
    ) -> None:
        self._config = config
        self._disk = disk
        self._network = network
        self._clock = clock
        self._machine = machine
        self._tasks = tasks
        self._raft_config = RaftConfig(
            config.name, config.election_ticks, config.heartbeat_ticks, withholds_commit=True
        )
        if not config.membership.is_empty and not config.membership.is_voter(config.name):
            raise SettingsError(f"{config.name!r} is not among the members {', '.join(config.membership.voters)}")
        first_id = partial(config.random_below, _ID_BELOW)
        self._proposals = Proposals(first_id() + 1, config.proposals_max, config.proposal_bytes_max)
        self._barriers = ReadBarriers(first_id() + 1, config.readers_max, config.election_ticks)
        self._forwarder = Forwarder(network, clock, tasks, self._wake)
        self._calls: dict[str, CallHandler] = {PROPOSE_METHOD: self._on_forwarded}
        self._listeners: list[LeadershipListener] = []
        self._announced = (False, 0)
        self._applied_term = 0
        self._to_persist: asyncio.Queue[Ready] = asyncio.Queue(maxsize=1)
        self._is_pump_scheduled = False
        self._commit_timer: asyncio.TimerHandle | None = None
        """Runs while followers are not told yet what is committed."""
        self._awaited: deque[int] = deque()
        """The last entry of each call that followers have forwarded: they wait for its commit, and are told at once."""
        self._halted = asyncio.Event()
        self._failure: BaseException | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._started: _Started | None = None
        self._proposed_total = metrics.PROPOSALS.labels(config.name)
        self._sync_seconds = metrics.SYNC_SECONDS.labels(config.name)
        self._batch_entries = metrics.BATCH_ENTRIES.labels(config.name)

    async def start(self) -> None:
        """Read the log, join the peers, begin to tick. Returns without waiting for a leader.

        Raises SettingsError for a log that is damaged, ends before what was applied, or is another member's.
        """
        config, machine = self._config, self._machine
        wal, recovered, store = await self._open()
        try:
            if machine.applied_index < recovered.base.index:
                await self._rebuild_state(recovered, store)
            node = RaftNode(
                self._raft_config, recovered.hard_state, recovered.base, recovered.entries, machine.applied_index,
                config.random_below,
            )  # fmt: skip
            if node.is_removed:
                raise MemberRemoved.named(config.name, "as its own log says")
            self._applied_term = node.log.term_at(machine.applied_index) or recovered.base.term
            self._started = self._assemble(node, wal, store)
            if not node.contacts.is_empty:
                self._network.set_members(node.contacts)
            await self._network.start(self)
        except BaseException:
            self._started = None
            wal.close()
            raise
        self._loops = [
            self._tasks.start(self._persist_loop(), "persist"),
            self._tasks.start(self._tick_loop(), "tick"),
            self._tasks.start(self._report_failure(), "failure"),
        ]
        self._wake()

    async def _open(self) -> tuple[Wal, Recovered, SnapshotStore]:
        """Read what is on disk. Raises SettingsError."""
        config, disk = self._config, self._disk
        identity = WalIdentity(config.cluster_id, config.name)
        applied_index = self._machine.applied_index

        def work() -> tuple[Wal, Recovered, SnapshotStore]:
            store = SnapshotStore(disk, identity)
            return *open_wal(
                disk, identity, config.random_below, config.segment_bytes_max, config.membership, applied_index
            ), store

        opened: tuple[Wal, Recovered, SnapshotStore] = await disk.run(work)
        return opened

    async def _rebuild_state(self, recovered: Recovered, store: SnapshotStore) -> None:
        """The state is older than the log's beginning (none is left after a crash of the machine): a snapshot and the
        log make it again. Raises SettingsError when no snapshot can."""
        stored: StoredSnapshot = await self._disk.run_aside(partial(store.to_rebuild_from, recovered))
        swap = await self._disk.run_aside(partial(self._machine.restore_snapshot, stored.path))
        swap()
        last_index = recovered.last_index
        log.info("state_rebuilt", member=self._config.name, snapshot_index=stored.meta.index, last_index=last_index)

    def _assemble(self, node: RaftNode, wal: Wal, store: SnapshotStore) -> "_Started":
        name = self._config.name
        config = self._config
        policy = SnapshotPolicy(config.snapshot_entries, config.snapshot_bytes_min, config.trailing_entries)
        snapshots = SnapshotKeeper(
            policy, node, wal, store, self._disk, self._machine, self._network, self._tasks, name,
            self._wake, self._halt, config.ticker,
        )  # fmt: skip
        administration = Administration(name, node, self._proposals, self._network, self._clock, self._wake)
        self._calls[MEMBERSHIP_METHOD] = administration.on_change_call
        self._calls[TRANSFER_METHOD] = administration.on_transfer_call
        return _Started(node, wal, snapshots, administration, asyncio.get_running_loop())

    async def close(self) -> None:
        """Hand the leadership over if it is here, tell every caller, and stop."""
        started = self._started
        if started is None:
            return
        await self._hand_over(started)
        self._halt(None)
        await self._network.close()
        await started.snapshots.close()
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._disk.run(started.wal.close)
        self._started = None

    async def propose(self, data: bytes, timeout_s: float) -> Any:
        """Have `data` agreed on and applied; returns what applying it on this member gave, or raises its error.

        Raises NotProposed when it surely was not, and will not be, applied; TooManyRequests over the limits; and
        OutcomeUnknown when its outcome was not seen in time.
        """
        if len(data) > self._config.entry_bytes_max:
            raise PayloadTooLarge(f"an entry of {len(data)} bytes is over the limit of {self._config.entry_bytes_max}")
        node = self._running().node
        proposal = self._proposals.admit(data, self._clock.monotonic_s() + timeout_s)
        try:
            self._give_to_leader(node, proposal)
            self._proposed_total.inc()
            self._wake()
            outcome = await proposal.outcome
        finally:
            self._proposals.discard(proposal)
        if isinstance(outcome, QuorateError):
            raise outcome
        return outcome

    async def read_index(self, timeout_s: float) -> int:
        """Linearizable barrier: returns when everything that was committed before the call is applied here.

        Raises NotProposed when there is no leader, DeadlineExceeded when it did not answer in time, TooManyRequests
        over the limit.
        """
        self._running()
        self._wake()
        return await self._barriers.wait(self._clock.monotonic_s() + timeout_s)

    async def confirm_leadership(self, timeout_s: float) -> int:
        """The term that this member leads, confirmed by a majority after the call. Raises NotProposed if it does
        not lead, or no majority says so in time."""
        before = self._running().node.standing
        if before.role is Role.LEADER:
            try:
                await self.read_index(timeout_s)
            except DeadlineExceeded as error:
                raise NotProposed(f"no majority confirms that {self._config.name} leads") from error
            if self._running().node.standing == before:
                return before.term
        raise NotProposed(f"{self._config.name} does not lead")

    async def call_leader(self, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Have the leader's handler of `method` answer; without a hop when that is this member.

        Raises NotProposed when it surely did not reach the leader, OutcomeUnknown when no answer came in time, and
        what the handler raises.
        """
        standing = self._running().node.standing
        if standing.role is Role.LEADER:
            try:
                async with asyncio.timeout(timeout_s):
                    return await self.on_call(self._config.name, method, payload)
            except TimeoutError as error:
                raise OutcomeUnknown(f"{method} took longer than {timeout_s} s") from error
        if not standing.leader:
            raise NotProposed("no leader is known at present; try again")
        return await self._network.call(standing.leader, method, payload, timeout_s)

    async def change_membership(self, change: MembershipChange, timeout_s: float) -> Membership:
        """Add, promote or remove a member, asked of any; returns the membership when the leader has applied the change.

        A leader that is to be removed hands over first. Raises Conflict, NotFound and InvalidRequest for changes that
        cannot be, NotProposed when there is no leader, or it was surely not done, and OutcomeUnknown.
        """
        deadline_s = self._clock.monotonic_s() + timeout_s
        node = self._running().node
        if isinstance(change, RemoveMember) and change.name == node.standing.leader and len(node.membership.voters) > 1:
            await self.transfer_leadership(NO_MEMBER, timeout_s)
            await self._await_leader(other_than=change.name, deadline_s=deadline_s)
            # Before it has committed an entry of its term, a leader changes nothing, and reads nothing either.
            await self.read_index(max(deadline_s - self._clock.monotonic_s(), CALL_TIMEOUT_MIN_S))
        left_s = max(deadline_s - self._clock.monotonic_s(), CALL_TIMEOUT_MIN_S)
        answer = await self.call_leader(MEMBERSHIP_METHOD, encode_call(ChangeCall(change, left_s)), left_s)
        return decode_membership(answer)

    async def transfer_leadership(self, to: MemberName, timeout_s: float) -> MemberName:
        """Have `to` lead, or any other voter when that is empty; asked of any member. Returns who leads then.

        Raises NotFound or Conflict for one that cannot, NotProposed when there is no leader, and DeadlineExceeded.
        """
        try:
            answer = await self.call_leader(TRANSFER_METHOD, encode_call(TransferCall(to, timeout_s)), timeout_s)
        except OutcomeUnknown as error:
            raise DeadlineExceeded(f"the leadership did not change within {timeout_s:g} s") from error
        return answer.decode()

    async def _await_leader(self, other_than: MemberName, deadline_s: float) -> None:
        try:
            async with asyncio.timeout(max(deadline_s - self._clock.monotonic_s(), 0)):
                await self._running().administration.next_leader(other_than)
        except TimeoutError as error:
            raise NotProposed("no other member has come to lead in time; try again") from error

    def register_call(self, method: str, handler: CallHandler) -> None:
        """Answer `method` for peers, and for this member's own `call_leader`. A name can be taken once."""
        if method in self._calls:
            raise InvalidRequest(f"the call {method!r} has a handler already")
        self._calls[method] = handler

    def add_leadership_listener(self, listener: LeadershipListener) -> None:
        """`listener(True, term)` when this member leads and has applied an entry of its term, so that it knows all
        that was ever committed; `listener(False, term)` when it leads no more."""
        self._listeners.append(listener)

    def status(self) -> RaftStatus:
        node = self._running().node
        standing, raft_log = node.standing, node.log
        return RaftStatus(
            self._config.name, standing.role, standing.leader, standing.term, raft_log.commit_index,
            raft_log.applied_index, raft_log.last_index, node.membership.names, tuple(self._network.connected()),
            node.membership, raft_log.first_index, self._running().snapshots.newest_index, node.progress(),
        )  # fmt: skip

    def on_message(self, message: Message) -> None:
        """From the network: a peer's message."""
        if self._started is None or self._halted.is_set():
            return
        try:
            self._started.node.step(message)
        except InvalidRequest as error:
            metrics.MESSAGES_REFUSED.labels(self._config.name).inc()
            log.warning("message_refused", sender=message.sender, reason=error.detail)
        except Exception as error:
            self._halt(error)
        else:
            self._wake()

    async def on_call(self, sender: MemberName, method: str, payload: bytes) -> bytes:
        """From the network: a peer's call."""
        self._running()
        handler = self._calls.get(method)
        if handler is None:
            raise NotImplementedHere(f"{self._config.name} has no call {method!r}")
        return await handler(sender, payload)

    async def on_snapshot(self, sender: MemberName, offer: SnapshotOffer, chunks: AsyncIterator[bytes]) -> None:
        """From the network: a leader's snapshot, that this member needs."""
        snapshot = await self._running().snapshots.receive(sender, offer, chunks)
        self.on_message(InstallSnapshot(sender, self._config.name, offer.term, snapshot))

    def on_removed(self, by: MemberName) -> None:
        """From the network: this member is no member any more."""
        self._halt(MemberRemoved.named(self._config.name, f"says {by}"))

    def _running(self) -> "_Started":
        if self._started is None or self._halted.is_set():
            raise Unavailable(f"{self._config.name} is not running")
        return self._started

    def _give_to_leader(self, node: RaftNode, proposal: Proposal) -> None:
        """Raises NotProposed or TooManyRequests."""
        standing = node.standing
        if standing.role is Role.LEADER:
            self._require_room(node, 1, len(proposal.data))
            _, proposal.term = node.propose(proposal.data, proposal.request_id)
        elif standing.leader:
            self._forwarder.add(proposal)
        else:
            raise NotProposed("no leader is known at present; try again")

    def _require_room(self, node: RaftNode, count: int, size_bytes: int) -> None:
        """Leader: bound what is in the log and not applied, whoever proposed it."""
        config, raft_log = self._config, node.log
        waiting, waiting_bytes = raft_log.last_index - raft_log.applied_index, raft_log.unapplied_bytes
        if waiting + count > config.proposals_max or waiting_bytes + size_bytes > config.proposal_bytes_max:
            raise TooManyRequests(f"{waiting} entries of {waiting_bytes} bytes wait to be agreed on; try again")

    async def _on_forwarded(self, _sender: MemberName, payload: bytes) -> bytes:
        """Leader: propose what a follower's callers want. All of it, or none."""
        node = self._running().node
        forwarded = decode_forwarded(payload)
        if node.standing != Standing(Role.LEADER, self._config.name, forwarded.term):
            raise NotProposed(f"{self._config.name} does not lead term {forwarded.term}")
        self._require_room(node, len(forwarded.proposals), sum(len(data) for _, data in forwarded.proposals))
        for request_id, data in forwarded.proposals:
            node.propose(data, request_id)
        self._awaited.append(node.log.last_index)
        self._wake()
        return b""

    def _wake(self) -> None:
        if not self._is_pump_scheduled and self._started is not None:
            self._is_pump_scheduled = True
            self._started.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pump_scheduled = False
        if self._started is None or self._halted.is_set():
            return
        try:
            self._advance(self._started)
        except Exception as error:
            self._halt(error)

    def _advance(self, started: "_Started") -> None:
        node = started.node
        self._forwarder.send(node.standing)
        self._barriers.ask(node)
        while node.has_ready():
            ready = node.ready()
            self._carry_out(started, ready)
            if ready.committed and node.has_ready():
                self._wake()  # the loop's other work comes between two slices of entries
                return
        self._tell_commit_in_time(started)

    def _tell_commit_in_time(self, started: "_Started") -> None:
        """Followers that wait for a commit are told now; for the others it mostly comes with the next entries, which
        halves the messages of a cluster that is written to."""
        node, is_awaited = started.node, False
        commit_index = node.log.commit_index
        while self._awaited and self._awaited[0] <= commit_index:
            self._awaited.popleft()
            is_awaited = True
        if not node.withholds_commit:
            return
        if is_awaited:
            self._tell_commit()
        elif self._commit_timer is None:
            self._commit_timer = started.loop.call_later(COMMIT_WITHHELD_S, self._tell_commit)

    def _tell_commit(self) -> None:
        if self._commit_timer is not None:
            self._commit_timer.cancel()
            self._commit_timer = None
        if self._started is not None and not self._halted.is_set():
            self._started.node.tell_commit()
            self._wake()

    def _carry_out(self, started: "_Started", ready: Ready) -> None:
        node, send = started.node, self._network.send
        for message in ready.messages:
            send(message)
        if ready.must_sync:
            self._to_persist.put_nowait(ready)
        else:
            for message in ready.messages_after_persist:
                send(message)
        if ready.membership is not None:
            self._on_contacts(node, ready.membership)
        for name in ready.snapshots_wanted:
            started.snapshots.send(name)
        if ready.standing is not None:
            self._on_standing(node, ready.standing)
        if ready.committed:
            self._apply(node, ready.committed)
            started.snapshots.take_if_due()
        if ready.reads:
            self._barriers.on_results(ready.reads, node.log.applied_index)
            self._barriers.ask(node)

    def _apply(self, node: RaftNode, entries: tuple[Entry, ...]) -> None:
        results = self._machine.apply(entries)
        last = entries[-1]
        node.applied(last.index)
        self._proposals.on_applied(entries, results)
        if last.term > self._applied_term:
            self._applied_term = last.term
            self._proposals.on_term_applied(last.term)
            self._announce_leadership(node)
        self._barriers.on_applied(last.index)

    def _on_contacts(self, node: RaftNode, contacts: Membership) -> None:
        voters, learners = ", ".join(node.membership.voters), ", ".join(node.membership.learners)
        log.info("membership", member=self._config.name, voters=voters, learners=learners)
        self._network.set_members(contacts)

    def _on_standing(self, node: RaftNode, standing: Standing) -> None:
        name = self._config.name
        log.info("standing", member=name, role=standing.role.value, leader=standing.leader, term=standing.term)
        if standing.role is Role.CANDIDATE:
            metrics.ELECTIONS.labels(name).inc()
        if standing.leader:
            metrics.LEADER_CHANGES.labels(name).inc()
        self._running().administration.on_standing_changed()
        self._awaited.clear()
        self._forwarder.on_standing_changed(standing)
        self._barriers.on_standing_changed()
        self._announce_leadership(node)
        self._wake()

    def _announce_leadership(self, node: RaftNode) -> None:
        standing = node.standing
        leads = standing.role is Role.LEADER and self._applied_term == standing.term
        was_leading, announced_term = self._announced
        if leads == was_leading and (not leads or announced_term == standing.term):
            return
        self._announced = (leads, standing.term)
        if leads:
            self._barriers.on_encouraged()
        for listener in self._listeners:
            listener(leads, standing.term)

    async def _persist_loop(self) -> None:
        started = self._running()
        while not self._halted.is_set():
            ready = await self._to_persist.get()
            began_s = self._clock.monotonic_s()
            try:
                if ready.snapshot is not None:
                    await started.snapshots.restore(ready.snapshot)
                if ready.hard_state is not None or ready.entries:
                    await self._disk.run(partial(started.wal.append, ready.hard_state, ready.entries))
                    self._sync_seconds.observe(self._clock.monotonic_s() - began_s)
                    self._batch_entries.observe(len(ready.entries))
                self._on_persisted(ready)
            except Exception as error:
                self._halt(error)

    def _on_persisted(self, ready: Ready) -> None:
        if self._started is None or self._halted.is_set():
            return
        node = self._started.node
        node.persisted(ready)
        if ready.snapshot is not None:
            self._applied_term = ready.snapshot.term
            self._proposals.on_restored()
            self._barriers.on_applied(ready.snapshot.index)
        for message in ready.messages_after_persist:
            self._network.send(message)
        self._pump()

    async def _tick_loop(self) -> None:
        config, node = self._config, self._running().node
        interval_s, before_s = config.tick_interval_s, self._clock.monotonic_s()
        while not self._halted.is_set():
            await config.ticker(interval_s)
            now_s = self._clock.monotonic_s()
            elapsed_ticks = int((now_s - before_s) / interval_s)
            before_s = now_s
            try:
                for _ in range(max(1, min(elapsed_ticks, TICKS_AT_ONCE_MAX))):
                    node.tick()
            except Exception as error:
                self._halt(error)
            self._proposals.on_time(now_s)
            self._barriers.on_tick(now_s, has_leader=bool(node.standing.leader))
            if node.is_removed:
                self._halt(MemberRemoved.named(config.name, "as an entry of its log says"))
            self._show(node)
            self._pump()

    def _show(self, node: RaftNode) -> None:
        name, standing = self._config.name, node.standing
        metrics.TERM.labels(name).set(standing.term)
        metrics.IS_LEADER.labels(name).set(standing.role is Role.LEADER)
        metrics.COMMIT_INDEX.labels(name).set(node.log.commit_index)
        metrics.APPLIED_INDEX.labels(name).set(node.log.applied_index)
        metrics.FIRST_INDEX.labels(name).set(node.log.first_index)
        metrics.PROPOSALS_WAITING.labels(name).set(len(self._proposals))

    async def _report_failure(self) -> None:
        """A task of the owner's that fails as soon as the driver does."""
        await self._halted.wait()
        if self._failure is not None:
            raise self._failure

    def _halt(self, failure: BaseException | None) -> None:
        """Stop for good: nothing is stepped, sent or applied any more."""
        if self._halted.is_set():
            return
        self._failure = failure
        self._halted.set()
        reason = "the member stopped" if failure is None else "the member failed, and its log says why"
        self._proposals.stop(reason)
        self._barriers.stop(reason)
        if self._announced[0]:
            self._announced = (False, self._announced[1])
            for listener in self._listeners:
                listener(*self._announced)

    async def _hand_over(self, started: "_Started") -> None:
        """Leader that closes: let the follower that lacks least take over, so that nobody waits for an election."""
        if self._halted.is_set() or not started.node.is_leader or len(started.node.membership.voters) == 1:
            return
        try:
            await started.administration.transfer(NO_MEMBER, self._config.transfer_timeout_s)
        except QuorateError as error:
            log.warning("leadership_not_handed_over", member=self._config.name, reason=error.detail)


@dataclass(frozen=True, slots=True)
class _Started:
    node: RaftNode
    wal: Wal
    snapshots: SnapshotKeeper
    administration: Administration
    loop: asyncio.AbstractEventLoop
