"""A cluster of pure `RaftNode`s whose disk and network a test scripts, and which checks Raft's invariants as it goes.

Nothing happens by itself: `tick` passes time, `deliver` moves messages, `sync` ends a write that a member with a held
disk has begun, `stream` brings a snapshot that a leader wants to send. `settle` does all of it until nothing is left to
do. The state machine is the list of all entries that were ever applied, and so a snapshot is such a list.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from quorate_raft.core.membership import Membership, MembershipChange
from quorate_raft.core.messages import Entry, HardState, InstallSnapshot, Message, SnapshotMeta
from quorate_raft.core.node import RaftNode
from quorate_raft.core.quorum import majority
from quorate_raft.core.ready import RaftConfig, Ready

ELECTION_TICKS = 10
SETTLE_STEPS_MAX = 10_000


@dataclass(frozen=True)
class Snapshot:
    meta: SnapshotMeta
    applied: tuple[Entry, ...]


class Member:
    """A member with its disk: what is durable outlives `crash`, everything else does not."""

    def __init__(self, config: RaftConfig, membership: Membership, random_below: Callable[[int], int]) -> None:
        self.config = config
        self.base = SnapshotMeta(membership=membership)
        self.name = config.name
        self.hard_state = HardState()
        self.entries: list[Entry] = []
        """The durable log; it begins after the base, or before it."""
        self.snapshots: dict[int, Snapshot] = {}
        """By the index of their last entry: taken here, or received."""
        self.applied: list[Entry] = []
        self.holds_disk = False
        self.persisting: Ready | None = None
        self.reads: dict[int, int] = {}
        self._random_below = random_below
        self.node: RaftNode | None = self._boot()

    def _boot(self) -> RaftNode:
        return RaftNode(self.config, self.hard_state, self.base, self.entries, len(self.applied), self._random_below)

    @property
    def up(self) -> RaftNode:
        assert self.node is not None, f"{self.name} is down"
        return self.node

    def crash(self) -> None:
        self.node, self.persisting = None, None

    def restart(self, applied_index: int | None = None) -> None:
        """`applied_index`: what the state machine has kept; everything it had applied by default."""
        self.persisting = None
        del self.applied[len(self.applied) if applied_index is None else applied_index :]
        if len(self.applied) < self.base.index:
            self.applied = list(self.snapshots[self.base.index].applied)
        self.node = self._boot()

    def durable(self, index: int) -> Entry | None:
        offset = index - self.entries[0].index if self.entries else -1
        return self.entries[offset] if 0 <= offset < len(self.entries) else None

    def write(self, ready: Ready) -> None:
        """Make durable what a Ready wants, and restore the state machine, as obligation 12 says."""
        if ready.snapshot is not None:
            self.rebase(ready.snapshot, ready.snapshot.index)
            self.applied = list(self.snapshots[ready.snapshot.index].applied)
        if ready.entries:
            first_index = ready.entries[0].index
            next_index = self.entries[-1].index + 1 if self.entries else self.base.index + 1
            assert first_index <= next_index, f"{self.name} would have a gap before {first_index}"
            self.entries = [entry for entry in self.entries if entry.index < first_index]
            self.entries += ready.entries
        if ready.hard_state is not None:
            assert ready.hard_state.term >= self.hard_state.term, "terms never fall"
            if ready.hard_state.term == self.hard_state.term and self.hard_state.vote:
                assert ready.hard_state.vote == self.hard_state.vote, f"{self.name} voted twice in one term"
            self.hard_state = ready.hard_state

    def rebase(self, base: SnapshotMeta, dropped_index: int) -> None:
        """Let the durable log stand on `base`, and drop what is before; all of it if it does not lead there."""
        last = self.durable(base.index)
        holds_base = last is not None and last.term == base.term
        self.entries = [entry for entry in self.entries if holds_base and entry.index > dropped_index]
        self.base = base

    def log_entries(self) -> list[Entry]:
        log = self.up.log
        return list(log.slice(log.first_index, 1 << 60)) if log.last_index > log.previous_index else []


class Cluster:
    def __init__(self, names: str | Iterable[str] = "abc", seed: int = 0, **config: int) -> None:
        self.random = random.Random(seed)
        membership = Membership.of_voters(names)
        self._config = {"election_ticks": ELECTION_TICKS, **config}
        self.members: dict[str, Member] = {}
        for name in membership.voters:
            self.add(name, membership)
        self.wire: list[Message] = []
        self.wanted: list[tuple[str, str]] = []
        """Snapshots that leaders want to send, and to whom."""
        self.cut: set[tuple[str, str]] = set()
        self.agreed: list[Entry] = []
        self._leaders: dict[int, str] = {}
        self._read_floors: dict[tuple[str, int], int] = {}
        self._next_id = 1

    def __getitem__(self, name: str) -> RaftNode:
        return self.members[name].up

    @property
    def leader(self) -> str:
        """The leader of the highest term among those that are up."""
        leaders = [(m.node.standing.term, m.name) for m in self.members.values() if m.node and m.node.is_leader]
        return max(leaders)[1] if leaders else ""

    # What a test does

    def elect(self, name: str) -> None:
        """Let `name`'s election timeout pass first, and settle."""
        for other in self.members.values():
            if other.node is not None:
                state = other.node._state
                state.election_timeout_ticks = ELECTION_TICKS if other.name == name else 100 * ELECTION_TICKS
        for _ in range(2 * ELECTION_TICKS):
            self.tick()
            self.settle()
            if self[name].is_leader:
                return
        raise AssertionError(f"{name} was not elected: {self.describe()}")

    def tick(self, *names: str, times: int = 1) -> None:
        for _ in range(times):
            for member in self.members.values():
                if member.node is not None and (not names or member.name in names):
                    member.node.tick()
                    self.process(member.name)

    def add(self, name: str, membership: Membership | None = None) -> None:
        """Start a new member: one that joins, unless it is told who founds the cluster."""
        self.members[name] = Member(RaftConfig(name, **self._config), membership or Membership(), self.random.randrange)

    def change(self, name: str, change: MembershipChange) -> tuple[int, int]:
        self._next_id += 1
        return self[name].change_membership(change, self._next_id)

    def take_snapshot(self, name: str, trailing_entries: int = 0) -> SnapshotMeta:
        """Let `name` make its state durable, and forget what led to it but for the last `trailing_entries`."""
        member, log = self.members[name], self[name].log
        index = log.applied_index
        term = log.term_at(index)
        assert term is not None
        assert len(member.applied) == index
        meta = SnapshotMeta(index, term, self[name].membership_at(index))
        member.snapshots[index] = Snapshot(meta, tuple(member.applied))
        if index > member.base.index:
            member.rebase(meta, index - trailing_entries)
        self[name].compact(index - trailing_entries)
        return meta

    def stream(self, sender: str, to: str) -> None:
        """Bring the snapshot that `sender` wants to send to `to`; it is lost if `to` cannot be reached."""
        self.wanted.remove((sender, to))
        node, receiver = self[sender], self.members.get(to)
        if receiver is None or receiver.node is None or (sender, to) in self.cut:
            node.snapshot_failed(to)
        else:
            index = max(self.members[sender].snapshots, default=0)
            if index == 0 or index < node.log.previous_index:
                index = self.take_snapshot(sender, 1 << 60).index
            snapshot = self.members[sender].snapshots[index]
            receiver.snapshots[index] = snapshot
            receiver.node.step(InstallSnapshot(sender, to, node.standing.term, snapshot.meta))
            self.process(to)
            node.snapshot_sent(to, index)
        self.process(sender)

    def propose(self, name: str, data: bytes = b"") -> tuple[int, int]:
        self._next_id += 1
        return self[name].propose(data or b"%d" % self._next_id, self._next_id)

    def read(self, name: str) -> int:
        """Ask for a read index; returns the context, under which `reads` of the member will have the answer."""
        self._next_id += 1
        context = self._next_id
        nodes = [m.node for m in self.members.values() if m.node is not None]
        self._read_floors[name, context] = max(len(self.agreed), *(node.log.commit_index for node in nodes))
        self[name].read_index(context)
        return context

    def process(self, name: str) -> None:
        """Carry out what `name` has ready, except for a sync if its disk is held."""
        member = self.members[name]
        while member.node is not None and member.node.has_ready():
            ready = member.node.ready()
            self.wire += ready.messages
            self.wanted += [(name, to) for to in ready.snapshots_wanted]
            self._apply(member, ready)
            if ready.must_sync:
                member.persisting = ready
                if not member.holds_disk:
                    self.sync(name)
            else:
                self.wire += ready.messages_after_persist
        self._check_election_safety(member)

    def sync(self, name: str) -> None:
        """End the write that is under way."""
        member = self.members[name]
        ready, member.persisting = member.persisting, None
        assert ready is not None
        member.write(ready)
        member.up.persisted(ready)
        self.wire += ready.messages_after_persist
        self.process(name)

    def take(self, *kinds: type, to: str = "", sender: str = "") -> list[Message]:
        """Take messages off the wire, to be delivered by hand, or lost."""
        taken = [
            message
            for message in self.wire
            if (not kinds or isinstance(message, kinds))
            and (not to or message.to == to)
            and (not sender or message.sender == sender)
        ]
        self.wire = [message for message in self.wire if not any(message is other for other in taken)]
        return taken

    def deliver(self, messages: Iterable[Message]) -> None:
        for message in list(messages):
            member = self.members.get(message.to)
            if member is not None and member.node is not None and (message.sender, message.to) not in self.cut:
                member.node.step(message)
                self.process(message.to)

    def settle(self) -> None:
        """Deliver everything until the wire is empty and nobody has anything to do."""
        for name in self.members:
            self.process(name)
        for _ in range(SETTLE_STEPS_MAX):
            if self.wire:
                self.deliver([self.wire.pop(0)])
            elif self.wanted:
                self.stream(*self.wanted[0])
            else:
                self.check()
                return
        raise AssertionError("the cluster does not come to rest")

    def partition(self, *sides: str) -> None:
        """Only members of one side hear each other."""
        side_of = {name: number for number, side in enumerate(sides) for name in side}
        self.cut = {(a, b) for a in self.members for b in self.members if side_of.get(a, a) != side_of.get(b, b)}

    def heal(self) -> None:
        self.cut.clear()

    def crash(self, name: str) -> None:
        self.members[name].crash()
        self.wanted = [(sender, to) for sender, to in self.wanted if sender != name]

    def restart(self, name: str, applied_index: int | None = None) -> None:
        self.members[name].restart(applied_index)

    def describe(self) -> str:
        return "; ".join(
            f"{m.name}: down" if m.node is None else f"{m.name}: {m.node.standing} commit {m.node.log.commit_index}"
            for m in self.members.values()
        )

    # What must hold (paper, figure 3)

    def check(self) -> None:
        up = [member for member in self.members.values() if member.node is not None]
        for index, one in enumerate(up):
            self._check_election_safety(one)
            for other in up[index + 1 :]:
                self._check_log_matching(one, other)

    def _check_election_safety(self, member: Member) -> None:
        """At most one leader a term; and a leader has every entry that was ever agreed on (leader completeness)."""
        if member.node is None or not member.node.is_leader:
            return
        term = member.node.standing.term
        if term not in self._leaders:
            self._leaders[term] = member.name
            log = member.node.log
            kept = member.log_entries()[: max(len(self.agreed) - log.previous_index, 0)]
            assert kept == self.agreed[log.previous_index :], f"{member.name} leads {term} without what was agreed on"
        assert self._leaders[term] == member.name, f"{member.name} and {self._leaders[term]} both lead term {term}"

    def _check_log_matching(self, one: Member, other: Member) -> None:
        """If two logs have an entry of the same index and term, they are the same up to it."""
        mine, theirs = one.up.log, other.up.log
        first_index = max(mine.first_index, theirs.first_index)
        common = min(mine.last_index, theirs.last_index)
        while common >= first_index and mine.term_at(common) != theirs.term_at(common):
            common -= 1
        if common >= first_index:
            pieces = [log.slice(first_index, 1 << 60)[: common - first_index + 1] for log in (mine, theirs)]
            assert pieces[0] == pieces[1], f"logs of {one.name} and {other.name} differ before {common}"

    def _apply(self, member: Member, ready: Ready) -> None:
        for entry in ready.committed:
            assert entry.index == len(member.applied) + 1, f"{member.name} applies {entry.index} out of order"
            member.applied.append(entry)
            assert member.durable(entry.index) == entry, f"{member.name} applies what it has not made durable"
            if entry.index > len(self.agreed):
                self._check_durable(entry, member)
                self.agreed.append(entry)
            assert self.agreed[entry.index - 1] == entry, f"{member.name} applies another entry {entry.index}"
        if ready.committed:
            member.up.applied(ready.committed[-1].index)
        for result in ready.reads:
            member.reads[result.context] = result.index
            if result.index:
                floor = self._read_floors[member.name, result.context]
                assert result.index >= floor, f"{member.name} would read at {result.index}, before {floor}"

    def _check_durable(self, entry: Entry, member: Member) -> None:
        """A majority has it: of the configuration at this entry, or of a newer one that a leader has by now."""
        having = {
            m.name for m in self.members.values() if m.base.index >= entry.index or m.durable(entry.index) == entry
        }
        memberships = [member.up.membership_at(entry.index), member.up.membership]
        memberships += [m.node.membership for m in self.members.values() if m.node is not None and m.node.is_leader]
        assert any(len(having.intersection(m.voters)) >= majority(len(m.voters)) for m in memberships), (
            f"entry {entry.index} is acknowledged with copies on {', '.join(sorted(having))} only"
        )
