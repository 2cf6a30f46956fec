"""A FastAPI (or Starlette) lifespan that registers the application once it listens, and drains it at shutdown."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from quorate_sdk.client import Client


def lifespan(
    service: str,
    *,
    port: int,
    host: str = "127.0.0.1",
    instance_id: str | None = None,
    version: str = "",
    metadata: Mapping[str, str] | None = None,
    client: Client | None = None,
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """For `FastAPI(lifespan=quorate.lifespan("order", port=8000))`.

    `host` and `port`: where others reach this application. It starts whether the control plane is there or not, and
    is registered as soon as it accepts connections. `client`: the default is the one of `quorate.default_client()`.
    The client is in `app.state.quorate` while the application runs.
    """

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[None]:
        from quorate_sdk import default_client  # noqa: PLC0415 - the package imports this module lazily

        ours = client or default_client()
        app.state.quorate = ours
        await ours.start()
        await ours.register(
            service=service, host=host, port=port, instance_id=instance_id, version=version, metadata=metadata,
            when_listening=True, wait_s=0,
        )  # fmt: skip
        try:
            yield
        finally:
            await ours.close()

    return run
