"""API keys behind a real config center: what is published holds at once, and what is lost takes no key along."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from quorate_config_center.app import ConfigCenterApp
from quorate_config_center.history import DocumentHistory
from quorate_config_center.model import Change, DocumentName, Precondition
from quorate_gateway.control import Control
from quorate_gateway.documents.access import ApiKeysDocument
from quorate_registry import RegistryApp
from quorate_sdk import ControlPlane
from quorate_sdk.wire import ConfigFormat
from quorate_store.port import Store
from support import plain_http
from support.gateway_upstream import unused_port
from support.registry_server import WAIT_S_MAX, NodeServer
from support.store_local import local_store

IN_FORCE_S_MAX = 1.0
"""From the answer to a publish until every request is judged by it."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with local_store(tmp_path / "store") as store:
        yield store


@pytest.fixture
async def node(store: Store) -> AsyncIterator[NodeServer]:
    async with NodeServer(store, (RegistryApp, ConfigCenterApp)) as node:
        yield node


def document(*keys: str) -> str:
    entries = [{"id": f"id-{key}", "sha256": hashlib.sha256(key.encode()).hexdigest()} for key in keys]
    return f"keys: {json.dumps(entries)}\n"


class Followed:
    """A control without a data plane: its API keys are what requests would be judged by."""

    def __init__(self, control: Control) -> None:
        self.control = control

    def valid(self, *candidates: str) -> list[str]:
        return [key for key in candidates if self.control.context.api_keys.find(key.encode()) is not None]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S_MAX):
            while not condition():  # noqa: ASYNC110 - what is waited for is plain state
                await asyncio.sleep(0)

    async def until_known(self) -> None:
        await self.until(lambda: self.control.context.api_keys.is_known)


@asynccontextmanager
async def followed(url: str, data_dir: Path) -> AsyncIterator[Followed]:
    failures: list[BaseException] = []
    async with ControlPlane([url]) as control_plane:
        control = Control(control_plane, "default", data_dir, lambda _snapshot: None, failures.append)
        await control.start()
        try:
            yield Followed(control)
        finally:
            await control.stop()
    assert failures == []


async def request(node: NodeServer, method: str, content: str | None = None) -> httpx.Response:
    async with plain_http.async_client() as client:
        return await client.request(method, f"{node.url}/v1/config/default/gateway/api-keys.yaml", content=content)


async def publish(node: NodeServer, *keys: str) -> None:
    (await request(node, "PUT", document(*keys))).raise_for_status()


async def test_what_is_published_holds_within_a_second_and_is_taken_back_as_fast(
    node: NodeServer, tmp_path: Path
) -> None:
    async with followed(node.url, tmp_path) as gateway:
        await gateway.until_known()
        assert gateway.valid("a", "b") == []
        for keys in (["a"], ["a", "b"], ["b"], []):
            await publish(node, *keys)
            began_s = time.monotonic()
            await gateway.until(lambda keys=keys: gateway.valid("a", "b") == keys)  # type: ignore[misc]  # its default
            assert time.monotonic() - began_s < IN_FORCE_S_MAX
        assert gateway.control.keys.version == 4


async def test_an_invalid_document_is_refused_at_publish_with_its_line(node: NodeServer) -> None:
    refused = await request(node, "PUT", "keys:\n  - id: a\n    sha256: my-secret-key\n")
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["line"] == 3
    assert "my-secret-key" not in refused.text, "whoever mistakes the key for its digest does not find it in a log"


async def test_a_document_that_is_invalid_all_the_same_changes_nothing_and_is_told_of(
    node: NodeServer, store: Store, tmp_path: Path
) -> None:
    async with followed(node.url, tmp_path) as gateway:
        await publish(node, "a")
        await gateway.until(lambda: gateway.valid("a") == ["a"])
        # As a config center without the gateway's validator would.
        name, change = DocumentName("default", "gateway", "api-keys.yaml"), Change("x", "", "2026-01-01T00:00:00Z")
        await DocumentHistory(store).publish(name, "keys: 1\n", ConfigFormat.YAML, change, Precondition())
        await gateway.until(lambda: gateway.control.keys.rejected is not None)
        assert (gateway.valid("a"), gateway.control.keys.version) == (["a"], 1)
        await publish(node, "b")
        await gateway.until(lambda: gateway.valid("a", "b") == ["b"])
        assert gateway.control.keys.rejected is None


