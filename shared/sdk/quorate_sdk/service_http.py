"""An httpx client that finds services by name: `http://inventory/stock/widget` goes to an instance of `inventory`.

A host without a dot and without a port is a service's name (`localhost` excepted); every other host is what it always
is. What is decided of a call is in `quorate_sdk.calls`; here it is carried out on an event loop.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import httpx

from quorate_sdk.calls.call import Call, Try
from quorate_sdk.calls.services import Services

READY_WAIT_S = 2.0
"""Each request waits so long as long as there is no copy of the registry yet."""
CONNECT_TIMEOUT_S = 1.0
READ_TIMEOUT_S = 10.0
POOL_WAIT_S = 5.0
CONNECTIONS_MAX = 200
IDLE_CONNECTION_S = 4.0
"""Below uvicorn's own default of 5 s, so that no request meets a connection that is being closed."""
CONNECTION_OPTIONS = frozenset({"verify", "cert", "http1", "http2", "limits", "local_address", "socket_options"})
"""Options of httpx's transports, for the connections to instances."""
CLIENT_OPTIONS = frozenset(
    {
        "auth", "params", "headers", "cookies", "timeout", "follow_redirects", "max_redirects", "event_hooks",
        "base_url", "default_encoding",
    }
)  # fmt: skip
"""Options of httpx's clients that have nothing to do with how connections are made."""
CALL_OPTIONS = frozenset({"balance", "calls", "zone", "breaker_listeners"})
"""Ours: how calls to services are made. See `quorate_sdk.calls.services.Services`."""


class RegistryCopy(Protocol):
    """`Discovery` is one."""

    async def ready(self, timeout_s: float) -> bool:
        """Whether there is a copy by then."""
        ...


class ServiceTransport(httpx.AsyncBaseTransport):
    """Calls services by their names, and passes everything else on."""

    def __init__(
        self, discovery: RegistryCopy, services: Services, inner: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`inner` makes the connections: `connections()` when not given."""
        self._discovery = discovery
        self._services = services
        self._inner = inner or connections()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not is_service_name(request.url):
            return await self._inner.handle_async_request(request)
        await self._discovery.ready(READY_WAIT_S)
        call = Call(self._services, request, time.monotonic())
        slow = _slow_mark(call)
        try:
            return await self._tried(call)
        except BaseException:
            call.given_up(time.monotonic())  # without effect on a call that has raised its own end
            raise
        finally:
            if slow is not None:
                slow.cancel()

    async def _tried(self, call: Call) -> httpx.Response:
        while True:
            attempt = call.next_try(time.monotonic())
            if attempt.pause_s > 0:
                await asyncio.sleep(attempt.pause_s)
            response = await self._sent(call, attempt)
            if response is not None:
                return response

    async def _sent(self, call: Call, attempt: Try) -> httpx.Response | None:
        """None when there is to be another try."""
        try:
            response = await self._inner.handle_async_request(attempt.request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            call.not_connected(error, time.monotonic())
            return None
        except httpx.PoolTimeout:
            raise  # our own connections are all in use, which says nothing of the service
        except httpx.TransportError as error:
            call.broken(error, time.monotonic())
            return None
        if call.answered(response.status_code, response.headers, time.monotonic()):
            response.stream = _Body(response, call)
            return response
        await response.aclose()
        return None

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Body(httpx.AsyncByteStream):
    """An answer's body, whose end is the call's."""

    def __init__(self, response: httpx.Response, call: Call) -> None:
        self._inner = response.stream
        self._call: Call | None = call

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if not isinstance(self._inner, httpx.AsyncByteStream):
            raise TypeError(f"a body of {type(self._inner).__name__} cannot be read on an event loop")
        try:
            async for part in self._inner:
                yield part
        except httpx.TransportError:
            self._over(Call.cut)
            raise
        self._over(Call.ended)

    async def aclose(self) -> None:
        self._over(Call.left)
        if isinstance(self._inner, httpx.AsyncByteStream):
            await self._inner.aclose()

    def _over(self, how: Any) -> None:
        call, self._call = self._call, None
        if call is not None:
            how(call, time.monotonic())


def _slow_mark(call: Call) -> asyncio.TimerHandle | None:
    """Tells the breaker when the call has passed its mark: one that hangs is found out then, and not at its end."""
    if call.permit is None:
        return None
    delay_s = max(0.0, call.permit.slow_at_s - time.monotonic())
    return asyncio.get_running_loop().call_later(delay_s, lambda: call.mark_slow(time.monotonic()))


def is_service_name(url: httpx.URL) -> bool:
    host = url.host
    return (
        url.port is None and url.scheme == "http" and bool(host) and not set(host) & set(".:") and host != "localhost"
    )


def connections(**options: Any) -> httpx.AsyncHTTPTransport:
    """`options`: some of CONNECTION_OPTIONS."""
    return httpx.AsyncHTTPTransport(**{"limits": connection_limits(), **options})


def connection_limits() -> httpx.Limits:
    return httpx.Limits(max_connections=CONNECTIONS_MAX, keepalive_expiry=IDLE_CONNECTION_S)


def http_client(transport: httpx.AsyncBaseTransport, **options: Any) -> httpx.AsyncClient:
    """`options`: some of CLIENT_OPTIONS."""
    return httpx.AsyncClient(transport=transport, **{"timeout": default_timeout(), **options})


def default_timeout() -> httpx.Timeout:
    return httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=POOL_WAIT_S)


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options for the way to a server (ours for calls, and those for connections), and those for the client. Raises
    TypeError naming those that are neither."""
    for_transport = CONNECTION_OPTIONS | CALL_OPTIONS
    if refused := sorted(options.keys() - for_transport - CLIENT_OPTIONS):
        known = ", ".join(sorted(for_transport | CLIENT_OPTIONS))
        raise TypeError(
            f"http() finds instances by a transport of its own and takes no {', '.join(refused)}; only {known}"
        )
    found = {name: value for name, value in options.items() if name in for_transport}
    return found, {name: value for name, value in options.items() if name not in for_transport}


def call_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the options for the way to a server: the arguments of `Services`, and those for connections."""
    names = {"balance": "balance", "calls": "settings", "zone": "zone", "breaker_listeners": "listeners"}
    for_services = {names[name]: value for name, value in options.items() if name in CALL_OPTIONS}
    return for_services, {name: value for name, value in options.items() if name not in CALL_OPTIONS}
