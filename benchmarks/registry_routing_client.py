"""How long a gateway still asks an instance that has been deregistered: the client, and the service's two instances.

    python -P -m benchmarks.registry_routing_client --gateway URL --registry URL --seconds 30

Both instances are in this process, so that it sees each request that reaches one of them. CLIENTS connections ask the
gateway all the time, each every REQUEST_INTERVAL_S. One instance after the other is deregistered; its figure runs from
the moment in which the DELETE was written to the last moment in which a request reached it. SETTLED_S after the answer
to the DELETE it stops to listen and closes its connections, as a service does that ends: a request that reaches it
later, or any answer that is not a right one, is a failure. Then it listens and is registered again, and when the
gateway asks it again, it is the other one's turn.

The resolution is that of the requests: an instance is asked about every REQUEST_INTERVAL_S / CLIENTS * 2.

At the end it prints the line that `load_figures` reads; a "request" of it is a deregistration.
"""

import argparse
import asyncio
import gc
import json
import sys
import time
from collections.abc import Sequence

import uvloop

from benchmarks.load_figures import figures_line
from benchmarks.open_loop import latency_marks
from benchmarks.raw_http import STATUS_OK, Connection, HttpFailed, address_of, request_of
from benchmarks.registry_client import SUCCESSES

SERVICE = "routed"
PATH = f"/{SERVICE}/x"
ROUTES = f"""\
routes:
  - name: {SERVICE}
    match: {{path_prefix: /{SERVICE}}}
    service: {SERVICE}
    retry: {{attempts: 0}}
    circuit_breaker: off
    outlier_ejection: off
"""
"""Nothing that would hide a request to an instance that is gone."""
INSTANCES = 2
CLIENTS = 4
REQUEST_INTERVAL_S = 0.002
SETTLED_S = 0.2
"""After it nothing may reach an instance that was deregistered."""
ENDED_S = 0.05
"""For so long it is really gone."""
ROUTED_S_MAX = 10.0
POLL_S = 0.001
TTL_S = 3_600
HEAD_BYTES_MAX = 16_384
REASONS_SHOWN_MAX = 5


class Instance:
    """One instance of the service. `last_s`: when a request reached it last; 0 before the first."""

    def __init__(self, number: int) -> None:
        self.id = f"{SERVICE}-{number}"
        said = json.dumps({"by": self.id}).encode()
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said)
        self.port = 0
        self.last_s = 0.0
        self.asked = asyncio.Event()
        self.connections: set[asyncio.Transport] = set()
        self._server: asyncio.AbstractServer | None = None

    async def listen(self) -> None:
        """On the port that it had before, if it had one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Served(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def end(self) -> None:
        """No listener, and no connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.close()


