"""The routes document: what it may say, and that everything else is refused with its line."""

import json
import subprocess
import sys

import pytest
import yaml
from jsonschema import Draft202012Validator
from quorate_core.documents import DocumentError
from quorate_core.errors import InvalidContent
from quorate_gateway.documents.errors_in_place import ERRORS_MAX
from quorate_gateway.documents.limits import TokenBucketLimit
from quorate_gateway.documents.match import ValueMatch
from quorate_gateway.documents.protection import RouteCircuitBreaker
from quorate_gateway.routes import DOCUMENT, DOCUMENT_BYTES_MAX, ROUTES_MAX, parse_routes, routes_schema
from support.repository import ROOT

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
        {"x-channel": ValueMatch(equals="web")},
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
    found = errors("routes:\n  - name: orders\n    match: {path: /a}\n    split:\n      - {servise: order}\n")
    assert [(error.line, error.path, error.message) for error in found] == [
        (5, "routes.0.split.0.servise", "unknown field 'servise'; did you mean 'service'?"),
        (5, "routes.0.split.0.service", "'service' is missing"),
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
        ("service: a\n    match:\n      path: /a\n      headers: {X-A: 1}", 5, "'X-A' must be a mapping"),
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
        ("rate_limit: {requests_per_second: 5, key: ip}", "'key' is 'route', 'client', 'api_key', 'header:'"),
        ("rate_limit: {requests_per_second: 5, key: 'header:'}", "'key' is 'route', 'client', 'api_key', 'header:'"),
        ("rate_limit: {requests_per_second: 5, key: 'header:a b'}", "'key' is 'route', 'client', 'api_key', 'header:'"),
        (
            "rate_limit: {requests_per_second: 5, algorithm: hope}",
            "'algorithm' is one of 'token_bucket', 'fixed_window'",
        ),
        ("rate_limit: {requests_per_second: 5, algorithm: [token_bucket]}", "'algorithm' is one of 'token_bucket'"),
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
        error, *_ = errors(f"routes:\n  - service: a\n    match: {{path: /a}}\n    {written}\n")
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
    assert TokenBucketLimit(requests_per_second=rate).burst_requests == burst


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
    assert refused.value.detail == "line 2: give exactly one of 'service' and 'split'"
    assert refused.value.extensions["errors"] == [
        {"message": "give exactly one of 'service' and 'split'", "line": 2, "path": "routes.0"}
    ]


UNKNOWN_FIELDS = {
    "routs: []": (1, "routs", "routes"),
    "jwt_providers: {a: {issuer: i, audience: [b]}}": (1, "audience", "audiences"),
    "routes: [{match: {path: /a, hosts: b}, service: s}]": (1, "hosts", "host"),
    "routes: [{match: {path: /a, headers: {x: {prefx: b}}}, service: s}]": (1, "prefx", "prefix"),
    "routes:\n - match: {path: /a}\n   split:\n   - service: s\n     wieght: 1": (5, "wieght", "weight"),
    "routes:\n - match: {path: /a}\n   service: s\n   balance:\n     polcy: random": (5, "polcy", "policy"),
    "routes:\n - match: {path: /a}\n   service: s\n   rewrite:\n     path_prefx: /b": (5, "path_prefx", "path_prefix"),
    "routes:\n - match: {path: /a}\n   service: s\n   request_headers:\n     sett: {a: b}": (5, "sett", "set"),
    "routes:\n - match: {path: /a}\n   service: s\n   retry:\n     attempt: 2": (5, "attempt", "attempts"),
    "routes:\n - match: {path: /a}\n   service: s\n   cors:\n     origin: ['*']": (5, "origin", "origins"),
    "routes:\n - match: {path: /a}\n   service: s\n   auth:\n     jwt:\n       provder: a": (6, "provder", "provider"),
    "routes:\n - match: {path: /a}\n   service: s\n   auth: {api_keys: {}}": (4, "api_keys", "api_key"),
    "routes:\n - match: {path: /a}\n   service: s\n   rate_limit:\n     algorithm: fixed_window\n     window: 5":
        (6, "window", "window_ms"),
    "routes:\n - match: {path: /a}\n   service: s\n   rate_limit:\n     algorithm: leaky_bucket\n     qeue: 5":
        (6, "qeue", "queue"),
    "routes:\n - match: {path: /a}\n   service: s\n   timout_ms: 5": (4, "timout_ms", "timeout_ms"),
    "routes:\n - match: {path: /a}\n   service: s\n   auth: {api_key: {heder: a}}": (4, "heder", "header"),
    "routes:\n - match: {path: /a}\n   service: s\n   rate_limit:\n     bursts: 5": (5, "bursts", "burst"),
    "routes:\n - match: {path: /a}\n   service: s\n   rate_limit:\n     algorithm: sliding_window\n     sub_window: 5":
        (6, "sub_window", "sub_windows"),
    "routes:\n - match: {path: /a}\n   service: s\n   circuit_breaker:\n     probe: 5": (5, "probe", "probes"),
    "routes:\n - match: {path: /a}\n   service: s\n   outlier_ejection:\n     ejection: 5":
        (5, "ejection", "ejection_ms"),
}  # fmt: skip


@pytest.mark.parametrize("content", UNKNOWN_FIELDS)
def test_a_field_that_is_unknown_is_told_with_the_one_that_was_meant_wherever_it_stands(content: str) -> None:
    line, unknown, meant = UNKNOWN_FIELDS[content]
    error = errors(content + "\n")[0]
    assert error.message == f"unknown field {unknown!r}; did you mean {meant!r}?"
    assert error.line == line
    assert error.path.endswith(unknown)
    assert not any(tag in error.path for tag in ("fixed_window", "leaky_bucket", "function", "[key]"))


def test_every_model_of_the_document_is_reached_by_the_way_an_error_is_told() -> None:
    """A field whose model the walk cannot find would lose its hint: none may be added without it."""
    unreached = [
        name for name, schema in routes_schema()["$defs"].items()
        if "properties" in schema and not any(meant in schema["properties"] for *_, meant in UNKNOWN_FIELDS.values())
    ]  # fmt: skip
    assert unreached == []


PROVIDER = "jwt_providers: {staff: {issuer: i, audiences: [a], jwks_url: 'https://id.example'}}\n"


@pytest.mark.parametrize(
    ("route", "line", "path", "text"),
    [
        ("rewrite: {path_prefix: /b, path: /c}", 5, "rewrite", "not both"),
        ("rewrite: {path: '/c/{id}'}", 5, "rewrite.path", "for routes with a 'path_template'"),
        ("split_key: client", 5, "split_key", "for routes with a 'split'"),
        ("auth: {jwt: {provider: stuff}}", 5, "auth.jwt.provider", "called 'stuff'; did you mean 'staff'?"),
        ("balance: {policy: consistent_hash, key: 'jwt:sub'}", 5, "balance.key", "ask for a token by 'auth.jwt'"),
        ("rate_limit: {requests_per_second: 1, key: api_key}", 5, "rate_limit.key", "for one by 'auth.api_key'"),
        ("request_headers: {set: {Host: a}}", 5, "request_headers", "'host' cannot be changed"),
        ('response_headers: {add: {X-A: "a\\r\\nb"}}', 5, "response_headers.add.X-A", "match pattern"),
        ("request_headers: {set: {'X A': a}}", 5, "request_headers.set.X A", "the name 'X A': "),
    ],
)
def test_parts_that_contradict_each_other_or_mean_nothing_are_refused_in_their_line(
    route: str, line: int, path: str, text: str
) -> None:
    error = only_error(f"{PROVIDER}routes:\n  - match: {{path: /a}}\n    service: s\n    {route}\n")
    assert text in error.message
    assert (error.line, error.path) == (line, f"routes.0.{path}")


def test_a_provider_that_is_named_where_there_is_none_is_said_to_be_missing() -> None:
    error = only_error("routes:\n  - {match: {path: /a}, service: s, auth: {jwt: {provider: staff}}}\n")
    assert error.message == "no provider is called 'staff'; there are no 'jwt_providers'"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("orders/{id}", "whole segment"),
        ("/orders/{id}s", "whole segment"),
        ("/orders/{Id}", "whole segment"),
        ("/orders/{}", "whole segment"),
        ("/{rest...}/a", "comes last"),
        ("/{a}/{a}", "each name once"),
        ("/orders/7", "is a 'path'"),
        ("/{a}/../b", "dot segment"),
        ("/{a}/%7Eb", "written as '~'"),
        ("/{a}/%0Ab", "control character"),
        ("/{a}/%4", "two hexadecimal digits"),
    ],
)
def test_a_template_that_could_never_be_matched_or_reads_in_two_ways_is_refused(template: str, text: str) -> None:
    error = only_error(f"routes:\n  - service: s\n    match:\n      path_template: '{template}'\n")
    assert text in error.message
    assert error.line == 4


