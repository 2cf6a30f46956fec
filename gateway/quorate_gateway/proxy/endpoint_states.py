"""What the gateway knows of endpoints: their load, their latency, and whether they are passed over.

It follows the endpoint's identity (service, instance and address), not the snapshot: it goes on when routes or other
instances change, and goes when the endpoint goes. While requests to one that has gone are still in progress, only these
are remembered: should it come back meanwhile, its load is right, and all else begins anew.
"""

from collections.abc import Sequence

from quorate_resilience.balancers import PeakLatency
from quorate_resilience.outlier import EjectionSettings, OutlierEjection

from quorate_gateway.matching import Endpoint


class Tally:
    """Requests in progress of several endpoints together."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active = 0


class EndpointState:
    """One endpoint: what balancers choose among. Equal to itself alone."""

    __slots__ = ("active", "avoided_until_s", "endpoint", "failures", "identity", "is_gone", "latency", "service",
                 "tallies", "weight", "zone")  # fmt: skip

    def __init__(self, endpoint: Endpoint, service: "ServiceState") -> None:
        self.identity = endpoint.identity
        self.service = service
        self.active = 0
        """Tries that have begun and not ended."""
        self.tallies: tuple[Tally, ...] = ()
        """Those that it is a part of."""
        self.is_gone = False
        """No longer in the snapshot; it goes with its last try."""
        self.forget()
        self.follow(endpoint)

    def forget(self) -> None:
        """All but what is in progress."""
        self.latency = PeakLatency()
        self.failures = 0
        """Tries that failed, one after the other."""
        self.avoided_until_s = 0.0
        """It could not be connected to."""

    def follow(self, endpoint: Endpoint) -> None:
        """The same instance, maybe with another weight, zone or version."""
        self.endpoint = endpoint
        self.weight = endpoint.weight
        self.zone = endpoint.zone

    def tally(self, by: int) -> None:
        """`active` has changed."""
        for tally in self.tallies:
            tally.active += by


class ServiceState:
    """The endpoints of one service. `endpoints` is the snapshot's own tuple."""

    __slots__ = ("ejections", "endpoints", "members", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.endpoints: Sequence[Endpoint] = ()
        self.members: tuple[EndpointState, ...] = ()
        self.ejections: dict[EjectionSettings, OutlierEjection] = {}
        """Routes may have different rules; each counts for itself."""

    def follow(self, endpoints: Sequence[Endpoint], members: Sequence[EndpointState]) -> None:
        self.endpoints = endpoints
        self.members = tuple(members)
        for ejection in self.ejections.values():
            ejection.keep([member.identity for member in members])

    def ejection(self, settings: EjectionSettings) -> OutlierEjection:
        found = self.ejections.get(settings)
        if found is None:
            found = self.ejections[settings] = OutlierEjection(settings)
            found.keep([member.identity for member in self.members])
        return found
