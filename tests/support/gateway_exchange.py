"""An exchange between a client and pools whose every event a test causes: connections are made, answer and end when it
says so. The exchange, the pools, the breaker and the policies are the real ones."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quorate_core.clock import ManualClock
from quorate_core.tasks import TaskOwner
from quorate_gateway.matching import CompiledRoute, Endpoint
from quorate_gateway.policies.admission import Admission
from quorate_gateway.proxy.counters import PlaneCounters
from quorate_gateway.proxy.exchange import Exchange
from quorate_gateway.proxy.framing import read_request_head
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.proxy.tunnel import Tunnel
from quorate_gateway.proxy.upstream import EndpointPool, UpstreamConnection
from quorate_resilience import CircuitBreaker, Permit, Refused
from quorate_resilience.shedding import LoadShedder
from support.gateway_snapshots import instance, snapshot


class ScriptedTransport(asyncio.Transport):
    """Keeps what is written; closing it calls `connection_lost` in a later turn of the loop, as a real one does."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = b""
        self.is_reading_paused = False
        self._is_closing = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever kept back."""

    def write(self, data: Any) -> None:
        if not self._is_closing:
            self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        self.is_reading_paused = False

    def abort(self) -> None:
        self.lose(None)

    def close(self) -> None:
        self.lose(None)

    def lose(self, error: Exception | None) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, error)


class ScriptedPool(EndpointPool):
    """Connects when `connect` or `refuse` is called, and not before."""

    __slots__ = ("made",)

    def __init__(self, endpoint: Endpoint, tasks: TaskOwner, clock: ManualClock) -> None:
        super().__init__(endpoint.host, endpoint.port, endpoint.authority, tasks, clock.monotonic_s)
        self.made: list[UpstreamConnection] = []

    def _connect_for_waiters(self) -> None:
        pass

    def connect(self, uses: int = 0) -> UpstreamConnection:
        """A connection is made, or with `uses` one comes free that has served so many."""
        connection = UpstreamConnection(self)
        connection.uses = uses
        connection.connection_made(ScriptedTransport(connection))
        self.made.append(connection)
        self._connected(connection)
        return connection

    def refuse(self) -> None:
        self._not_connected("Connection refused")


class RecordingBreaker(CircuitBreaker):
    """The real one, that remembers its permits."""

    __slots__ = ("permits",)

    def __init__(self) -> None:
        super().__init__()
        self.permits: list[Permit] = []

    def try_acquire(self, now_s: float) -> Permit | Refused:
        acquired = super().try_acquire(now_s)
        if isinstance(acquired, Permit):
            self.permits.append(acquired)
        return acquired


@dataclass
class Ledger:
    """In the place of the balancing: picks in order, and holds each try to one beginning and one end."""

    endpoints: Sequence[Endpoint]
    client: "ScriptedClient"
    running: Counter[Endpoint] = field(default_factory=Counter)
    ends: list[tuple[str, float | None, bool | None]] = field(default_factory=list)
    began_count: int = 0

    def pick(self, _route: object, _destination: object, tried: tuple[Endpoint, ...], _key: bytes) -> Endpoint | None:
        return next((endpoint for endpoint in self.endpoints if endpoint not in tried), None)

    def began(self, endpoint: Endpoint, _now_s: float) -> None:
        assert not self.client.has_answer, "another try after bytes of an answer have gone to the client"
        self.began_count += 1
        self.running[endpoint] += 1

    def ended(self, endpoint: Endpoint, _now_s: float, latency_s: float | None, failed: bool | None) -> None:
        self.running[endpoint] -= 1
        assert self.running[endpoint] >= 0, f"a try of {endpoint.instance_id} ended twice"
        self.ends.append((endpoint.instance_id, latency_s, failed))


class ScriptedClient:
    """A client's connection as the exchange sees it. `last_act` is what the exchange has ended with."""

    forwarded = b"\r\nx-forwarded-for: 192.0.2.7"

    def __init__(self) -> None:
        self.written = b""
        self.has_answer = False
        """Whether anything has been written but the gateway's own 100."""
        self.last_act: str | None = None
        self.refusal: Refusal | None = None
        self.tunnel: Tunnel | None = None
        self.is_paused = False
        self.is_body_held = False
        self.unsent = 0
        """What its buffer holds."""
        self.transport = ScriptedTransport(asyncio.Protocol())

    def write(self, data: bytes) -> None:
        assert self.last_act is None, f"written to after {self.last_act}"
        self.written += data
        self.has_answer = self.has_answer or data != b"HTTP/1.1 100 Continue\r\n\r\n"

    def hold_body(self, held: bool) -> None:
        self.is_body_held = held

    def hold_answer(self) -> bool:
        return self.is_paused

    def unsent_bytes(self) -> int:
        return self.unsent

    def stays_open(self) -> bool:
        return True

    def answered(self, *, keeps_alive: bool, now_s: float) -> None:
        self._end(f"answered, and {'goes on' if keeps_alive else 'closes'}")

    def refuse(self, refusal: Refusal, route: CompiledRoute | None) -> None:
        self.refusal = refusal
        self._end(f"refused: {refusal.rule}")

    def cut_short(self) -> None:
        self._end("cut short")

    def tunnelled(self, upstream: Any, rest: bytes, idle_timeout_s: float, ends_at_s: float | None) -> Tunnel:
        self._end("tunnelled")
        self.tunnel = Tunnel(self, upstream, lambda: 0.0, idle_timeout_s, ends_at_s)
        return self.tunnel

    def tunnel_ended(self, *, cut_off: bool) -> None:
        self.tunnel = None

    def _end(self, act: str) -> None:
        assert self.last_act is None, f"{act} after {self.last_act}"
        self.last_act = act


