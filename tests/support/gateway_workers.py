"""A gateway of several workers, seen from outside: its processes, who has which connection, and a load that judges."""

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from quorate_core.tasks import TaskOwner
from support.gateway_client import Client
from support.gateway_stack import GatewayStack
from support.gateway_upstream import WAIT_S_MAX
from support.node_processes import until

MODULE = "quorate_gateway.workers"
CONNECT_S_MAX = 5.0


def first_process(stack: GatewayStack) -> int:
    assert stack.process is not None
    return stack.process.pid


def workers(stack: GatewayStack) -> dict[int, int]:
    """Process ids by number; those that are starting too."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            pid = int(path.parent.name)
            if MODULE in words and parent(pid) == first_process(stack) and is_running(pid):
                found[int(words[words.index(MODULE) + 1].rpartition("/")[2])] = pid
    return dict(sorted(found.items()))


def parent(pid: int) -> int:
    return int(_stat(pid)[1])


def is_running(pid: int) -> bool:
    """One that has ended and was not waited for yet, as in a container without an init, is not."""
    try:
        return _stat(pid)[0] not in "ZX"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def shared_files(pid: int, other: int) -> set[str]:
    """Sockets, pipes and files without a name that two processes both have."""
    return _files(pid) & _files(other)


def _files(pid: int) -> set[str]:
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.add(str(path.readlink()))
    return {name for name in found if not name.startswith(("/dev/", "anon_inode:"))}


def private_bytes(pid: int) -> int:
    """What there would be more of with another such process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) * 1024 for size in re.findall(r"^Private_\w+:\s+(\d+) kB$", text, re.MULTILINE))


def owners(stack: GatewayStack) -> dict[int, int]:
    """Which worker has the connection of which client port."""
    by_socket = {name: number for number, pid in workers(stack).items() for name in _files(pid)}
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        mine, peer = (int(words[at].partition(":")[2], 16) for at in (1, 2))
        number = by_socket.get(f"socket:[{words[9]}]")
        if mine == stack.port and peer and number is not None:
            found[peer] = number
    return found


async def connect(stack: GatewayStack, source: str = "127.0.0.1") -> Client:
    """A client of that address."""
    async with asyncio.timeout(CONNECT_S_MAX):
        return Client(*await asyncio.open_connection("127.0.0.1", stack.port, local_addr=(source, 0)))


def own_port(client: Client) -> int:
    name = client.writer.get_extra_info("sockname")
    return int(name[1])


@asynccontextmanager
async def clients(stack: GatewayStack, count: int) -> AsyncIterator[list[Client]]:
    """Connections, begun one after the other, each once a worker has the one before."""
    found: list[Client] = []
    try:
        for _ in range(count):
            found.append(await connect(stack))
            await asyncio.to_thread(until, "a worker has it", lambda: own_port(found[-1]) in owners(stack))
        yield found
    finally:
        for client in found:
            client.reset()


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, number)


@dataclass
class Steady:
    """Clients that ask one request after the other, each on a kept connection, and connect again when it is lost."""

    stack: GatewayStack
    count: int
    path: str = "/orders"
    answered: int = 0
    lost: list[int] = field(default_factory=list)
    """Ports of connections that ended while a request was on them."""
    wrong: list[str] = field(default_factory=list)
    _begun: set[int] = field(default_factory=set)
    _stopping: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Steady"]:
        """It has begun, each client with an answer; at the end every client gets the answer that it waits for."""
        async with TaskOwner("load", self._failed) as tasks:
            running = [tasks.start(self._run(number), f"client-{number}") for number in range(self.count)]
            await self._until(lambda: len(self._begun) == self.count)
            try:
                yield self
            finally:
                self._stopping = True
                async with asyncio.timeout(2 * WAIT_S_MAX):
                    await asyncio.wait(running)

    async def until_answered(self, more: int) -> None:
        """So many more than now."""
        goal = self.answered + more
        await self._until(lambda: self.answered >= goal)

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(3 * WAIT_S_MAX):
            while not holds():
                assert self.wrong == []
                self._changed.clear()
                await self._changed.wait()

    def _failed(self, error: BaseException) -> None:
        self.wrong.append(repr(error))
        self._changed.set()

    async def _run(self, number: int) -> None:
        client = await connect(self.stack)
        while not self._stopping:
            try:
                answer = await client.get(self.path)
            except (EOFError, ConnectionError):
                self.lost.append(own_port(client))
                client.reset()
                client = await connect(self.stack)
                continue
            if answer.status != 200:
                self.wrong.append(f"{answer.status} {answer.body!r}")
            self.answered += 1
            self._begun.add(number)
            self._changed.set()
        client.reset()


async def statuses(found: Sequence[Client], path: str) -> list[int]:
    """Of one request of each, all at once."""
    answers = await asyncio.gather(*(client.get(path) for client in found))
    return [answer.status for answer in answers]


def is_refused(port: int) -> bool:
    """Whether nobody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def change_all_the_time(stack: GatewayStack, routes: str, swaps: int, changes_per_s: int) -> int:
    """`swaps` documents, one a second, each with a SIGHUP to every process, and changes of the instance `order-1` all
    the while. Returns how many of these there were."""
    url = f"{stack.node.url}/v1/registry/default/services/order/instances/order-1"
    spec = stack.http.get(url).raise_for_status().json()
    changed, began_s = 0, time.monotonic()
    for swap in range(swaps):
        stack.publish(
            f"routes:\n{routes}  - {{name: spare-{swap}, match: {{path: /spare}}, service: order}}\n", wait=False
        )
        for pid in (first_process(stack), *workers(stack).values()):
            kill(pid, signal.SIGHUP)
        for change in range(changes_per_s):
            due_s = began_s + swap + change / changes_per_s
            if time.monotonic() - due_s > 1:
                break  # the next second is due
            body = {"host": spec["host"], "port": spec["port"], "ttl_s": 3_600, "weight": 100 + change % 2}
            stack.http.put(url, json=body).raise_for_status()
            changed += 1
            time.sleep(max(due_s - time.monotonic(), 0.0))
    return changed
