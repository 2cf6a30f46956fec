"""A member: a machine with its disk and clocks, and one process after the other on it.

What runs in the process is the product, unchanged, put together as a node does it: `RaftDriver` on its disk and
network, `StateMachine` on LMDB, `RaftStore` with its lease keeper. It ends as processes end: killed, with its machine,
or by itself; and like a supervisor's, its next life begins after a while, unless it says that this would be useless.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from quorate_core.errors import QuorateError, SettingsError, Unavailable
from quorate_core.tasks import TaskOwner
from quorate_raft.core.membership import Membership
from quorate_raft.core.node import RaftNode
from quorate_raft.runtime.administration import MemberRemoved
from quorate_raft.runtime.disk import DiskFailed
from quorate_raft.runtime.driver import DriverConfig, RaftDriver
from quorate_store.machine_boot import read_marker
from quorate_store.raft_engine import RaftStore
from quorate_store.state import Applied, StateMachine

from quorate_simulation.clock import MachineClock
from quorate_simulation.disk import SimulatedDisk, Storage, scribble
from quorate_simulation.durable import DurableLog
from quorate_simulation.inspection import node_of
from quorate_simulation.loop import SimulatedLoop, SimulatedProcess
from quorate_simulation.network import Fabric, SimulatedNetwork
from quorate_simulation.randomness import Randomness
from quorate_simulation.timeline import Timeline

CLUSTER_ID = "simulated"
MAP_BYTES = 64 * 1024 * 1024
CLOCK_SKEW_MAX = 0.05
"""A clock is at most so much too fast or too slow. Real ones are a thousand times better."""
BOOT_S_MAX = 10_000.0
RESTART_S_MIN = 0.05
RESTART_S_MAX = 1.0
KILL_NOTICED_S_MAX = 0.01
POWER_LOSS_NOTICED_S_MAX = 2.0
CLOSE_TIMEOUT_S = 10.0
"""A process that was asked to end and has not by then is killed, as supervisors do."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tuning:
    """What members are configured with: small, so that segments, snapshots and compaction come all the time."""

    segment_bytes_max: int = 16 * 1024
    snapshot_entries: int = 60
    trailing_entries: int = 20
    history_revisions_kept: int = 200


class Judge(Protocol):
    """Who hears what members do."""

    def on_applied(self, member: "Member", applied: Applied) -> None: ...
    def on_replaced(self, member: "Member") -> None: ...
    def on_ended(self, member: "Member", failure: BaseException | None) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all members of a run share."""

    loop: SimulatedLoop
    randomness: Randomness
    fabric: Fabric
    timeline: Timeline
    judge: Judge
    folder: Path
    tuning: Tuning


class ProcessGone(Exception):
    """The process that was asked ended before it answered."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a process is made of."""

    tasks: TaskOwner
    disk: SimulatedDisk
    machine: StateMachine
    network: SimulatedNetwork
    driver: RaftDriver
    store: RaftStore


