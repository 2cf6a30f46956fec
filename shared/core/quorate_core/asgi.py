"""What every HTTP surface of the platform shares: problem+json, request ids, body limits, protected mode, health.

`create_app` gives a FastAPI application with all of it. Hot endpoints bypass FastAPI: `add_raw_endpoint` mounts a
function from bytes to bytes beside the others and describes it in the same OpenAPI document, and `add_raw_stream` one
from a stream of bytes to another.
"""

import asyncio
import hmac
import itertools
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quorate_core.errors import (
    Forbidden,
    InvalidRequest,
    InvariantViolation,
    PayloadTooLarge,
    Problem,
    QuorateError,
    RequestTimedOut,
    Unauthenticated,
    Unavailable,
)
from quorate_core.metrics import CONTENT_TYPE, render_metrics
from quorate_core.plain_requests import Headers, PlainRequests
from quorate_core.raw_streams import (
    Channel,
    Exchange,
    LastLine,
    OnError,
    PostChannel,
    RawStream,
    StreamHandler,
    StreamSession,
    WebSocketChannel,
    accept_websocket,
    as_exchange,
    refuse_websocket,
)
from quorate_core.settings import HostPort

log = structlog.get_logger(__name__)

BODY_BYTES_MAX = 2 * 1024 * 1024
BODY_TIMEOUT_S = 30.0
"""For a body to come whole: the largest that a node takes, at 1 Mbit/s. Those of raw streams have no end."""
REQUEST_ID_CHARS_MAX = 128
_CURL_FORM = (b"content-type", b"application/x-www-form-urlencoded")
_OPEN_PATHS = frozenset({"/livez", "/readyz"})

_PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "An error, as RFC 9457 has it",
        "content": {Problem.media_type: {"schema": Problem.schema}},
    }
}
"""What every operation may answer. FastAPI describes an answer to wrong requests of its own otherwise, which is never
given here."""


class _RequestIds:
    """They need to be unique, not secret: drawing random bytes for each would cost more than all else about them. A
    child that is forked draws a first half of its own."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._draw()
        os.register_at_fork(after_in_child=self._draw)

    def _draw(self) -> None:
        self._first_half = secrets.token_hex(4).encode()

    def new(self) -> bytes:
        return b"%b%08x" % (self._first_half, next(self._numbers) & 0xFFFFFFFF)


_request_ids = _RequestIds()

Ready = Callable[[], str | None]
"""Says why the process is not ready, or None when it is."""
RawHandler = Callable[[bytes], Awaitable[bytes]]
HeadedHandler = Callable[[bytes, Headers], Awaitable[bytes]]
"""A raw handler that wants the request's headers too; their names are in lower case."""
TasklessHandler = Callable[[bytes, Headers], Coroutine[Any, Any, bytes] | None]
GetResponder = Callable[[], Coroutine[Any, Any, Response]]
GetResolver = Callable[[str, str, Headers], GetResponder | None]
"""Path, query and headers of a plain GET to what answers every GET with this head; None when FastAPI is to."""


@dataclass(frozen=True, slots=True)
class Protection:
    """Who may talk to this surface.

    Bound to loopback: nobody needs a credential, and a foreign `Host` or `Origin` is refused (so that a web page
    cannot reach it through DNS rebinding). Bound to anything else: a bearer token is required.
    """

    hosts: frozenset[str] | None
    """None: any name will do."""
    token: str | None = None

    @classmethod
    def for_address(cls, bind: HostPort, advertise: HostPort, token: str | None) -> "Protection":
        hosts = frozenset({"localhost", "127.0.0.1", "[::1]", _host_of(str(bind)), _host_of(str(advertise))})
        return cls(hosts, None if bind.is_loopback else token)

    @classmethod
    def behind_gateway(cls) -> "Protection":
        """For a service whose clients come through the gateway with whatever Host they have used: who may call it is
        the gateway's to decide."""
        return cls(hosts=None)

    def refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> QuorateError | None:
        """Why a request with these headers is refused, or None."""
        if sum(name == b"host" for name, _ in headers) > 1:
            return InvalidRequest("more than one Host field: which of them is meant is anybody's guess")
        found = {
            name: value.decode("latin-1") for name, value in headers if name in (b"host", b"origin", b"authorization")
        }
        if self.token is not None:
            offered = found.get(b"authorization", "").removeprefix("Bearer ").encode()
            if not hmac.compare_digest(offered, self.token.encode()):
                return Unauthenticated("a token is required here: send 'Authorization: Bearer <token>'")
            return None
        if self.hosts is None:
            return None
        host = _host_of(found.get(b"host", ""))
        if host not in self.hosts:
            return Forbidden(f"Host {host!r} is not one of this server's; on loopback only its own names are answered")
        origin = found.get(b"origin")
        if origin is not None and _host_of(origin.partition("://")[2]) not in self.hosts:
            return Forbidden(f"Origin {origin!r} is foreign; on loopback only this server's own pages may call it")
        return None


