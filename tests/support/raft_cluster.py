"""A cluster of pure `RaftNode`s whose disk and network a test scripts, and which checks Raft's invariants as it goes.

Nothing happens by itself: `tick` passes time, `deliver` moves messages, `sync` ends a write that a member with a held
disk has begun. `settle` does all of it until nothing is left to do.
"""

import random
from collections.abc import Callable, Iterable

from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import Entry, HardState, Message
from quorate_raft.core.node import RaftNode
from quorate_raft.core.quorum import majority
from quorate_raft.core.ready import RaftConfig, Ready

ELECTION_TICKS = 10
SETTLE_STEPS_MAX = 10_000


class Member:
    """A member with its disk: what is durable outlives `crash`, everything else does not."""

    def __init__(self, config: RaftConfig, random_below: Callable[[int], int]) -> None:
        self.config = config
        self.name = config.name
        self.hard_state = HardState()
        self.entries: list[Entry] = []
        self.applied: list[Entry] = []
        self.holds_disk = False
        self.persisting: Ready | None = None
        self.reads: dict[int, int] = {}
        self._random_below = random_below
        self.node: RaftNode | None = self._boot()

    def _boot(self) -> RaftNode:
        return RaftNode(self.config, self.hard_state, self.entries, len(self.applied), self._random_below)

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
        self.node = self._boot()

    def write(self, ready: Ready) -> None:
        if ready.entries:
            first_index = ready.entries[0].index
            assert first_index <= len(self.entries) + 1, f"{self.name} would have a gap before {first_index}"
            del self.entries[first_index - 1 :]
            self.entries += ready.entries
        if ready.hard_state is not None:
            assert ready.hard_state.term >= self.hard_state.term, "terms never fall"
            if ready.hard_state.term == self.hard_state.term and self.hard_state.vote:
                assert ready.hard_state.vote == self.hard_state.vote, f"{self.name} voted twice in one term"
            self.hard_state = ready.hard_state

    def log_entries(self) -> list[Entry]:
        log = self.up.log
        return list(log.slice(1, 1 << 60)) if log.last_index else []


class Cluster:
    def __init__(self, names: str | Iterable[str] = "abc", seed: int = 0, **config: int) -> None:
        self.random = random.Random(seed)
        membership = Membership(names)
        self.members = {
            name: Member(
                RaftConfig(name, membership, **{"election_ticks": ELECTION_TICKS, **config}), self.random.randrange
            )
            for name in membership.voters
        }
        self.wire: list[Message] = []
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
            member = self.members[message.to]
            if member.node is not None and (message.sender, message.to) not in self.cut:
                member.node.step(message)
                self.process(message.to)

    def settle(self) -> None:
        """Deliver everything until the wire is empty and nobody has anything to do."""
        for name in self.members:
            self.process(name)
        for _ in range(SETTLE_STEPS_MAX):
            if not self.wire:
                self.check()
                return
            self.deliver([self.wire.pop(0)])
        raise AssertionError("the cluster does not come to rest")

    def partition(self, *sides: str) -> None:
        """Only members of one side hear each other."""
        side_of = {name: number for number, side in enumerate(sides) for name in side}
        self.cut = {(a, b) for a in self.members for b in self.members if side_of.get(a, a) != side_of.get(b, b)}

    def heal(self) -> None:
        self.cut.clear()

    def crash(self, name: str) -> None:
        self.members[name].crash()

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
            kept = member.log_entries()[: len(self.agreed)]
            assert kept == self.agreed, f"{member.name} leads term {term} without what was agreed on"
        assert self._leaders[term] == member.name, f"{member.name} and {self._leaders[term]} both lead term {term}"

    def _check_log_matching(self, one: Member, other: Member) -> None:
        """If two logs have an entry of the same index and term, they are the same up to it."""
        mine, theirs = one.log_entries(), other.log_entries()
        common = min(len(mine), len(theirs))
        while common and mine[common - 1].term != theirs[common - 1].term:
            common -= 1
        assert mine[:common] == theirs[:common], f"logs of {one.name} and {other.name} differ before {common}"

    def _apply(self, member: Member, ready: Ready) -> None:
        for entry in ready.committed:
            assert entry.index == len(member.applied) + 1, f"{member.name} applies {entry.index} out of order"
            member.applied.append(entry)
            assert member.entries[entry.index - 1] == entry, f"{member.name} applies what it has not made durable"
            if entry.index > len(self.agreed):
                self._check_durable(entry)
                self.agreed.append(entry)
            assert self.agreed[entry.index - 1] == entry, f"{member.name} applies another entry {entry.index}"
        if ready.committed:
            member.up.applied(ready.committed[-1].index)
        for result in ready.reads:
            member.reads[result.context] = result.index
            if result.index:
                floor = self._read_floors[member.name, result.context]
                assert result.index >= floor, f"{member.name} would read at {result.index}, before {floor}"

    def _check_durable(self, entry: Entry) -> None:
        copies = sum(
            len(m.entries) >= entry.index and m.entries[entry.index - 1] == entry for m in self.members.values()
        )
        assert copies >= majority(len(self.members)), f"entry {entry.index} is acknowledged with {copies} copies"
