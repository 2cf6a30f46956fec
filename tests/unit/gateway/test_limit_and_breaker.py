"""Limit and breaker as policies: whom they count together, what they tell, and how their state goes on."""

import pytest
from quorate_gateway.documents.limits import TokenBucketLimit
from quorate_gateway.documents.protection import RouteCircuitBreaker
from quorate_gateway.matching import CompiledRoute, compile_route
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.circuit import breaker_summary, compile_breaker
from quorate_gateway.policies.limit import Checked, RouteLimit, client_key, compile_key, compile_limit, shown_key
from quorate_gateway.proxy.framing import RequestFields, read_request_fields
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.routes import Route, RouteMatch
from quorate_resilience import BreakerState


def fields(*lines: str) -> RequestFields:
    return read_request_fields("".join(f"\r\n{line}" for line in ("Host: shop", *lines)).encode())


CLIENT = Caller(b"192.0.2.7")


def limit(rate: float = 1.0, burst: int = 2, key: str = "route", name: str = "orders") -> RouteLimit:
    found = compile_limit(name, TokenBucketLimit(requests_per_second=rate, burst=burst, key=key))
    assert found is not None
    return found


def route(**changes: object) -> Route:
    values = {"name": "orders", "match": RouteMatch(path="/orders"), "service": "order"}
    return Route(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "key"),
    [
        (b"192.0.2.7", b"192.0.2.7"),
        (b"::ffff:192.0.2.7", b"192.0.2.7"),
        (b"2001:db8:1:2:3:4:5:6", b"2001:db8:1:2::/64"),
        (b"2001:db8:1:2::ffff", b"2001:db8:1:2::/64"),
        (b"2001:db8:1:3::1", b"2001:db8:1:3::/64"),
        (b"fe80::1%eth0", b"fe80::/64"),
        (b"::1", b"::/64"),
        (b"not:an:address", b"not:an:address"),
        (b"unknown", b"unknown"),
    ],
)
def test_a_client_is_an_ipv4_address_or_the_ipv6_network_of_one_subscriber(address: bytes, key: bytes) -> None:
    assert client_key(address) == key


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        (["X-Key: a"], b"a"),
        (["x-kEY:\t a b \t"], b"a b"),
        (["X-Key:"], b""),
        (["X-Key-Other: a", "Not-X-Key: b"], b""),
        (["Other: X-Key: a"], b""),
        (["X-Key: a", "X-Key: a"], b""),
        ([], b""),
    ],
)
def test_the_key_of_a_header_is_the_value_of_its_one_field(lines: list[str], key: bytes) -> None:
    assert compile_key("header:X-Key")(fields(*lines), CLIENT) == key


def test_a_name_of_a_header_field_is_no_pattern() -> None:
    key_of = compile_key("header:x.key")
    assert key_of(fields("x-key: a"), CLIENT) == b""
    assert key_of(fields("x.key: a"), CLIENT) == b"a"


def test_a_long_value_is_remembered_by_its_digest() -> None:
    key_of = compile_key("header:x-key")
    one, two = (key_of(fields("x-key: " + "a" * length), CLIENT) for length in (65, 66))
    assert len(one) == len(two) == 32
    assert one != two


@pytest.mark.parametrize(
    ("key", "of", "shown"),
    [
        (b"", "route", "all"),
        (b"", "client", "without a key"),
        (b"192.0.2.7", "client", "192.0.2.7"),
        (b"s3cret", "header:x-key", "digest "),
    ],
)
def test_a_key_is_shown_and_a_credential_is_not(key: bytes, of: str, shown: str) -> None:
    text = shown_key(key, TokenBucketLimit(requests_per_second=1, key=of))
    assert text.startswith(shown)
    assert "s3cret" not in text


def test_the_fields_of_a_limit_are_structured_fields_whatever_the_route_is_called() -> None:
    checked = limit(name="/a%20b").check(fields(), CLIENT, 0.0)
    assert checked == Checked(b'\r\nratelimit: "/a%20b";r=1;t=1')