@dataclass(slots=True)
class Surface:
    """What `create_app` needs to know of the process around it. `stopping` ends streams at shutdown."""

    title: str
    protection: Protection
    ready: Ready = lambda: None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    body_bytes_max: int = BODY_BYTES_MAX
    body_timeout_s: float = BODY_TIMEOUT_S


def create_app(surface: Surface, **fastapi_options: Any) -> FastAPI:
    """A FastAPI application with `/livez`, `/readyz`, `/metrics`, and every error as problem+json."""
    app = _Api(title=surface.title, responses=_PROBLEM_RESPONSES, **fastapi_options)
    app.state.surface = surface
    app.add_exception_handler(QuorateError, _on_quorate_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.router.routes.append(Route("/livez", _livez, include_in_schema=False))
    app.router.routes.append(Route("/readyz", _readyz, include_in_schema=False))
    app.router.routes.append(Route("/metrics", _metrics, include_in_schema=False))
    app.add_middleware(_Edge, surface=surface)
    return app


def add_raw_endpoint(
    app: FastAPI,
    path: str,
    handler: RawHandler,
    summary: str,
    schema: dict[str, Any],
    on_error: OnError | None = None,
) -> None:
    """Mount `handler` at POST `path`, without FastAPI's machinery. `schema` is its OpenAPI operation; `on_error`
    makes the answer to an error where another API than ours is spoken (default: problem+json).

    `app` must come from `create_app`. Raises InvariantViolation otherwise.
    """
    add_headed_endpoint(app, path, lambda body, _headers: handler(body), summary, schema, on_error)


def add_headed_endpoint(
    app: FastAPI,
    path: str,
    handler: HeadedHandler,
    summary: str,
    schema: dict[str, Any],
    on_error: OnError | None = None,
    without_task: TasklessHandler | None = None,
) -> None:
    """`add_raw_endpoint` for a handler that wants the request's headers too, and may have a cheaper way; see
    `DirectEndpoint`."""
    if not isinstance(app, _Api):
        raise InvariantViolation("raw endpoints need an application made by create_app")
    app.raw_endpoints[path] = DirectEndpoint(path, handler, on_error or problem_response, without_task)
    _describe(app, path, {"summary": summary, **schema}, on_error)


def add_direct_gets(app: FastAPI, resolve: GetResolver) -> None:
    """A short way for plain GETs of hot endpoints: where `resolve` knows one, its response is what the client gets. It
    must be that of the FastAPI route of the same path, which answers all others, and which describes it.

    `app` must come from `create_app`. Raises InvariantViolation otherwise.
    """
    if not isinstance(app, _Api):
        raise InvariantViolation("direct endpoints need an application made by create_app")
    app.get_resolvers.append(resolve)


def add_raw_stream(
    app: FastAPI,
    path: str,
    handler: StreamHandler,
    summary: str,
    schema: dict[str, Any],
    on_error: OnError | None = None,
    last_line: LastLine | None = None,
) -> None:
    """Mount `handler` at POST `path`, and at the same path for WebSockets, as a stream both ways (`raw_streams`): an
    async generator from the chunks of the body, as they come, to those of the answer, each of whole lines of JSON.

    An error before the first of them is answered by `on_error`; one after it ends the answer with `last_line`, which is
    the body of `on_error`'s answer unless given. What bounds a body as a whole does not bound a stream: its handler
    bounds each message. Otherwise as `add_raw_endpoint`.
    """
    add_raw_exchange(app, path, as_exchange(handler), summary, schema, on_error, last_line)


def add_raw_exchange(
    app: FastAPI,
    path: str,
    exchange: Exchange,
    summary: str,
    schema: dict[str, Any],
    on_error: OnError | None = None,
    last_line: LastLine | None = None,
) -> None:
    """`add_raw_stream` for a handler in which several tasks write to one answer."""
    if not isinstance(app, _Api):
        raise InvariantViolation("raw streams need an application made by create_app")
    respond = on_error or problem_response
    app.raw_streams[path] = RawStream(exchange, respond, last_line or (lambda error: bytes(respond(error).body)))
    _describe(app, path, {"summary": summary, **schema}, on_error)


@dataclass(frozen=True, slots=True)
class DirectEndpoint:
    """A raw endpoint, as it is mounted, and for a protocol that needs no ASGI to answer a plain request. `answer` takes
    the body and the headers, and returns the body of a JSON answer with status 200; `answer_without_task` does the same
    where that can be done so (`quorate_core.steps`), and returns None where not."""

    path: str
    answer: HeadedHandler
    on_error: OnError
    answer_without_task: TasklessHandler | None = None

    def hide(self, error: Exception, request_id: bytes) -> QuorateError:
        return _hidden(error, self.path, request_id)


@dataclass(frozen=True, slots=True)
class DirectGet:
    """Who answers plain GETs with one head, for a protocol that needs no ASGI for them."""

    path: str
    respond: GetResponder

    def on_error(self, error: QuorateError) -> Response:
        return problem_response(error)

    def hide(self, error: Exception, request_id: bytes) -> QuorateError:
        return _hidden(error, self.path, request_id)


class _Api(FastAPI):
    """FastAPI, with a short way past it for raw endpoints: no routing, no middleware, no request or response object.

    At 10,000 requests a second, those objects are most of what a request costs.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.raw_endpoints: dict[str, DirectEndpoint] = {}
        self.raw_streams: dict[str, RawStream] = {}
        self.get_resolvers: list[GetResolver] = []
        self.plain_requests: PlainRequests[DirectEndpoint | DirectGet] = PlainRequests(
            self._direct_endpoint, self._direct_get
        )

    def _direct_endpoint(self, path: str, headers: Headers) -> DirectEndpoint | None:
        """Who answers a request with this head directly. A refusal is made on the usual way."""
        endpoint = self.raw_endpoints.get(path)
        if endpoint is None or _refusal_of(self.state.surface, {"path": path, "headers": headers}) is not None:
            return None
        return endpoint

    def _direct_get(self, path: str, query: str, headers: Headers) -> DirectGet | None:
        """The same of a GET."""
        for resolve in self.get_resolvers:
            respond = resolve(path, query, headers)
            if respond is not None:
                refusal = _refusal_of(self.state.surface, {"path": path, "headers": headers})
                return DirectGet(path, respond) if refusal is None else None
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            endpoint = self.raw_endpoints.get(scope["path"])
            if endpoint is not None:
                await self._answer_raw(endpoint, scope, receive, send)
                return
            stream = self.raw_streams.get(scope["path"])
            if stream is not None:
                await self._answer_stream(stream, scope, receive, send)
                return
        elif scope["type"] == "websocket":
            await self._answer_websocket(scope, receive, send)
            return
        await super().__call__(scope, receive, send)

    async def _answer_stream(self, stream: RawStream, scope: Scope, receive: Receive, send: Send) -> None:
        surface: Surface = self.state.surface
        request_id = request_id_of(scope["headers"])
        refusal = surface.protection.refusal(scope["headers"])
        if refusal is None and scope["method"] == "POST":
            channel = PostChannel(scope, receive, send, [(b"x-request-id", request_id)])
            await self._run_stream(stream, channel, scope["path"], request_id)
            return
        response = _method_refused(scope) if refusal is None else problem_response(refusal)
        response.headers["x-request-id"] = request_id.decode()
        await response(scope, receive, send)

    async def _answer_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        surface: Surface = self.state.surface
        refusal = surface.protection.refusal(scope["headers"])
        stream = self.raw_streams.get(scope["path"])
        if refusal is not None or stream is None:
            response = problem_response(refusal) if refusal is not None else _no_websocket(scope)
            await refuse_websocket(scope, receive, send, response)
        elif await accept_websocket(receive, send):
            await self._run_stream(
                stream, WebSocketChannel(scope, receive, send), scope["path"], request_id_of(scope["headers"])
            )

    async def _run_stream(self, stream: RawStream, channel: Channel, path: str, request_id: bytes) -> None:
        stopping = self.state.surface.stopping
        await StreamSession(stream, channel, stopping, lambda error: _hidden(error, path, request_id)).run()

    async def _answer_raw(self, endpoint: DirectEndpoint, scope: Scope, receive: Receive, send: Send) -> None:
        surface: Surface = self.state.surface
        request_id = request_id_of(scope["headers"])
        refusal = _refusal_of(surface, scope)
        response: Response | None
        try:
            if refusal is not None:
                # A body's size is refused as the API itself does it; who may ask at all is no business of the API's.
                make = endpoint.on_error if isinstance(refusal, PayloadTooLarge) else problem_response
                response = make(refusal)
            elif scope["method"] != "POST":
                response = _method_refused(scope)
            else:
                body = await _read_body(_bounded(receive, surface))
                answer = await endpoint.answer(body, scope["headers"])
                response = None
        except QuorateError as error:
            response = endpoint.on_error(error)
        except Exception as error:
            response = endpoint.on_error(endpoint.hide(error, request_id))
        if response is None:
            await _send_json(send, answer, request_id)
            return
        response.headers["x-request-id"] = request_id.decode()
        await response(scope, receive, send)


def problem_response(error: QuorateError) -> Response:
    """`error` as application/problem+json (RFC 9457); a Retry-After of one second where a retry is safe."""
    problem = Problem.of(error)
    headers = {"retry-after": "1"} if problem.status in (429, 503) else {}
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(json.dumps(problem.body()), problem.status, headers, Problem.media_type)


class _Edge:
    """The outermost layer, plain ASGI: refuses strangers, bounds bodies, names requests, hides traces."""

    def __init__(self, app: ASGIApp, surface: Surface) -> None:
        self._app = app
        self._surface = surface

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        scope["headers"] = _form_as_json(scope["headers"])
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        refusal = _refusal_of(self._surface, scope)
        if refusal is not None:
            await problem_response(refusal)(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, _bounded(receive, self._surface), send_with_id)
        except QuorateError as error:
            if started:
                raise
            await problem_response(error)(scope, receive, send_with_id)
        except Exception as error:
            hidden = _hidden(error, scope["path"], request_id)
            if started:
                raise
            await problem_response(hidden)(scope, receive, send_with_id)


def _refusal_of(surface: Surface, scope: Scope) -> QuorateError | None:
    """Why a request is refused by its head alone, or None."""
    if scope["path"] not in _OPEN_PATHS:
        refusal = surface.protection.refusal(scope["headers"])
        if refusal is not None:
            return refusal
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > surface.body_bytes_max:
            return _too_large(surface.body_bytes_max)
    return None


def _hidden(error: Exception, path: str, request_id: bytes) -> QuorateError:
    """What a client is told of a defect: where the log has it."""
    log.error("unhandled_error", path=path, request_id=request_id.decode(), exc_info=error)
    hidden = QuorateError(f"an internal error; the server's log has it under {request_id.decode()}")
    hidden.__cause__ = error
    return hidden


def _method_refused(scope: Scope) -> Response:
    return _http_problem(
        405, "Method Not Allowed", f"{scope['method']} {scope['path']} is not served here", {"allow": "POST"}
    )


def _no_websocket(scope: Scope) -> Response:
    return _http_problem(404, "Not Found", f"{scope['path']} is not served by WebSocket", None)


async def _send_json(send: Send, body: bytes, request_id: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read_body(receive: Receive) -> bytes:
    """Raises what `receive` raises, and Unavailable when the client has gone before its body was whole."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise Unavailable("the client has gone")
    return body


def _bounded(receive: Receive, surface: Surface) -> Receive:
    """The body in bytes and time; what comes after it, a client that goes away, may take as long as it likes."""
    received, more, deadline_s = 0, True, asyncio.get_running_loop().time() + surface.body_timeout_s

    async def receive_bounded() -> Message:
        nonlocal received, more
        if not more:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline_s):
                message = await receive()
        except TimeoutError:
            raise RequestTimedOut(f"a body must be complete within {surface.body_timeout_s:g} s") from None
        received += len(message.get("body", b""))
        more = message.get("more_body", False)
        if received > surface.body_bytes_max:
            raise _too_large(surface.body_bytes_max)
        return message

    return receive_bounded


