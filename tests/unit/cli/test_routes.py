"""`quorate routes`: what a gateway serves and how new it is; and what a document would do, without any gateway."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]

ROUTE = {
    "name": "orders", "service": "", "endpoints": 3, "balance": "least_request",
    "destinations": [{"service": "order", "version": "v1", "weight": 95},
                     {"service": "order", "version": "v2", "weight": 5}],
    "route": {"match": {"path_template": "/orders/{id}", "methods": ["GET"], "query": {"full": "1"}}},
    "circuit_breaker": {"state": "open", "calls": 10, "failed": 6, "slow": 0, "retry_after_s": 3.2},
}  # fmt: skip
FRESH = {"revision": 120, "routes_version": 7, "connected": True, "stale_s": 0.0, "rejected": None}


@pytest.fixture
def gateway(new_server: Make, make_answer: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A gateway's admin API that answers with these bodies in turn."""

    def make(*bodies: object) -> Any:
        server = new_server(*[make_answer(body=body) for body in bodies])
        monkeypatch.setenv("QUORATE_GATEWAY_ADMIN", server.url)
        return server

    return make


def test_routes_are_listed_with_where_they_lead_and_what_is_served(quorate: Make, gateway: Make) -> None:
    server = gateway([ROUTE], FRESH)
    code, out, _ = quorate("routes", "list")
    assert code == 0
    for text in ("GET /orders/{id}?full=1", "95 % order@v1, 5 % order@v2", "open for 3.2 s (6 of 10 failed or slow)"):
        assert text in out
    assert out.splitlines()[-1] == "Version 7 of gateway/routes.yaml, store revision 120."
    assert [asked.path for asked in server.asked] == ["/v1/gateway/routes", "/v1/gateway/snapshot"]


def test_a_list_says_how_old_it_is_and_what_is_not_served(quorate: Make, gateway: Make) -> None:
    rejected = {"version": 8, "revision": 130, "reason": "line 3: \x1b[31munknown field"}
    gateway([ROUTE], {**FRESH, "connected": False, "stale_s": 7_500.2, "rejected": rejected})
    _, out, _ = quorate("routes", "list")
    assert "it confirmed this 2 h 5 min ago" in out
    assert "Not served: version 8: line 3: \N{REPLACEMENT CHARACTER}[31munknown field" in out
    gateway([ROUTE], {**FRESH, "rejected": {**rejected, "version": 0, "reason": "the document is gone"}})
    assert "Not served: what was published last: the document is gone" in quorate("routes", "list")[1]


def test_for_scripts_the_list_is_json_and_what_is_told_beside_it_goes_to_stderr(quorate: Make, gateway: Make) -> None:
    gateway([ROUTE], {**FRESH, "connected": False, "stale_s": 3})
    code, out, err = quorate("routes", "list", "--json")
    assert (code, json.loads(out)[0]["name"]) == (0, "orders")
    assert "confirmed this 3 s ago" in err


def test_an_explanation_tells_the_policies_and_the_shares(quorate: Make, gateway: Make) -> None:
    explained = {
        "route": "orders", "service": None, "upstream_target": "/v2/7", "upstream_host": "order.internal",
        "endpoints": ["a (h:1)", "b (h:2)"], "rule": "rate-limited",
        "shares": [{"service": "order", "version": "v1", "percent": 95.0, "endpoints": ["a (h:1)"]},
                   {"service": "order", "version": "v2", "percent": 5.0, "endpoints": ["b (h:2)"]}],
        "considered": [{"route": "exact", "refused_by": "query"}, {"route": "orders", "refused_by": None}],
        "policies": [{"policy": "auth", "lets_through": True, "summary": "API key 'shop'"},
                     {"policy": "rate_limit", "lets_through": False, "summary": "1 a second; 0 left now"}],
    }  # fmt: skip
    server = gateway(explained)
    code, out, _ = quorate("routes", "explain", "/orders/7", "-H", "x-api-key: k", "--client", "10.0.0.9")
    assert code == 3
    assert out.splitlines() == [
        "exact: not taken, by its query",
        "orders: taken; goes to one of several as /v2/7, host order.internal",
        "  auth: API key 'shop'",
        "  rate_limit, refuses: 1 a second; 0 left now",
        "  95 % to order@v1",
        "    a (h:1)",
        "  5 % to order@v2",
        "    b (h:2)",
        "The gateway itself answers: rate-limited",
    ]
    assert "client=10.0.0.9" in server.asked[0].path


