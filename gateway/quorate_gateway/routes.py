"""The routes document: its schema, and its validation with the line of each error.

    jwt_providers:                        # who signs tokens, for `auth.jwt`
      staff: {issuer: "https://id.example", audiences: [shop], jwks_url: "https://id.example/keys"}
    routes:
      - name: orders                      # in metrics and answers; what it matches when left out
        match:
          path_prefix: /orders            # or `path: /orders/today`, or `path_template: /orders/{id}/lines`
          methods: [GET, POST]            # any, when left out
          host: shop.example.com          # or `*.example.com`
          headers: {x-channel: web}       # each equal; or `{prefix: web}`, `{present: true}`
          query: {full: "1"}              # each equal
        service: order                    # or, instead:
        split: [{service: order, version: v1, weight: 95}, {service: order, version: v2, weight: 5}]
        split_key: client                 # each of whom stays with one share
        rewrite: {path_prefix: /v2}       # instead of the part that matched
        request_headers: {set: {x-from: gateway}}
        timeout_ms: 15000                 # from the whole request until the head of the answer, all tries together
        auth: {jwt: {provider: staff}}
        cors: {origins: ["https://shop.example"]}
        rate_limit: {requests_per_second: 100, burst: 200, key: client}
        circuit_breaker: off              # on, when left out
    expect:                               # checked whenever the document is
      - GET /orders/7 host=shop.example.com x-channel=web -> orders

All fields, with their units, bounds and defaults, are in `docs/reference/routes.md`, which is made from this schema.

Order of matching: an exact `path` first; then templates, of which the one is more specific that has a literal where the
other has a `{name}`, at the first segment in which they differ, and `{name...}` comes last; then prefixes, a longer one
before a shorter one; of routes with the same path, the document's order. The first route of that order whose methods,
host, headers and query agree takes the request. A prefix ends at a `/`: `/orders` matches `/orders` and `/orders/7`,
never `/ordersheet`.

This module is imported by whoever validates documents, so it loads neither the data plane nor the admin API.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator
from quorate_core.documents import DocumentError
from quorate_core.errors import InvalidContent

from quorate_gateway.documents.access import PROVIDERS_MAX, JwtProvider, ProviderName, RouteAuth, RouteCors
from quorate_gateway.documents.api_keys_document import API_KEYS_KEY, check_api_keys
from quorate_gateway.documents.changes import HeaderChanges, RouteRewrite
from quorate_gateway.documents.destinations import DESTINATIONS_MAX, Destination, RouteBalance
from quorate_gateway.documents.errors_in_place import readable_errors
from quorate_gateway.documents.limits import RouteRateLimit
from quorate_gateway.documents.match import RouteMatch
from quorate_gateway.documents.protection import (
    CircuitBreakerOrOff,
    OutlierEjectionOrOff,
    RouteCircuitBreaker,
    RouteOutlierEjection,
    RouteRetry,
)
from quorate_gateway.documents.strict import DurationMs, ServiceName, Strict, VersionName, one_of
from quorate_gateway.expectations import EXPECTATIONS_MAX, ExpectationText, failed_expectations
from quorate_gateway.route_conflicts import find_conflicts
from quorate_gateway.yaml_lines import YamlProblem, read_yaml

ROUTES_KEY = "routes.yaml"
DOCUMENT_BYTES_MAX = 524_288
ROUTES_MAX = 2_000
TIMEOUT_MS_DEFAULT = 15_000
IDLE_TIMEOUT_MS_DEFAULT = 60_000
REQUEST_BYTES_DEFAULT = 10 * 1024 * 1024
REQUEST_BYTES_LIMIT = 1024**4


class Route(Strict):
    """One route. Exactly one of `service` and `split`."""

    model_config = one_of("service", "split")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9/_.~*{}-]{1,128}$")] | None = None
    """In metrics, logs and answers; what it matches when left out. The state of its policies belongs to it."""
    match: RouteMatch
    """Which requests it takes."""
    service: ServiceName | None = None
    """Where its requests go, by the name in the registry."""
    version: VersionName | None = None
    """Only instances of this version of `service`."""
    split: Annotated[list[Destination], Field(min_length=1, max_length=DESTINATIONS_MAX)] | None = None
    """Instead of `service`: several, each with its weight."""
    split_key: Annotated[str, StringConstraints(pattern=r"^(client|api_key|header:[A-Za-z0-9_-]{1,64})$")] | None = None
    """Whose requests all go to one share of the split: of a client's address, an API key, or a header field's value.
    Each request for itself, when left out, and also when it has none."""
    balance: RouteBalance = RouteBalance()
    """How an instance is chosen."""
    rewrite: RouteRewrite | None = None
    """What the service is asked for instead."""
    request_headers: HeaderChanges | None = None
    """Changes on the way to the service."""
    response_headers: HeaderChanges | None = None
    """Changes on the way back."""
    timeout_ms: DurationMs = TIMEOUT_MS_DEFAULT
    """From the whole request to the head of the answer, all tries together."""
    idle_timeout_ms: DurationMs = IDLE_TIMEOUT_MS_DEFAULT
    """With no byte moving either way."""
    total_timeout_ms: DurationMs | None = None
    """For everything; no such limit when left out."""
    retry: RouteRetry = RouteRetry()
    """Further tries, where these are safe."""
    request_bytes_max: Annotated[int, Field(ge=0, le=REQUEST_BYTES_LIMIT)] = REQUEST_BYTES_DEFAULT
    """Of a request's body; more gets 413."""
    websocket: bool = False
    """Whether WebSocket handshakes (RFC 6455) are tunnelled."""
    priority: Literal["low", "normal", "high"] = "normal"
    """When the gateway is saturated, requests of lower priority are refused first."""
    auth: RouteAuth | None = None
    """Who may use it; everybody, when left out."""
    cors: RouteCors | None = None
    """What browsers on pages of other origins may do; nothing, when left out."""
    rate_limit: RouteRateLimit | None = None
    """None, when left out."""
    circuit_breaker: CircuitBreakerOrOff = RouteCircuitBreaker()
    """On, when left out; `off` says the same as `{enabled: false}`."""
    outlier_ejection: OutlierEjectionOrOff = RouteOutlierEjection()
    """On, when left out; `off` says the same as `{enabled: false}`."""

    @model_validator(mode="after")
    def _one_destination(self) -> Self:
        if (self.service is None) == (self.split is None):
            raise ValueError("give exactly one of 'service' and 'split'")
        if self.split is not None and not any(share.weight for share in self.split):
            raise ValueError("a split whose weights are all 0 takes no request")
        return self

    @property
    def label(self) -> str:
        """The name, or what it matches."""
        return self.name or self.match.matched

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """Where its requests go; one share when it does not split."""
        if self.service is not None:
            return (Destination(service=self.service, version=self.version),)
        return tuple(self.split or ())


