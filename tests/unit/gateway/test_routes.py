"""The routes document: what it may say, and that everything else is refused with its line."""

import json
import subprocess
import sys

import pytest
from quorate_core.documents import DocumentError
from quorate_core.errors import InvalidContent
from quorate_gateway.policy_documents import RouteCircuitBreaker, RouteRateLimit
from quorate_gateway.routes import DOCUMENT, DOCUMENT_BYTES_MAX, ROUTES_MAX, parse_routes, routes_schema

FULL = """\
routes:
  - name: orders
    match:
      path_prefix: /orders/
      methods: [GET, POST]
      host: "*.Example.com"
      headers: {X-Channel: web}
    service: order
    rewrite: {path_prefix: /v2}
    timeout_ms: 1000
    idle_timeout_ms: 2000
    total_timeout_ms: 3000
    retry: {attempts: 0}
    request_bytes_max: 10
    rate_limit: {requests_per_second: 0.5, burst: 3, key: "header:X-Api-Key", algorithm: token_bucket}
    circuit_breaker:
      window_ms: 1000
      calls_min: 3
      slow_call_ms: 200
      failure_percent: 12.5
      open_ms: 2000
      probes: 1
  - match: {path: /today}
    service: order
"""


def errors(content: str) -> list[DocumentError]:
    return list(DOCUMENT("routes.yaml", content))


def only_error(content: str) -> DocumentError:
    [error] = errors(content)
    return error


def test_a_document_with_everything_is_accepted() -> None:
    assert errors(FULL) == []
    full, short = parse_routes(FULL).routes
    assert (full.match.path_prefix, full.match.host, full.match.headers) == (
        "/orders",
        "*.example.com",
        {"x-channel": "web"},
    )
    assert (short.label, short.timeout_ms, short.retry.attempts) == ("/today", 15_000, 2)


def test_no_routes_are_a_document_too() -> None:
    assert errors("routes: []\n") == []


def test_json_is_yaml() -> None:
    assert errors(json.dumps({"routes": [{"match": {"path": "/a"}, "service": "a"}]})) == []


def test_other_keys_of_the_group_are_nobodys_business_here() -> None:
    assert list(DOCUMENT("notes.txt", "{not yaml")) == []


def test_an_unknown_field_is_refused_in_its_line_with_what_was_meant() -> None:
    error = only_error(
        "routes:\n  - name: orders\n    match: {path_prefix: /orders}\n    service: order\n    timout_ms: 5\n"
    )
    assert (error.line, error.path) == (5, "routes.0.timout_ms")
    assert error.message == "unknown field 'timout_ms'; did you mean 'timeout_ms'?"


def test_a_misspelt_field_that_leaves_another_missing_names_both() -> None:
    found = errors("routes:\n  - name: orders\n    match: {path_prefix: /orders}\n    servise: order\n")
    assert [(error.line, error.message) for error in found] == [
        (4, "unknown field 'servise'; did you mean 'service'?"),
        (2, "'service' is missing"),
    ]


