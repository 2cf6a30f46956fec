"""The admin API: what the gateway serves by, to whom it is connected, and why a request goes where it goes.

Its functions are coroutines although none of them waits: what they read belongs to the event loop, and would change
under the eyes of another thread.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import structlog
from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict
from quorate_core.asgi import Surface, create_app
from quorate_core.errors import Conflict, NotFound

from quorate_gateway.control import Control
from quorate_gateway.explanation import Explanation, explain_request
from quorate_gateway.good_documents import Rejected
from quorate_gateway.matching import CompiledRoute
from quorate_gateway.policy_views import (
    BreakerView,
    LimitDetailView,
    LimitView,
    breaker_view,
    limit_detail,
    limit_view,
)
from quorate_gateway.routes import routes_schema
from quorate_gateway.served import PoolReport, Served, WorkerReport
from quorate_gateway.snapshot import unrouted_reason

log = structlog.get_logger(__name__)


class RejectedView(BaseModel):
    version: int
    revision: int
    reason: str


class SnapshotView(BaseModel):
    """`revision` is the newest of both; `stale_s` is 0 while connected to the control plane, else for how many seconds
    it has not confirmed what is served, those before a restart included."""

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
    api_keys_version: int
    """Of the API keys in force; 0 when none were ever published."""
    api_keys: int
    api_keys_rejected: str | None
    """Why the newest published ones are not in force."""


class DestinationView(BaseModel):
    """One place that a route leads to; `weight` is its part of the sum of all of the route's."""

    service: str
    version: str | None
    weight: int


class RouteView(BaseModel):
    name: str
    service: str
    """Empty for a route that splits between several."""
    destinations: list[DestinationView]
    balance: str
    endpoints: int
    """Of all its destinations, those that take traffic now."""
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


class BalancedView(BaseModel):
    """How one route chooses among a cluster's endpoints. `key` is what a consistent hash goes by."""

    route: str
    version: str | None
    policy: str
    zone_aware: bool
    key: str | None


class ClusterView(BaseModel):
    """One service that routes lead to. `endpoints` take traffic now, of `instances` that the registry has; `versions`
    and `zones` count endpoints."""

    service: str
    instances: int
    endpoints: int
    versions: dict[str, int]
    zones: dict[str, int]
    routes: list[BalancedView]


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
    weight: int
    zone: str
    version: str
    routed: bool
    reason: str | None
    active: int
    """Requests that it has now, from this gateway."""
    latency_ms: float
    """The peak of late, decaying; 0 when nothing is known."""
    failures: int
    """In a row."""
    ejected_s: float
    """For how long it is still passed over, for its failures."""
    pool: PoolView | None


class ClientView(BaseModel):
    address: str
    state: str


class ConnectionsView(BaseModel):
    """`clients` has at most 1000 of them; `leaving` are pools of endpoints that are no longer routed."""

    total: int
    clients: list[ClientView]
    leaving: list[str]


class WorkerView(BaseModel):
    """One process that serves. `state`: `serving`, `starting`, `silent` (it has not reported for a while) or `gone`;
    `memory_bytes` are resident, `cpu_s` since its start; `event_loop_lag_ms`: how late it is."""

    number: int
    pid: int
    state: str
    connections: int
    connections_accepted: int
    requests_active: int
    memory_bytes: int
    cpu_s: float
    event_loop_lag_ms: float
    revision: int
    """What it serves by: the newest of routes and registry."""


class WorkersView(BaseModel):
    """`restarts` counts workers that were replaced by another one."""

    restarts: int
    workers: list[WorkerView]


def create_admin(surface: Surface, served: Served, control: Control) -> FastAPI:
    """The admin application."""
    app = create_app(surface)
    _add_views(app, served, control)
    _add_policies(app, served)

    @app.get("/v1/gateway/explain")
    async def explain(
        path: Annotated[str, Query(description="With its query, percent-encoded as a client would send it")],
        method: str = "GET",
        host: str = "localhost",
        header: Annotated[Sequence[str], Query(description="Repeatable, `name: value`")] = (),
        client: Annotated[str, Query(description="The client's address, for limits by client", max_length=64)] = "",
    ) -> Explanation:
        """Which route takes a request, and why."""
        return explain_request(served, method, path, host, header, client)

    return app


def _add_views(app: FastAPI, served: Served, control: Control) -> None:
    @app.get("/v1/gateway/snapshot")
    async def snapshot() -> SnapshotView:
        """What is served, how fresh it is, and what was rejected."""
        current, revisions = served.snapshot, control.revisions
        return SnapshotView(
            revision=revisions.newest, routes_version=revisions.routes_version,
            routes_revision=revisions.routes_revision, registry_revision=revisions.registry_revision,
            routes=len(current.routes), services=len(current.endpoints), endpoints=len(current.authorities),
            connected=control.connected, stale_s=round(control.stale_s, 3),
            rejected=_rejected_view(control.rejected), api_keys_version=control.keys.version,
            api_keys=len(control.context.api_keys), api_keys_rejected=control.keys.rejected,
        )  # fmt: skip

    @app.get("/v1/gateway/routes")
    async def routes() -> list[RouteView]:
        """The routes that are served, in the document's order."""
        return [_route_view(route, served) for route in served.snapshot.routes]

    @app.get("/v1/gateway/routes/schema")
    async def schema() -> dict[str, Any]:
        """JSON Schema of the document gateway/routes.yaml."""
        return routes_schema()

    @app.get("/v1/gateway/clusters")
    async def clusters() -> list[ClusterView]:
        """The services that routes lead to, and how an endpoint of each is chosen."""
        return [_cluster_view(service, served, control) for service in served.snapshot.endpoints]

    @app.get("/v1/gateway/endpoints")
    async def endpoints() -> list[EndpointView]:
        """All instances of the services that routes name, routed or not."""
        return [view for service in served.snapshot.endpoints for view in _endpoints_of(service, served, control)]

    @app.get("/v1/gateway/connections")
    async def connections() -> ConnectionsView:
        """Client connections, and pools that only finish what they have begun."""
        clients = [ClientView(address=client.address, state=client.state) for client in served.clients]
        leaving = [authority for authority, pool in served.pools.items() if pool.retired]
        return ConnectionsView(total=served.totals.connections, clients=clients, leaving=leaving)

    @app.get("/v1/gateway/workers")
    async def workers() -> WorkersView:
        """The processes that serve, and how often one was replaced."""
        return WorkersView(restarts=served.restarts, workers=[_worker_view(worker) for worker in served.workers])