class RoutesDocument(Strict):
    """The document `routes.yaml` of the group `gateway`."""

    routes: Annotated[list[Route], Field(max_length=ROUTES_MAX)]
    """In the order of the document, which counts for routes with the same path."""
    jwt_providers: Annotated[dict[ProviderName, JwtProvider], Field(max_length=PROVIDERS_MAX)] = Field(
        default_factory=dict
    )
    """Who signs tokens, by the names that routes use."""
    expect: Annotated[list[ExpectationText], Field(max_length=EXPECTATIONS_MAX)] = Field(default_factory=list)
    """Which route must take which request, such as `GET /orders/7 -> orders`: a document that does otherwise is
    refused."""


def routes_schema() -> dict[str, Any]:
    """The document's JSON Schema (2020-12)."""
    schema = RoutesDocument.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Routes of the gateway"}


def parse_routes(content: str) -> RoutesDocument:
    """The document. Raises InvalidContent, whose `errors` have message, line and path."""
    document, errors = check_routes(content)
    if document is None or errors:
        first = errors[0]
        raise InvalidContent(
            f"line {first.line}: {first.message}" if first.line else first.message,
            errors=[{"message": error.message, "line": error.line, "path": error.path} for error in errors],
        )
    return document


def check_routes(content: str) -> tuple[RoutesDocument | None, Sequence[DocumentError]]:
    """The document, None when it cannot be read at all, and what is wrong with it."""
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
        return None, readable_errors(error, RoutesDocument, lined)
    conflicts = find_conflicts(document, lined)
    return document, conflicts or failed_expectations(document, lined)


def _validate(key: str, content: str) -> Sequence[DocumentError]:
    """The DocumentValidator of the group `gateway`; of keys that are not the gateway's it has no opinion."""
    if key == API_KEYS_KEY:
        return check_api_keys(content)[1]
    return check_routes(content)[1] if key == ROUTES_KEY else ()


DOCUMENT = _validate
