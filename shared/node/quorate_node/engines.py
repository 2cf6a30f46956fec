"""What a node stands on: the store, and what only it can say of itself. `start_engine` starts the one that is wanted.

- *Member* (the default): this process is a member of the store, by Raft. It has a log, peers and a data folder, and
  starts with its memory or not at all (`memory`).
- *External* (`--store`): the store is somewhere else, an etcd cluster or nodes of Quorate. This process keeps nothing,
  and starts also while the store is away: it is not ready then, and becomes so by itself.

An engine is entered before everything that uses the store, and left after it.
"""

import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import structlog
from quorate_core.clock import SystemClock
from quorate_core.errors import InvariantViolation, QuorateError, SettingsError
from quorate_core.process import Stop
from quorate_core.secrets import load_secret
from quorate_core.serving import open_listener
from quorate_core.tasks import TaskOwner
from quorate_raft import DriverConfig, FileDisk, MemberRemoved, Membership, RaftDriver, TcpConfig, TcpNetwork
from quorate_store.apps import Fleet
from quorate_store.database import MAP_BYTES_MAX
from quorate_store.etcd import EtcdStore
from quorate_store.port import Store
from quorate_store.raft_engine import RaftStore
from quorate_store.state import StateMachine
from quorate_store.v3.administration import V3Administration
from quorate_store.v3.headers import PLATFORM_HEADER

from quorate_node.administration_v3 import MemberAdministrationV3
from quorate_node.backup import MemberBackups
from quorate_node.cluster import ClusterView, MemberAdministration, MemberView
from quorate_node.endpoint_probes import EndpointProbes
from quorate_node.external_store import ExternalView, MembersElsewhere
from quorate_node.members import Members, difference
from quorate_node.memory import RAFT_FOLDER, note_begun, note_removed, require_memory
from quorate_node.settings import ClusterState, NodeSettings
from quorate_node.store_url import StoreUrl

STATE_FOLDER = "state"
_CREDENTIAL_PURPOSE = b"quorate: write the platform's keys over the open API"

log = structlog.get_logger(__name__)


class Engine(Protocol):
    """What `start_engine` yields."""

    @property
    def store(self) -> Store: ...
    @property
    def view(self) -> ClusterView: ...
    @property
    def described(self) -> dict[str, Any]:
        """What it is, for the log."""
        ...

    @property
    def backups(self) -> MemberBackups | None:
        """None where this node has no state of its own."""
        ...

    def members(self, fleet: Fleet) -> MemberAdministration:
        """Called once."""
        ...

    def administration(self, members: MemberAdministration) -> V3Administration | None:
        """For etcd's API; None where this node is no member."""
        ...

    def why_not_ready(self) -> str | None: ...


def start_engine(settings: NodeSettings, stop: Stop) -> AbstractAsyncContextManager[Engine]:
    """The engine that the settings want. A part of it that fails for good tells `stop`.

    Raises SettingsError for what keeps it from starting, and MemberRemoved, of that family, at the end too, when this
    node is no member of its cluster any more.
    """
    if settings.store is not None:
        return _external_engine(settings, settings.store, stop)
    return _member_engine(settings, stop)


class MemberEngine:
    """This process is a member."""

    def __init__(
        self,
        settings: NodeSettings,
        driver: RaftDriver,
        store: RaftStore,
        machine: StateMachine,
        backups: MemberBackups,
    ) -> None:
        self._settings = settings
        self._machine = machine
        self.backups = backups
        self.driver = driver
        self._store = store
        self._view = MemberView(store, driver)

    @property
    def store(self) -> Store:
        return self._store

    @property
    def view(self) -> ClusterView:
        return self._view

    @property
    def described(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "peer": str(settings.peer), "members": str(settings.members), "cluster_id": settings.cluster_id,
            "data_dir": str(settings.data_dir),
        }  # fmt: skip

    def members(self, fleet: Fleet) -> MemberAdministration:
        return Members(self.driver, fleet, self._settings.cluster_id)

    def administration(self, members: MemberAdministration) -> V3Administration | None:
        return MemberAdministrationV3(members, self.backups, self._machine, self.driver)

    def why_not_ready(self) -> str | None:
        """None when this member is in the cluster and the store has a leader."""
        try:
            status = self.driver.status()
        except QuorateError as error:
            return error.detail
        if status.membership.is_empty:
            return "this node waits to be added to the cluster: quorate cluster add NAME HOST:PORT"
        return None if status.leader else "the store has no leader"


