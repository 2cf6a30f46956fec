"""Accepting from the one listening socket that all workers have: each when it is its turn.

Why one socket, and not one for each worker by SO_REUSEPORT: a connection that the kernel has given to the socket of one
worker waits for that worker, also while it is stopped or busy, and is lost with it. From the one queue of a shared
socket whoever is free takes the next, so that a worker that is stopped, killed or replaced costs nobody a connection
that it had not accepted itself.

Left to themselves, the worker that wakes first would take most of the connections, and keep them. So each takes one
connection in a turn of its event loop, which leaves more to those that have less to do; one that is behind takes what
it is behind; and one that is ahead of another by more than SLACK, and a part of what that one has, lets it go first:
it looks again after PAUSE_S for each that it is further ahead, at most after PAUSE_S_MAX, and takes one that is still
there, since the other may be busy. While the other does not get on at all, it takes twice as many each time, up to
TAKEN_AT_ONCE_MAX: a worker that is stopped slows nobody down for long.

Without the slack, many clients that come at once would be let in one by one, as the busier worker gets its turns.
"""

import asyncio
import errno
import socket
from collections.abc import Callable

import structlog
from quorate_core.tasks import TaskOwner

from quorate_gateway.proxy.plane import TakeConnection
from quorate_gateway.workers.shared_memory import SharedMemory

SLACK = 2
SLACK_DIVISOR = 8
"""One may be ahead by SLACK, and by an eighth of what the other has."""
PAUSE_S = 0.002
PAUSE_S_MAX = 0.02
"""What a new connection waits for at most, while a worker with fewer has no processor."""
TAKEN_AT_ONCE_MAX = 32
FULL_PAUSE_S = 0.1
"""After an accept that failed for want of files or memory, and while as many handshakes run as may."""
_NOTHING = frozenset({errno.EAGAIN, errno.EINTR, errno.ECONNABORTED})
"""Somebody else was first, or whoever it was has gone."""

log = structlog.get_logger(__name__)


class SharedAcceptor:
    """Accepts for worker `number`, from a listener that others accept from too. `take` makes a connection of what was
    accepted; `is_full` says that it cannot take more; `connections` are those that the worker has."""

    def __init__(
        self,
        listener: socket.socket,
        take: TakeConnection,
        is_full: Callable[[], bool],
        tasks: TaskOwner,
        memory: SharedMemory,
        connections: Callable[[], int],
    ) -> None:
        self._listener = listener
        self._take = take
        self._is_full = is_full
        self._tasks = tasks
        self._memory = memory
        self._connections = connections
        self._opening = 0
        """Accepted, and not among the connections yet."""
        self._timer: asyncio.TimerHandle | None = None
        """While it waits; else it watches the listener."""
        self._turn = 1
        """How many it takes after the next pause."""
        self._fewest = 0
        """That a worker had when this one last let others go first."""
        self._closed = False

    def start(self, backlog: int) -> None:
        self._listener.setblocking(False)  # NB: of all that have this socket; none of them ever waits in it
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its connections inherit it
        self._listener.listen(backlog)
        asyncio.get_running_loop().add_reader(self._listener, self._readable)

    def close(self) -> None:
        """Accept nothing more. The port is closed when all have closed it."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        else:
            asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()

    def _readable(self) -> None:
        fewest, most = self._memory.fewest_and_most_connections()
        mine = self._connections() + self._opening
        too_far = mine - fewest - SLACK - fewest // SLACK_DIVISOR
        if too_far <= 0:
            self._turn = 1
            self._accept_up_to(min(max(most - mine, 1), TAKEN_AT_ONCE_MAX))
            return
        if fewest != self._fewest:
            self._fewest, self._turn = fewest, 1
        self._pause(min(too_far * PAUSE_S, PAUSE_S_MAX))

    def _pause(self, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        self._timer = loop.call_later(pause_s, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        asyncio.get_running_loop().add_reader(self._listener, self._readable)
        self._accept_up_to(self._turn)
        self._turn = min(2 * self._turn, TAKEN_AT_ONCE_MAX)

    def _accept_up_to(self, count: int) -> None:
        for _ in range(count):
            if not self._accept():
                break

    def _accept(self) -> bool:
        """Whether there was a connection."""
        if self._is_full():
            self._pause(FULL_PAUSE_S)
            return False
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            # NB: also errors of the network that the connection has met already come here (accept(2)).
            if error.errno not in _NOTHING:
                log.warning("accept_failed", reason=error.strerror)
                self._pause(FULL_PAUSE_S)
            return False
        self._opening += 1
        self._tasks.start(self._open(connection), "accepted")
        return True

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._take(connection)
        except OSError:
            connection.close()  # it was gone already
        finally:
            self._opening -= 1
