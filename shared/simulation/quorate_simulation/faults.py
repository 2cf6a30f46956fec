"""What goes wrong in a run: faults drawn one after the other, each for a while, several at a time.

Everything is taken back when the last phase begins (`heal`): from then on the machines run, the disks work, the network
is whole, and the cluster owes its clients progress.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from quorate_core.errors import InvariantViolation, QuorateError
from quorate_core.tasks import TaskOwner
from quorate_raft.core.membership import AddLearner, MembershipChange, PromoteLearner, RemoveMember
from quorate_raft.core.messages import MemberName

from quorate_simulation.loop import SimulatedLoop, SimulatedProcess
from quorate_simulation.members import Member, ProcessGone
from quorate_simulation.network import ARBITRARY, FAIR_LOSS, RELIABLE, SLOW, Fabric
from quorate_simulation.profiles import Fault, Profile
from quorate_simulation.randomness import Stream
from quorate_simulation.timeline import Timeline

FAULT_S_MIN = 0.05
FAULT_S_MAX = 5.0
LINES_MAX = 20_000
"""A process that is to die at a line runs at most so many more."""
WRITES_MAX = 12
"""The same for one that is to die at its disk."""
DELICATE_FILES = (
    "runtime/wal.py", "runtime/snapshots.py", "runtime/snapshotting.py", "runtime/driver.py", "quorate_store/state.py",
    "quorate_store/generations.py",
)  # fmt: skip
"""Where it matters most at which line a process dies."""
DELICATE_LINES_MAX = 300
REIGN_S_MIN = 0.0005
REIGN_S_MAX = 0.2
REIGN_POLL_S = 0.002
BURST_WRITES_MAX = 60
LEADER_CHOSEN = 0.4
"""How often a fault that wants one member takes a leader, if there is one."""
JUMP_S_MIN = 0.05
JUMP_S_MAX = 20.0
WALL_JUMP_S_MAX = 86_400.0
SLOWNESS_MAX = 100.0
ADMIN_TIMEOUT_S = 5.0
MEMBERS_MAX = 9
"""Machines that a run begins, removed ones included."""
VOTERS_MIN = 2


class World(Protocol):
    """What faults are done to."""

    loop: SimulatedLoop
    fabric: Fabric
    timeline: Timeline
    members: dict[MemberName, Member]
    jumps_s: list[float]
    """When clocks jumped."""

    def add_machine(self) -> Member:
        """A new machine, whose member joins the cluster."""
        ...


class Faults:
    """`run` until cancelled; then `heal`."""

    def __init__(self, world: World, profile: Profile, chance: Stream) -> None:
        self._world = world
        self._profile = profile
        self._chance = chance
        self._failures: list[BaseException] = []
        self._tasks = TaskOwner("faults", on_failure=self._failures.append)

    async def run(self) -> None:
        profile, chance = self._profile, self._chance
        kinds, weights = list(profile.faults), list(profile.faults.values())
        if not kinds:
            return
        while not self._failures:
            await asyncio.sleep(chance.expovariate(1 / profile.fault_interval_s))
            kind = chance.choices(kinds, weights)[0]
            self._tasks.start(self._begin(kind), kind.value)
        raise self._failures[0]

    async def heal(self) -> None:
        await self._tasks.close()
        world = self._world
        world.timeline.add("", "fault", "all is healed")
        world.fabric.heal()
        for member in world.members.values():
            storage = member.storage
            storage.is_full = storage.fails_syncs = False
            storage.slowness = 1.0
            member.is_wanted = True
            if member.process is not None:
                member.process.kill_after_lines = member.process.kill_after_writes = 0
                member.resume()
            member.start()

    def _begin(self, kind: Fault) -> Coroutine[Any, Any, None]:
        handlers: dict[Fault, Callable[[], Coroutine[Any, Any, None]]] = {
            Fault.KILL: lambda: self._kill(power=False, count=1),
            Fault.KILL_AT_LINE: lambda: self._kill_at_line(power=False),
            Fault.STOP: self._stop,
            Fault.KILL_AT_DISK: lambda: self._kill_at_disk(power=False),
            Fault.POWER_LOSS_AT_DISK: lambda: self._kill_at_disk(power=True),
            Fault.POWER_LOSS: lambda: self._kill(power=True, count=1),
            Fault.POWER_LOSS_AT_LINE: lambda: self._kill_at_line(power=True),
            Fault.POWER_LOSS_OF_SOME: lambda: self._kill(power=True, count=2),
            Fault.POWER_LOSS_OF_ALL: lambda: self._kill(power=True, count=MEMBERS_MAX),
            Fault.PAUSE: self._pause,
            Fault.SPLIT: self._split,
            Fault.CUT_PAIR: lambda: self._cut_pair(both_ways=True),
            Fault.CUT_ONE_WAY: lambda: self._cut_pair(both_ways=False),
            Fault.ISOLATE_LEADER: self._isolate_leader,
            Fault.SHORT_REIGN: self._short_reign,
            Fault.KILL_VOTER: self._kill_voter,
            Fault.BAD_LINKS: self._bad_links,
            Fault.SLOW_DISK: self._slow_disk,
            Fault.FULL_DISK: self._full_disk,
            Fault.FAILING_DISK: self._failing_disk,
            Fault.JUMP: self._jump,
            Fault.BURST: self._burst,
            Fault.TRANSFER: self._transfer,
            Fault.CHANGE_AT_ONCE: self._change_at_once,
            Fault.ADD: self._add,
            Fault.PROMOTE: self._promote,
            Fault.REMOVE: self._remove,
        }
        return handlers[kind]()

    async def _last(self) -> None:
        await asyncio.sleep(self._chance.skewed(FAULT_S_MIN, FAULT_S_MAX))

    def _note(self, who: str, what: str) -> None:
        self._world.timeline.add(who, "fault", what)

    def _living(self) -> list[Member]:
        return [member for member in self._world.members.values() if member.is_up]

    def _one_member(self) -> Member | None:
        """Of those that are up; a leader rather often."""
        living = self._living()
        leaders = [member for member in living if member.node is not None and member.node.is_leader]
        chosen = leaders if leaders and self._chance.happens(LEADER_CHOSEN) else living
        return self._chance.one_of(chosen) if chosen else None

    def _names(self) -> list[MemberName]:
        return [name for name, member in self._world.members.items() if not member.is_removed]

    async def _kill(self, *, power: bool, count: int) -> None:
        one = self._one_member() if count == 1 else None
        victims = [one] if one is not None else self._chance.some_of(self._living(), count)
        for member in victims:
            member.is_wanted = False
            member.lose_power() if power else member.kill()
        await self._last()
        for member in victims:
            member.is_wanted = True
            member.start()

    async def _kill_at_line(self, *, power: bool) -> None:
        member = self._one_member()
        process = None if member is None else member.process
        if member is None or process is None:
            return
        process.kill_in = self._chance.one_of(("", *DELICATE_FILES))
        lines = self._chance.randrange(1, DELICATE_LINES_MAX) if process.kill_in else self._chance.skewed(1, LINES_MAX)
        process.kill_after_lines = int(lines)
        self._note(
            member.name,
            f"dies after {process.kill_after_lines} more lines {f'of {process.kill_in}' * bool(process.kill_in)}",
        )
        await self._await_death(member, process, power=power)

    async def _kill_at_disk(self, *, power: bool) -> None:
        member = self._one_member()
        process = None if member is None else member.process
        if process is not None:
            process.kill_after_writes = self._chance.randrange(1, WRITES_MAX)
            self._note(process.name, f"dies after {process.kill_after_writes} more writes")
            await self._await_death(self._world.members[process.name], process, power=power)

    async def _await_death(self, member: Member, process: SimulatedProcess, *, power: bool) -> None:
        await process.wait_for_death()
        if power and member.process is None:
            self._note(member.name, "and its machine with it")
            member.lose_power()

    async def _stop(self) -> None:
        if (member := self._one_member()) is not None:
            member.stop()

    async def _pause(self) -> None:
        if (member := self._one_member()) is not None:
            await self._pause_one(member)

    async def _pause_one(self, member: Member) -> None:
        process = member.process
        member.pause()
        await self._last()
        if member.process is process:
            member.resume()

    async def _split(self) -> None:
        names = self._names()
        self._chance.shuffle(names)
        at = self._chance.randrange(1, max(2, len(names)))
        await self._cut([(one, other) for one in names[:at] for other in names[at:]], both_ways=True)

    async def _cut_pair(self, *, both_ways: bool) -> None:
        if len(names := self._names()) > 1:
            one, other = self._chance.some_of(names, 2)
            await self._cut([(one, other)], both_ways=both_ways)

    async def _isolate_leader(self) -> None:
        leaders = [member for member in self._living() if member.node is not None and member.node.is_leader]
        if leaders:
            leader = self._chance.one_of(leaders).name
            others = [name for name in self._names() if name != leader]
            way = self._chance.one_of(("both", "in", "out"))
            pairs = [(leader, other) if way != "in" else (other, leader) for other in others]
            await self._cut(pairs, both_ways=way == "both")

    async def _short_reign(self) -> None:
        """Whoever is elected next loses it at once, with what it has just begun half done."""
        member = await self._next_leader()
        if member is None:
            return
        name = member.name
        await asyncio.sleep(self._chance.skewed(REIGN_S_MIN, REIGN_S_MAX))
        way = self._chance.one_of(("kill", "pause", "mute"))
        if way == "kill":
            member.is_wanted = False
            member.kill()
            await self._last()
            member.is_wanted = True
            member.start()
        elif way == "pause":
            await self._pause_one(member)
        else:
            await self._cut([(name, other) for other in self._names() if other != name], both_ways=False)

    async def _kill_voter(self) -> None:
        """Whoever votes next for somebody else is killed as soon as its vote is durable; it is back while others still
        ask for it."""
        before = {member.name: member.durable.hard_state.term for member in self._living()}
        end_s = self._world.loop.true_time_s + FAULT_S_MAX
        while not (voters := [member for member in self._living() if _has_voted(member, before.get(member.name, 0))]):
            if self._world.loop.true_time_s > end_s:
                return
            await asyncio.sleep(REIGN_POLL_S)
        voters[0].kill("has voted, and is killed")

    async def _next_leader(self) -> Member | None:
        """Whoever is elected next; None when nobody is for a while."""
        before = self._reigns()
        end_s = self._world.loop.true_time_s + FAULT_S_MAX
        while not (new := self._reigns() - before):
            if self._world.loop.true_time_s > end_s:
                return None
            await asyncio.sleep(REIGN_POLL_S)
        return self._world.members[min(new)[1]]

    def _reigns(self) -> set[tuple[int, MemberName]]:
        nodes = [(member.name, member.node) for member in self._living()]
        return {(node.standing.term, name) for name, node in nodes if node is not None and node.is_leader}

    async def _cut(self, pairs: list[tuple[MemberName, MemberName]], *, both_ways: bool) -> None:
        fabric = self._world.fabric
        ways = pairs + [(other, one) for one, other in pairs] if both_ways else pairs
        told = ", ".join(f"{one} {'⇹' if both_ways else '→|'} {other}" for one, other in pairs)
        self._note("network", f"cut: {told}")
        for one, other in ways:
            fabric.cut(one, other)
        await self._last()
        for one, other in ways:
            fabric.mend(one, other)
        self._note("network", f"mended: {told}")

    async def _bad_links(self) -> None:
        fabric, names, chance = self._world.fabric, self._names(), self._chance
        model = chance.one_of((FAIR_LOSS, ARBITRARY, ARBITRARY, SLOW))
        chosen = chance.some_of(names, chance.randrange(1, len(names) + 1))
        ways = [(one, other) for one in chosen for other in names if one != other and chance.happens(0.8)]
        self._note("network", f"{model.name} from {', '.join(chosen)} on")
        for one, other in ways:
            fabric.set_model(one, other, model)
        await self._last()
        for one, other in ways:
            fabric.set_model(one, other, RELIABLE)
        self._note("network", f"no longer {model.name} from {', '.join(chosen)} on")

    async def _slow_disk(self) -> None:
        member = self._chance.one_of(list(self._world.members.values()))
        member.storage.slowness = self._chance.skewed(2.0, SLOWNESS_MAX)
        self._note(member.name, f"its disk is {member.storage.slowness:.0f} times as slow")
        await self._last()
        member.storage.slowness = 1.0

    async def _full_disk(self) -> None:
        member = self._chance.one_of(list(self._world.members.values()))
        self._note(member.name, "its disk is full")
        member.storage.is_full = True
        await self._last()
        member.storage.is_full = False
        self._note(member.name, "its disk has room again")

    async def _failing_disk(self) -> None:
        member = self._chance.one_of(list(self._world.members.values()))
        self._note(member.name, "its disk fails to sync")
        member.storage.fails_syncs = True
        await self._last()
        member.storage.fails_syncs = False

    async def _jump(self) -> None:
        member, chance = self._chance.one_of(list(self._world.members.values())), self._chance
        if chance.happens(0.3):
            seconds = chance.between(-WALL_JUMP_S_MAX, WALL_JUMP_S_MAX)
            member.clock.jump_wall(seconds)
            self._note(member.name, f"its wall clock jumps by {seconds:.0f} s")
            return
        seconds = chance.skewed(JUMP_S_MIN, JUMP_S_MAX)
        self._note(member.name, f"its monotonic clock jumps ahead by {seconds:.2f} s")
        self._world.jumps_s.append(self._world.loop.true_time_s)
        self._world.loop.jump_ahead(member.process, member.clock, seconds)

    async def _burst(self) -> None:
        """Many writes at once, at one member. Nobody looks at what they gave: they are there to be in the way."""
        if (member := self._one_member()) is not None and member.is_serving:
            count = self._chance.randrange(1, BURST_WRITES_MAX)
            self._note(member.name, f"{count} writes at once")
            async with TaskOwner("burst") as owner:
                writes = [owner.start(self._write(member, number), "write") for number in range(count)]
                await asyncio.gather(*writes)

    async def _write(self, member: Member, number: int) -> None:
        try:
            await member.ask(lambda parts: parts.store.put(f"burst/{number % 5}".encode(), str(number).encode()))
        except InvariantViolation:
            raise
        except (QuorateError, ProcessGone):
            pass

    async def _transfer(self) -> None:
        to = self._chance.one_of(["", *self._names()])
        await self._administer(
            f"transfer the leadership to {to or 'anybody'}",
            lambda member: member.ask(lambda parts: parts.driver.transfer_leadership(to, ADMIN_TIMEOUT_S)),
        )

    async def _change_at_once(self) -> None:
        """Ask a new leader before it knows what is committed."""
        member = await self._next_leader()
        node = None if member is None else member.node
        if member is None or node is None or not member.is_serving:
            return
        others, learners = node.membership.others(member.name), node.membership.learners
        if learners and self._chance.happens(0.5):
            await self._change(PromoteLearner(self._chance.one_of(learners)), member)
        elif len(node.membership.voters) > VOTERS_MIN:
            await self._change(RemoveMember(self._chance.one_of(others)), member)

    async def _add(self) -> None:
        if len(self._world.members) < MEMBERS_MAX:
            member = self._world.add_machine()
            member.start()
            await self._change(AddLearner(member.name, f"{member.name}:1"))

    async def _promote(self) -> None:
        learners = [name for name in self._names() if any(name in learners for learners in self._known_learners())]
        if learners:
            await self._change(PromoteLearner(self._chance.one_of(learners)))

    async def _remove(self) -> None:
        nodes = [member.node for member in self._living() if member.node is not None]
        voters = max((node.membership.voters for node in nodes), key=len, default=())
        if len(voters) > VOTERS_MIN:
            await self._change(RemoveMember(self._chance.one_of(self._names())))

    def _known_learners(self) -> list[tuple[MemberName, ...]]:
        return [member.node.membership.learners for member in self._living() if member.node is not None]

    async def _change(self, change: MembershipChange, asked: Member | None = None) -> None:
        kind = {AddLearner: "add", PromoteLearner: "promote", RemoveMember: "remove"}[type(change)]
        await self._administer(
            f"{kind} {change.name}",
            lambda member: member.ask(lambda parts: parts.driver.change_membership(change, ADMIN_TIMEOUT_S)),
            asked,
        )

    async def _administer(
        self, what: str, work: Callable[[Member], Awaitable[object]], asked: Member | None = None
    ) -> None:
        serving = [member for member in self._living() if member.is_serving]
        if not serving:
            return
        member = asked or self._chance.one_of(serving)
        try:
            async with asyncio.timeout(2 * ADMIN_TIMEOUT_S):
                await work(member)
        except InvariantViolation:
            raise
        except (QuorateError, ProcessGone, TimeoutError) as error:
            self._note("operator", f"{what}, asked of {member.name}: not done, or not known: {error}")
        else:
            self._note("operator", f"{what}, asked of {member.name}: done")


def _has_voted(member: Member, since_term: int) -> bool:
    """For somebody else, in a term after `since_term`."""
    kept = member.durable.hard_state
    return kept.term > since_term and kept.vote not in ("", member.name)
