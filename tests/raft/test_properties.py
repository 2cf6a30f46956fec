"""Random schedules: whatever the network and the disks do, the invariants of the paper's figure 3 hold, and when the
faults end, the cluster goes on. The harness checks the invariants after every step; a failure names its seed."""

from collections.abc import Callable

import pytest
from quorate_core.errors import NotProposed
from support.raft_cluster import ELECTION_TICKS, Cluster

STEPS = 800
SEEDS_A_BLOCK = 6
WIRE_MAX = 200


class Schedule:
    """Draws what happens next from the cluster's own seeded source."""

    def __init__(self, names: str, seed: int) -> None:
        # Tiny limits, so that windows fill and requests are split.
        self.cluster = Cluster(names, seed, append_bytes_max=100, inflight_messages_max=3, committed_entries_max=2)
        self.random = self.cluster.random
        actions: list[tuple[Callable[[], None], int]] = [  # and how often, relatively
            (self.deliver, 600),
            (self.tick, 140),
            (self.propose, 80),
            (self.sync, 150),
            (self.read, 40),
            (self.lose, 15),
            (self.repeat, 15),
            (self.hold_disk, 15),
            (self.crash, 5),
            (self.restart, 20),
            (self.partition, 5),
            (self.heal, 15),
            (self.transfer, 5),
        ]
        self.actions = [action for action, _ in actions]
        self.weights = [weight for _, weight in actions]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.random.choices(self.actions, self.weights)[0]()
            for name in self.cluster.members:
                self.cluster.process(name)
            del self.cluster.wire[:-WIRE_MAX]
            self.cluster.check()

    def deliver(self) -> None:
        for _ in range(self.random.randrange(1, 7)):
            if self.cluster.wire:
                # Mostly in order, as links deliver; sometimes late, as after a reconnect.
                late = self.random.random() < 0.15
                position = self.random.randrange(len(self.cluster.wire)) if late else 0
                self.cluster.deliver([self.cluster.wire.pop(position)])

    def tick(self) -> None:
        for name in self.cluster.members:
            if self.random.random() < 0.9:  # clocks do not run alike
                self.cluster.tick(name)

    def propose(self) -> None:
        if self.cluster.leader:
            try:
                for _ in range(self.random.randrange(1, 5)):
                    self.cluster.propose(self.cluster.leader, b"x" * self.random.randrange(1, 60))
            except NotProposed:
                pass  # it is handing over

    def read(self) -> None:
        up = [member.name for member in self.cluster.members.values() if member.node is not None]
        if up:
            self.cluster.read(self.random.choice(up))

    def lose(self) -> None:
        if self.cluster.wire:
            self.cluster.wire.pop(self.random.randrange(len(self.cluster.wire)))

    def repeat(self) -> None:
        if self.cluster.wire:
            self.cluster.wire.append(self.random.choice(self.cluster.wire))

    def hold_disk(self) -> None:
        member = self.random.choice(list(self.cluster.members.values()))
        member.holds_disk = self.random.random() < 0.5

    def sync(self) -> None:
        for member in self.cluster.members.values():
            if member.persisting is not None and self.random.random() < 0.5:
                self.cluster.sync(member.name)

    def crash(self) -> None:
        self.cluster.crash(self.random.choice(list(self.cluster.members)))

    def restart(self) -> None:
        for member in self.cluster.members.values():
            if member.node is None:
                # The state machine is a cache: it may have kept all, or nothing.
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

    def end_faults(self) -> None:
        self.cluster.heal()
        for member in self.cluster.members.values():
            member.holds_disk = False
            if member.persisting is not None:
                self.cluster.sync(member.name)
            if member.node is None:
                self.cluster.restart(member.name)

    def recover(self) -> None:
        """Run without faults until one more entry is applied by everybody."""
        cluster = self.cluster
        for ticks in range(20 * ELECTION_TICKS):
            cluster.tick()
            cluster.settle()
            # By then a transfer that was begun under faults has succeeded, or is given up.
            if ticks > ELECTION_TICKS and cluster.leader and cluster[cluster.leader].has_committed_in_term:
                break
        index, _ = cluster.propose(cluster.leader, b"last")
        context = cluster.read(cluster.leader)
        cluster.settle()
        for _ in range(2 * ELECTION_TICKS):
            cluster.tick()
            cluster.settle()
        for member in cluster.members.values():
            assert len(member.applied) >= index, f"{member.name} did not catch up: {cluster.describe()}"
        assert cluster.members[cluster.leader].reads.get(context, 0) >= index - 1


@pytest.mark.parametrize("names", ["a", "abc", "abcd", "abcde"])
@pytest.mark.parametrize("block", range(2))
def test_random_schedules_keep_the_invariants_and_then_make_progress(names: str, block: int) -> None:
    """Figure 3: election safety, leader completeness, log matching, state machine safety; reads are never stale."""
    for seed in range(block * SEEDS_A_BLOCK, (block + 1) * SEEDS_A_BLOCK):
        schedule = Schedule(names, seed)
        try:
            schedule.run(STEPS)
            schedule.end_faults()
            schedule.recover()
        except Exception as error:
            raise AssertionError(f"Schedule({names!r}, seed={seed}): {error}") from error


def test_random_schedules_do_get_somewhere() -> None:
    """The schedules above are worth something: under faults leaders change and entries are agreed on."""
    terms, agreed = set(), 0
    for seed in range(20):
        schedule = Schedule("abc", seed)
        schedule.run(STEPS)
        terms |= {(seed, entry.term) for entry in schedule.cluster.agreed}
        agreed += len(schedule.cluster.agreed)
    assert len(terms) > 30
    assert agreed > 400