@pytest.mark.parametrize(
    ("route", "line", "text"),
    [
        ("match: {path: /a, path_prefix: /a}\n    service: a", 2, "exactly one of"),
        ("match: {methods: [GET]}\n    service: a", 2, "exactly one of"),
        ("service: a\n    match:\n      path: a", 4, "starts with '/'"),
        ("service: a\n    match: {path: /a/../b}", 3, "dot segment"),
        ("service: a\n    match: {path: '/a?b'}", 3, "no query"),
        ("service: a\n    match: {path: /a}\n    timeout_ms: 0", 4, "greater than or equal to 1"),
        ("service: a\n    match: {path: /a}\n    timeout_ms: '5'", 4, "valid integer"),
        ("service: a\n    match: {path: /a}\n    timeout_ms: true", 4, "valid integer"),
        ("service: A b\n    match: {path: /a}", 2, "match pattern"),
        ("service: a\n    match: {path: /a, methods: []}", 3, "at least 1"),
        ("service: a\n    match: {path: /a, methods: [get]}", 3, "match pattern"),
        ("service: a\n    match:\n      path: /a\n      headers: {X-A: 1}", 5, "valid string"),
        ("service: a\n    match:\n      path: /a\n      host: a/b", 5, "match pattern"),
        ("service: a\n    match: {path: /a}\n    retry: {attempts: 99}", 4, "less than or equal to 5"),
        ("service: a\n    match: {path: /a}\n    retry: 2", 4, "'retry' must be a mapping"),
        ("twice", 2, "a route must be a mapping"),
    ],
)
def test_a_bad_value_is_refused_in_its_line(route: str, line: int, text: str) -> None:
    error = only_error(f"routes:\n  - {route}\n")
    assert error.line == line, error
    assert text in error.message


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("rate_limit: {requests_per_second: -1}", "greater than or equal to 0.001"),
        ("rate_limit: {requests_per_second: 0}", "greater than or equal to 0.001"),
        ("rate_limit: {requests_per_second: 2000000}", "less than or equal to 1000000"),
        ("rate_limit: {requests_per_second: .nan}", "finite number"),
        ("rate_limit: {requests_per_second: .inf}", "finite number"),
        ("rate_limit: {requests_per_second: '5'}", "valid number"),
        ("rate_limit: {requests_per_second: true}", "valid number"),
        ("rate_limit: {requests_per_second: 5, burst: 0}", "greater than or equal to 1"),
        ("rate_limit: {requests_per_second: 5, burst: 1.5}", "valid integer"),
        ("rate_limit: {requests_per_second: 5, key: ip}", "'key' is 'route', 'client' or 'header:'"),
        ("rate_limit: {requests_per_second: 5, key: 'header:'}", "'key' is 'route', 'client' or 'header:'"),
        ("rate_limit: {requests_per_second: 5, key: 'header:a b'}", "'key' is 'route', 'client' or 'header:'"),
        ("rate_limit: {requests_per_second: 5, algorithm: hope}", "should be 'token_bucket'"),
        ("rate_limit: {requests_per_second: 5, bursts: 5}", "unknown field 'bursts'; did you mean 'burst'?"),
        ("rate_limit: {burst: 5}", "'requests_per_second' is missing"),
        ("rate_limit: 100", "'rate_limit' must be a mapping"),
        ("circuit_breaker: {window_ms: 0}", "greater than or equal to 100"),
        ("circuit_breaker: {calls_min: 0}", "greater than or equal to 1"),
        ("circuit_breaker: {slow_call_ms: -1}", "greater than or equal to 1"),
        ("circuit_breaker: {failure_percent: 100.5}", "less than or equal to 100"),
        ("circuit_breaker: {failure_percent: 0}", "greater than 0"),
        ("circuit_breaker: {failure_percent: .nan}", "finite number"),
        ("circuit_breaker: {open_ms: 0}", "greater than or equal to 100"),
        ("circuit_breaker: {probes: 0}", "greater than or equal to 1"),
        ("circuit_breaker: {probes: 5.0}", "valid integer"),
        ("circuit_breaker: {enabled: 1}", "valid boolean"),
        ("circuit_breaker: {slow_call: 1}", "unknown field 'slow_call'; did you mean 'slow_call_ms'?"),
        ("circuit_breaker: sometimes", "'circuit_breaker' must be a mapping"),
        ("circuit_breaker:", "'circuit_breaker' must be a mapping"),
    ],
)
def test_a_policy_that_can_mean_nothing_is_refused_in_its_line(policy: str, text: str) -> None:
    name, _, rest = policy.partition(": {")
    spread = f"{name}:\n      " + rest.removesuffix("}").replace(", ", "\n      ") if rest else policy
    for written, line in ((policy, 4), (spread, 4 + spread.count("\n"))):
        error = only_error(f"routes:\n  - service: a\n    match: {{path: /a}}\n    {written}\n")
        assert text in error.message
        assert error.line == (4 if "is missing" in text else line), error


def test_a_breaker_is_there_unless_it_is_switched_off() -> None:
    route = "routes:\n  - service: a\n    match: {path: /a}\n"

    def breaker(text: str) -> RouteCircuitBreaker:
        return parse_routes(f"{route}    {text}\n").routes[0].circuit_breaker

    default = RouteCircuitBreaker()
    assert (default.window_ms, default.calls_min, default.slow_call_ms) == (5_000, 10, 1_000)
    assert (default.failure_percent, default.open_ms, default.probes) == (50, 5_000, 5)
    for text in ("", "circuit_breaker: {}", "circuit_breaker: on", "circuit_breaker: {enabled: true}"):
        assert breaker(text) == default
    assert breaker("circuit_breaker: off").enabled is False
    assert breaker("circuit_breaker: {enabled: false, probes: 2}").probes == 2


@pytest.mark.parametrize(("rate", "burst"), [(0.001, 1), (1, 1), (1.5, 2), (100, 100)])
def test_a_burst_that_is_left_out_is_what_comes_in_a_second(rate: float, burst: int) -> None:
    assert RouteRateLimit(requests_per_second=rate).burst_requests == burst


