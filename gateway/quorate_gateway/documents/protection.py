"""What protects a service and its callers: circuit breaker, outlier ejection, retries, priorities."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from quorate_gateway.documents.strict import DURATION_MS_MAX, AlsoBoolean, DurationMs, Percent, Strict, on_or_off

WINDOW_MS_MIN = 100
CALLS_MAX = 1_000_000
PROBES_MAX = 1_000
RETRY_ATTEMPTS_MAX = 5
RETRIED_STATUSES_MAX = 10


class RouteCircuitBreaker(Strict):
    """When the upstream is no longer asked, and for how long; what is not passed on gets 503."""

    enabled: bool = True
    """`circuit_breaker: off` says the same as `{enabled: false}`."""
    window_ms: Annotated[int, Field(ge=WINDOW_MS_MIN, le=DURATION_MS_MAX)] = 5_000
    """The calls that ended within it are looked at."""
    calls_min: Annotated[int, Field(ge=1, le=CALLS_MAX)] = 10
    """Calls within the window before anything is concluded from them."""
    slow_call_ms: DurationMs = 1_000
    """A call without the head of an answer after so long is slow."""
    failure_percent: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 50.0
    """Of the calls, or of the probes, that failed or were slow."""
    open_ms: Annotated[int, Field(ge=WINDOW_MS_MIN, le=DURATION_MS_MAX)] = 5_000
    """For how long nothing is passed on, before probes are."""
    probes: Annotated[int, Field(ge=1, le=PROBES_MAX)] = 5
    """Exactly so many requests are let through to find out."""


class RouteOutlierEjection(Strict):
    """When a single instance is passed over although the registry has it, and for how long."""

    enabled: bool = True
    """`outlier_ejection: off` says the same as `{enabled: false}`."""
    consecutive_failures: Annotated[int, Field(ge=1, le=1_000)] = 5
    """Failures one after the other: 5xx, no connection, a reset, a timeout."""
    ejection_ms: Annotated[int, Field(ge=WINDOW_MS_MIN, le=DURATION_MS_MAX)] = 10_000
    """The first time; each further time in a row that much longer, up to `ejection_max_ms`."""
    ejection_max_ms: Annotated[int, Field(ge=WINDOW_MS_MIN, le=DURATION_MS_MAX)] = 300_000
    """The longest."""
    ejected_percent_max: Percent = 50.0
    """Of a service's instances; of more than one instance, one may always be ejected."""


class RouteRetry(Strict):
    """Further tries after the first: on another endpoint when a connection is refused, and for idempotent methods
    also when a connection ends before any byte of an answer, or the answer has one of `statuses`."""

    attempts: Annotated[int, Field(ge=0, le=RETRY_ATTEMPTS_MAX)] = 2
    """At most so many tries after the first."""
    per_try_timeout_ms: DurationMs | None = None
    """From a try's whole request to the head of its answer; then the next try. A try that no other may follow goes on.
    `timeout_ms` bounds them all."""
    statuses: list[Annotated[int, Field(ge=500, le=599)]] = Field(default_factory=list, max_length=RETRIED_STATUSES_MAX)
    """Answers of the service that count as failures of a try."""
    non_idempotent: bool = False
    """Whether other methods than GET, HEAD, OPTIONS, TRACE, PUT and DELETE are tried again, too, after bytes were
    sent: only for services that recognise a repeated request."""
    budget_percent: Percent = 20.0
    """Retries may be at most so many of the route's requests of the last 10 seconds, or 10 of them if that is more."""


CircuitBreakerOrOff = Annotated[RouteCircuitBreaker, BeforeValidator(on_or_off), AlsoBoolean]
OutlierEjectionOrOff = Annotated[RouteOutlierEjection, BeforeValidator(on_or_off), AlsoBoolean]
