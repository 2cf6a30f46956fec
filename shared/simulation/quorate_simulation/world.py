"""One run: a cluster, its clients and its misfortunes, from one seed; and the verdict.

Theory of operation. Everything happens in one `SimulatedLoop`. After every step the invariants are checked; the first
one that is broken ends the run. When the time is over, all faults are healed; from then on the cluster must make
progress again: every member takes a write, who was removed learns of it, leases that nobody renews end, and all members
come to the same state. Then what the clients saw is judged.
"""

import asyncio
import gc
import tempfile
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from quorate_core.errors import InvariantViolation, QuorateError
from quorate_core.tasks import TaskOwner
from quorate_raft.core.membership import Membership
from quorate_raft.core.messages import MemberName, Message
from quorate_store import watches
from quorate_store.once import MARKER_TTL_S_MIN
from quorate_store.state import Applied

from quorate_simulation.faults import Faults
from quorate_simulation.invariants import InvariantBroken, Invariants, require_same_state
from quorate_simulation.lease_holders import LeaseHolder
from quorate_simulation.loop import PROCESS, NothingToDo, ProcessDied, SimulatedLoop, SimulatedProcess, bury
from quorate_simulation.members import Member, ProcessGone, Surroundings, Tuning, is_excused
from quorate_simulation.network import Fabric
from quorate_simulation.profiles import Profile
from quorate_simulation.randomness import Randomness, Stream
from quorate_simulation.timeline import Timeline
from quorate_simulation.verdicts import (
    judge_histories,
    judge_leased_keys,
    judge_leases,
    judge_once,
    judge_watches,
    with_previous,
)
from quorate_simulation.watchers import FIRST_WISH, Observer, Wish
from quorate_simulation.workload import Client, Outcome, attempt

PROGRESS_S_MAX = 20.0
"""After everything is healed: each member takes a write within this time."""
SETTLE_S_MAX = 40.0
"""After that: nothing is left to do, and all members have applied the same."""
POLL_S = 0.05
CHECK_QUORUM_S = 0.2
RAM_FOLDER = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it


@dataclass(frozen=True, slots=True)
class Result:
    """Of one run. `broken` is None when nothing was wrong."""

    seed: int
    profile: str
    digest: str
    virtual_s: float
    steps: int
    elections: int
    committed: int
    operations: int
    unknown: int
    broken: Exception | None
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """How little members keep for a watcher who reads slowly, and how little history they hand out at once: so that a
    short run with few writes has watchers that fall behind, and catch up in many steps."""

    buffer_events_max: int
    history_slice_rows: int

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """For all members: they are constants of the product, which nobody needs to set."""
        before = watches.BUFFER_EVENTS_MAX, watches.HISTORY_SLICE_ROWS
        watches.BUFFER_EVENTS_MAX, watches.HISTORY_SLICE_ROWS = self.buffer_events_max, self.history_slice_rows
        try:
            yield
        finally:
            watches.BUFFER_EVENTS_MAX, watches.HISTORY_SLICE_ROWS = before


