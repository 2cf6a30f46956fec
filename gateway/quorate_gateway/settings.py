"""Settings of the gateway's process."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode, SettingsConfigDict
from quorate_core.settings import Address, HostPort, ProcessSettings


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


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
    """A file with the token for the nodes, which the admin API wants too where it is not bound to loopback."""
    namespace: str = "default"
