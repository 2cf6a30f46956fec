"""The part of a route in the routes document that limits and protects: its schema. See `quorate_gateway.routes`."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
)
from pydantic.json_schema import JsonSchemaValue

RATE_MIN = 0.001
RATE_MAX = 1_000_000.0
BURST_MAX = 1_000_000
WINDOW_MS_MIN = 100
POLICY_MS_MAX = 3_600_000
CALLS_MAX = 1_000_000
PROBES_MAX = 1_000

_KEY = re.compile(r"route|client|header:[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
"""The name of a header field is a token (RFC 9110, section 5.6.2)."""


class Strict(BaseModel):
    """Unknown names refused, no value taken for one of another type, unchangeable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _check_key(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        raise ValueError("'key' is 'route', 'client' or 'header:' and the name of a header field")
    return key


class RouteRateLimit(Strict):
    """At most so many requests; what is over it gets 429."""

    requests_per_second: Annotated[float, Field(ge=RATE_MIN, le=RATE_MAX, allow_inf_nan=False)]
    burst: Annotated[int, Field(ge=1, le=BURST_MAX)] | None = None
    """How many may come at once after a pause; what comes in a second when left out, and at least 1."""
    key: Annotated[str, StringConstraints(max_length=80), AfterValidator(_check_key)] = "route"
    """Whose requests are counted together: all of the route's (`route`), those of one client address (`client`; of an
    IPv6 address its first 64 bits), or those with one value of a header field (`header:X-Api-Key`)."""
    algorithm: Literal["token_bucket"] = "token_bucket"

    @property
    def burst_requests(self) -> int:
        """`burst`, or what it is when left out."""
        return self.burst or max(1, math.ceil(self.requests_per_second))


class RouteCircuitBreaker(Strict):
    """When the upstream is no longer asked, and for how long; what is not passed on gets 503."""

    enabled: bool = True
    window_ms: Annotated[int, Field(ge=WINDOW_MS_MIN, le=POLICY_MS_MAX)] = 5_000
    calls_min: Annotated[int, Field(ge=1, le=CALLS_MAX)] = 10
    """Calls within the window before anything is concluded from them."""
    slow_call_ms: Annotated[int, Field(ge=1, le=POLICY_MS_MAX)] = 1_000
    """A call without the head of an answer after so long is slow."""
    failure_percent: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 50.0
    """Of the calls, or of the probes, that failed or were slow."""
    open_ms: Annotated[int, Field(ge=WINDOW_MS_MIN, le=POLICY_MS_MAX)] = 5_000
    probes: Annotated[int, Field(ge=1, le=PROBES_MAX)] = 5


def _on_or_off(value: Any) -> Any:
    """YAML reads `on` and `off` as booleans."""
    return {"enabled": value} if isinstance(value, bool) else value


class _AlsoBoolean:
    """For the JSON Schema: a boolean may stand in the place of the object."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(core), {"type": "boolean"}]}


CircuitBreakerOrOff = Annotated[RouteCircuitBreaker, BeforeValidator(_on_or_off), _AlsoBoolean]
