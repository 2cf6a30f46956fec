"""The admin API: what the gateway serves by, to whom it is connected, and why a request goes where it goes."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query
from pydantic import BaseModel
from quorate_core.asgi import Surface, create_app
from quorate_core.errors import InvalidRequest

from quorate_gateway.control import Control
from quorate_gateway.matching import CompiledRoute
from quorate_gateway.proxy.framing import HEAD_BYTES_MAX, read_request_head
from quorate_gateway.proxy.plane import DataPlane
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.proxy.upstream import EndpointPool
from quorate_gateway.routes import routes_schema
from quorate_gateway.snapshot import unrouted_reason

CLIENTS_SHOWN_MAX = 1_000


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
    """`considered`: the routes whose path matches, in order; the last one takes the request when `route` is set."""

    route: str | None
    service: str | None
    upstream_target: str | None
    endpoints: list[str]
    rule: str | None
    considered: list[ConsideredView]


def create_admin(surface: Surface, plane: DataPlane, control: Control) -> FastAPI:
    """The admin application."""
    app = create_app(surface)
    _add_views(app, plane, control)

    @app.get("/v1/gateway/explain")
    def explain(
        path: Annotated[str, Query(description="With its query, percent-encoded as a client would send it")],
        method: str = "GET",
        host: str = "localhost",
        header: Annotated[Sequence[str], Query(description="Repeatable, `name: value`")] = (),
    ) -> Explanation:
        """Which route takes a request, and why."""
        return _explain(plane, method, path, host, header)

    return app


def _add_views(app: FastAPI, plane: DataPlane, control: Control) -> None:
    @app.get("/v1/gateway/snapshot")
    def snapshot() -> SnapshotView:
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
    def routes() -> list[RouteView]:
        """The routes that are served, in the document's order."""
        endpoints = plane.snapshot.endpoints
        return [
            RouteView(
                name=route.name, service=route.service, endpoints=len(endpoints.get(route.service, ())),
                route=route.source.model_dump(mode="json", exclude_none=True),
            )
            for route in plane.snapshot.routes
        ]  # fmt: skip

    @app.get("/v1/gateway/routes/schema")
    def schema() -> dict[str, Any]:
        """JSON Schema of the document gateway/routes.yaml."""
        return routes_schema()

    @app.get("/v1/gateway/endpoints")
    def endpoints() -> list[EndpointView]:
        """All instances of the services that routes name, routed or not."""
        return [view for service in plane.snapshot.endpoints for view in _endpoints_of(service, plane, control)]

    @app.get("/v1/gateway/connections")
    def connections() -> ConnectionsView:
        """Client connections, and pools that only finish what they have begun."""
        clients = [ClientView(address=client.address, state=client.state) for client in plane.clients]
        leaving = [authority for authority, pool in plane.pools.items() if pool.retired]
        return ConnectionsView(total=len(clients), clients=clients[:CLIENTS_SHOWN_MAX], leaving=leaving)


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


def _explain(plane: DataPlane, method: str, path: str, host: str, headers: Sequence[str]) -> Explanation:
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
    return Explanation(
        route=taken.name, service=taken.service, upstream_target=target.decode("latin-1"),
        endpoints=[f"{endpoint.instance_id} ({endpoint.authority})" for endpoint in endpoints],
        rule=None if endpoints else "no-endpoint", considered=considered,
    )  # fmt: skip


def _unrouted(rule: str, considered: Sequence[ConsideredView] = ()) -> Explanation:
    return Explanation(
        route=None, service=None, upstream_target=None, endpoints=[], rule=rule, considered=list(considered)
    )
