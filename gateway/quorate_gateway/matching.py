"""Routes ready for the data plane: each compiled once a snapshot into bytes, seconds and closures.

`quorate_gateway.route_table` decides which of them takes a request. A route's policies are compiled by the modules of
`quorate_gateway.policies`; what these need beyond the document (keys, tables, chance) is a `CompileContext`, which the
process makes once and every snapshot is compiled with.
"""

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quorate_core.clock import Clock, SystemClock
from quorate_resilience import CircuitBreaker

from quorate_gateway.documents.destinations import Destination, RouteBalance
from quorate_gateway.documents.match import RouteMatch
from quorate_gateway.policies.admission import Admit, Authenticate, compile_admission
from quorate_gateway.policies.api_keys import ApiKeys
from quorate_gateway.policies.auth import compile_auth
from quorate_gateway.policies.circuit import compile_breaker
from quorate_gateway.policies.cors import CorsAnswers, compile_cors, without_service_cors
from quorate_gateway.policies.header_changes import ChangeBlock, compile_changes
from quorate_gateway.policies.jwt_tokens import JwtVerifiers
from quorate_gateway.policies.limit import RouteLimit, TableOf, compile_limit
from quorate_gateway.policies.limit_keys import KeyOf, compile_key
from quorate_gateway.policies.retry import RetryRule, compile_retry
from quorate_gateway.policies.rewrite import Rewrite, compile_rewrite
from quorate_gateway.policies.shedding import PRIORITIES
from quorate_gateway.policies.split import ChooseDestination, compile_split, only_share
from quorate_gateway.route_table import RouteRule
from quorate_gateway.routes import Route

if TYPE_CHECKING:
    from quorate_gateway.policies.shared_limit import SharedLimits


@dataclass(frozen=True, slots=True)
class CompileContext:
    """What routes are compiled with beside their document. The same object for all snapshots of a process: what it
    holds goes on over them."""

    shared_limits: "SharedLimits | None" = None
    """None without a Redis: limits that are to be shared are this gateway's own."""
    limit_tables: TableOf | None = None
    """Where limits keep their state for several worker processes together; None when there is only this one."""
    api_keys: ApiKeys = field(default_factory=ApiKeys)
    tokens: JwtVerifiers = field(default_factory=JwtVerifiers)
    zone: str = ""
    """Where this gateway stands; empty when that is not said."""
    chance: random.Random = field(default_factory=random.Random)
    clock: Clock = field(default_factory=SystemClock)
    """For the times in tokens and keys."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One instance of a service, as the data plane sees it. `authority` is `host:port`, and names its pool."""

    instance_id: str
    host: str
    port: int
    authority: str
    weight: int = 100
    zone: str = ""
    version: str = ""
    service: str = ""
    identity: str = field(init=False, compare=False, repr=False)
    """What is known of it follows this: service, instance and address. One string, which is hashed once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", f"{self.service}/{self.instance_id}@{self.authority}")


@dataclass(frozen=True, slots=True, eq=False)
class CompiledRoute:
    """A route ready for the data plane. Its endpoints are its services', in the snapshot of the moment."""

    name: str
    match: RouteMatch
    rule: RouteRule
    service: str
    """Empty for a route that splits between several."""
    services: frozenset[str]
    destinations: tuple[Destination, ...]
    choose_destination: ChooseDestination
    only_destination: Destination | None
    """The one that `choose_destination` always gives; None when it chooses."""
    split_key: KeyOf | None
    """By what a split keeps callers together; None when it does not, or when there is no split."""
    balance: RouteBalance
    balance_key: KeyOf
    """What a consistent hash goes by; empty for all other ways to balance."""
    hashes: bool
    """Whether it balances by a consistent hash."""
    rewrite: Rewrite | None
    rewrite_host: bytes | None
    """What `request_changes` puts in the place of Host, for those who show it."""
    request_changes: ChangeBlock | None
    response_changes: ChangeBlock | None
    websocket: bool
    priority: int
    """Of `quorate_resilience.shedding.Priority`."""
    retry: RetryRule
    timeout_s: float
    idle_timeout_s: float
    total_timeout_s: float | None
    request_bytes_max: int
    cors: CorsAnswers | None
    auth: Authenticate | None
    limit: RouteLimit | None
    breaker: CircuitBreaker | None
    admit: Admit | None
    """What may keep a request from going on, in its order; None when there is nothing."""
    source: Route


def compile_route(
    route: Route, former: CompiledRoute | None = None, context: CompileContext | None = None
) -> CompiledRoute:
    """`former` is the route of the same name in the snapshot before: the state of its limit and breaker goes on where
    their own parameters are the same. A breaker is also about the services, and begins anew with others; their weights
    and versions may change."""
    context = context or CompileContext()
    cors, auth = compile_cors(route.cors), compile_auth(route.auth, context)
    limit, breaker = _limit(route, former, context), _breaker(route, former)
    split_key = None if route.split_key is None else compile_key(route.split_key)
    rewrite_host = None if route.rewrite is None else route.rewrite.host
    hashes = route.balance.policy == "consistent_hash"
    return CompiledRoute(
        name=route.label,
        match=route.match,
        rule=RouteRule(route.match, takes_preflights=route.cors is not None),
        service=route.service or "",
        services=frozenset(destination.service for destination in route.destinations),
        destinations=route.destinations,
        choose_destination=compile_split(route.destinations, split_key, context.chance),
        only_destination=only_share(route.destinations),
        split_key=split_key,
        balance=route.balance,
        balance_key=compile_key(route.balance.key if hashes else "route"),
        hashes=hashes,
        rewrite=compile_rewrite(route.match, route.rewrite),
        rewrite_host=None if rewrite_host is None else rewrite_host.encode("ascii"),
        request_changes=compile_changes(route.request_headers, rewrite_host),
        response_changes=without_service_cors(cors, compile_changes(route.response_headers)),
        websocket=route.websocket,
        priority=PRIORITIES[route.priority],
        retry=compile_retry(route.retry, None if former is None else former.retry),
        timeout_s=route.timeout_ms / 1_000,
        idle_timeout_s=route.idle_timeout_ms / 1_000,
        total_timeout_s=None if route.total_timeout_ms is None else route.total_timeout_ms / 1_000,
        request_bytes_max=route.request_bytes_max,
        cors=cors,
        auth=auth,
        limit=limit,
        breaker=breaker,
        admit=compile_admission(cors, auth, limit, context.clock.wall_s),
        source=route,
    )


def _limit(route: Route, former: CompiledRoute | None, context: CompileContext) -> RouteLimit | None:
    if former is not None and former.source.rate_limit == route.rate_limit:
        return former.limit
    return compile_limit(
        route.label, route.rate_limit, shared=context.shared_limits, tables=context.limit_tables,
        monotonic_s=context.clock.monotonic_s,
    )  # fmt: skip


def _breaker(route: Route, former: CompiledRoute | None) -> CircuitBreaker | None:
    if (
        former is not None
        and former.services == {destination.service for destination in route.destinations}
        and former.source.circuit_breaker == route.circuit_breaker
    ):
        return former.breaker
    return compile_breaker(route.circuit_breaker)