DOCUMENT = """\
routes:
  - {name: orders, match: {path_template: "/orders/{id}"}, service: order}
  - {name: web, match: {path_prefix: /, host: shop.example}, service: page}
expect:
  - GET /orders/7 -> orders
"""


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "routes.yaml"
    path.write_text(DOCUMENT)
    return path


def test_a_document_is_checked_without_any_gateway_or_control_plane(quorate: Make, document: Path) -> None:
    code, out, err = quorate("routes", "test", str(document))
    assert (code, err) == (0, "")
    assert out == f"{document}: valid; routes: 2; expectations in it, which hold: 1. Nothing was published.\n"


def test_expectations_are_met_or_told_with_what_happens_instead(quorate: Make, document: Path) -> None:
    good = ["-e", "GET /orders/7 -> order", "-e", "GET / -> none", "--expect", "PUT /a host=shop.example -> web"]
    code, out, _ = quorate("routes", "test", str(document), *good)
    assert (code, out.count("holds: ")) == (0, 3)
    code, out, _ = quorate("routes", "test", str(document), *good, "-e", "GET /a -> web")
    assert code == 4
    assert "does not hold: GET /a -> web; no route takes it ('web' not by its host)" in out


def test_an_invalid_document_is_told_with_file_and_line_as_compilers_do(quorate: Make, document: Path) -> None:
    document.write_text(DOCUMENT.replace("service: page", "servise: page"))
    code, out, _ = quorate("routes", "test", str(document), "-e", "GET / -> web")
    assert code == 4
    assert out.splitlines() == [
        f"{document}:3: unknown field 'servise'; did you mean 'service'? (routes.1.servise)",
    ]
    document.write_text(DOCUMENT + "  - GET /orders/7 -> page\n")
    code, out, _ = quorate("routes", "test", str(document))
    assert code == 4
    assert out.startswith(f"{document}:6: expected: GET /orders/7 -> page; but route 'orders' takes it")


def test_for_scripts_the_outcome_is_json(quorate: Make, document: Path) -> None:
    code, out, _ = quorate("routes", "test", str(document), "--json", "-e", "GET /a -> web")
    assert code == 4
    assert json.loads(out) == {
        "valid": True, "errors": [],
        "expectations": [{"expectation": "GET /a -> web", "holds": False,
                          "instead": "no route takes it ('web' not by its host)"}],
    }  # fmt: skip
    document.write_text("routes: 1\n")
    found = json.loads(quorate("routes", "test", str(document), "--json")[1])
    assert (found["valid"], found["errors"][0]["line"]) == (False, 1)


def test_a_document_may_come_from_stdin(quorate: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(DOCUMENT))
    code, out, _ = quorate("routes", "test", "-")
    assert (code, out.startswith("-: valid; routes: 2")) == (0, True)


@pytest.mark.parametrize("expectation", ["GET /a", "GET -> a", "/a -> b", "GET /a -> b c"])
def test_an_expectation_that_is_none_is_wrong_usage(quorate: Make, document: Path, expectation: str) -> None:
    code, _, err = quorate("routes", "test", str(document), "-e", expectation)
    assert code == 2
    assert "an expectation reads like" in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_wrong_usage(quorate: Make, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.yaml"
    if content is not None:
        path.write_bytes(content)
    assert quorate("routes", "test", str(path))[0] == 2


def test_the_schema_is_printed(quorate: Make) -> None:
    code, out, _ = quorate("routes", "schema")
    assert (code, json.loads(out)["title"]) == (0, "Routes of the gateway")