def test_two_routes_of_one_name_are_refused() -> None:
    error = only_error(
        "routes:\n  - {name: a, match: {path: /a}, service: s}\n  - match: {path: /b}\n    service: s\n    name: a\n"
    )
    assert (error.line, error.message) == (5, "routes 0 and 1 are both called 'a'")


def test_a_route_that_an_earlier_one_hides_is_refused() -> None:
    error = only_error(
        "routes:\n  - {name: all, match: {path_prefix: /a}, service: s}\n"
        "  - {name: gets, match: {path_prefix: /a/, methods: [GET]}, service: t}\n"
    )
    assert (error.line, error.path) == (3, "routes.1.match")
    assert error.message == "can never be reached: route 0 ('all') takes all its requests"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("methods: [GET]", "methods: [GET, POST]"),
        ("host: a.example", "host: b.example"),
        ("headers: {x-a: '1'}", "headers: {x-b: '1'}"),
        ("headers: {x-a: '1'}", "methods: [GET]"),
    ],
)
def test_a_narrower_route_before_a_wider_one_is_fine(first: str, second: str) -> None:
    routes = f"routes:\n  - {{name: a, match: {{path: /a, {first}}}, service: s}}\n"
    assert errors(routes + f"  - {{name: b, match: {{path: /a, {second}}}, service: s}}\n") == []
    assert errors(routes + "  - {name: c, match: {path: /a}, service: s}\n") == []


@pytest.mark.parametrize(
    ("content", "line", "text"),
    [
        ("routes: [\n", 2, "not valid YAML"),
        ("routes:\n\t- a\n", 2, "not valid YAML"),
        ("", 1, "the document is empty"),
        ("# nothing\n", 1, "the document is empty"),
        ("? [a]\n: b\nroutes: []\n", 0, "not valid YAML"),
        ("routes: *unknown\n", 1, "not valid YAML"),
        ("- a\n", 1, "must be a mapping"),
        ("routes:\n", 1, "valid list"),
        ("routes: []\n---\nroutes: []\n", 2, "not valid YAML"),
        ("routes: []\nroutes: []\n", 2, "'routes' is given twice, first in line 1"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "not valid YAML"),
        ("routes: [1999-99-99]\n", 0, "not valid YAML"),
        ("routes: \x00\n", 0, "not valid YAML"),
        ("[" * 50_000, 1, "nested more than"),
        ("routes: " + "[" * 40 + "]" * 40, 1, "nested more than"),
        ("- " * 40_000, 1, "nested more than"),
        ("a: &a [*a]\nroutes: [*a]\n", 1, "unknown field"),
        ("routes: []\n#" + "x" * DOCUMENT_BYTES_MAX, 0, "over"),
    ],
)
def test_what_is_no_usable_yaml_is_refused(content: str, line: int, text: str) -> None:
    first = errors(content)[0]
    assert text in first.message
    assert not line or first.line == line


def test_an_anchor_that_multiplies_itself_costs_nothing() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(12))
    found = errors(bomb + "routes: *a12\n")
    assert 0 < len(found) < 50


def test_the_number_of_routes_is_limited() -> None:
    one = "  - {name: r%d, match: {path: /%d}, service: s}\n"
    many = "routes:\n" + "".join(one % (number, number) for number in range(ROUTES_MAX + 1))
    assert "at most 2000" in errors(many)[0].message


def test_parsing_raises_what_validating_says() -> None:
    with pytest.raises(InvalidContent) as refused:
        parse_routes("routes:\n  - {match: {path: /a}}\n")
    assert refused.value.detail == "line 2: 'service' is missing"
    assert refused.value.extensions["errors"] == [
        {"message": "'service' is missing", "line": 2, "path": "routes.0.service"}
    ]


def test_the_schema_is_published_with_its_descriptions() -> None:
    schema = routes_schema()
    assert schema["properties"]["routes"]["maxItems"] == ROUTES_MAX
    assert schema["$defs"]["Route"]["additionalProperties"] is False
    breaker = schema["$defs"]["Route"]["properties"]["circuit_breaker"]
    assert {"type": "boolean"} in breaker["anyOf"]
    json.dumps(schema)


def test_who_only_validates_loads_neither_data_plane_nor_admin() -> None:
    code = (
        "import sys, quorate_gateway.routes; "
        "print([m for m in ('uvloop', 'fastapi', 'httpx', 'uvicorn', 'quorate_sdk') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
