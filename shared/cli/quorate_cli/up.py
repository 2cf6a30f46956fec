"""`quorate up`: start the whole platform here, keep it running, and stop it on Ctrl-C.

What it starts is planned in `parts`, decided in `supervision`, driven by `supervisor` and `platform_run`; what runs
where is written to `run/state.json`, whose shape `run_state` documents.
"""

import asyncio
import contextlib
import datetime
import os
import random
import signal
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from quorate_core.clock import SystemClock
from quorate_core.errors import Conflict, InvalidRequest, QuorateError
from quorate_core.process import LIFELINE_GRACE_S
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner

from quorate_cli import layout as layouts
from quorate_cli import ports as machine_ports
from quorate_cli.exits import EXIT_FAILED, EXIT_OK
from quorate_cli.layout import Cluster, Layout, RunLock
from quorate_cli.parts import HOST, INSTANCES_MAX, NODE_COUNTS, Platform, Ports, plan_platform
from quorate_cli.platform_run import PlatformRun, StartFailed
from quorate_cli.run_state import read_run_state
from quorate_cli.supervisor import Supervisor
from quorate_cli.tables import parts_table, show

LEFTOVER_WAIT_S = LIFELINE_GRACE_S + 2.0
LEFTOVER_CHECK_INTERVAL_S = 0.1
GATEWAY_TLS_VARIABLE = "QUORATE_GATEWAY_TLS_CERTIFICATE_FILE"

app = typer.Typer(add_completion=False)


class PortChoice(StrEnum):
    FIXED = "fixed"
    AUTO = "auto"


@app.command()
def up(
    nodes: Annotated[int | None, typer.Option(help="Nodes of the control plane: 1, 3 or 5.", show_default="3")] = None,
    orders: Annotated[int, typer.Option(help="Instances of the order service.", min=0, max=INSTANCES_MAX)] = 2,
    inventories: Annotated[int, typer.Option(help="Instances of the inventory service.", min=0, max=INSTANCES_MAX)] = 2,
    root: Annotated[
        Path | None, typer.Option(help="Folder for data, logs and secrets.", show_default=".quorate")
    ] = None,
    ports: Annotated[PortChoice, typer.Option(help="'auto' takes ports that are free.")] = PortChoice.FIXED,
    gateway_port: Annotated[int, typer.Option(help="Port of the gateway.")] = 8080,
    admin_port: Annotated[int, typer.Option(help="Port of the gateway's admin API.")] = 8090,
    gateway_workers: Annotated[
        int | None, typer.Option(help="Processes of the gateway that serve clients.", min=1, max=15, show_default="1")
    ] = None,
    http_port: Annotated[int, typer.Option(help="HTTP port of the first node; the others count on from it.")] = 8501,
    peer_port: Annotated[int, typer.Option(help="Raft port of the first node; the others count on from it.")] = 7501,
) -> None:
    """Start the whole platform here, and keep it running until Ctrl-C.

    Data stays in .quorate/ and is found again by the next start. A part that dies is restarted. The environment reaches
    all parts: QUORATE_GATEWAY_REDIS_URL and the like are the gateway's.
    """
    if nodes is not None and nodes not in NODE_COUNTS:
        raise typer.BadParameter("a cluster has 1, 3 or 5 nodes", param_hint="--nodes")
    layout = Layout(layouts.find_root(root))
    layout.make()
    lock = RunLock(layout)
    if not lock.try_acquire():
        raise _already_running(layout)
    try:
        _wait_for_leftovers(layout)
        cluster, is_first = layouts.open_cluster(layout, nodes)
        typer.echo(f"Starting the platform; its data is in {layout.root}" + (" (first start)" if is_first else ""))
        if cluster.removed_nodes:
            typer.echo(f"Not started, since the cluster has removed it: {', '.join(cluster.removed_nodes)}")
        chosen = _choose_ports(
            cluster.nodes, orders + inventories, ports, (http_port, peer_port, gateway_port, admin_port)
        )
        platform = plan_platform(
            layout, cluster, chosen, orders, inventories, gateway_workers, "https" if _has_gateway_tls() else "http"
        )
        code = asyncio.run(_run(layout, cluster, platform))
    finally:
        lock.release()
    raise typer.Exit(code)


def _already_running(layout: Layout) -> Conflict:
    state = read_run_state(layout)
    who = f" (pid {state.pid})" if state is not None and state.is_alive else ""
    return Conflict(
        f"the platform in {layout.root} runs already{who}. See what runs: quorate ps. Stop it: quorate down"
    )


def _wait_for_leftovers(layout: Layout) -> None:
    """When the last supervisor was killed, its parts are ending now; two of them must not share a data folder.

    They are waited for and never killed: this process has not started them. Raises Conflict naming those that stay.
    """
    state = read_run_state(layout)
    if state is None or not state.living_parts:
        return
    typer.echo(f"Waiting for the last run to end: {', '.join(state.living_parts)}")
    deadline_s = time.monotonic() + LEFTOVER_WAIT_S
    while state.living_parts and time.monotonic() < deadline_s:
        time.sleep(LEFTOVER_CHECK_INTERVAL_S)
    left = [f"{name} (pid {part.pid})" for name, part in state.living_parts.items()]
    if left:
        raise Conflict(
            f"parts of the last run in {layout.root} have not ended: {', '.join(left)}",
            advice="Look at them, end them by their pids, and start again.",
        )


