"""Whether a part is ready, asked of the part itself, and for a service also of the registry."""

import httpx
from quorate_core.settings import HostPort

from quorate_cli.gateway_api import GatewayEndpoints, GatewayRoutes, serves
from quorate_cli.parts import NAMESPACE, Part

PROBE_TIMEOUT_S = 2.0


class Readiness:
    """A part is ready when its /readyz says so; a service, when the registry moreover has it at its address."""

    def __init__(self, client: httpx.AsyncClient, endpoints: list[str]) -> None:
        self._client = client
        self._endpoints = endpoints

    async def __call__(self, part: Part) -> bool:
        try:
            answer = await self._client.get(part.ready_url, timeout=PROBE_TIMEOUT_S)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK and (not part.kind.is_service or await self._is_registered(part))

    async def _is_registered(self, part: Part) -> bool:
        path = f"/v1/registry/{NAMESPACE}/services/{part.kind}/instances/{part.name}"
        for endpoint in self._endpoints:
            try:
                answer = await self._client.get(endpoint + path, timeout=PROBE_TIMEOUT_S)
                if answer.status_code == httpx.codes.OK:
                    found = answer.json()
                    return found["status"] == "UP" and HostPort(found["host"], found["port"]) == part.address
            except (httpx.HTTPError, ValueError, KeyError):
                continue
        return False

    async def is_served(self, admin_url: str, services: list[Part], needs_routes: bool) -> bool:
        """Whether the gateway sends requests to the services where they are now, and not where they were once.

        `needs_routes`: routes were published, so that a gateway without any has not heard of them yet.
        """
        try:
            routes = GatewayRoutes.model_validate(await self._json(f"{admin_url}/v1/gateway/routes"))
            endpoints = GatewayEndpoints.model_validate(await self._json(f"{admin_url}/v1/gateway/endpoints"))
        except (httpx.HTTPError, ValueError):
            return False
        addresses: dict[str, set[str]] = {}
        for part in services:
            addresses.setdefault(part.kind, set()).add(str(part.address))
        return serves(routes, endpoints, addresses) and (bool(routes.root) or not needs_routes)

    async def _json(self, url: str) -> object:
        answer = await self._client.get(url, timeout=PROBE_TIMEOUT_S)
        return answer.raise_for_status().json()
