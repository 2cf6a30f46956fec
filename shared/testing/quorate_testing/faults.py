"""What a test can have go wrong between a service and its control plane, short of the node being away."""

import asyncio
from typing import Any, cast

from quorate_core.errors import NotProposed
from quorate_store.port import Store
from starlette.types import ASGIApp, Receive, Scope, Send

WRITES = frozenset({"put", "delete", "txn", "compact", "lease_grant", "lease_revoke", "lease_keepalive"})
"""Calls of the store that need a majority of its members; reads that need one too are left to work."""


class FaultyStore:
    """A store that refuses writes while `refuses_writes` is set, as a node does whose cluster has no majority. Every
    other call goes to the store behind it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.refuses_writes = False

    @property
    def port(self) -> Store:
        return cast("Store", self)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in WRITES:
            return method

        async def call(*arguments: Any, **options: Any) -> Any:
            if self.refuses_writes:
                raise NotProposed("the test has this node refuse writes")
            return await method(*arguments, **options)

        return call


class SlowApp:
    """An application whose answers begin `delay_s` seconds late."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.delay_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.delay_s and scope["type"] == "http":
            await asyncio.sleep(self.delay_s)
        await self._app(scope, receive, send)
