"""Random schedules in which members come and go and logs are cut behind snapshots, under every fault of the network and
the disks that the harness knows. The invariants of the paper's figure 3 hold all the time, reads are never stale, and
when the faults end, the cluster goes on with whoever is a member then. A failure names its seed."""

import random
from collections.abc import Callable

import pytest
from quorate_core.errors import Conflict, NotFound, NotProposed
from quorate_raft.core.membership import AddLearner, MembershipChange, PromoteLearner, RemoveMember
from quorate_raft.core.messages import EntryKind
from support.raft_cluster import ELECTION_TICKS, Cluster

STEPS = 700
SEEDS = 12
WIRE_MAX = 200
VOTERS_MOST = 5
NEWCOMERS = "efghijklmnopqrstuvwxyz"


class Churn:
    """Draws what happens next from the cluster's own seeded source."""

    def __init__(self, names: str, seed: int) -> None:
        self.cluster = Cluster(names, seed, append_bytes_max=100, inflight_messages_max=3, committed_entries_max=2)
        self.random: random.Random = self.cluster.random
        self.newcomers = iter(NEWCOMERS)
        self.gone: set[str] = set()
        """Removed members that know it: they are stopped, and never started again."""
        actions: list[tuple[Callable[[], None], int]] = [  # and how often, relatively
            (self.deliver, 700),
            (self.tick, 120),
            (self.propose, 80),
            (self.sync, 150),
            (self.read, 30),
            (self.stream, 40),
            (self.take_snapshot, 15),
            (self.add, 8),
            (self.promote, 15),
            (self.remove, 6),
            (self.lose, 10),
            (self.repeat, 10),
            (self.hold_disk, 12),
            (self.crash, 4),
            (self.restart, 20),
            (self.partition, 4),
            (self.heal, 15),
            (self.transfer, 4),
        ]
        self.actions = [action for action, _ in actions]
        self.weights = [weight for _, weight in actions]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.random.choices(self.actions, self.weights)[0]()
            for name in self.cluster.members:
                self.cluster.process(name)
            self.stop_who_is_gone()
            del self.cluster.wire[:-WIRE_MAX]
            self.cluster.check()

    def deliver(self) -> None:
        for _ in range(self.random.randrange(1, 7)):
            if self.cluster.wire:
                late = self.random.random() < 0.1
                position = self.random.randrange(len(self.cluster.wire)) if late else 0
                message = self.cluster.wire.pop(position)
                if not self.is_hung_up_on(message.sender, message.to):
                    self.cluster.deliver([message])

    def tick(self) -> None:
        for name in self.cluster.members:
            if self.random.random() < 0.9:
                self.cluster.tick(name)

    def propose(self) -> None:
        if self.cluster.leader:
            try:
                self.cluster.propose(self.cluster.leader, b"x" * self.random.randrange(60))
            except NotProposed:
                pass  # it is handing over

    def read(self) -> None:
        up = [member.name for member in self.cluster.members.values() if member.node is not None]
        if up:
            self.cluster.read(self.random.choice(up))

    def sync(self) -> None:
        for member in self.cluster.members.values():
            if member.persisting is not None and self.random.random() < 0.5:
                self.cluster.sync(member.name)

    def stream(self) -> None:
        if self.cluster.wanted:
            sender, to = self.random.choice(self.cluster.wanted)
            if self.is_at_rest(sender):
                self.cluster.stream(sender, to)

    def take_snapshot(self) -> None:
        name = self.random.choice(list(self.cluster.members))
        if self.is_at_rest(name) and self.cluster.members[name].applied:
            self.cluster.take_snapshot(name, self.random.choice([0, 0, 2, 5]))

    def add(self) -> None:
        name = next(self.newcomers, "")
        if name and len(self.cluster.members) - len(self.gone) < VOTERS_MOST + 2:
            self.cluster.add(name)
            self.change(AddLearner(name, "address"))

    def promote(self) -> None:
        leader = self.cluster.leader
        if leader and self.cluster[leader].membership.learners:
            self.change(PromoteLearner(self.random.choice(self.cluster[leader].membership.learners)))

    def remove(self) -> None:
        leader = self.cluster.leader
        if leader and len(self.cluster[leader].membership.names) > 2:
            self.change(RemoveMember(self.random.choice(self.cluster[leader].membership.names)))

    def change(self, change: MembershipChange) -> None:
        if self.cluster.leader:
            try:
                self.cluster.change(self.cluster.leader, change)
            except (Conflict, NotFound, NotProposed):
                pass  # what is refused, and why, is shown elsewhere

    def lose(self) -> None:
        if self.cluster.wire:
            self.cluster.wire.pop(self.random.randrange(len(self.cluster.wire)))

    def repeat(self) -> None:
        if self.cluster.wire:
            self.cluster.wire.append(self.random.choice(self.cluster.wire))

    def hold_disk(self) -> None:
        member = self.cluster.members[self.random.choice(list(self.cluster.members))]
        member.holds_disk = self.random.random() < 0.5

    def crash(self) -> None:
        self.cluster.crash(self.random.choice(list(self.cluster.members)))

    def restart(self) -> None:
        for member in self.cluster.members.values():
            if member.node is None and member.name not in self.gone:
                self.cluster.restart(member.name, self.random.choice([None, 0]))
                return

    def partition(self) -> None:
        names = list(self.cluster.members)
        self.random.shuffle(names)
        cut = self.random.randrange(len(names) + 1)
        self.cluster.partition("".join(names[:cut]), "".join(names[cut:]))

    def heal(self) -> None:
        self.cluster.heal()

    def transfer(self) -> None:
        if self.cluster.leader:
            self.cluster[self.cluster.leader].transfer(self.random.choice(list(self.cluster.members)))

    def is_at_rest(self, name: str) -> bool:
        """Whether the machine of `name` is not just being replaced by a snapshot."""
        member = self.cluster.members[name]
        return member.node is not None and member.node._state.restoring is None

    def is_hung_up_on(self, sender: str, to: str) -> bool:
        """A network that has learned that a member is removed talks to it no more, but for telling it so."""
        node = self.cluster.members[to].node
        if node is not None and sender in node.contacts.removed:
            self.gone.add(sender)
            return True
        return False

    def stop_who_is_gone(self) -> None:
        for name, member in self.cluster.members.items():
            if member.node is not None and member.node.is_removed:
                self.gone.add(name)
            if name in self.gone and member.node is not None:
                self.cluster.crash(name)

    def end_faults(self) -> None:
        self.cluster.heal()
        for member in self.cluster.members.values():
            member.holds_disk = False
            if member.persisting is not None:
                self.cluster.sync(member.name)
            if member.node is None and member.name not in self.gone:
                self.cluster.restart(member.name)
        self.stop_who_is_gone()

    def settle(self) -> None:
        """As the cluster's own, but for those that hang up."""
        cluster = self.cluster
        for _ in range(10_000):
            self.stop_who_is_gone()
            if cluster.wire:
                message = cluster.wire.pop(0)
                if not self.is_hung_up_on(message.sender, message.to):
                    cluster.deliver([message])
            elif cluster.wanted:
                cluster.stream(*cluster.wanted[0])
            else:
                cluster.check()
                return
        raise AssertionError(f"the cluster does not come to rest: {cluster.describe()}")

    def recover(self) -> None:
        """Run without faults until one more entry is applied by every member."""
        cluster = self.cluster
        for ticks in range(30 * ELECTION_TICKS):
            cluster.tick()
            self.settle()
            if ticks > 2 * ELECTION_TICKS and cluster.leader and cluster[cluster.leader].has_committed_in_term:
                break
        assert cluster.leader, f"nobody leads: {cluster.describe()}"
        leader = cluster.leader
        index, _ = cluster.propose(leader, b"last")
        context = cluster.read(leader)
        for _ in range(2 * ELECTION_TICKS):
            cluster.tick()
            self.settle()
        node = cluster[leader]
        assert node.is_leader, f"it does not stay: {cluster.describe()}"
        assert node.contacts is node.membership, "the last change is settled"
        for name in node.membership.names:
            assert len(cluster.members[name].applied) >= index, f"{name} did not catch up: {cluster.describe()}"
            assert cluster[name].membership == node.membership
        assert cluster.members[leader].reads.get(context, 0) >= index - 1


