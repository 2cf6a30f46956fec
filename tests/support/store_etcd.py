"""`EtcdStore`, the engine over etcd's v3 JSON API, on real members that run as processes.

with running_etcd(folder) as members:
    async with etcd_store(members.endpoints) as store: ...
"""

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.clock import SystemClock
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_node.engines import platform_credential
from quorate_node.settings import NodeSettings
from quorate_store.etcd import EtcdStore
from quorate_store.v3.endpoints import mount_v3
from quorate_store.v3.headers import PLATFORM_HEADER
from support import plain_http
from support.external_stores import EtcdMembers, OwnNodes, etcd_members, find_etcd, own_nodes
from support.node_app import served
from support.node_processes import until
from support.store_raft import raft_stores

START_S_MAX = 30.0
TOKEN = "a-token-of-the-tests-long-enough-0123456789"
CREDENTIAL = "what proves to be of the platform"
REQUIRE_VARIABLES = ("REQUIRE_ETCD", "CI")
"""Either of them, set, makes it a failure that there is no etcd."""


@contextmanager
def running_etcd(folder: Path, size: int = 3) -> Iterator[EtcdMembers]:
    """Members that are healthy. Skips, with the reason, where there is no etcd; fails with it where one is required."""
    found = find_etcd()
    if isinstance(found, str):
        if any(os.environ.get(name, "") not in ("", "0") for name in REQUIRE_VARIABLES):
            pytest.fail(found, pytrace=False)
        pytest.skip(f"{found} ({REQUIRE_VARIABLES[0]}=1 makes this a failure)")
    with etcd_members(folder, found, size) as members:
        members.start()
        until_healthy(members)
        yield members


def until_healthy(members: EtcdMembers) -> None:
    """Returns when each member answers a linearizable read."""
    for endpoint in members.endpoints:
        until(f"{endpoint} is healthy", lambda at=endpoint: _is_healthy(at), START_S_MAX)  # type: ignore[misc]


def _is_healthy(endpoint: str) -> bool:
    return plain_http.get(f"http://{endpoint}/health", timeout=2).json().get("health") == "true"


@asynccontextmanager
async def etcd_store(
    endpoints: Sequence[str], headers: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[EtcdStore]:
    """`options` are EtcdStore's own. What fails in its background fails the test, and so does a task that it leaves."""
    failures: list[BaseException] = []
    async with TaskOwner("etcd-store", failures.append) as tasks:
        addresses = [HostPort.parse(endpoint) for endpoint in endpoints]
        store = EtcdStore(addresses, tasks, SystemClock(), headers=headers, **options)
        try:
            yield store
        finally:
            await store.close()
        assert len(tasks) == 0, "a closed store has left tasks"
    if failures:
        raise failures[0]


@contextmanager
def running_nodes(folder: Path, size: int = 3) -> Iterator[OwnNodes]:
    """Nodes of Quorate that are ready."""
    with own_nodes(folder, size) as nodes:
        nodes.start()
        for node in nodes.cluster.nodes:
            node.wait_ready()
        yield nodes


def platform_headers(nodes: OwnNodes) -> dict[str, str]:
    """What a node sends that stands on these nodes."""
    settings = NodeSettings.model_construct(cluster_secret_file=Path(nodes.flags["cluster_secret_file"]))
    return {PLATFORM_HEADER.decode(): platform_credential(settings)}


@asynccontextmanager
async def nodes_store(folder: Path) -> AsyncIterator[EtcdStore]:
    """On three members of Quorate in this process, by HTTP, with a token, and with nobody else who writes: whole nodes
    write of themselves every now and then, and a test of the port may count revisions."""
    async with AsyncExitStack() as stack:
        members = await stack.enter_async_context(raft_stores(folder))
        endpoints: list[str] = []
        for member in members:
            api = create_app(Surface(member.name, Protection(hosts=None, token=TOKEN)))
            mount_v3(api, member.store, "nodes-of-the-tests", platform_credential=CREDENTIAL)
            endpoints.append((await stack.enter_async_context(served(api))).removeprefix("http://"))
        headers = {"authorization": f"Bearer {TOKEN}", PLATFORM_HEADER.decode(): CREDENTIAL}
        yield await stack.enter_async_context(etcd_store(endpoints, headers))
