"""Schedules that hypothesis composes and, when one breaks an invariant, shortens to the few steps that matter: a
failure is printed as a script of what happened. `test_properties` and `test_churn` run longer ones, drawn from seeds.

Messages are lost, late, repeated and reordered; members tick unevenly, crash with slow disks, forget what led to their
state, come and go. The harness checks the paper's figure 3 and that no read is stale, after every step; at the end the
faults end, and the cluster must go on.
"""

import random
from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import Conflict, NotFound, NotProposed
from quorate_raft.core.membership import AddLearner, MembershipChange, PromoteLearner, RemoveMember
from quorate_raft.core.messages import EntryKind
from support.raft_cluster import ELECTION_TICKS, Cluster

Step = tuple[str, int, int]
"""What happens, and two numbers that say to whom and how much."""

PHASES = 12
SETTLE_STEPS_MAX = 5_000
SCHEDULES_WATCHED = 60
MEMBERS_MAX = 7
NEWCOMERS = "efghij"
WIRE_ACTIONS = ("deliver", "deliver", "deliver-late", "lose", "repeat", "cut", "heal", "stream")
MEMBER_ACTIONS = ("tick", "campaign", "read", "transfer", "crash", "restart", "hold-disk", "sync", "snapshot")
LEADER_ACTIONS = ("propose", "propose", "add", "promote", "remove")
ACTIONS = (*WIRE_ACTIONS, *MEMBER_ACTIONS, *LEADER_ACTIONS, "pass", "pass")
STEPS = st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9), st.integers(0, 9))
SCHEDULES = st.lists(st.lists(STEPS, max_size=20), min_size=PHASES, max_size=PHASES).map(
    lambda lists: list(chain.from_iterable(lists))
)
"""Lists of lists, since hypothesis draws one list short, and still can shorten each of many."""


