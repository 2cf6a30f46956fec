"""Wires a node: what it stands on, the apps, one HTTP surface; and takes it apart in the other order."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any

import structlog
from fastapi import FastAPI
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import SystemClock
from quorate_core.http_protocol import CONNECTIONS_MAX
from quorate_core.metrics import measure_loop_pauses
from quorate_core.process import Stop, allow_open_files, tame_garbage_collector
from quorate_core.secrets import load_secret
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.tasks import TaskOwner
from quorate_store.apps import App, AppContext, FleetNode
from quorate_store.chronicle import Alarming, Chronicler
from quorate_store.v3 import mount_v3

from quorate_node.apps import find_apps
from quorate_node.backup import BackupApi
from quorate_node.changes import ChangesApi
from quorate_node.cluster import ClusterApi, Identity
from quorate_node.engines import Engine, platform_credential, start_engine
from quorate_node.fleet import FleetMembership, StoreFleet
from quorate_node.settings import NodeSettings

BODY_BYTES_MAX = 3 * 1024 * 1024
"""The store's 1.5 MiB as the v3 API carries them: in base64, inside JSON."""
FILES_BESIDE_CONNECTIONS = 512
"""The log's, the state's, those of peers and of checks: clients must never take these."""

log = structlog.get_logger(__name__)


async def run_node(settings: NodeSettings, stop: Stop) -> None:
    """Run one node until `stop` is requested, then drain it.

    What is entered first is left last: the HTTP server and its streams end first, then the apps, then the engine.
    Raises SettingsError for what keeps it from starting, and MemberRemoved, of that family, when it is no member of
    the cluster any more.
    """
    token = None if settings.token_file is None else load_secret(settings.token_file)
    apps = find_apps(settings.apps)
    async with start_engine(settings, stop) as engine, AsyncExitStack() as stack:
        await _start_surface(settings, token, apps, engine, stop, stack)
        tame_garbage_collector()
        await stop.wait()
        log.info("node_stopping", reason="a part has failed" if stop.failure else "asked to")
    log.info("node_stopped")


async def _start_surface(
    settings: NodeSettings,
    token: str | None,
    apps: Sequence[App],
    engine: Engine,
    stop: Stop,
    stack: AsyncExitStack,
) -> None:
    store = engine.store
    listener = open_listener(settings.http, "--http")
    stack.callback(listener.close)
    bound = bound_address(listener)
    own = FleetNode(settings.name, f"http://{settings.advertised_http(bound)}")
    surface = Surface(
        f"Quorate node {settings.name}",
        Protection.for_address(bound, settings.advertised_http(bound), token),
        ready=readiness(engine, apps),
        body_bytes_max=BODY_BYTES_MAX,
    )
    api = create_app(surface, version=version("quorate-node"))
    fleet = await stack.enter_async_context(StoreFleet(store, own, api, token))
    tasks = await stack.enter_async_context(TaskOwner("node", stop.fail))
    context = AppContext(settings.name, store, fleet, tasks, SystemClock(), surface.stopping)
    for app in apps:
        await app.start(context)
        stack.push_async_callback(app.stop)
    _mount(api, settings, own, apps, context, engine)
    tasks.start(measure_loop_pauses(), "loop-pauses")
    membership = FleetMembership(store, own, apps=[app.name for app in apps])
    membership.join(tasks)
    stack.push_async_callback(membership.leave)
    server = HttpServer(api, listener, surface.stopping, tasks, connections_max=connections_allowed())
    stack.push_async_callback(server.stop)
    await server.start()
    log.info(
        "node_started", name=settings.name, http=str(bound), url=own.url, **engine.described,
        apps=[app.name for app in apps], protected=token is not None and not bound.is_loopback,
    )  # fmt: skip


def connections_allowed() -> int:
    """How many clients may be connected, so that files are left for what the node itself does."""
    wanted = CONNECTIONS_MAX + FILES_BESIDE_CONNECTIONS
    allowed = allow_open_files(wanted)
    if allowed == wanted:
        return CONNECTIONS_MAX
    connections_max = max(1, allowed - FILES_BESIDE_CONNECTIONS, allowed // 2)
    log.warning("fewer_connections", connections_max=connections_max, reason=f"{allowed} open files are allowed")
    return connections_max


def _mount(
    api: FastAPI,
    settings: NodeSettings,
    own: FleetNode,
    apps: Sequence[App],
    context: AppContext,
    engine: Engine,
) -> None:
    identity = Identity(own.name, own.url, tuple(app.name for app in apps))
    api.get("/", tags=["node"])(_welcome(identity))
    members = engine.members(context.fleet)
    mount_v3(api, context.store, settings.cluster_id, engine.administration(members), platform_credential(settings))
    alarming = [app for app in apps if isinstance(app, Alarming)]

    def alarms() -> list[str]:
        return [alarm for app in alarming for alarm in app.alarms()]

    ClusterApi(identity, engine.view, members, context.fleet, context.clock, alarms).mount(api)
    ChangesApi(context.store, [app for app in apps if isinstance(app, Chronicler)], context.clock).mount(api)
    BackupApi(engine.backups, context.stopping).mount(api)
    for app in apps:
        app.mount(api)


def _welcome(identity: Identity) -> Callable[[], Any]:
    url = identity.url
    links = {
        "cluster": f"{url}/v1/cluster/status", "node": f"{url}/v1/cluster/node", "api": f"{url}/docs",
        "openapi": f"{url}/openapi.json", "ready": f"{url}/readyz", "metrics": f"{url}/metrics",
    }  # fmt: skip

    async def welcome() -> dict[str, Any]:
        """What this is, and where to look."""
        return {
            "what": "a node of a Quorate control plane", "name": identity.name, "apps": list(identity.apps),
            "links": links,
        }  # fmt: skip

    return welcome


def readiness(engine: Engine, apps: Sequence[App]) -> Callable[[], str | None]:
    """Ready: the engine is, and every app can serve."""

    def why_not() -> str | None:
        reason = engine.why_not_ready()
        return reason or next((reason for app in apps if (reason := app.ready()) is not None), None)

    return why_not
