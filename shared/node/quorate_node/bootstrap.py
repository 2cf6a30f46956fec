"""Wires a node: disk and peers, Raft, the store, the apps, one HTTP surface; and takes it apart in the other order."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any

import structlog
from fastapi import FastAPI
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import SystemClock
from quorate_core.errors import QuorateError
from quorate_core.metrics import measure_loop_pauses
from quorate_core.process import Stop, tame_garbage_collector
from quorate_core.secrets import load_secret
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.tasks import TaskOwner
from quorate_raft import DriverConfig, FileDisk, MemberRemoved, Membership, RaftDriver, TcpConfig, TcpNetwork
from quorate_store.apps import App, AppContext, FleetNode
from quorate_store.raft_engine import RaftStore
from quorate_store.state import StateMachine
from quorate_store.v3 import mount_v3

from quorate_node.apps import find_apps
from quorate_node.cluster import ClusterApi
from quorate_node.fleet import FleetMembership, StoreFleet
from quorate_node.members import Members, difference
from quorate_node.memory import RAFT_FOLDER, note_begun, note_removed, require_memory
from quorate_node.settings import ClusterState, NodeSettings

BODY_BYTES_MAX = 3 * 1024 * 1024
"""The store's 1.5 MiB as the v3 API carries them: in base64, inside JSON."""
STATE_FOLDER = "state"

log = structlog.get_logger(__name__)


async def run_node(settings: NodeSettings, stop: Stop) -> None:
    """Run one node until `stop` is requested, then drain it.

    What is entered first is left last: the HTTP server and its streams end first, then the apps, the store, Raft
    (which hands its leadership over), and the files. Raises SettingsError for what keeps it from starting, and
    MemberRemoved, of that family, when it is no member of the cluster any more.
    """
    require_memory(settings)
    try:
        await _run_until_stopped(settings, stop)
        if isinstance(stop.failure, MemberRemoved):
            raise stop.failure
    except MemberRemoved as removal:
        raise note_removed(settings, removal) from removal


async def _run_until_stopped(settings: NodeSettings, stop: Stop) -> None:
    secret = load_secret(settings.cluster_secret_file)
    token = None if settings.token_file is None else load_secret(settings.token_file)
    apps = find_apps(settings.apps)
    async with AsyncExitStack() as stack:
        driver, store = await _start_store(settings, secret, stop, stack)
        await _start_surface(settings, token, apps, (driver, store), stop, stack)
        tame_garbage_collector()
        await stop.wait()
        log.info("node_stopping", reason="a part has failed" if stop.failure else "asked to")
    log.info("node_stopped")


async def _start_store(
    settings: NodeSettings, secret: str, stop: Stop, stack: AsyncExitStack
) -> tuple[RaftDriver, RaftStore]:
    disk = stack.enter_context(FileDisk(settings.data_dir / RAFT_FOLDER))
    machine = StateMachine(settings.data_dir / STATE_FOLDER)
    stack.callback(machine.close)
    listener = open_listener(settings.peer, "--peer")
    stack.callback(listener.close)
    tasks = await stack.enter_async_context(TaskOwner("store", stop.fail))
    clock = SystemClock()
    network = TcpNetwork(TcpConfig(settings.name, settings.cluster_id, secret, settings.members), listener, tasks)
    config = DriverConfig(settings.name, _first_membership(settings), settings.cluster_id)
    driver = RaftDriver(config, disk, network, clock, machine, tasks)
    store = RaftStore(driver, machine, clock, tasks)
    stack.push_async_callback(driver.close)
    await driver.start()
    note_begun(settings)
    _tell_of_membership(settings, driver.status().membership)
    stack.push_async_callback(store.close)
    await store.start()
    return driver, store


def _first_membership(settings: NodeSettings) -> Membership:
    """What a member without a log takes to be the cluster; one that is to join knows nothing of it yet."""
    if settings.cluster_state is ClusterState.JOIN:
        return Membership()
    return Membership.of_voters({name: str(address) for name, address in settings.members.items()})


