"""Balancers: shares by weight, who is picked under load, and what comes and goes."""

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_resilience.balancers import (
    Balancer,
    ConsistentHash,
    InterleavedRoundRobin,
    LeastRequest,
    PeakEwma,
    PeakLatency,
    RandomChoice,
    SmoothRoundRobin,
)
from support.balance_members import Server, draw, picks, servers

Make = Callable[[], Balancer[Server]]

TURNS: dict[str, Make] = {"round_robin": InterleavedRoundRobin, "weighted_round_robin": SmoothRoundRobin}
CHANCES: dict[str, Make] = {
    "random": lambda: RandomChoice(draw()),
    "least_request": lambda: LeastRequest(draw()),
    "peak_ewma": lambda: PeakEwma(draw()),
}
HASH: dict[str, Make] = {"consistent_hash": lambda: ConsistentHash(draw(), lambda: 0, 1_000)}
ALL = TURNS | CHANCES | HASH
WEIGHTS = (50, 100, 100, 250, 400)

each = pytest.mark.parametrize("name", ALL)


def assert_within(counts: Counter[str], members: Sequence[Server], part: float) -> None:
    """Each share is its weight's, but for this part of it."""
    total, weights = counts.total(), sum(member.weight for member in members)
    off = {one.identity: counts[one.identity] * weights / (total * one.weight) - 1 for one in members}
    assert all(abs(error) <= part for error in off.values()), off


# What holds for all of them.


@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 999))
@pytest.mark.parametrize("name", [*TURNS, *CHANCES, pytest.param("consistent_hash", marks=pytest.mark.untraced)])
def test_a_pick_is_a_member_that_is_not_excluded_whenever_there_is_one(
    name: str, data: st.DataObject, seed: int
) -> None:
    balancer = ALL[name]()
    chance = random.Random(seed)
    known = [Server(f"m{number}", chance.randint(1, 1_000), active=chance.randint(0, 3)) for number in range(6)]
    for now_s in range(data.draw(st.integers(1, 12))):
        present = tuple(data.draw(st.lists(st.sampled_from(known), unique=True)))
        excluded = data.draw(st.lists(st.sampled_from(known), unique=True))
        for _ in range(data.draw(st.integers(1, 5))):
            picked = balancer.pick(present, excluded, b"%d" % now_s, float(now_s))
            left = set(present) - set(excluded)
            assert picked in left if left else picked is None


@pytest.mark.untraced
@each
def test_at_rest_shares_go_by_weight_within_5_percent(name: str) -> None:
    members = servers(*WEIGHTS)
    if name == "consistent_hash":  # of one ring it holds only about; the mean of many must not be biased
        counts: Counter[str] = Counter()
        for ring in range(40):
            named = tuple(Server(f"{ring}/{one.identity}", one.weight) for one in members)
            counts.update(found.partition("/")[2] for found in picks(ALL[name](), named, 5_000))
    else:
        counts = Counter(picks(ALL[name](), members, 100_000))
    assert_within(counts, members, 0.05)


@pytest.mark.untraced
@each
def test_what_an_excluded_member_would_get_is_spread_by_weight_too(name: str) -> None:
    """An endpoint that fails all that it gets: the others must keep their shares of what is tried again."""
    members = servers(*WEIGHTS)
    counts: Counter[str] = Counter()
    for ring in range(40 if name == "consistent_hash" else 1):
        named = tuple(Server(f"{ring}/{one.identity}", one.weight) for one in members)
        balancer = ALL[name]()
        for number in range(2_500 if name == "consistent_hash" else 100_000):
            picked = balancer.pick(named, (named[-1],), b"%d" % number, float(number))
            assert picked is not None
            counts[picked.identity.partition("/")[2]] += 1
    assert_within(counts, members[:-1], 0.07 if name == "consistent_hash" else 0.05)


@each
def test_a_weight_that_changes_counts_from_the_next_tuple_on(name: str) -> None:
    balancer, members = ALL[name](), servers(100, 100)
    picks(balancer, members, 10)
    members[0].weight = 1_000
    counts = Counter(picks(balancer, (*members,), 20_000))
    assert counts["s0"] / counts["s1"] == pytest.approx(10, rel=0.25 if name == "consistent_hash" else 0.1)


