"""The engines that the suite runs on. A test gets a `store`, and keys of its own under `prefix`."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from quorate_store.port import Store
from support.store_local import local_store
from support.store_raft import raft_stores

ENGINES = ["local", "raft leader", "raft follower"]


@pytest_asyncio.fixture(scope="package", loop_scope="package", params=ENGINES)
async def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    folder: Path = tmp_path_factory.mktemp("store")
    async with AsyncExitStack() as stack:
        if request.param == "local":
            yield await stack.enter_async_context(local_store(folder))
            return
        members = await stack.enter_async_context(raft_stores(folder))
        wants_leader = request.param == "raft leader"
        yield next(member.store for member in members if member.leads == wants_leader)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> bytes:
    return re.sub(r"\[.*", "", request.node.name).encode() + b"/"
