"""Requests to the endpoints of a store.

Theory of operation. A call asks one endpoint after the other (`endpoints`) until one answers. It goes on to the next
only when surely nothing was done by the one before: always, for a read; for a write, when not a byte of it was sent, or
the endpoint has said so. A write that was sent and not answered is `OutcomeUnknown`, and that is the end of it here;
whoever wants it repeated gives it a request id. There is one pass over the endpoints, and no waiting between them: what
to do when none of them can is the caller's to say.

An endpoint that takes long is left as well: a paused process accepts connections and requests, and answers none. A
write cannot be taken elsewhere then, but the next one can.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from quorate_core.clock import Clock
from quorate_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotProposed,
    OutcomeUnknown,
    PayloadTooLarge,
    TooManyRequests,
    Unavailable,
)
from quorate_core.settings import HostPort

from quorate_store.etcd.connections import Broken, Connection, Connections, NotSent
from quorate_store.etcd.endpoints import EndpointOrder
from quorate_store.etcd.errors import RETRY_HEADER, error_of, goes_on_elsewhere
from quorate_store.etcd.messages import Header

SILENT_S = 1.0
"""An endpoint that has not answered for so long when its caller gives up is set aside."""
CALLS_WAITING_MAX = 4_096
"""Under way, or waiting for a connection."""
ANSWER_BYTES_MAX = 64 * 1024 * 1024
_OK = 200
_RETRY_FIELD = RETRY_HEADER.encode()


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Of a call, with all its attempts, and of one attempt to read: above what an election takes, so that few are given
    up which would have been answered."""

    call_s: float = 5.0
    read_attempt_s: float = 2.0


class AnswerTooLarge(PayloadTooLarge):
    """Over ANSWER_BYTES_MAX. To a read; that of a write is not known then."""


