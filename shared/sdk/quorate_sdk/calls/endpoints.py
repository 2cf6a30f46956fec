"""A service's instances with what is known of them from calls, and the choice among them.

State follows an instance's identity (its id and its address): requests in progress, latency, failures. It goes on while
the registry tells of other changes, such as of weights, and goes when the instance goes.

Some may be *passed over*: one that could not be connected to for AVOID_S seconds, and one that failed several times in
a row as `quorate_resilience.outlier` says. Who they are changes seldom, and is worked out then, not at each pick. A
balancer chooses among the others alone, so that the share of one that is passed over is spread by weight. Only a
consistent hash is given all of them, with those that are passed over as excluded: its ring stays, and nobody else's
keys move. When all would be passed over, nobody is: some call has to find out that they are back.
"""

import math
from collections.abc import Callable, Collection, Sequence

from quorate_resilience.balancers import (
    Balancer,
    ConsistentHash,
    Draw,
    InterleavedRoundRobin,
    LeastRequest,
    PeakEwma,
    PeakLatency,
    RandomChoice,
    SmoothRoundRobin,
    ZoneAware,
)
from quorate_resilience.outlier import EjectionSettings, OutlierEjection

from quorate_sdk.wire import Instance

AVOID_S = 1.0
"""For so long one that could not be connected to is passed over."""
FIRST_TURNS = 1_024
"""Round robin begins at one of so many places, so that processes that start together do not begin at the same one."""
SCHEMES = frozenset({"http", "https"})
"""Instances of others are not for an HTTP client."""


class EndpointState:
    """One instance: what balancers choose among. Equal to itself alone."""

    __slots__ = ("active", "avoided_until_s", "identity", "instance", "latency", "weight", "zone")

    def __init__(self, identity: str, instance: Instance) -> None:
        self.identity = identity
        self.active = 0
        """Tries whose answers have not ended."""
        self.avoided_until_s = -math.inf
        self.latency = PeakLatency()
        self.follow(instance)

    def follow(self, instance: Instance) -> None:
        """The same one, maybe with another weight, zone or version."""
        self.instance = instance
        self.weight = instance.weight
        self.zone = instance.zone

    def __str__(self) -> str:
        return f"{self.instance.id} at {self.instance.authority}"


class ServiceEndpoints:
    """Those of one service. Time is an argument that does not go back."""

    def __init__(self, ejection: EjectionSettings, zone: str, draw: Draw) -> None:
        """`zone`: where the caller stands; empty when that is not known."""
        self.ejection = OutlierEjection(ejection)
        self._zone = zone
        self._draw = draw
        self._known: Sequence[Instance] = ()
        self._members: tuple[EndpointState, ...] = ()
        self._available: tuple[EndpointState, ...] = ()
        """Those that are not passed over."""
        self._passed_over: Collection[EndpointState] = ()
        self._changes_s = math.inf
        """When the next one that is passed over is no longer."""
        self._balancers: dict[str, Balancer[EndpointState]] = {}
        self.active = 0
        """Tries in progress, of all that were ever members."""

    @property
    def members(self) -> tuple[EndpointState, ...]:
        """All that take traffic."""
        return self._members

    def follow(self, known: Sequence[Instance], now_s: float) -> None:
        """What the registry says now; costs nothing when it is the same object as before."""
        if known is self._known:
            return
        former = {member.identity: member for member in self._members}
        members = []
        for instance in known:
            if not instance.takes_traffic or instance.scheme not in SCHEMES:
                continue
            identity = f"{instance.id}@{instance.scheme}://{instance.authority}"
            member = former.get(identity)
            if member is None:
                member = EndpointState(identity, instance)
            else:
                member.follow(instance)
            members.append(member)
        self._known = known
        self._members = tuple(members)
        self._available = ()  # NB: what a balancer knows of weights and zones is of this very tuple
        self.ejection.keep([member.identity for member in members])
        self._refresh(now_s)

    def pick(self, balance: str, tried: Collection[EndpointState], key: bytes, now_s: float) -> EndpointState | None:
        """One that is not in `tried`; None when there is none. `balance`: one of options.BALANCES."""
        if now_s >= self._changes_s:
            self._refresh(now_s)
        balancer = self._balancers.get(balance)
        if balancer is None:
            balancer = self._balancers[balance] = self._make_balancer(balance)
        if balance == "consistent_hash":
            picked = balancer.pick(self._members, (*self._passed_over, *tried), key, now_s)
        else:
            picked = balancer.pick(self._available, tuple(tried), key, now_s)
        if picked is None and tried:
            left = [member for member in self._members if member not in tried]
            picked = left[int(self._draw() * len(left))] if left else None  # passed over, but better than nobody
        return picked

    def began(self, member: EndpointState) -> None:
        member.active += 1
        self.active += 1

    def ended(self, member: EndpointState) -> None:
        """Once for each `began`."""
        member.active -= 1
        self.active -= 1

    def succeeded(self, member: EndpointState, latency_s: float, now_s: float) -> None:
        member.latency.observe(latency_s, now_s)
        self.ejection.succeeded(member.identity)
        if member.avoided_until_s > now_s:
            member.avoided_until_s = -math.inf
            self._refresh(now_s)

    def failed(self, member: EndpointState, now_s: float) -> None:
        """It answered badly, or not at all."""
        self.ejection.advance(now_s)
        if self.ejection.failed(member.identity, now_s):
            self._refresh(now_s)

    def unreachable(self, member: EndpointState, now_s: float) -> None:
        """It could not be connected to."""
        self.ejection.advance(now_s)
        self.ejection.failed(member.identity, now_s)
        member.avoided_until_s = now_s + AVOID_S
        self._refresh(now_s)

    def _refresh(self, now_s: float) -> None:
        """Work out who is passed over."""
        self.ejection.advance(now_s)
        ejected, self._changes_s = self.ejection.ejected, self.ejection.returns_s
        over = set()
        for member in self._members:
            is_avoided = member.avoided_until_s > now_s
            if is_avoided:
                self._changes_s = min(self._changes_s, member.avoided_until_s)
            if is_avoided or member.identity in ejected:
                over.add(member)
        if len(over) == len(self._members):
            over = set()
        self._passed_over = frozenset(over)
        available = tuple(member for member in self._members if member not in over) if over else self._members
        if available != self._available:
            self._available = available

    def _make_balancer(self, balance: str) -> Balancer[EndpointState]:
        draw = self._draw
        if balance == "consistent_hash":
            # Of all zones: a key that belongs to one instance here belongs to it for every caller.
            return ConsistentHash(draw, lambda: self.active)
        make = _maker(balance, draw)
        return ZoneAware(self._zone, make, draw) if self._zone else make()


def _maker(balance: str, draw: Draw) -> Callable[[], Balancer[EndpointState]]:
    match balance:
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
