"""Connections to endpoints: a keep-alive pool for each, bounded, that hands connections to exchanges.

Theory of operation. A connection is *connecting*, *busy* (with one exchange), *idle* or gone. An exchange that asks a
pool gets an idle connection at once, or becomes a waiter; for each waiter that no connecting one is meant for, a new
connection is begun while the pool is under CONNECTIONS_MAX. A connection that comes free or is made goes to the oldest
waiter. A connection that cannot be made fails the oldest waiter, which may then go to another endpoint.

Idle connections are dropped IDLE_S_MAX after their last use, before the upstream would close them (uvicorn does after
5 s), and at once when the upstream closes or sends anything unasked. A pool is *retired* when its endpoint leaves the
snapshot: idle connections are closed, busy ones finish and are closed then.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

from quorate_core.tasks import TaskOwner

CONNECTIONS_MAX = 1_024
"""A pool's, and that of its waiters: Envoy's defaults."""
WAITERS_MAX = 1_024
IDLE_S_MAX = 4.0
CONNECT_TIMEOUT_S = 1.0
AVOID_S = 1.0
"""How long an endpoint that could not be connected to is left to the others, while there are others."""
WRITE_BUFFER_BYTES_MAX = 262_144


class Waiting(Protocol):
    """What the pool needs of an exchange."""

    def connected(self, connection: "UpstreamConnection") -> None: ...

    def not_connected(self, reason: str) -> None: ...

    def received(self, data: bytes) -> None: ...

    def upstream_lost(self, error: Exception | None) -> None: ...

    def upstream_paused(self, paused: bool) -> None: ...


class PoolExhausted(Exception):
    """CONNECTIONS_MAX are busy and WAITERS_MAX wait."""


class UpstreamConnection(asyncio.Protocol):
    """One connection. `exchange` is whom it serves now; `uses` counts the exchanges before that one."""

    __slots__ = ("exchange", "idle_since_s", "pool", "transport", "uses")

    def __init__(self, pool: "EndpointPool") -> None:
        self.pool = pool
        self.exchange: Waiting | None = None
        self.idle_since_s = 0.0
        self.uses = 0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        self.pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            # Nobody asked: whatever this is, it must never be taken for the answer to the next request.
            self.pool.discard(self)
        else:
            self.exchange.received(data)

    def connection_lost(self, error: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        self.pool.lost(self)
        if exchange is not None:
            exchange.upstream_lost(error)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.upstream_paused(True)

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.upstream_paused(False)


class EndpointPool:
    """The connections of one endpoint. `monotonic_s` is the clock's reading; `reach_changed` is told the authority and
    until when it is better avoided, when it could not be connected to; or 0, when it can be again."""

    __slots__ = ("_connecting", "_idle", "_monotonic_s", "_open", "_reach_changed", "_tasks", "_tunnels", "_waiters",
                 "authority", "avoided_until_s", "connect_failures", "connect_timeout_s", "connections_max", "host",
                 "port", "retired", "waiters_max")  # fmt: skip

    def __init__(
        self,
        host: str,
        port: int,
        authority: str,
        tasks: TaskOwner,
        monotonic_s: Callable[[], float],
        reach_changed: Callable[[str, float], None] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.authority = authority
        self.retired = False
        self.avoided_until_s = 0.0
        self.connect_failures = 0
        self.connect_timeout_s = CONNECT_TIMEOUT_S
        self.connections_max = CONNECTIONS_MAX
        self.waiters_max = WAITERS_MAX
        self._tasks = tasks
        self._monotonic_s = monotonic_s
        self._reach_changed = reach_changed
        self._idle: deque[UpstreamConnection] = deque()
        """The last used is at the right, and is used first, so that those at the left grow old."""
        self._open: set[UpstreamConnection] = set()
        """Idle and busy ones."""
        self._tunnels: set[UpstreamConnection] = set()
        """Detached ones: they serve nobody else any more, but the endpoint still has them."""
        self._connecting = 0
        self._waiters: deque[Waiting] = deque()

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def busy(self) -> int:
        return len(self._open) - len(self._idle)

    @property
    def connecting(self) -> int:
        return self._connecting

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def is_empty(self) -> bool:
        return not (self._open or self._tunnels or self._connecting or self._waiters)

    def acquire(self, exchange: Waiting, *, fresh: bool = False) -> UpstreamConnection | None:
        """An idle connection, or None: `exchange` will be told. With `fresh` idle ones are not trusted.

        Raises PoolExhausted.
        """
        while self._idle and not fresh:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                connection.exchange = exchange
                return connection
        if len(self._waiters) >= self.waiters_max:
            raise PoolExhausted
        if self._idle and len(self._open) + len(self._tunnels) >= self.connections_max:
            self.discard(self._idle.popleft())  # makes room for a fresh one
        self._waiters.append(exchange)
        self._connect_for_waiters()
        return None

    def forget(self, exchange: Waiting) -> None:
        """`exchange` waits no longer."""
        if exchange in self._waiters:
            self._waiters.remove(exchange)

    def release(self, connection: UpstreamConnection, now_s: float) -> None:
        """`connection` has served its exchange whole, and may serve another."""
        connection.exchange = None
        connection.uses += 1
        if self.retired or connection.transport.is_closing():
            self.discard(connection)
            return
        if self._waiters:
            self._hand(connection)
            return
        connection.idle_since_s = now_s
        self._idle.append(connection)

    def discard(self, connection: UpstreamConnection) -> None:
        """Close without waiting for anything; its exchange, if any, is not told."""
        connection.exchange = None
        connection.transport.abort()

    def detach(self, connection: UpstreamConnection) -> None:
        """`connection` belongs for good to whom it serves: a tunnel. It counts as one of the endpoint's until it ends,
        and is not closed when the pool is retired."""
        self._open.discard(connection)
        self._tunnels.add(connection)

    def opened(self, connection: UpstreamConnection) -> None:
        self._open.add(connection)

    def lost(self, connection: UpstreamConnection) -> None:
        self._open.discard(connection)
        self._tunnels.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._connect_for_waiters()

    def retire(self) -> None:
        self.retired = True
        self.close_idle()

    def close_idle(self) -> None:
        while self._idle:
            self.discard(self._idle.pop())

    def drop_old(self, now_s: float) -> None:
        """Close what has been idle for too long."""
        while self._idle and now_s - self._idle[0].idle_since_s >= IDLE_S_MAX:
            self.discard(self._idle.popleft())

    def _connect_for_waiters(self) -> None:
        taken = len(self._open) + len(self._tunnels)
        while self._connecting < len(self._waiters) and self._connecting + taken < self.connections_max:
            self._connecting += 1
            self._tasks.start(self._connect(), f"connect-{self.authority}")

    async def _connect(self) -> None:
        try:
            connection = await self._open_connection()
        except OSError as error:
            self._connecting -= 1
            self._not_connected(str(error) if isinstance(error, TimeoutError) else error.strerror or str(error))
        except BaseException:
            self._connecting -= 1
            raise
        else:
            self._connecting -= 1
            self._connected(connection)
        self._connect_for_waiters()

    async def _open_connection(self) -> UpstreamConnection:
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(lambda: UpstreamConnection(self), self.host, self.port)
        except TimeoutError as error:
            raise TimeoutError(f"no connection within {self.connect_timeout_s} s") from error
        if connection.transport.is_closing():
            raise ConnectionResetError("the connection was closed at once")
        return connection

    def _connected(self, connection: UpstreamConnection) -> None:
        if self.avoided_until_s:
            self._avoid_until(0.0)
        if self._waiters:
            self._hand(connection)
        elif self.retired:
            self.discard(connection)
        else:
            connection.idle_since_s = self._monotonic_s()
            self._idle.append(connection)

    def _hand(self, connection: UpstreamConnection) -> None:
        exchange = self._waiters.popleft()
        connection.exchange = exchange
        exchange.connected(connection)

    def _not_connected(self, reason: str) -> None:
        self.connect_failures += 1
        self._avoid_until(self._monotonic_s() + AVOID_S)
        if self._waiters:
            self._waiters.popleft().not_connected(reason)

    def _avoid_until(self, until_s: float) -> None:
        self.avoided_until_s = until_s
        if self._reach_changed is not None:
            self._reach_changed(self.authority, until_s)