class StoreClient:
    """`headers` are sent with every request; `tls` makes it HTTPS."""

    def __init__(
        self,
        endpoints: Sequence[HostPort],
        clock: Clock,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        if not endpoints:
            raise InvalidRequest("a store has at least one endpoint")
        self._addresses = [str(endpoint) for endpoint in endpoints]
        self._order = EndpointOrder(len(endpoints))
        self._clock = clock
        self._timeouts = timeouts or Timeouts()
        self._connections = [Connections(endpoint, headers, tls, clock.monotonic_s) for endpoint in endpoints]
        self._waiting = 0
        self.newest = Header()
        """Of all answers, the one with the highest revision, which the store had reached by then."""

    def close(self) -> None:
        """All connections, whatever is under way on them."""
        for connections in self._connections:
            connections.close()

    def note(self, header: Header) -> None:
        if header.revision >= self.newest.revision:
            self.newest = header

    async def read(self, path: str, body: bytes) -> bytes:
        """The answer to what changes nothing. Raises NotProposed when no endpoint can answer, DeadlineExceeded, and
        what the store refuses it with."""
        return await self._call(path, body, is_write=False)

    async def write(self, path: str, body: bytes) -> bytes:
        """The answer to what may change something. Raises NotProposed, OutcomeUnknown, and refusals."""
        return await self._call(path, body, is_write=True)

    async def _call(self, path: str, body: bytes, *, is_write: bool) -> bytes:
        if self._waiting >= CALLS_WAITING_MAX:
            raise TooManyRequests(f"{CALLS_WAITING_MAX} calls to the store are under way")
        self._waiting += 1
        deadline_s = self._clock.monotonic_s() + self._timeouts.call_s
        try:
            said: list[str] = []
            for place in self._order.order(self._clock.monotonic_s()):
                try:
                    return await self._attempt(place, path, body, deadline_s, is_write=is_write)
                except (NotProposed, DeadlineExceeded) as error:
                    said.append(f"{self._addresses[place]}: {error.detail}")
                    if self._clock.monotonic_s() >= deadline_s and not is_write:
                        raise DeadlineExceeded(f"the store has not answered in time ({'; '.join(said)})") from error
            raise NotProposed(f"no endpoint of the store can do it ({'; '.join(said)})")
        finally:
            self._waiting -= 1

    async def _attempt(self, place: int, path: str, body: bytes, deadline_s: float, *, is_write: bool) -> bytes:
        """Raises NotProposed or DeadlineExceeded when another endpoint may be asked."""
        began_s = self._clock.monotonic_s()
        left_s = deadline_s - began_s
        attempt_s = left_s if is_write else min(left_s, self._timeouts.read_attempt_s)
        is_sent = False
        try:
            async with asyncio.timeout(attempt_s), self._connections[place].sent(path, body) as connection:
                is_sent = True
                status, answer = await connection.status(), await _whole(connection)
        except NotSent as error:
            self.endpoint_failed(place)
            raise NotProposed(str(error)) from error
        except (TimeoutError, Broken) as error:
            self.endpoint_failed(place)
            reason = str(error) or f"no answer within {attempt_s:.1f} s"
            if is_sent and is_write:
                raise OutcomeUnknown(f"{self._addresses[place]}: {reason}") from error
            raise (DeadlineExceeded if isinstance(error, TimeoutError) else NotProposed)(reason) from error
        except asyncio.CancelledError:
            if self._clock.monotonic_s() - began_s >= SILENT_S:
                self.endpoint_failed(place)
            raise
        except AnswerTooLarge as error:
            if is_write:
                raise OutcomeUnknown(f"it was asked for, and {error.detail}, which are not read") from error
            raise
        return self._taken(place, status, connection.headers, answer, is_write=is_write)

    def _taken(
        self, place: int, status: int, headers: Mapping[bytes, bytes], answer: bytes, *, is_write: bool
    ) -> bytes:
        """The answer, if it is no refusal. Raises NotProposed when another endpoint may be asked."""
        self.endpoint_answered(place)
        if status == _OK:
            return answer
        error = error_of(status, answer, is_write=is_write, retry=headers.get(_RETRY_FIELD, b"").decode("latin-1"))
        if goes_on_elsewhere(error):
            self.endpoint_failed(place)
            raise NotProposed(error.detail) from error
        raise error

    @asynccontextmanager
    async def stream(self, path: str, body: bytes) -> AsyncIterator["OpenStream"]:
        """An answer that goes on for as long as it is read, of the first endpoint that begins one. Raises NotProposed
        when none does, and refusals."""
        said: list[str] = []
        async with AsyncExitStack() as stack:
            for place in self._order.order(self._clock.monotonic_s()):
                try:
                    connection = await self._begin(place, path, body, stack)
                except (NotProposed, NotSent, Broken, TimeoutError) as error:
                    self.endpoint_failed(place)
                    said.append(f"{self._addresses[place]}: {str(error) or 'no answer in time'}")
                    continue
                yield OpenStream(self, place, connection)
                return
            raise NotProposed(f"no endpoint of the store answers ({'; '.join(said)})")

    async def _begin(self, place: int, path: str, body: bytes, stack: AsyncExitStack) -> Connection:
        async with asyncio.timeout(self._timeouts.read_attempt_s):
            connection = await stack.enter_async_context(self._connections[place].sent(path, body, is_stream=True))
            status = await connection.status()
            if status != _OK:
                self._taken(place, status, connection.headers, await _whole(connection), is_write=False)
        return connection

    def endpoint_failed(self, place: int) -> None:
        self._order.failed(place, self._clock.monotonic_s())

    def endpoint_answered(self, place: int) -> None:
        self._order.answered(place)


@dataclass(frozen=True, slots=True)
class OpenStream:
    """A stream, and what its reader finds of the endpoint that it is from."""

    client: StoreClient
    place: int
    connection: Connection

    async def chunk(self) -> bytes:
        """Empty at the end. Raises Unavailable when it breaks."""
        try:
            return await self.connection.chunk()
        except Broken as error:
            raise Unavailable(f"the stream broke: {error}") from error

    def failed(self) -> None:
        self.client.endpoint_failed(self.place)

    def answered(self) -> None:
        self.client.endpoint_answered(self.place)


async def _whole(connection: Connection) -> bytes:
    """Raises Broken, and AnswerTooLarge."""
    chunks: list[bytes] = []
    size_bytes = 0
    while chunk := await connection.chunk():
        size_bytes += len(chunk)
        if size_bytes > ANSWER_BYTES_MAX:
            raise AnswerTooLarge(f"the store answers with over {ANSWER_BYTES_MAX} bytes")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
