"""A FastAPI (or Starlette) lifespan that registers the application once it listens, and drains it at shutdown.

At SIGTERM and SIGINT the registry is left before the server hears of them (`quorate_sdk.leaving`). Under uvicorn's
reloader, SIGTERM means most often that the next process comes at once, and the reloader keeps the socket open for it:
then the registration is left as it is, and the next process goes on with it.
"""

import multiprocessing
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from quorate_sdk.client import Client
from quorate_sdk.leaving import leaving_first
from quorate_sdk.registration import Registration
from quorate_sdk.wire import TTL_S_DEFAULT


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
            with leaving_first(_leave(registration)):
                yield
            await registration.drain()
        finally:
            if client is None:
                await ours.close()

    return run


def _leave(registration: Registration) -> Callable[[int], None]:
    def leave(number: int) -> None:
        registration.leave(handing_over=number == signal.SIGTERM and _is_under_reloader())

    return leave


def _is_under_reloader() -> bool:
    """Whether uvicorn's reloader has started this process: it hands over its settings as an argument. Nothing of
    uvicorn's says so in public."""
    config = getattr(multiprocessing.current_process(), "_kwargs", {}).get("config")
    return bool(getattr(config, "should_reload", False))
