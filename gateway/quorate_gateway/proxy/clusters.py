"""A cluster: the endpoints that a route's share leads to, with the balancer that chooses among them.

Theory of operation. Its members are all the service's endpoints, or those of one version. Of these some may be *passed
over*: ejected, or not to be connected to just now. Which they are changes seldom, and is worked out then (`refresh`),
not at each pick. A balancer chooses among the others alone, so that the share of one that is passed over is spread by
weight. Only a consistent hash is given all of them, with those that are passed over as excluded: its ring stays, and
nobody else's keys move. When all would be passed over, nobody is: some request has to find out that they are back, and
none is better off refused.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from quorate_resilience.balancers import (
    Balancer,
    ConsistentHash,
    Draw,
    InterleavedRoundRobin,
    LeastRequest,
    PeakEwma,
    RandomChoice,
    SmoothRoundRobin,
    ZoneAware,
)
from quorate_resilience.outlier import EjectionSettings, OutlierEjection

from quorate_gateway.documents.destinations import Destination, RouteBalance
from quorate_gateway.documents.protection import RouteOutlierEjection
from quorate_gateway.proxy.endpoint_states import EndpointState, ServiceState, Tally

FIRST_TURNS = 1_024
"""Round robin begins at one of so many places, so that gateways that start together do not begin at the same one."""


class ClusterKey(NamedTuple):
    """Shares of routes that are alike in all of this are one cluster."""

    service: str
    version: str | None
    policy: str
    virtual_nodes: int
    """0, and so is the next, for all policies but the consistent hash."""
    bounded_load_percent: int
    zone_aware: bool
    ejection: EjectionSettings | None


def cluster_key(destination: Destination, balance: RouteBalance, ejection: RouteOutlierEjection) -> ClusterKey:
    hashes = balance.policy == "consistent_hash"
    return ClusterKey(
        destination.service, destination.version, balance.policy,
        balance.virtual_nodes if hashes else 0, balance.bounded_load_percent if hashes else 0,
        # Of all zones: a key that belongs to one instance here belongs to it for every gateway.
        balance.zone_aware and not hashes,
        EjectionSettings(
            ejection.consecutive_failures, ejection.ejection_ms / 1_000, ejection.ejection_max_ms / 1_000,
            ejection.ejected_percent_max,
        ) if ejection.enabled else None,
    )  # fmt: skip


class Cluster:
    """`pick` is all that a request needs of it."""

    __slots__ = ("_all", "_draw", "_hashes", "_members", "_needs_time", "_passed_over", "balancer", "changes_s",
                 "ejection", "is_timed", "key", "tally")  # fmt: skip

    def __init__(self, key: ClusterKey, ejection: OutlierEjection | None, zone: str, draw: Draw) -> None:
        """`zone`: where the gateway stands."""
        self.key = key
        self.ejection = ejection
        self.tally = Tally()
        self._draw = draw
        self._hashes = key.policy == "consistent_hash"
        self._needs_time = key.policy == "peak_ewma"
        self._all: tuple[EndpointState, ...] = ()
        self._members: tuple[EndpointState, ...] = ()
        self._passed_over: Collection[EndpointState] = ()
        """Those of `_members` that are."""
        self.changes_s = math.inf
        """When the next one that is passed over is no longer."""
        self.is_timed = self._needs_time
        """Whether a pick has to know the time."""
        self.balancer = self._make_balancer(zone)

    def pick(self, tried: Sequence[EndpointState], key: bytes, now_s: float) -> EndpointState | None:
        """One that is not in `tried`; None when there is none. `now_s` counts if `is_timed`."""
        if now_s >= self.changes_s:
            self.refresh(now_s)
        if not tried:
            return self.balancer.pick(self._members, self._passed_over, key, now_s)
        picked = self.balancer.pick(self._members, (*self._passed_over, *tried), key, now_s)
        if picked is None:
            left = [member for member in self._all if member not in tried]
            picked = left[int(self._draw() * len(left))] if left else None  # passed over, but better than nobody
        return picked

    def follow(self, service: ServiceState, now_s: float) -> None:
        """The service has other endpoints, or the same with other weights, zones or versions."""
        self.leave()
        version = self.key.version
        self._all = tuple(member for member in service.members if version is None or member.endpoint.version == version)
        self._members = ()  # NB: what a balancer knows of weights and zones is of this very tuple
        if self._hashes:
            for member in self._all:
                member.tallies = (*member.tallies, self.tally)
                self.tally.active += member.active
        self.refresh(now_s)

    def leave(self) -> None:
        """Count no more in the members' states."""
        if self._hashes:
            for member in self._all:
                member.tallies = tuple(tally for tally in member.tallies if tally is not self.tally)
            self.tally.active = 0

    def refresh(self, now_s: float) -> None:
        """Work out who is passed over."""
        ejected: Collection[str] = ()
        self.changes_s = math.inf
        if self.ejection is not None:
            self.ejection.advance(now_s)
            ejected, self.changes_s = self.ejection.ejected, self.ejection.returns_s
        over = []
        for member in self._all:
            is_avoided = member.avoided_until_s > now_s
            if is_avoided:
                self.changes_s = min(self.changes_s, member.avoided_until_s)
            if is_avoided or member.identity in ejected:
                over.append(member)
        self.is_timed = self._needs_time or self.changes_s < math.inf
        if len(over) == len(self._all):
            over = []
        if self._hashes:
            self._members, self._passed_over = self._all, frozenset(over)
            return
        gone = frozenset(over)
        members = tuple(member for member in self._all if member not in gone) if gone else self._all
        if members != self._members:
            self._members = members

    def _make_balancer(self, zone: str) -> Balancer[EndpointState]:
        key, draw = self.key, self._draw
        if self._hashes:
            tally = self.tally
            return ConsistentHash(draw, lambda: tally.active, key.virtual_nodes, key.bounded_load_percent)
        make = _maker(key.policy, draw)
        return ZoneAware(zone, make, draw) if zone and key.zone_aware else make()


def _maker(policy: str, draw: Draw) -> Callable[[], Balancer[EndpointState]]:
    match policy:
        case "round_robin":
            return lambda: InterleavedRoundRobin(int(draw() * FIRST_TURNS))
        case "weighted_round_robin":
            return lambda: SmoothRoundRobin(int(draw() * FIRST_TURNS))
        case "random":
            return lambda: RandomChoice(draw)
        case "peak_ewma":
            return lambda: PeakEwma(draw)
        case _:
            return lambda: LeastRequest(draw)
