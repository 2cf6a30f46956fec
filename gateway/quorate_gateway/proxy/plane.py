"""The data plane: all client connections, all pools, the snapshot that they serve from, and one coarse timer.

A snapshot is swapped by one assignment: requests that have begun finish by the old one. Time limits are checked by
`sweep`, a few times a second over all connections, so that a request sets no timer.
"""

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from types import MappingProxyType
from typing import Protocol

import structlog
from quorate_core.clock import Clock, SystemClock
from quorate_core.tasks import TaskOwner
from quorate_resilience import BreakerState
from quorate_resilience.shedding import LoadShedder

from quorate_gateway.matching import Endpoint
from quorate_gateway.proxy.balancing import Balancing
from quorate_gateway.proxy.counters import PlaneCounters
from quorate_gateway.proxy.downstream import ClientConnection
from quorate_gateway.proxy.forwarding import Forwarding
from quorate_gateway.proxy.limits import DEFAULT_LIMITS, ConnectionCounts, ConnectionLimits
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.proxy.tls import Certificate, TlsAcceptor
from quorate_gateway.proxy.upstream import EndpointPool
from quorate_gateway.snapshot import EMPTY, Snapshot

log = structlog.get_logger(__name__)

SWEEP_INTERVAL_S = 0.25
ACCEPT_BACKLOG = 2_048

TakeConnection = Callable[[socket.socket], Awaitable[None]]
"""Serves a connection that was accepted; done when it is opened. Raises OSError when it is gone."""


class Acceptor(Protocol):
    """Accepts connections, until it is closed."""

    def start(self, backlog: int) -> None: ...

    def close(self) -> None: ...


MakeAcceptor = Callable[[socket.socket, TakeConnection, Callable[[], bool]], Acceptor]
"""From a listener, what takes its connections, and whether that is full."""


class DataPlane:
    """Serves `snapshot` to clients once started. `welcome` is what `GET /` answers when no route takes it;
    `trusted_proxies` are networks, for which see `Forwarding`; `zone` is where this gateway stands."""

    def __init__(
        self,
        tasks: TaskOwner,
        welcome: bytes = b"{}\n",
        clock: Clock | None = None,
        limits: ConnectionLimits = DEFAULT_LIMITS,
        trusted_proxies: Sequence[str] = (),
        zone: str = "",
        connections: ConnectionCounts | None = None,
        load: LoadShedder | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self.monotonic_s = clock.monotonic_s
        self.wall_s = clock.wall_s
        self.snapshot: Snapshot = EMPTY
        self.counters = PlaneCounters()
        self.welcome = welcome
        self.draining = False
        self.load = load or LoadShedder()
        self.clients: set[ClientConnection] = set()
        self.limits = limits
        # NB: not `or`, which would take other counts for those of nobody yet.
        self.connections = ConnectionCounts(limits) if connections is None else connections
        self.forwarding = Forwarding(trusted_proxies)
        self._tasks = tasks
        self._pools: dict[str, EndpointPool] = {}
        self.balancing = Balancing(clock.monotonic_s, zone)
        self._server: asyncio.Server | Acceptor | None = None
        self._last_client_left = asyncio.Event()

    async def start(
        self,
        listener: socket.socket,
        certificate: Certificate | None = None,
        make_acceptor: MakeAcceptor | None = None,
    ) -> None:
        """Accept connections from `listener`, by TLS when there is a certificate. `make_acceptor` is for a listener
        that other processes accept from too."""
        acceptor: Acceptor | None = None
        if certificate is not None:
            acceptor = handshakes = TlsAcceptor(
                listener, certificate, lambda refusal: ClientConnection(self, refusal), self._tasks,
                self.limits.head_timeout_s,
            )  # fmt: skip
            if make_acceptor is not None:
                acceptor = make_acceptor(listener, handshakes.take, lambda: handshakes.is_full)
        elif make_acceptor is not None:
            acceptor = make_acceptor(listener, self._take, lambda: False)
        if acceptor is None:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: ClientConnection(self), sock=listener, backlog=ACCEPT_BACKLOG
            )
        else:
            self._server = acceptor
            acceptor.start(ACCEPT_BACKLOG)
        self._tasks.start(self._sweep_forever(), "sweep")

    async def _take(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: ClientConnection(self), connection)

    def swap(self, snapshot: Snapshot) -> None:
        """Serve by `snapshot` from now on."""
        self._watch_breakers(self.monotonic_s())  # of a breaker that goes, its last change is told too
        self.snapshot = snapshot
        self.balancing.swap(snapshot)
        for authority, pool in self._pools.items():
            if authority in snapshot.authorities:
                pool.retired = False
            elif not pool.retired:
                pool.retire()
        self._drop_empty_pools()
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
        refusal = self.connections.opened(client.counted_as)
        if refusal is not None:
            self.counters.connections_refused += 1
        return refusal

    def client_lost(self, client: ClientConnection) -> None:
        self.clients.discard(client)
        self.connections.closed(client.counted_as)
        if not self.clients:
            self._last_client_left.set()

    def pool(self, endpoint: Endpoint) -> EndpointPool:
        found = self._pools.get(endpoint.authority)
        if found is None:
            found = EndpointPool(
                endpoint.host, endpoint.port, endpoint.authority, self._tasks, self.monotonic_s,
                self.balancing.reach_changed,
            )  # fmt: skip
            found.retired = endpoint.authority not in self.snapshot.authorities
            self._pools[endpoint.authority] = found
        return found

    def new_request_id(self) -> bytes:
        return b"%016x" % random.getrandbits(64)

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
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + SWEEP_INTERVAL_S
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.load.measured(max(loop.time() - due_s, 0.0))
            self.sweep()
