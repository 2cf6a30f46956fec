"""The hash ring: who has a key, and which keys move when members change."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_resilience.hash_ring import PLACE_BITS, POINTS_MAX, HashRing, place_of, places_of
from support.balance_members import (
    RING_MEMBERS,
    Server,
    change_row,
    change_table,
    keys_of,
    ring_of,
    servers,
    spread_row,
    spread_table,
)
from support.repository import ROOT

PLACE_OF_CLIENT_7 = 5_813_950_111_391
PLACES_OF_ORDER_1 = [373_915_244_416, 1_221_781_036_993]
PAGE = ROOT / "docs" / "internals" / "balancing.md"

memberships = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 300), min_size=1)


def members_of(weights: Mapping[str, int]) -> tuple[Server, ...]:
    return tuple(Server(name, weight) for name, weight in weights.items())


def owner_by_search(members: tuple[Server, ...], virtual_nodes: int, place: int) -> str:
    """The definition: the first point clockwise, of all members' points."""
    points = [
        (point, member.identity)
        for member in members
        for point in places_of(member.identity, max(1, round(virtual_nodes * member.weight / 100)))
    ]
    return min(points, key=lambda point: ((point[0] - place) % (1 << PLACE_BITS), point[1]))[1]


@given(memberships, st.integers(1, 40), st.lists(st.binary(max_size=20), max_size=20))
def test_a_key_belongs_to_the_first_point_clockwise(weights: dict[str, int], nodes: int, keys: list[bytes]) -> None:
    members = members_of(weights)
    ring = ring_of(members, nodes)
    for key in keys:
        assert ring.owner(ring.index_of(place_of(key))).identity == owner_by_search(members, nodes, place_of(key))


@given(st.lists(memberships, min_size=1, max_size=8), st.integers(1, 40))
def test_a_ring_that_was_changed_is_the_ring_that_is_built_anew(history: list[dict[str, int]], nodes: int) -> None:
    ring: HashRing[Server] = HashRing(nodes)
    for weights in history:
        members = members_of(weights)
        ring.follow(members)
        fresh = ring_of(members[::-1], nodes)
        assert len(ring) == len(fresh)
        assert ring.total_weight == sum(weights.values())
        assert keys_of(ring, 200) == keys_of(fresh, 200)
        assert all(ring.owner(index) in members for index in range(len(ring))), "points lead to the members of now"


@given(memberships, st.integers(1, 40))
def test_a_member_that_goes_moves_only_its_own_keys(weights: dict[str, int], nodes: int) -> None:
    members = (*members_of(weights), Server("gone"))
    before, after = keys_of(ring_of(members, nodes), 500), keys_of(ring_of(members[:-1], nodes), 500)
    assert all(old in ("gone", new) for old, new in zip(before, after, strict=True))


@given(memberships, st.integers(1, 40))
def test_a_member_that_comes_takes_keys_and_moves_no_others(weights: dict[str, int], nodes: int) -> None:
    members = (*members_of(weights), Server("new"))
    before, after = keys_of(ring_of(members[:-1], nodes), 500), keys_of(ring_of(members, nodes), 500)
    assert all(new in ("new", old) for old, new in zip(before, after, strict=True))


@given(memberships, st.integers(1, 300), st.integers(1, 300))
def test_a_weight_that_grows_takes_keys_and_moves_no_others(weights: dict[str, int], one: int, other: int) -> None:
    less, more = sorted((one, other))
    members = members_of(weights)
    before = keys_of(ring_of((*members, Server("x", less)), 20), 500)
    after = keys_of(ring_of((*members, Server("x", more)), 20), 500)
    assert all(new in ("x", old) for old, new in zip(before, after, strict=True))


