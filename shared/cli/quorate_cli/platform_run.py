"""One run of the local platform, from the first spawn to the last exit.

What depends on what, and nothing else waits: the services on their migrations, the default documents on a node that
is ready. Everything else starts at once; the SDK in the gateway and the services retries until the nodes have a leader.
The start goes on without what can be spared: it needs a majority of the nodes, the gateway, and one of each service.
At the end: services, then the gateway, then the nodes, since the services deregister through the nodes.
"""

import asyncio
import datetime
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from quorate_core.clock import Clock
from quorate_core.errors import QuorateError

from quorate_cli import part_logs, ports
from quorate_cli.default_documents import ROUTES_DOCUMENT, publish_default_documents
from quorate_cli.layout import Cluster, Layout, write_cluster
from quorate_cli.parts import SERVICE_KINDS, Part, PartKind, Platform, migration_command, service_data_dir
from quorate_cli.readiness import Readiness
from quorate_cli.run_state import PartRun, RunState, start_ticks_of, write_run_state
from quorate_cli.supervision import PartState, describe_exit
from quorate_cli.supervisor import Supervisor

START_TIMEOUT_S = 60.0
SERVED_TIMEOUT_S = 20.0
GRACE_S = 12.0
"""How long a part may take to drain; its own bounds (server, SDK, relay) are below this."""
SERVED_CHECK_INTERVAL_S = 0.05
SHOWN_LINES = 15

Announce = Callable[[str], None]


class StartFailed(QuorateError):
    """A part did not come up; `part` names whose log says more."""

    def __init__(self, detail: str, part: str = "") -> None:
        super().__init__(detail)
        self.part = part


