"""Decisions that keep calls healthy, as pure objects: time, randomness and ids are arguments, nothing here waits.

`RoundRobin` picks the endpoint of the next request; the gateway and the SDK share it.
"""

from quorate_resilience.balancers import RoundRobin

__all__ = ["RoundRobin"]
