"""The client of the control plane's HTTP API: failover over its endpoints, deadlines, errors of our own family.

`ControlPlane` is for the event loop, `BlockingControlPlane` for a thread of its own (heartbeats). Both decide by
`quorate_sdk.failover`; a server's problem+json is raised as the error that the server raised.
"""

import asyncio
import random
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx
from httpx_sse import EventSource, SSEError
from quorate_core.errors import OutcomeUnknown, QuorateError, Retry, Unavailable, error_from_problem

from quorate_sdk.failover import Endpoints, Failure, RetryPlan
from quorate_sdk.wire import AUTHOR_CHARS_MAX

REQUEST_TIMEOUT_S = 5.0
"""A whole call, tries included."""
ATTEMPT_TIMEOUT_S = 2.0
"""One try of an idempotent call: an endpoint that hangs leaves time for another."""
CONNECT_TIMEOUT_S = 1.0
STREAM_SILENCE_S_MAX = 15.0
"""Servers send a comment every 5 s; a stream that is silent for three of them is dead."""
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
_BY_RETRY = {Retry.SAFE.value: Failure.NOT_DONE, Retry.UNKNOWN.value: Failure.UNKNOWN}

Params = Mapping[str, Any] | list[tuple[str, Any]]


class StreamEvent(NamedTuple):
    """One Server-Sent Event. `id` is the store revision to resume from; `data` is JSON; `endpoint` is the URL of the
    node that it is from."""

    event: str
    id: int | None
    data: str
    endpoint: str = ""


class ControlPlane:
    """An asynchronous client of every node's API; use as `async with`, or call `aclose()`.

    `endpoints` are URLs such as `http://127.0.0.1:8501`. Calls go to the last good one.
    """

    def __init__(
        self, endpoints: Sequence[str], token: str | None = None, *, chance: random.Random | None = None
    ) -> None:
        self._endpoints = Endpoints(endpoints)
        self._chance = chance or random.Random()
        # No proxy from the environment: nodes are near, and a proxy would hide which one has failed.
        self._client = httpx.AsyncClient(
            headers=_headers(token), trust_env=False, limits=httpx.Limits(max_keepalive_connections=8)
        )

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self._endpoints.urls

    def use_token(self, token: str | None) -> None:
        """For all calls that begin from now on; streams that are open keep theirs."""
        self._client.headers.pop("authorization", None)
        self._client.headers.update(_headers(token))

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        json: Any = None,
        content: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
        attempt_timeout_s: float | None = None,
    ) -> httpx.Response:
        """A successful response (2xx or 304). `idempotent` (default: GET and HEAD are) allows tries after an
        unknown outcome; give a blocking query an `attempt_timeout_s` above its wait.

        Raises what the server answered, or Unavailable when no endpoint could be reached, or OutcomeUnknown when a
        call that must not be repeated was sent and not answered.
        """
        call = _Call(self._endpoints, method, path, idempotent, timeout_s, attempt_timeout_s)
        request_options = {"params": params, "json": json, "content": content, "headers": headers}
        while True:
            url = self._endpoints.current
            try:
                response = await self._client.request(method, url + path, timeout=call.timeout(), **request_options)
            except httpx.RequestError as error:
                delay_s = call.failed_to_answer(url, error, self._chance.random())
            else:
                if _is_success(response):
                    return response
                delay_s = call.answered_with_error(url, response, self._chance.random())
            if delay_s is None:
                raise call.error
            await asyncio.sleep(delay_s)

    async def tell(self, endpoint: str, path: str, json: Any, timeout_s: float = ATTEMPT_TIMEOUT_S) -> None:
        """POST to one node, which it concerns alone, in one try. Raises what it answered, or Unavailable."""
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        try:
            answer = await self._client.post(endpoint + path, json=json, timeout=timeout)
        except httpx.RequestError as error:
            raise Unavailable(f"POST {path}: {endpoint} does not answer ({_readable(error)})") from error
        if not _is_success(answer):
            raise _read_error(answer)[0]

    async def stream_events(
        self, path: str, params: Params | None = None, last_event_id: int | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """One event stream from one endpoint, until it ends. Reconnecting is the caller's, who resumes by the last
        id; each failure moves on to another endpoint. Use it in `contextlib.aclosing`.

        Raises what the server answered, or Unavailable when the stream cannot be opened, breaks, or is silent for
        STREAM_SILENCE_S_MAX seconds.
        """
        headers = {"accept": "text/event-stream", "cache-control": "no-store"}
        if last_event_id is not None:
            headers["last-event-id"] = str(last_event_id)
        timeout = httpx.Timeout(STREAM_SILENCE_S_MAX, connect=CONNECT_TIMEOUT_S)
        url = self._endpoints.current
        try:
            async with self._client.stream(
                "GET", url + path, params=params, headers=headers, timeout=timeout
            ) as answer:
                if not _is_success(answer):
                    await answer.aread()
                    raise _read_error(answer)[0]
                async with aclosing(EventSource(answer).aiter_sse()) as events:
                    async for event in events:
                        if event.data:  # a keep-alive comment after an id looks like an event without data
                            event_id = int(event.id) if event.id.isdecimal() else None
                            yield StreamEvent(event.event, event_id, event.data, url)
        except (httpx.RequestError, httpx.StreamError, SSEError) as error:
            self._endpoints.leave(url)
            raise Unavailable(f"the event stream of {url} failed: {_readable(error)}") from error
        except QuorateError:
            self._endpoints.leave(url)
            raise

    def leave_endpoint(self) -> None:
        """Go on to another endpoint: the present one answers, but has shown itself to be behind."""
        self._endpoints.leave(self._endpoints.current)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class BlockingControlPlane:
    """The same for a thread. `abandon`, from another thread, ends the present call after its present try, and makes
    all later ones fail, until `go_on`. `transport`: httpx's own when not given. `author`: who it says has made the
    changes that it asks for."""

    def __init__(
        self,
        endpoints: Sequence[str],
        token: str | None = None,
        *,
        chance: random.Random | None = None,
        transport: httpx.BaseTransport | None = None,
        author: str | None = None,
    ) -> None:
        self._endpoints = Endpoints(endpoints)
        self._chance = chance or random.Random()
        self._abandoned = threading.Event()
        headers = (
            _headers(token) if author is None else {**_headers(token), "quorate-author": author[:AUTHOR_CHARS_MAX]}
        )
        self._client = httpx.Client(headers=headers, trust_env=False, transport=transport)

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        idempotent: bool | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
        attempt_timeout_s: float | None = None,
    ) -> httpx.Response:
        """As `ControlPlane.request`; raises Unavailable, too, when it was abandoned."""
        call = _Call(self._endpoints, method, path, idempotent, timeout_s, attempt_timeout_s)
        while not self._abandoned.is_set():
            url = self._endpoints.current
            try:
                response = self._client.request(method, url + path, json=json, timeout=call.timeout())
            except httpx.RequestError as error:
                delay_s = call.failed_to_answer(url, error, self._chance.random())
            else:
                if _is_success(response):
                    return response
                delay_s = call.answered_with_error(url, response, self._chance.random())
            if delay_s is None:
                raise call.error
            self._abandoned.wait(delay_s)
        raise call.error

    def abandon(self) -> None:
        self._abandoned.set()

    def go_on(self) -> None:
        self._abandoned.clear()

    def close(self) -> None:
        self._client.close()


