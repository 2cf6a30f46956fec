"""Which route takes a request: exact path, then templates, then prefixes, then document order, filters agreeing."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from quorate_gateway.documents.match import RouteMatch, ValueMatch
from quorate_gateway.expectations import PlainRoute, plain_table
from quorate_gateway.route_table import RouteTable, read_query
from quorate_gateway.routes import Route, RoutesDocument, check_routes, parse_routes

ROUTES = """\
routes:
  - {name: root, match: {path_prefix: /}, service: s}
  - {name: orders, match: {path_prefix: /orders}, service: s}
  - {name: deep, match: {path_prefix: /orders/archive/old}, service: s}
  - {name: exact, match: {path: /orders/today}, service: s}
  - {name: posts, match: {path: /posts, methods: [POST, PUT]}, service: s}
  - {name: shop, match: {path_prefix: /x, host: shop.example}, service: s}
  - {name: wild, match: {path_prefix: /x, host: "*.example"}, service: s}
  - {name: web, match: {path_prefix: /x, headers: {x-channel: "web", x-v: "2.0"}}, service: s}
  - {name: lines, match: {path_template: "/orders/{id}/lines"}, service: s}
  - {name: line, match: {path_template: "/orders/{id}/lines/{line}"}, service: s}
  - {name: todays, match: {path_template: "/orders/today/{what}"}, service: s}
  - {name: files, match: {path_template: "/files/{path...}"}, service: s}
