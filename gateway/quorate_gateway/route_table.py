"""Which route takes a request: decided by path first, then by what else a route asks for.

The order is the document's promise (see `quorate_gateway.routes`): exact path; then templates, the most specific first;
then prefixes, the longest first; of routes with the same path, the document's order. The first whose methods, host,
headers and query agree takes the request.

Whatever does not depend on the request is done once. Behind every exact path and every prefix stands the whole list of
routes that could take a request there, in order, the shorter prefixes included, cut off behind the first that takes
everything. So a request costs one dictionary probe for its exact path, and one for each segment until a prefix is
found. Templates are a tree of segments: one probe a segment for literals, and one more step for each `{name}` that
stands beside a literal.

Pure: this module knows neither the data plane nor what a route leads to, and also answers for documents that are not
served (`quorate_gateway.expectations`).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

from quorate_gateway.documents.match import RouteMatch, ValueMatch
from quorate_gateway.documents.strict import template_segments

HostRule = Callable[[bytes], bool]
Query = Mapping[bytes, bytes]
"""The first value of each parameter, decoded."""

_PREFLIGHT = re.compile(rb"\r\n(?i:access-control-request-method):[ \t]*([^\r \t]+)")


class RouteRule:
    """What a route asks of a request beyond its path."""

    __slots__ = ("_headers", "_host", "_query", "_takes_preflights", "methods", "reads_query", "takes_everything")

    def __init__(self, match: RouteMatch, *, takes_preflights: bool = False) -> None:
        """`takes_preflights`: a browser's preflight for one of the route's methods is the route's (Fetch standard, CORS
        protocol), though its own method is OPTIONS."""
        self.methods = None if match.methods is None else frozenset(method.encode() for method in match.methods)
        self._takes_preflights = takes_preflights
        self._host = None if match.host is None else _compile_host(match.host.encode())
        self._headers = tuple(_compile_header(name, wanted) for name, wanted in match.headers.items())
        self._query = tuple((name.encode(), value.encode()) for name, value in match.query.items())
        self.reads_query = bool(self._query)
        self.takes_everything = self.methods is None and self._host is None and not self._headers and not self._query

    def refusal(self, method: bytes, host: bytes, block: bytes, query: Query) -> str | None:
        """Why it does not take a request whose path it matches: `host`, `headers`, `query` or `method`; None when it
        does. `block` is the header block, each field with its CRLF in front."""
        if self._host is not None and not self._host(host):
            return "host"
        for pattern, wanted in self._headers:
            if (pattern.search(block) is not None) is not wanted:
                return "headers"
        for name, value in self._query:
            if query.get(name) != value:
                return "query"
        if self.methods is not None and method not in self.methods and not self._takes_preflight(method, block):
            return "method"
        return None

    def _takes_preflight(self, method: bytes, block: bytes) -> bool:
        if not self._takes_preflights or method != b"OPTIONS" or self.methods is None:
            return False
        asked_for = _PREFLIGHT.search(block)
        return asked_for is not None and asked_for[1] in self.methods


class Routed(Protocol):
    """What stands in a table."""

    @property
    def name(self) -> str: ...

    @property
    def match(self) -> RouteMatch: ...

    @property
    def rule(self) -> RouteRule: ...


R = TypeVar("R", bound=Routed)


@dataclass(frozen=True, slots=True)
class Considered(Generic[R]):
    """One step of a match, for explaining it: `refused_by` is None for the route that takes the request."""

    route: R
    refused_by: str | None


class RouteTable(Generic[R]):
    """All routes of a snapshot. Immutable."""

    __slots__ = ("_everywhere", "_exact", "_prefix_bytes_max", "_prefixes", "_templates")

    def __init__(self, routes: Sequence[R]) -> None:
        """`routes` in the document's order."""
        exact, prefixes = _by_path(routes, "path"), _by_path(routes, "path_prefix")
        self._templates: _TemplateNode[R] | None = _plant([route for route in routes if route.match.path_template])
        self._prefixes: dict[bytes, tuple[R, ...]] = {}
        self._everywhere: tuple[R, ...] = _until_all_taken(prefixes.pop(b"/", ()))
        """Of the prefix `/`, and of paths that no other prefix matches."""
        self._prefix_bytes_max = max(map(len, prefixes), default=0)
        for path in sorted(prefixes, key=len):  # the shorter ones first: the longer ones are continued by them
            self._prefixes[path] = _until_all_taken((*prefixes[path], *self._by_prefix(path)))
        self._exact: dict[bytes, tuple[R, ...]] = {}
        for path, found in exact.items():
            self._exact[path] = _until_all_taken((*found, *self._without_exact(path)))

    def match(self, method: bytes, path: bytes, host: bytes, block: bytes, target: bytes) -> R | None:
        """The route that takes the request. `path` is `target` without its query; see `RouteRule.refusal` for `block`.

        A query is decoded at most once, and only when a route that could take the request asks for it.
        """
        query: Query | None = None
        for route in self._exact.get(path) or self._without_exact(path):
            rule = route.rule
            if rule.takes_everything:
                return route
            if query is None and rule.reads_query:
                query = read_query(target)
            if rule.refusal(method, host, block, query or _NO_QUERY) is None:
                return route
        return None

    def explain(self, method: bytes, path: bytes, host: bytes, block: bytes, target: bytes) -> Sequence[Considered[R]]:
        """Every route whose path matches, in order, up to the one that takes the request."""
        steps: list[Considered[R]] = []
        query = read_query(target)
        for route in self._exact.get(path) or self._without_exact(path):
            refused_by = route.rule.refusal(method, host, block, query)
            steps.append(Considered(route, refused_by))
            if refused_by is None:
                break
        return steps

    def methods_elsewhere(self, path: bytes, host: bytes, block: bytes, target: bytes) -> Sequence[bytes]:
        """The methods that would be routed for a path that is not routed for the request's own."""
        methods: set[bytes] = set()
        for step in self.explain(b"", path, host, block, target):
            if step.refused_by == "method" and step.route.rule.methods is not None:
                methods |= step.route.rule.methods
        return sorted(methods)

    def _without_exact(self, path: bytes) -> tuple[R, ...]:
        if self._templates is not None and path[:1] == b"/":
            found = self._templates.find(path)
            if found:
                return _until_all_taken((*found, *self._by_prefix(path)))
        return self._by_prefix(path)

    def _by_prefix(self, path: bytes) -> tuple[R, ...]:
        """The routes of the longest prefix that matches, and then of the shorter ones."""
        prefixes = self._prefixes
        end, longest = len(path), self._prefix_bytes_max
        if end > longest:  # no need to look at the deeper segments, however many there are
            end = path.rfind(b"/", 0, longest + 1)
        while end > 0:
            found = prefixes.get(path[:end])
            if found is not None:
                return found
            end = path.rfind(b"/", 0, end)
        return self._everywhere if path[:1] == b"/" else ()


