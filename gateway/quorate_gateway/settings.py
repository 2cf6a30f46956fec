"""Settings of the gateway's process, and what its workers are told of them."""

import ipaddress
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict
from quorate_core.logs import LogFormat
from quorate_core.settings import Address, HostPort, ProcessSettings
from quorate_resilience.shedding import ACTIVE_MAX, LAG_S_MAX

from quorate_gateway.proxy.limits import (
    CLIENT_CONNECTIONS_MAX,
    HEAD_BYTES_MAX,
    HEAD_FIELDS_MAX,
    HEAD_TIMEOUT_S,
    IDLE_TIMEOUT_S,
    ConnectionLimits,
)

WORKERS_MAX = 15
"""A record of the shared table has room for the connections of so many, and the first process."""
HEAD_BYTES_LIMIT = 1_048_576
HEAD_FIELDS_LIMIT = 1_000
TIMEOUT_MS_LIMIT = 3_600_000


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _check_network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is no network; write 10.0.0.0/8, fd00::/8 or an address") from None
    return text


Network = Annotated[str, AfterValidator(_check_network)]
Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_split)]
TimeoutMs = Annotated[int, Field(ge=1, le=TIMEOUT_MS_LIMIT)]


class GatewaySettings(ProcessSettings):
    """The gateway: routes requests to services by the routes document and the registry."""

    model_config = SettingsConfigDict(env_prefix="QUORATE_GATEWAY_")

    listen: Address = HostPort("127.0.0.1", 8080)
    """Where clients are served."""
    admin: Address = HostPort("127.0.0.1", 8090)
    """Where the admin API, health and metrics are."""
    admin_advertise: Address | None = None
    """Where others reach the admin API, when that is not where it listens."""
    endpoints: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]
    """URLs of control-plane nodes, with commas between."""
    token_file: Path | None = None
    """A file with the token for the nodes, which the admin API wants too where it is not bound to loopback. Read again
    on SIGHUP."""
    namespace: str = "default"
    workers: Annotated[int, Field(ge=1, le=WORKERS_MAX)] = 1
    """Processes that serve clients. With more than one, a further process has the admin API and follows the nodes."""
    zone: Annotated[str, Field(max_length=63)] = ""
    """Where this gateway stands, for routes that prefer instances of their own zone."""
    redis_url: SecretStr | None = None
    """The Redis that limits with `shared: true` are counted in: redis://, rediss:// or unix://. It may hold a password:
    give it in the environment."""
    tls_certificate_file: Path | None = None
    """A PEM file with the certificate and its chain: clients are served by TLS. Read again on SIGHUP, and when it
    changes."""
    tls_key_file: Path | None = None
    """The PEM file with its key."""
    trusted_proxies: Networks = ()
    """Networks of proxies in front of the gateway, whose word on the client's address counts, with commas between."""
    client_connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = CLIENT_CONNECTIONS_MAX
    """Client connections open at once, of all workers together. The process may be allowed fewer files: then fewer."""
    connections_per_client_max: Annotated[int, Field(ge=1)] | None = None
    """Of one client address, open at once, of all workers together. Without it, as many as there may be of all."""
    head_bytes_max: Annotated[int, Field(ge=1_024, le=HEAD_BYTES_LIMIT)] = HEAD_BYTES_MAX
    """Of a request's head, with its first line."""
    head_fields_max: Annotated[int, Field(ge=8, le=HEAD_FIELDS_LIMIT)] = HEAD_FIELDS_MAX
    """Header fields of a request."""
    head_timeout_ms: TimeoutMs = int(HEAD_TIMEOUT_S * 1_000)
    """From the first byte of a request's head to its last."""
    idle_timeout_ms: TimeoutMs = int(IDLE_TIMEOUT_S * 1_000)
    """How long a connection may wait for its next request."""
    requests_active_max: Annotated[int, Field(ge=1, le=1_000_000)] = ACTIVE_MAX
    """Requests in progress, of all workers together, at which the gateway is full; those of routes with a lower
    priority are refused before that."""
    event_loop_lag_ms_max: TimeoutMs = int(LAG_S_MAX * 1_000)
    """How late a worker's event loop may be at which it is full."""

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("give both of --tls-certificate-file and --tls-key-file, or neither")
        return self

    @model_validator(mode="after")
    def _requests_for_workers(self) -> Self:
        if self.requests_active_max < self.workers:
            raise ValueError("--requests-active-max is less than one request for each of --workers")
        return self

    def for_worker(self, welcome: bytes) -> "WorkerSettings":
        """`welcome` is what `GET /` answers."""
        return WorkerSettings(
            name=self.name, log_format=self.log_format, log_level=self.log_level, workers=self.workers, zone=self.zone,
            redis_url=None if self.redis_url is None else self.redis_url.get_secret_value(),
            tls_certificate_file=self.tls_certificate_file, tls_key_file=self.tls_key_file,
            trusted_proxies=self.trusted_proxies, client_connections_max=self.client_connections_max,
            connections_per_client_max=self.connections_per_client_max, head_bytes_max=self.head_bytes_max,
            head_fields_max=self.head_fields_max, head_timeout_ms=self.head_timeout_ms,
            idle_timeout_ms=self.idle_timeout_ms, requests_active_max=self.requests_active_max,
            event_loop_lag_ms_max=self.event_loop_lag_ms_max, welcome=welcome.decode(),
        )  # fmt: skip


class WorkerSettings(BaseModel):
    """What whoever runs a data plane has to know: the only process, or each of several."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    log_format: LogFormat
    log_level: str
    workers: int
    zone: str
    redis_url: Annotated[str | None, Field(repr=False)]
    tls_certificate_file: Path | None
    tls_key_file: Path | None
    trusted_proxies: tuple[str, ...]
    client_connections_max: int
    connections_per_client_max: int | None
    head_bytes_max: int
    head_fields_max: int
    head_timeout_ms: int
    idle_timeout_ms: int
    requests_active_max: int
    event_loop_lag_ms_max: int
    welcome: str

    def connection_limits(self, client_connections_max: int) -> ConnectionLimits:
        """With so many connections at most, where not all that were asked for are allowed."""
        per_client = self.connections_per_client_max
        return ConnectionLimits(
            client_connections_max=client_connections_max,
            connections_per_client_max=client_connections_max if per_client is None else per_client,
            head_bytes_max=self.head_bytes_max, head_fields_max=self.head_fields_max,
            head_timeout_s=self.head_timeout_ms / 1_000, idle_timeout_s=self.idle_timeout_ms / 1_000,
        )  # fmt: skip

    @property
    def active_max(self) -> int:
        """Of this process: its part of the requests in progress, rounded up."""
        return -(-self.requests_active_max // self.workers)
