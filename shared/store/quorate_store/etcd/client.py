"""Requests to the endpoints of a store, over HTTP/1.1 with kept connections.

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
from typing import Any

import httpx
from quorate_core.clock import Clock
from quorate_core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotProposed,
    OutcomeUnknown,
    PayloadTooLarge,
    TooManyRequests,
)
from quorate_core.settings import HostPort

from quorate_store.etcd.endpoints import EndpointOrder
from quorate_store.etcd.errors import RETRY_HEADER, error_of, goes_on_elsewhere
from quorate_store.etcd.messages import Header

CALL_TIMEOUT_S = 5.0
"""Of a call, all its attempts together."""
CONNECT_TIMEOUT_S = 1.0
READ_ATTEMPT_TIMEOUT_S = 2.0
"""Above what an election takes, so that few reads are given up which would have been answered."""
SILENT_S = 1.0
"""An endpoint that has not answered for so long when its caller gives up is set aside."""
CONNECTIONS_MAX = 64
"""To one endpoint, for calls. Streams have theirs."""
STREAMS_MAX = 256
"""To one endpoint."""
CALLS_WAITING_MAX = 4_096
"""Under way, or waiting for a connection."""
CONNECTION_IDLE_S = 30.0
"""Kept for so long. Shorter than servers keep it: one that is closed as we write to it makes an outcome unknown."""
ANSWER_BYTES_MAX = 64 * 1024 * 1024
_SENT_EVENT = "http11.send_request_headers.started"
"""httpcore's trace: from here on, something may have been sent."""


class AnswerTooLarge(PayloadTooLarge):
    """Over ANSWER_BYTES_MAX. To a read; that of a write is not known then."""


@dataclass(slots=True)
class _Sending:
    """Of one attempt. `trace` is called by httpcore as the request goes on."""

    was_sent: bool = False

    async def trace(self, event: str, _details: Mapping[str, Any]) -> None:
        if event == _SENT_EVENT:
            self.was_sent = True


