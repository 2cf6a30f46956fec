"""The pool of an endpoint's connections: never more than its limit, and each exchange is told exactly once."""

import asyncio
from collections.abc import Callable
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.clock import ManualClock
from quorate_core.tasks import TaskOwner
from quorate_gateway.proxy.upstream import AVOID_S, IDLE_S_MAX, EndpointPool, PoolExhausted, UpstreamConnection
from support.gateway_exchange import ScriptedTransport

CONNECTIONS_MAX = 3
WAITERS_MAX = 4


class Asker:
    """An exchange, as far as a pool sees it."""

    def __init__(self) -> None:
        self.told = 0
        self.connection: UpstreamConnection | None = None
        self.reason: str | None = None

    def connected(self, connection: UpstreamConnection) -> None:
        self.told += 1
        self.connection = connection

    def not_connected(self, reason: str) -> None:
        self.told += 1
        self.reason = reason

    def received(self, data: bytes) -> None:
        raise AssertionError("nothing is sent here")

    def upstream_lost(self, error: Exception | None) -> None:
        self.connection = None

    def upstream_paused(self, paused: bool) -> None:
        raise AssertionError("nothing is sent here")


class HeldPool(EndpointPool):
    """The real pool; its connections are made, or refused, when a test says so."""

    __slots__ = ("attempts",)

    def __init__(self, tasks: TaskOwner, clock: ManualClock, changes: list[tuple[str, float]]) -> None:
        super().__init__(
            "127.0.0.1", 1, "127.0.0.1:1", tasks, clock.monotonic_s,
            lambda authority, until_s: changes.append((authority, until_s)),
        )  # fmt: skip
        self.connections_max, self.waiters_max = CONNECTIONS_MAX, WAITERS_MAX
        self.attempts: list[asyncio.Future[None]] = []

    async def _open_connection(self) -> UpstreamConnection:
        made = asyncio.get_running_loop().create_future()
        self.attempts.append(made)
        await made
        connection = UpstreamConnection(self)
        connection.connection_made(ScriptedTransport(connection))
        return connection


class Scene:
    """A pool, and all that have asked it."""

    def __init__(self, tasks: TaskOwner) -> None:
        self.clock = ManualClock()
        self.changes: list[tuple[str, float]] = []
        self.pool = HeldPool(tasks, self.clock, self.changes)
        self.askers: list[Asker] = []
        self.tunnels: list[UpstreamConnection] = []

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    def held(self) -> list[Asker]:
        return [one for one in self.askers if one.connection is not None]

    def waiting(self) -> list[Asker]:
        return [one for one in self.askers if one.told == 0]

    def ask(self, *, fresh: bool = False) -> None:
        asker = Asker()
        try:
            connection = self.pool.acquire(asker, fresh=fresh)
        except PoolExhausted:
            assert self.pool.waiting == WAITERS_MAX
            return
        self.askers.append(asker)
        if connection is not None:
            asker.connected(connection)

    def forget(self) -> None:
        for asker in self.waiting()[:1]:
            self.pool.forget(asker)
            asker.told = -1

    def connect(self) -> None:
        for attempt in [one for one in self.pool.attempts if not one.done()][:1]:
            attempt.set_result(None)

    def refuse(self) -> None:
        for attempt in [one for one in self.pool.attempts if not one.done()][:1]:
            attempt.set_exception(ConnectionRefusedError(111, "Connection refused"))

    def release(self) -> None:
        for asker in self.held()[:1]:
            connection, asker.connection = cast("UpstreamConnection", asker.connection), None
            self.pool.release(connection, self.clock.monotonic_s())

    def lose(self) -> None:
        for asker in self.held()[-1:]:
            cast("UpstreamConnection", asker.connection).transport.abort()

    def tunnel(self) -> None:
        for asker in self.held()[:1]:
            connection, asker.connection = cast("UpstreamConnection", asker.connection), None
            self.pool.detach(connection)
            self.tunnels.append(connection)

    def end_tunnel(self) -> None:
        for connection in self.tunnels[:1]:
            connection.transport.abort()
            self.tunnels.remove(connection)

    def grow_old(self) -> None:
        self.clock.advance(IDLE_S_MAX)
        self.pool.drop_old(self.clock.monotonic_s())
        assert self.pool.idle == 0

    def check(self) -> None:
        pool = self.pool
        used = len(pool._open) + len(pool._tunnels) + pool.connecting
        assert used <= CONNECTIONS_MAX
        assert pool.waiting == len(self.waiting()) <= WAITERS_MAX
        assert all(asker.told <= 1 for asker in self.askers), "told twice"
        if pool.waiting:
            assert used == CONNECTIONS_MAX or pool.connecting >= pool.waiting, "it waits, and nothing is under way"


