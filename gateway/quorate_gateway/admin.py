"""The admin API: what the gateway serves by, to whom it is connected, and why a request goes where it goes.

Its functions are coroutines although none of them waits: what they read belongs to the event loop, and would change
under the eyes of another thread.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import structlog
from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict
from quorate_core.asgi import Surface, create_app
from quorate_core.errors import Conflict, InvalidRequest, NotFound

from quorate_gateway.control import Control
from quorate_gateway.matching import CompiledRoute
from quorate_gateway.policy_views import (
    BreakerView,
    LimitDetailView,
    LimitView,
    PolicyView,
    breaker_view,
    limit_detail,
    limit_view,
    policies_met,
)
from quorate_gateway.proxy.framing import HEAD_BYTES_MAX, read_request_head
from quorate_gateway.proxy.plane import DataPlane
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.proxy.upstream import EndpointPool
from quorate_gateway.routes import routes_schema
from quorate_gateway.snapshot import unrouted_reason

CLIENTS_SHOWN_MAX = 1_000

log = structlog.get_logger(__name__)


class RejectedView(BaseModel):
    version: int
    revision: int
    reason: str


class SnapshotView(BaseModel):
    """`revision` is the newest of both; `stale_s` is 0 while connected to the control plane."""

    revision: int
    routes_version: int
    routes_revision: int
    registry_revision: int
    routes: int
    services: int
    endpoints: int
    connected: bool
    stale_s: float
    rejected: RejectedView | None
    """The newest published routes, when they are invalid and so not served."""


class RouteView(BaseModel):
    name: str
    service: str
    endpoints: int
    route: dict[str, Any]
    """As published, with defaults filled in."""
    rate_limit: LimitView | None
    circuit_breaker: BreakerView | None


class PoliciesView(BaseModel):
    """The state of one route's policies; null for one that it has not."""

    route: str
    rate_limit: LimitDetailView | None
    circuit_breaker: BreakerView | None


class ForcedBody(BaseModel):
    """`open` refuses everything, `closed` lets everything through, null goes by the calls again. Lasts until it is
    changed, the breaker's parameters are, or the gateway is restarted."""

    model_config = ConfigDict(extra="forbid")

    forced: Literal["open", "closed"] | None


class PoolView(BaseModel):
    idle: int
    busy: int
    connecting: int
    waiting: int
    connect_failures: int


class EndpointView(BaseModel):
    """One instance; `routed` says whether requests go to it, and if not, `reason` why."""

    service: str
    instance: str
    address: str
    status: str
    routed: bool
    reason: str | None
    pool: PoolView | None


class ClientView(BaseModel):
    address: str
    state: str


class ConnectionsView(BaseModel):
    """`clients` has at most 1000 of them; `leaving` are pools of endpoints that are no longer routed."""

    total: int
    clients: list[ClientView]
    leaving: list[str]


class ConsideredView(BaseModel):
    route: str
    refused_by: str | None


class Explanation(BaseModel):
    """`considered`: the routes whose path matches, in order; the last one takes the request when `route` is set.
    `policies` are those that it would then meet, in order; `rule` is what the gateway itself would answer, if it would.
    """

    route: str | None
    service: str | None
    upstream_target: str | None
    endpoints: list[str]
    rule: str | None
    considered: list[ConsideredView]
    policies: list[PolicyView]


def create_admin(surface: Surface, plane: DataPlane, control: Control) -> FastAPI:
    """The admin application."""
    app = create_app(surface)
    _add_views(app, plane, control)
    _add_policies(app, plane)

    @app.get("/v1/gateway/explain")
    async def explain(
        path: Annotated[str, Query(description="With its query, percent-encoded as a client would send it")],
        method: str = "GET",
        host: str = "localhost",
        header: Annotated[Sequence[str], Query(description="Repeatable, `name: value`")] = (),
        client: Annotated[str, Query(description="The client's address, for limits by client", max_length=64)] = "",
    ) -> Explanation:
        """Which route takes a request, and why."""
        return _explain(plane, method, path, host, header, client)

    return app


def _add_views(app: FastAPI, plane: DataPlane, control: Control) -> None:
    @app.get("/v1/gateway/snapshot")
    async def snapshot() -> SnapshotView:
        """What is served, how fresh it is, and what was rejected."""
        current, revisions, rejected = plane.snapshot, control.revisions, control.rejected
        return SnapshotView(
            revision=revisions.newest, routes_version=revisions.routes_version,
            routes_revision=revisions.routes_revision, registry_revision=revisions.registry_revision,
            routes=len(current.routes), services=len(current.endpoints), endpoints=len(current.authorities),
            connected=control.connected, stale_s=round(control.stale_s, 3),
            rejected=None if rejected is None else RejectedView(
                version=rejected.version, revision=rejected.revision, reason=rejected.reason
            ),
        )  # fmt: skip

    @app.get("/v1/gateway/routes")
    async def routes() -> list[RouteView]:
        """The routes that are served, in the document's order."""
        endpoints, now_s = plane.snapshot.endpoints, plane.monotonic_s()
        return [
            RouteView(
                name=route.name, service=route.service, endpoints=len(endpoints.get(route.service, ())),
                route=route.source.model_dump(mode="json", exclude_none=True),
                rate_limit=limit_view(route.limit), circuit_breaker=breaker_view(route.breaker, now_s),
            )
            for route in plane.snapshot.routes
        ]  # fmt: skip

    @app.get("/v1/gateway/routes/schema")
    async def schema() -> dict[str, Any]:
        """JSON Schema of the document gateway/routes.yaml."""
        return routes_schema()

    @app.get("/v1/gateway/endpoints")
    async def endpoints() -> list[EndpointView]:
        """All instances of the services that routes name, routed or not."""
        return [view for service in plane.snapshot.endpoints for view in _endpoints_of(service, plane, control)]

    @app.get("/v1/gateway/connections")
    async def connections() -> ConnectionsView:
        """Client connections, and pools that only finish what they have begun."""
        clients = [ClientView(address=client.address, state=client.state) for client in plane.clients]
        leaving = [authority for authority, pool in plane.pools.items() if pool.retired]
        return ConnectionsView(total=len(clients), clients=clients[:CLIENTS_SHOWN_MAX], leaving=leaving)


