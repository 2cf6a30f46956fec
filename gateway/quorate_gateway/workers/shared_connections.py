"""How many connections each client holds, of all workers together.

The whole of all connections is the sum of what each worker says in shared memory. How many one client has is counted
only when that is limited: in a record of the shared table, with a place for each worker. So a worker that is killed
leaves nothing behind that could not be told from what others hold: the first process takes its places back.
"""

import math
from collections.abc import Callable
from time import monotonic

from quorate_gateway.proxy.limits import ConnectionCounts, ConnectionLimits
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.workers.shared_table import SharedTable, SharedTables

_IDENTITY = b"connections-of-clients"


class SharedConnectionCounts(ConnectionCounts):
    """Worker `number`'s part in the count of `workers`."""

    __slots__ = ("_clients", "_has_left", "_memory", "_monotonic_s", "_number", "_workers")

    def __init__(
        self,
        limits: ConnectionLimits,
        tables: SharedTables,
        number: int,
        workers: int,
        monotonic_s: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(limits)
        self._memory = tables.memory
        self._monotonic_s = monotonic_s
        self._number = number
        self._workers = workers
        self._has_left = False
        is_limited = limits.connections_per_client_max < limits.client_connections_max
        self._clients = tables(_IDENTITY) if is_limited else None

    def publish(self) -> None:
        """Say how many there are here, also after somebody has said that this worker is away."""
        self._memory.set_connections(self._number, self.total, accepts=not self._has_left)

    def leave(self) -> None:
        """It accepts no more."""
        self._has_left = True
        self.publish()

    def opened(self, client: bytes) -> Refusal | None:
        super().opened(client)
        self.publish()
        mine = self._publish(client)
        return self.refusal(self._memory.connections_of_all(), mine)

    def closed(self, client: bytes) -> None:
        super().closed(client)
        self.publish()
        self._publish(client)

    def _publish(self, client: bytes) -> int:
        """How many it has then, of all workers."""
        if self._clients is None or not client:
            return 0
        return _change(self._clients, client, self._number, self.of(client), self._workers, self._monotonic_s())


def forget_worker(tables: SharedTables, number: int, now_s: float) -> None:
    """Take back what a worker that has gone still counted."""
    clients = tables(_IDENTITY)
    for client, record in list(clients.items()):
        if number <= len(record) and record[number - 1]:
            _change(clients, client, number, 0, len(record), now_s)


def _change(clients: SharedTable, client: bytes, number: int, count: int, workers: int, now_s: float) -> int:
    with clients.locked(client):
        record = list(clients.get(client) or ())
        record += [0.0] * (workers - len(record))
        record[number - 1] = float(count)
        total = int(sum(record))
        clients.put(client, record, math.inf if total else now_s, now_s)
        return total