@pytest.mark.parametrize("kind", ["path", "path_prefix"])
def test_a_path_that_no_request_is_compared_as_is_refused(kind: str) -> None:
    assert (
        "'%41' in a path is written as 'A'" in only_error(f"routes: [{{match: {{{kind}: /%41}}, service: s}}]").message
    )
    assert errors(f"routes: [{{match: {{{kind}: /%2F}}, service: s}}]") == []


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("/v2/{idd}", "the template has no 'idd'; did you mean 'id'?"),
        ("/v2/{id", "a path starts with"),
        ("/v2/{id}?a=1", "holds no query"),
        ("v2/{id}", "a path starts with"),
    ],
)
def test_a_rewritten_path_uses_the_names_of_its_template(form: str, text: str) -> None:
    error = only_error(
        f"routes:\n - match: {{path_template: '/a/{{id}}'}}\n   service: s\n   rewrite: {{path: '{form}'}}"
    )
    assert text in error.message
    assert (error.line, error.path) == (4, "routes.0.rewrite.path")


def test_a_prefix_cannot_be_replaced_where_a_template_has_matched() -> None:
    error = only_error(
        "routes:\n - match: {path_template: '/a/{id}'}\n   service: s\n   rewrite:\n     path_prefix: /b"
    )
    assert (error.line, error.message) == (5, "a 'path_template' matches whole paths: rewrite them by 'path'")


