"""CORS by the Fetch standard: what pages of which origins may do, and what nobody hears of."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from quorate_gateway.documents.access import RouteCors
from quorate_gateway.policies.cors import ORIGIN_BYTES_MAX, CorsAnswers, compile_cors, without_service_cors
from quorate_gateway.proxy.framing import read_request_fields, read_request_head

SHOP = "https://shop.example"


def cors(*origins: str, **changes: Any) -> CorsAnswers:
    found = compile_cors(RouteCors(origins=list(origins) or [SHOP], **changes))
    assert found is not None
    return found


def fields_of(encoded: bytes) -> list[tuple[str, str]]:
    lines = encoded.decode("latin-1").split("\r\n")
    assert lines[0] == ""
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines[1:])]


def answer(route: CorsAnswers, origin: str | None = SHOP) -> dict[str, str]:
    block = b"\r\nHost: shop" + (b"" if origin is None else b"\r\nOrigin: " + origin.encode("latin-1"))
    pairs = fields_of(route.answer_fields(read_request_fields(block)))
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def preflight(route: CorsAnswers, fields: str, method: str = "OPTIONS") -> dict[str, str] | None:
    head = read_request_head(f"{method} /orders HTTP/1.1\r\nHost: shop\r\n{fields}\r\n".encode())
    assert head is not None
    reply = route.preflight(head.fields, head)
    if reply is None:
        return None
    assert reply.status == 204
    pairs = fields_of(reply.fields)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


ASKS = f"Origin: {SHOP}\r\nAccess-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-a, x-b\r\n"


def test_a_route_without_cors_has_none() -> None:
    assert compile_cors(None) is None
    assert without_service_cors(None, None) is None


def test_a_page_of_an_allowed_origin_may_read_the_answer() -> None:
    assert answer(cors()) == {"access-control-allow-origin": SHOP, "vary": "Origin"}


def test_what_it_may_read_and_send_is_told() -> None:
    route = cors(expose=["X-Total", "x-next"], credentials=True)
    assert answer(route) == {
        "access-control-allow-origin": SHOP, "access-control-allow-credentials": "true",
        "access-control-expose-headers": "x-total, x-next", "vary": "Origin",
    }  # fmt: skip


@pytest.mark.parametrize("origin", [None, "https://evil.example", "null", ""])
def test_for_everybody_else_the_answer_only_says_that_it_depends_on_who_asks(origin: str | None) -> None:
    assert answer(cors(credentials=True, expose=["x-total"]), origin) == {"vary": "Origin"}


def test_an_answer_for_everybody_names_nobody() -> None:
    route = cors("*", SHOP)
    assert answer(route) == answer(route, "null") == {"access-control-allow-origin": "*"}
    assert answer(route, None) == {}


def test_two_origins_are_none() -> None:
    fields = read_request_fields(f"\r\nHost: shop\r\nOrigin: {SHOP}\r\nOrigin: https://evil.example".encode())
    assert fields_of(cors().answer_fields(fields)) == [("vary", "Origin")]
    assert fields_of(cors("*").answer_fields(fields) or b"\r\nx: ") == [("x", "")]


@pytest.mark.parametrize(
    "origin",
    [
        "http://shop.example", "https://shop.example:8443", "https://shop.example:443", "https://shop.example/",
        "https://shop.example.", "https://SHOP.example", "HTTPS://shop.example", "https://shop.example.evil.example",
        "https://evil-shop.example", "https://evilshop.example", "https://www.shop.example", "https://shop-example",
        "https://shop.example@evil.example", "https://evil.example/https://shop.example", "shop.example",
        "https://shopxexample", f"{SHOP} {SHOP}", f"{SHOP},{SHOP}", "https://evil.example?https://shop.example",
    ],
)  # fmt: skip
def test_an_origin_is_equal_or_another_one(origin: str) -> None:
    assert "access-control-allow-origin" not in answer(cors(), origin)


@pytest.mark.parametrize("origin", ["https://a.shop.example", "https://a.b.shop.example", "https://x_1-y.shop.example"])
def test_a_wildcard_takes_every_name_below(origin: str) -> None:
    assert answer(cors("https://*.shop.example"), origin)["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    "origin",
    [
        "https://shop.example", "https://.shop.example", "https://a..shop.example", "http://a.shop.example",
        "https://a.shop.example:8443", "https://ashop.example", "https://a.shopxexample", "https://a.shop.example.evil",
        "https://evil.example/.shop.example", "https://evil.example#.shop.example", "https://evil.example\\.shop.example",
        "https://user:x@a.shop.example", "https://evil.example?.shop.example", "https://A.shop.example", "null",
        "https://" + "a." * ORIGIN_BYTES_MAX + "shop.example",
    ],
)  # fmt: skip
def test_a_wildcard_takes_nothing_else(origin: str) -> None:
    assert answer(cors("https://*.shop.example"), origin) == {"vary": "Origin"}


def test_a_wildcard_has_the_port_that_it_says() -> None:
    route = cors("http://*.shop.example:3000")
    assert answer(route, "http://a.shop.example:3000")["access-control-allow-origin"] == "http://a.shop.example:3000"
    assert answer(route, "http://a.shop.example") == {"vary": "Origin"}


LABELS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=8)
HOSTS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
ORIGINS = st.builds(
    lambda scheme, host, port: f"{scheme}://{host}{port}",
    st.sampled_from(["http", "https"]), HOSTS | HOSTS.map(lambda host: host + ".shop.example"),
    st.sampled_from(["", ":3000", ":8443"]),
)  # fmt: skip


def _reference(allowed: str, origin: str) -> bool:
    """A second reading of the document, by parts instead of by patterns."""
    if "*." not in allowed:
        return allowed == origin
    scheme, _, host = allowed.partition("://*.")
    return origin.startswith(scheme + "://") and origin.removeprefix(scheme + "://").endswith("." + host)


@given(st.lists(ORIGINS | HOSTS.map(lambda host: f"https://*.{host}"), min_size=1, max_size=4), ORIGINS)
def test_an_origin_is_named_just_when_the_document_has_it(allowed: list[str], origin: str) -> None:
    route = cors(*allowed, credentials=True)
    expected = any(_reference(one, origin) for one in allowed)
    found = answer(route, origin)
    assert ("access-control-allow-origin" in found) == ("access-control-allow-credentials" in found) == expected
    assert found.get("access-control-allow-origin", origin) == origin
    for one in allowed:
        if "*" not in one:
            assert answer(route, one)["access-control-allow-origin"] == one


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60))
def test_no_text_whatever_is_named_unless_it_is_below_the_wildcard(origin: str) -> None:
    named = answer(cors("https://*.shop.example"), origin).get("access-control-allow-origin")
    assert named is None or re.fullmatch(r"https://([a-z0-9_-]+\.)+shop\.example", named)


# Preflights.


def test_a_preflight_is_answered_with_what_the_route_allows_whatever_is_asked() -> None:
    route = cors(methods=["GET", "PUT"], headers=["X-A", "authorization"], max_age_s=60, credentials=True)
    expected = {
        "access-control-allow-origin": SHOP, "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET, PUT", "access-control-allow-headers": "x-a, authorization",
        "access-control-max-age": "60", "vary": "Origin",
    }  # fmt: skip
    assert preflight(route, ASKS) == expected
    assert preflight(route, ASKS.replace("PUT", "DELETE")) == expected


def test_a_preflight_of_another_origin_is_answered_with_nothing() -> None:
    assert preflight(cors(), ASKS.replace("shop", "evil")) == {"vary": "Origin"}


def test_access_to_private_networks_is_never_granted() -> None:
    granted = preflight(cors("*"), ASKS + "Access-Control-Request-Private-Network: true\r\n")
    assert granted is not None
    assert "access-control-allow-private-network" not in granted


def test_without_headers_to_allow_none_are_named() -> None:
    granted = preflight(cors(), ASKS)
    assert granted is not None
    assert "access-control-allow-headers" not in granted
    assert granted["access-control-allow-methods"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("GET", ASKS), ("OPTIONS", f"Origin: {SHOP}\r\n"), ("OPTIONS", "Access-Control-Request-Method: PUT\r\n"),
        ("OPTIONS", ""), ("OPTIONS", f"Origin: {SHOP}\r\nAccess-Control-Request-Method:\r\n"),
    ],
)  # fmt: skip
def test_whatever_is_no_preflight_is_the_service_s(method: str, fields: str) -> None:
    assert preflight(cors(), fields, method) is None


# What the service says.


def test_what_the_service_says_about_cors_is_left_out() -> None:
    strip = without_service_cors(cors(), None)
    assert strip is not None
    block = (
        b"\r\nAccess-Control-Allow-Origin: *\r\ncontent-type: a/b\r\naccess-control-allow-credentials:true"
        b"\r\nACCESS-CONTROL-EXPOSE-HEADERS: x\r\nAccess-Control-Allow-Private-Network: true\r\nx-access-control: kept"
        b"\r\naccess-control-max-age: 9\r\nvary: Accept\r\naccess-control-allow-methods: PUT"
        b"\r\naccess-control-allow-headers: *"
    )
    assert strip(block) == b"\r\ncontent-type: a/b\r\nx-access-control: kept\r\nvary: Accept"


def test_the_route_s_own_changes_come_after_it() -> None:
    strip = without_service_cors(cors(), lambda block: block + b"\r\naccess-control-allow-origin: own")
    assert strip is not None
    assert strip(b"\r\naccess-control-allow-origin: *") == b"\r\naccess-control-allow-origin: own"


# The document.


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("https://shop.example/", "without a path"), ("shop.example", "an origin is"), ("https://", "an origin is"),
        ("ftp://shop.example", "an origin is"), ("https://*", "an origin is"), ("https://a.*.example", "an origin is"),
        ("https://*shop.example", "an origin is"), ("https://shop..example", "an origin is"),
        ("https://shop.example:443", "leave the port"), ("http://shop.example:80", "leave the port"),
        ("https://shop.example:70000", "no port"), ("https://shop.example:0443", "an origin is"),
        ("https://shop.example\n", "an origin is"), ("https://zoë.example", "an origin is"), ("", "an origin is"),
    ],
)  # fmt: skip
def test_what_no_browser_sends_is_no_origin(origin: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        cors(origin)


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://[::1]:3000", "https://xn--zo-jma.example", "null"])
def test_what_browsers_send_is_an_origin(origin: str) -> None:
    assert answer(cors(origin), origin)["access-control-allow-origin"] == origin


def test_an_origin_is_compared_in_small_letters_as_browsers_write_it() -> None:
    assert answer(cors("https://SHOP.example"))["access-control-allow-origin"] == SHOP


@pytest.mark.parametrize("origin", ["*", "null"])
def test_credentials_are_for_origins_that_are_named(origin: str) -> None:
    with pytest.raises(ValidationError, match="with 'credentials'"):
        cors(SHOP, origin, credentials=True)
