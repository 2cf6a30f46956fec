"""Makes a data plane and all that it stands on, from settings: for the only process, and for each of several."""

import structlog
from quorate_core.errors import SettingsError
from quorate_core.process import allow_open_files
from quorate_core.tasks import TaskOwner
from quorate_resilience.shedding import LoadShedder

from quorate_gateway.matching import CompileContext
from quorate_gateway.policies.limit import TableOf
from quorate_gateway.policies.shared_limit import SharedLimits
from quorate_gateway.proxy.limits import ConnectionCounts, ConnectionLimits
from quorate_gateway.proxy.plane import DataPlane
from quorate_gateway.settings import WorkerSettings

DRAIN_S = 7.0
"""For requests in progress; under the ten seconds that a lost supervisor leaves."""
FILES_BESIDE_CONNECTIONS = 256

log = structlog.get_logger(__name__)


def connection_limits(settings: WorkerSettings) -> ConnectionLimits:
    """What the settings want, as far as the process may have so many files open; makes that many of them its own.

    Each client may need a file for itself and one for its upstream.
    """
    wanted = 2 * settings.client_connections_max + FILES_BESIDE_CONNECTIONS
    allowed = allow_open_files(wanted)
    if allowed == wanted:
        return settings.connection_limits(settings.client_connections_max)
    connections_max = max(1, (allowed - FILES_BESIDE_CONNECTIONS) // 2)
    log.info("fewer_connections", connections_max=connections_max, reason=f"{allowed} open files are allowed")
    return settings.connection_limits(connections_max)


def compile_context(settings: WorkerSettings, tasks: TaskOwner, tables: TableOf | None = None) -> CompileContext:
    """`tables` are for limits that several processes count together. Raises SettingsError for a bad `redis_url`."""
    try:
        shared = None if settings.redis_url is None else SharedLimits(settings.redis_url, tasks)
    except SettingsError as error:
        raise SettingsError(f"--redis-url (or QUORATE_GATEWAY_REDIS_URL): {error.detail}") from error
    return CompileContext(shared_limits=shared, limit_tables=tables, zone=settings.zone)


def make_plane(
    settings: WorkerSettings, tasks: TaskOwner, limits: ConnectionLimits, connections: ConnectionCounts | None = None
) -> DataPlane:
    """`connections` are for those that several processes count together."""
    return DataPlane(
        tasks, settings.welcome.encode(), limits=limits, trusted_proxies=settings.trusted_proxies, zone=settings.zone,
        connections=connections, load=LoadShedder(settings.active_max, settings.event_loop_lag_ms_max / 1_000),
    )  # fmt: skip