def test_over_the_limit_the_effective_window_ends_when_one_may_come_again() -> None:
    limited = limit(rate=0.3, burst=1)
    assert isinstance(limited.check(fields(), CLIENT, 0.0), Checked)
    refusal = limited.check(fields(), CLIENT, 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after_s == 4
    assert refusal.fields == (("ratelimit-policy", '"orders";q=1;w=4'), ("ratelimit", '"orders";r=0;t=4'))
    assert (limited.admitted, limited.limited) == (1, 1)


def test_to_look_at_what_is_left_takes_nothing() -> None:
    limited = limit(key="client")
    one, other = Caller(b"a"), Caller(b"b")
    limited.check(fields(), one, 0.0)
    assert [limited.left(fields(), caller, 0.0) for caller in (one, one, other)] == [1, 1, 2]


def test_a_route_that_asks_for_nothing_has_nothing_to_ask() -> None:
    assert compile_route(route()).admit is None
    assert compile_route(route(circuit_breaker=RouteCircuitBreaker(enabled=False))).breaker is None


def test_the_breaker_is_set_as_the_route_says() -> None:
    document = RouteCircuitBreaker(
        window_ms=1_000, calls_min=3, slow_call_ms=200, failure_percent=12.5, open_ms=2_000, probes=1
    )
    breaker = compile_breaker(document)
    assert breaker is not None
    settings = breaker.settings
    assert (settings.window_s, settings.calls_min, settings.slow_call_s) == (1.0, 3, 0.2)
    assert (settings.failure_percent, settings.open_s, settings.probes) == (12.5, 2.0, 1)
    assert compile_breaker(RouteCircuitBreaker(enabled=False)) is None


def test_each_state_of_a_breaker_is_told_in_a_sentence() -> None:
    breaker = compile_breaker(RouteCircuitBreaker(calls_min=1))
    assert breaker is not None
    told = [breaker_summary(breaker, 0.0)]
    for end in ("failure", None, "forced"):
        if end == "forced":
            breaker.force_closed(6.0)
        elif end is None:
            breaker.advance(5.0)
        else:
            breaker.try_acquire(0.0).failure(0.0)  # type: ignore[union-attr]
        told.append(breaker_summary(breaker, 1.0))
    assert [text.split("; ")[0] for text in told] == [
        "the circuit breaker is closed", "the circuit breaker is open for 4.0 s more",
        "the circuit breaker is half-open", "the circuit breaker is forced-closed by an operator",
    ]  # fmt: skip


def limited_route(**changes: object) -> Route:
    return route(rate_limit=TokenBucketLimit(requests_per_second=1), **changes)


@pytest.mark.parametrize(
    ("changes", "limit_goes_on", "breaker_goes_on"),
    [
        ({}, True, True),
        ({"timeout_ms": 5, "match": RouteMatch(path="/other")}, True, True),
        ({"rate_limit": TokenBucketLimit(requests_per_second=2)}, False, True),
        ({"rate_limit": TokenBucketLimit(requests_per_second=1, key="client")}, False, True),
        ({"circuit_breaker": RouteCircuitBreaker(probes=1)}, True, False),
        ({"service": "another"}, True, False),
    ],
)
def test_state_goes_on_where_a_policys_own_parameters_are_the_same(
    changes: dict[str, object], limit_goes_on: bool, breaker_goes_on: bool
) -> None:
    former = compile_route(limited_route())
    again = compile_route(route(**{"rate_limit": TokenBucketLimit(requests_per_second=1), **changes}), former)
    assert (again.limit is former.limit) is limit_goes_on
    assert (again.breaker is former.breaker) is breaker_goes_on
    assert again.limit is not None
    assert again.breaker is not None


def test_what_is_switched_off_is_gone_and_begins_anew() -> None:
    former = compile_route(limited_route())
    off = compile_route(route(circuit_breaker=RouteCircuitBreaker(enabled=False)), former)
    assert (off.limit, off.breaker, off.admit) == (None, None, None)
    again: CompiledRoute = compile_route(limited_route(), off)
    assert again.breaker is not None
    assert again.breaker is not former.breaker
    assert again.breaker.state is BreakerState.CLOSED
