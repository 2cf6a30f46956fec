"""Memory that the first process and its workers have in common: a file without a name, mapped by all of them.

    page 0          the secret of the table, and for each worker how many client connections it has
    further pages   the table (`shared_table`)

Pages that nobody has touched, not even to read them, take no memory, so that the size is only the most that it may come
to. The file ends with the last process that has it.

A worker that does not accept, since it drains or is stopped, may still have connections. Its count is then negative:
AWAY less what it has.
"""

import fcntl
import mmap
import os
import secrets

from quorate_core.errors import InvariantViolation

from quorate_gateway.settings import WORKERS_MAX

SECRET_BYTES = 16
HEADER_BYTES = mmap.PAGESIZE
_COUNTS_AT = 64
_COUNT_BYTES = 8
AWAY = -1
"""A worker that does not accept, and has no connections."""


class SharedMemory:
    """The mapping, in a process that has the file open as `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.map = mmap.mmap(descriptor, 0)
        self.secret = self.map[:SECRET_BYTES]
        self._counts = memoryview(self.map)[_COUNTS_AT : _COUNTS_AT + _COUNT_BYTES * WORKERS_MAX].cast("q")

    @classmethod
    def create(cls, table_bytes: int) -> "SharedMemory":
        """For the first process. Nobody is there yet."""
        descriptor = os.memfd_create("quorate-gateway", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, HEADER_BYTES + table_bytes)
        # Nobody can make it shorter from now on: to touch what is mapped and not there would end a process.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        memory = cls(descriptor)
        memory.map[:SECRET_BYTES] = memory.secret = secrets.token_bytes(SECRET_BYTES)
        for number in range(1, WORKERS_MAX + 1):
            memory.set_connections(number, 0, accepts=False)
        return memory

    def set_connections(self, number: int, count: int, *, accepts: bool = True) -> None:
        """Each worker says its own; the first process says it of one that has gone or is silent."""
        if not 1 <= number <= WORKERS_MAX or count < 0:
            raise InvariantViolation(f"there is no worker {number} with {count} connections")
        # NB: eight bytes that stand at a multiple of eight: nobody ever reads half of them.
        self._counts[number - 1] = count if accepts else AWAY - count

    def set_away(self, number: int) -> None:
        """Worker `number` does not accept for now; it may have connections, and says so itself when it is back."""
        self.set_connections(number, self.connections(number), accepts=False)

    def connections(self, number: int) -> int:
        """That worker `number` has, whether or not it accepts."""
        count = self._counts[number - 1]
        return count if count >= 0 else AWAY - count

    def connections_of_all(self) -> int:
        return sum(count if count >= 0 else AWAY - count for count in self._counts.tolist())

    def fewest_and_most_connections(self) -> tuple[int, int]:
        """Of workers that accept; zeros when none does."""
        accepting = [count for count in self._counts.tolist() if count >= 0]
        return min(accepting, default=0), max(accepting, default=0)

    def close(self) -> None:
        self._counts.release()
        self.map.close()
        os.close(self.descriptor)