class World:
    """Make it, `run` it once."""

    def __init__(self, seed: int, profile: Profile, folder: Path) -> None:
        self.seed = seed
        self._profile = profile
        self._randomness = Randomness(seed)
        self.loop = SimulatedLoop()
        self.timeline = Timeline(self.loop.true_time)
        self.fabric = Fabric(self.loop, self._randomness.stream("network"), self)
        self.members: dict[MemberName, Member] = {}
        self.jumps_s: list[float] = []
        self.leases_ended_s: dict[int, float] = {}
        self.invariants = Invariants(self.members)
        self.is_over = False
        self._broken: Exception | None = None
        shape = self._randomness.stream("shape")
        tuning = Tuning(
            segment_bytes_max=int(shape.skewed(4_096, 65_536)),
            snapshot_entries=int(shape.skewed(20, 500)),
            trailing_entries=int(shape.skewed(1, 100)),
            history_revisions_kept=int(shape.skewed(50, 1_000)),
        )
        self._around = Surroundings(self.loop, self._randomness, self.fabric, self.timeline, self, folder, tuning)
        self._bootstrap = Membership.of_voters(
            {f"n{number}": f"n{number}:1" for number in range(1, shape.one_of(profile.sizes) + 1)}
        )
        for name in self._bootstrap.names:
            self.members[name] = Member(self._around, name, self._bootstrap, self._bootstrap.names)
        parts = self._randomness.stream
        self._watch_limits = WatchLimits(int(shape.skewed(2, 64)), int(shape.skewed(4, 512)))
        self.clients = [
            Client(number, self, parts("client", number), profile.keys, self.timeline)
            for number in range(1, profile.clients + 1)
        ]
        self.holders = [
            LeaseHolder(number, self, parts("holder", number), self.timeline)
            for number in range(1, profile.lease_holders + 1)
        ]
        self.observers = [self._observer(number) for number in range(1, profile.watchers + 1)]

    def _observer(self, number: int) -> Observer:
        chance = self._randomness.stream("watcher", number)
        wish = FIRST_WISH if number == 1 else Wish.draw(chance)
        return Observer(number, self, chance, self.timeline, wish, self.invariants.revisions)

    @property
    def now_s(self) -> float:
        return self.loop.true_time_s

    @property
    def folder(self) -> Path:
        return self._around.folder

    def run(self) -> Result:
        self.loop.on_idle = self._judge_step
        self.loop.set_exception_handler(self._on_loop_exception)
        broken: Exception | None = None
        with _capturing(self), self._watch_limits.in_force():
            try:
                self.loop.run_until_complete(self._run())
            except (InvariantBroken, InvariantViolation, NothingToDo) as error:
                broken = error
            finally:
                self._bury()
        attempts = [one for client in self.clients for one in client.attempts]
        return Result(
            self.seed, self._profile.name, self.timeline.digest, self.now_s, self.loop.steps,
            self.invariants.elections, self.invariants.committed_index, len(attempts),
            sum(one.outcome is Outcome.UNKNOWN for one in attempts), broken, self.timeline,
        )  # fmt: skip

    def choose(self, chance: Stream) -> Member | None:
        serving = [member for member in self.members.values() if member.is_serving]
        return chance.one_of(serving) if serving else None

    def add_machine(self) -> Member:
        name = f"n{len(self.members) + 1}"
        seeds = tuple(self.members)
        self.members[name] = Member(self._around, name, Membership(), seeds)
        return self.members[name]

    def on_sent(self, process: SimulatedProcess, message: Message) -> None:
        try:
            self.invariants.on_sent(process.name, message)
        except InvariantBroken as error:
            self._report(error)

    def on_delivered(self, message: Message) -> None:
        self.timeline.add(message.to, "message", message)
        self.invariants.on_delivered(message, self.now_s)

    def on_broken(self, dialler: MemberName, to: MemberName, reason: str) -> None:
        self.timeline.add(dialler, "link", f"its connection to {to} breaks: {reason}")

    def on_failure(self, process: SimulatedProcess, error: Exception) -> None:
        self._report(InvariantBroken("no handler fails", f"{process.name} raised {error!r}"), error)

    def on_applied(self, member: Member, applied: Applied) -> None:
        for lease in applied.leases_ended:
            self.leases_ended_s.setdefault(lease, self.now_s)
        if member.machine is not None:
            try:
                self.invariants.on_applied(member.name, member.machine, applied)
            except InvariantBroken as error:
                self._report(error)

    def on_replaced(self, member: Member) -> None:
        if member.machine is not None:
            try:
                self.invariants.on_state(member.name, member.machine)
            except InvariantBroken as error:
                self._report(error)

    def on_ended(self, member: Member, failure: BaseException | None) -> None:
        if not is_excused(failure):
            told = failure.detail if isinstance(failure, QuorateError) else repr(failure)
            cause = failure if isinstance(failure, Exception) else None
            self._report(InvariantBroken("no member fails by itself", f"{member.name}: {told}"), cause)

    def _report(self, error: Exception, cause: Exception | None = None) -> None:
        """Keep the first that is broken; where it shows is no place to raise it."""
        if self._broken is None:
            error.__cause__ = cause
            self._broken = error

    def _judge_step(self) -> None:
        if self._broken is None:
            self.invariants.check(self.now_s)
        if self._broken is not None:
            raise self._broken

    async def _check_quorum(self) -> None:
        while True:
            await asyncio.sleep(CHECK_QUORUM_S)
            self.invariants.check_quorum(self.now_s)

    def _on_loop_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, ProcessDied):
            cause = error if isinstance(error, Exception) else None
            self._report(InvariantBroken("no callback fails", f"{context['message']}: {error!r}"), cause)

    async def _run(self) -> None:
        profile = self._profile
        faults = Faults(self, profile, self._randomness.stream("faults"))
        for member in list(self.members.values()):
            member.start()
        async with TaskOwner("world", self._on_own_failure) as own:
            active = [own.start(one.run(), "client") for one in self.clients]
            active += [own.start(one.run(), "holder") for one in self.holders]
            watching = [own.start(one.run(), "watcher") for one in self.observers]
            own.start(self._check_quorum(), "quorum")
            misfortune = own.start(faults.run(), "faults")
            await asyncio.sleep(profile.duration_s)
            misfortune.cancel()
            await faults.heal()
            await self._require_progress()
            self.is_over = True
            await asyncio.gather(*active)
            await self._require_settled()
            for task in watching:
                task.cancel()
        self._judge_end()

    def _on_own_failure(self, error: BaseException) -> None:
        if isinstance(error, InvariantBroken | InvariantViolation):
            self._report(error)
        else:
            cause = error if isinstance(error, Exception) else None
            self._report(InvariantBroken("clients are told what went wrong", repr(error)), cause)

    async def _require_progress(self) -> None:
        """Every member of the cluster takes a write; the others are taken away."""
        try:
            async with asyncio.timeout(PROGRESS_S_MAX):
                for member in list(self.members.values()):
                    while not await self._has_its_place(member):  # noqa: ASYNC110 - as an operator looks again
                        await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise InvariantBroken(
                "progress",
                f"{PROGRESS_S_MAX:g} s after all was healed, not every member has taken a write, or knows that it was "
                f"removed; {self._standings()}",
            ) from error

    async def _has_its_place(self, member: Member) -> bool:
        membership = await self._newest_membership()
        if member.name in membership:
            return not isinstance(await self._try_write(member, f"live/{member.name}".encode()), Outcome)
        if member.name in membership.removed:
            return member.is_removed
        member.is_wanted = False
        member.kill("was never added, and is not needed")
        return True

    async def _newest_membership(self) -> Membership:
        """A leader's. One that was paused may still believe that it leads an older term."""
        while True:
            nodes = [each.node for each in self.members.values() if each.is_serving and each.node is not None]
            newest_term = max((node.standing.term for node in nodes), default=0)
            for node in nodes:
                if node.is_leader and node.standing.term == newest_term and node.has_committed_in_term:
                    return node.contacts
            await asyncio.sleep(POLL_S)

    async def _try_write(self, member: Member, key: bytes) -> object:
        try:
            return await attempt(self, member, lambda parts: parts.store.put(key, b"alive"))
        except ProcessGone:
            return Outcome.FAILED

    async def _require_settled(self) -> None:
        try:
            async with asyncio.timeout(SETTLE_S_MAX):
                await self._until(self._is_settled)
        except TimeoutError as error:
            raise InvariantBroken(
                "convergence",
                f"{SETTLE_S_MAX:g} s after the last write the members have not come to the same state, or leases live "
                f"on, or a watcher has not seen all; {self._standings()}",
            ) from error

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():  # noqa: ASYNC110 - what is looked at lies in several processes
            await asyncio.sleep(POLL_S)

    def _is_settled(self) -> bool:
        nodes = [member.node for member in self._final_members()]
        if any(node is None or node.log.applied_index != node.log.last_index for node in nodes):
            return False
        if len({node.log.last_index for node in nodes if node is not None}) != 1:
            return False
        machine = self._final_members()[0].machine
        present = max(self.invariants.revisions, default=1)
        return (
            machine is not None
            and all(row.ttl_s >= MARKER_TTL_S_MIN for _, row in machine.leases)  # those outlive the run
            and all(one.is_complete(present) for one in self.observers)
        )

    def _final_members(self) -> list[Member]:
        return [member for member in self.members.values() if member.is_wanted and not member.is_removed]

    def _standings(self) -> str:
        return "; ".join(
            f"{name}: {'removed' if member.is_removed else 'down' if member.node is None else _standing(member)}"
            for name, member in self.members.items()
        )

    def _judge_end(self) -> None:
        self.invariants.check(self.now_s)
        if self._broken is not None:
            raise self._broken
        require_same_state(self._final_members())
        revisions = self.invariants.revisions
        attempts = [one for client in self.clients for one in client.attempts]
        judge_once(attempts, revisions)
        judge_watches(self.observers, with_previous(revisions), self.invariants.compact_revision)
        judge_leases([lease for holder in self.holders for lease in holder.leases], self.leases_ended_s, self.jumps_s)
        judge_leased_keys(revisions, self.leases_ended_s)
        judge_histories(attempts)

    def _bury(self) -> None:
        self.loop.on_idle = lambda: None
        for member in self.members.values():
            member.bury()
        for task in asyncio.all_tasks(self.loop):
            bury(task)
        self.loop.close()


