"""The workers together: started, told what is served, watched, replaced, drained; and what they report, as one.

Theory of operation. Each of the numbers 1 to N has a *keeper*, a task that starts a worker, hears it until it has gone,
and starts another one. A worker is

- *starting* until it says that it serves, for at most START_TICKS looks;
- *serving*; it reports several times a second;
- *silent* when it has not reported for SILENT_TICKS looks of the watch: the others no longer wait for it with
  connections. It may come back. After GONE_TICKS it is killed, since its clients would wait for ever;
- *gone*: its place in shared memory is cleared, its counters stay in the sums, and after a pause there is another one.
  The pause doubles from PAUSE_S_MIN to PAUSE_S_MAX with each worker that did not serve for STEADY_S.

The first process is *ready* when all have served once, and from then on while any does. Before that, a worker that says
that its settings are wrong, or one that cannot be started START_TRIES_MAX times in a row, ends the first process, which
tells why. Later none does: the others serve, and what keeps a new one from it, such as a file that is damaged for a
while, is told each time that it is tried.

Looks are counted, and not seconds: when this process itself was stopped, or had no processor, nobody else is blamed.
"""

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice

import msgspec
import structlog
from quorate_core.clock import Clock, SystemClock
from quorate_core.errors import InvalidRequest, InvariantViolation, SettingsError, Unavailable
from quorate_core.process import EXIT_SETTINGS, Stop
from quorate_core.tasks import TaskOwner

from quorate_gateway.documents.access import ApiKeysDocument
from quorate_gateway.matching import CompiledRoute
from quorate_gateway.proxy.balancing import EndpointReport
from quorate_gateway.served import (
    CLIENTS_SHOWN_MAX,
    BreakerReport,
    ClientReport,
    Forced,
    LimitReport,
    PoolReport,
    RedisReport,
    RouteReport,
    Totals,
    WorkerReport,
    force_breaker,
)
from quorate_gateway.settings import WorkerSettings
from quorate_gateway.snapshot import Snapshot
from quorate_gateway.workers.feed import Told, forced_breakers
from quorate_gateway.workers.merging import (
    by_name,
    merge_breakers,
    merge_endpoints,
    merge_redis,
    sum_limits,
    sum_pools,
    sum_totals,
)
from quorate_gateway.workers.messages import Applied, FromWorker, Serving, endpoint_key
from quorate_gateway.workers.process import WorkerProcess, WorkerState, start_worker
from quorate_gateway.workers.shared_connections import forget_worker
from quorate_gateway.workers.shared_table import SharedTables
from quorate_gateway.workers.tally import Departed, Tally

TICK_S = 0.25
SILENT_TICKS = 6
GONE_TICKS = 20
START_TICKS = 120
START_TRIES_MAX = 3
STEADY_S = 10.0
PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 5.0
END_S_MAX = 2.0
"""For a worker that has closed its end of the channel to end, with the status that says why."""
ANSWER_S_MAX = 0.25
"""How long somebody who asks for what is served waits for workers that do not answer; then their last report counts."""

log = structlog.get_logger(__name__)