def _tell_of_membership(settings: NodeSettings, membership: Membership) -> None:
    if membership.is_empty:
        log.info("waiting_to_be_added", name=settings.name, peer=str(settings.members[settings.name]))
        return
    found = difference([(name, str(address)) for name, address in settings.members.items()], membership)
    if found:
        log.warning("members_differ", difference=found, advice="the log counts; bring --members up to date")


async def _start_surface(
    settings: NodeSettings,
    token: str | None,
    apps: Sequence[App],
    parts: tuple[RaftDriver, RaftStore],
    stop: Stop,
    stack: AsyncExitStack,
) -> None:
    driver, store = parts
    listener = open_listener(settings.http, "--http")
    stack.callback(listener.close)
    bound = bound_address(listener)
    own = FleetNode(settings.name, f"http://{settings.advertised_http(bound)}")
    surface = Surface(
        f"Quorate node {settings.name}",
        Protection.for_address(bound, settings.advertised_http(bound), token),
        ready=readiness(driver, apps),
        body_bytes_max=BODY_BYTES_MAX,
    )
    api = create_app(surface, version=version("quorate-node"))
    fleet = await stack.enter_async_context(StoreFleet(store, own, api, token))
    tasks = await stack.enter_async_context(TaskOwner("node", stop.fail))
    context = AppContext(settings.name, store, fleet, tasks, SystemClock(), surface.stopping)
    for app in apps:
        await app.start(context)
        stack.push_async_callback(app.stop)
    _mount(api, settings, own, apps, context, driver)
    tasks.start(measure_loop_pauses(), "loop-pauses")
    membership = FleetMembership(store, own)
    membership.join(tasks)
    stack.push_async_callback(membership.leave)
    server = HttpServer(api, listener, surface.stopping, tasks)
    stack.push_async_callback(server.stop)
    await server.start()
    log.info(
        "node_started", name=settings.name, http=str(bound), url=own.url, peer=str(settings.peer),
        members=str(settings.members), cluster_id=settings.cluster_id, data_dir=str(settings.data_dir),
        apps=[app.name for app in apps], protected=token is not None and not bound.is_loopback,
    )  # fmt: skip


def _mount(
    api: FastAPI,
    settings: NodeSettings,
    own: FleetNode,
    apps: Sequence[App],
    context: AppContext,
    driver: RaftDriver,
) -> None:
    names = [app.name for app in apps]
    api.get("/", tags=["node"])(_welcome(settings.name, own.url, names))
    mount_v3(api, context.store, settings.cluster_id)
    members = Members(driver, context.fleet, settings.cluster_id)
    ClusterApi(context.store, driver, members, context.fleet, own.url, names, context.clock).mount(api)
    for app in apps:
        app.mount(api)


def _welcome(name: str, url: str, apps: Sequence[str]) -> Callable[[], Any]:
    links = {
        "cluster": f"{url}/v1/cluster/status", "node": f"{url}/v1/cluster/node", "api": f"{url}/docs",
        "openapi": f"{url}/openapi.json", "ready": f"{url}/readyz", "metrics": f"{url}/metrics",
    }  # fmt: skip

    async def welcome() -> dict[str, Any]:
        """What this is, and where to look."""
        return {"what": "a node of a Quorate control plane", "name": name, "apps": list(apps), "links": links}

    return welcome


def readiness(driver: RaftDriver, apps: Sequence[App]) -> Callable[[], str | None]:
    """Ready: this member is in the cluster, the store has a leader, and every app can serve."""

    def why_not() -> str | None:
        try:
            status = driver.status()
            if status.membership.is_empty:
                return "this node waits to be added to the cluster: quorate cluster add NAME HOST:PORT"
            if not status.leader:
                return "the store has no leader"
        except QuorateError as error:
            return error.detail
        return next((reason for app in apps if (reason := app.ready()) is not None), None)

    return why_not
