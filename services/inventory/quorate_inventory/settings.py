"""Settings: of the process, fixed at its start, and live ones, which follow a document of the config center."""

from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode, SettingsConfigDict
from quorate_core.settings import Address, HostPort, ProcessSettings

LIVE_DOCUMENT = "inventory/settings.yaml"
FAULT_DELAY_MS_MAX = 60_000


def _off_is_a_word(value: Any) -> Any:
    """YAML reads `off` as false."""
    return "off" if value is False else value


class FaultSettings(BaseModel):
    """The fault switch: makes `GET /stock` and `GET /stock/{sku}` slow or failing, to see what protects their
    callers. Orders go another way and stay right."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Annotated[Literal["off", "slow", "fail"], BeforeValidator(_off_is_a_word)] = "off"
    delay_ms: Annotated[int, Field(ge=0, le=FAULT_DELAY_MS_MAX)] = 1_500
    """How long an answer waits in mode `slow`."""
    percent: Annotated[int, Field(ge=0, le=100)] = 100
    """Of the requests to each instance, spread evenly."""


class InventorySettings(BaseModel):
    """Live settings of the inventory service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low_stock_threshold: Annotated[int, Field(ge=0)] = 10
    """A SKU with so many available, or fewer, is low: it is logged, and listed by `GET /stock?low=true`."""
    fault: FaultSettings = FaultSettings()


class LiveInventorySettings(Protocol):
    """The live settings now in force, and which version of the document they are (0: the defaults)."""

    @property
    def current(self) -> InventorySettings: ...

    @property
    def version(self) -> int: ...

    @property
    def revision(self) -> int: ...


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class InventoryProcessSettings(ProcessSettings):
    """The inventory service. Several instances may share one data folder: they share the database in it."""

    model_config = SettingsConfigDict(env_prefix="QUORATE_INVENTORY_")

    listen: Address = HostPort("127.0.0.1", 0)
    """Where requests are answered; port 0 takes a free one."""
    advertise: Address | None = None
    """Where others reach it, when that is not where it listens."""
    endpoints: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]
    """URLs of control-plane nodes, with commas between."""
    token_file: str | None = None
    """A file with the token for the nodes, which events from other services must then bring too."""
    namespace: str = "default"
