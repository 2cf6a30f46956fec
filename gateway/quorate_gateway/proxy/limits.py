"""What clients may take of the gateway: the limits of their connections, and who holds how many of these.

Everything that a single request may take beyond its head is its route's to say (`request_bytes_max`, `timeout_ms`,
`idle_timeout_ms`, `total_timeout_ms`).
"""

from dataclasses import dataclass

from quorate_core.errors import InvariantViolation, Retry

from quorate_gateway.proxy.refusals import Refusal

CLIENT_CONNECTIONS_MAX = 10_000
HEAD_BYTES_MAX = 32_768
HEAD_FIELDS_MAX = 100
HEAD_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 75.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of client connections."""

    client_connections_max: int = CLIENT_CONNECTIONS_MAX
    """Open at once; those above are answered with 503 and closed."""
    connections_per_client_max: int = CLIENT_CONNECTIONS_MAX
    """Of one client address (of IPv6, of one /64), open at once; those above are answered with 429 and closed. As many
    as there may be of all, unless set: many clients may come by one address. Trusted proxies are not counted."""
    head_bytes_max: int = HEAD_BYTES_MAX
    """Of a request's head with its first line; above, 431."""
    head_fields_max: int = HEAD_FIELDS_MAX
    """Header fields of a request; above, 431."""
    head_timeout_s: float = HEAD_TIMEOUT_S
    """From the first byte of a head to its last; and for the whole handshake of TLS."""
    idle_timeout_s: float = IDLE_TIMEOUT_S
    """Between the end of an answer and the first byte of the next request."""


DEFAULT_LIMITS = ConnectionLimits()


class ConnectionCounts:
    """How many connections each client holds. Bounded by the connections that there are: nobody is remembered at 0."""

    __slots__ = ("_by_client", "limits", "total")

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.total = 0
        self._by_client: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._by_client)

    def of(self, client: bytes) -> int:
        return self._by_client.get(client, 0)

    def opened(self, client: bytes) -> Refusal | None:
        """Count a connection of `client`, empty for one that is not counted by its address. A refusal when it is one
        too many; it counts all the same, until it is closed."""
        self.total += 1
        mine = 0
        if client:
            mine = self._by_client[client] = self._by_client.get(client, 0) + 1
        return self.refusal(self.total, mine)

    def refusal(self, total: int, of_client: int) -> Refusal | None:
        """Why a connection is one too many, when there are `total` with it, and `of_client` of its client."""
        limits = self.limits
        if total > limits.client_connections_max:
            detail = f"the gateway serves {limits.client_connections_max} connections, and these are taken"
            return Refusal("too-many-connections", 503, detail, Retry.SAFE)
        if of_client > limits.connections_per_client_max:
            detail = f"one client may hold {limits.connections_per_client_max} connections, and these are taken"
            return Refusal("too-many-connections-of-client", 429, detail, Retry.SAFE)
        return None

    def closed(self, client: bytes) -> None:
        """The reverse of `opened`."""
        self.total -= 1
        if not client:
            return
        left = self._by_client.get(client, 0) - 1
        if left < 0 or self.total < 0:
            raise InvariantViolation(f"a connection of {client!r} was closed that had not been opened")
        if left:
            self._by_client[client] = left
        else:
            del self._by_client[client]