class PlatformRun:
    """Use as `async with`; `bring_up`, then wait for whatever ends the run, then `drain`.

    `say` tells people of progress, `announce` of what happens to a part, with the time of day.
    """

    def __init__(
        self, layout: Layout, cluster: Cluster, platform: Platform, clock: Clock, say: Announce, announce: Announce
    ) -> None:
        self._layout = layout
        self._cluster = cluster
        self._platform = platform
        self._clock = clock
        self._say = say
        self._announce = announce
        self._phase = "starting"
        self._began_s = clock.monotonic_s()
        self._started_at = datetime.datetime.fromtimestamp(clock.wall_s(), datetime.UTC).isoformat(timespec="seconds")
        self._token = layout.token_file.read_text().strip()
        self._http = httpx.AsyncClient(trust_env=False, headers={"authorization": f"Bearer {self._token}"})
        self._readiness = Readiness(self._http, platform.endpoints)
        self._published: list[str] | None = None
        self.supervisor = Supervisor(layout, clock, self._readiness, self._prepare, announce, self._on_change)

    async def __aenter__(self) -> "PlatformRun":
        await self.supervisor.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.supervisor.__aexit__()
        await self._http.aclose()
        self._layout.state_file.unlink(missing_ok=True)

    @property
    def elapsed_s(self) -> float:
        return self._clock.monotonic_s() - self._began_s

    async def bring_up(self) -> None:
        """Returns once everything is ready that can be, and that is enough; see `missing`.

        Raises StartFailed naming what is not, and why.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._start_all()
        except TimeoutError:
            if not self._has_enough():
                raise self._too_late() from None
        except ExceptionGroup as failures:
            ours, others = failures.split(QuorateError)
            if others is not None or ours is None:
                raise
            raise _first(ours) from None
        try:
            async with asyncio.timeout(SERVED_TIMEOUT_S):
                await self._until_served()
        except TimeoutError:
            late = f"the gateway does not lead to the services within {SERVED_TIMEOUT_S:.0f} s"
            raise StartFailed(late, self._platform.gateway.name) from None
        self._phase = "ready"
        self._write_state()

    async def _start_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._start_group("majority of the nodes", self._platform.nodes, self._majority))
            for kind in SERVICE_KINDS:
                group.create_task(self._start_service(kind))
            group.create_task(self._start_group("gateway", [self._platform.gateway], 1))
            group.create_task(self._publish_documents())

    async def _until_served(self) -> None:
        """A gateway is ready by its last good copy too; what is told to be tried must lead to where things are now."""
        needs_routes = ROUTES_DOCUMENT in (self._published or ())
        while True:
            services = [self.supervisor.parts[part.name] for part in self._platform.services if self._was_ready(part)]
            if await self._readiness.is_served(self._platform.admin_url, services, needs_routes):
                return
            await asyncio.sleep(SERVED_CHECK_INTERVAL_S)

    async def drain(self) -> None:
        """End all parts in order, each within GRACE_S."""
        self._phase = "stopping"
        services = [part.name for part in self._platform.services]
        nodes = [part.name for part in self._platform.nodes]
        for what, names in (("services", services), ("gateway", [self._platform.gateway.name]), ("nodes", nodes)):
            running = [name for name in names if name in self.supervisor.statuses]
            if not running:
                continue
            late = await self.supervisor.stop(running, GRACE_S)
            self._say(f"  {what} stopped")
            for name in late:
                self._say(f"  {name} did not end within {GRACE_S:.0f} s and was killed")

    def log_file(self, part: str) -> Path:
        return self._layout.log_file(part)

    def last_lines(self, part: str) -> list[str]:
        return part_logs.last_lines(self._layout.log_file(part), SHOWN_LINES)

    @property
    def missing(self) -> list[str]:
        """The parts that were never ready so far; the supervisor goes on trying to start them."""
        return [part.name for part in self._platform.all if not self._was_ready(part) and not self._is_retired(part)]

    @property
    def _majority(self) -> int:
        return len(self._platform.nodes) // 2 + 1

    def _was_ready(self, part: Part) -> bool:
        status = self.supervisor.statuses.get(part.name)
        return status is not None and status.ever_ready

    def _is_retired(self, part: Part) -> bool:
        status = self.supervisor.statuses.get(part.name)
        return status is not None and status.state is PartState.RETIRED

    def _has_enough(self) -> bool:
        """Whether the platform can do its work with what has been ready."""
        services = [[part for part in self._platform.services if part.kind is kind] for kind in SERVICE_KINDS]
        return (
            self._published is not None
            and self._was_ready(self._platform.gateway)
            and sum(map(self._was_ready, self._platform.nodes)) >= self._majority
            and all(any(map(self._was_ready, parts)) for parts in services if parts)
        )

    async def _start_group(self, what: str, parts: Sequence[Part], needed: int) -> None:
        """Returns once each of `parts` is ready or has failed to start. Raises StartFailed, saying that there is no
        `what`, when so many have failed that fewer than `needed` are left."""
        group_state = _Group(what, len(parts), len(parts) - needed)
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(self._start(part, group_state))

    async def _start(self, part: Part, group: "_Group") -> None:
        self.supervisor.start(part)
        status = await self.supervisor.until_settled(part.name)
        if not status.has_failed_to_start:
            self._progress(f"{part.name} is ready")
            return
        failure = f"{part.name} {describe_exit(status.last_exit_code or 0)}"
        if group.spare == 0:
            raise StartFailed(failure if group.size == 1 else f"no {group.what} can start: {failure}", part.name)
        group.spare -= 1
        is_for_good = status.state is PartState.RETIRED
        self._progress(f"going on without {part.name}" + ("" if is_for_good else ", which is tried again and again"))

    async def _start_service(self, kind: PartKind) -> None:
        parts = [part for part in self._platform.services if part.kind is kind]
        if not parts:
            return
        log = f"{kind}-migrate"
        _make_folder(service_data_dir(self._layout, kind))
        code = await self.supervisor.run_once(log, migration_command(self._layout, kind, sys.executable))
        if code != 0:
            raise StartFailed(f"the migration of the {kind} database {describe_exit(code)}", log)
        self._progress(f"the {kind} database is up to date")
        await self._start_group(f"{kind} instance", parts, 1)

    async def _publish_documents(self) -> None:
        """Only once in the life of a cluster: a document that is missing later was deleted by somebody."""
        if self._cluster.has_documents:
            self._published = []
            return
        await self.supervisor.until(lambda: any(map(self._was_ready, self._platform.nodes)))
        self._published = await publish_default_documents(self._http, self._platform.endpoints)
        self._record(replace(self._cluster, has_documents=True))
        if self._published:
            self._progress("published " + ", ".join(self._published))

    def _too_late(self) -> StartFailed:
        late, waited = self.missing, f"within {START_TIMEOUT_S:.0f} s"
        if not late:
            return StartFailed(f"the default documents could not be published {waited}", self._platform.nodes[0].name)
        return StartFailed(f"not ready {waited}: {', '.join(late)}", late[0])

    def _on_change(self) -> None:
        self._record_nodes()
        self._write_state()

    def _record_nodes(self) -> None:
        """From the moment at which a node is part of the cluster, it must not start with an empty log again; once it
        was removed from it, it must not start at all, and its folder may go."""
        cluster, nodes = self._cluster, self._platform.nodes
        begun = [*cluster.begun_nodes, *(node.name for node in nodes if self._was_ready(node))]
        removed = [*cluster.removed_nodes, *(node.name for node in nodes if self._is_retired(node))]
        now = replace(cluster, begun_nodes=tuple(sorted(set(begun))), removed_nodes=tuple(sorted(set(removed))))
        if now != cluster:
            self._record(now)

    def _record(self, cluster: Cluster) -> None:
        try:
            write_cluster(self._layout, cluster)
        except OSError as error:
            self._announce(f"{self._layout.cluster_file} cannot be written ({error.strerror}); it is tried again")
            return
        self._cluster = cluster

    def _prepare(self, part: Part) -> Part:
        if part.kind is PartKind.NODE:
            return part.of_begun_node() if part.name in self._cluster.begun_nodes else part
        if not part.may_move or ports.is_free(part.address):
            return part
        used = frozenset(other.address.port for other in self.supervisor.parts.values())
        (port,) = ports.free_ports(1, part.address.host, random.Random(), used)
        return part.moved_to(port)

    def _progress(self, text: str) -> None:
        self._say(f"{self.elapsed_s:5.1f} s  {text}")

    def _write_state(self) -> None:
        try:
            write_run_state(self._layout, self.run_state())
        except OSError as error:
            self._announce(f"{self._layout.state_file} cannot be written ({error.strerror}); other commands lag behind")

    def run_state(self) -> RunState:
        statuses, parts = self.supervisor.statuses, self.supervisor.parts
        return RunState(
            pid=os.getpid(), start_ticks=start_ticks_of(os.getpid()), started_at=self._started_at, state=self._phase,
            endpoints=self._platform.endpoints, gateway=self._platform.gateway.url, admin=self._platform.admin_url,
            parts={
                name: PartRun(
                    kind=parts[name].kind, url=parts[name].url, pid=status.pid,
                    start_ticks=start_ticks_of(status.pid) if status.pid else None,
                    state=status.state, restarts=status.restarts,
                    log=str(self._layout.log_file(name)), reason=self.supervisor.reasons.get(name, ""),
                )
                for name, status in statuses.items()
            },
        )  # fmt: skip


@dataclass(slots=True)
class _Group:
    """Parts of which some can be spared: `spare` is how many more."""

    what: str
    size: int
    spare: int


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartFailed(f"the folder {path} cannot be made: {error.strerror}") from error


def _first(group: ExceptionGroup[QuorateError]) -> QuorateError:
    error: QuorateError | ExceptionGroup[QuorateError] = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
