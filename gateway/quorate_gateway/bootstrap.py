"""Wires the gateway, and takes it apart in the order that drops nothing."""

import asyncio
import resource
from contextlib import AsyncExitStack

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

from quorate_gateway.admin import create_admin
from quorate_gateway.control import Control
from quorate_gateway.metrics import GatewayCollector
from quorate_gateway.proxy.limits import CLIENT_CONNECTIONS_MAX, ConnectionLimits
from quorate_gateway.proxy.plane import DataPlane
from quorate_gateway.proxy.refusals import encode_welcome
from quorate_gateway.settings import GatewaySettings

DRAIN_S = 7.0
"""For requests in progress; under the ten seconds that a lost supervisor leaves."""
FILES_BESIDE_CONNECTIONS = 256

log = structlog.get_logger(__name__)


async def main(stop: Stop) -> None:
    settings = GatewaySettings.from_command_line("quorate-gateway")
    configure_logs(settings.name, settings.log_format, settings.log_level)
    # NB: what is pushed last ends first: the data plane drains while its routes are still kept up to date.
    async with AsyncExitStack() as ends:
        await _start(settings, stop, ends)
        await stop.wait()
        log.info("draining")


async def _start(settings: GatewaySettings, stop: Stop, ends: AsyncExitStack) -> None:
    token = None if settings.token_file is None else load_secret(settings.token_file)
    if token is None and not settings.admin.is_loopback:
        raise SettingsError(f"--admin {settings.admin} can be reached by others: give a --token-file")
    _make_data_dir(settings)
    listener = open_listener(settings.listen, "--listen")
    ends.callback(listener.close)
    admin_listener = open_listener(settings.admin, "--admin")
    ends.callback(admin_listener.close)
    admin_address = settings.admin_advertise or bound_address(admin_listener)

    tasks = await ends.enter_async_context(TaskOwner(settings.name, stop.fail))
    limits = ConnectionLimits(client_connections_max=_connections_max())
    plane = DataPlane(tasks, encode_welcome(settings.name, f"http://{admin_address}"), limits=limits)
    control_plane = ControlPlane(settings.endpoints, token)
    ends.push_async_callback(control_plane.aclose)
    control = Control(control_plane, settings.namespace, settings.data_dir, plane.swap, stop.fail)
    ends.push_async_callback(control.stop)
    await control.start()

    collector = GatewayCollector(plane, control)
    REGISTRY.register(collector)
    ends.callback(REGISTRY.unregister, collector)
    stopping = asyncio.Event()
    protection = Protection.for_address(settings.admin, admin_address, token)
    surface = Surface("Quorate gateway", protection, control.unready_reason, stopping)
    server = HttpServer(create_admin(surface, plane, control), admin_listener, stopping, tasks)
    ends.push_async_callback(server.stop)
    await server.start()
    await plane.start(listener)
    ends.push_async_callback(plane.drain, DRAIN_S)
    ends.callback(stopping.set)  # not ready from the first moment of the drain on
    tasks.start(measure_loop_pauses(), "loop-pauses")
    tame_garbage_collector()
    log.info("listening", url=f"http://{bound_address(listener)}", admin=f"http://{admin_address}")


def _make_data_dir(settings: GatewaySettings) -> None:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--data-dir {settings.data_dir}: {error.strerror}") from error


def _connections_max() -> int:
    """How many clients to serve: each may need a file for itself and one for its upstream. Takes what the hard limit
    of the process allows."""
    wanted = 2 * CLIENT_CONNECTIONS_MAX + FILES_BESIDE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return CLIENT_CONNECTIONS_MAX
    connections_max = max(1, (allowed - FILES_BESIDE_CONNECTIONS) // 2)
    log.info("fewer_connections", connections_max=connections_max, reason=f"{allowed} open files are allowed")
    return connections_max