class _Served(asyncio.Protocol):
    """Requests without bodies, which is all that is asked for here."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's protocol gets a Transport
        self._instance.connections.add(self._transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > HEAD_BYTES_MAX:
            self._transport.abort()
        while b"\r\n\r\n" in self._received:
            _, _, self._received = self._received.partition(b"\r\n\r\n")
            self._instance.last_s = time.perf_counter()
            self._instance.asked.set()
            self._transport.write(self._instance.answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._instance.connections.discard(self._transport)


class Run:
    """`late`: requests that reached an instance that nobody may have asked any more, told by its id."""

    def __init__(self, gateway_url: str, registry_url: str) -> None:
        self._gateway_url = gateway_url
        self._registry_url = registry_url
        self._instances = [Instance(number) for number in range(1, INSTANCES + 1)]
        self._is_over = False
        self.latencies_s: list[float] = []
        self.requests = 0
        self.wrong: list[str] = []
        self.late: list[str] = []

    async def run(self, seconds: float) -> str:
        """The line of figures; where something failed, reasons go before it."""
        began_s = time.perf_counter()
        registry = await Connection.connect(self._registry_url)
        try:
            for instance in self._instances:
                await instance.listen()
                await self._register(registry, instance)
            await self._until_answered()
            async with asyncio.TaskGroup() as tasks:
                for _ in range(CLIENTS):
                    tasks.create_task(self._ask_all_the_time())
                began_s = time.perf_counter()
                try:
                    await self._take_turns(registry, began_s + seconds)
                finally:
                    self._is_over = True
            took_s = time.perf_counter() - began_s
            for instance in self._instances:
                await self._call(registry, "DELETE", instance, b"")
        finally:
            registry.close()
            for instance in self._instances:
                instance.end()
        return self._report(took_s)

    async def _take_turns(self, registry: Connection, ends_s: float) -> None:
        turn = 0
        while not (self.wrong or self.late) and (time.perf_counter() < ends_s or not turn):
            instance = self._instances[turn % len(self._instances)]
            instance.asked.clear()
            async with asyncio.timeout(ROUTED_S_MAX):
                await instance.asked.wait()
            self.latencies_s.append(await self._deregister(registry, instance))
            await instance.listen()
            await self._register(registry, instance)
            turn += 1

    async def _deregister(self, registry: Connection, instance: Instance) -> float:
        """For how long it was asked after the DELETE was sent; it has ended then."""
        began_s = time.perf_counter()
        await self._call(registry, "DELETE", instance, b"")
        await asyncio.sleep(SETTLED_S)
        last_s = instance.last_s
        instance.end()
        settled_s = time.perf_counter()
        await asyncio.sleep(ENDED_S)
        if instance.last_s > settled_s:
            self.late.append(f"{instance.id} was asked {instance.last_s - began_s:.3f} s after it was deregistered")
        return max(0.0, last_s - began_s)

    async def _register(self, registry: Connection, instance: Instance) -> None:
        spec = {"host": "127.0.0.1", "port": instance.port, "ttl_s": TTL_S}
        await self._call(registry, "PUT", instance, json.dumps(spec).encode())

    async def _call(self, registry: Connection, method: str, instance: Instance, body: bytes) -> None:
        path = f"/v1/registry/default/services/{SERVICE}/instances/{instance.id}"
        status, answer = await registry.send(request_of(self._registry_url + path, body, method))
        if status not in SUCCESSES:
            raise HttpFailed(f"{method} of {instance.id} was answered with {status}: {answer[:300]!r}")

    async def _until_answered(self) -> None:
        """Until the gateway has the route and somebody to ask. Raises TimeoutError."""
        connection = await Connection.connect(self._gateway_url)
        async with asyncio.timeout(ROUTED_S_MAX):
            while (await connection.send(self._request()))[0] != STATUS_OK:  # noqa: ASYNC110 - it is another process that has to get there
                await asyncio.sleep(POLL_S)
        connection.close()

    async def _ask_all_the_time(self) -> None:
        connection = await Connection.connect(self._gateway_url)
        request, right = self._request(), {each.id for each in self._instances}
        try:
            while not self._is_over and not self.wrong:
                status, answer = await connection.send(request)
                self.requests += 1
                if status != STATUS_OK or json.loads(answer).get("by") not in right:
                    self.wrong.append(f"a request was answered with {status}: {answer[:300]!r}")
                await asyncio.sleep(REQUEST_INTERVAL_S)
        except (HttpFailed, ValueError) as error:
            self.wrong.append(str(error))
        finally:
            connection.close()

    def _request(self) -> bytes:
        _, port = address_of(self._gateway_url)
        return f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()

    def _report(self, took_s: float) -> str:
        line = figures_line(
            len(self.latencies_s), took_s, latency_marks(self.latencies_s),
            {"bad_statuses": len(self.wrong), "read_errors": len(self.late)}, requests_meanwhile=self.requests,
        )  # fmt: skip
        return "\n".join([*self.wrong[:REASONS_SHOWN_MAX], *self.late[:REASONS_SHOWN_MAX], line])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry_routing_client")
    parser.add_argument("--gateway", required=True, help="its URL for clients")
    parser.add_argument("--registry", required=True, help="URL of the node that takes the deregistrations")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args(arguments)
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            said = runner.run(Run(given.gateway, given.registry).run(given.seconds))
    except (HttpFailed, OSError, TimeoutError) as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(said + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
