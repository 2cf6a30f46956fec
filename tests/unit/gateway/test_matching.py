"""Which route takes a request: exact before prefix, longer before shorter, then document order, filters agreeing."""

import pytest
from quorate_gateway.matching import RouteTable
from support.gateway_snapshots import snapshot

ROUTES = """\
  - {name: root, match: {path_prefix: /}, service: s}
  - {name: orders, match: {path_prefix: /orders}, service: s}
  - {name: deep, match: {path_prefix: /orders/archive/old}, service: s}
  - {name: exact, match: {path: /orders/today}, service: s}
  - {name: posts, match: {path: /posts, methods: [POST, PUT]}, service: s}
  - {name: shop, match: {path_prefix: /x, host: shop.example}, service: s}
  - {name: wild, match: {path_prefix: /x, host: "*.example"}, service: s}
  - {name: web, match: {path_prefix: /x, headers: {x-channel: "web", x-v: "2.0"}}, service: s}
"""


@pytest.fixture(scope="module")
def table() -> RouteTable:
    return snapshot(ROUTES).table


def taken(
    table: RouteTable, path: bytes, method: bytes = b"GET", host: bytes = b"localhost", block: bytes = b""
) -> str | None:
    route = table.match(method, path, host, block)
    return None if route is None else route.name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/", "root"),
        (b"/anything/at/all", "root"),
        (b"/orders", "orders"),
        (b"/orders/", "orders"),
        (b"/orders/7/lines", "orders"),
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
def test_paths_are_matched_by_whole_segments_longest_first(table: RouteTable, path: bytes, name: str) -> None:
    assert taken(table, path) == name


def test_a_route_whose_method_does_not_agree_leaves_the_request_to_the_next(table: RouteTable) -> None:
    assert taken(table, b"/posts", b"POST") == "posts"
    assert taken(table, b"/posts", b"GET") == "root"


def test_hosts_are_compared_without_case_and_port(table: RouteTable) -> None:
    assert taken(table, b"/x", host=b"SHOP.Example:8080") == "shop"
    assert taken(table, b"/x", host=b"other.example") == "wild"
    assert taken(table, b"/x", host=b"a.b.example") == "wild"
    assert taken(table, b"/x", host=b"example") == "root"
    assert taken(table, b"/x", host=b"shop.example.evil") == "root"
    assert taken(table, b"/x", host=b"[::1]:8080") == "root"


def test_headers_must_all_be_there_with_the_whole_value(table: RouteTable) -> None:
    assert taken(table, b"/x", block=b"\r\nHost: h\r\nX-Channel: web\r\nx-v:2.0 ") == "web"
    assert taken(table, b"/x", block=b"\r\nX-Channel: web\r\nX-V: 2.0.1") == "root"
    assert taken(table, b"/x", block=b"\r\nX-Channel: web\r\nX-V: 2x0") == "root"
    assert taken(table, b"/x", block=b"\r\nX-Channel: web") == "root"
    assert taken(table, b"/x", block=b"\r\nNot-X-Channel: web\r\nX-V: 2.0") == "root"


def test_without_a_route_for_everything_there_may_be_none() -> None:
    table = snapshot("  - {match: {path_prefix: /a}, service: s}\n").table
    assert taken(table, b"/b") is None
    assert taken(table, b"/") is None
    assert taken(table, b"*") is None


def test_the_methods_that_would_be_routed_are_told() -> None:
    table = snapshot("  - {match: {path: /a, methods: [PUT, GET]}, service: s}\n").table
    assert table.methods_elsewhere(b"/a", b"h", b"") == [b"GET", b"PUT"]
    assert table.methods_elsewhere(b"/b", b"h", b"") == []


def test_an_explanation_has_every_route_that_was_considered(table: RouteTable) -> None:
    steps = table.explain(b"GET", b"/x/1", b"other.example", b"")
    assert [(step.route.name, step.refused_by) for step in steps] == [("shop", "host"), ("wild", None)]
    steps = table.explain(b"GET", b"/posts", b"h", b"")
    assert [(step.route.name, step.refused_by) for step in steps] == [("posts", "method"), ("root", None)]
