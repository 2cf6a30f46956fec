"""What a call of a service by its name costs, beside httpx's own of the same address: `python -m benchmarks.calls`.

Processor time of this process, with a server in another one that answers two bytes. The registry's copy is given, so
what is measured is the choice of an instance, breaker, budget, deadline and trace, and not discovery.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence

import httpx
from quorate_sdk.calls.services import Services
from quorate_sdk.service_http import ServiceTransport, connections, http_client
from quorate_sdk.wire import Instance, InstanceStatus

from benchmarks.run import tell

CALLS = 2_000
ROUNDS = 5
WARM_UP_CALLS = 200
INSTANCES = 3
SERVER = """
import asyncio

async def answer(reader, writer):
    try:
        while True:
            await reader.readuntil(b"\\r\\n\\r\\n")
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    except (EOFError, OSError):
        writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


class KnownInstances:
    """A copy of the registry with INSTANCES of one service, all at one address."""

    namespace = "default"
    revision = 1

    def __init__(self, port: int) -> None:
        self._instances = tuple(
            Instance(
                namespace="default", service="inventory", id=f"inventory-{number}", host="127.0.0.1", port=port,
                scheme="http", weight=100, zone="", version="", metadata={}, status=InstanceStatus.UP, ttl_s=10,
                revision=1,
            )
            for number in range(INSTANCES)
        )  # fmt: skip

    def instances(self, _service: str) -> Sequence[Instance]:
        return self._instances

    async def ready(self, timeout_s: float) -> bool:
        return True


async def cost_us(client: httpx.AsyncClient, url: str, calls: int) -> float:
    """Microseconds of processor time a call."""
    async with client:
        for _ in range(WARM_UP_CALLS):
            await client.get(url)
        began_s = time.process_time()
        for _ in range(calls):
            (await client.get(url)).raise_for_status()
        return (time.process_time() - began_s) / calls * 1e6


async def measure(port: int, calls: int, rounds: int) -> None:
    known = KnownInstances(port)
    plain, named = [], []
    for _ in range(rounds):
        plain.append(await cost_us(http_client(connections()), f"http://127.0.0.1:{port}/", calls))
        named.append(await cost_us(http_client(ServiceTransport(known, Services(known))), "http://inventory/", calls))
    tell(
        f"httpx's own call: {min(plain):.0f} us; by a service's name: {min(named):.0f} us (the best of {rounds} rounds)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 - it is ours
        try:
            assert server.stdout is not None  # noqa: S101 - it is a pipe
            asyncio.run(measure(int(server.stdout.readline()), options.calls, options.rounds))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
