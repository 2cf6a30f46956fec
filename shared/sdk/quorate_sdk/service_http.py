"""An httpx client that finds services by name: `http://inventory/stock/widget` goes to an instance of `inventory`.

A host without a dot and without a port is a service's name (`localhost` excepted); every other host is what it always
is. An instance that refuses the connection has seen nothing of the request, so another one is tried.
"""

import random
from collections.abc import Mapping
from typing import Any

import httpx
from quorate_resilience.balancers import RoundRobin

from quorate_sdk.discovery import Discovery, takes_traffic
from quorate_sdk.wire import Instance

ATTEMPTS_MAX = 3
"""Instances that are tried for one request."""
READY_WAIT_S = 2.0
"""Each request waits so long as long as there is no copy of the registry yet."""
CONNECT_TIMEOUT_S = 1.0
READ_TIMEOUT_S = 10.0
POOL_WAIT_S = 5.0
CONNECTIONS_MAX = 200
IDLE_CONNECTION_S = 4.0
"""Below uvicorn's own default of 5 s, so that no request meets a connection that is being closed."""
BALANCERS_MAX = 1_024
CONNECTION_OPTIONS = frozenset({"verify", "cert", "http1", "http2", "limits", "local_address", "socket_options"})
"""Options of httpx.AsyncHTTPTransport, for the connections to instances."""
CLIENT_OPTIONS = frozenset(
    {
        "auth", "params", "headers", "cookies", "timeout", "follow_redirects", "max_redirects", "event_hooks",
        "base_url", "default_encoding",
    }
)  # fmt: skip
"""Options of httpx.AsyncClient that have nothing to do with how connections are made."""


class ServiceTransport(httpx.AsyncBaseTransport):
    """Resolves service names through `discovery`, and balances over the instances that take traffic."""

    def __init__(
        self,
        discovery: Discovery,
        inner: httpx.AsyncBaseTransport | None = None,
        *,
        chance: random.Random | None = None,
    ) -> None:
        """`inner` makes the connections: `connections()` when not given."""
        self._discovery = discovery
        self._inner = inner or connections()
        self._chance = chance or random.Random()
        self._balancers: dict[str, tuple[tuple[Instance, ...], tuple[Instance, ...], RoundRobin[Instance]]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        service = request.url.host
        if not is_service_name(request.url):
            return await self._inner.handle_async_request(request)
        await self._discovery.ready(READY_WAIT_S)
        tried: list[Instance] = []
        refused: httpx.TransportError | None = None
        while len(tried) < ATTEMPTS_MAX:
            instance = self._pick(service, tried)
            if instance is None:
                break
            tried.append(instance)
            try:
                return await self._inner.handle_async_request(_addressed(request, instance))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                refused = error
        raise httpx.ConnectError(self._why_not(service, tried), request=request) from refused

    def _pick(self, service: str, tried: list[Instance]) -> Instance | None:
        known = self._discovery.instances(service)
        held = self._balancers.get(service)
        if held is None or held[0] is not known:
            if held is None and len(self._balancers) >= BALANCERS_MAX:
                self._balancers.clear()
            balancer = RoundRobin[Instance](self._chance.randrange(1 << 16)) if held is None else held[2]
            held = self._balancers[service] = (known, takes_traffic(known), balancer)
        return held[2].pick(held[1], tried)

    def _why_not(self, service: str, tried: list[Instance]) -> str:
        if tried:
            return f"service {service!r}: no connection to {', '.join(instance.authority for instance in tried)}"
        known = self._discovery.instances(service)
        if known:
            states = ", ".join(f"{instance.id} {instance.status} weight {instance.weight}" for instance in known[:8])
            return f"service {service!r} has no instance that takes traffic ({states})"
        if not self._discovery.revision:
            return f"service {service!r} is not known: the registry has not answered yet"
        return f"service {service!r} has no registered instance in namespace {self._discovery.namespace!r}"

    async def aclose(self) -> None:
        await self._inner.aclose()


def is_service_name(url: httpx.URL) -> bool:
    host = url.host
    return (
        url.port is None and url.scheme == "http" and bool(host) and not set(host) & set(".:") and host != "localhost"
    )


def connections(**options: Any) -> httpx.AsyncHTTPTransport:
    """`options`: some of CONNECTION_OPTIONS."""
    limits = httpx.Limits(max_connections=CONNECTIONS_MAX, keepalive_expiry=IDLE_CONNECTION_S)
    return httpx.AsyncHTTPTransport(**{"limits": limits, **options})


def http_client(transport: httpx.AsyncBaseTransport, **options: Any) -> httpx.AsyncClient:
    """`options`: some of CLIENT_OPTIONS."""
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=POOL_WAIT_S)
    return httpx.AsyncClient(transport=transport, **{"timeout": timeout, **options})


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options for the connections and those for the client. Raises TypeError naming those that are neither."""
    if refused := sorted(options.keys() - CONNECTION_OPTIONS - CLIENT_OPTIONS):
        known = ", ".join(sorted(CONNECTION_OPTIONS | CLIENT_OPTIONS))
        raise TypeError(
            f"http() finds instances by a transport of its own and takes no {', '.join(refused)}; only {known}"
        )
    for_connections = {name: value for name, value in options.items() if name in CONNECTION_OPTIONS}
    return for_connections, {name: value for name, value in options.items() if name not in CONNECTION_OPTIONS}


def _addressed(request: httpx.Request, instance: Instance) -> httpx.Request:
    """The same request for this instance: its address, and its Host, since a server answers to its own names only."""
    url = request.url.copy_with(scheme=instance.scheme, host=instance.host, port=instance.port)
    headers = request.headers.copy()
    headers["host"] = instance.authority
    return httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=request.extensions)