@each
def test_a_thousand_members_all_get_some(name: str) -> None:
    members = servers(*[100] * 1_000)
    assert len(set(picks(ALL[name](), members, 20_000))) == 1_000


# Under load: requests take time, and the next comes before the last is done.


def under_load(
    balancer: Balancer[Server], members: Sequence[Server], width: int, latency_s: dict[str, float] | None = None
) -> Counter[str]:
    """`width` clients, each of which asks again as soon as it is answered; every request takes its member's time."""
    chance, now_s = random.Random(7), 0.0
    running: list[tuple[float, int, Server]] = []
    counts: Counter[str] = Counter()
    for number in range(60_000):
        if len(running) == width:
            earliest = min(running)
            running.remove(earliest)
            now_s, _, done = earliest
            done.active -= 1
            done.latency.observe((latency_s or {}).get(done.identity, 0.01), now_s)
        picked = balancer.pick(members, (), b"%d" % number, now_s)
        assert picked is not None
        picked.active += 1
        counts[picked.identity] += 1
        takes_s = (latency_s or {}).get(picked.identity, 0.01)
        running.append((now_s + takes_s * chance.uniform(0.8, 1.2), number, picked))
    for _, _, member in running:
        member.active -= 1
    return counts


@pytest.mark.untraced
@pytest.mark.parametrize("name", [*TURNS, *CHANCES])
def test_under_load_shares_of_equally_fast_members_go_by_weight_within_5_percent(name: str) -> None:
    """For those that count requests, from about fifty in progress a member on. With fewer, the lighter members get up
    to 40 % more than that: they are idle, and to take whoever is idle is what these are for."""
    members = servers(*WEIGHTS)
    assert_within(under_load(ALL[name](), members, 256), members, 0.05)


@pytest.mark.untraced
def test_least_request_gives_a_slow_member_less_and_turns_do_not() -> None:
    slow = {"s0": 0.1}
    by_turns = under_load(SmoothRoundRobin(), servers(100, 100, 100), 30, slow)
    by_load = under_load(LeastRequest(draw()), servers(100, 100, 100), 30, slow)
    assert by_turns["s0"] == pytest.approx(20_000, rel=0.01)
    assert by_load["s0"] < by_turns["s0"] / 4


@pytest.mark.untraced
def test_peak_ewma_shuns_a_slow_member_more_than_counting_requests_does() -> None:
    slow = {"s0": 0.05}
    by_load = under_load(LeastRequest(draw()), servers(100, 100, 100), 4, slow)
    by_latency = under_load(PeakEwma(draw()), servers(100, 100, 100), 4, slow)
    assert by_latency["s0"] < by_load["s0"] / 2


def test_of_two_the_one_with_fewer_for_its_weight_is_picked() -> None:
    light, heavy = servers(100, 300)
    light.active, heavy.active = 2, 5
    assert set(picks(LeastRequest(draw()), (light, heavy), 100)) == {"s1"}
    heavy.active = 9
    assert set(picks(LeastRequest(draw()), (light, heavy), 100)) == {"s0"}


def test_two_choices_keep_the_fullest_near_the_mean_where_chance_does_not() -> None:
    """Mitzenmacher 2001: of n balls in n bins, the fullest has about ln ln n / ln 2 instead of ln n / ln ln n."""

    def fullest(balancer: Balancer[Server]) -> int:
        members = servers(*[100] * 2_000)
        for _ in members:
            picked = balancer.pick(members)
            assert picked is not None
            picked.active += 1
        return max(member.active for member in members)

    assert fullest(LeastRequest(draw())) <= 4 < fullest(RandomChoice(draw()))


# Turns.


def nginx_order(weights: Sequence[int], count: int) -> list[str]:
    """`ngx_http_upstream_get_peer`, as it is written."""
    current = [0] * len(weights)
    order = []
    for _ in range(count):
        best = 0
        for index, weight in enumerate(weights):
            current[index] += weight
            if current[index] > current[best]:
                best = index
        current[best] -= sum(weights)
        order.append(f"s{best}")
    return order