class _Call:
    """One call's tries: turns what happened into a `Failure` and remembers the error to raise."""

    def __init__(
        self,
        endpoints: Endpoints,
        method: str,
        path: str,
        idempotent: bool | None,
        timeout_s: float,
        attempt_timeout_s: float | None,
    ) -> None:
        self._endpoints = endpoints
        self._what = f"{method} {path}"
        self._idempotent = method in ("GET", "HEAD") if idempotent is None else idempotent
        self._deadline_s = time.monotonic() + timeout_s
        self._attempt_timeout_s = attempt_timeout_s or (ATTEMPT_TIMEOUT_S if self._idempotent else timeout_s)
        self._plan = RetryPlan(len(endpoints), idempotent=self._idempotent, deadline_s=self._deadline_s)
        self.error: QuorateError = Unavailable(f"{self._what}: no endpoint was tried")

    def timeout(self) -> httpx.Timeout:
        left_s = max(0.001, self._deadline_s - time.monotonic())
        attempt_s = min(left_s, self._attempt_timeout_s)
        return httpx.Timeout(attempt_s, connect=min(attempt_s, CONNECT_TIMEOUT_S))

    def failed_to_answer(self, url: str, error: httpx.RequestError, spread: float) -> float | None:
        """Seconds until the next try, or None: raise `self.error`."""
        failure = Failure.NOT_SENT if isinstance(error, _NOT_SENT) else Failure.UNKNOWN
        reason = f"{self._what}: {url} does not answer ({_readable(error)})"
        if failure is Failure.NOT_SENT or self._idempotent:
            self.error = Unavailable(reason)
        else:
            self.error = OutcomeUnknown(f"{reason}; whether it was done is not known")
        self.error.__cause__ = error
        self._endpoints.leave(url)
        return self._plan.delay_s(failure, time.monotonic(), spread)

    def answered_with_error(self, url: str, response: httpx.Response, spread: float) -> float | None:
        self.error, failure = _read_error(response)
        if failure is not Failure.FINAL:
            self._endpoints.leave(url)
        return self._plan.delay_s(failure, time.monotonic(), spread)


def _is_success(response: httpx.Response) -> bool:
    return response.is_success or response.status_code == httpx.codes.NOT_MODIFIED


def _read_error(response: httpx.Response) -> tuple[QuorateError, Failure]:
    """The error that an answer stands for, and whether the call may be repeated. One that is no problem+json (a
    proxy's, say) is told by its status."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and "type" in body:
        return error_from_problem(body), _BY_RETRY.get(str(body.get("retry")), Failure.FINAL)
    failure = Failure.UNKNOWN if response.is_server_error else Failure.FINAL
    request = response.request
    return QuorateError(f"{request.method} {request.url} answered {response.status_code}"), failure


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"authorization": f"Bearer {token}"}


def _readable(error: Exception) -> str:
    return str(error) or type(error).__name__