_NO_QUERY: Query = {}


def read_query(target: bytes) -> Query:
    """`/a?x=1&x=2&y=a+b` -> x: 1, y: `a b`. Decoded as forms are (URL standard, application/x-www-form-urlencoded)."""
    found: dict[bytes, bytes] = {}
    for pair in target.partition(b"?")[2].split(b"&"):
        if pair:
            name, _, value = pair.replace(b"+", b" ").partition(b"=")
            found.setdefault(unquote_to_bytes(name), unquote_to_bytes(value))
    return found


@dataclass(slots=True)
class _TemplateNode(Generic[R]):
    """What may follow a beginning of a template: `literals` before `variable` before `rest`, which is their order."""

    literals: dict[bytes, "_TemplateNode[R]"] = field(default_factory=dict)
    variable: "_TemplateNode[R] | None" = None
    rest: list[R] = field(default_factory=list)
    """Those with `{name...}` here."""
    ends: list[R] = field(default_factory=list)
    depth_max: int = 0
    """Of the whole tree, at its root: no segment below it is looked at."""

    def plant(self, route: R, template: str) -> None:
        node = self
        for depth, segment in enumerate(template_segments(template)):
            self.depth_max = max(self.depth_max, depth + 1)
            if segment.takes_rest:
                node.rest.append(route)
                return
            if segment.name:
                node.variable = node = node.variable or _TemplateNode()
            else:
                node = node.literals.setdefault(segment.literal.encode("ascii"), _TemplateNode())
        node.ends.append(route)

    def find(self, path: bytes) -> list[R]:
        """All whose template matches, the most specific first: it decides at the first segment in which two differ.

        Visits no more nodes than the tree has, whatever the path is.
        """
        first = path.find(b"/", 1)
        if self.variable is None and not self.rest and path[1 : first if first > 0 else len(path)] not in self.literals:
            return []
        segments = path.split(b"/", self.depth_max + 1)[1:]
        found: list[R] = []
        waiting: list[tuple[_TemplateNode[R] | list[R], int]] = [(self, 0)]
        while waiting:
            node, depth = waiting.pop()
            if isinstance(node, list):
                found += node
                continue
            if depth == len(segments):
                found += node.ends
                continue
            segment = segments[depth]
            if node.rest and (segment or depth + 1 < len(segments)):
                waiting.append((node.rest, depth))
            if node.variable is not None and segment:
                waiting.append((node.variable, depth + 1))
            literal = node.literals.get(segment)
            if literal is not None:
                waiting.append((literal, depth + 1))
        return found


def _plant(routes: Iterable[R]) -> _TemplateNode[R] | None:
    root: _TemplateNode[R] = _TemplateNode()
    for route in routes:
        root.plant(route, route.match.path_template or "")
    return root if root.depth_max else None


def _by_path(routes: Iterable[R], kind: str) -> dict[bytes, tuple[R, ...]]:
    found: dict[bytes, list[R]] = {}
    for route in routes:
        path: str | None = getattr(route.match, kind)
        if path is not None:
            found.setdefault(path.encode("ascii"), []).append(route)
    return {path: tuple(same) for path, same in found.items()}


def _until_all_taken(routes: tuple[R, ...]) -> tuple[R, ...]:
    """What stands behind a route that takes everything is never asked."""
    for index, route in enumerate(routes):
        if route.rule.takes_everything:
            return routes[: index + 1]
    return routes


def _compile_host(wanted: bytes) -> HostRule:
    if wanted.startswith(b"*."):
        suffix = wanted[1:]
        return lambda host: (name := _host_name(host)).endswith(suffix) and len(name) > len(suffix)
    return lambda host: _host_name(host) == wanted


def _host_name(host: bytes) -> bytes:
    """`Shop.example.:8080` -> `shop.example`; IPv6 keeps its brackets."""
    host = host.lower()
    if host.startswith(b"["):
        return host.partition(b"]")[0] + b"]"
    return host.partition(b":")[0].removesuffix(b".")


def _compile_header(name: str, wanted: ValueMatch) -> tuple[re.Pattern[bytes], bool]:
    """A pattern, and whether it is to be found or not."""
    field_name = rb"\r\n(?i:%b):" % re.escape(name.encode())
    if wanted.equals is not None:
        return re.compile(rb"%b[ \t]*%b[ \t]*(?=\r|\Z)" % (field_name, re.escape(wanted.equals.encode()))), True
    if wanted.prefix is not None:
        return re.compile(rb"%b[ \t]*%b" % (field_name, re.escape(wanted.prefix.encode()))), True
    return re.compile(field_name), bool(wanted.present)
