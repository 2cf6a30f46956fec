"""What the admin API shows of limits and breakers: their parameters are in the route, here is their state."""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel
from quorate_resilience import BreakerSettings, BreakerState

from quorate_gateway.matching import CompiledRoute
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.circuit import RULE as CIRCUIT_OPEN
from quorate_gateway.policies.circuit import state_summary
from quorate_gateway.policies.limit import shown_key
from quorate_gateway.policies.shedding import RULE as OVERLOADED
from quorate_gateway.policies.shedding import load_summary
from quorate_gateway.proxy.framing import RequestFields, RequestHead
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.served import BreakerReport, Served

RATE_LIMITED = "rate-limited"
BUCKETS_SHOWN_MAX = 10


class BucketView(BaseModel):
    """One bucket; `left` of `burst` requests. The value of a header field is shown as a digest."""

    key: str
    left: float


class LimitView(BaseModel):
    """`keys` have a bucket now, all others a full one. The counts are since the limit was last changed;
    `keys_forgotten_early` had requests left to regain when there was no more room for them. `waiting` are in a leaky
    bucket's queue now; `local` are checks of a shared limit that the gateway's own share has decided."""

    summary: str
    keys: int
    keys_max: int
    keys_forgotten_early: int
    admitted: int
    limited: int
    waiting: int
    local: int


class LimitDetailView(LimitView):
    """`nearest`: the buckets nearest to their limit, at most 10."""

    nearest: list[BucketView]


class BreakerView(BaseModel):
    """The three counts are of the window when `closed`, of the probes when `half-open`, and of what opened it when
    `open`. `refused` and `opened` count since the breaker was last changed. Each of several workers has a breaker of
    its own: told is the state that keeps most away, and `workers`, how many are in it."""

    state: BreakerState
    summary: str
    calls: int
    failed: int
    slow: int
    retry_after_s: float
    refused: int
    opened: int
    workers: int


class PolicyView(BaseModel):
    """One policy that a request would meet. `rule` is what it answers if it does not let it through."""

    policy: str
    rule: str
    lets_through: bool
    summary: str


def limit_view(route: CompiledRoute, served: Served) -> LimitView | None:
    limit, report = route.limit, served.limit(route)
    if limit is None or report is None:
        return None
    return LimitView(
        summary=limit.summary, keys=len(limit.limiter), keys_max=limit.limiter.keys_max,
        keys_forgotten_early=report.forgotten_early, admitted=report.admitted, limited=report.limited,
        waiting=report.waiting, local=report.local,
    )  # fmt: skip


def limit_detail(route: CompiledRoute, served: Served) -> LimitDetailView | None:
    """Looks at every key."""
    limit, summary = route.limit, limit_view(route, served)
    if limit is None or summary is None:
        return None
    nearest = [
        BucketView(key=shown_key(fill.key, limit.document), left=round(fill.tokens, 3))
        for fill in limit.limiter.emptiest(served.monotonic_s(), BUCKETS_SHOWN_MAX)
    ]
    return LimitDetailView(**summary.model_dump(), nearest=nearest)


def breaker_view(route: CompiledRoute, served: Served) -> BreakerView | None:
    breaker, report = route.breaker, served.breaker(route)
    if breaker is None or report is None:
        return None
    return BreakerView(
        state=report.state, summary=_breaker_summary(breaker.settings, report), calls=report.calls,
        failed=report.failed, slow=report.slow, retry_after_s=round(report.retry_after_s, 3), refused=report.refused,
        opened=report.entered.get(BreakerState.OPEN.value, 0), workers=report.workers[0],
    )  # fmt: skip


def _breaker_summary(settings: BreakerSettings, report: BreakerReport) -> str:
    counts = report.calls, report.failed, report.slow
    summary = state_summary(settings, report.state, counts, report.retry_after_s)
    like, workers = report.workers
    return summary if workers <= 1 else f"{summary}; so it is in {like} of {workers} workers"


class Met(NamedTuple):
    """What a request met before anything is counted, and who calls as far as that has been proved."""

    caller: Caller
    views: Sequence[PolicyView]


def identity_met(route: CompiledRoute, head: RequestHead, caller: Caller, wall_s: float) -> Met:
    """CORS and authentication, in their order. A request that is not let in is told of as who it came as."""
    views: list[PolicyView] = []
    if route.cors is not None:
        preflight = route.cors.preflight(head.fields, head)
        allowed = b"access-control-allow-origin" in route.cors.answer_fields(head.fields).lower()
        summary = f"origins {', '.join(route.source.cors.origins)}" if route.source.cors else ""
        if preflight is not None:
            summary += "; the gateway answers this preflight itself"
        else:
            summary += "; its origin may read the answer" if allowed else "; no origin that may read the answer"
        views.append(PolicyView(policy="cors", rule="cors-preflight", lets_through=preflight is None, summary=summary))
    if route.auth is not None:
        known = route.auth(head.fields, caller, wall_s)
        if isinstance(known, Refusal):
            views.append(PolicyView(policy="auth", rule=known.rule, lets_through=False, summary=known.detail))
        else:
            caller = known
            views.append(PolicyView(policy="auth", rule="unauthenticated", lets_through=True, summary=_who(caller)))
    return Met(caller, views)


def _who(caller: Caller) -> str:
    proved = []
    if caller.api_key_id:
        proved.append(f"API key {caller.api_key_id.decode('latin-1')!r}")
    if caller.subject:
        proved.append(f"subject {caller.subject.decode('utf-8', 'replace')!r}")
    return " and ".join(proved) or "a valid token without a subject"


def limits_met(route: CompiledRoute, fields: RequestFields, caller: Caller, served: Served) -> Sequence[PolicyView]:
    """Rate limit, load shedding and breaker, in their order. Takes nothing and asks nothing."""
    met: list[PolicyView] = []
    limit, load, breaker = route.limit, served.totals.load, served.breaker(route)
    if limit is not None:
        left = limit.left(fields, caller, served.monotonic_s())
        summary = f"{limit.summary}; {left} left now"
        met.append(PolicyView(policy="rate_limit", rule=RATE_LIMITED, lets_through=left > 0, summary=summary))
    if load.active >= load.limits[route.priority]:
        summary = f"priority {route.source.priority}; {load_summary(load)}"
        met.append(PolicyView(policy="priority", rule=OVERLOADED, lets_through=False, summary=summary))
    if route.breaker is not None and breaker is not None:
        lets_through = breaker.state is not BreakerState.FORCED_OPEN and not breaker.retry_after_s
        summary = _breaker_summary(route.breaker.settings, breaker)
        met.append(PolicyView(policy="circuit_breaker", rule=CIRCUIT_OPEN, lets_through=lets_through, summary=summary))
    return met
