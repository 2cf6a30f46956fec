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
from typing import NoReturn

from quorate_core.clock import Clock
from quorate_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    InvariantViolation,
    NotProposed,
    OutcomeUnknown,
    TooManyRequests,
    Unavailable,
)
from quorate_core.settings import HostPort

from quorate_store.etcd.connections import Broken, Connection, Connections, NotSent
from quorate_store.etcd.endpoints import EndpointOrder
from quorate_store.etcd.errors import AnswerTooLarge, error_of, goes_on_elsewhere
from quorate_store.etcd.messages import Header
from quorate_store.refusals import RETRY_HEADER

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
        self._cluster_id = ""
        """Of the first answer that named one: all endpoints are of this cluster."""
        self.newest = Header()
        """Of all answers, the one with the highest revision, which the store had reached by then."""

    def close(self) -> None:
        """All connections, whatever is under way on them."""
        for connections in self._connections:
            connections.close()

    def note(self, header: Header) -> None:
        """Raises InvariantViolation when another cluster has answered."""
        if header.cluster_id and header.cluster_id != self._cluster_id:
            if self._cluster_id:
                raise InvariantViolation(
                    f"the store's cluster is {header.cluster_id}, and was {self._cluster_id} before: endpoints of two "
                    "clusters are named, or it was restored from a backup. What was read from it is void: start again"
                )
            self._cluster_id = header.cluster_id
        if header.revision >= self.newest.revision:
            self.newest = header

    async def read(self, path: str, body: bytes, *, answer_bytes_max: int = ANSWER_BYTES_MAX) -> bytes:
        """The answer to what changes nothing. Raises NotProposed when no endpoint can answer, DeadlineExceeded,
        AnswerTooLarge, and what the store refuses it with."""
        return await self._call(path, body, answer_bytes_max, is_write=False)

    async def write(self, path: str, body: bytes) -> bytes:
        """The answer to what may change something. Raises NotProposed, OutcomeUnknown, and refusals."""
        return await self._call(path, body, ANSWER_BYTES_MAX, is_write=True)

    async def _call(self, path: str, body: bytes, answer_bytes_max: int, *, is_write: bool) -> bytes:
        if self._waiting >= CALLS_WAITING_MAX:
            raise TooManyRequests(f"{CALLS_WAITING_MAX} calls to the store are under way")
        self._waiting += 1
        deadline_s = self._clock.monotonic_s() + self._timeouts.call_s
        said: list[str] = []
        try:
            for place in self._order.order(self._clock.monotonic_s()):
                if self._clock.monotonic_s() >= deadline_s:
                    break  # a kept connection would send it at once, whatever time is left
                try:
                    return await self._attempt(place, path, body, deadline_s, answer_bytes_max, is_write=is_write)
                except (NotProposed, DeadlineExceeded) as error:
                    said.append(f"{self._addresses[place]}: {error.detail}")
        finally:
            self._waiting -= 1
        if self._clock.monotonic_s() >= deadline_s and not is_write:
            raise DeadlineExceeded(f"the store has not answered in time ({'; '.join(said)})")
        raise NotProposed(f"no endpoint of the store can do it ({'; '.join(said)})")

    async def _attempt(
        self, place: int, path: str, body: bytes, deadline_s: float, answer_bytes_max: int, *, is_write: bool
    ) -> bytes:
        """Raises NotProposed or DeadlineExceeded when another endpoint may be asked."""
        began_s = self._clock.monotonic_s()
        left_s = deadline_s - began_s
        attempt_s = left_s if is_write else min(left_s, self._timeouts.read_attempt_s)
        is_sent = False
        try:
            async with asyncio.timeout(attempt_s), self._connections[place].sent(path, body) as connection:
                is_sent = True
                status, answer = await connection.status(), await _whole(connection, answer_bytes_max)
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
        if status != _OK:
            self._refuse(place, status, connection.headers, answer, is_write=is_write, request_bytes=len(body))
        self.endpoint_answered(place)
        return answer

    def _refuse(
        self, place: int, status: int, headers: Mapping[bytes, bytes], answer: bytes, *, is_write: bool,
        request_bytes: int,
    ) -> NoReturn:  # fmt: skip
        """Raises what the answer means, and NotProposed when another endpoint may be asked."""
        retry = headers.get(_RETRY_FIELD, b"").decode("latin-1")
        error = error_of(status, answer, is_write=is_write, request_bytes=request_bytes, retry=retry)
        if goes_on_elsewhere(error):
            self.endpoint_failed(place)
            raise NotProposed(error.detail) from error
        self.endpoint_answered(place)
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
                    await stack.aclose()  # or its connection would be held for as long as the next one's stream lives
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
                answer = await _whole(connection, ANSWER_BYTES_MAX)
                self._refuse(
                    place, status, connection.headers, answer, is_write=False, request_bytes=len(body)
                )  # fmt: skip
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


async def _whole(connection: Connection, bytes_max: int) -> bytes:
    """Raises Broken, and AnswerTooLarge."""
    chunks: list[bytes] = []
    size_bytes = 0
    while chunk := await connection.chunk():
        size_bytes += len(chunk)
        if size_bytes > bytes_max:
            raise AnswerTooLarge(f"the store answers with over {bytes_max} bytes")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
