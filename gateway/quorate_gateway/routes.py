"""The routes document: its schema, and its validation with the line of each error.

    routes:
      - name: orders                      # in metrics and answers; the path when left out
        match:
          path_prefix: /orders            # or `path: /orders/today`, which must be equal
          methods: [GET, POST]            # any, when left out
          host: shop.example.com          # or `*.example.com`
          headers: {x-channel: web}       # each equal
        service: order
        rewrite: {path_prefix: /v2}       # instead of the part that matched
        timeout_ms: 15000                 # from the whole request until the head of the answer, all tries together
        idle_timeout_ms: 60000            # with no byte moving either way
        total_timeout_ms: 120000          # for everything; no such limit when left out
        retry: {attempts: 2}              # further tries, where safe
        request_bytes_max: 10485760
        rate_limit:                       # none, when left out
          requests_per_second: 100
          burst: 200                      # at once after a pause; a second's worth, when left out
          key: client                     # or route (when left out), or header:X-Api-Key
        circuit_breaker:                  # these, when left out; `circuit_breaker: off` for none
          window_ms: 5000
          calls_min: 10
          slow_call_ms: 1000
          failure_percent: 50             # failed or slow
          open_ms: 5000
          probes: 5

Order of matching: an exact `path` before a prefix, a longer prefix before a shorter one, then the document's order; the
first route of that order whose methods, host and headers agree takes the request. A prefix ends at a `/`: `/orders`
matches `/orders` and `/orders/7`, never `/ordersheet`.

This module is imported by whoever validates documents, so it loads neither the data plane nor the admin API.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError, model_validator
from quorate_core.documents import DocumentError
from quorate_core.errors import InvalidContent

from quorate_gateway.policy_documents import CircuitBreakerOrOff, RouteCircuitBreaker, RouteRateLimit, Strict
from quorate_gateway.yaml_lines import LinedDocument, YamlProblem, read_yaml

ROUTES_KEY = "routes.yaml"
DOCUMENT_BYTES_MAX = 524_288
ROUTES_MAX = 2_000
TIMEOUT_MS_DEFAULT = 15_000
IDLE_TIMEOUT_MS_DEFAULT = 60_000
TIMEOUT_MS_MAX = 3_600_000
RETRY_ATTEMPTS_MAX = 5
REQUEST_BYTES_DEFAULT = 10 * 1024 * 1024
REQUEST_BYTES_LIMIT = 1024**4

_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_DOT_SEGMENT = re.compile(r"(^|/)\.{1,2}(/|$)")


def _check_path(path: str) -> str:
    if not _PATH.fullmatch(path) or _DOT_SEGMENT.search(path):
        raise ValueError("a path starts with '/', holds no query, space or dot segment, and is percent-encoded")
    return path


def _trim_prefix(path: str) -> str:
    """A trailing slash makes no difference to a prefix."""
    return _check_path(path).rstrip("/") or "/"


Path = Annotated[str, StringConstraints(max_length=1_024), AfterValidator(_check_path)]
PathPrefix = Annotated[str, StringConstraints(max_length=1_024), AfterValidator(_trim_prefix)]
HostMatch = Annotated[
    str,
    StringConstraints(max_length=253, to_lower=True, pattern=r"^((\*\.)?[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])$"),
]
HeaderName = Annotated[str, StringConstraints(max_length=64, to_lower=True, pattern=r"^[A-Za-z0-9_-]+$")]
HeaderValue = Annotated[str, StringConstraints(max_length=256, pattern=r"^[!-~]([ -~]*[!-~])?$")]
Method = Annotated[str, StringConstraints(pattern=r"^[A-Z]{1,20}$")]
ServiceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
TimeoutMs = Annotated[int, Field(ge=1, le=TIMEOUT_MS_MAX)]


class RouteMatch(Strict):
    """What a request must look like. Exactly one of `path` and `path_prefix`."""

    path: Path | None = None
    path_prefix: PathPrefix | None = None
    methods: Annotated[list[Method], Field(min_length=1, max_length=20)] | None = None
    host: HostMatch | None = None
    headers: Annotated[dict[HeaderName, HeaderValue], Field(max_length=8, default_factory=dict)]

    @model_validator(mode="after")
    def _one_path(self) -> Self:
        if (self.path is None) == (self.path_prefix is None):
            raise ValueError("give exactly one of 'path' and 'path_prefix'")
        return self

    @property
    def matched(self) -> str:
        """The path or the prefix."""
        return self.path or self.path_prefix or "/"

    def covers(self, other: "RouteMatch") -> bool:
        """Whether every request that `other` takes would be taken by this one first, had it the earlier place."""
        if (self.path, self.path_prefix) != (other.path, other.path_prefix):
            return False
        methods = self.methods is None or (other.methods is not None and set(other.methods) <= set(self.methods))
        host = self.host is None or self.host == other.host
        return methods and host and self.headers.items() <= other.headers.items()


class RouteRewrite(Strict):
    """`path_prefix` takes the place of the path or prefix that matched."""

    path_prefix: PathPrefix


class RouteRetry(Strict):
    """Further tries after the first: on another endpoint when a connection is refused, and for idempotent methods
    also when a connection ends before any byte of an answer."""

    attempts: Annotated[int, Field(ge=0, le=RETRY_ATTEMPTS_MAX)] = 2


class Route(Strict):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9/_.~*-]{1,128}$")] | None = None
    match: RouteMatch
    service: ServiceName
    rewrite: RouteRewrite | None = None
    timeout_ms: TimeoutMs = TIMEOUT_MS_DEFAULT
    idle_timeout_ms: TimeoutMs = IDLE_TIMEOUT_MS_DEFAULT
    total_timeout_ms: TimeoutMs | None = None
    retry: RouteRetry = RouteRetry()
    request_bytes_max: Annotated[int, Field(ge=0, le=REQUEST_BYTES_LIMIT)] = REQUEST_BYTES_DEFAULT
    rate_limit: RouteRateLimit | None = None
    circuit_breaker: CircuitBreakerOrOff = RouteCircuitBreaker()

    @property
    def label(self) -> str:
        """The name, or what it matches."""
        return self.name or self.match.matched


class RoutesDocument(Strict):
    """The document `routes.yaml` of the group `gateway`."""

    routes: Annotated[list[Route], Field(max_length=ROUTES_MAX)]


def routes_schema() -> dict[str, Any]:
    """The document's JSON Schema (2020-12)."""
    schema = RoutesDocument.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Routes of the gateway"}


