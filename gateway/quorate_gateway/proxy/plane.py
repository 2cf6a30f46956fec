"""The data plane: all client connections, all pools, the snapshot that they serve from, and one coarse timer.

A snapshot is swapped by one assignment: requests that have begun finish by the old one. Time limits are checked by
`sweep`, a few times a second over all connections, so that a request sets no timer.
"""

import asyncio
import random
import socket
from collections.abc import Iterable
from types import MappingProxyType

import structlog
from quorate_core.clock import Clock, SystemClock
from quorate_core.errors import Retry
from quorate_core.tasks import TaskOwner
from quorate_resilience import BreakerState, RoundRobin

from quorate_gateway.matching import CompiledRoute, Endpoint
from quorate_gateway.proxy.counters import PlaneCounters
from quorate_gateway.proxy.downstream import ClientConnection
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.proxy.upstream import EndpointPool
from quorate_gateway.snapshot import EMPTY, Snapshot

log = structlog.get_logger(__name__)

CLIENT_CONNECTIONS_MAX = 10_000
SWEEP_INTERVAL_S = 0.25
ACCEPT_BACKLOG = 2_048


class DataPlane:
    """Serves `snapshot` to clients once started. `welcome` is what `GET /` answers when no route takes it."""

    def __init__(self, tasks: TaskOwner, welcome: bytes = b"{}\n", clock: Clock | None = None) -> None:
        clock = clock or SystemClock()
        self.monotonic_s = clock.monotonic_s
        self.wall_s = clock.wall_s
        self.snapshot: Snapshot = EMPTY
        self.counters = PlaneCounters()
        self.welcome = welcome
        self.draining = False
        self.clients: set[ClientConnection] = set()
        self.client_connections_max = CLIENT_CONNECTIONS_MAX
        self._tasks = tasks
        self._pools: dict[str, EndpointPool] = {}
        self._balancers: dict[str, RoundRobin[Endpoint]] = {}
        self._server: asyncio.Server | None = None
        self._last_client_left = asyncio.Event()

    async def start(self, listener: socket.socket) -> None:
        """Accept connections from `listener`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ClientConnection(self), sock=listener, backlog=ACCEPT_BACKLOG)
        self._tasks.start(self._sweep_forever(), "sweep")

    def swap(self, snapshot: Snapshot) -> None:
        """Serve by `snapshot` from now on."""
        self._watch_breakers(self.monotonic_s())  # of a breaker that goes, its last change is told too
        self.snapshot = snapshot
        for authority, pool in self._pools.items():
            if authority in snapshot.authorities:
                pool.retired = False
            elif not pool.retired:
                pool.retire()
        self._drop_empty_pools()
        for service in self._balancers.keys() - snapshot.endpoints.keys():
            del self._balancers[service]
        self.counters.keep_routes(frozenset(route.name for route in snapshot.routes))

    async def drain(self, timeout_s: float) -> None:
        """Accept nothing new, let running requests finish for up to `timeout_s` seconds, then close everything."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for client in tuple(self.clients):
            client.close_when_answered()
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_no_client()
        except TimeoutError:
            log.warning("drain_cut_short", clients=len(self.clients), after_s=timeout_s)
            for client in tuple(self.clients):
                client.transport.abort()
            await self._until_no_client()
        for pool in self._pools.values():
            pool.retire()

    async def _until_no_client(self) -> None:
        while self.clients:
            self._last_client_left.clear()
            await self._last_client_left.wait()

    def sweep(self) -> None:
        """Check every time limit once."""
        now_s = self.monotonic_s()
        for client in tuple(self.clients):
            client.expire(now_s)
        self._watch_breakers(now_s)
        for pool in self._pools.values():
            pool.drop_old(now_s)
        self._drop_empty_pools()

    @property
    def pools(self) -> MappingProxyType[str, EndpointPool]:
        """By authority; also those whose endpoint has left, until their last request has ended."""
        return MappingProxyType(self._pools)

    # What client connections and exchanges need.

    def admit(self, client: ClientConnection) -> Refusal | None:
        """Why a new connection is refused, or None."""
        self.clients.add(client)
        self.counters.connections_accepted += 1
        if len(self.clients) <= self.client_connections_max:
            return None
        self.counters.connections_refused += 1
        detail = f"the gateway serves {self.client_connections_max} connections, and these are taken"
        return Refusal("too-many-connections", 503, detail, Retry.SAFE)

    def client_lost(self, client: ClientConnection) -> None:
        self.clients.discard(client)
        if not self.clients:
            self._last_client_left.set()

    def pick(self, route: CompiledRoute, tried: tuple[Endpoint, ...]) -> Endpoint | None:
        """Whose turn it is, among those that were not tried; who could not be connected to just now comes last."""
        candidates = self.snapshot.endpoints.get(route.service, ())
        balancer = self._balancers.get(route.service)
        if balancer is None:
            balancer = self._balancers[route.service] = RoundRobin()
        picked = balancer.pick(candidates, tried)
        if picked is None:
            return None
        pool = self._pools.get(picked.authority)
        if pool is None or not pool.avoided_until_s:
            return picked
        avoided = self._avoided(candidates)
        if picked not in avoided:
            return picked
        return balancer.pick(candidates, (*tried, *avoided)) or picked

    def pool(self, endpoint: Endpoint) -> EndpointPool:
        found = self._pools.get(endpoint.authority)
        if found is None:
            found = EndpointPool(endpoint.host, endpoint.port, endpoint.authority, self._tasks, self.monotonic_s)
            found.retired = endpoint.authority not in self.snapshot.authorities
            self._pools[endpoint.authority] = found
        return found

    def new_request_id(self) -> bytes:
        return b"%016x" % random.getrandbits(64)

    def _avoided(self, candidates: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        now_s = self.monotonic_s()
        return tuple(
            endpoint
            for endpoint in candidates
            if (pool := self._pools.get(endpoint.authority)) is not None and pool.avoided_until_s > now_s
        )

    def _drop_empty_pools(self) -> None:
        gone = [authority for authority, pool in self._pools.items() if pool.retired and pool.is_empty]
        for authority in gone:
            del self._pools[authority]

    def _watch_breakers(self, now_s: float) -> None:
        for route in self.snapshot.routes:
            if route.breaker is None:
                continue
            route.breaker.advance(now_s)
            for change in route.breaker.take_transitions():
                calls, failed, slow = change.counts
                tell = log.warning if change.state is BreakerState.OPEN else log.info
                tell("circuit_breaker", route=route.name, state=change.state.value, former=change.former.value,
                     calls=calls, failed=failed, slow=slow)  # fmt: skip

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.sweep()