@given(st.lists(st.integers(1, 1_000), unique=True, min_size=1, max_size=8), st.integers(1, 200))
def test_with_different_weights_smooth_round_robin_picks_as_nginx_does(weights: list[int], count: int) -> None:
    assert picks(SmoothRoundRobin(), servers(*weights), count) == nginx_order(weights, count)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 200))
def test_smooth_round_robin_is_nowhere_ahead_of_or_behind_its_weights_by_more_than_nginx_may(
    weights: list[int], count: int
) -> None:
    """By fewer than two turns, after any number of picks and whatever the weights."""
    counts: Counter[str] = Counter()
    order = picks(SmoothRoundRobin(), servers(*weights), count)
    for done, picked in enumerate(order, 1):
        counts[picked] += 1
        for number, weight in enumerate(weights):
            assert abs(counts[f"s{number}"] - done * weight / sum(weights)) < 2


def test_a_heavy_member_is_not_picked_in_one_go() -> None:
    order = "".join(name[1] for name in picks(SmoothRoundRobin(), servers(5, 1, 1), 70))
    assert order == order[:7] * 10
    assert sorted(order[:7]) == list("0000012")
    assert "0000" not in order, "five of seven turns: three between others at most"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 1_000))
def test_interleaved_round_robin_lets_each_sit_out_as_many_rounds_as_it_is_lighter(
    weights: list[int], first: int
) -> None:
    """In so many rounds as the heaviest weighs, each serves as often as it weighs: one more or less at the ends."""
    counts = Counter(picks(InterleavedRoundRobin(first), servers(*weights), sum(weights)))
    assert all(abs(counts[f"s{number}"] - weight) <= 1 for number, weight in enumerate(weights))


def test_light_members_do_not_serve_all_in_one_round() -> None:
    order = picks(InterleavedRoundRobin(), servers(100, *[1] * 100), 200)
    light = [name != "s0" for name in order]
    assert all(3 <= sum(light[start : start + 10]) <= 7 for start in range(190))


def test_members_that_flap_at_every_pick_starve_nobody() -> None:
    for balancer in (InterleavedRoundRobin[Server](), SmoothRoundRobin[Server]()):
        *staying, flapping = servers(100, 100, 50, 100)
        counts: Counter[str] = Counter()
        for turn in range(600):
            picked = balancer.pick((*staying, flapping) if turn % 2 else tuple(staying))
            assert picked is not None
            counts[picked.identity] += 1
        assert min(counts[name] for name in ("s0", "s1")) >= 120
        assert counts["s2"] >= 60


# Latency.


def reference_ewma(samples: Sequence[tuple[float, float]]) -> float:
    value_s, seen_s = 0.0001, -math.inf
    for now_s, latency_s in samples:
        weight = 0.0 if latency_s >= value_s else math.exp(-(now_s - seen_s) / 10)
        value_s, seen_s = max(value_s * weight + latency_s * (1 - weight), 0.0001), now_s
    return value_s


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 30)), min_size=1, max_size=30))
def test_a_peak_counts_at_once_and_is_forgotten_slowly(steps: list[tuple[float, float]]) -> None:
    latency, now_s, samples = PeakLatency(), 0.0, []
    for wait_s, latency_s in steps:
        now_s += wait_s
        samples.append((now_s, latency_s))
        before_s = latency.latency_s
        latency.observe(latency_s, now_s)
        assert min(before_s, latency_s) <= latency.latency_s <= max(before_s, latency_s)
    assert latency.latency_s == pytest.approx(reference_ewma(samples))


def test_what_was_measured_long_ago_says_nothing() -> None:
    members = servers(100, 100)
    members[0].latency.observe(5.0, 0.0)
    members[1].latency.observe(0.01, 0.0)
    counts: deque[float] = deque()
    for now_s in (0.0, 10.0, 60.0):
        balancer: PeakEwma[Server] = PeakEwma(draw())
        found = Counter(one.identity for _ in range(4_000) if (one := balancer.pick(members, now_s=now_s)) is not None)
        counts.append(found["s0"] / 4_000)
    fresh, older, forgotten = counts
    assert fresh < 0.001 < older < 0.35 < forgotten
    assert forgotten == pytest.approx(0.5, abs=0.03)