def parse_routes(content: str) -> RoutesDocument:
    """The document. Raises InvalidContent, whose `errors` have message, line and path."""
    document, errors = _check(content)
    if document is None or errors:
        first = errors[0]
        raise InvalidContent(
            f"line {first.line}: {first.message}" if first.line else first.message,
            errors=[{"message": error.message, "line": error.line, "path": error.path} for error in errors],
        )
    return document


def _validate(key: str, content: str) -> Sequence[DocumentError]:
    """The DocumentValidator of the group `gateway`; of keys other than routes.yaml it has no opinion."""
    return _check(content)[1] if key == ROUTES_KEY else ()


DOCUMENT = _validate


def _check(content: str) -> tuple[RoutesDocument | None, Sequence[DocumentError]]:
    if len(content.encode("utf-8", "surrogatepass")) > DOCUMENT_BYTES_MAX:
        return None, [DocumentError(f"the document is over {DOCUMENT_BYTES_MAX} bytes")]
    try:
        lined = read_yaml(content)
    except YamlProblem as problem:
        return None, [DocumentError(problem.message, problem.line)]
    if not isinstance(lined.value, dict):
        return None, [DocumentError("the document must be a mapping with the key 'routes'", 1)]
    try:
        document = RoutesDocument.model_validate(lined.value)
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False)
        # A name that is not known comes first: it says why another one is missing.
        items.sort(key=lambda item: item["type"] != "extra_forbidden")
        return None, [_readable(item, lined) for item in items]
    return document, _conflicts(document, lined)


def _conflicts(document: RoutesDocument, lined: LinedDocument) -> Sequence[DocumentError]:
    """Names that two routes share, and routes that an earlier one hides."""
    errors: list[DocumentError] = []
    names: dict[str, int] = {}
    earlier: dict[tuple[str | None, str | None], list[int]] = {}
    for index, route in enumerate(document.routes):
        place = ("routes", index)
        first = names.setdefault(route.label, index)
        if first != index:
            hint = "" if route.name else "; give it a name of its own"
            errors.append(
                _at(lined, (*place, "name"), f"routes {first} and {index} are both called {route.label!r}{hint}")
            )
        rivals = earlier.setdefault((route.match.path, route.match.path_prefix), [])
        hiding = next((rival for rival in rivals if document.routes[rival].match.covers(route.match)), None)
        if hiding is not None:
            text = f"can never be reached: route {hiding} ({document.routes[hiding].label!r}) takes all its requests"
            errors.append(_at(lined, (*place, "match"), text))
        rivals.append(index)
    return errors


def _readable(item: Any, lined: LinedDocument) -> DocumentError:
    place: tuple[str | int, ...] = tuple(item["loc"])
    message: str = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = f"unknown field {place[-1]!r}{_did_you_mean(place)}"
    elif item["type"] == "missing":
        message = f"{place[-1]!r} is missing"
    elif item["type"] == "model_type":
        message = f"{place[-1]!r} must be a mapping" if isinstance(place[-1], str) else "a route must be a mapping"
    return _at(lined, place, message)


def _at(lined: LinedDocument, place: tuple[str | int, ...], message: str) -> DocumentError:
    return DocumentError(message, lined.line_of(place), ".".join(str(part) for part in place))


_MODELS: dict[str, type[BaseModel]] = {
    "match": RouteMatch,
    "rewrite": RouteRewrite,
    "retry": RouteRetry,
    "rate_limit": RouteRateLimit,
    "circuit_breaker": RouteCircuitBreaker,
}


def _did_you_mean(place: tuple[str | int, ...]) -> str:
    parent = place[-2] if len(place) > 1 else None
    model: type[BaseModel] = RoutesDocument if parent is None else _MODELS.get(str(parent), Route)
    near = difflib.get_close_matches(str(place[-1]), model.model_fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(model.model_fields)}"
