"""Routes and endpoints as one immutable, compiled snapshot; the data plane serves from exactly one at a time."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from quorate_sdk.wire import Instance

from quorate_gateway.matching import CompileContext, CompiledRoute, Endpoint, compile_route
from quorate_gateway.route_table import RouteTable
from quorate_gateway.routes import RoutesDocument


@dataclass(frozen=True, slots=True)
class Revisions:
    """What a snapshot was built from. The store revisions are 0 and the version too when nothing is published yet."""

    routes_version: int = 0
    """The version of the routes document in the config center."""
    routes_revision: int = 0
    registry_revision: int = 0
    """Everything in the registry up to it is in the snapshot."""

    @property
    def newest(self) -> int:
        """Both come from one store, so that the larger one says how fresh the snapshot is."""
        return max(self.routes_revision, self.registry_revision)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What is to be served: plain values that no data plane changes, and what its own one makes of them.

    `document`, `endpoints` and `revisions` say all that a data plane is told, so that any other can be driven from
    snapshots too: routes, clusters and endpoints of xDS are functions of these three, and `revisions.newest` is their
    version. Nothing in them knows of connections, requests or health. `routes` and `table` are the document compiled
    for the gateway's own data plane; the counts of limits, breakers and retry budgets hang on these, and go over from
    one snapshot to the next.

    `endpoints` are by service, those of routed services only; `authorities` are all of theirs.
    """

    document: RoutesDocument
    table: RouteTable[CompiledRoute]
    routes: tuple[CompiledRoute, ...]
    endpoints: Mapping[str, tuple[Endpoint, ...]]
    authorities: frozenset[str]
    revisions: Revisions


InstancesOf = Callable[[str], Iterable[Instance]]
"""The instances of a service, whatever their status."""
EndpointsOf = Callable[[str], tuple[Endpoint, ...]]
"""The endpoints of a service that take traffic, in order of id."""


def build_snapshot(
    document: RoutesDocument,
    instances_of: InstancesOf,
    revisions: Revisions,
    former: Snapshot | None = None,
    context: CompileContext | None = None,
) -> Snapshot:
    """Compile all routes. The state of limits and breakers is taken over from `former`; see `compile_route`."""
    return compile_snapshot(document, lambda service: _endpoints(instances_of(service)), revisions, former, context)


def compile_snapshot(
    document: RoutesDocument,
    endpoints_of: EndpointsOf,
    revisions: Revisions,
    former: Snapshot | None = None,
    context: CompileContext | None = None,
) -> Snapshot:
    """As `build_snapshot`, for who is told the endpoints."""
    context = context or CompileContext()
    context.tokens.replace(document.jwt_providers)  # before the routes that name them
    known = {} if former is None else {route.name: route for route in former.routes}
    routes = tuple(compile_route(route, known.get(route.label), context) for route in document.routes)
    services = sorted({service for route in routes for service in route.services})
    endpoints = {service: endpoints_of(service) for service in services}
    return Snapshot(document, RouteTable(routes), routes, endpoints, _authorities(endpoints), revisions)


def update_snapshot(
    former: Snapshot, changed: Collection[str], instances_of: InstancesOf, revisions: Revisions
) -> Snapshot:
    """`former` with the instances of the `changed` services as they are now.

    The work is in proportion to what has changed: a registry of many services may change many times a second. A
    service whose endpoints are the same keeps that very tuple, so that its balancer sees no change.
    """
    routed = {service: _endpoints(instances_of(service)) for service in changed if service in former.endpoints}
    return replace_endpoints(former, routed, revisions)


def replace_endpoints(former: Snapshot, routed: Mapping[str, tuple[Endpoint, ...]], revisions: Revisions) -> Snapshot:
    """`former` with the endpoints of these services, all of which it has."""
    fresh = {service: found for service, found in routed.items() if found != former.endpoints[service]}
    if not fresh:
        return replace(former, revisions=revisions)
    endpoints = {**former.endpoints, **fresh}
    return replace(former, endpoints=endpoints, authorities=_authorities(endpoints), revisions=revisions)


def unrouted_reason(instance: Instance) -> str | None:
    """Why no request goes to `instance`, or None."""
    if not instance.takes_traffic:
        return f"status {instance.status.value}" if instance.weight else "weight 0"
    if instance.scheme != "http":
        return f"scheme {instance.scheme}: upstreams are spoken to in plain HTTP only"
    return None


def _endpoints(instances: Iterable[Instance]) -> tuple[Endpoint, ...]:
    """In order of id. Of two ids with one address, as a restart under another name leaves for a moment, one counts."""
    by_authority: dict[str, Endpoint] = {}
    for instance in sorted(instances, key=lambda one: one.id):
        if unrouted_reason(instance) is None:
            endpoint = Endpoint(
                instance.id, instance.host, instance.port, instance.authority, instance.weight, instance.zone,
                instance.version, instance.service,
            )  # fmt: skip
            by_authority.setdefault(instance.authority, endpoint)
    return tuple(by_authority.values())


def _authorities(endpoints: Mapping[str, tuple[Endpoint, ...]]) -> frozenset[str]:
    return frozenset(endpoint.authority for found in endpoints.values() for endpoint in found)


EMPTY = build_snapshot(RoutesDocument(routes=[]), lambda _service: (), Revisions())
"""Before anything is known: it takes no request."""
