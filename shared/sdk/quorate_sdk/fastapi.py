"""A FastAPI (or Starlette) lifespan that registers the application once it listens, and drains it at shutdown.

A server such as uvicorn closes its listener on SIGTERM before it ends the lifespan; an instance that left the registry
only then would be asked, and refuse, in between. So the lifespan takes the server's place as the handler of SIGTERM
and SIGINT: it leaves the registry first, and then hands the signal on. A second signal is handed on at once.
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import structlog
from quorate_core.tasks import TaskOwner

from quorate_sdk.client import Client
from quorate_sdk.wire import TTL_S_DEFAULT

SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger(__name__)


def lifespan(
    service: str,
    *,
    port: int,
    host: str = "127.0.0.1",
    instance_id: str | None = None,
    version: str = "",
    metadata: Mapping[str, str] | None = None,
    weight: int = 100,
    zone: str = "",
    ttl_s: int = TTL_S_DEFAULT,
    client: Client | None = None,
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """For `FastAPI(lifespan=quorate.lifespan("greeter", port=8000))`.

    `host` and `port`: where others reach this application. It starts whether the control plane is there or not, and
    is registered as soon as it accepts connections. The other arguments are those of `Client.register`. `client`: the
    default is the one of `quorate.default_client()`, which is closed at the end; one that is given is started, and
    remains the caller's to close. The client is in `app.state.quorate` while the application runs.
    """

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[None]:
        from quorate_sdk import default_client  # noqa: PLC0415 - the package imports this module lazily

        ours = client or default_client()
        app.state.quorate = ours
        try:
            await ours.start()
            registration = await ours.register(
                service=service, host=host, port=port, instance_id=instance_id, version=version, metadata=metadata,
                weight=weight, zone=zone, ttl_s=ttl_s, when_listening=True, wait_s=0,
            )  # fmt: skip
            async with TaskOwner("lifespan") as tasks:
                with _signals_after(registration.drain, tasks):
                    yield
                await registration.drain()
        finally:
            if client is None:
                await ours.close()

    return run


@contextmanager
def _signals_after(leave: Callable[[], Awaitable[None]], tasks: TaskOwner) -> Iterator[None]:
    """The first SIGTERM or SIGINT reaches the server's handler only after `leave`; later ones at once."""
    loop = asyncio.get_running_loop()
    former = {number: signal.getsignal(number) for number in SIGNALS}
    is_leaving = threading.Event()

    async def leave_first(number: int, hand_on: Callable[[int, FrameType | None], Any]) -> None:
        try:
            await leave()
        except Exception:
            log.exception("drain_failed")
        hand_on(number, None)

    def on_signal(number: int, frame: FrameType | None) -> None:
        hand_on = former[signal.Signals(number)]
        if not callable(hand_on):
            return
        if is_leaving.is_set():
            hand_on(number, frame)
            return
        is_leaving.set()
        loop.call_soon_threadsafe(lambda: tasks.start(leave_first(number, hand_on), "leave"))

    # Without a handler of the server's, the signal's default ends the process, and nothing is to be handed on.
    # Only the main thread may set one.
    taken = [number for number in SIGNALS if callable(former[number]) and former[number] != signal.default_int_handler]
    if threading.current_thread() is not threading.main_thread():
        taken = []
    for number in taken:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is on_signal:
                signal.signal(number, former[number])
