"""Live settings and watched documents against the real config center over HTTP on loopback."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from pydantic import BaseModel, Field
from quorate_config_center.app import ConfigCenterApp
from quorate_core.tasks import TaskOwner
from quorate_registry import RegistryApp
from quorate_sdk import Client, ControlPlane
from quorate_sdk.config_watcher import ConfigWatcher
from quorate_sdk.following import EventFollower
from quorate_sdk.wire import ConfigMetadata
from support.registry_server import WAIT_S_MAX, BreakableStore, NodeServer
from support.store_local import local_store

SETTINGS = "/v1/config/default/order/settings.yaml"
OTHER = "/v1/config/default/gateway/routes.json"


class OrderSettings(BaseModel):
    max_lines: int = Field(default=100, ge=1)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeServer]:
    async with local_store(tmp_path / "store") as store, NodeServer(store, (RegistryApp, ConfigCenterApp)) as node:
        yield node


@pytest.fixture
async def control_plane(node: NodeServer) -> AsyncIterator[ControlPlane]:
    async with ControlPlane([node.url]) as control_plane:
        yield control_plane


async def publish(control_plane: ControlPlane, content: str, path: str = SETTINGS) -> ConfigMetadata:
    answer = await control_plane.request("PUT", path, content=content.encode())
    return ConfigMetadata.model_validate_json(answer.content)


async def until(watcher: ConfigWatcher, holds: Callable[[], bool]) -> None:
    changed = asyncio.Event()
    unsubscribe = watcher.subscribe(lambda _: changed.set())
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            while not holds():
                await changed.wait()
                changed.clear()
    finally:
        unsubscribe()


async def test_settings_follow_their_document_without_a_restart(node: NodeServer, control_plane: ControlPlane) -> None:
    first = await publish(control_plane, "max_lines: 5")
    client = Client([node.url])
    settings = client.config(OrderSettings, "order/settings.yaml")
    assert settings.current.max_lines == 100
    async with client:
        assert (settings.current.max_lines, settings.version) == (5, first.version), "in force when start returns"
        second = await publish(control_plane, "max_lines: 6")
        await until(client.config_watcher, lambda: settings.version == second.version)
        assert settings.current.max_lines == 6
        await control_plane.request("DELETE", SETTINGS)
        await until(client.config_watcher, lambda: settings.version == 0)
        assert settings.current == OrderSettings()


async def test_an_invalid_document_is_kept_out(node: NodeServer, control_plane: ControlPlane) -> None:
    good = await publish(control_plane, "max_lines: 5")
    client = Client([node.url])
    settings = client.config(OrderSettings, "order/settings.yaml")
    async with client:
        bad = await publish(control_plane, "max_lines: 0")
        await until(client.config_watcher, lambda: client.config_watcher.revision >= bad.revision)
        assert (settings.current.max_lines, settings.version) == (5, good.version)
        assert "max_lines" in (settings.last_error or "")


async def test_settings_that_are_asked_for_later_come_too(node: NodeServer, control_plane: ControlPlane) -> None:
    await publish(control_plane, "max_lines: 5")
    await publish(control_plane, '{"max_lines": 7}', OTHER)
    async with Client([node.url]) as client:
        early = client.config(OrderSettings, "order/settings.yaml")
        await until(client.config_watcher, lambda: early.version > 0)
        late = client.config(OrderSettings, "gateway/routes.json")
        await until(client.config_watcher, lambda: late.version > 0)
        assert (early.current.max_lines, late.current.max_lines) == (5, 7)
        assert client.config(OrderSettings, "order/settings.yaml") is early


async def test_documents_outlive_the_control_plane_and_a_restart_without_it(
    node: NodeServer, control_plane: ControlPlane, tmp_path: Path
) -> None:
    published = await publish(control_plane, "max_lines: 5")
    client = Client([node.url], cache_dir=tmp_path / "cache")
    settings = client.config(OrderSettings, "order/settings.yaml")
    async with client:
        await node.stop()
        assert settings.current.max_lines == 5
    cold = Client([node.url], cache_dir=tmp_path / "cache")
    settings = cold.config(OrderSettings, "order/settings.yaml")
    await cold.start(wait_s=0.1)
    assert (settings.current.max_lines, settings.version) == (5, published.version)
    await node.start()
    changed = await publish(control_plane, "max_lines: 8")
    await until(cold.config_watcher, lambda: settings.version == changed.version)
    await cold.close()


async def test_a_watcher_hears_only_of_its_own_documents(node: NodeServer, control_plane: ControlPlane) -> None:
    watcher = ConfigWatcher(control_plane, keys=["order/settings.yaml"])
    told: list[set[str]] = []
    watcher.subscribe(told.append)
    await watcher.start()
    assert await watcher.ready(WAIT_S_MAX)
    await publish(control_plane, "{}", OTHER)
    published = await publish(control_plane, "max_lines: 5")
    await until(watcher, lambda: watcher.revision >= published.revision)
    assert told == [{"order/settings.yaml"}]
    assert watcher.documents["order/settings.yaml"].content == "max_lines: 5"
    assert (watcher.connected, watcher.stale_s) == (True, 0.0)
    await watcher.stop()


async def test_a_node_that_is_cut_off_falls_silent_and_is_left(tmp_path: Path) -> None:
    """It goes on sending keep-alive comments, and no bookmark."""
    apps = (RegistryApp, ConfigCenterApp)
    async with local_store(tmp_path / "store") as store:
        cut_off = BreakableStore(store)
        async with (
            NodeServer(store, apps) as node,
            NodeServer(cut_off, apps) as lonely,
            ControlPlane([lonely.url, node.url]) as control_plane,
            ControlPlane([node.url]) as publisher,
        ):
            watcher = ConfigWatcher(control_plane, keys=["order/settings.yaml"])
            path = "/v1/config/default/watch"
            parameters = [("key", "order/settings.yaml")]
            follower = EventFollower("test", control_plane, path, lambda: parameters, watcher, event_silence_s_max=0.2)
            async with TaskOwner("test") as tasks, asyncio.timeout(WAIT_S_MAX):
                tasks.start(follower.run(), "follow")
                await follower.first_event.wait()
                cut_off.cut()
                published = await publish(publisher, "max_lines: 5")
                await until(watcher, lambda: watcher.revision >= published.revision)
