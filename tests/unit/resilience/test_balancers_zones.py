"""Zone awareness: the own zone first, the rest where there is capacity to spare, and each member its due over all."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_resilience.balancers import LeastRequest, RandomChoice, SmoothRoundRobin, ZoneAware, zone_shares
from support.balance_members import Server, draw, servers

zones_of_weights = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.lists(st.integers(1, 500), min_size=1, max_size=5), min_size=1
)


def in_zones(weights: Mapping[str, Sequence[int]]) -> tuple[Server, ...]:
    return tuple(one for zone, found in weights.items() for one in servers(*found, zone=zone))


def aware(own: str, seed: int = 1) -> ZoneAware[Server]:
    chance = draw(seed)
    return ZoneAware(own, lambda: RandomChoice(chance), chance)


def zones_picked(own: str, members: tuple[Server, ...], count: int = 20_000) -> dict[str, float]:
    balancer = aware(own)
    found = Counter(one.zone for _ in range(count) if (one := balancer.pick(members)) is not None)
    return {zone: picked / count for zone, picked in found.items()}


@given(zones_of_weights)
def test_when_the_gateways_of_all_zones_do_so_each_zone_gets_what_its_weight_is_due(
    weights: dict[str, list[int]],
) -> None:
    """Gateways are as many in each zone; their shares together are the capacity's."""
    members, got = in_zones(weights), Counter[str]()
    for own in weights:
        for share in zone_shares(members, own):
            got.update({own if share.zone is None else share.zone: share.share / len(weights)})  # type: ignore[dict-item]
    total = sum(map(sum, weights.values()))
    for zone, found in weights.items():
        assert got[zone] == pytest.approx(sum(found) / total)


@given(zones_of_weights, st.sampled_from(["a", "b", "c", "d", ""]))
def test_shares_add_up_and_the_own_zone_keeps_all_that_it_can_take(weights: dict[str, list[int]], own: str) -> None:
    members = in_zones(weights)
    shares = zone_shares(members, own)
    assert sum(share.share for share in shares) == pytest.approx(1.0)
    assert all(share.share > 0 and share.members for share in shares)
    if own in weights and len(weights) > 1:
        fair = sum(map(sum, weights.values())) / len(weights)
        assert shares[0].zone == own
        assert shares[0].share == pytest.approx(min(1.0, sum(weights[own]) / fair))
        assert all({one.zone for one in share.members} == {share.zone} for share in shares)
    else:
        assert [(share.zone, share.members) for share in shares] == [(own if own in weights else None, members)]


def test_a_zone_with_its_part_keeps_everything() -> None:
    assert zones_picked("a", in_zones({"a": [100, 100], "b": [100], "c": [100]})) == {"a": 1.0}


def test_a_short_zone_spills_over_in_proportion_to_what_others_can_spare() -> None:
    """Of 900 each of three zones should have 300; a has 150, so that half of its requests go where there is more."""
    found = zones_picked("a", in_zones({"a": [150], "b": [350], "c": [400]}))
    assert found == pytest.approx({"a": 0.5, "b": 0.5 / 3, "c": 1 / 3}, abs=0.015)


def test_without_a_member_in_the_own_zone_or_without_an_own_zone_all_are_as_one() -> None:
    members = in_zones({"b": [100], "c": [300]})
    for own in ("a", ""):
        assert zones_picked(own, members) == pytest.approx({"b": 0.25, "c": 0.75}, abs=0.015)


def test_what_is_left_of_the_own_zone_is_what_it_keeps() -> None:
    """Its members are ejected one after the other: more and more goes elsewhere."""
    members = in_zones({"a": [100] * 4, "b": [100] * 4})
    kept = [zones_picked("a", members[gone:]).get("a", 0.0) for gone in range(5)]
    assert kept == pytest.approx([1.0, 6 / 7, 4 / 6, 2 / 5, 0.0], abs=0.015)


def test_a_retry_goes_to_another_zone_rather_than_nowhere() -> None:
    members = in_zones({"a": [100], "b": [100, 100]})
    balancer = aware("a")
    for _ in range(100):
        picked = balancer.pick(members, (members[0],))
        assert picked is not None
        assert picked.zone == "b"
    assert balancer.pick(members, members) is None
    assert balancer.pick(()) is None


def test_a_balancer_in_a_zone_keeps_its_turn_when_another_zone_changes() -> None:
    own = servers(100, 200, zone="a")
    others = servers(100, zone="b")
    balancer: ZoneAware[Server] = ZoneAware("a", SmoothRoundRobin, draw())
    plain: SmoothRoundRobin[Server] = SmoothRoundRobin()
    for turn in range(30):
        picked = balancer.pick((*own, *others[: turn % 2]))
        assert picked is plain.pick(own)


def test_load_is_compared_within_a_zone_only() -> None:
    members = in_zones({"a": [100, 100], "b": [100, 100]})
    members[0].active = members[1].active = 50
    chance = draw()
    balancer: ZoneAware[Server] = ZoneAware("a", lambda: LeastRequest(chance), chance)
    assert {one.zone for _ in range(50) if (one := balancer.pick(members)) is not None} == {"a"}
