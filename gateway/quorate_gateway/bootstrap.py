"""Wires the gateway, and takes it apart in the order that drops nothing.

With one worker everything is in this process. With more, this is the first process: it binds the port, follows the
control plane and has the admin API, and the workers serve (`quorate_gateway.workers`).
"""

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog
from prometheus_client import REGISTRY
from quorate_core.asgi import Protection, Surface
from quorate_core.errors import SettingsError
from quorate_core.logs import configure_logs
from quorate_core.metrics import measure_loop_pauses
from quorate_core.process import Stop, tame_garbage_collector
from quorate_core.secrets import load_secret
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.tasks import TaskOwner
from quorate_sdk import ControlPlane
from starlette.types import ASGIApp

from quorate_gateway.admin import create_admin
from quorate_gateway.assembly import DRAIN_S, compile_context, connection_limits, make_plane
from quorate_gateway.control import Control, at_once
from quorate_gateway.documents.access import ApiKeysDocument
from quorate_gateway.matching import CompileContext
from quorate_gateway.metrics import GatewayCollector
from quorate_gateway.proxy import COMPILED
from quorate_gateway.proxy.refusals import encode_welcome
from quorate_gateway.proxy.tls import Certificate
from quorate_gateway.reloads import Reloads
from quorate_gateway.served import LocalPlane, Served
from quorate_gateway.settings import GatewaySettings, WorkerSettings
from quorate_gateway.snapshot import Snapshot
from quorate_gateway.workers.fleet import Fleet
from quorate_gateway.workers.refreshed import Refreshed
from quorate_gateway.workers.shared_memory import SharedMemory
from quorate_gateway.workers.shared_table import TABLE_BYTES, SharedTables

