"""The engines that the suite runs on. A test gets a `store`, and keys of its own under `prefix`."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from quorate_store.port import Store
from support.store_etcd import etcd_store, nodes_store, running_etcd
from support.store_local import local_store
from support.store_raft import raft_stores

ENGINES = ["local", "raft leader", "raft follower", "etcd", "quorate nodes"]
FAR_ENGINE = "etcd, far"
"""Keeps so few of the newest changes that watches are served from history."""
FAR_REVISIONS_KEPT = 4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "store" in metafunc.fixturenames:
        is_about_watches = metafunc.module.__name__.endswith("test_watches")
        engines = [*ENGINES, FAR_ENGINE] if is_about_watches else ENGINES
        metafunc.parametrize("store", engines, indirect=True, scope="package")


@pytest.fixture(scope="package")
def etcd_endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as members:
        yield members.endpoints


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    folder: Path = tmp_path_factory.mktemp("store")
    async with AsyncExitStack() as stack:
        yield await open_engine(request.param, folder, request, stack)


async def open_engine(name: str, folder: Path, request: pytest.FixtureRequest, stack: AsyncExitStack) -> Store:
    if name == "local":
        return await stack.enter_async_context(local_store(folder))
    if name.startswith("etcd"):
        options = {"recent_revisions_max": FAR_REVISIONS_KEPT} if name == FAR_ENGINE else {}
        endpoints = request.getfixturevalue("etcd_endpoints")
        return await stack.enter_async_context(etcd_store(endpoints, **options))
    if name == "quorate nodes":
        return await stack.enter_async_context(nodes_store(folder))
    members = await stack.enter_async_context(raft_stores(folder))
    wants_leader = name == "raft leader"
    return next(member.store for member in members if member.leads == wants_leader)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> bytes:
    return re.sub(r"\[.*", "", request.node.name).encode() + b"/"
