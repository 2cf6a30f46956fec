"""The client for programs without an event loop, against a node that serves on a loop of its own; over forks too."""

import asyncio
import multiprocessing
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from quorate_config_center import ConfigCenterApp
from quorate_core.clock import ManualClock
from quorate_core.errors import SettingsError, Unavailable
from quorate_registry import RegistryApp
from quorate_sdk import Client, SyncClient
from quorate_sdk.wire import Instance
from support.gateway_upstream import Upstream
from support.registry_server import NodeServer
from support.store_local import local_store

WAIT_S_MAX = 20.0


class ShopSettings(BaseModel):
    greeting: str = "hello"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeServer]:
    async with (
        local_store(tmp_path, clock=ManualClock()) as store,
        NodeServer(store, (RegistryApp, ConfigCenterApp)) as node,
    ):
        yield node


def client_of(node: NodeServer, **options: Any) -> SyncClient:
    return SyncClient(lambda: Client([node.url], **options))


async def in_thread(act: Callable[[], Any]) -> Any:
    async with asyncio.timeout(WAIT_S_MAX):
        return await asyncio.to_thread(act)


async def test_a_thread_registers_finds_and_calls_and_leaves(node: NodeServer) -> None:
    async with Upstream() as upstream:

        def run() -> list[str]:
            said = []
            with client_of(node) as platform:
                platform.register(service="inventory", instance_id="i-1", host="127.0.0.1", port=upstream.port)
                until(lambda: [one.id for one in platform.instances("inventory")] == ["i-1"], platform)
                with platform.http() as http:
                    said.append(http.get("http://inventory/stock").text)
                platform.drain()
                until(lambda: not platform.instances("inventory"), platform)
                with pytest.raises(httpx.ConnectError, match="no registered instance"):
                    platform.http().get("http://inventory/stock")
            with pytest.raises(Unavailable, match="closed"):
                platform.instances("inventory")
            return said

        assert await in_thread(run) == ["hello"]


def until(holds: Callable[[], bool], platform: SyncClient) -> None:
    """Looked at whenever the registry tells of a change."""
    changed = threading.Event()
    runtime = platform._running()
    end = runtime.do(lambda: runtime.client.discovery.subscribe(lambda _: changed.set()))
    try:
        while not holds():
            assert changed.wait(WAIT_S_MAX)
            changed.clear()
    finally:
        runtime.do(end)


async def test_many_threads_call_by_one_client(node: NodeServer) -> None:
    async with Upstream() as one, Upstream() as two:

        def run() -> list[int]:
            with client_of(node) as platform:
                for number, upstream in enumerate((one, two), 1):
                    platform.register(
                        service="inventory", instance_id=f"i-{number}", host="127.0.0.1", port=upstream.port
                    )
                until(lambda: len(platform.instances("inventory")) == 2, platform)
                http = platform.http(balance="round_robin")
                with ThreadPoolExecutor(8) as threads:
                    answers = threads.map(lambda _: http.get("http://inventory/stock").status_code, range(200))
                    return list(answers)

        assert await in_thread(run) == [200] * 200
        assert len(one.requests) == len(two.requests) == 100


async def test_settings_follow_the_document_and_callbacks_are_told(node: NodeServer) -> None:
    def run() -> None:
        with client_of(node) as platform:
            settings = platform.config(ShopSettings, "shop/settings.yaml")
            assert settings is platform.config(ShopSettings, "shop/settings.yaml")
            assert settings.current.greeting == "hello"
            told: list[str] = []
            changed = threading.Event()

            def on_change(old: ShopSettings, new: ShopSettings) -> None:
                told.extend([old.greeting, new.greeting])
                changed.set()

            end = settings.subscribe(on_change)
            document = f"{node.url}/v1/config/default/shop/settings.yaml"
            httpx.put(document, content="greeting: good day", params={"format": "yaml"}).raise_for_status()
            assert changed.wait(WAIT_S_MAX)
            assert (settings.current.greeting, settings.version, told) == ("good day", 1, ["hello", "good day"])
            end()

    await in_thread(run)


async def test_what_keeps_a_client_from_being_made_is_raised_where_it_is_needed() -> None:
    def make() -> Client:
        return Client(["not a url"])

    with pytest.raises(SettingsError):
        await in_thread(lambda: SyncClient(make).instances("order"))


def _in_child(platform: SyncClient, http: httpx.Client, settings: Any, answers: Any) -> None:
    platform.wait_ready()
    answers.put(
        (http.get("http://inventory/stock").text, settings.current.greeting, len(platform.instances("inventory")))
    )


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
async def test_a_forked_child_goes_on_with_what_it_was_handed_over(node: NodeServer) -> None:
    async with Upstream() as upstream:

        def run() -> tuple[str, str, int]:
            with client_of(node) as platform:
                platform.register(service="inventory", instance_id="i-1", host="127.0.0.1", port=upstream.port)
                until(lambda: len(platform.instances("inventory")) == 1, platform)
                http, settings = platform.http(), platform.config(ShopSettings, "shop/settings.yaml")
                assert http.get("http://inventory/stock").text == "hello"
                fork = multiprocessing.get_context("fork")
                answers = fork.Queue()
                child = fork.Process(target=_in_child, args=(platform, http, settings, answers))
                child.start()
                found: tuple[str, str, int] = answers.get(timeout=WAIT_S_MAX)
                child.join(WAIT_S_MAX)
                assert http.get("http://inventory/stock").text == "hello", "the parent's is as it was"
                instances: list[Instance] = list(platform.instances("inventory"))
                assert [one.id for one in instances] == ["i-1"], "and the child ended nothing of it"
                return found

        assert await in_thread(run) == ("hello", "hello", 1)
