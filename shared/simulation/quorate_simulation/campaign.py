"""Many seeds, over several processes; and the sum of it.

Each worker is a process of its own (`python -m quorate_simulation --worker`): it is told a seed and a profile by a line
on its standard input, and answers with a line of JSON. One that dies or hangs costs its seed, which is reported, and is
replaced. A campaign ends when its seeds or its time are used up, or when it is interrupted; what it knows by then it
says in any case.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from quorate_core.tasks import TaskOwner

from quorate_simulation.report import diagnosis_of, name_of, replay_command
from quorate_simulation.world import Result

SEED_TIMEOUT_S = 300.0
"""A seed takes a second or two; one that takes so long hangs."""
ANSWER_BYTES_MAX = 4 * 1024 * 1024
PROGRESS_S = 10.0
FAILURES_TOLD_MAX = 50

Write = Callable[[str], object]


class SeedResult(msgspec.Struct, frozen=True):
    """What a worker says of one seed. `broken` is empty when nothing was."""

    seed: int
    profile: str
    digest: str = ""
    virtual_s: float = 0.0
    steps: int = 0
    elections: int = 0
    committed: int = 0
    operations: int = 0
    unknown: int = 0
    broken: str = ""
    diagnosis: str = ""

    @classmethod
    def of(cls, result: Result) -> "SeedResult":
        broken = result.broken
        return cls(
            result.seed, result.profile, result.digest, result.virtual_s, result.steps, result.elections,
            result.committed, result.operations, result.unknown,
            "" if broken is None else name_of(broken), "" if broken is None else diagnosis_of(broken),
        )  # fmt: skip


class Summary(msgspec.Struct):
    """Of a campaign; as JSON, for those who keep it."""

    first_seed: int
    profiles: dict[str, int] = msgspec.field(default_factory=dict)
    """How many seeds of each."""
    seeds: int = 0
    virtual_s: float = 0.0
    real_s: float = 0.0
    steps: int = 0
    elections: int = 0
    committed: int = 0
    operations: int = 0
    unknown: int = 0
    broken: list[SeedResult] = msgspec.field(default_factory=list)

    def add(self, result: SeedResult) -> None:
        self.seeds += 1
        self.profiles[result.profile] = self.profiles.get(result.profile, 0) + 1
        self.virtual_s += result.virtual_s
        self.steps += result.steps
        self.elections += result.elections
        self.committed += result.committed
        self.operations += result.operations
        self.unknown += result.unknown
        if result.broken:
            self.broken.append(result)

    def tell(self) -> str:
        minutes = self.real_s / 60
        lines = [
            f"{self.seeds} seeds from {self.first_seed} on, {len(self.broken)} of them broken",
            f"  {self.virtual_s / 3600:.1f} virtual hours in {minutes:.1f} minutes",
            f"  {self.steps} steps, {self.elections} elections, {self.committed} entries committed",
            f"  {self.operations} operations of clients, {self.unknown} of unknown outcome",
            f"  profiles: {', '.join(f'{name} {count}' for name, count in sorted(self.profiles.items()))}",
        ]
        broken = [
            f"  {replay_command(result.seed, result.profile)}: {result.broken}: {result.diagnosis}"
            for result in self.broken[:FAILURES_TOLD_MAX]
        ]
        return "\n".join(lines + broken)


@dataclass
class Campaign:
    """`seeds` or `seconds` may be None: without that bound. `profiles` are taken in turn."""

    first_seed: int
    profiles: Sequence[str]
    seeds: int | None
    seconds: float | None
    workers: int
    write: Write
    began_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.summary = Summary(self.first_seed)
        self._todo = self._choose()
        self._told_s = self.began_s

    def run(self) -> Summary:
        """Until done, or interrupted."""
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(self._run())
        self.summary.real_s = time.monotonic() - self.began_s
        self.write(f"{self.summary.tell()}\n")
        return self.summary

    def _choose(self) -> Iterator[tuple[int, str]]:
        seed = self.first_seed
        while self.seeds is None or seed < self.first_seed + self.seeds:
            if self.seconds is not None and time.monotonic() - self.began_s > self.seconds:
                return
            yield seed, self.profiles[seed % len(self.profiles)]
            seed += 1

    async def _run(self) -> None:
        failures: list[BaseException] = []
        async with TaskOwner("campaign", failures.append) as tasks:
            await asyncio.gather(*(tasks.start(self._work(), "worker") for _ in range(self.workers)))

    async def _work(self) -> None:
        more = True
        while more:
            async with _worker() as worker:
                more = await self._drive(worker)

    async def _drive(self, worker: asyncio.subprocess.Process) -> bool:
        """Give it seeds as long as it answers; False when there are no more."""
        for seed, profile in self._todo:
            result = await _ask(worker, seed, profile)
            self.summary.add(result or SeedResult(seed, profile, broken="the worker died or hung"))
            self._tell_progress(result)
            if result is None:
                return True
        return False

    def _tell_progress(self, result: SeedResult | None) -> None:
        if result is not None and result.broken:
            self.write(f"{replay_command(result.seed, result.profile)}: {result.broken}: {result.diagnosis}\n")
        now_s = time.monotonic()
        if now_s - self._told_s >= PROGRESS_S:
            self._told_s = now_s
            summary = self.summary
            rate = summary.seeds / (now_s - self.began_s) * 60
            self.write(f"{summary.seeds} seeds, {len(summary.broken)} broken, {rate:.0f} a minute\n")


@contextlib.asynccontextmanager
async def _worker() -> AsyncIterator[asyncio.subprocess.Process]:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "quorate_simulation", "--worker",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=ANSWER_BYTES_MAX,
        start_new_session=True,  # an interrupt is for the campaign, which then ends its workers
    )  # fmt: skip
    try:
        yield worker
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.wait()


async def _ask(worker: asyncio.subprocess.Process, seed: int, profile: str) -> SeedResult | None:
    """None when the worker died or hangs."""
    if worker.stdin is None or worker.stdout is None:
        return None
    try:
        worker.stdin.write(f"{seed} {profile}\n".encode())
        async with asyncio.timeout(SEED_TIMEOUT_S):
            await worker.stdin.drain()
            line = await worker.stdout.readline()
    except (TimeoutError, OSError):
        return None
    return msgspec.json.decode(line, type=SeedResult) if line.endswith(b"\n") else None