class StoreClient:
    """`headers` are sent with every request; `tls` makes it HTTPS."""

    def __init__(
        self,
        endpoints: Sequence[HostPort],
        clock: Clock,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if not endpoints:
            raise InvalidRequest("a store has at least one endpoint")
        scheme = "http" if tls is None else "https"
        self._addresses = [str(endpoint) for endpoint in endpoints]
        self._urls = [f"{scheme}://{endpoint}" for endpoint in endpoints]
        self._order = EndpointOrder(len(endpoints))
        self._clock = clock
        context = tls or ssl.create_default_context()
        self._calls = [_client(headers, context, CONNECTIONS_MAX) for _ in endpoints]
        self._streams = [_client(headers, context, STREAMS_MAX) for _ in endpoints]
        self._waiting = 0
        self.newest = Header()
        """Of all answers, the one with the highest revision, which the store had reached by then."""

    async def close(self) -> None:
        for client in (*self._calls, *self._streams):
            await client.aclose()

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
        deadline_s = self._clock.monotonic_s() + CALL_TIMEOUT_S
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
        sending = _Sending()
        try:
            async with asyncio.timeout(left_s if is_write else min(left_s, READ_ATTEMPT_TIMEOUT_S)):
                answer = await self._exchange(place, path, body, sending, is_write=is_write)
        except TimeoutError as error:
            self._order.failed(place, self._clock.monotonic_s())
            if is_write and sending.was_sent:
                raise OutcomeUnknown(f"{self._addresses[place]} took longer than {left_s:.1f} s to answer") from error
            raise DeadlineExceeded("it takes too long to answer") from error
        except asyncio.CancelledError:
            if self._clock.monotonic_s() - began_s >= SILENT_S:
                self._order.failed(place, self._clock.monotonic_s())
            raise
        except (httpx.HTTPError, OSError) as error:
            self._order.failed(place, self._clock.monotonic_s())
            reason = str(error) or type(error).__name__
            if is_write and sending.was_sent:
                raise OutcomeUnknown(f"{self._addresses[place]} did not answer: {reason}") from error
            raise NotProposed(reason) from error
        except AnswerTooLarge as error:
            if is_write:
                raise OutcomeUnknown(f"it was asked for, and {error.detail}, which are not read") from error
            raise
        return answer

    async def _exchange(self, place: int, path: str, body: bytes, sending: _Sending, *, is_write: bool) -> bytes:
        extensions = {"trace": sending.trace}
        async with self._calls[place].stream(
            "POST", self._urls[place] + path, content=body, extensions=extensions
        ) as response:
            answer = await _whole(response)
        self._order.answered(place)
        if response.status_code == httpx.codes.OK:
            return answer
        retry = response.headers.get(RETRY_HEADER, "")
        error = error_of(response.status_code, answer, is_write=is_write, retry=retry)
        if goes_on_elsewhere(error):
            self._order.failed(place, self._clock.monotonic_s())
            raise NotProposed(error.detail) from error
        raise error

    @asynccontextmanager
    async def stream(self, path: str, body: bytes) -> AsyncIterator[tuple[AsyncIterator[bytes], "Endpoint"]]:
        """The chunks of an answer that goes on for as long as it is read, and who gives it: of the first endpoint that
        begins one. Raises NotProposed when none does, and refusals; reading raises httpx.HTTPError when it breaks."""
        said: list[str] = []
        async with AsyncExitStack() as stack:
            for place in self._order.order(self._clock.monotonic_s()):
                try:
                    response = await self._begin(place, path, body, stack)
                except (NotProposed, httpx.HTTPError, OSError, TimeoutError) as error:
                    self._order.failed(place, self._clock.monotonic_s())
                    said.append(f"{self._addresses[place]}: {str(error) or type(error).__name__}")
                    continue
                yield response.aiter_raw(), Endpoint(self, place)
                return
            raise NotProposed(f"no endpoint of the store answers ({'; '.join(said)})")

    async def _begin(self, place: int, path: str, body: bytes, stack: AsyncExitStack) -> httpx.Response:
        async with asyncio.timeout(READ_ATTEMPT_TIMEOUT_S):
            response = await stack.enter_async_context(
                self._streams[place].stream("POST", self._urls[place] + path, content=body)
            )
            if response.status_code == httpx.codes.OK:
                return response
            answer = await _whole(response)
        error = error_of(response.status_code, answer, is_write=False)
        if goes_on_elsewhere(error):
            raise NotProposed(error.detail) from error
        raise error

    def endpoint_failed(self, place: int) -> None:
        self._order.failed(place, self._clock.monotonic_s())

    def endpoint_answered(self, place: int) -> None:
        self._order.answered(place)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Who a stream comes from, and what its reader finds of it."""

    client: StoreClient
    place: int

    def failed(self) -> None:
        self.client.endpoint_failed(self.place)

    def answered(self) -> None:
        self.client.endpoint_answered(self.place)


def _client(headers: Mapping[str, str], tls: ssl.SSLContext, connections_max: int) -> httpx.AsyncClient:
    # Endpoints are reached directly, whatever proxies the environment names: a token must not pass a stranger.
    return httpx.AsyncClient(
        headers={**headers, "content-type": "application/json", "accept-encoding": "identity"},
        verify=tls,
        trust_env=False,
        timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(
            max_connections=connections_max,
            max_keepalive_connections=connections_max,
            keepalive_expiry=CONNECTION_IDLE_S,
        ),
    )


async def _whole(response: httpx.Response) -> bytes:
    """Raises AnswerTooLarge."""
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in response.aiter_raw():
        size_bytes += len(chunk)
        if size_bytes > ANSWER_BYTES_MAX:
            raise AnswerTooLarge(f"the store answers with over {ANSWER_BYTES_MAX} bytes")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
