"""The HTTP check: GET, and the status decides. RFC 9112.

The verdict comes with the head of the answer. Of the body only the beginning of a bad one is read, for people to see
why, and only as far as it comes at once: one that never ends, or is very long, is cut off. Redirects are answers like
others: by default they are good ones, and nobody goes where they point.
"""

import asyncio

import h11
from quorate_sdk.wire import HttpCheck

from quorate_registry.checks.exchange import Exchange, opened
from quorate_registry.checks.outcome import OUTPUT_CHARS_MAX, Outcome, Target, Unhealthy
from quorate_registry.checks.resolver import Resolver

HEAD_BYTES_MAX = 16 * 1024
EXCERPT_BYTES_MAX = 2 * OUTPUT_CHARS_MAX
EXCERPT_WAIT_S = 0.2
"""How long the beginning of a bad answer's body is waited for, besides the check's own time."""
USER_AGENT = "quorate-check/1"


async def check_http(check: HttpCheck, target: Target, resolver: Resolver) -> Outcome:
    """Raises NotConnected, Unhealthy, OSError, and TimeoutError when the head has not come in time."""
    excerpt = ""
    async with opened(resolver, target, check.timeout_s) as exchange:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        exchange.send(_request(connection, check, target))
        head = await _head(connection, exchange)
        is_good = check.status_min <= head.status_code <= check.status_max
        if not is_good:
            exchange.deadline.reschedule(None)  # the verdict is there; what follows has a limit of its own
            excerpt = await _excerpt(connection, exchange)
    reason = head.reason.decode("ascii", "replace")
    said = f"status {head.status_code} {reason}".rstrip()
    return Outcome.of(is_good, f"{said}: {excerpt}" if excerpt else said)


def _request(connection: h11.Connection, check: HttpCheck, target: Target) -> bytes:
    host = f"[{target.host}]" if ":" in target.host else target.host
    default_port = 443 if target.scheme == "https" else 80
    authority = host if target.port == default_port else f"{host}:{target.port}"
    fields = [("host", check.host or authority), ("user-agent", USER_AGENT), ("accept", "*/*"), ("connection", "close")]
    head = connection.send(h11.Request(method="GET", target=check.path, headers=fields))
    return (head or b"") + (connection.send(h11.EndOfMessage()) or b"")


async def _head(connection: h11.Connection, exchange: Exchange) -> h11.Response:
    while True:
        event = await _next_event(connection, exchange)
        if isinstance(event, h11.Response):
            return event
        # Else an interim answer (1xx): as many as fit into the bound of an exchange.


async def _excerpt(connection: h11.Connection, exchange: Exchange) -> str:
    """The beginning of the body, as far as it comes within EXCERPT_WAIT_S."""
    body = bytearray()
    try:
        async with asyncio.timeout(EXCERPT_WAIT_S):
            while len(body) < EXCERPT_BYTES_MAX:
                event = await _next_event(connection, exchange)
                if not isinstance(event, h11.Data):
                    break
                body += event.data
    except (TimeoutError, OSError, Unhealthy):
        pass  # what has come is shown; the status has decided
    return bytes(body[:EXCERPT_BYTES_MAX]).decode(errors="replace")


async def _next_event(connection: h11.Connection, exchange: Exchange) -> h11.Event:
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Event):
                return event
            if event is h11.PAUSED:
                raise Unhealthy("it goes on with another protocol")
            data = await exchange.receive()
            if not data and connection.their_state is h11.SEND_RESPONSE:
                raise Unhealthy("it has closed the connection without an answer")
            connection.receive_data(data)
    except h11.RemoteProtocolError as error:
        raise Unhealthy(f"it does not answer as HTTP does: {error}") from error