class Fleet:
    """`Served` by all workers. `listener` is bound; `tables` are in the memory that the workers inherit. A failure for
    good is told to `stop`."""

    def __init__(
        self,
        settings: WorkerSettings,
        listener: socket.socket,
        tables: SharedTables,
        stop: Stop,
        clock: Clock | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self.monotonic_s, self.wall_s = clock.monotonic_s, clock.wall_s
        self.restarts = 0
        self._settings = settings
        self._listener = listener
        self._tables = tables
        self._stop = stop
        self._told = Told()
        self._workers: dict[int, WorkerProcess] = {}
        """By number; those that run."""
        self._departed = Departed()
        self._tasks = TaskOwner("workers", stop.fail)
        self._lifeline: tuple[int, int] | None = None
        self._beginning: dict[int, int] = {}
        """By the number of a worker whose process is being made: the number of what it is told first."""
        self._progress = asyncio.Event()
        """Set, and replaced, whenever a worker has applied something or has gone."""
        self._has_served: set[int] = set()
        self._all_served = asyncio.Event()
        self._draining = asyncio.Event()

    # Life.

    async def start(self) -> None:
        """Begin; returns when all serve. Raises what keeps one of them from it."""
        self._lifeline = os.pipe2(os.O_CLOEXEC)
        for number in range(1, self._settings.workers + 1):
            self._tasks.start(self._keep(number), f"worker-{number}")
        self._tasks.start(self._watch(), "watch")
        stopped = self._tasks.start(self._stop.wait(), "stop")
        served = self._tasks.start(self._all_served.wait(), "served")
        await asyncio.wait({stopped, served}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopped, served):
            task.cancel()

    async def drain(self, timeout_s: float) -> None:
        """Let all of them answer what they have, for up to `timeout_s` seconds, and end."""
        self._draining.set()
        self._listener.close()
        running = list(self._workers.values())
        for worker in running:
            worker.terminate()
        ended = [self._tasks.start(worker.process.wait(), "ended") for worker in running]
        if ended:
            _, late = await asyncio.wait(ended, timeout=timeout_s)
            if late:
                log.warning("drain_cut_short", workers=len(late), after_s=timeout_s)
        for worker in running:
            worker.kill()
        await self._tasks.close()
        if self._lifeline is not None:
            for end in self._lifeline:
                os.close(end)

    def unready_reason(self) -> str | None:
        """Why clients are not served, or None."""
        missing = [str(number) for number in range(1, self._settings.workers + 1) if number not in self._has_served]
        if missing:
            return f"these workers do not serve yet: {', '.join(missing)}"
        serving = [worker for worker in self._workers.values() if worker.state is WorkerState.SERVING]
        if not serving:
            return "no worker serves now"
        unrouted = [str(worker.number) for worker in serving if not worker.feed.applied]
        if unrouted:
            return f"these workers have no routes yet: {', '.join(unrouted)}"
        return None

    async def _keep(self, number: int) -> None:
        pause_s, tries = PAUSE_S_MIN, 0
        while not self._draining.is_set():
            began_s = self.monotonic_s()
            await self._run(number)
            if self._draining.is_set():
                return
            tries = 0 if number in self._has_served else tries + 1
            if tries >= START_TRIES_MAX:
                raise Unavailable(f"worker {number} could not be started {tries} times; the log above says why")
            if self.monotonic_s() - began_s >= STEADY_S:
                pause_s = PAUSE_S_MIN
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
            self.restarts += 1

    async def _run(self, number: int) -> None:
        """One worker, from its start to its end."""
        if self._lifeline is None:
            raise InvariantViolation("a worker is started before the fleet is")
        memory = self._tables.memory.descriptor
        self._beginning[number] = self._told.number
        try:
            worker = await start_worker(
                number, self._settings, self._listener.fileno(), memory, self._lifeline[0], self._told
            )
            self._workers[number] = worker
        except OSError as error:
            log.error("worker_not_started", worker=number, reason=error.strerror)
            return
        finally:
            del self._beginning[number]
            self._note_progress()
        if self._draining.is_set():
            worker.terminate()
        try:
            await worker.hear(partial(self._heard, worker))
        except (msgspec.MsgspecError, InvalidRequest) as error:
            log.error("worker_garbled", worker=number, reason=str(error))
            worker.kill()
        finally:
            await self._ended(worker)

    async def _ended(self, worker: WorkerProcess) -> None:
        """It has closed its end: what it has not answered by now, it never will."""
        worker.close()
        status = await self._wait(worker)
        # NB: in one step, so that nothing is counted twice, or for a moment not at all.
        del self._workers[worker.number]
        self._note_progress()
        self._departed.add(worker.tally)
        self._tables.memory.set_connections(worker.number, 0, accepts=False)
        forget_worker(self._tables, worker.number, self.monotonic_s())
        if self._draining.is_set():
            return
        if status == EXIT_SETTINGS and worker.number not in self._has_served:
            raise SettingsError(f"worker {worker.number} cannot work with these settings; the log above says why")
        log.warning("worker_ended", worker=worker.number, pid=worker.pid, status=status)

    async def _wait(self, worker: WorkerProcess) -> int:
        """The exit status of a worker that has closed its end, and so is about to go by itself."""
        try:
            async with asyncio.timeout(None if self._draining.is_set() else END_S_MAX):
                return await worker.process.wait()
        except TimeoutError:
            worker.kill()
            return await worker.process.wait()

    def _heard(self, worker: WorkerProcess, message: FromWorker) -> None:
        if worker.state is WorkerState.SILENT:
            worker.state = WorkerState.SERVING
            log.warning("worker_back", worker=worker.number, pid=worker.pid)
        if isinstance(message, Applied):
            worker.tell_news(self._told)
            self._note_progress()
        elif isinstance(message, Serving):
            log.info("worker_serves", worker=worker.number, pid=worker.pid)
            self._has_served.add(worker.number)
            if len(self._has_served) == self._settings.workers:
                self._all_served.set()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for worker in tuple(self._workers.values()):
                self._look_after(worker)

    def _look_after(self, worker: WorkerProcess) -> None:
        worker.unheard_ticks += 1
        unheard_max = START_TICKS if worker.state is WorkerState.STARTING else GONE_TICKS
        if worker.unheard_ticks == SILENT_TICKS and worker.state is WorkerState.SERVING and not self._draining.is_set():
            worker.state = WorkerState.SILENT
            self._tables.memory.set_away(worker.number)
            log.warning("worker_silent", worker=worker.number, pid=worker.pid)
        if worker.unheard_ticks == unheard_max and not self._draining.is_set():
            log.error("worker_killed", worker=worker.number, pid=worker.pid, unheard_s=unheard_max * TICK_S)
            worker.kill()

    # What they are told.

    def swap(self, snapshot: Snapshot) -> None:
        """Serve by `snapshot` from now on."""
        self._departed.follow(snapshot)
        self._tell(Told(snapshot, self._told.api_keys, forced_breakers(snapshot), self._told.number + 1))

    def swap_keys(self, keys: ApiKeysDocument) -> None:
        """Accept these API keys from now on."""
        self._tell(Told(self._told.snapshot, keys, self._told.forced, self._told.number + 1))

    def reload_certificate(self) -> None:
        """Use for new connections what the files hold now, which this process has looked at before."""
        for worker in self._workers.values():
            worker.reload_certificate()

    def force(self, route: CompiledRoute, forced: Forced | None) -> None:
        """For all workers, and for those that will be. This process's own breaker, which nobody asks, remembers it:
        it is forgotten when the breaker's parameters change, here and there."""
        if route.breaker is not None:
            force_breaker(route.breaker, forced, self.monotonic_s())
            forced_now = forced_breakers(self._told.snapshot)
            self._tell(Told(self._told.snapshot, self._told.api_keys, forced_now, self._told.number + 1))

    async def until_applied(self) -> None:
        """Wait until no worker serves by anything older than what was told last before this call. One that is silent
        may still serve: it is waited for, until it is back or gone."""
        number = self._told.number
        while self._is_behind(number):
            await self._progress.wait()

    def _is_behind(self, number: int) -> bool:
        # NB: a worker whose process is just being made begins with what was served when that began.
        return any(told < number for told in self._beginning.values()) or any(
            worker.feed.told_applied < number for worker in self._workers.values() if worker.may_serve
        )

    def _note_progress(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def _tell(self, told: Told) -> None:
        self._told = told
        for worker in self._workers.values():
            worker.tell_news(told)

    # What they say, as one.

    @property
    def snapshot(self) -> Snapshot:
        return self._told.snapshot

    @property
    def totals(self) -> Totals:
        return sum_totals([self._departed.totals, *(tally.totals for tally in self._tallies)])

    @property
    def routes(self) -> Mapping[str, RouteReport]:
        return by_name([self._departed.routes, *(tally.routes for tally in self._tallies)])

    @property
    def pools(self) -> Mapping[str, PoolReport]:
        found: dict[str, list[PoolReport]] = {}
        for tally in self._tallies:
            for authority, pool in tally.details.pools.items():
                found.setdefault(authority, []).append(pool)
        return {authority: sum_pools(pools) for authority, pools in found.items()}

    @property
    def redis(self) -> RedisReport | None:
        return merge_redis([tally.redis for tally in self._tallies if tally.redis is not None], self._departed.redis)

    @property
    def workers(self) -> Sequence[WorkerReport]:
        return [self._of_number(number) for number in range(1, self._settings.workers + 1)]

    @property
    def clients(self) -> Sequence[ClientReport]:
        found = (client for tally in self._tallies for client in tally.details.clients)
        return list(islice(found, CLIENTS_SHOWN_MAX))

    def limit(self, route: CompiledRoute) -> LimitReport | None:
        if route.limit is None:
            return None
        reports = [tally.limits.get(route.name) for tally in self._tallies]
        return sum_limits([one for one in (*reports, self._departed.limits.get(route.name)) if one is not None])

    def breaker(self, route: CompiledRoute) -> BreakerReport | None:
        if route.breaker is None:
            return None
        reports = [one for tally in self._tallies if (one := tally.breakers.get(route.name)) is not None]
        if not reports:
            reports = [BreakerReport(route.breaker.state, 0, 0, 0, 0.0, 0, {}, (0, 0))]
        return merge_breakers(reports, self._departed.breakers.get(route.name))

    def endpoint(self, instance_id: str, authority: str) -> EndpointReport:
        key = endpoint_key(instance_id, authority)
        found = (tally.details.endpoints.get(key) for tally in self._tallies)
        return merge_endpoints([one for one in found if one is not None])

    async def refresh(self) -> None:
        """Ask all workers, and wait for those that answer soon."""
        asked = [worker for worker in self._workers.values() if worker.state is WorkerState.SERVING]
        for worker in asked:
            worker.ask()
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                for worker in asked:
                    await worker.answered.wait()
        except TimeoutError:
            return

    @property
    def _tallies(self) -> list[Tally]:
        return [worker.tally for worker in self._workers.values()]

    def _of_number(self, number: int) -> WorkerReport:
        worker = self._workers.get(number)
        if worker is None:
            return WorkerReport(number, 0, WorkerState.GONE, 0, 0, 0, 0, 0.0, 0.0, 0)
        tally, state = worker.tally, worker.state
        return WorkerReport(
            number, worker.pid, state, tally.totals.connections, tally.totals.accepted, tally.totals.load.active,
            tally.memory_bytes, tally.cpu_s, tally.totals.load.lag_s, worker.feed.applied_revision,
        )  # fmt: skip