def test_shares_of_a_split_are_different_and_have_a_weight() -> None:
    split = "routes:\n - match: {path: /a}\n   split:\n"
    error = only_error(split + "   - {service: s, version: v1}\n   - {service: t}\n   - {service: s, version: v1}\n")
    assert (error.line, error.message) == (6, "shares 0 and 2 lead to the same; add their weights up")
    assert "all 0" in only_error(split + "   - {service: s, weight: 0}\n").message
    assert (
        "'version' belongs to"
        in only_error(split.replace("split", "version: v1\n   split") + "   - {service: s}\n").message
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("path_template: '/a/{x}'", "path_template: '/a/{y}'"),
        ("path_template: '/a/{x...}'", "path_template: '/a/{rest...}', methods: [GET]"),
        ("path: /a, headers: {x: {present: true}}", "path: /a, headers: {x: '1'}"),
        ("path: /a, headers: {x: {prefix: ab}}", "path: /a, headers: {x: {prefix: abc}, y: '1'}"),
        ("path: /a, host: '*.example'", "path: /a, host: 'b.example'"),
        ("path: /a, host: '*.example'", "path: /a, host: '*.b.example'"),
        ("path: /a, query: {v: '1'}", "path: /a, query: {v: '1', w: '2'}"),
    ],
)
def test_a_route_behind_one_that_covers_it_in_another_form_is_refused(first: str, second: str) -> None:
    document = "routes:\n  - {{name: a, match: {{{}}}, service: s}}\n  - {{name: b, match: {{{}}}, service: s}}\n"
    assert "can never be reached" in only_error(document.format(first, second)).message
    if first.split(",", maxsplit=1)[0] == second.split(",", maxsplit=1)[0]:
        assert errors(document.format(second, first)) == []


def test_no_more_errors_are_told_than_anybody_reads() -> None:
    many = "routes:\n" + "".join(f"  - {{match: {{path: /{number}}}}}\n" for number in range(ROUTES_MAX))
    assert len(errors(many)) == ERRORS_MAX
    double = "routes:\n" + "  - {match: {path: /a}, service: s}\n" * ROUTES_MAX
    assert len(errors(double)) == ERRORS_MAX


EXPECTING = """\
routes:
  - {name: orders, match: {path_template: "/orders/{id}", host: shop.example}, service: order}
  - {name: web, match: {path_prefix: /web, headers: {x-channel: web}, methods: [GET]}, service: page}
expect:
  - GET /orders/7 host=shop.example -> orders
  - GET /orders/7?full=1 host=SHOP.example:80 -> order
  - GET /orders/7 -> none
  - GET /web x-channel=web -> web
"""


