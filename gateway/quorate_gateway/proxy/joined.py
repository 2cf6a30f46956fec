"""A tunnel's end towards the upstream: passes on what the upstream's connection says, and ends what was counted for it.

A tunnel lasts long, and loads its endpoint for as long as it lasts. So the try that it came from, and the request in
progress, end with the upstream's connection and not with the 101: a balancer that counts requests sees it, and so does
the shedding of load.
"""

from quorate_core.errors import InvariantViolation

from quorate_gateway.matching import Endpoint
from quorate_gateway.proxy.context import ExchangeContext
from quorate_gateway.proxy.counters import RouteCounters
from quorate_gateway.proxy.tunnel import Tunnel


class Joined:
    """In the exchange's place for an upstream's connection that is in no pool. `tunnel` is set once it is made."""

    __slots__ = ("_counters", "_endpoint", "_latency_s", "_plane", "tunnel")

    def __init__(self, plane: ExchangeContext, counters: RouteCounters, endpoint: Endpoint, latency_s: float) -> None:
        """`latency_s`: of the handshake."""
        self._plane = plane
        self._counters = counters
        self._endpoint = endpoint
        self._latency_s = latency_s
        self.tunnel: Tunnel | None = None

    def received(self, data: bytes) -> None:
        if self.tunnel is not None:
            self.tunnel.received(data)

    def upstream_paused(self, paused: bool) -> None:
        if self.tunnel is not None:
            self.tunnel.upstream_paused(paused)

    def upstream_lost(self, error: Exception | None) -> None:
        self._counters.active -= 1
        self._plane.load.active -= 1
        self._plane.balancing.ended(self._endpoint, self._plane.monotonic_s(), self._latency_s, False)
        if self.tunnel is not None:
            self.tunnel.upstream_lost(error)

    def connected(self, connection: object) -> None:
        raise InvariantViolation("a tunnel was given a connection: it has its own")

    def not_connected(self, reason: str) -> None:
        raise InvariantViolation("a tunnel was told of a connection: it has its own")
