"""The same client for threads: `quorate_sdk.service_http`, with httpx's synchronous half.

What is decided of calls is one state for all threads, under a lock that is held for decisions and never while
somebody waits. A call that hangs is found slow when it ends, since no thread is there to look at its mark meanwhile;
probes are looked after by the breaker itself.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx

from quorate_sdk.calls.call import Call, Try
from quorate_sdk.calls.services import Services
from quorate_sdk.service_http import connection_limits, default_timeout, is_service_name

T = TypeVar("T")


class SyncServiceTransport(httpx.BaseTransport):
    """Calls services by their names, and passes everything else on."""

    def __init__(
        self, services: Services, wait_ready: Callable[[], None], inner: httpx.BaseTransport | None = None
    ) -> None:
        """`wait_ready` returns when there is a copy of the registry, or after a while. `inner` makes the
        connections."""
        self._services = services
        self._wait_ready = wait_ready
        self._inner = inner or sync_connections()
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not is_service_name(request.url):
            return self._inner.handle_request(request)
        self._wait_ready()
        with self._lock:
            call = Call(self._services, request, time.monotonic())
        try:
            while True:
                with self._lock:
                    attempt = call.next_try(time.monotonic())
                if attempt.pause_s > 0:
                    time.sleep(attempt.pause_s)
                response = self._sent(call, attempt)
                if response is not None:
                    return response
        except BaseException:
            with self._lock:
                call.given_up(time.monotonic())  # without effect on a call that has raised its own end
            raise

    def _sent(self, call: Call, attempt: Try) -> httpx.Response | None:
        """None when there is to be another try."""
        try:
            response = self._inner.handle_request(attempt.request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            with self._lock:
                call.not_connected(error, time.monotonic())
            return None
        except httpx.PoolTimeout:
            raise  # our own connections are all in use, which says nothing of the service
        except httpx.TransportError as error:
            with self._lock:
                call.broken(error, time.monotonic())
            return None
        with self._lock:
            is_callers = call.answered(response.status_code, response.headers, time.monotonic())
        if is_callers:
            response.stream = _Body(response, call, self._lock)
            return response
        response.close()
        return None

    def close(self) -> None:
        self._inner.close()


class _Body(httpx.SyncByteStream):
    """An answer's body, whose end is the call's."""

    def __init__(self, response: httpx.Response, call: Call, lock: threading.Lock) -> None:
        self._inner = response.stream
        self._call: Call | None = call
        self._lock = lock

    def __iter__(self) -> Iterator[bytes]:
        if not isinstance(self._inner, httpx.SyncByteStream):
            raise TypeError(f"a body of {type(self._inner).__name__} cannot be read without an event loop")
        try:
            yield from self._inner
        except httpx.TransportError:
            self._over(Call.cut)
            raise
        self._over(Call.ended)

    def close(self) -> None:
        self._over(Call.left)
        if isinstance(self._inner, httpx.SyncByteStream):
            self._inner.close()

    def _over(self, how: Callable[[Call, float], None]) -> None:
        with self._lock:
            call, self._call = self._call, None
            if call is not None:
                how(call, time.monotonic())


def sync_connections(**options: Any) -> httpx.HTTPTransport:
    """`options`: some of service_http.CONNECTION_OPTIONS."""
    return httpx.HTTPTransport(**{"limits": connection_limits(), **options})


def sync_http_client(transport: httpx.BaseTransport, **options: Any) -> httpx.Client:
    """`options`: some of service_http.CLIENT_OPTIONS."""
    return httpx.Client(transport=transport, **{"timeout": default_timeout(), **options})