@asynccontextmanager
async def _member_engine(settings: NodeSettings, stop: Stop) -> AsyncIterator[Engine]:
    require_memory(settings)
    try:
        async with AsyncExitStack() as stack:
            yield await _start_member(settings, stop, stack)
        if isinstance(stop.failure, MemberRemoved):
            raise stop.failure
    except MemberRemoved as removal:
        raise note_removed(settings, removal) from removal


async def _start_member(settings: NodeSettings, stop: Stop, stack: AsyncExitStack) -> MemberEngine:
    """What is entered first is left last: the store, Raft (which hands its leadership over), and the files."""
    if settings.peer is None or settings.cluster_secret_file is None:
        raise InvariantViolation("a member was let through without --peer or --cluster-secret-file")
    secret = load_secret(settings.cluster_secret_file)
    disk = stack.enter_context(FileDisk(settings.data_dir / RAFT_FOLDER))
    machine = StateMachine(settings.data_dir / STATE_FOLDER, map_bytes=MAP_BYTES_MAX)
    stack.callback(machine.close)
    listener = open_listener(settings.peer, "--peer")
    stack.callback(listener.close)
    tasks = await stack.enter_async_context(TaskOwner("store", stop.fail))
    clock = SystemClock()
    network = TcpNetwork(TcpConfig(settings.name, settings.cluster_id, secret, settings.members), listener, tasks)
    config = DriverConfig(settings.name, _first_membership(settings), settings.cluster_id)
    driver = RaftDriver(config, disk, network, clock, machine, tasks)
    store = RaftStore(driver, machine, clock, tasks, quota_bytes=settings.store_quota_bytes)
    stack.push_async_callback(driver.close)
    await driver.start()
    note_begun(settings)
    _tell_of_membership(settings, driver.status().membership)
    stack.push_async_callback(store.close)
    await store.start()
    backups = MemberBackups(machine, driver, settings.cluster_id, settings.data_dir, clock)
    return MemberEngine(settings, driver, store, machine, backups)


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


class ExternalEngine:
    """The store is somewhere else."""

    def __init__(self, store: Store, probes: EndpointProbes) -> None:
        self._store = store
        self._probes = probes
        self._view = ExternalView(probes)
        self.backups = None

    @property
    def store(self) -> Store:
        return self._store

    @property
    def view(self) -> ClusterView:
        return self._view

    @property
    def described(self) -> dict[str, Any]:
        return {"store": str(self._probes.store_url)}

    def members(self, fleet: Fleet) -> MemberAdministration:
        return MembersElsewhere(self._probes.store_url)

    def administration(self, members: MemberAdministration) -> V3Administration | None:
        return None

    def why_not_ready(self) -> str | None:
        return self._probes.why_not_serving()


@asynccontextmanager
async def _external_engine(settings: NodeSettings, store_url: StoreUrl, stop: Stop) -> AsyncIterator[Engine]:
    headers = _store_headers(settings)
    tls = _tls_context(settings) if store_url.is_secure else None
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(TaskOwner("store", stop.fail))
        store = EtcdStore(store_url.endpoints, tasks, clock, headers=headers, tls=tls)
        stack.push_async_callback(store.close)
        probes = EndpointProbes(store_url, clock, headers, tls)
        tasks.start(probes.run(), "endpoint-probes")
        yield ExternalEngine(store, probes)


def _store_headers(settings: NodeSettings) -> dict[str, str]:
    """What is sent with every request to the store. etcd has no use for either, and leaves them aside."""
    headers = {}
    if settings.store_token_file is not None:
        headers["authorization"] = f"Bearer {load_secret(settings.store_token_file)}"
    credential = platform_credential(settings)
    if credential:
        headers[PLATFORM_HEADER.decode()] = credential
    return headers


def platform_credential(settings: NodeSettings) -> str:
    """What proves to another node, over the open API, that this one has the cluster's secret, and so may write the
    apps' keys; the secret itself never travels. Empty without one."""
    if settings.cluster_secret_file is None:
        return ""
    secret = load_secret(settings.cluster_secret_file)
    return hmac.new(secret.encode(), _CREDENTIAL_PURPOSE, hashlib.sha256).hexdigest()


def _tls_context(settings: NodeSettings) -> ssl.SSLContext:
    path = settings.store_ca_file
    try:
        return ssl.create_default_context(cafile=None if path is None else str(path))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"--store-ca-file {path} cannot be read: {error.strerror or error}") from error