@pytest.mark.parametrize("names", ["a", "ab", "abc", "abcd"])
def test_members_come_and_go_under_faults_and_nothing_is_lost(names: str) -> None:
    for seed in range(SEEDS):
        churn = Churn(names, seed)
        try:
            churn.run(STEPS)
            churn.end_faults()
            churn.recover()
        except Exception as error:
            raise AssertionError(f"Churn({names!r}, seed={seed}): {error}") from error


def test_the_schedules_do_get_somewhere() -> None:
    """They are worth something: members are added, promoted and removed, and snapshots taken over, under faults."""
    voters, removed, restored, agreed = set(), 0, 0, 0
    for seed in range(SEEDS):
        churn = Churn("abc", seed)
        churn.run(STEPS)
        agreed += len(churn.cluster.agreed)
        changes = [entry for entry in churn.cluster.agreed if entry.kind is EntryKind.MEMBERSHIP]
        for member in churn.cluster.members.values():
            if member.node is not None:
                voters |= {(seed, name) for name in member.node.membership.voters if name not in "abc"}
                removed = max(removed, len(member.node.contacts.removed))
            restored += member.base.index > 0 and member.name not in "abc"
        assert changes
    assert len(voters) >= SEEDS // 2
    assert removed >= 2
    assert restored >= SEEDS
    assert agreed > 100 * SEEDS // 4