def _too_large(body_bytes_max: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is over the limit of {body_bytes_max} bytes")


def request_id_of(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The client's `X-Request-Id` if it is one, or a new one."""
    for name, value in headers:
        if (
            name == b"x-request-id"
            and 0 < len(value) <= REQUEST_ID_CHARS_MAX
            and value.isascii()
            and value.decode().isprintable()
        ):
            return value
    return _request_ids.new()


def _form_as_json(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """`curl -d` calls every body a form. No endpoint takes forms, so such a body is read as the JSON that it is.

    NB: not when the request has an Origin, as every POST of a web page has: a form is what a page of another site may
    send without being asked first.
    """
    if _CURL_FORM not in headers or any(name == b"origin" for name, _ in headers):
        return headers
    return [(b"content-type", b"application/json") if field == _CURL_FORM else field for field in headers]


def _host_of(authority: str) -> str:
    """The host of `host[:port]`, lower case, IPv6 in brackets."""
    authority = authority.lower()
    return authority.partition("]")[0] + "]" if authority.startswith("[") else authority.partition(":")[0]


def _describe(app: FastAPI, path: str, operation: dict[str, Any], on_error: OnError | None) -> None:
    build = app.openapi
    if on_error is None:
        operation["responses"] = {**operation.get("responses", {}), **_PROBLEM_RESPONSES}

    def with_operation() -> dict[str, Any]:
        document = build()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        document.setdefault("paths", {}).setdefault(path, {})["post"] = _with_shared_schemas(operation, schemas)
        return document

    app.openapi = with_operation  # type: ignore[method-assign]


def _with_shared_schemas(described: Any, schemas: dict[str, Any]) -> Any:
    """`described` with its own definitions moved to `schemas`: references in the document begin at its root."""
    if isinstance(described, list):
        return [_with_shared_schemas(item, schemas) for item in described]
    if isinstance(described, str):
        return (
            described.replace("#/$defs/", "#/components/schemas/", 1) if described.startswith("#/$defs/") else described
        )
    if not isinstance(described, dict):
        return described
    for name, schema in described.get("$defs", {}).items():
        schemas[name] = _with_shared_schemas(schema, schemas)
    return {name: _with_shared_schemas(value, schemas) for name, value in described.items() if name != "$defs"}


async def _on_quorate_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, QuorateError):
        raise error
    return problem_response(error)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = [_readable(item) for item in error.errors()]
    summary = "; ".join(f"{item['where']}: {item['what']}" for item in errors)
    return problem_response(InvalidRequest(summary, errors=errors))


def _readable(item: dict[str, Any]) -> dict[str, str]:
    """Which field is wrong, and how; for a body that is no JSON at all, at which byte."""
    if item["type"] == "json_invalid":
        return {"where": "body", "what": f"no valid JSON at offset {item['loc'][-1]}: {item['ctx']['error']}"}
    return {"where": ".".join(str(part) for part in item["loc"]), "what": item["msg"]}


async def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if isinstance(error.__cause__, QuorateError):
        return problem_response(error.__cause__)  # FastAPI calls whatever goes wrong with a body a wrong body
    detail = (
        error.detail
        if error.status_code not in (404, 405)
        else f"{request.method} {request.url.path} is not served here"
    )
    return _http_problem(error.status_code, error.detail, detail, error.headers)


def _http_problem(status: int, title: str, detail: str, headers: Mapping[str, str] | None) -> Response:
    """For what HTTP itself has a status for, and our family no error (RFC 9457, section 4.2.1)."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "retry": "never"}
    return Response(json.dumps(body), status, headers, Problem.media_type)


async def _livez(_request: Request) -> Response:
    return Response("ok\n", media_type="text/plain")


async def _readyz(request: Request) -> Response:
    surface: Surface = request.app.state.surface
    reason = "stopping" if surface.stopping.is_set() else surface.ready()
    return Response(
        "ok\n" if reason is None else reason + "\n", 200 if reason is None else 503, media_type="text/plain"
    )


async def _metrics(_request: Request) -> Response:
    return Response(render_metrics(), headers={"content-type": CONTENT_TYPE})
