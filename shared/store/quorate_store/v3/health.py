"""`/health` and `/version`, where etcd has them."""

import asyncio
import json

from fastapi import FastAPI
from quorate_core.errors import QuorateError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from quorate_store.port import Store
from quorate_store.v3.codec import ETCD_VERSION
from quorate_store.v3.maintenance import alarms_of

HEALTH_TIMEOUT_S = 1.0
"""etcd's own."""

_HEALTH_KEY = b"health"
"""What is read, whether or not it is there: a read that a majority has a part in."""


class HealthEndpoints:
    def __init__(self, store: Store) -> None:
        self._store = store

    def mount(self, api: FastAPI) -> None:
        api.router.routes.append(Route("/health", self.health, methods=["GET"], include_in_schema=False))
        api.router.routes.append(Route("/version", self.version, methods=["GET"], include_in_schema=False))

    async def health(self, _request: Request) -> Response:
        """Whether a linearizable read is answered, and no alarm is on. Later versions of etcd give a reason too."""
        reason = await self._why_not()
        if reason is None:
            return Response(json.dumps({"health": "true"}, separators=(",", ":")), media_type="text/plain")
        answer = json.dumps({"health": "false", "reason": reason}, separators=(",", ":"))
        return Response(answer + "\n", 503, media_type="text/plain")

    async def version(self, _request: Request) -> Response:
        """The version of etcd whose API this is."""
        answer = json.dumps({"etcdserver": ETCD_VERSION, "etcdcluster": ETCD_VERSION}, separators=(",", ":"))
        return Response(answer, media_type="application/json")

    async def _why_not(self) -> str | None:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                status = await self._store.status()
                if not status.leader:
                    return "RAFT NO LEADER"
                alarms = alarms_of(status)
                if alarms:
                    return " ".join(f"ALARM {alarm.name}" for alarm in alarms)
                await self._store.range(_HEALTH_KEY, count_only=True)
        except TimeoutError:
            return f"a read has taken longer than {HEALTH_TIMEOUT_S:g} s"
        except QuorateError as error:
            return error.detail
        return None
