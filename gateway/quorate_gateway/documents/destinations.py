"""Where a request goes: services, versions of them, weights between them, and how instances are chosen."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from quorate_gateway.documents.limits import check_key
from quorate_gateway.documents.strict import ServiceName, Strict, VersionName

WEIGHT_MAX = 1_000_000
DESTINATIONS_MAX = 16
VIRTUAL_NODES_MAX = 1_000

BalanceKey = Annotated[str, StringConstraints(max_length=80), AfterValidator(check_key)]


class Destination(Strict):
    """One share of a split. Without `version` all instances of the service count."""

    service: ServiceName
    """By the name in the registry."""
    version: VersionName | None = None
    """Only instances that are registered with this version."""
    weight: Annotated[int, Field(ge=0, le=WEIGHT_MAX)] = 1
    """Its part of the sum of all weights; 0 takes no request."""


class RouteBalance(Strict):
    """How an instance is chosen among those that take traffic."""

    policy: Literal[
        "round_robin", "weighted_round_robin", "random", "least_request", "peak_ewma", "consistent_hash"
    ] = "least_request"
    """`least_request` takes the better of two by chance, by requests in progress; `peak_ewma` likewise, by the
    latency that was seen lately; all of them go by the weights in the registry."""
    key: BalanceKey = "client"
    """For `consistent_hash`: requests with one key go to one instance, as long as it has room."""
    virtual_nodes: Annotated[int, Field(ge=1, le=VIRTUAL_NODES_MAX)] = 100
    """For `consistent_hash`: points on the ring of an instance with weight 100."""
    bounded_load_percent: Annotated[int, Field(ge=101, le=1_000)] = 125
    """For `consistent_hash`: no instance has more than this of the mean load; the next clockwise takes what is over."""
    zone_aware: bool = True
    """Instances of the gateway's own zone first, while these have their share of the capacity; the rest spills over."""