def _add_policies(app: FastAPI, served: Served) -> None:
    def view(route: CompiledRoute) -> PoliciesView:
        return PoliciesView(
            route=route.name, rate_limit=limit_detail(route, served), circuit_breaker=breaker_view(route, served)
        )

    @app.get("/v1/gateway/policies")
    async def policies(route: Annotated[str, Query(description="The route's name")]) -> PoliciesView:
        """The state of a route's rate limit and circuit breaker."""
        return view(_route_named(served, route))

    @app.put("/v1/gateway/breaker")
    async def force(route: Annotated[str, Query(description="The route's name")], body: ForcedBody) -> PoliciesView:
        """Force a route's circuit breaker open or closed, or release it."""
        found = _route_named(served, route)
        if found.breaker is None:
            raise Conflict(f"route {route!r} has no circuit breaker")
        served.force(found, body.forced)
        log.warning("circuit_breaker_forced", route=route, forced=body.forced)
        return view(found)


def _route_named(served: Served, name: str) -> CompiledRoute:
    for route in served.snapshot.routes:
        if route.name == name:
            return route
    raise NotFound(f"there is no route {name!r}")


def _rejected_view(rejected: Rejected | None) -> RejectedView | None:
    if rejected is None:
        return None
    return RejectedView(version=rejected.version, revision=rejected.revision, reason=rejected.reason)


def _route_view(route: CompiledRoute, served: Served) -> RouteView:
    return RouteView(
        name=route.name, service=route.service, balance=route.balance.policy,
        destinations=[
            DestinationView(service=one.service, version=one.version, weight=one.weight) for one in route.destinations
        ],
        endpoints=len(_endpoints_led_to(route, served)),
        route=route.source.model_dump(mode="json", exclude_none=True),
        rate_limit=limit_view(route, served), circuit_breaker=breaker_view(route, served),
    )  # fmt: skip


def _endpoints_led_to(route: CompiledRoute, served: Served) -> set[tuple[str, str]]:
    """By service and authority: two shares may overlap, one of a version and one of all."""
    return {
        (share.service, endpoint.authority)
        for share in route.destinations
        for endpoint in served.snapshot.endpoints.get(share.service, ())
        if share.weight and share.version in (None, endpoint.version)
    }


def _cluster_view(service: str, served: Served, control: Control) -> ClusterView:
    endpoints = served.snapshot.endpoints[service]
    return ClusterView(
        service=service, instances=len(control.discovery.instances(service)), endpoints=len(endpoints),
        versions=Counter(endpoint.version for endpoint in endpoints),
        zones=Counter(endpoint.zone for endpoint in endpoints),
        routes=[
            BalancedView(
                route=route.name, version=share.version, policy=route.balance.policy,
                zone_aware=route.balance.zone_aware,
                key=route.balance.key if route.balance.policy == "consistent_hash" else None,
            )
            for route in served.snapshot.routes if service in route.services
            for share in route.destinations if share.service == service
        ],
    )  # fmt: skip


def _endpoints_of(service: str, served: Served, control: Control) -> list[EndpointView]:
    found, pools = [], served.pools
    for instance in control.discovery.instances(service):
        reason = unrouted_reason(instance)
        pool = pools.get(instance.authority)
        report = served.endpoint(instance.id, instance.authority)
        found.append(
            EndpointView(
                service=service, instance=instance.id, address=instance.authority, status=instance.status.value,
                weight=instance.weight, zone=instance.zone, version=instance.version,
                routed=reason is None, reason=reason, active=report.active,
                latency_ms=round(report.latency_s * 1_000, 3), failures=report.failures,
                ejected_s=round(report.ejected_s, 3), pool=None if pool is None else _pool_view(pool),
            )
        )  # fmt: skip
    return found


def _pool_view(pool: PoolReport) -> PoolView:
    return PoolView(
        idle=pool.idle, busy=pool.busy, connecting=pool.connecting, waiting=pool.waiting,
        connect_failures=pool.connect_failures,
    )  # fmt: skip


def _worker_view(worker: WorkerReport) -> WorkerView:
    return WorkerView(
        number=worker.number, pid=worker.pid, state=worker.state, connections=worker.connections,
        connections_accepted=worker.accepted, requests_active=worker.requests_active,
        memory_bytes=worker.memory_bytes, cpu_s=round(worker.cpu_s, 3),
        event_loop_lag_ms=round(worker.lag_s * 1_000, 3), revision=worker.applied,
    )  # fmt: skip
