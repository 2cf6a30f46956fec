"""Ten thousand instances, simulated by the pure `Upkeep`: whatever befell them together, they do not come together."""

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_sdk.failover import RECONNECT_SPREAD_S, reconnect_s
from quorate_sdk.heartbeat import HEARTBEATS_PER_TTL, REGISTER_AGAIN_SPREAD_S, Upkeep

INSTANCES = 10_000
OUTAGE_S = (30.0, 60.0)
END_S = 90.0
BUCKETS_PER_S = 10


@dataclass
class Registry:
    """Away during the outage, after which it has forgotten everybody."""

    arrivals: Counter[int] = field(default_factory=Counter)
    """Calls of any kind that reach it, by tenth of a second."""
    registered_again_s: list[float] = field(default_factory=list)


@dataclass
class Simulated:
    """One instance: what its keeper does, without the thread."""

    upkeep: Upkeep
    generation: int = 0
    """Of the registry that knows it."""
    believes: bool = True

    def step(self, registry: Registry, now_s: float, spread: float) -> float:
        """Seconds until its next step."""
        if OUTAGE_S[0] <= now_s < OUTAGE_S[1]:
            return self.upkeep.failed(spread)
        registry.arrivals[int(now_s * BUCKETS_PER_S)] += 1
        generation = int(now_s >= OUTAGE_S[1])
        if not self.believes:
            self.believes, self.generation = True, generation
            registry.registered_again_s.append(now_s)
            return self.upkeep.registered(spread)
        if self.generation != generation:
            self.believes = False
            return self.upkeep.forgotten(spread)
        return self.upkeep.renewed(spread)


def simulate(ttl_s: float, seed: int) -> Registry:
    """All have registered at second 0, which is the worst that can be, and lose the registry together."""
    chance = random.Random(seed)
    registry = Registry()
    instances = [Simulated(Upkeep(ttl_s)) for _ in range(INSTANCES)]
    due = [(instance.upkeep.registered(chance.random()), number) for number, instance in enumerate(instances)]
    heapq.heapify(due)
    while due[0][0] < END_S:
        now_s, number = due[0]
        heapq.heapreplace(due, (now_s + instances[number].step(registry, now_s, chance.random()), number))
    return registry


@pytest.mark.parametrize("ttl_s", [2, 10, 30])
def test_no_tenth_of_a_second_brings_much_more_than_its_share(ttl_s: int) -> None:
    registry = simulate(ttl_s, seed=1)
    share = INSTANCES / (ttl_s / HEARTBEATS_PER_TTL) / BUCKETS_PER_S
    # After the outage each one makes three calls within an interval: a heartbeat, a registration and the first
    # heartbeat after it, of which the first two come a third faster. Together they would make a hundred shares.
    assert max(registry.arrivals.values()) < 4 * share


@pytest.mark.parametrize("ttl_s", [2, 10, 30])
def test_all_are_registered_again_within_an_interval_of_heartbeats_and_the_spread(ttl_s: int) -> None:
    registry = simulate(ttl_s, seed=3)
    assert len(registry.registered_again_s) == INSTANCES
    interval_s = ttl_s / HEARTBEATS_PER_TTL
    assert max(registry.registered_again_s) < OUTAGE_S[1] + interval_s + min(REGISTER_AGAIN_SPREAD_S, interval_s)


@settings(max_examples=200)
@given(
    ttl_s=st.integers(min_value=2, max_value=86_400),
    spread=st.floats(min_value=0, max_value=1),
    failures=st.integers(min_value=1, max_value=100),
)
def test_no_step_waits_for_longer_than_a_third_of_the_time_to_live(ttl_s: int, spread: float, failures: int) -> None:
    upkeep = Upkeep(ttl_s)
    delays = [upkeep.registered(spread), upkeep.renewed(spread), upkeep.forgotten(spread)]
    delays += [upkeep.failed(spread) for _ in range(failures)]
    assert min(delays) >= 0
    assert max(delays) <= ttl_s / HEARTBEATS_PER_TTL


def test_those_who_have_failed_equally_often_are_apart() -> None:
    chance = random.Random(6)
    upkeeps = [Upkeep(ttl_s=30) for _ in range(INSTANCES)]
    for failures in range(1, 12):
        delays_s = [upkeep.failed(chance.random()) for upkeep in upkeeps]
        whole_s = min(0.05 * 2 ** (failures - 1), 10.0)
        assert whole_s / 2 <= min(delays_s) < whole_s * 0.51
        assert whole_s * 0.99 < max(delays_s) <= whole_s


def test_those_who_are_forgotten_at_once_register_again_over_a_second() -> None:
    chance = random.Random(5)
    back = Counter(int(Upkeep(ttl_s=10).forgotten(chance.random()) * BUCKETS_PER_S) for _ in range(INSTANCES))
    assert len(back) == BUCKETS_PER_S * REGISTER_AGAIN_SPREAD_S
    assert max(back.values()) < 1.15 * INSTANCES / BUCKETS_PER_S


def test_streams_that_a_node_has_ended_come_back_over_a_second() -> None:
    chance = random.Random(4)
    back = Counter(
        int(reconnect_s(1, chance.random(), lived_long=True) * BUCKETS_PER_S / RECONNECT_SPREAD_S)
        for _ in range(INSTANCES)
    )
    assert len(back) == BUCKETS_PER_S
    assert max(back.values()) < 1.15 * INSTANCES / BUCKETS_PER_S


def test_a_stream_that_could_not_begin_is_tried_again_soon() -> None:
    assert reconnect_s(1, 1.0, lived_long=False) == 0.05