def _choose_ports(nodes: int, services: int, choice: PortChoice, bases: tuple[int, int, int, int]) -> Ports:
    """Raises Conflict naming every port that is in use, and by whom as far as that can be seen."""
    random_source = random.Random()
    http_base, peer_base, gateway, admin = bases
    if choice is PortChoice.AUTO:
        free = machine_ports.free_ports(2 * nodes + 2 + services, HOST, random_source)
        http, peers, rest = free[:nodes], free[nodes : 2 * nodes], free[2 * nodes :]
        return Ports(tuple(http), tuple(peers), rest[0], rest[1], tuple(rest[2:]))
    http, peers = list(range(http_base, http_base + nodes)), list(range(peer_base, peer_base + nodes))
    fixed = [*http, *peers, gateway, admin]
    if min(fixed) < 1 or max(fixed) > 65_535 or len(set(fixed)) < len(fixed):
        raise InvalidRequest(f"the ports must differ and lie between 1 and 65535; these were asked for: {fixed}")
    free = machine_ports.free_ports(services, HOST, random_source, frozenset(fixed))
    chosen = Ports(tuple(http), tuple(peers), gateway, admin, tuple(free))
    _require_free(chosen)
    return chosen


def _require_free(chosen: Ports) -> None:
    taken = [entry for entry in chosen.named() if not machine_ports.is_free(HostPort(HOST, entry[0]))]
    if not taken:
        return
    lines = []
    for port, purpose, option in taken:
        holder = machine_ports.holder_of(port) or "a process that only its owner can name"
        lines.append(f"  port {port} for {purpose} is held by {holder}; another: {option} PORT")
    raise Conflict(
        "nothing was started, since ports are in use:\n" + "\n".join(lines) + "\n"
        "Stop what holds them, or choose others, such as: quorate up --gateway-port 9080, "
        "or: make up ARGS='--gateway-port 9080'. Any that are free: --ports auto"
    )


class _Interrupts:
    """The first signal asks for an orderly end, every further one kills what still runs."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.count = 0
        self.stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self.count += 1
        self.stop.set()
        if self.count > 1:
            _say("Asked again: killing what still runs")
            self._supervisor.kill_all()


async def _run(layout: Layout, cluster: Cluster, platform: Platform) -> int:
    async with (
        PlatformRun(layout, cluster, platform, SystemClock(), _say, _announce) as run,
        TaskOwner("up") as tasks,
    ):
        interrupts = _Interrupts(run.supervisor)
        bringing_up = tasks.start(_bring_up(run), "bring-up")
        stopping = tasks.start(interrupts.stop.wait(), "stop")
        await asyncio.wait({bringing_up, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if bringing_up.done():
            failure = bringing_up.result()
            if failure is None:
                _show_platform(run, platform)
                await stopping
        else:
            failure = None
            bringing_up.cancel()
            await asyncio.wait({bringing_up})
        _say("Stopping" if failure is not None else "Stopping; Ctrl-C kills what still runs")
        await run.drain()
    if failure is not None:
        raise failure
    _say("Stopped. The data is kept.")
    return EXIT_FAILED if interrupts.count > 1 else EXIT_OK


async def _bring_up(run: PlatformRun) -> QuorateError | None:
    """What kept the platform from coming up, with the last words of the part that did."""
    try:
        await run.bring_up()
    except QuorateError as error:
        part = getattr(error, "part", "")
        lines = run.last_lines(part) if part else []
        if not lines:
            return error
        said = "\n".join(f"  {line}" for line in lines)
        return StartFailed(f"{error.detail}. The end of {run.log_file(part)}:\n{said}", part)
    return None


def _show_platform(run: PlatformRun, platform: Platform) -> None:
    state = run.run_state()
    show(parts_table(state))
    missing = ", ".join(run.missing)
    without = f", without {missing}; it is tried again and again" if missing else ""
    _say(f"Ready after {run.elapsed_s:.1f} s{without}. Place an order:\n\n  {order_command(platform.gateway.url)}\n")
    _say("Ctrl-C stops everything; quorate logs, services, cluster status and config tell more.")


def _has_gateway_tls() -> bool:
    """Whether the environment, which every part inherits, gives the gateway a certificate."""
    return bool(os.environ.get(GATEWAY_TLS_VARIABLE))


def order_command(gateway_url: str) -> str:
    """One line to try, as it may be pasted into a shell."""
    body = '{"customer": "c-1", "lines": [{"sku": "widget", "quantity": 2}]}'
    return f"curl -i {gateway_url}/orders -H 'content-type: application/json' -d '{body}'"


def _say(text: str) -> None:
    # The terminal may be gone (SIGHUP); the parts must be drained all the same.
    with contextlib.suppress(OSError):
        typer.echo(text)


def _announce(text: str) -> None:
    _say(f"{datetime.datetime.now().astimezone():%H:%M:%S} {text}")
