"""Three members of the real thing in one process: RaftDriver over TCP on loopback and files on disk, a store on each.

    async with raft_stores(folder) as members: ...

`members[0].store` is a port.Store like any other. A member can be stopped (as a process ends) and started again.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from quorate_core.clock import Clock, SystemClock
from quorate_core.errors import QuorateError
from quorate_core.serving import bound_address, open_listener
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_raft import DriverConfig, FileDisk, Membership, RaftDriver, TcpConfig, TcpNetwork
from quorate_store.raft_engine import RaftStore
from quorate_store.state import StateMachine

CLUSTER_ID = "store-tests"
SECRET = "a secret of the tests, long enough and of many letters 0123456789"
READY_S = 20.0


class RaftMember:
    """One member: its files stay, its process can come and go."""

    def __init__(self, name: str, folder: Path, peers: dict[str, HostPort], clock: Clock) -> None:
        self.name = name
        self._folder = folder
        self._peers = peers
        self._clock = clock
        self.failures: list[BaseException] = []
        self._tasks: TaskOwner | None = None
        self.machine: StateMachine
        self.driver: RaftDriver
        self.store: RaftStore

    @property
    def is_running(self) -> bool:
        return self._tasks is not None

    async def start(self, listener: socket.socket | None = None) -> None:
        listener = listener or open_listener(self._peers[self.name], "peer")
        self._tasks = tasks = TaskOwner(self.name, self.failures.append)
        self._disk = FileDisk(self._folder / "log")
        self.machine = StateMachine(self._folder / "state", map_bytes=256 * 1024 * 1024)
        network = TcpNetwork(TcpConfig(self.name, CLUSTER_ID, SECRET, self._peers), listener, tasks)
        membership = Membership.of_voters({name: str(address) for name, address in self._peers.items()})
        config = DriverConfig(self.name, membership, CLUSTER_ID, segment_bytes_max=1024 * 1024)
        self.driver = RaftDriver(config, self._disk, network, self._clock, self.machine, tasks)
        self.store = RaftStore(self.driver, self.machine, self._clock, tasks)
        await self.driver.start()
        await self.store.start()

    async def stop(self) -> None:
        if self._tasks is None:
            return
        await self.store.close()
        await self.driver.close()
        await self._tasks.close()
        self._disk.close()
        self.machine.close()
        self._tasks = None

    @property
    def leads(self) -> bool:
        return self.is_running and self.driver.status().leader == self.name


async def until_ready(members: Sequence[RaftMember]) -> None:
    """Returns when each of `members` answers a linearizable read."""
    async with asyncio.timeout(READY_S):
        for member in members:
            while True:
                try:
                    await member.store.range(b"\0", count_only=True)
                    break
                except QuorateError as error:
                    if error.kind.retry == "never":
                        raise


@asynccontextmanager
async def raft_stores(folder: Path, count: int = 3, clock: Clock | None = None) -> AsyncIterator[list[RaftMember]]:
    """Members that have found a leader. A failure in the background of any of them fails the test."""
    clock = clock or SystemClock()
    names = [f"node-{number}" for number in range(1, count + 1)]
    listeners = {name: open_listener(HostPort("127.0.0.1", 0), "peer") for name in names}
    peers = {name: bound_address(listener) for name, listener in listeners.items()}
    members = [RaftMember(name, folder / name, peers, clock) for name in names]
    try:
        for member in members:
            await member.start(listeners[member.name])
        await until_ready(members)
        yield members
    finally:
        for member in members:
            await member.stop()
    for member in members:
        if member.failures:
            raise member.failures[0]