def _add_policies(app: FastAPI, plane: DataPlane) -> None:
    def view(route: CompiledRoute) -> PoliciesView:
        now_s = plane.monotonic_s()
        return PoliciesView(
            route=route.name, rate_limit=limit_detail(route.limit, now_s),
            circuit_breaker=breaker_view(route.breaker, now_s),
        )  # fmt: skip

    @app.get("/v1/gateway/policies")
    async def policies(route: Annotated[str, Query(description="The route's name")]) -> PoliciesView:
        """The state of a route's rate limit and circuit breaker."""
        return view(_route_named(plane, route))

    @app.put("/v1/gateway/breaker")
    async def force(route: Annotated[str, Query(description="The route's name")], body: ForcedBody) -> PoliciesView:
        """Force a route's circuit breaker open or closed, or release it."""
        found = _route_named(plane, route)
        if found.breaker is None:
            raise Conflict(f"route {route!r} has no circuit breaker")
        act = {"open": found.breaker.force_open, "closed": found.breaker.force_closed, None: found.breaker.release}
        act[body.forced](plane.monotonic_s())
        log.warning("circuit_breaker_forced", route=route, forced=body.forced)
        return view(found)


def _route_named(plane: DataPlane, name: str) -> CompiledRoute:
    for route in plane.snapshot.routes:
        if route.name == name:
            return route
    raise NotFound(f"there is no route {name!r}")


def _endpoints_of(service: str, plane: DataPlane, control: Control) -> list[EndpointView]:
    found = []
    for instance in control.discovery.instances(service):
        reason = unrouted_reason(instance)
        pool = plane.pools.get(instance.authority)
        found.append(
            EndpointView(
                service=service, instance=instance.id, address=instance.authority, status=instance.status.value,
                routed=reason is None, reason=reason, pool=None if pool is None else _pool_view(pool),
            )
        )  # fmt: skip
    return found


def _pool_view(pool: EndpointPool) -> PoolView:
    return PoolView(
        idle=pool.idle, busy=pool.busy, connecting=pool.connecting, waiting=pool.waiting,
        connect_failures=pool.connect_failures,
    )  # fmt: skip


def _explain(plane: DataPlane, method: str, path: str, host: str, headers: Sequence[str], client: str) -> Explanation:
    """Asks the data plane's own parser and table, so that it cannot say anything else than what would happen."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", *headers]
    if any("\r" in line or "\n" in line for line in lines):
        raise InvalidRequest("a line break cannot be part of a method, path, host or header")
    data = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
    try:
        head = read_request_head(data)
    except Refusal as refusal:
        return _unrouted(refusal.rule)
    if head is None:
        raise InvalidRequest(f"this is no request with a head of at most {HEAD_BYTES_MAX} bytes")
    arguments = (head.method, head.path, head.fields.host, head.fields.block)
    steps = plane.snapshot.table.explain(*arguments)
    considered = [ConsideredView(route=step.route.name, refused_by=step.refused_by) for step in steps]
    taken: CompiledRoute | None = next((step.route for step in steps if step.refused_by is None), None)
    if taken is None:
        misses_method = any(step.refused_by == "method" for step in steps)
        return _unrouted("method-not-routed" if misses_method else "no-route", considered)
    endpoints = plane.snapshot.endpoints.get(taken.service, ())
    target = head.target if taken.rewrite is None else taken.rewrite(head.target)
    policies = policies_met(taken, head.fields, client, plane.monotonic_s())
    rule = next((met.rule for met in policies if not met.lets_through), None if endpoints else "no-endpoint")
    return Explanation(
        route=taken.name, service=taken.service, upstream_target=target.decode("latin-1"),
        endpoints=[f"{endpoint.instance_id} ({endpoint.authority})" for endpoint in endpoints],
        rule=rule, considered=considered, policies=list(policies),
    )  # fmt: skip


def _unrouted(rule: str, considered: Sequence[ConsideredView] = ()) -> Explanation:
    return Explanation(
        route=None, service=None, upstream_target=None, endpoints=[], rule=rule, considered=list(considered),
        policies=[],
    )  # fmt: skip
