"""Wires one instance of the inventory service, and takes it apart in the order that loses nothing."""

import asyncio
import importlib.metadata
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import Clock, SystemClock
from quorate_core.errors import SettingsError
from quorate_core.logs import configure_logs
from quorate_core.metrics import measure_loop_pauses
from quorate_core.process import Stop, tame_garbage_collector
from quorate_core.secrets import load_secret
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_messaging import Bus, Database, Housekeeping, Inbox, Outbox, Relay, RelayPolicy, time_ordered_id
from quorate_messaging.bus.http import HttpBus
from quorate_messaging.ids import RANDOM_BITS
from quorate_sdk import Client, LiveSettings
from starlette.types import ASGIApp

from quorate_inventory.adapters.inventory import SqlInventory
from quorate_inventory.adapters.tables import DATABASE_FILE, INBOX, OUTBOX, SCHEMA_REVISION
from quorate_inventory.api import stock_routes
from quorate_inventory.events import StockRejected, StockReserved
from quorate_inventory.handlers import InventoryHandlers
from quorate_inventory.settings import LIVE_DOCUMENT, InventoryProcessSettings, InventorySettings, LiveInventorySettings

log = structlog.get_logger(__name__)

SERVICE = "inventory"
CONSUMERS = {
    StockReserved.TYPE: "http://order/orders/events",
    StockRejected.TYPE: "http://order/orders/events",
}


@dataclass(frozen=True, slots=True)
class InventoryService:
    """The parts of one instance that a process runs; `app` is its HTTP surface."""

    app: ASGIApp
    handlers: InventoryHandlers
    relay: Relay
    housekeeping: Housekeeping


def build_service(
    name: str,
    database: Database,
    bus: Bus,
    settings: LiveInventorySettings,
    clock: Clock,
    token: str | None,
    stopping: asyncio.Event,
    policy: RelayPolicy | None = None,
) -> InventoryService:
    """An instance called `name` on a database that is migrated and open. Starts nothing."""
    outbox, inbox = Outbox(OUTBOX), Inbox(INBOX)
    relay = Relay(database, outbox, bus, name, clock, policy)
    inventory = SqlInventory(database, outbox, inbox, clock, new_id, relay.wake)
    handlers = InventoryHandlers(inventory, settings, clock)
    surface = Surface("Quorate inventory", Protection.behind_gateway(), lambda: database.unreachable, stopping)
    app = create_app(surface)
    app.include_router(stock_routes(handlers, inventory, settings, token))
    return InventoryService(app, handlers, relay, Housekeeping(database, outbox, inbox, clock, policy))


def new_id(wall_s: float) -> str:
    return time_ordered_id(wall_s, secrets.randbits(RANDOM_BITS))


async def main(stop: Stop) -> None:
    settings = InventoryProcessSettings.from_command_line("quorate-inventory")
    configure_logs(settings.name, settings.log_format, settings.log_level)
    # NB: what is pushed last ends first: leave the registry, finish requests, stop relaying, close what they used.
    async with AsyncExitStack() as ends:
        await _start(settings, stop, ends)
        await stop.wait()
        log.info("draining")


async def _start(settings: InventoryProcessSettings, stop: Stop, ends: AsyncExitStack) -> None:
    token = None if settings.token_file is None else load_secret(Path(settings.token_file))
    database = await _open_database(settings.data_dir, ends)
    listener = open_listener(settings.listen, "--listen")
    ends.callback(listener.close)
    address = reachable_address(bound_address(listener), settings.advertise)
    tasks = await ends.enter_async_context(TaskOwner(settings.name, stop.fail))
    cache_dir = settings.data_dir / "cache" / settings.name
    client = Client(settings.endpoints, token, settings.namespace, cache_dir)
    ends.push_async_callback(client.close)
    live = client.config(InventorySettings, LIVE_DOCUMENT)
    live.subscribe(lambda old, new: _log_settings(live, old, new))
    stopping = asyncio.Event()
    bus = HttpBus(client.http(), CONSUMERS, token)
    service = build_service(settings.name, database, bus, live, SystemClock(), token, stopping)

    await client.start()
    tasks.start(service.relay.run(), "relay")
    ends.push_async_callback(service.relay.stop)
    server = HttpServer(service.app, listener, stopping, tasks)
    ends.push_async_callback(server.stop)
    await server.start()
    tasks.start(database.run_probes(), "probes")
    tasks.start(service.housekeeping.run(), "housekeeping")
    tasks.start(measure_loop_pauses(), "loop-pauses")
    ends.push_async_callback(client.drain)
    await client.register(
        service=SERVICE, instance_id=settings.name, host=address.host, port=address.port,
        version=importlib.metadata.version("quorate-inventory"),
    )  # fmt: skip
    tame_garbage_collector()
    log.info("ready", url=f"http://{address}", settings_version=live.version)


async def _open_database(data_dir: Path, ends: AsyncExitStack) -> Database:
    database = Database.open_sqlite(data_dir / DATABASE_FILE)
    ends.push_async_callback(database.close)
    await database.require_schema(SCHEMA_REVISION, f"python -m quorate_inventory.migrate --data-dir {data_dir}")
    return database


def reachable_address(bound: HostPort, advertise: HostPort | None) -> HostPort:
    """Where others reach what listens on `bound`; port 0 in `advertise` stands for the bound port.

    Raises SettingsError when that cannot be known.
    """
    if advertise is not None:
        return HostPort(advertise.host, advertise.port or bound.port)
    if bound.host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        raise SettingsError(
            f"--listen {bound} is every address of this machine; say by --advertise which one others use"
        )
    return bound


def _log_settings(live: LiveSettings[InventorySettings], old: InventorySettings, new: InventorySettings) -> None:
    log.info("settings_in_force", document=LIVE_DOCUMENT, version=live.version, **new.model_dump())
    if new.fault != old.fault:
        log.warning("fault_switched", **new.fault.model_dump())