def test_a_document_that_does_what_it_is_expected_to_is_accepted() -> None:
    assert errors(EXPECTING) == []


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("GET /orders/7 host=shop.example -> web", "but route 'orders' takes it, which leads to order"),
        ("GET /web -> web", "but no route takes it ('web' not by its headers)"),
        ("PUT /web x-channel=web -> page", "but no route takes it ('web' not by its method)"),
        ("GET /orders/7 host=shop.example -> none", "but route 'orders' takes it"),
        ("GET /orders/7 -> ordrs", "no route and no service is called 'ordrs'; did you mean 'orders'?"),
        ("GET -> orders", "an expectation reads like"),
        ("GET /orders/7", "an expectation reads like"),
        ("GET /a b -> orders", "an expectation reads like"),
        ("GET /a/../b -> orders", "the gateway refuses this request itself"),
        ("GET /a host=a host=b -> orders", "the gateway refuses this request itself"),
        ("GET /\u00e4 -> orders", "the gateway refuses this request itself"),
        ("GET /\u4e16 -> orders", "percent-encoded"),
    ],
)
def test_a_document_that_does_otherwise_is_refused_at_the_expectation(expected: str, text: str) -> None:
    error = only_error(f"{EXPECTING}  - {expected}\n")
    assert text in error.message
    assert (error.line, error.path) == (9, "expect.4")


# The published schema, for editors and for whoever checks documents elsewhere.

SCHEMA_FILE = ROOT / "docs" / "reference" / "routes.schema.json"


@pytest.fixture(scope="module")
def by_schema() -> Draft202012Validator:
    Draft202012Validator.check_schema(routes_schema())
    return Draft202012Validator(routes_schema())


def test_the_schema_that_is_published_is_the_one_in_force() -> None:
    assert json.loads(SCHEMA_FILE.read_text()) == routes_schema(), "run: python scripts/write_route_reference.py"


@pytest.mark.parametrize("content", [FULL, EXPECTING, "routes: []\n"])
def test_the_schema_accepts_what_is_accepted(by_schema: Draft202012Validator, content: str) -> None:
    assert errors(content) == []
    assert list(by_schema.iter_errors(yaml.safe_load(content))) == []


@pytest.mark.parametrize("content", UNKNOWN_FIELDS)
def test_the_schema_refuses_unknown_fields_too(by_schema: Draft202012Validator, content: str) -> None:
    assert list(by_schema.iter_errors(yaml.safe_load(content))) != []


@pytest.mark.parametrize(
    ("route", "is_valid"),
    [
        ("{match: {path: /a}, service: s, circuit_breaker: off, outlier_ejection: on}", True),
        ("{match: {path: /a, headers: {x: a, y: {present: false}}}, service: s}", True),
        ("{match: {path: /a}, service: s, rate_limit: {requests_per_second: 1}}", True),
        ("{match: {path: /a}, service: s, rate_limit: {algorithm: fixed_window, requests: 1}}", True),
        ("{match: {path: /a}, service: s, rate_limit: {algorithm: fixed_window, requests_per_second: 1}}", False),
        ("{match: {path: /a}, service: s, rate_limit: {requests: 1}}", False),
        ("{match: {path: /a}}", False),
        ("{match: {path: /a}, service: s, split: [{service: t}]}", False),
        ("{match: {path: /a, path_prefix: /a}, service: s}", False),
        ("{match: {methods: [GET]}, service: s}", False),
        ("{match: {path: /a, headers: {x: {}}}, service: s}", False),
        ("{match: {path: /a, headers: {x: {equals: a, prefix: a}}}, service: s}", False),
        ("{match: {path: /a}, service: s, timeout_ms: 0}", False),
        ("{match: {path: /a}, service: s, circuit_breaker: sometimes}", False),
    ],
)
def test_the_schema_says_the_same_as_the_validation(
    by_schema: Draft202012Validator, route: str, *, is_valid: bool
) -> None:
    content = f"routes: [{route}]"
    assert (errors(content) == []) is is_valid
    assert (list(by_schema.iter_errors(yaml.safe_load(content))) == []) is is_valid


def test_every_field_of_the_schema_says_what_it_is() -> None:
    silent = [
        f"{model}.{name}"
        for model, schema in {"RoutesDocument": routes_schema(), **routes_schema()["$defs"]}.items()
        for name, field in schema.get("properties", {}).items()
        if "description" not in field and "$ref" not in field and not _leads_to_a_model(field)
    ]
    assert silent == []


def _leads_to_a_model(field: dict[str, object]) -> bool:
    return "$ref" in json.dumps(field)


def test_who_only_validates_loads_neither_data_plane_nor_admin() -> None:
    code = (
        "import sys, quorate_gateway.routes; "
        "print([m for m in ('uvloop', 'fastapi', 'httpx', 'uvicorn', 'quorate_sdk') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
