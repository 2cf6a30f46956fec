"""Shares of a split: in proportion to the weights, and a key stays where it is until a weight says otherwise."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_core.errors import InvariantViolation
from quorate_gateway.documents.destinations import Destination
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.limit_keys import compile_key
from quorate_gateway.policies.split import ChooseDestination, compile_split
from quorate_gateway.proxy.framing import RequestFields, read_request_fields

REQUESTS = 20_000
NOBODY = read_request_fields(b"\r\nHost: h")


def shares(*weights: int) -> list[Destination]:
    return [Destination(service="order", version=f"v{at}", weight=weight) for at, weight in enumerate(weights, 1)]


def by_key(*weights: int) -> ChooseDestination:
    return compile_split(shares(*weights), compile_key("client"), random.Random(1))


def client(number: int) -> Caller:
    return Caller(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}".encode())


def version(choose: ChooseDestination, caller: Caller, fields: RequestFields = NOBODY) -> str | None:
    return choose(fields, caller).version


def assert_in_proportion(counted: Counter[str | None], weights: tuple[int, ...]) -> None:
    """Within five standard deviations of a fair draw."""
    total = counted.total()
    for at, weight in enumerate(weights, 1):
        share = weight / sum(weights)
        allowed = 5 * math.sqrt(total * share * (1 - share))
        assert abs(counted[f"v{at}"] - total * share) <= allowed, counted


@pytest.mark.parametrize("weights", [(95, 5), (1, 1), (1, 2, 3, 4), (1_000_000, 1), (7, 0, 3), tuple(range(1, 17))])
def test_shares_are_in_proportion_to_the_weights_by_chance_and_by_key(weights: tuple[int, ...]) -> None:
    by_chance = compile_split(shares(*weights), None, random.Random(7))
    assert_in_proportion(Counter(version(by_chance, client(0)) for _ in range(REQUESTS)), weights)
    assert_in_proportion(Counter(version(by_key(*weights), client(n)) for n in range(REQUESTS)), weights)


def test_a_weight_of_zero_takes_no_request() -> None:
    counted = Counter(version(by_key(0, 1, 0), client(number)) for number in range(1_000))
    assert counted == {"v2": 1_000}


def test_a_route_that_does_not_split_has_one_place_to_go() -> None:
    [only] = shares(0)
    with pytest.raises(InvariantViolation):
        compile_split([only], None, random.Random(1))
    [only] = shares(1)
    assert compile_split([only], None, random.Random(1))(NOBODY, client(1)) is only


@given(st.binary(min_size=1, max_size=40), st.lists(st.integers(1, 100), min_size=2, max_size=5))
def test_a_key_goes_to_one_share_whatever_gateway_is_asked_and_in_whatever_order_the_shares_stand(
    key: bytes, weights: list[int]
) -> None:
    one = compile_split(shares(*weights), compile_key("client"), random.Random(1))
    other = compile_split(shares(*weights)[::-1], compile_key("client"), random.Random(2))
    assert version(one, Caller(key)) == version(one, Caller(key)) == version(other, Caller(key))


@given(st.lists(st.integers(1, 100), min_size=2, max_size=5), st.integers(0, 4), st.integers(1, 1_000))
def test_a_share_that_grows_only_gains_and_nothing_moves_between_the_others(
    weights: list[int], at: int, more: int
) -> None:
    at %= len(weights)
    grown = [weight + more * (index == at) for index, weight in enumerate(weights)]
    before, after = by_key(*weights), by_key(*grown)
    for number in range(200):
        was, is_now = version(before, client(number)), version(after, client(number))
        assert is_now in (was, f"v{at + 1}")


def test_a_canary_that_grows_keeps_whom_it_had_and_moves_no_more_than_it_must() -> None:
    before, after = by_key(95, 5), by_key(90, 10)
    had = {number for number in range(REQUESTS) if version(before, client(number)) == "v2"}
    has = {number for number in range(REQUESTS) if version(after, client(number)) == "v2"}
    assert had <= has
    assert 0.04 < len(has - had) / REQUESTS < 0.06


def test_requests_without_a_key_are_each_for_themselves() -> None:
    choose = compile_split(shares(1, 1), compile_key("header:X-Tenant"), random.Random(3))
    assert {version(choose, client(1)) for _ in range(100)} == {"v1", "v2"}
    tenant = read_request_fields(b"\r\nHost: h\r\nx-tenant: blue")
    assert len({version(choose, client(number), tenant) for number in range(100)}) == 1


def test_routes_that_split_between_the_same_versions_alike_agree() -> None:
    """The name of a route has no part in it: who is on the new version stays on it from page to page."""
    other = [*shares(50, 50), Destination(service="cart", weight=1)]
    one, two = by_key(50, 50), compile_split(other, compile_key("client"), random.Random(9))
    for number in range(500):
        chosen = two(NOBODY, client(number))
        assert chosen.service == "cart" or chosen.version == version(one, client(number))