class Play:
    """A cluster of a, b and c, led by a, to which steps happen."""

    def __init__(self) -> None:
        self.cluster = Cluster("abc", append_bytes_max=100, inflight_messages_max=3, committed_entries_max=2)
        self.cluster.elect("a")
        self.gone: set[str] = set()
        """Members that know that they are removed, and so are stopped for good."""

    def run(self, steps: Sequence[Step]) -> None:
        for action, one, other in steps:
            names = [name for name in self.cluster.members if name not in self.gone]
            self.step(action, names[one % len(names)], names[other % len(names)], other)
            for name in self.cluster.members:
                self.cluster.process(name)
            self._stop_who_is_removed()
            self.cluster.check()

    def step(self, action: str, name: str, other: str, number: int) -> None:
        if action == "pass":
            self.pass_time(2 * number + 1)
        elif action in WIRE_ACTIONS:
            self._move(action, name, other, number)
        elif action in MEMBER_ACTIONS:
            self._happen_to(action, name, other, number)
        elif self.cluster.leader:
            self._propose(action, name, number)

    def _happen_to(self, action: str, name: str, other: str, number: int) -> None:
        cluster, member = self.cluster, self.cluster.members[name]
        if member.node is None:
            if action == "restart":  # the state machine is a cache: it may have kept all, or nothing
                cluster.restart(name, None if number % 2 else 0)
            return
        match action:
            case "tick":
                cluster.tick(name, times=number + 1)
            case "campaign":
                cluster.tick(name, times=2 * ELECTION_TICKS)
            case "read":
                cluster.read(name)
            case "transfer":
                cluster[name].transfer(other)
            case "crash":
                cluster.crash(name)
            case "hold-disk":
                member.holds_disk = number % 3 == 0
            case "sync" if member.persisting is not None:
                cluster.sync(name)
            case "snapshot" if member.node._state.restoring is None and member.applied:
                cluster.take_snapshot(name, number % 4)

    def _propose(self, action: str, name: str, number: int) -> None:
        try:
            match action:
                case "propose":
                    for _ in range(number % 3 + 1):
                        self.cluster.propose(self.cluster.leader, b"x" * 10 * number)
                case "add" if len(self.cluster.members) < MEMBERS_MAX:
                    newcomer = NEWCOMERS[len(self.cluster.members) - len("abc")]
                    self.cluster.add(newcomer)
                    self._change(AddLearner(newcomer, ""))
                case "promote":
                    self._change(PromoteLearner(name))
                case "remove":
                    self._change(RemoveMember(name))
        except (Conflict, NotFound, NotProposed):
            pass  # what is refused, and why, is shown elsewhere

    def _change(self, change: MembershipChange) -> None:
        self.cluster.change(self.cluster.leader, change)

    def _move(self, action: str, name: str, other: str, number: int) -> None:
        cluster, wire = self.cluster, self.cluster.wire
        match action:
            case "deliver":
                for _ in range(min(2 * number + 1, len(wire))):
                    self._deliver(0)
            case "deliver-late" if wire:
                self._deliver(number % len(wire))
            case "lose" if wire:
                wire.pop(number % len(wire))
            case "repeat" if wire:
                wire.append(wire[number % len(wire)])
            case "cut":
                cluster.cut.add((name, other))
            case "heal":
                cluster.heal()
            case "stream":
                self._stream()

    def _stream(self) -> bool:
        """Bring a snapshot that somebody wants to send, if its state is not just being replaced by another."""
        for sender, to in self.cluster.wanted:
            if self.cluster[sender]._state.restoring is None:
                self.cluster.stream(sender, to)
                return True
        return False

    def _deliver(self, position: int) -> None:
        message = self.cluster.wire.pop(position)
        receiver = self.cluster.members[message.to].node
        if receiver is not None and message.sender in receiver.contacts.removed:
            self.gone.add(message.sender)  # its network tells it so, and hangs up
        else:
            self.cluster.deliver([message])

    def _stop_who_is_removed(self) -> None:
        for name, member in self.cluster.members.items():
            if member.node is not None and (member.node.is_removed or name in self.gone):
                self.gone.add(name)
                self.cluster.crash(name)

    def end_faults(self) -> None:
        self.cluster.heal()
        for name, member in self.cluster.members.items():
            member.holds_disk = False
            if member.persisting is not None:
                self.cluster.sync(name)
            if member.node is None and name not in self.gone:
                self.cluster.restart(name)

    def settle(self) -> None:
        for _ in range(SETTLE_STEPS_MAX):
            self._stop_who_is_removed()
            if self.cluster.wire:
                self._deliver(0)
            elif not self._stream():
                self.cluster.check()
                return
        raise AssertionError(f"the cluster does not come to rest: {self.cluster.describe()}")

    def pass_time(self, ticks: int) -> None:
        for _ in range(ticks):
            self.cluster.tick()
            self.settle()

    def go_on(self) -> None:
        """Without faults, somebody leads soon, and what is proposed then is applied by every member."""
        cluster = self.cluster
        for _ in range(20):
            self.pass_time(2 * ELECTION_TICKS)
            if cluster.leader and cluster[cluster.leader].has_committed_in_term:
                break
        assert cluster.leader, f"nobody leads: {cluster.describe()}"
        index, _ = cluster.propose(cluster.leader, b"last")
        self.pass_time(ELECTION_TICKS)
        members = cluster[cluster.leader].membership
        for name in members.names:
            assert len(cluster.members[name].applied) >= index, f"{name} lags behind {index}: {cluster.describe()}"
            assert cluster[name].membership == members


@pytest.mark.timeout(600)  # it takes seconds, but to shorten a schedule that fails takes minutes
@settings(max_examples=120, deadline=None)
@given(SCHEDULES)
def test_no_schedule_breaks_an_invariant_and_the_cluster_goes_on_after_it(steps: list[Step]) -> None:
    """Figure 3, section 8 and the thesis' chapter 4, whatever happens."""
    play = Play()
    play.run(steps)
    play.end_faults()
    play.go_on()


def test_schedules_do_get_somewhere() -> None:
    """They are worth something: drawn without hypothesis, many of them change leaders and members, and have a snapshot
    taken over, under faults."""
    draw = random.Random(0)
    terms = changes = restored = 0
    for _ in range(SCHEDULES_WATCHED):
        play = Play()
        play.run([(draw.choice(ACTIONS), draw.randrange(10), draw.randrange(10)) for _ in range(5 * PHASES)])
        terms += len({entry.term for entry in play.cluster.agreed}) > 1
        changes += any(entry.kind is EntryKind.MEMBERSHIP for entry in play.cluster.agreed)
        restored += any(member.base.index > 0 and name not in "abc" for name, member in play.cluster.members.items())
    assert terms > SCHEDULES_WATCHED // 10
    assert changes > SCHEDULES_WATCHED // 4
    assert restored > SCHEDULES_WATCHED // 10