@pytest.mark.untraced
def test_shares_are_the_evener_the_more_virtual_nodes_there_are() -> None:
    """Each share is off by about one part in the square root of their number."""
    few, some, many = (spread_row(nodes)[0] for nodes in (10, 100, 1_000))
    assert few > some > many
    for nodes, deviation in ((10, few), (100, some), (1_000, many)):
        assert 0.4 < deviation * nodes**0.5 < 1.6


@pytest.mark.untraced
def test_a_member_that_goes_leaves_its_share_to_all_others_and_most_to_none() -> None:
    moved, heirs, most, needless = change_row(200)
    assert moved == pytest.approx(1 / RING_MEMBERS, rel=0.15)
    assert heirs == RING_MEMBERS - 1
    assert most < 0.25
    assert needless == 0
    assert change_row(1)[1] == 1, "with one point each, one neighbour would get it all"


@pytest.mark.untraced
def test_shares_go_by_weight() -> None:
    """Over many rings within 5 %; in one, as far as its spread allows."""
    counts: Counter[str] = Counter()
    for ring in range(60):
        members = tuple(Server(f"{name}{ring}", weight) for name, weight in (("a", 50), ("b", 100), ("c", 350)))
        counts.update(name[0] for name in keys_of(ring_of(members, 100), 5_000))
    for name, weight in (("a", 50), ("b", 100), ("c", 350)):
        assert counts[name] / counts.total() == pytest.approx(weight / 500, rel=0.05)


@pytest.mark.untraced
def test_the_tables_of_the_page_are_those_that_are_measured() -> None:
    page = PAGE.read_text()
    assert spread_table() in page
    assert change_table() in page


def test_places_are_the_same_in_every_process_and_release() -> None:
    """Gateways of two releases side by side must agree: were these to change, all keys would move."""
    assert place_of(b"client-7") == int.from_bytes(blake2b(b"client-7", digest_size=8).digest(), "big") >> 21
    assert place_of(b"client-7") == PLACE_OF_CLIENT_7
    assert places_of("order/order-1@10.0.0.1:8000", 9)[::8] == PLACES_OF_ORDER_1


@given(st.integers(0, 200), st.integers(0, 200))
def test_fewer_places_are_the_first_of_more(one: int, other: int) -> None:
    fewer, more = sorted((one, other))
    assert places_of("m", fewer) == places_of("m", more)[:fewer]


def test_a_ring_that_would_be_too_large_has_its_points_halved_for_all_alike() -> None:
    members = servers(*[1_000] * 100)
    ring = ring_of(members, 1_000)
    assert POINTS_MAX / 2 < len(ring) <= POINTS_MAX
    assert len(ring) % len(members) == 0
    light = ring_of((*members, Server("light", 1)), 1_000)
    assert any(light.owner(index).identity == "light" for index in range(len(light)))


def test_a_look_up_among_a_thousand_members_looks_at_some_twenty_points() -> None:
    """O(log n): a binary search of a hundred thousand."""

    class Counted(int):
        compared = 0

        def __lt__(self, other: int) -> bool:
            Counted.compared += 1
            return int(self) < other

    ring = ring_of(servers(*[100] * 1_000), 100)
    points = [Counted(point) for point in ring._points]
    for number in range(100):
        place = place_of(b"%d" % number)
        index = bisect_left(points, place << 20)
        assert ring.index_of(place) == index % len(ring)
    assert len(ring) == 100_000
    assert Counted.compared <= 100 * 17


def test_the_points_of_members_that_stay_are_not_made_anew() -> None:
    members = servers(*[100] * 50)
    ring = ring_of(members, 100)
    points = ring._points
    ring.follow((*members,))
    assert ring._points is points
    ring.follow(members[1:])
    assert set(ring._points) < set(points)


def test_what_makes_no_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        HashRing(0)
    with pytest.raises(ValueError, match="different identities"):
        ring_of((Server("a"), Server("a")), 10)
    emptied = ring_of((Server("a"),), 10)
    emptied.follow(())
    assert (len(emptied), emptied.members) == (0, 0)
