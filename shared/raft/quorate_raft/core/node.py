"""`RaftNode`: one member of a cluster, as a state machine without I/O.

Theory of operation. Messages of other members (`step`), the passing of time (`tick`), proposals and read requests
change the member's state and leave work behind; `ready` hands that work out. The roles and their transitions are in
`state`, who is elected in `election`, how entries travel and are committed in `replication`.

A leader appends a proposal to its own log and sends it to the followers at once, while it makes it durable itself; it
counts itself only when `persisted` says so, as it counts a follower only when that has answered. An entry of its term
that a majority has made durable is committed, and everything before it too. A member applies what is committed and
durable on itself. A linearizable read takes the commit index, has a majority confirm that the leader still leads, and
is answered when as much is applied.

Who is a member is in the log, too (`membership`, `configurations`, `reconfiguration`). The log stands on a base, which
a snapshot holds (`snapshots`); what is compacted away reaches a follower that lacks it as a snapshot only.

What the caller owes:
 1. Whenever `has_ready()`, take `ready()` and do what it holds. Anything may be called in between, at any time,
    by one thread.
 2. `messages` may leave at once, in order; they promise nothing that is not durable.
 3. If `must_sync`: make `hard_state` and `entries` durable, with one sync; then call `persisted(ready)`, then let
    `messages_after_persist` leave. Only one such Ready is out at a time: until `persisted`, `ready` hands out only
    what needs no persistence. If not `must_sync`, `messages_after_persist` may leave at once.
 4. An entry to persist overwrites everything durable from its index on.
 5. A failure to persist is final: the member must stop, and never try again (what the disk has kept is not known).
 6. Apply `committed` in order, each entry once, and call `applied` with the last index.
 7. Answer a read with what was applied up to its `index` or later; ask again, with a new context, if that is 0.
 8. Restart with the last hard state, the newest base and all entries that were made durable, and the applied index of a
    state machine that has at least what is in the base: else restore it from the base's snapshot first.
 9. Call `tick` at a steady interval; never many times at once to catch up, since what a leader sent meanwhile may
    wait to be read.
10. Messages may be lost, late, repeated or reordered, but a message from a member must be from that member. Take in
    what comes from anybody who was ever a member, and can prove it, but for those that `contacts` says are removed.
11. Reach everybody in `contacts` (changes come in `Ready.membership`), and nobody else needs to be reached.
12. If a Ready has a `snapshot`: what was handed out to be applied before is applied first, or not at all. Make the
    snapshot the base of the durable log, in which nothing stays that contradicts it; restore the state machine from it;
    then the same Ready's `entries` and `hard_state` as ever. `persisted` says that all of it is done.
13. For each member in `snapshots_wanted`, send it a snapshot of what is applied here, of entry `log.previous_index` or
    later; then call `snapshot_sent` or `snapshot_failed`, in any case, though this member may lead no more. The member
    that got it makes the file durable and steps an `InstallSnapshot`, as if from the leader, with the term in which it
    was offered.
14. Call `compact(index)` only when a snapshot of `index` or later is durable and the base of the durable log. The base
    has the configuration `membership_at` its index.
15. Stop for good a member that `is_removed`, once its messages have left.
"""

from collections.abc import Callable, Sequence
from typing import Any

from quorate_core.errors import InvariantViolation, NotProposed

