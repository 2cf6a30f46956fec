"""Where an external store is: `etcd://host:port,host:port`, or `etcds://…` over TLS."""

from typing import Any

from quorate_core.settings import HostPort

SCHEME, TLS_SCHEME = "etcd", "etcds"
ENDPOINTS_MAX = 32


class StoreUrl:
    """The members of an etcd cluster, or nodes of Quorate, by the addresses at which they serve clients."""

    # A plain class, as HostPort is: settings libraries read tuples and dataclasses from JSON.
    __slots__ = ("endpoints", "is_secure")

    def __init__(self, endpoints: tuple[HostPort, ...], *, is_secure: bool = False) -> None:
        self.endpoints = endpoints
        self.is_secure = is_secure

    @classmethod
    def parse(cls, text: Any) -> "StoreUrl":
        """Raises ValueError. A slash at the end is let pass; whatever else follows the addresses is refused."""
        if isinstance(text, StoreUrl):
            return text
        scheme, separator, rest = str(text).strip().partition("://")
        if not separator or scheme not in (SCHEME, TLS_SCHEME):
            raise ValueError("write etcd://host:port,host:port, or etcds://… for TLS")
        if "@" in rest:
            raise ValueError("it takes no credential; give --store-token-file")
        endpoints = tuple(_endpoint(part) for part in rest.removesuffix("/").split(","))
        if len(endpoints) > ENDPOINTS_MAX:
            raise ValueError(f"{len(endpoints)} endpoints; at most {ENDPOINTS_MAX} are asked")
        if len(set(endpoints)) < len(endpoints):
            raise ValueError("an endpoint is given twice")
        return cls(endpoints, is_secure=scheme == TLS_SCHEME)

    @property
    def urls(self) -> tuple[str, ...]:
        """The base URL of each endpoint."""
        scheme = "https" if self.is_secure else "http"
        return tuple(f"{scheme}://{endpoint}" for endpoint in self.endpoints)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreUrl) and (self.endpoints, self.is_secure) == (other.endpoints, other.is_secure)

    def __hash__(self) -> int:
        return hash((self.endpoints, self.is_secure))

    def __str__(self) -> str:
        scheme = TLS_SCHEME if self.is_secure else SCHEME
        return f"{scheme}://{','.join(map(str, self.endpoints))}"


def _endpoint(part: str) -> HostPort:
    endpoint = HostPort.parse(part.strip())
    if endpoint.port == 0 or "/" in endpoint.host:
        raise ValueError(f"{part!r} is no address of a store; write host:port, such as 127.0.0.1:2379")
    return endpoint
