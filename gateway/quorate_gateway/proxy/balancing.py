"""Whose turn it is: from a route and its share to an endpoint, and back from what became of the try.

`Balancing` keeps what is known of endpoints (`endpoint_states`) and the clusters that routes choose from (`clusters`)
in step with the snapshot. A pick is one look-up of the cluster and one of its balancer's; everything that changes
seldom is worked out when it changes.

Failures count for the endpoint, on whichever route they were met, and by each rule of ejection that any route has for
its service. An ejection counts for the routes with that rule; on a route without one, nobody is ejected.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import structlog
from quorate_core.errors import InvariantViolation
from quorate_resilience.balancers import Draw

from quorate_gateway.documents.destinations import Destination
from quorate_gateway.matching import CompiledRoute, Endpoint
from quorate_gateway.proxy.clusters import Cluster, ClusterKey, cluster_key
from quorate_gateway.proxy.endpoint_states import EndpointState, ServiceState
from quorate_gateway.snapshot import EMPTY, Snapshot

log = structlog.get_logger(__name__)


class EndpointReport(NamedTuple):
    """One endpoint, for people. `failures` one after the other; `ejected_s`: for how long it is still passed over, by
    the rule that does so longest."""

    active: int
    latency_s: float
    failures: int
    ejected_s: float


class Balancing:
    def __init__(self, monotonic_s: Callable[[], float], zone: str = "", draw: Draw = random.random) -> None:
        """`zone`: where this gateway stands, if that is said."""
        self._monotonic_s = monotonic_s
        self._zone = zone
        self._draw = draw
        self.ejected = 0
        """Ejections, from the beginning on."""
        self._snapshot: Snapshot = EMPTY
        self._services: dict[str, ServiceState] = {}
        self._states: dict[str, EndpointState] = {}
        """By identity; also of those that have gone, while tries of them run."""
        self._by_authority: dict[str, list[EndpointState]] = {}
        """Of those that are there."""
        self._clusters: dict[ClusterKey, Cluster] = {}
        self._by_route: dict[CompiledRoute, Cluster] = {}
        """Of routes with one share. A route is hashed as an object, which takes no time."""
        self._by_share: dict[int, Cluster] = {}
        """Of the others, by the id of the share, which belongs to a route of the snapshot, and so to no other object;
        hashing it would take longer than all else about a pick."""

    # For requests.

    def pick(
        self, route: CompiledRoute, destination: Destination, tried: Sequence[Endpoint], key: bytes
    ) -> Endpoint | None:
        """Who takes a request of `route` to its share `destination`, and is none of `tried`; None when there is
        nobody. `key` is what a consistent hash goes by."""
        cluster = self._by_route.get(route)
        if cluster is None:
            cluster = self._cluster(route, destination)
            if cluster is None:
                return None
        now_s = self._monotonic_s() if cluster.is_timed else 0.0
        states = [state for one in tried if (state := self._states.get(one.identity)) is not None] if tried else ()
        picked = cluster.pick(states, key, now_s)
        return None if picked is None else picked.endpoint

    def began(self, endpoint: Endpoint, now_s: float) -> None:
        """A try goes to `endpoint`. To be followed by one `ended`."""
        state = self._states.get(endpoint.identity)
        if state is None:  # it left after it was picked for an earlier try of the same request
            state = self._states[endpoint.identity] = EndpointState(endpoint, ServiceState(endpoint.service))
            state.is_gone = True
        state.active += 1
        if state.tallies:
            state.tally(1)

    def ended(self, endpoint: Endpoint, now_s: float, latency_s: float | None, failed: bool | None) -> None:
        """The try has ended, after `latency_s` if it got that far. `failed`: whether the endpoint did; None when that
        is not known, as when the client left."""
        state = self._states.get(endpoint.identity)
        if state is None or not state.active:
            raise InvariantViolation(f"a try of {endpoint.identity} ends that never began")
        state.active -= 1
        if state.tallies:
            state.tally(-1)
        if state.is_gone:
            if not state.active:
                del self._states[state.identity]
            return
        # A failure may come sooner than any answer: it says of the latency only that it was no shorter.
        if latency_s is not None and (not failed or latency_s > state.latency.latency_s):
            state.latency.observe(latency_s, now_s)
        if failed:
            self._failed(state, now_s)
        elif failed is False and state.failures:
            state.failures = 0
            for ejection in state.service.ejections.values():
                ejection.advance(now_s)
                ejection.succeeded(state.identity)

    def reach_changed(self, authority: str, avoided_until_s: float) -> None:
        """An endpoint could not be connected to, and is left to the others for as long; or can be again, with 0."""
        now_s = self._monotonic_s()
        for state in self._by_authority.get(authority, ()):
            was_avoided = state.avoided_until_s > now_s
            state.avoided_until_s = avoided_until_s
            if was_avoided != (avoided_until_s > now_s):
                self._refresh(self._clusters_of(state.service), now_s)

    # For people.

    def report(self, instance_id: str, authority: str) -> EndpointReport:
        """What is known of an endpoint; nothing of one that is not served. Of one that is in several services, all
        together."""
        now_s = self._monotonic_s()
        found = [one for one in self._by_authority.get(authority, ()) if one.endpoint.instance_id == instance_id]
        ends_s = (self._ejected_until_s(state) - now_s for state in found)
        return EndpointReport(
            sum(state.active for state in found),
            max((state.latency.latency_s for state in found if state.latency.seen_s > -math.inf), default=0.0),
            max((state.failures for state in found), default=0),
            max(0.0, *ends_s) if found else 0.0,
        )

    # Following the snapshot.

    def swap(self, snapshot: Snapshot) -> None:
        """Choose among the endpoints of `snapshot` from now on. The work is in proportion to what has changed."""
        now_s = self._monotonic_s()
        former, self._snapshot = self._snapshot, snapshot
        for name in self._services.keys() - snapshot.endpoints.keys():
            self._follow_endpoints(self._services.pop(name), ())
        changed = []
        for name, endpoints in snapshot.endpoints.items():
            service = self._services.get(name)
            if service is None:
                service = self._services[name] = ServiceState(name)
            if service.endpoints is not endpoints:
                self._follow_endpoints(service, endpoints)
                changed.append(service)
        for service in changed:
            for cluster in self._clusters_of(service):
                cluster.follow(service, now_s)
        if former.routes is not snapshot.routes:
            self._follow_routes(snapshot, now_s)

    def _follow_endpoints(self, service: ServiceState, endpoints: Sequence[Endpoint]) -> None:
        members = [self._state(endpoint, service) for endpoint in endpoints]
        staying = frozenset(member.identity for member in members)
        for state in service.members:
            if state.identity not in staying:
                self._gone(state)
        for state in members:
            there = self._by_authority.setdefault(state.endpoint.authority, [])
            if state not in there:
                there.append(state)
        service.follow(endpoints, members)

    def _state(self, endpoint: Endpoint, service: ServiceState) -> EndpointState:
        state = self._states.get(endpoint.identity)
        if state is None:
            state = self._states[endpoint.identity] = EndpointState(endpoint, service)
        elif state.is_gone:
            state.is_gone, state.service = False, service
            state.forget()
        state.follow(endpoint)
        return state

    def _gone(self, state: EndpointState) -> None:
        authority = state.endpoint.authority
        there = [one for one in self._by_authority[authority] if one is not state]
        if there:
            self._by_authority[authority] = there
        else:
            del self._by_authority[authority]
        state.is_gone = True
        if not state.active:
            del self._states[state.identity]

    def _follow_routes(self, snapshot: Snapshot, now_s: float) -> None:
        self._by_route.clear()
        self._by_share.clear()
        wanted: set[ClusterKey] = set()
        for route in snapshot.routes:
            shares = [share for share in route.destinations if share.weight]
            for share in shares:
                key = _key(route, share)
                wanted.add(key)
                cluster = self._clusters.get(key) or self._make(key, self._services[share.service], now_s)
                if len(shares) == 1:
                    self._by_route[route] = cluster
                else:
                    self._by_share[id(share)] = cluster
        for key in self._clusters.keys() - wanted:
            self._clusters.pop(key).leave()
        for service in self._services.values():
            rules = {cluster.key.ejection for cluster in self._clusters_of(service)}
            for settings in service.ejections.keys() - rules:
                del service.ejections[settings]

    def _cluster(self, route: CompiledRoute, destination: Destination) -> Cluster | None:
        cluster = self._by_share.get(id(destination))
        if cluster is not None:
            return cluster
        # A request of a former snapshot, which is admitted or tried again only now: it goes by its own rules still.
        key, service = _key(route, destination), self._services.get(destination.service)
        if service is None:
            return None
        return self._clusters.get(key) or self._make(key, service, self._monotonic_s())

    def _make(self, key: ClusterKey, service: ServiceState, now_s: float) -> Cluster:
        ejection = None if key.ejection is None else service.ejection(key.ejection)
        cluster = self._clusters[key] = Cluster(key, ejection, self._zone, self._draw)
        cluster.follow(service, now_s)
        return cluster

    # Ejection.

    def _failed(self, state: EndpointState, now_s: float) -> None:
        state.failures += 1
        service = state.service
        for ejection in service.ejections.values():
            ejection.advance(now_s)
            if ejection.failed(state.identity, now_s):
                self.ejected += 1
                for_s = (ejection.ejected_until_s(state.identity) or now_s) - now_s
                log.warning("endpoint_ejected", service=service.name, endpoint=state.identity, for_s=round(for_s, 3))
                self._refresh((one for one in self._clusters_of(service) if one.ejection is ejection), now_s)

    def _ejected_until_s(self, state: EndpointState) -> float:
        ends_s = (ejection.ejected_until_s(state.identity) for ejection in state.service.ejections.values())
        return max((end_s for end_s in ends_s if end_s is not None), default=0.0)

    def _clusters_of(self, service: ServiceState) -> list[Cluster]:
        return [cluster for key, cluster in self._clusters.items() if key.service == service.name]

    @staticmethod
    def _refresh(clusters: Iterable[Cluster], now_s: float) -> None:
        for cluster in clusters:
            cluster.refresh(now_s)


def _key(route: CompiledRoute, destination: Destination) -> ClusterKey:
    return cluster_key(destination, route.balance, route.source.outlier_ejection)
