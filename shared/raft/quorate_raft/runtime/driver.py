"""`RaftDriver`: carries out what the core decides, for callers that await.

Everything happens on the event loop's thread. Whatever gives the core something to do (a message, a proposal, a read,
a tick, a finished sync) schedules one pump for the loop's next turn; the pump takes each `Ready` and sends, applies
and answers. So all that arrives in one turn shares one append request a follower, one sync and one read round. Only
the sync leaves the loop: `_persist_loop` has one out at a time, while messages go on.

A failure to persist, a broken invariant, or a state machine that raises, halts the driver: every caller is told, and
the error ends a task of the `TaskOwner`, so that the process stops.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
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
    TooManyRequests,
    Unavailable,
)
from quorate_core.tasks import TaskOwner

from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import Entry, MemberName, Message
from quorate_raft.core.node import RaftNode
from quorate_raft.core.ready import RaftConfig, Ready, Role, Standing
from quorate_raft.core.state import RandomBelow
from quorate_raft.runtime import metrics
from quorate_raft.runtime.barriers import ReadBarriers
from quorate_raft.runtime.forwarding import PROPOSE_METHOD, Forwarder, decode_forwarded
from quorate_raft.runtime.ports import Clock, Disk, Network, StateMachine, Ticker
from quorate_raft.runtime.proposals import Proposal, Proposals
from quorate_raft.runtime.wal import SEGMENT_BYTES_MAX, Recovered, Wal, WalIdentity, open_wal

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
    members: Sequence[MemberName]
    cluster_id: str
    tick_interval_s: float = 0.05
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    entry_bytes_max: int = 8 * 1024 * 1024
    proposals_max: int = 16_384
    proposal_bytes_max: int = 64 * 1024 * 1024
    readers_max: int = 65_536
    segment_bytes_max: int = SEGMENT_BYTES_MAX
    transfer_timeout_s: float = 1.0
    """How long `close` waits for another member to take the leadership over."""
    random_below: RandomBelow = random.SystemRandom().randrange
    ticker: Ticker = asyncio.sleep


@dataclass(frozen=True, slots=True)
class RaftStatus:
    """A member as it sees itself. `connected`: peers whose link is up."""

    name: MemberName
    role: Role
    leader: MemberName
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    members: tuple[MemberName, ...]
    connected: tuple[MemberName, ...]


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
            config.name, Membership(config.members), config.election_ticks, config.heartbeat_ticks
        )
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
        self._halted = asyncio.Event()
        self._failure: BaseException | None = None
        self._standing_changed = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._started: _Started | None = None
        self._proposed_total = metrics.PROPOSALS.labels(config.name)
        self._sync_seconds = metrics.SYNC_SECONDS.labels(config.name)
        self._batch_entries = metrics.BATCH_ENTRIES.labels(config.name)

    async def start(self) -> None:
        """Read the log, join the peers, begin to tick. Returns without waiting for a leader.

        Raises SettingsError for a log that is damaged, ends before what was applied, or is another member's.
        """
        config = self._config
        identity = WalIdentity(config.cluster_id, config.name)
        applied_index = self._machine.applied_index
        opened: tuple[Wal, Recovered] = await self._disk.run(
            partial(open_wal, self._disk, identity, config.random_below, config.segment_bytes_max, applied_index)
        )
        wal, recovered = opened
        try:
            node = RaftNode(
                self._raft_config, recovered.hard_state, recovered.entries, applied_index, config.random_below
            )
        except BaseException:
            wal.close()
            raise
        self._applied_term = node.log.term_at(applied_index) or 0
        self._started = _Started(node, wal, asyncio.get_running_loop())
        try:
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

    async def close(self) -> None:
        """Hand the leadership over if it is here, tell every caller, and stop."""
        started = self._started
        if started is None:
            return
        await self._hand_over(started.node)
        self._halt(None)
        await self._network.close()
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
            raft_log.applied_index, raft_log.last_index, self._raft_config.membership.voters,
            tuple(self._network.connected()),
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
            self._advance(self._started.node)
        except Exception as error:
            self._halt(error)

    def _advance(self, node: RaftNode) -> None:
        self._forwarder.send(node.standing)
        self._barriers.ask(node)
        while node.has_ready():
            ready = node.ready()
            self._carry_out(node, ready)
            if ready.committed and node.has_ready():
                self._wake()  # the loop's other work comes between two slices of entries
                return

    def _carry_out(self, node: RaftNode, ready: Ready) -> None:
        send = self._network.send
        for message in ready.messages:
            send(message)
        if ready.must_sync:
            self._to_persist.put_nowait(ready)
        else:
            for message in ready.messages_after_persist:
                send(message)
        if ready.standing is not None:
            self._on_standing(node, ready.standing)
        if ready.committed:
            self._apply(node, ready.committed)
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

    def _on_standing(self, node: RaftNode, standing: Standing) -> None:
        name = self._config.name
        log.info("standing", member=name, role=standing.role.value, leader=standing.leader, term=standing.term)
        if standing.role is Role.CANDIDATE:
            metrics.ELECTIONS.labels(name).inc()
        if standing.leader:
            metrics.LEADER_CHANGES.labels(name).inc()
        self._standing_changed.set()
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
        wal = self._running().wal
        while not self._halted.is_set():
            ready = await self._to_persist.get()
            began_s = self._clock.monotonic_s()
            try:
                await self._disk.run(partial(wal.append, ready.hard_state, ready.entries))
                self._sync_seconds.observe(self._clock.monotonic_s() - began_s)
                self._batch_entries.observe(len(ready.entries))
                self._on_persisted(ready)
            except Exception as error:
                self._halt(error)

    def _on_persisted(self, ready: Ready) -> None:
        if self._started is None or self._halted.is_set():
            return
        self._started.node.persisted(ready)
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
            self._show(node)
            self._pump()

    def _show(self, node: RaftNode) -> None:
        name, standing = self._config.name, node.standing
        metrics.TERM.labels(name).set(standing.term)
        metrics.IS_LEADER.labels(name).set(standing.role is Role.LEADER)
        metrics.COMMIT_INDEX.labels(name).set(node.log.commit_index)
        metrics.APPLIED_INDEX.labels(name).set(node.log.applied_index)
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

    async def _hand_over(self, node: RaftNode) -> None:
        """Leader that closes: let the follower that lacks least take over, so that nobody waits for an election."""
        successor = node.most_caught_up(self._network.connected())
        if self._halted.is_set() or not node.transfer(successor):
            return
        self._wake()
        try:
            async with asyncio.timeout(self._config.transfer_timeout_s):
                # Its own vote may be needed, so it stays until the other one leads.
                while node.standing.leader in ("", self._config.name) and not self._halted.is_set():
                    self._standing_changed.clear()
                    await self._standing_changed.wait()
        except TimeoutError:
            log.warning("leadership_not_handed_over", member=self._config.name, successor=successor)


@dataclass(frozen=True, slots=True)
class _Started:
    node: RaftNode
    wal: Wal
    loop: asyncio.AbstractEventLoop