ACTS: dict[str, Callable[[Scene], None]] = {
    "ask": Scene.ask, "ask for a fresh one": lambda scene: scene.ask(fresh=True), "forget": Scene.forget,
    "connect": Scene.connect, "refuse": Scene.refuse, "release": Scene.release, "lose": Scene.lose,
    "tunnel": Scene.tunnel, "end a tunnel": Scene.end_tunnel, "grow old": Scene.grow_old,
}  # fmt: skip


async def act(names: list[str]) -> None:
    async with TaskOwner("pool", lambda _error: None) as tasks:
        scene = Scene(tasks)
        for name in names:
            ACTS[name](scene)
            await scene.settle()
            scene.check()
        scene.pool.retire()
        while scene.waiting() or scene.held() or scene.tunnels or scene.pool.connecting:
            for name in ("connect", "release", "end a tunnel"):
                ACTS[name](scene)
            await scene.settle()
            scene.check()
        await scene.settle()
        assert scene.pool.is_empty
        assert all(abs(asker.told) == 1 for asker in scene.askers)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*ACTS, "ask", "ask", "connect"]), max_size=40))
def test_the_limit_holds_and_everybody_is_told_once_whatever_happens(names: list[str]) -> None:
    asyncio.run(act(names))


async def test_a_tunnel_counts_as_a_connection_until_it_ends_and_outlives_its_pool() -> None:
    async with TaskOwner("pool", lambda _error: None) as tasks:
        scene = Scene(tasks)
        for name in ("ask", "connect", "tunnel") * CONNECTIONS_MAX:
            ACTS[name](scene)
            await scene.settle()
        scene.ask()
        await scene.settle()
        assert (scene.pool.connecting, scene.pool.waiting, scene.pool.busy) == (0, 1, 0)
        scene.end_tunnel()
        await scene.settle()
        assert scene.pool.connecting == 1
        scene.forget()
        scene.connect()
        scene.pool.retire()
        await scene.settle()
        assert not scene.pool.is_empty
        assert not any(one.transport.is_closing() for one in scene.tunnels)
        for _ in scene.tunnels.copy():
            scene.end_tunnel()
        await scene.settle()
        assert scene.pool.is_empty


async def test_who_balances_is_told_that_an_endpoint_cannot_be_reached_and_that_it_can_again() -> None:
    async with TaskOwner("pool", lambda _error: None) as tasks:
        scene = Scene(tasks)
        for name in ("ask", "refuse", "ask", "refuse", "ask", "connect", "ask", "connect"):
            ACTS[name](scene)
            await scene.settle()
        until_s = scene.clock.monotonic_s() + AVOID_S
        assert scene.changes == [("127.0.0.1:1", until_s)] * 2 + [("127.0.0.1:1", 0.0)]
        assert [asker.reason for asker in scene.askers] == ["Connection refused"] * 2 + [None] * 2


async def test_an_idle_connection_makes_room_for_the_fresh_one_that_is_asked_for() -> None:
    async with TaskOwner("pool", lambda _error: None) as tasks:
        scene = Scene(tasks)
        for name in (*["ask"] * CONNECTIONS_MAX, *["connect"] * CONNECTIONS_MAX, *["release"] * CONNECTIONS_MAX):
            ACTS[name](scene)
            await scene.settle()
        assert scene.pool.idle == CONNECTIONS_MAX
        scene.ask(fresh=True)
        await scene.settle()
        assert (scene.pool.idle, scene.pool.connecting) == (CONNECTIONS_MAX - 1, 1)
        scene.connect()
        await scene.settle()
        assert scene.askers[-1].connection is not None
        assert scene.askers[-1].connection.uses == 0


async def test_bytes_that_nobody_asked_for_end_an_idle_connection() -> None:
    async with TaskOwner("pool", lambda _error: None) as tasks:
        scene = Scene(tasks)
        for name in ("ask", "connect", "release"):
            ACTS[name](scene)
            await scene.settle()
        [connection] = scene.pool._open
        assert scene.pool.idle == 1
        connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        scene.ask()
        await scene.settle()
        assert scene.askers[-1].connection is None, "it waits for another one"
        assert scene.pool.idle == 0