class Member:
    """`bootstrap`: the configuration that its cluster began with; empty for one that joins, which asks `seeds`."""

    def __init__(self, around: Surroundings, name: str, bootstrap: Membership, seeds: tuple[str, ...]) -> None:
        self.name = name
        self._around = around
        self._bootstrap = bootstrap
        self._seeds = seeds
        self._chance = around.randomness.stream("member", name)
        self.storage = Storage(around.randomness.stream("disk", name), around.folder / name / "disk")
        self.durable = DurableLog(self.storage)
        self.storage.on_durable = self.durable.on_durable
        self.clock = MachineClock(
            around.loop.true_time, 1 + self._chance.between(-CLOCK_SKEW_MAX, CLOCK_SKEW_MAX), self._boot_s()
        )
        self._boots = 1
        self._lives = 0
        self._state_folder = around.folder / name / "state-0"
        self.process: SimulatedProcess | None = None
        self._parts: Parts | None = None
        self.is_serving = False
        """Started, and not about to end."""
        self._is_ending = False
        self.running_since_s = 0.0
        """Since when its process has not been paused."""
        self.is_removed = False
        """It said that it was removed, and will not be started again."""
        self.is_wanted = True
        """Whether the supervisor starts it again."""
        self._requests: dict[asyncio.Future[Any], None] = {}
        self.dead: list[SimulatedProcess] = []

    @property
    def is_up(self) -> bool:
        return self.process is not None

    @property
    def is_answering(self) -> bool:
        return self.is_serving and self.process is not None and not self.process.is_paused

    @property
    def node(self) -> RaftNode | None:
        return None if self._parts is None else node_of(self._parts.driver)

    @property
    def parts(self) -> Parts:
        """Raises ProcessGone when it does not serve."""
        if self._parts is None or not self.is_serving:
            raise ProcessGone(self.name)
        return self._parts

    @property
    def machine(self) -> StateMachine | None:
        return None if self._parts is None else self._parts.machine

    def start(self) -> None:
        """Begin a life, unless there is one, or should be none."""
        if self.process is not None or self.is_removed or not self.is_wanted:
            return
        around = self._around
        self._lives += 1
        process = SimulatedProcess(self.name, around.loop, self.clock, lambda: self._on_killed(process))
        self.process, self._is_ending = process, False
        self.running_since_s = around.loop.true_time_s
        self.durable.reread()
        self._move_state()
        around.timeline.add(self.name, "process", f"starts, for the {self._lives}. time")
        process.start(self._live(process))

    def stop(self) -> None:
        """Ask it to end, as SIGTERM does."""
        process = self.process
        if process is None or not self.is_serving or process.is_paused:
            return
        self._around.timeline.add(self.name, "process", "is asked to end")
        self._begin_to_end(process, None)

    def kill(self, reason: str = "is killed") -> None:
        """kill -9."""
        process = self.process
        if process is None:
            return
        process.kill()
        self._on_killed(process, reason, self._chance.between(0, KILL_NOTICED_S_MAX))

    def lose_power(self) -> None:
        """The machine goes down, and with it what its disk had not synced."""
        around = self._around
        if self.process is not None:
            self.process.kill()
            self._on_killed(self.process, "dies with its machine", self._chance.between(0, POWER_LOSS_NOTICED_S_MAX))
        for note in self.storage.lose_power():
            around.timeline.add(self.name, "disk", note)
        marker = read_marker(self._state_folder)
        if marker is None or not marker.closed_cleanly:
            for path in sorted(self._state_folder.rglob("*.mdb")):
                if path.stat().st_size:
                    scribble(path, self._chance)
        self._boots += 1
        self.clock.boot(self._boot_s())

    def pause(self) -> None:
        if self.process is not None:
            self._around.timeline.add(self.name, "process", "is paused")
            self.process.pause()

    def resume(self) -> None:
        if self.process is not None and self.process.is_paused:
            self._around.timeline.add(self.name, "process", "goes on")
            self.running_since_s = self._around.loop.true_time_s
            self.process.resume()

    async def ask(self, work: Callable[[Parts], Coroutine[Any, Any, T]]) -> T:
        """Have the process do `work`, as a client's request makes it. Raises what that raises, and ProcessGone."""
        parts, process = self.parts, self.process
        if process is None:
            raise ProcessGone(self.name)
        answer: asyncio.Future[T] = self._around.loop.create_future()
        self._requests[answer] = None

        async def answering() -> None:
            try:
                result = await work(parts)
            except Exception as error:
                _settle(answer, error=error)
            else:
                _settle(answer, result=result)

        task = process.start(answering())
        try:
            return await answer
        except asyncio.CancelledError:
            process.call(task.cancel)  # whoever asked has hung up
            raise
        finally:
            self._requests.pop(answer, None)

    def bury(self) -> None:
        """After the run."""
        self.kill("ends with the run")
        for process in self.dead:
            process.bury()

    async def _live(self, process: SimulatedProcess) -> None:
        try:
            parts = self._assemble(process)
            self._parts = parts
            await parts.driver.start()
            await parts.store.start()
        except Exception as error:
            self._begin_to_end(process, error)
        else:
            self.is_serving = not self._is_ending
            self._around.timeline.add(self.name, "process", "serves")

    def _assemble(self, process: SimulatedProcess) -> Parts:
        around, chance, tuning = self._around, self._chance, self._around.tuning
        tasks = TaskOwner(self.name, lambda error: self._on_task_failed(process, error))
        disk = SimulatedDisk(self.storage, process)
        machine = StateMachine(self._state_folder, map_bytes=MAP_BYTES, boot_id=f"boot-{self._boots}")
        machine.add_applied_listener(lambda applied: around.judge.on_applied(self, applied))
        machine.add_replaced_listener(lambda: around.judge.on_replaced(self))
        network = SimulatedNetwork(around.fabric, process, self._seeds)
        config = DriverConfig(
            self.name, self._bootstrap, CLUSTER_ID,
            segment_bytes_max=tuning.segment_bytes_max, snapshot_entries=tuning.snapshot_entries,
            trailing_entries=tuning.trailing_entries, random_below=chance.randrange,
        )  # fmt: skip
        driver = RaftDriver(config, disk, network, self.clock, machine, tasks)
        store = RaftStore(
            driver, machine, self.clock, tasks,
            history_revisions_kept=tuning.history_revisions_kept, random_bits=chance.getrandbits,
            loop_time_s=self.clock.monotonic_s,
        )  # fmt: skip
        return Parts(tasks, disk, machine, network, driver, store)

    async def _shut_down(self, process: SimulatedProcess, failure: BaseException | None) -> None:
        """End as a node ends, which closes what it can also after a failure."""
        parts = self._parts
        if parts is not None:
            self._around.loop.later(CLOSE_TIMEOUT_S, self._lose_patience, process)
            await parts.store.close()
            await parts.driver.close()
            await parts.tasks.close()
            parts.machine.close()
        process.kill()
        self._end(process, "has ended", self._chance.between(0, KILL_NOTICED_S_MAX), failure)

    def _lose_patience(self, process: SimulatedProcess) -> None:
        if self.process is process:
            self.kill("is killed, for it has not ended in time")

    def _on_task_failed(self, process: SimulatedProcess, error: BaseException) -> None:
        if self.process is process:
            self._begin_to_end(process, error)

    def _begin_to_end(self, process: SimulatedProcess, failure: BaseException | None) -> None:
        self.is_serving = False
        if not self._is_ending:
            self._is_ending = True
            process.start(self._shut_down(process, failure))

    def _on_killed(
        self, process: SimulatedProcess, reason: str = "is killed in the middle of a line", noticed_s: float = 0.0
    ) -> None:
        machine = self.machine
        if machine is not None:
            machine.abandon()
        self._end(process, reason, noticed_s, None)

    def _end(self, process: SimulatedProcess, reason: str, noticed_s: float, failure: BaseException | None) -> None:
        if self.process is not process:
            return
        around = self._around
        cause = f": {_told(failure)}" if failure is not None else ""
        around.timeline.add(self.name, "process", f"{reason}{cause}".replace(str(around.folder), ""))
        if self._parts is not None:
            around.fabric.remove(self._parts.network, noticed_s)
        self.process, self._parts, self.is_serving = None, None, False
        self.dead.append(process)
        for answer in list(self._requests):
            _settle(answer, error=ProcessGone(self.name))
        self._requests.clear()
        self.is_removed = isinstance(failure, MemberRemoved)
        around.judge.on_ended(self, failure)
        around.loop.later(self._chance.skewed(RESTART_S_MIN, RESTART_S_MAX), self.start)

    def _move_state(self) -> None:
        """Into a folder of this life: LMDB must not meet what the last one may still have open."""
        folder = self._around.folder / self.name / f"state-{self._lives}"
        if self._state_folder.exists():
            shutil.copytree(self._state_folder, folder)
            shutil.rmtree(self._state_folder)
        self._state_folder = folder

    def _boot_s(self) -> float:
        return self._chance.between(1.0, BOOT_S_MAX)


def is_excused(failure: BaseException | None) -> bool:
    """Whether a process may end so when its disk is broken or full, or it was removed. Everything else is a defect."""
    if failure is None or isinstance(failure, MemberRemoved | DiskFailed | Unavailable):
        return True
    return isinstance(failure, SettingsError) and isinstance(failure.__cause__, DiskFailed)


def _told(failure: BaseException) -> str:
    return failure.detail if isinstance(failure, QuorateError) else repr(failure)


def _settle(answer: "asyncio.Future[Any]", result: Any = None, error: Exception | None = None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
