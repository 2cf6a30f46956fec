"""Settings: of the process, fixed at its start, and live ones, which follow a document of the config center."""

from typing import Annotated, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode, SettingsConfigDict
from quorate_core.settings import Address, HostPort, ProcessSettings

LIVE_DOCUMENT = "order/settings.yaml"
LINES_MAX = 100
QUANTITY_MAX = 10_000


class OrderSettings(BaseModel):
    """Live settings of the order service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_lines: Annotated[int, Field(ge=1, le=LINES_MAX)] = LINES_MAX
    """Lines that an order may have."""
    max_quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)] = QUANTITY_MAX
    """Pieces of one SKU that an order may ask for."""
    pending_timeout_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    """How long an order may wait for its stock before it is cancelled."""


class LiveOrderSettings(Protocol):
    """The live settings now in force, and which version of the document they are (0: the defaults)."""

    @property
    def current(self) -> OrderSettings: ...

    @property
    def version(self) -> int: ...

    @property
    def revision(self) -> int: ...


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class OrderProcessSettings(ProcessSettings):
    """The order service. Several instances may share one data folder: they share the database in it."""

    model_config = SettingsConfigDict(env_prefix="QUORATE_ORDER_")

    listen: Address = HostPort("127.0.0.1", 0)
    """Where requests are answered; port 0 takes a free one."""
    advertise: Address | None = None
    """Where others reach it, when that is not where it listens."""
    endpoints: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]
    """URLs of control-plane nodes, with commas between."""
    token_file: str | None = None
    """A file with the token for the nodes, which events from other services must then bring too."""
    namespace: str = "default"
