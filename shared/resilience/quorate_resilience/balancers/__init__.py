"""Balancers: which of a service's endpoints takes the next request.

A balancer is asked with the members of the moment, so that it needs no notice when they change. All of them go by the
members' weights; `RoundRobin`, which knows none, is for plain candidates of any kind.
"""

from quorate_resilience.balancers.chances import (
    LeastRequest,
    PeakEwma,
    PeakLatency,
    RandomChoice,
    TimedMember,
)
from quorate_resilience.balancers.consistent_hash import ConsistentHash
from quorate_resilience.balancers.member import Balancer, BusyMember, Draw, Member, ZonedMember
from quorate_resilience.balancers.round_robin import RoundRobin
from quorate_resilience.balancers.weighted_turns import InterleavedRoundRobin, SmoothRoundRobin
from quorate_resilience.balancers.zones import ZoneAware, ZoneShare, zone_shares

__all__ = [
    "Balancer",
    "BusyMember",
    "ConsistentHash",
    "Draw",
    "InterleavedRoundRobin",
    "LeastRequest",
    "Member",
    "PeakEwma",
    "PeakLatency",
    "RandomChoice",
    "RoundRobin",
    "SmoothRoundRobin",
    "TimedMember",
    "ZoneAware",
    "ZoneShare",
    "ZonedMember",
    "zone_shares",
]