WORKERS_END_S = 1.0
"""For workers to end when they have drained."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """What serves clients: a data plane in this process, or workers."""

    context: CompileContext
    swap: Callable[[Snapshot], None]
    swap_keys: Callable[[ApiKeysDocument], None]
    served: Served
    unready_reason: Callable[[], str | None]
    reload_certificate: Callable[[], None]
    start: Callable[[], Awaitable[None]]
    drain: Callable[[], Awaitable[None]]
    around_admin: Callable[[ASGIApp], ASGIApp]
    in_force: Callable[[], Awaitable[None]]
    """Waits until everybody serves by the snapshot of the moment."""


async def main(stop: Stop) -> None:
    settings = GatewaySettings.from_command_line("quorate-gateway")
    if COMPILED.refusal is not None:
        raise SettingsError(COMPILED.refusal)
    configure_logs(settings.name, settings.log_format, settings.log_level)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again; else it would end us
    # NB: what is pushed last ends first: the data plane drains while its routes are still kept up to date.
    async with AsyncExitStack() as ends:
        await _start(settings, stop, ends)
        await stop.wait()
        log.info("draining")


async def _start(settings: GatewaySettings, stop: Stop, ends: AsyncExitStack) -> None:
    token = _read_token(settings)
    _make_data_dir(settings)
    certificate = _read_certificate(settings)
    listener = open_listener(settings.listen, "--listen")
    ends.callback(listener.close)
    admin_listener = open_listener(settings.admin, "--admin")
    ends.callback(admin_listener.close)
    address, admin_address = bound_address(listener), settings.admin_advertise or bound_address(admin_listener)
    told = settings.for_worker(encode_welcome(settings.name, f"http://{admin_address}"))

    tasks = await ends.enter_async_context(TaskOwner(settings.name, stop.fail))
    make = _alone if settings.workers == 1 else _with_workers
    serving = make(told, listener, certificate, tasks, stop, ends)
    shared_limits = serving.context.shared_limits
    if shared_limits is not None:
        shared_limits.start()
        ends.push_async_callback(shared_limits.close)
    control_plane = ControlPlane(settings.endpoints, token)
    ends.push_async_callback(control_plane.aclose)
    control = Control(
        control_plane, settings.namespace, settings.data_dir, serving.swap, stop.fail, context=serving.context,
        swap_keys=serving.swap_keys, subscriber=f"gateway/{settings.name}", in_force=serving.in_force,
    )  # fmt: skip
    ends.push_async_callback(control.stop)
    await control.start()

    collector = GatewayCollector(serving.served, control, certificate)
    REGISTRY.register(collector)
    ends.callback(REGISTRY.unregister, collector)
    stopping = asyncio.Event()
    protection = Protection.for_address(settings.admin, admin_address, token)
    surface = Surface(
        "Quorate gateway", protection, lambda: control.unready_reason() or serving.unready_reason(), stopping
    )
    admin = serving.around_admin(create_admin(surface, serving.served, control))
    server = HttpServer(admin, admin_listener, stopping, tasks)
    ends.push_async_callback(server.stop)
    await server.start()

    def use_token(token: str) -> None:
        control_plane.use_token(token)
        surface.protection = Protection.for_address(settings.admin, admin_address, token)

    reloads = Reloads(settings.token_file, use_token, certificate, serving.reload_certificate)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloads.read_again)
    tasks.start(reloads.watch_certificate(), "certificate")
    ends.push_async_callback(serving.drain)
    await serving.start()
    ends.callback(stopping.set)  # not ready from the first moment of the drain on
    tasks.start(measure_loop_pauses(), "loop-pauses")
    tame_garbage_collector()
    if not stop.requested:
        scheme = "http" if certificate is None else "https"
        log.info(
            "listening", url=f"{scheme}://{address}", admin=f"http://{admin_address}", workers=settings.workers,
            compiled=COMPILED.is_compiled or COMPILED.reason,
        )  # fmt: skip


def _alone(
    settings: WorkerSettings,
    listener: socket.socket,
    certificate: Certificate | None,
    tasks: TaskOwner,
    _stop: Stop,
    _ends: AsyncExitStack,
) -> Serving:
    """Everything in this process."""
    context = compile_context(settings, tasks)
    plane = make_plane(settings, tasks, connection_limits(settings))
    return Serving(
        context, plane.swap, context.api_keys.replace, LocalPlane(plane, context.shared_limits),
        unready_reason=lambda: None,
        reload_certificate=lambda: None,  # it is the very one
        start=lambda: plane.start(listener, certificate),
        drain=lambda: plane.drain(DRAIN_S),
        around_admin=lambda app: app,
        in_force=at_once,
    )  # fmt: skip


def _with_workers(
    settings: WorkerSettings,
    listener: socket.socket,
    _certificate: Certificate | None,
    tasks: TaskOwner,
    stop: Stop,
    ends: AsyncExitStack,
) -> Serving:
    """The workers load the certificate themselves."""
    memory = SharedMemory.create(TABLE_BYTES)
    ends.callback(memory.close)
    tables = SharedTables(memory)
    context = compile_context(settings, tasks, tables)
    fleet = Fleet(settings, listener, tables, stop)

    def swap_keys(keys: ApiKeysDocument) -> None:
        context.api_keys.replace(keys)
        fleet.swap_keys(keys)

    return Serving(
        context, fleet.swap, swap_keys, fleet,
        unready_reason=fleet.unready_reason,
        reload_certificate=fleet.reload_certificate,
        start=fleet.start,
        drain=lambda: fleet.drain(DRAIN_S + WORKERS_END_S),
        around_admin=lambda app: Refreshed(app, fleet),
        in_force=fleet.until_applied,
    )  # fmt: skip


def _read_token(settings: GatewaySettings) -> str | None:
    token = None if settings.token_file is None else load_secret(settings.token_file)
    if token is None and not settings.admin.is_loopback:
        raise SettingsError(f"--admin {settings.admin} can be reached by others: give a --token-file")
    return token


def _read_certificate(settings: GatewaySettings) -> Certificate | None:
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    try:
        return Certificate(settings.tls_certificate_file, settings.tls_key_file)
    except SettingsError as error:
        raise SettingsError(f"--tls-certificate-file, --tls-key-file: {error.detail}") from error


def _make_data_dir(settings: GatewaySettings) -> None:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--data-dir {settings.data_dir}: {error.strerror}") from error