async def test_the_last_good_keys_stay_while_the_control_plane_is_away_and_newer_ones_come_when_it_is_back(
    node: NodeServer, tmp_path: Path
) -> None:
    async with followed(node.url, tmp_path) as gateway:
        await publish(node, "a")
        await gateway.until(lambda: gateway.valid("a") == ["a"])
        await node.stop()
        await gateway.until(lambda: not gateway.control.connected)
        assert gateway.valid("a") == ["a"]
        await node.start()
        await publish(node, "b")
        await gateway.until(lambda: gateway.valid("a", "b") == ["b"])


@pytest.mark.parametrize("lost", ["documents.json", "good-api-keys.json"])
async def test_a_restart_without_a_control_plane_has_the_keys_from_disk(
    node: NodeServer, tmp_path: Path, lost: str
) -> None:
    """From either of the two files that have them."""
    async with followed(node.url, tmp_path) as gateway:
        await publish(node, "a")
        await gateway.until(lambda: gateway.valid("a") == ["a"])
    (tmp_path / lost).unlink()
    async with followed(f"http://127.0.0.1:{unused_port()}", tmp_path) as gateway:
        await gateway.until_known()
        assert gateway.valid("a") == ["a"]


async def test_without_control_plane_and_disk_nothing_is_known(tmp_path: Path) -> None:
    async with followed(f"http://127.0.0.1:{unused_port()}", tmp_path) as gateway:
        await gateway.until(lambda: gateway.control._config.stale_s > 0)
        assert not gateway.control.context.api_keys.is_known
        assert gateway.control.keys.document is None


async def test_what_is_on_disk_holds_no_key(node: NodeServer, tmp_path: Path) -> None:
    async with followed(node.url, tmp_path) as gateway:
        await publish(node, "the-key-itself")
        await gateway.until(lambda: gateway.valid("the-key-itself") == ["the-key-itself"])
    written = _files(tmp_path)
    assert "good-api-keys.json" in written
    assert all("the-key-itself" not in text.replace("id-the-key-itself", "") for text in written.values())


def _files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.json")}


async def test_a_deleted_document_locks_nobody_out_and_an_empty_one_everybody(node: NodeServer, tmp_path: Path) -> None:
    async with followed(node.url, tmp_path) as gateway:
        await publish(node, "a")
        await gateway.until(lambda: gateway.valid("a") == ["a"])
        (await request(node, "DELETE")).raise_for_status()
        await gateway.until(lambda: gateway.control.keys.rejected is not None)
        assert gateway.valid("a") == ["a"]
        await publish(node, "a")  # the same again, as a rollback would
        await gateway.until(lambda: gateway.control.keys.rejected is None)
        await publish(node)
        await gateway.until(lambda: gateway.valid("a") == [])


async def test_who_shares_the_keys_out_is_given_each_document(node: NodeServer, tmp_path: Path) -> None:
    given: list[ApiKeysDocument] = []
    async with ControlPlane([node.url]) as control_plane:
        control = Control(control_plane, "default", tmp_path, lambda _snapshot: None, swap_keys=given.append)
        await control.start()
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                while len(given) < 1:  # noqa: ASYNC110 - plain state
                    await asyncio.sleep(0)
                await publish(node, "a")
                while len(given) < 2:  # noqa: ASYNC110 - plain state
                    await asyncio.sleep(0)
        finally:
            await control.stop()
    assert [[key.id for key in one.keys] for one in given] == [[], ["id-a"]]
    assert given[1] is control.keys.document
