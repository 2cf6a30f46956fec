"""Serving: a port in use is named, and stopping finishes what runs and ends what streams."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.errors import SettingsError
from quorate_core.serving import HttpServer, bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.sse import EventStream
from quorate_core.tasks import TaskOwner
from starlette.types import Receive, Scope, Send

ANY_PORT = HostPort("127.0.0.1", 0)


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    listener = open_listener(ANY_PORT, "the node's HTTP address")
    try:
        with pytest.raises(SettingsError, match=r"the node's HTTP address: 127.0.0.1:\d+ is in use"):
            open_listener(bound_address(listener), "the node's HTTP address")
    finally:
        listener.close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingsError, match="cannot listen on"):
        open_listener(HostPort("192.0.2.1", 0), "x")


async def test_stopping_ends_streams_and_finishes_running_requests() -> None:
    surface = Surface("test", Protection.for_address(ANY_PORT, ANY_PORT, None))
    api = create_app(surface)
    entered, release = asyncio.Event(), asyncio.Event()

    @api.get("/slow")
    async def slow() -> str:
        entered.set()
        await release.wait()
        return "done"

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        async def events() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        await EventStream(events(), surface.stopping)(scope, receive, send)

    api.mount("/stream", stream)
    listener = open_listener(ANY_PORT, "test")
    base_url = f"http://{bound_address(listener)}"
    async with asyncio.timeout(20), TaskOwner("test") as tasks, httpx.AsyncClient(base_url=base_url) as client:
        server = HttpServer(api, listener, surface.stopping, tasks)
        await server.start()
        async with client.stream("GET", "/stream/") as streaming:
            chunks = streaming.aiter_bytes()
            assert await anext(chunks) == b": keep-alive\n\n"
            running = tasks.start(client.get("/slow"), "slow")
            await entered.wait()
            stopped = tasks.start(server.stop(), "stop")
            assert [chunk async for chunk in chunks] == []
            release.set()
            assert (await running).json() == "done"
            await stopped
    listener.close()