from quorate_raft.core import election, reconfiguration, replication, snapshots
from quorate_raft.core.log import RaftLog
from quorate_raft.core.membership import Membership, MembershipChange
from quorate_raft.core.messages import (
    NO_MEMBER,
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    HardState,
    HeartbeatRequest,
    HeartbeatResponse,
    InstallSnapshot,
    MemberName,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    SnapshotMeta,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from quorate_raft.core.progress import FollowerStatus, ProgressState
from quorate_raft.core.ready import RaftConfig, Ready, Role, Standing
from quorate_raft.core.state import MemberState, RandomBelow

_HANDLERS: dict[type, Callable[[MemberState, Any], None]] = {
    AppendRequest: replication.on_append_request,
    AppendResponse: replication.on_append_response,
    HeartbeatRequest: replication.on_heartbeat_request,
    HeartbeatResponse: replication.on_heartbeat_response,
    ReadIndexRequest: replication.on_read_index_request,
    ReadIndexResponse: replication.on_read_index_response,
    VoteRequest: election.on_vote_request,
    VoteResponse: election.on_vote_response,
    TimeoutNow: election.on_timeout_now,
    InstallSnapshot: snapshots.on_install_snapshot,
}


class RaftNode:
    """See the module. `hard_state`, `base` and `entries` are what was durable: `HardState()`, `SnapshotMeta(0, 0,
    membership)` and none for a member of a new cluster, and `SnapshotMeta()` for one that joins. `entries` go on after
    `base`, or overlap it."""

    def __init__(
        self,
        config: RaftConfig,
        hard_state: HardState,
        base: SnapshotMeta,
        entries: Sequence[Entry],
        applied_index: int,
        random_below: RandomBelow,
    ) -> None:
        self._state = MemberState(config, hard_state, base, entries, applied_index, random_below)
        self._config = config
        self._handed_hard_state = hard_state
        self._handed_standing = self.standing
        self._handed_contacts = self.contacts
        self._persisting: Ready | None = None

    @property
    def standing(self) -> Standing:
        state = self._state
        return Standing(state.role, state.leader, state.term)

    @property
    def is_leader(self) -> bool:
        return self._state.role is Role.LEADER

    @property
    def has_committed_in_term(self) -> bool:
        """For a leader: whether its no-op is committed, and reads are answered."""
        return self._state.has_committed_in_term

    @property
    def log(self) -> RaftLog:
        """To be read only."""
        return self._state.log

    def step(self, message: Message) -> None:
        """Take in a message; one that is not for this member is ignored. The sender need not be in the configuration
        that is known here: that may be behind the sender's.

        Raises InvalidRequest for entries that do not fit together, or a snapshot that no leader can have;
        ForgottenMember when this member turns out to have lost its log; InvariantViolation for what must never be.
        """
        state = self._state
        if message.to != state.name or message.sender in (state.name, NO_MEMBER):
            return
        if message.term != state.term:
            if message.term < state.term:
                election.answer_older_term(state, message)
                return
            if not election.meet_newer_term(state, message):
                return
        _HANDLERS[type(message)](state, message)

    def tick(self) -> None:
        """One interval of time has passed."""
        if self._state.role is Role.LEADER:
            election.tick_leader(self._state)
        else:
            election.tick_follower(self._state)

    def propose(self, data: bytes, request_id: int) -> tuple[int, int]:
        """Append an entry; returns its index and term, by which it is known whether it is committed or overwritten.

        Raises NotProposed when this member does not lead, or is handing over.
        """
        state = self._state
        if state.role is not Role.LEADER or state.transferee != NO_MEMBER:
            raise _refusal(state)
        log = state.log
        index = log.last_index + 1
        log.append(Entry(index, state.term, EntryKind.NORMAL, data, request_id))
        state.replication_is_due = True
        return index, state.term

    def change_membership(self, change: MembershipChange, request_id: int) -> tuple[int, int]:
        """Append the configuration after `change`, in force at once; returns the entry's index and term, as `propose`.

        Raises NotProposed as `propose` does, and before this leader has committed an entry of its term; Conflict while
        another change is not committed, for a learner that lags, and when the voters that are alive would be no
        majority any more; NotFound, Conflict or InvalidRequest for a change that makes no sense.
        """
        state = self._state
        if state.role is not Role.LEADER or state.transferee != NO_MEMBER:
            raise _refusal(state)
        return reconfiguration.append_change(state, change, request_id)

    @property
    def membership(self) -> Membership:
        """The newest configuration in the log: the one that is in force, though it may be cut off again."""
        return self._state.membership

    @property
    def contacts(self) -> Membership:
        """Whom the network must reach: all members from the newest committed configuration on. `removed` names only
        those whose removal is committed."""
        return self._state.log.configurations.contacts

    @property
    def is_removed(self) -> bool:
        """Whether this member is, for good, no member any more."""
        return self._state.name in self.contacts.removed

    def membership_at(self, index: int) -> Membership:
        """The configuration in force after the entry `index`; may be asked in any thread. Raises NotFound for one from
        before the log's beginning."""
        return self._state.log.configurations.at(index)

    @property
    def is_restoring(self) -> bool:
        """Whether a snapshot that was taken in is not restored yet; until then no other one is of use."""
        return self._state.restoring is not None

    def snapshot_sent(self, to: MemberName, index: int) -> None:
        """`to`, named in `snapshots_wanted`, has taken over a snapshot of what was applied here up to `index`."""
        snapshots.on_sent(self._state, to, index)

    def snapshot_failed(self, to: MemberName) -> None:
        """`to`, named in `snapshots_wanted`, was sent no snapshot, or may not have taken it over."""
        snapshots.on_failed(self._state, to)

    def compact(self, index: int) -> None:
        """Forget the entries up to `index`, which a durable snapshot holds. Raises InvariantViolation past what was
        applied."""
        self._state.log.compact(index)

    def progress(self) -> dict[MemberName, FollowerStatus]:
        """Leader: how far each other member is. Empty for others."""
        state = self._state
        return {
            name: FollowerStatus(
                follower.match_index, follower.next_index, follower.state, follower.is_alive,
                state.membership.is_learner(name),
            )
            for name, follower in state.progress.items()
        }  # fmt: skip

    def read_index(self, context: int) -> None:
        """Ask for a read index; the answer comes in a Ready, under `context`, or never (ask again with another)."""
        replication.ask_read_index(self._state, self._state.name, context)

    def transfer(self, to: MemberName) -> bool:
        """Leader: let `to` take over; meanwhile, at most an election timeout, nothing is proposed. Says if it began."""
        return self._state.role is Role.LEADER and replication.begin_transfer(self._state, to)

    def most_caught_up(self, among: Sequence[MemberName]) -> MemberName:
        """Leader: the other voter of `among` that lacks least; empty when there is none."""
        return replication.most_caught_up(self._state, among)

    @property
    def withholds_commit(self) -> bool:
        """Leader: whether a follower was not told yet of what is committed, and nothing is on its way that says so."""
        state = self._state
        return any(
            follower.commit_sent < state.log.commit_index
            and follower.state is ProgressState.REPLICATE
            and not follower.is_window_full
            for follower in state.progress.values()
        )

    def tell_commit(self) -> None:
        """Leader: have those told. Otherwise a message too many and no harm."""
        if self._state.role is Role.LEADER:
            self._state.tell_commit()

    def has_ready(self) -> bool:
        state = self._state
        if state.replication_is_due or state.messages or state.read_results or state.reads.may_start:
            return True
        if state.log.has_committed_to_apply() or self._standing_changed():
            return True
        if state.snapshots_wanted or self._contacts_changed():
            return True
        return self._persisting is None and (
            bool(state.messages_after_persist)
            or state.log.has_unstable()
            or self._must_keep_vote()
            or state.restoring is not None
        )

    def ready(self) -> Ready:
        """What is to be done now. Each piece of work is handed out once."""
        state = self._state
        replication.send_due(state)
        hard_state, snapshot, entries, after = self._take_unpersisted()
        standing = membership = None
        if self._standing_changed():
            standing = self._handed_standing = self.standing
        if self._contacts_changed():
            membership = self._handed_contacts = self.contacts
        ready = Ready(
            hard_state=hard_state,
            entries=entries,
            must_sync=hard_state is not None or bool(entries) or snapshot is not None,
            messages=tuple(state.messages),
            messages_after_persist=after,
            committed=state.log.take_committed(self._config.committed_entries_max),
            reads=tuple(state.read_results),
            standing=standing,
            snapshot=snapshot,
            snapshots_wanted=tuple(state.snapshots_wanted),
            membership=membership,
        )
        state.messages.clear()
        state.read_results.clear()
        state.snapshots_wanted.clear()
        if ready.must_sync:
            self._persisting = ready
        return ready

    def persisted(self, ready: Ready) -> None:
        """What `ready` wanted durable is durable, and its snapshot restored."""
        if ready is not self._persisting:
            raise InvariantViolation("persisted() was called for a Ready that was not out to be persisted")
        self._persisting = None
        state = self._state
        if ready.snapshot is not None:
            state.restoring = None
            state.log.mark_restored(ready.snapshot.index)
        if ready.entries:
            state.log.mark_stable()
            if state.role is Role.LEADER:
                replication.commit_if_agreed(state)
        voted = ready.hard_state
        if voted is not None and state.role is Role.CANDIDATE and voted.term == state.term:
            election.on_own_vote_durable(state)

    def applied(self, index: int) -> None:
        """The state machine has applied everything up to `index`."""
        self._state.log.mark_applied(index)

    def _take_unpersisted(
        self,
    ) -> tuple[HardState | None, SnapshotMeta | None, tuple[Entry, ...], tuple[Message, ...]]:
        if self._persisting is not None:
            return None, None, (), ()
        state = self._state
        entries = state.log.take_unstable() if state.log.has_unstable() else ()
        hard_state = HardState(state.term, state.vote, state.log.commit_index)
        handed = self._handed_hard_state
        # A higher commit index alone is not worth a sync: it is only a hint, and rides along with the next entries.
        if self._must_keep_vote() or ((entries or state.restoring) and hard_state.commit != handed.commit):
            self._handed_hard_state = hard_state
        after = tuple(state.messages_after_persist)
        state.messages_after_persist.clear()
        return (None if self._handed_hard_state is handed else hard_state), state.restoring, entries, after

    def _must_keep_vote(self) -> bool:
        return self._state.term != self._handed_hard_state.term or self._state.vote != self._handed_hard_state.vote

    def _contacts_changed(self) -> bool:
        return self._state.log.configurations.contacts is not self._handed_contacts

    def _standing_changed(self) -> bool:
        state, handed = self._state, self._handed_standing
        return state.role is not handed.role or state.leader != handed.leader or state.term != handed.term


def _refusal(state: MemberState) -> NotProposed:
    if state.role is Role.LEADER:
        return NotProposed(f"{state.name} is handing the leadership over to {state.transferee}")
    leader = f"{state.leader} does" if state.leader else "no leader is known at present"
    return NotProposed(f"{state.name} does not lead; {leader}")