def run_seed(seed: int, profile: Profile) -> Result:
    """Run one seed in a private folder, which is gone afterwards."""
    parent = RAM_FOLDER if RAM_FOLDER.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="quorate-sim-", dir=parent) as folder, warnings.catch_warnings():
        # Of coroutines that a kill kept from being begun.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        was_collecting = gc.isenabled()
        gc.disable()  # a coroutine that is thrown away in the middle of a run would run on
        try:
            return World(seed, profile, Path(folder)).run()
        finally:
            if was_collecting:
                gc.enable()
            gc.collect()


@contextmanager
def _capturing(world: World) -> Iterator[None]:
    """What the product logs becomes part of the timeline."""
    config = structlog.get_config()
    folder = str(world.folder)

    def capture(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
        process = PROCESS.get()
        name = event.pop("event")
        event.pop("member", None)
        event.pop("exc_info", None)
        fields = ", ".join(f"{key} {value}" for key, value in event.items())
        if process is not None and process.is_alive:
            world.timeline.add(process.name, "log", f"{name}: {fields}".replace(folder, ""))
        raise structlog.DropEvent

    structlog.configure(processors=[capture], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**config)


def _standing(member: Member) -> str:
    node = member.node
    if node is None:
        return "down"
    standing, log = node.standing, node.log
    return (
        f"{standing.role} of term {standing.term}, leader {standing.leader or 'unknown'}, log {log.first_index} to "
        f"{log.last_index}, committed {log.commit_index}, applied {log.applied_index}"
    )
