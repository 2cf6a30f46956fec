"""An ASGI application whose answers about what is served are of this moment: all workers are asked first."""

from starlette.types import ASGIApp, Receive, Scope, Send

from quorate_gateway.served import Served

_ABOUT_SERVED = ("/metrics", "/v1/gateway/")


class Refreshed:
    def __init__(self, app: ASGIApp, served: Served) -> None:
        self._app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_ABOUT_SERVED):
            await self._served.refresh()
        await self._app(scope, receive, send)
