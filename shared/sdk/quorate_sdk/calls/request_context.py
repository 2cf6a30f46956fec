"""The request that is being served: its deadline and its trace go along with the calls that are made for it.

`asgi_context` and `wsgi_context` wrap an application; `request_context` does the same for any other server, from the
request's header fields. What they set is a context variable, so it holds for tasks and threads that inherit the
context (asyncio's do, and so do those in which Starlette runs functions), and for no other request.

The deadline is for the head of the answer, as the gateway's is: once that has been sent, nobody waits for it any more,
and what goes on in the background has no deadline. Header fields that cannot be read are as if they were not there. A
request can only shorten what its own calls are given, so that it does no harm to believe it.
"""

import contextvars
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from quorate_resilience.deadline import HEADER, read_timeout_ms

from quorate_sdk.calls.trace import Trace, read_trace

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_HEADER = HEADER.encode()
_WANTED = frozenset({_HEADER, b"traceparent", b"tracestate"})


class ServedRequest:
    """What a request that is being served asks of the calls made for it."""

    __slots__ = ("deadline_s", "trace")

    def __init__(self, deadline_s: float = math.inf, trace: Trace | None = None) -> None:
        self.deadline_s = deadline_s
        """By time.monotonic(); inf without a deadline."""
        self.trace = trace

    def answered(self) -> None:
        """The head of the answer has been sent."""
        self.deadline_s = math.inf


_served: contextvars.ContextVar[ServedRequest | None] = contextvars.ContextVar("quorate_served_request", default=None)


def served_request() -> ServedRequest | None:
    """The one that is being served in this context."""
    return _served.get()


@contextmanager
def request_context(headers: Mapping[str, str]) -> Iterator[ServedRequest]:
    """While the block runs, the request with these header fields, whose names are of any case, is being served."""
    found = {name.lower(): value for name, value in headers.items()}
    request = _read(found.get(HEADER, ""), found.get("traceparent", ""), found.get("tracestate", ""), time.monotonic())
    token = _served.set(request)
    try:
        yield request
    finally:
        _served.reset(token)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """While the block runs, calls are given up, and not begun, once so many seconds have passed. A deadline that holds
    already and is nearer goes on to hold."""
    former = _served.get() or ServedRequest()
    token = _served.set(ServedRequest(min(former.deadline_s, time.monotonic() + seconds), former.trace))
    try:
        yield
    finally:
        _served.reset(token)


def asgi_context(app: AsgiApp) -> AsgiApp:
    """`app` with each of its requests as the context of the calls that it makes:
    `app.add_middleware(quorate.asgi_context)`, or around any ASGI application."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return
        request = _of_scope(scope)
        token = _served.set(request)
        try:
            await app(scope, receive, _noticing(request, send))
        finally:
            _served.reset(token)

    return serve


def _of_scope(scope: Scope) -> ServedRequest:
    found = {name: value for name, value in scope["headers"] if name in _WANTED}
    return _read(
        found.get(_HEADER, b"").decode("latin-1"), found.get(b"traceparent", b"").decode("latin-1"),
        found.get(b"tracestate", b"").decode("latin-1"), time.monotonic(),
    )  # fmt: skip


def _noticing(request: ServedRequest, send: Send) -> Send:
    if request.deadline_s == math.inf:
        return send

    async def notice(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.accept"):
            request.answered()
        await send(message)

    return notice


def wsgi_context(app: WsgiApp) -> WsgiApp:
    """The same for a WSGI application (Flask, Django), for calls made by `SyncClient`."""

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = _read(
            environ.get("HTTP_X_REQUEST_TIMEOUT_MS", ""), environ.get("HTTP_TRACEPARENT", ""),
            environ.get("HTTP_TRACESTATE", ""), time.monotonic(),
        )  # fmt: skip
        # NB: the body of an answer may be made by a generator that runs after `app` has returned, and between two
        # parts of it the server may serve another request in this thread.
        context = contextvars.copy_context()
        context.run(_served.set, request)

        def start(*arguments: Any, **named: Any) -> Any:
            request.answered()
            return start_response(*arguments, **named)

        return _Body(context.run(app, environ, start), context)

    return serve


class _Body:
    """The parts of a WSGI answer, each made in the request's context."""

    def __init__(self, parts: Iterable[bytes], context: contextvars.Context) -> None:
        self._parts = parts
        self._context = context
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._iterator is None:
            self._iterator = self._context.run(iter, self._parts)
        return self._context.run(next, self._iterator)

    def close(self) -> None:
        close = getattr(self._parts, "close", None)
        if close is not None:
            self._context.run(close)


def _read(timeout: str, traceparent: str, tracestate: str, now_s: float) -> ServedRequest:
    timeout_ms = read_timeout_ms(timeout.strip().encode("latin-1", "replace"))
    deadline_s = math.inf if timeout_ms is None else now_s + timeout_ms / 1_000
    return ServedRequest(deadline_s, read_trace(traceparent, tracestate) if traceparent else None)