"""


@pytest.fixture(scope="module")
def table() -> RouteTable[PlainRoute]:
    return plain_table(parse_routes(ROUTES))


def table_of(routes: str) -> RouteTable[PlainRoute]:
    return plain_table(parse_routes(f"routes:\n{routes}"))


def taken(
    table: RouteTable[PlainRoute], target: bytes, method: bytes = b"GET", host: bytes = b"localhost", block: bytes = b""
) -> str | None:
    route = table.match(method, target.partition(b"?")[0], host, block, target)
    return None if route is None else route.name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/", "root"),
        (b"/anything/at/all", "root"),
        (b"/orders", "orders"),
        (b"/orders/", "orders"),
        (b"/orders/7/lines/1/2", "orders"),
        (b"/ordersheet", "root"),
        (b"/Orders", "root"),
        (b"//orders", "root"),
        (b"/orders/archive", "orders"),
        (b"/orders/archive/old", "deep"),
        (b"/orders/archive/old/1", "deep"),
        (b"/orders/archive/older", "orders"),
        (b"/orders/today", "exact"),
        (b"/orders/today/", "orders"),
        (b"/" * 5_000, "root"),
    ],
)
def test_paths_are_matched_by_whole_segments_longest_first(
    table: RouteTable[PlainRoute], path: bytes, name: str
) -> None:
    assert taken(table, path) == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/orders/7/lines", "lines"),
        (b"/orders/7/lines/", "orders"),
        (b"/orders//lines", "orders"),
        (b"/orders/7/lines/1", "line"),
        (b"/orders/today/lines", "todays"),
        (b"/orders/today/lines/1", "line"),
        (b"/orders/archive/lines", "lines"),
        (b"/files", "root"),
        (b"/files/", "root"),
        (b"/files/a", "files"),
        (b"/files/a/b/c", "files"),
        (b"/files//", "files"),
        (b"/files" + b"/a" * 4_000, "files"),
    ],
)
def test_a_template_takes_whole_paths_with_something_for_each_name(
    table: RouteTable[PlainRoute], path: bytes, name: str
) -> None:
    assert taken(table, path) == name


def test_the_most_specific_template_decides_at_the_first_segment_that_differs() -> None:
    templates = ["/{a}/b/{c...}", "/{a}/b/c", "/a/{b...}", "/a/{b}/{c}", "/a/{b}/c", "/a/b/{c}", "/a/b/{c...}"]
    routes = "".join(f'  - {{match: {{path_template: "{one}"}}, service: s}}\n' for one in templates)
    table = table_of(routes.replace("}, service", ", methods: [X]}, service"))
    found = table.explain(b"GET", b"/a/b/c", b"h", b"", b"/a/b/c")
    assert [step.route.name for step in found] == [
        "/a/b/{c}", "/a/b/{c...}", "/a/{b}/c", "/a/{b}/{c}", "/a/{b...}", "/{a}/b/c", "/{a}/b/{c...}",
    ]  # fmt: skip
    assert taken(table_of(routes), b"/a/b/c") == "/a/b/{c}"


def test_a_template_whose_conditions_do_not_agree_leaves_the_request_to_a_wider_one_and_then_to_a_prefix() -> None:
    table = table_of(
        '  - {name: one, match: {path_template: "/a/{x}", methods: [PUT]}, service: s}\n'
        '  - {name: rest, match: {path_template: "/a/{x...}", methods: [POST]}, service: s}\n'
        '  - {name: exact, match: {path: "/a/b", methods: [HEAD]}, service: s}\n'
        "  - {name: all, match: {path_prefix: /a}, service: s}\n"
    )
    for method, name in ((b"HEAD", "exact"), (b"PUT", "one"), (b"POST", "rest"), (b"GET", "all")):
        assert taken(table, b"/a/b", method) == name
    assert taken(table, b"/a/c", b"HEAD") == "all"


def test_a_route_whose_method_does_not_agree_leaves_the_request_to_the_next(table: RouteTable[PlainRoute]) -> None:
    assert taken(table, b"/posts", b"POST") == "posts"
    assert taken(table, b"/posts", b"GET") == "root"


def test_a_prefix_whose_conditions_do_not_agree_leaves_the_request_to_the_next_shorter_one() -> None:
    paths = ["/a/b/c", "/", "/a/b", "/a"]
    routes = "".join(
        f"  - {{match: {{path_prefix: {path}, query: {{n: '{len(path)}'}}}}, service: s}}\n" for path in paths
    )
    table = table_of(routes)
    for path in paths:
        assert taken(table, b"/a/b/c/d?n=%d" % len(path)) == path
    steps = table.explain(b"GET", b"/a/b/c/d", b"h", b"", b"/a/b/c/d")
    assert [step.route.name for step in steps] == ["/a/b/c", "/a/b", "/a", "/"]


def test_hosts_are_compared_without_case_port_and_last_dot(table: RouteTable[PlainRoute]) -> None:
    assert taken(table, b"/x", host=b"SHOP.Example:8080") == "shop"
    assert taken(table, b"/x", host=b"shop.example.") == "shop"
    assert taken(table, b"/x", host=b"shop.example.:80") == "shop"
    assert taken(table, b"/x", host=b"other.example") == "wild"
    assert taken(table, b"/x", host=b"a.b.example") == "wild"
    assert taken(table, b"/x", host=b"example") == "root"
    assert taken(table, b"/x", host=b".example") == "root"
    assert taken(table, b"/x", host=b"shop.example.evil") == "root"
    assert taken(table, b"/x", host=b"[::1]:8080") == "root"
    assert taken(table, b"/x", host=b"") == "root"


def test_headers_must_all_be_there_with_the_whole_value(table: RouteTable[PlainRoute]) -> None:
    assert taken(table, b"/x", block=b"\r\nHost: h\r\nX-Channel: web\r\nx-v:2.0 ") == "web"
    assert taken(table, b"/x", block=b"\r\nX-Channel: web\r\nX-V: 2.0.1") == "root"
    assert taken(table, b"/x", block=b"\r\nX-Channel: web\r\nX-V: 2x0") == "root"
    assert taken(table, b"/x", block=b"\r\nX-Channel: web") == "root"
    assert taken(table, b"/x", block=b"\r\nNot-X-Channel: web\r\nX-V: 2.0") == "root"


@pytest.mark.parametrize(
    ("wanted", "block", "agrees"),
    [
        ("{equals: web}", b"\r\nX-C: web", True),
        ("{equals: web}", b"\r\nX-C: app\r\nx-c: web", True),
        ("{equals: web}", b"\r\nX-C: webs", False),
        ("{prefix: we}", b"\r\nX-C: web", True),
        ("{prefix: we}", b"\r\nX-C:we", True),
        ("{prefix: we}", b"\r\nX-C: app\r\nx-c: web", True),
        ("{prefix: we}", b"\r\nX-C: swe", False),
        ("{prefix: we}", b"\r\nX-C: WEB", False),
        ("{present: true}", b"\r\nX-C:", True),
        ("{present: true}", b"\r\nX-Cc: a", False),
        ("{present: false}", b"\r\nX-Cc: a", True),
        ("{present: false}", b"\r\nHost: h\r\nx-c: a", False),
    ],
)
def test_a_header_is_asked_for_by_its_value_its_beginning_or_that_it_is_there(
    wanted: str, block: bytes, agrees: bool
) -> None:
    table = table_of(f"  - {{match: {{path_prefix: /, headers: {{X-C: {wanted}}}}}, service: s}}\n")
    assert (taken(table, b"/", block=block) is not None) is agrees


@pytest.mark.parametrize(
    ("target", "agrees"),
    [
        (b"/?a=1&b=x+y", True),
        (b"/?b=x%20y&a=%31", True),
        (b"/?%61=1&b=x%20y&a=2", True),
        (b"/?a=2&a=1&b=x+y", False),
        (b"/?a=1", False),
        (b"/?a=1&b=x y".replace(b" ", b"%2B"), False),
        (b"/", False),
        (b"/?", False),
        (b"/?a&b", False),
        (b"/?a=1;b=x+y", False),
    ],
)
def test_each_parameter_of_the_query_must_be_equal_after_decoding(target: bytes, agrees: bool) -> None:
    table = table_of('  - {match: {path: /, query: {a: "1", b: "x y"}}, service: s}\n')
    assert (taken(table, target) is not None) is agrees


def test_of_a_parameter_that_comes_twice_the_first_counts() -> None:
    assert read_query(b"/p?x=1&x=2&y=a+b&&z&=v") == {b"x": b"1", b"y": b"a b", b"z": b"", b"": b"v"}


def test_without_a_route_for_everything_there_may_be_none() -> None:
    table = table_of("  - {match: {path_prefix: /a}, service: s}\n")
    assert taken(table, b"/b") is None
    assert taken(table, b"/") is None
    assert taken(table, b"*") is None
    assert taken(table_of('  - {match: {path_template: "/{all...}"}, service: s}\n'), b"*") is None


def test_the_methods_that_would_be_routed_are_told() -> None:
    table = table_of(
        "  - {match: {path: /a, methods: [PUT, GET]}, service: s}\n"
        '  - {match: {path_template: "/{x}", methods: [PATCH], query: {v: "1"}}, service: s}\n'
    )
    assert table.methods_elsewhere(b"/a", b"h", b"", b"/a") == [b"GET", b"PUT"]
    assert table.methods_elsewhere(b"/a", b"h", b"", b"/a?v=1") == [b"GET", b"PATCH", b"PUT"]
    assert table.methods_elsewhere(b"/b", b"h", b"", b"/b") == []


@pytest.mark.parametrize(
    ("method", "block", "name"),
    [
        (b"OPTIONS", b"\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: PUT", "puts"),
        (b"OPTIONS", b"\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: GET", "gets"),
        (b"OPTIONS", b"\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: PATCH", None),
        (b"OPTIONS", b"", None),
        (b"POST", b"\r\nAccess-Control-Request-Method: GET", None),
    ],
)
def test_a_browsers_preflight_is_for_the_route_of_the_method_that_it_asks_for(
    method: bytes, block: bytes, name: str | None
) -> None:
    table = table_of(
        "  - {name: plain, match: {path: /a, methods: [PATCH]}, service: s}\n"
        '  - {name: gets, match: {path: /a, methods: [GET]}, service: s, cors: {origins: ["*"]}}\n'
        '  - {name: puts, match: {path: /a, methods: [PUT]}, service: s, cors: {origins: ["*"]}}\n'
    )
    assert taken(table, b"/a", method, block=block) == name


def test_an_explanation_has_every_route_that_was_considered(table: RouteTable[PlainRoute]) -> None:
    steps = table.explain(b"GET", b"/x/1", b"other.example", b"", b"/x/1")
    assert [(step.route.name, step.refused_by) for step in steps] == [("shop", "host"), ("wild", None)]
    steps = table.explain(b"GET", b"/posts", b"h", b"", b"/posts")
    assert [(step.route.name, step.refused_by) for step in steps] == [("posts", "method"), ("root", None)]


# Against a plain reference: all routes sorted by the stated order, the first that agrees.

SEGMENTS = st.sampled_from(["a", "b", ""])
LITERALS = st.sampled_from(["a", "b", "{x}"])


@st.composite
def matches(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["path", "path_prefix", "path_template"]))
    found: dict[str, Any] = {}
    if kind == "path_template":
        names = iter("pqrstu")
        segments = [f"{{{next(names)}}}" if one == "{x}" else one for one in draw(st.lists(LITERALS, max_size=3))]
        if draw(st.booleans()) or not any(one.startswith("{") for one in segments):
            segments.append("{z...}")
        found[kind] = "/" + "/".join(segments)
    else:
        found[kind] = "/" + "/".join(draw(st.lists(SEGMENTS, max_size=3)))
    if draw(st.booleans()):
        found["methods"] = draw(st.lists(st.sampled_from(["GET", "PUT"]), min_size=1, max_size=2, unique=True))
    if draw(st.booleans()):
        found["host"] = draw(st.sampled_from(["h.example", "*.example", "other"]))
    if draw(st.booleans()):
        found["headers"] = {"x": draw(st.sampled_from(["1", "12"]).flatmap(
            lambda value: st.sampled_from([{"equals": value}, {"prefix": value}, {"present": value == "1"}])
        ))}  # fmt: skip
    if draw(st.booleans()):
        found["query"] = {"q": draw(st.sampled_from(["1", "2"]))}
    return found


def specificity(match: RouteMatch) -> tuple[Any, ...]:
    """Sorts in the stated order."""
    if match.path is not None:
        return (0,)
    if match.path_template is not None:
        kinds = [
            2 if one.endswith("...}") else 1 if one.startswith("{") else 0 for one in match.path_template.split("/")
        ]
        return (1, tuple(kinds))
    return (2, -len(match.matched))


def path_agrees(match: RouteMatch, path: str) -> bool:
    if match.path is not None:
        return path == match.path
    if match.path_prefix is not None:
        return match.path_prefix == "/" or path == match.path_prefix or path.startswith(match.path_prefix + "/")
    wanted, found = (match.path_template or "").split("/"), path.split("/")
    if wanted[-1].endswith("...}"):
        rest = "/".join(found[len(wanted) - 1 :])
        wanted, found = wanted[:-1], found[: len(wanted) - 1]
        if not rest:
            return False
    pairs_agree = all(
        bool(there) if one.startswith("{") else one == there for one, there in zip(wanted, found, strict=False)
    )
    return len(wanted) == len(found) and pairs_agree


def value_agrees(wanted: ValueMatch, value: str | None) -> bool:
    if wanted.present is not None:
        return (value is not None) is wanted.present
    if value is None:
        return False
    return value == wanted.equals if wanted.equals is not None else value.startswith(wanted.prefix or "")


def reference(routes: Sequence[Route], request: "tuple[str, str, str, str | None, str | None]") -> str | None:
    method, path, host, header, query = request
    for route in sorted(routes, key=lambda route: specificity(route.match)):
        match = route.match
        agrees = (
            path_agrees(match, path)
            and (match.methods is None or method in match.methods)
            and (match.host is None or host == match.host or (match.host[0] == "*" and host.endswith(match.host[1:])))
            and all(value_agrees(wanted, header) for wanted in match.headers.values())
            and all(query == value for value in match.query.values())
        )
        if agrees:
            return route.name
    return None


REQUESTS = st.tuples(
    st.sampled_from(["GET", "PUT"]),
    st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=4).map(lambda segments: "/" + "/".join(segments)),
    st.sampled_from(["h.example", "g.example", "other"]),
    st.sampled_from([None, "", "1", "12", "2"]),
    st.sampled_from([None, "1", "2"]),
)


@given(st.lists(matches(), max_size=8), st.lists(REQUESTS, min_size=1, max_size=20))
@example(
    [{"path_template": "/{p}/b/{q}"}, {"path_template": "/a/{p}/{z...}"}], [("GET", "/a/b/c", "other", None, None)]
)
def test_the_table_takes_what_a_plain_search_in_the_stated_order_takes(
    drawn: list[dict[str, Any]], requests: "list[tuple[str, str, str, str | None, str | None]]"
) -> None:
    routes = [
        Route.model_validate({"name": f"r{number}", "service": "s", "match": match})
        for number, match in enumerate(drawn)
    ]
    table = plain_table(RoutesDocument(routes=routes))
    for request in requests:
        method, path, host, header, query = request
        block = b"\r\nHost: h" + (b"" if header is None else f"\r\nX: {header}".encode())
        target = path.encode() + (b"" if query is None else b"?q=" + query.encode())
        assert taken(table, target, method.encode(), host.encode(), block) == reference(routes, request)


@given(matches(), matches(), st.lists(REQUESTS, min_size=10, max_size=30))
def test_a_route_that_covers_another_takes_every_request_that_the_other_would(
    first: dict[str, Any],
    second: dict[str, Any],
    requests: "list[tuple[str, str, str, str | None, str | None]]",
) -> None:
    one, two = (
        Route.model_validate({"name": name, "service": "s", "match": match})
        for name, match in (("one", first), ("two", {**second, **_path_of(first)}))
    )
    if one.match.covers(two.match):
        for request in requests:
            assert reference([two], request) is None or reference([one, two], request) == "one"


VALUE_MATCHES = [
    ValueMatch(equals="1"), ValueMatch(equals="12"), ValueMatch(prefix="1"), ValueMatch(prefix="12"),
    ValueMatch(present=True), ValueMatch(present=False),
]  # fmt: skip


@pytest.mark.parametrize("wanted", VALUE_MATCHES, ids=str)
@pytest.mark.parametrize("other", VALUE_MATCHES, ids=str)
def test_a_condition_follows_from_another_just_when_it_agrees_with_all_that_the_other_does(
    wanted: ValueMatch, other: ValueMatch
) -> None:
    values = [None, "", "1", "12", "123", "13", "2"]
    follows = all(value_agrees(wanted, value) for value in values if value_agrees(other, value))
    assert wanted.follows_from(other) is follows


def _path_of(match: dict[str, Any]) -> dict[str, Any]:
    """Nothing but the path is taken over, and of the other nothing of its path is left."""
    nothing = dict.fromkeys(("path", "path_prefix", "path_template"))
    return {**nothing, **{name: value for name, value in match.items() if name.startswith("path")}}


def test_a_lookup_visits_no_more_of_the_tree_of_templates_than_there_is() -> None:
    """Templates with a literal and a name beside each other at each depth, and a path that agrees with all of them."""
    shapes = ["".join(f"/{{v{depth}}}" if number >> depth & 1 else "/a" for depth in range(8)) for number in range(256)]
    routes = "".join(f"  - {{match: {{path_template: '{shape}/{{last}}'}}, service: s}}\n" for shape in shapes)
    table = table_of(routes)
    assert taken(table, b"/a" * 8 + b"/x") == "/a/a/a/a/a/a/a/a/{last}"
    assert taken(table, b"/b" * 8 + b"/x") == shapes[255] + "/{last}"
    assert taken(table, b"/a" * 10_000) is None
    assert check_routes(f"routes:\n{routes}")[1] == []