class Scene:
    """One exchange and all around it. Make it in a running event loop."""

    def __init__(self, route: str, request: bytes, endpoints: int = 3) -> None:
        instances = [instance("order", f"order-{number}", 8_000 + number) for number in range(1, endpoints + 1)]
        compiled = snapshot(f"  - {{match: {{path_prefix: /}}, service: order{route}}}\n", {"order": instances})
        self.clock = ManualClock()
        self.breaker = RecordingBreaker()
        self.route = replace(compiled.routes[0], breaker=self.breaker)
        self.counters = PlaneCounters()
        self.load = LoadShedder()
        self.monotonic_s, self.wall_s = self.clock.monotonic_s, self.clock.wall_s
        self.client = ScriptedClient()
        self.balancing = Ledger(compiled.endpoints["order"], self.client)
        self._tasks = TaskOwner("scene", lambda _error: None)
        self.pools = {
            endpoint.authority: ScriptedPool(endpoint, self._tasks, self.clock) for endpoint in self.balancing.endpoints
        }
        head = read_request_head(request)
        assert head is not None
        self.head = head
        self.rest = request[head.end :]
        self.exchange: Exchange | None = None

    def pool(self, endpoint: Endpoint) -> ScriptedPool:
        return self.pools[endpoint.authority]

    def start(self, admission: "Admission | asyncio.Future[Admission | Refusal] | None" = None) -> Exchange:
        """Begin with what of the body is in the request's bytes."""
        done = self.head.fields.length == len(self.rest)
        self.exchange = Exchange(
            self, self.client, self.head, self.route, self.clock.monotonic_s(), admission or Admission()
        )
        self.exchange.start(self.rest, done)
        return self.exchange

    @property
    def has_ended(self) -> bool:
        return self.client.last_act is not None

    def waiting_pool(self) -> ScriptedPool | None:
        return next((pool for pool in self.pools.values() if pool.waiting), None)

    def serving(self) -> UpstreamConnection | None:
        """The connection that has the exchange."""
        found = [one for pool in self.pools.values() for one in pool.made if one.exchange is not None]
        assert len(found) <= 1, "two connections serve one exchange"
        return found[0] if found else None

    def check_nothing_is_left(self) -> None:
        """Of an exchange that has ended, or whose client has left."""
        assert sum(self.balancing.running.values()) == 0, "a try goes on"
        assert len(self.balancing.ends) == self.balancing.began_count
        assert all(permit.is_settled for permit in self.breaker.permits), "a permit is held"
        assert self.load.active == 0
        assert self.counters.route(self.route.name).active == 0
        for pool in self.pools.values():
            assert pool.waiting == 0, "it waits for a connection"
            assert pool.busy == 0, "it has a connection"
            assert all(one.exchange is None for one in pool.made)
