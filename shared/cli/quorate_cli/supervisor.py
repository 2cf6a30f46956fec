"""The driver around `supervision`: spawns the parts, hears of their ends, starts them again, and stops them.

Each part runs in a session of its own, so that Ctrl-C at the terminal reaches the supervisor alone, which then
drains the parts in order. All of them hold the read end of one pipe, the lifeline (`quorate_core.process`), whose
write end only this process has: however it dies, the parts hear of it and end.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Self

from quorate_core.clock import Clock
from quorate_core.errors import Unavailable
from quorate_core.process import EXIT_SETTINGS, LIFELINE_VARIABLE
from quorate_core.tasks import TaskOwner

from quorate_cli import part_logs
from quorate_cli.layout import Layout
from quorate_cli.parts import Part
from quorate_cli.supervision import (
    PartState,
    PartStatus,
    became_ready,
    describe_exit,
    exited,
    retired,
    spawned,
    stop_asked,
)

PROBE_INTERVAL_S = 0.1
LOG_CHECK_INTERVAL_S = 10.0
KILLED_WITHIN_S = 5.0
SHOWN_LINES = 5
REASON_CHARS_MAX = 500
_CANNOT_SPAWN = 71
"""EX_OSERR of sysexits.h, for a process that the system did not let us start."""

Announce = Callable[[str], None]
Probe = Callable[[Part], Awaitable[bool]]
"""Whether the part is ready now. Never raises for a part that is away."""
Prepare = Callable[[Part], Part]
"""The part as it is to be spawned now: the same, or with what has changed since, such as another port."""


class Supervisor:
    """Keeps parts running until told to stop. `statuses` and `parts` say what is; `on_change` hears of each change.

    `reasons`: why a part that is not ready has failed, in its own last words.
    """

    def __init__(
        self, layout: Layout, clock: Clock, probe: Probe, prepare: Prepare, announce: Announce,
        on_change: Callable[[], None],
    ) -> None:  # fmt: skip
        self._layout = layout
        self._clock = clock
        self._probe = probe
        self._prepare = prepare
        self._announce = announce
        self._on_change = on_change
        self._tasks = TaskOwner("supervisor")
        self._lifeline_read, self._lifeline_write = os.pipe()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._stop_asked: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Event()
        self.parts: dict[str, Part] = {}
        self.statuses: dict[str, PartStatus] = {}
        self.reasons: dict[str, str] = {}
        self._logged_bytes: dict[str, int] = {}
        """The size that a part's log had when it was spawned last."""

    async def __aenter__(self) -> Self:
        self._tasks.start(self._bound_logs(), "bound-logs")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Whatever still runs is killed."""
        self.kill_all()
        await self._all_ended(list(self._keepers), KILLED_WITHIN_S)
        await self._tasks.close()
        os.close(self._lifeline_write)
        os.close(self._lifeline_read)

    def start(self, part: Part) -> None:
        """Begin to run `part` and keep it running."""
        self.parts[part.name] = part
        self._stop_asked[part.name] = asyncio.Event()
        self._set(part.name, PartStatus())
        self._keepers[part.name] = self._tasks.start(self._keep(part.name), part.name)

    async def until_settled(self, name: str) -> PartStatus:
        """Wait until `name` is ready for the first time, has failed to start, or is stopped."""
        await self.until(lambda: _is_settled(self.statuses[name]))
        return self.statuses[name]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until a change of some part makes `holds` true."""
        while not holds():
            await self._changed.wait()

    async def stop(self, names: Iterable[str], grace_s: float) -> list[str]:
        """Ask `names` to end (SIGTERM), and kill those that have not ended within `grace_s`; returns the killed."""
        wanted = [name for name in names if name in self.statuses]
        for name in wanted:
            self._set(name, stop_asked(self.statuses[name]))
            self._stop_asked[name].set()
            self._signal(name, lambda process: process.terminate())
        await self._all_ended(wanted, grace_s)
        late = [name for name in wanted if self.statuses[name].has_process]
        for name in late:
            self._signal(name, lambda process: process.kill())
        await self._all_ended(late, KILLED_WITHIN_S)
        return late

    def kill_all(self) -> None:
        """End every part at once, without letting it drain."""
        for name, status in list(self.statuses.items()):
            self._set(name, stop_asked(status))
            self._stop_asked[name].set()
            self._signal(name, lambda process: process.kill())

    async def run_once(self, name: str, command: tuple[str, ...]) -> int:
        """Run a command that ends by itself, its output in the log `name`; its exit code. Ended when cancelled."""
        process = await self._spawn(name, command)
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _keep(self, name: str) -> None:
        """One part's life: spawned, watched, and spawned again until it is to stop."""
        while not self._stop_asked[name].is_set():
            code = await self._run(name)
            if code is None:
                return
            if code == EXIT_SETTINGS and self.parts[name].is_retired:
                self._retire(name, code)
                return
            status, delay_s = exited(self.statuses[name], code, self._clock.monotonic_s())
            said = self._last_words(name, code) if delay_s is not None else []
            is_known = code == EXIT_SETTINGS and said[-1:] == [self.reasons.get(name)]
            if said:
                self.reasons[name] = said[-1]
            self._set(name, status)
            if delay_s is None:
                return
            if not is_known:  # it is tried for as long as it takes, and said once
                self._announce(f"{name} {describe_exit(code)}; restarting in {delay_s:.3g} s")
                for line in said:
                    self._announce(f"  {name} | {line}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stop_asked[name].wait()
            await asyncio.to_thread(part_logs.bound_size, self._layout.log_file(name))

    def _retire(self, name: str, code: int) -> None:
        said = self._last_words(name, code)
        self.reasons[name] = said[-1] if said else "it was removed from the cluster"
        self._set(name, retired(self.statuses[name], code))
        self._announce(f"{name} was removed from the cluster, and is not started again")
        for line in said[-1:]:
            self._announce(f"  {name} | {line}")

    async def _run(self, name: str) -> int | None:
        """Spawn once and wait for the end; the exit code, or None when it was to stop before it had been spawned."""
        process = await self._spawn_part(name)
        if self._stop_asked[name].is_set():
            if process is not None:
                process.kill()  # so young that it has nothing to drain
                await process.wait()
            return None
        self._set(name, spawned(self.statuses[name], process.pid if process else 0, self._clock.monotonic_s()))
        if process is None:
            return _CANNOT_SPAWN
        self._processes[name] = process
        watching = self._tasks.start(self._watch_for_readiness(self.parts[name]), f"{name}-readiness")
        try:
            return await process.wait()
        finally:
            watching.cancel()
            del self._processes[name]

    async def _spawn_part(self, name: str) -> asyncio.subprocess.Process | None:
        try:
            part = self.parts[name] = self._prepare(self.parts[name])
            return await self._spawn(name, part.command(sys.executable))
        except (OSError, Unavailable) as error:
            self._announce(f"{name} could not be started: {error}")
            self.reasons[name] = f"could not be started: {error}"
            self._logged_bytes[name] = part_logs.size_bytes(self._layout.log_file(name))
            return None

    async def _watch_for_readiness(self, part: Part) -> None:
        while not await self._probe(part):  # noqa: ASYNC110 - another process's readiness has no event to wait for
            await asyncio.sleep(PROBE_INTERVAL_S)
        self.reasons.pop(part.name, None)
        status = became_ready(self.statuses[part.name])
        is_back = status.state is PartState.READY and status.restarts > 0
        self._set(part.name, status)
        if is_back:
            self._announce(f"{part.name} is back at {part.url} (pid {status.pid})")

    async def _spawn(self, name: str, command: tuple[str, ...]) -> asyncio.subprocess.Process:
        self._logged_bytes[name] = part_logs.size_bytes(self._layout.log_file(name))
        log = part_logs.open_for_part(self._layout.log_file(name))
        try:
            return await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._layout.root,
                start_new_session=True, pass_fds=(self._lifeline_read,),
                env={**os.environ, LIFELINE_VARIABLE: str(self._lifeline_read)},
            )  # fmt: skip
        finally:
            os.close(log)

    async def _all_ended(self, names: list[str], timeout_s: float) -> None:
        running = [self._keepers[name] for name in names if not self._keepers[name].done()]
        if running:
            await asyncio.wait(running, timeout=timeout_s)

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_INTERVAL_S)
            for name in self.parts:
                await asyncio.to_thread(part_logs.bound_size, self._layout.log_file(name))

    def _signal(self, name: str, send: Callable[[asyncio.subprocess.Process], None]) -> None:
        process = self._processes.get(name)
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                send(process)

    def _last_words(self, name: str, code: int) -> list[str]:
        """What the part said at the end of the run that ended with `code`: the reason is last. A part that cannot
        start may need several lines to name its settings; of one that failed, those before tell of what went well."""
        if code <= 0:
            return []
        count = SHOWN_LINES if code == EXIT_SETTINGS else 1
        lines = part_logs.last_lines(self._layout.log_file(name), count, self._logged_bytes.get(name, 0))
        return [part_logs.without_style(line)[:REASON_CHARS_MAX] for line in lines]

    def _set(self, name: str, status: PartStatus) -> None:
        if self.statuses.get(name) != status:
            self.statuses[name] = status
            self._changed.set()
            self._changed = asyncio.Event()
            self._on_change()


def _is_settled(status: PartStatus) -> bool:
    is_over = status.state in (PartState.STOPPED, PartState.RETIRED)
    return status.ever_ready or status.has_failed_to_start or is_over
