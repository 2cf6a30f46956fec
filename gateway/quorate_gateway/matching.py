"""Which route takes a request: compiled once a snapshot, asked with the request's own bytes.

The order is the document's promise (see `quorate_gateway.routes`): exact path, then prefixes from the longest to the
shortest, then document order; the first whose methods, host and headers agree.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quorate_resilience import CircuitBreaker

from quorate_gateway.policies.admission import Admit, compile_admission
from quorate_gateway.policies.circuit import compile_breaker
from quorate_gateway.policies.limit import RouteLimit, compile_limit
from quorate_gateway.policies.retry import MayRetry, compile_retry
from quorate_gateway.policies.rewrite import Rewrite, compile_rewrite
from quorate_gateway.routes import Route

HostRule = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One instance of a service, as the data plane sees it. `authority` is `host:port`, and names its pool."""

    instance_id: str
    host: str
    port: int
    authority: str


@dataclass(frozen=True, slots=True, eq=False)
class CompiledRoute:
    """A route ready for the data plane: bytes, seconds and closures. Its endpoints are its service's, in the
    snapshot of the moment."""

    name: str
    service: str
    methods: frozenset[bytes] | None
    takes_host: HostRule | None
    header_patterns: tuple[re.Pattern[bytes], ...]
    rewrite: Rewrite | None
    may_retry: MayRetry
    timeout_s: float
    idle_timeout_s: float
    total_timeout_s: float | None
    request_bytes_max: int
    limit: RouteLimit | None
    breaker: CircuitBreaker | None
    admit: Admit | None
    """`limit` and `breaker` in their order; None when there is neither."""
    source: Route

    def refusal(self, method: bytes, host: bytes, block: bytes) -> str | None:
        """Why it does not take a request whose path it matches: `method`, `host` or `headers`; None when it does.

        `block` is the header block, each field with its CRLF in front.
        """
        if self.takes_host is not None and not self.takes_host(host):
            return "host"
        if self.header_patterns and not all(pattern.search(block) for pattern in self.header_patterns):
            return "headers"
        if self.methods is not None and method not in self.methods:
            return "method"
        return None


def compile_route(route: Route, former: CompiledRoute | None = None) -> CompiledRoute:
    """`former` is the route of the same name in the snapshot before: the state of its limit and breaker goes on where
    their own parameters are the same. A breaker is also about the service, and begins anew with another one."""
    match = route.match
    limit, breaker = _limit(route, former), _breaker(route, former)
    return CompiledRoute(
        name=route.label,
        service=route.service,
        methods=None if match.methods is None else frozenset(method.encode() for method in match.methods),
        takes_host=None if match.host is None else _compile_host(match.host.encode()),
        header_patterns=tuple(_compile_header(name, value) for name, value in match.headers.items()),
        rewrite=compile_rewrite(match.matched, None if route.rewrite is None else route.rewrite.path_prefix),
        may_retry=compile_retry(route.retry.attempts),
        timeout_s=route.timeout_ms / 1_000,
        idle_timeout_s=route.idle_timeout_ms / 1_000,
        total_timeout_s=None if route.total_timeout_ms is None else route.total_timeout_ms / 1_000,
        request_bytes_max=route.request_bytes_max,
        limit=limit,
        breaker=breaker,
        admit=compile_admission(limit, breaker),
        source=route,
    )


def _limit(route: Route, former: CompiledRoute | None) -> RouteLimit | None:
    if former is not None and former.source.rate_limit == route.rate_limit:
        return former.limit
    return compile_limit(route.label, route.rate_limit)


def _breaker(route: Route, former: CompiledRoute | None) -> CircuitBreaker | None:
    if (
        former is not None
        and former.service == route.service
        and former.source.circuit_breaker == route.circuit_breaker
    ):
        return former.breaker
    return compile_breaker(route.circuit_breaker)


@dataclass(frozen=True, slots=True)
class Considered:
    """One step of a match, for explaining it: `refused_by` is None for the route that takes the request."""

    route: CompiledRoute
    refused_by: str | None


class RouteTable:
    """All routes of a snapshot. Immutable; a lookup costs one dictionary probe a path segment."""

    __slots__ = ("_exact", "_prefix_bytes_max", "_prefixes")

    def __init__(self, routes: Sequence[CompiledRoute]) -> None:
        exact: dict[bytes, list[CompiledRoute]] = {}
        prefixes: dict[bytes, list[CompiledRoute]] = {}
        for route in routes:
            table = prefixes if route.source.match.path is None else exact
            table.setdefault(route.source.match.matched.encode("ascii"), []).append(route)
        self._exact = {path: tuple(found) for path, found in exact.items()}
        self._prefixes = {path: tuple(found) for path, found in prefixes.items()}
        self._prefix_bytes_max = max(map(len, prefixes), default=0)

    def match(self, method: bytes, path: bytes, host: bytes, block: bytes) -> CompiledRoute | None:
        """The route that takes the request. `path` is without query; see `CompiledRoute.refusal` for `block`."""
        for route in self._in_order(path):
            if route.refusal(method, host, block) is None:
                return route
        return None

    def explain(self, method: bytes, path: bytes, host: bytes, block: bytes) -> Sequence[Considered]:
        """Every route whose path matches, in order, up to the one that takes the request."""
        steps: list[Considered] = []
        for route in self._in_order(path):
            refused_by = route.refusal(method, host, block)
            steps.append(Considered(route, refused_by))
            if refused_by is None:
                break
        return steps

    def methods_elsewhere(self, path: bytes, host: bytes, block: bytes) -> Sequence[bytes]:
        """The methods that would be routed for a path that is not routed for the request's own."""
        methods: set[bytes] = set()
        for route in self._in_order(path):
            if route.methods is not None and route.refusal(b"", host, block) == "method":
                methods |= route.methods
        return sorted(methods)

    def _in_order(self, path: bytes) -> Iterator[CompiledRoute]:
        if self._exact:
            yield from self._exact.get(path, ())
        prefixes = self._prefixes
        end, longest = len(path), self._prefix_bytes_max
        if end > longest:  # no need to look at the deeper segments, however many there are
            end = path.rfind(b"/", 0, longest + 1)
        while end > 0:
            found = prefixes.get(path[:end])
            if found is not None:
                yield from found
            end = path.rfind(b"/", 0, end)
        yield from prefixes.get(b"/", ()) if path != b"/" else ()


def _compile_host(wanted: bytes) -> HostRule:
    if wanted.startswith(b"*."):
        suffix = wanted[1:]
        return lambda host: _without_port(host).endswith(suffix)
    return lambda host: _without_port(host) == wanted


def _without_port(host: bytes) -> bytes:
    """`Shop.example:8080` -> `shop.example`; IPv6 keeps its brackets."""
    host = host.lower()
    return host.partition(b"]")[0] + b"]" if host.startswith(b"[") else host.partition(b":")[0]


def _compile_header(name: str, value: str) -> re.Pattern[bytes]:
    return re.compile(rb"\r\n(?i:%b):[ \t]*%b[ \t]*(?=\r|\Z)" % (re.escape(name.encode()), re.escape(value.encode())))