def test_a_newcomer_is_neither_shunned_nor_flooded() -> None:
    members = servers(100, 100, 100)
    for member in members[:2]:
        member.latency.observe(0.05, 0.0)
    balancer: PeakEwma[Server] = PeakEwma(draw())
    burst = Counter()
    for _ in range(30):
        picked = balancer.pick(members, now_s=0.0)
        assert picked is not None
        picked.active += 1
        burst[picked.identity] += 1
    assert burst["s2"] == pytest.approx(10, abs=3)


# Consistent hash with bounded load.


def hash_over(
    members: Sequence[Server], bounded_load_percent: int = 125, virtual_nodes: int = 100
) -> ConsistentHash[Server]:
    return ConsistentHash(draw(), lambda: sum(one.active for one in members), virtual_nodes, bounded_load_percent)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=8),
    st.integers(101, 300),
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=120),
)
def test_no_member_has_more_than_the_bound_of_the_mean_load_for_its_weight(
    weights: list[int], bounded_load_percent: int, steps: list[tuple[int, bool]]
) -> None:
    """Keys as unfair as they like, and requests that end in any order."""
    members = servers(*weights)
    balancer = hash_over(members, bounded_load_percent)
    running: list[Server] = []
    for key, ends in steps:
        if ends and running:
            running.pop(key % len(running)).active -= 1
            continue
        picked = balancer.pick(members, (), b"%d" % key)
        assert picked is not None
        picked.active += 1
        running.append(picked)
        allowed = math.ceil(bounded_load_percent * len(running) * picked.weight / (100 * sum(weights)))
        assert picked.active <= allowed


def test_a_hot_key_spills_over_to_the_next_clockwise_and_comes_back() -> None:
    members = servers(*[100] * 5)
    balancer = hash_over(members)
    home = balancer.pick(members, (), b"hot")
    assert home is not None
    next_one = balancer.pick(members, (home,), b"hot")
    home.active = 3
    assert balancer.pick(members, (), b"hot") is next_one is not home
    home.active = 0
    assert balancer.pick(members, (), b"hot") is home


def test_the_new_request_counts_as_load() -> None:
    """Of four requests on four members, 125 % are 1.25 each: one with one has room for its second."""
    members = servers(*[100] * 4)
    balancer = hash_over(members)
    home = balancer.pick(members, (), b"k")
    assert home is not None
    for member in (home, *[one for one in members if one is not home][:2]):
        member.active = 1
    assert balancer.pick(members, (), b"k") is home


def test_those_that_are_passed_over_leave_room_for_the_load_that_they_have_left() -> None:
    """With half of the members ejected, the others' bound is of the load that is theirs: the first one clockwise must
    not take all."""
    members = servers(*[100] * 8)
    balancer, gone = hash_over(members), frozenset(members[:4])
    counts: Counter[str] = Counter()
    for _ in range(400):
        picked = balancer.pick(members, gone, b"hot")
        assert picked is not None
        picked.active += 1
        counts[picked.identity] += 1
    assert max(counts.values()) <= math.ceil(1.25 * 400 / 4)
    assert not counts.keys() & {member.identity for member in gone}


def test_requests_without_a_key_are_spread() -> None:
    members = servers(*[100] * 5)
    balancer = hash_over(members, 1_000, 1_000)
    counts = Counter(one.identity for _ in range(20_000) if (one := balancer.pick(members)) is not None)
    assert_within(counts, members, 0.2)


def test_a_member_that_is_too_light_to_be_met_on_the_way_is_found_all_the_same() -> None:
    members = servers(*[1_000] * 100, 1)
    balancer = hash_over(members, virtual_nodes=1_000)
    assert balancer.pick(members, members[:-1], b"k") is members[-1]


@pytest.mark.parametrize("percent", [0, 100])
def test_a_bound_that_leaves_no_room_is_refused(percent: int) -> None:
    with pytest.raises(ValueError, match="above 100"):
        ConsistentHash(draw(), lambda: 0, 100, percent)
