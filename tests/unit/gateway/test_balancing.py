"""The gateway's balancing: which endpoints a route's requests go to, who is passed over, and what outlives a swap."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from quorate_core.clock import ManualClock
from quorate_core.errors import InvariantViolation
from quorate_gateway.matching import Endpoint
from quorate_gateway.proxy.balancing import Balancing
from quorate_gateway.snapshot import Revisions, Snapshot, update_snapshot
from quorate_sdk.wire import Instance
from support.gateway_snapshots import instance, snapshot

POLICIES = ["round_robin", "weighted_round_robin", "random", "least_request", "peak_ewma", "consistent_hash"]


def instances(*names: str, service: str = "a", **changes: Any) -> list[Instance]:
    return [instance(service, name, 8_000 + int(name.rpartition("-")[2]), **changes) for name in names]


def route(options: str = "", name: str = "r", service: str = "a") -> str:
    return f"  - {{name: {name}, match: {{path_prefix: /{name}}}, service: {service}{options}}}\n"


class Gateway:
    """A balancing with its snapshot, and a clock that stands still."""

    def __init__(
        self, routes: str, found: Mapping[str, Sequence[Instance]] | Sequence[Instance], zone: str = "", seed: int = 1
    ) -> None:
        self.clock = ManualClock()
        self.balancing = Balancing(self.clock.monotonic_s, zone, random.Random(seed).random)
        self.snapshot: Snapshot
        self.publish(routes, found)

    def publish(self, routes: str, found: Mapping[str, Sequence[Instance]] | Sequence[Instance]) -> None:
        """Other routes, and the instances of each service, or of `a`."""
        self.snapshot = snapshot(routes, found if isinstance(found, Mapping) else {"a": found})
        self.balancing.swap(self.snapshot)

    def register(self, *found: Instance, service: str = "a") -> None:
        """Other instances of a service, as the registry's watch tells them."""
        self.snapshot = update_snapshot(self.snapshot, {service}, lambda _service: found, Revisions(1, 1, 2))
        self.balancing.swap(self.snapshot)

    def pick(self, *tried: Endpoint, key: bytes = b"", number: int = 0, share: int = 0) -> Endpoint | None:
        found = self.snapshot.routes[number]
        return self.balancing.pick(found, found.destinations[share], tried, key)

    def picked(self, count: int = 200, **how: Any) -> Counter[str]:
        found = [self.pick(key=b"%d" % turn, **how) for turn in range(count)]
        return Counter("" if one is None else one.instance_id for one in found)

    def endpoint(self, name: str, service: str = "a") -> Endpoint:
        return next(one for one in self.snapshot.endpoints[service] if one.instance_id == name)

    def end(self, endpoint: Endpoint, *failures: bool | None, latency_s: float | None = 0.01) -> None:
        """Tries, each of which begins and ends now."""
        for failed in failures:
            self.balancing.began(endpoint, self.clock.monotonic_s())
            self.balancing.ended(endpoint, self.clock.monotonic_s(), latency_s, failed)

    def avoid(self, port: int, seconds: float) -> None:
        """What a pool says: its endpoint could not be connected to; or with 0 that it can be again."""
        until_s = self.clock.monotonic_s() + seconds if seconds else 0.0
        self.balancing.reach_changed(f"127.0.0.1:{port}", until_s)

    def report(self, name: str) -> tuple[int, float, int, float]:
        return tuple(self.balancing.report(name, f"127.0.0.1:{8_000 + int(name.rpartition('-')[2])}"))  # type: ignore[return-value]


THREE = instances("a-1", "a-2", "a-3")
each = pytest.mark.parametrize("policy", POLICIES)


@each
def test_each_policy_spreads_over_all_and_tries_another_one(policy: str) -> None:
    gateway = Gateway(route(f", balance: {{policy: {policy}}}"), THREE)
    assert gateway.picked().keys() == {"a-1", "a-2", "a-3"}
    one = gateway.pick(key=b"k")
    assert one is not None
    other = gateway.pick(one, key=b"k")
    assert other is not None
    last = gateway.pick(one, other, key=b"k")
    assert {one, other, last} == set(gateway.snapshot.endpoints["a"])
    assert gateway.pick(*gateway.snapshot.endpoints["a"], key=b"k") is None


@each
def test_nobody_is_picked_of_a_service_without_instances(policy: str) -> None:
    gateway = Gateway(route(f", balance: {{policy: {policy}}}"), [])
    assert gateway.pick() is None
    gateway.register(*THREE)
    assert gateway.pick() is not None
    gateway.register()
    assert gateway.pick() is None


def test_the_default_counts_requests_in_progress() -> None:
    gateway = Gateway(route(), THREE)
    busy = gateway.endpoint("a-2")
    gateway.balancing.began(busy, 0.0)
    assert gateway.picked(300).keys() == {"a-1", "a-3"}
    gateway.balancing.ended(busy, 1.0, 0.1, False)
    assert gateway.picked(300)["a-2"] == pytest.approx(100, abs=30)


def test_a_version_takes_only_its_own_instances() -> None:
    routes = "  - {match: {path_prefix: /}, split: [{service: a, version: v1}, {service: a, version: v2, weight: 3}]}\n"
    found = [*instances("a-1", "a-2", version="v1"), *instances("a-3", version="v2"), *instances("a-4")]
    gateway = Gateway(routes, found)
    assert gateway.picked(share=0).keys() == {"a-1", "a-2"}
    assert gateway.picked(share=1).keys() == {"a-3"}
    gateway.register(*instances("a-1", version="v2"), *instances("a-2", version="v1"))
    assert (gateway.picked(share=0).keys(), gateway.picked(share=1).keys()) == ({"a-2"}, {"a-1"})
    gateway.register(*instances("a-1", version="v2"))
    assert gateway.pick(share=0) is None


def test_a_share_that_is_chosen_is_the_one_whose_endpoints_are_picked() -> None:
    """The document's shares and those that the split gives need not be the same objects."""
    gateway = Gateway(
        "  - {match: {path_prefix: /}, split: [{service: a}, {service: b}]}\n"
        "  - {match: {path_prefix: /c}, service: b, version: v2}\n",
        {"a": instances("a-1"), "b": instances("b-2", service="b", version="v2")},
    )
    first, second = gateway.snapshot.routes
    for share in first.destinations:
        picked = gateway.balancing.pick(first, share.model_copy(), (), b"")
        assert picked is not None
        assert picked.service == share.service
    picked = gateway.balancing.pick(second, second.destinations[0].model_copy(), (), b"")
    assert picked is not None
    assert picked.instance_id == "b-2"


def test_weights_of_the_registry_count_and_change_at_once() -> None:
    gateway = Gateway(route(", balance: {policy: weighted_round_robin}"), instances("a-1", "a-2"))
    assert gateway.picked(400) == {"a-1": 200, "a-2": 200}
    gateway.register(*instances("a-1", weight=300), *instances("a-2", weight=100))
    assert gateway.picked(400) == {"a-1": 300, "a-2": 100}


def test_zones_come_first_where_the_gateway_knows_its_own_and_the_route_wants_it() -> None:
    found = [*instances("a-1", zone="here"), *instances("a-2", zone="there")]
    assert Gateway(route(), found, zone="here").picked().keys() == {"a-1"}
    assert Gateway(route(", balance: {zone_aware: false}"), found, zone="here").picked().keys() == {"a-1", "a-2"}
    assert Gateway(route(), found).picked().keys() == {"a-1", "a-2"}


def test_an_own_zone_that_fails_spills_over() -> None:
    found = [*instances("a-1", "a-2", zone="here"), *instances("a-3", "a-4", zone="there")]
    gateway = Gateway(route(", balance: {policy: random}"), found, zone="here")
    assert gateway.picked().keys() == {"a-1", "a-2"}
    gateway.end(gateway.endpoint("a-1"), *[True] * 5)
    shares = gateway.picked(3_000)
    assert "a-1" not in shares
    assert shares["a-2"] / 3_000 == pytest.approx(2 / 3, abs=0.05)


def test_all_gateways_send_a_key_to_the_same_instance_whatever_their_zone_and_the_order_of_events() -> None:
    found = [*instances("a-1", "a-2", zone="x"), *instances("a-3", "a-4", zone="y")]
    hashing = route(", balance: {policy: consistent_hash}")
    one, other = Gateway(hashing, found, zone="x"), Gateway(hashing, found[:1], zone="y", seed=2)
    other.register(*reversed(found))
    keys = [b"%d" % number for number in range(200)]
    assert [one.pick(key=key) for key in keys] == [other.pick(key=key) for key in keys]
    assert [one.pick(key=key) for key in keys] == [one.pick(key=key) for key in keys]


def test_the_bound_of_a_hash_is_of_the_load_of_its_own_version() -> None:
    gateway = Gateway(
        "  - {match: {path_prefix: /}, balance: {policy: consistent_hash}, service: a, version: v1}\n",
        [*instances("a-1", "a-2", version="v1"), *instances("a-3", version="v2")],
    )
    for _ in range(100):
        gateway.balancing.began(gateway.endpoint("a-3"), 0.0)
    got: Counter[str] = Counter()
    for _ in range(16):
        picked = gateway.pick(key=b"hot")
        assert picked is not None
        gateway.balancing.began(picked, 0.0)
        got[picked.instance_id] += 1
    assert max(got.values()) == 10, "125 % of eight"


# Who is passed over.


@each
def test_an_endpoint_that_fails_again_and_again_is_passed_over_and_comes_back(policy: str) -> None:
    gateway = Gateway(route(f", balance: {{policy: {policy}}}"), THREE)
    bad = gateway.endpoint("a-2")
    gateway.end(bad, True, True, True, True)
    assert "a-2" in gateway.picked()
    gateway.end(bad, True)
    assert gateway.picked().keys() == {"a-1", "a-3"}
    assert gateway.report("a-2")[2:] == (5, 10.0)
    assert gateway.balancing.ejected == 1
    gateway.clock.advance(9.99)
    assert gateway.picked().keys() == {"a-1", "a-3"}
    gateway.clock.advance(0.02)
    assert gateway.picked().keys() == {"a-1", "a-2", "a-3"}


def test_what_says_nothing_about_the_endpoint_neither_ejects_nor_acquits_it() -> None:
    gateway = Gateway(route(), THREE)
    bad = gateway.endpoint("a-2")
    gateway.end(bad, *[True] * 4, *[None] * 50)
    assert "a-2" in gateway.picked()
    gateway.end(bad, True)
    assert "a-2" not in gateway.picked()
    gateway = Gateway(route(), THREE)
    gateway.end(bad, *[True] * 4, False, *[True] * 4)
    assert "a-2" in gateway.picked()


def test_one_endpoint_always_stays_and_a_hash_moves_only_the_keys_of_those_that_do_not() -> None:
    gateway = Gateway(route(", balance: {policy: consistent_hash}"), instances("a-1", "a-2", "a-3", "a-4"))
    keys = [b"%d" % number for number in range(300)]
    before = {key: gateway.pick(key=key) for key in keys}
    for endpoint in gateway.snapshot.endpoints["a"]:
        gateway.end(endpoint, *[True] * 5)
    assert gateway.balancing.ejected == 2, "half of them"
    after = {key: gateway.pick(key=key) for key in keys}
    staying = [gateway.endpoint("a-3"), gateway.endpoint("a-4")]
    assert all(
        after[key] in staying and before[key] in (after[key], *set(before.values()) - set(staying)) for key in keys
    )


def test_who_cannot_be_connected_to_is_left_to_the_others_for_a_while_or_until_it_can() -> None:
    gateway = Gateway(route(), THREE)
    gateway.avoid(8001, 1.0)
    assert gateway.picked().keys() == {"a-2", "a-3"}
    gateway.clock.advance(1.0)
    assert gateway.picked().keys() == {"a-1", "a-2", "a-3"}
    gateway.avoid(8001, 9.0)
    gateway.avoid(8001, 12.0)
    assert "a-1" not in gateway.picked()
    gateway.avoid(8001, 0.0)
    assert "a-1" in gateway.picked()
    gateway.avoid(1, 9.0)


@each
def test_when_all_would_be_passed_over_nobody_is(policy: str) -> None:
    gateway = Gateway(route(f", balance: {{policy: {policy}}}"), THREE)
    for port in (8001, 8002, 8003):
        gateway.avoid(port, 1.0)
    assert gateway.picked().keys() == {"a-1", "a-2", "a-3"}


def test_a_retry_takes_one_that_is_passed_over_rather_than_none_and_last_of_all() -> None:
    gateway = Gateway(route(), THREE)
    gateway.avoid(8003, 1.0)
    one, two, avoided = gateway.snapshot.endpoints["a"]
    for _ in range(50):
        assert gateway.pick(one) == two
        assert gateway.pick(one, two) == avoided


def test_each_route_has_its_own_rule_of_ejection_and_failures_count_from_all() -> None:
    routes = (
        route(", outlier_ejection: {consecutive_failures: 2, ejection_ms: 1000}", name="strict")
        + route(", outlier_ejection: off", name="never")
        + route(name="usual")
    )
    gateway = Gateway(routes, THREE)
    bad = gateway.endpoint("a-2")
    gateway.end(bad, True, True)
    assert ["a-2" in gateway.picked(number=number) for number in range(3)] == [False, True, True]
    gateway.end(bad, True, True, True)
    assert ["a-2" in gateway.picked(number=number) for number in range(3)] == [False, True, False]
    assert gateway.report("a-2")[3] == 10.0
    gateway.clock.advance(1.0)
    assert ["a-2" in gateway.picked(number=number) for number in range(3)] == [True, True, False]


# What outlives a swap, and what does not.


def test_load_and_ejection_go_on_when_other_instances_and_routes_come_and_go() -> None:
    gateway = Gateway(route(), THREE)
    running, bad = gateway.endpoint("a-1"), gateway.endpoint("a-2")
    gateway.balancing.began(running, 0.0)
    gateway.end(bad, *[True] * 5)
    gateway.register(*instances("a-1", weight=7, zone="z"), *instances("a-2", "a-4"))
    assert (gateway.report("a-1")[0], gateway.report("a-2")[3]) == (1, 10.0)
    gateway.publish(route() + route(name="other", service="b"), instances("a-1", "a-2", "a-4"))
    assert (gateway.report("a-1")[0], gateway.report("a-2")[3]) == (1, 10.0)
    assert gateway.picked().keys() == {"a-4"}, "least loaded, and not ejected"
    gateway.balancing.ended(running, 1.0, 0.1, False)
    assert gateway.picked().keys() == {"a-1", "a-4"}


def test_turns_go_on_over_a_swap() -> None:
    gateway = Gateway(route(", balance: {policy: round_robin}"), THREE)
    first = [gateway.pick() for _ in range(2)]
    gateway.publish(route(", balance: {policy: round_robin}") + route(name="other"), THREE)
    assert {one.instance_id for one in (*first, gateway.pick()) if one is not None} == {"a-1", "a-2", "a-3"}


def test_what_is_known_of_an_endpoint_goes_when_it_goes() -> None:
    gateway = Gateway(route(), THREE)
    gateway.end(gateway.endpoint("a-2"), *[True] * 5)
    gateway.register(*instances("a-1"))
    assert gateway.report("a-2") == (0, 0.0, 0, 0.0)
    gateway.register(*THREE)
    assert gateway.report("a-2") == (0, 0.0, 0, 0.0)
    assert "a-2" in gateway.picked()


def test_another_instance_at_the_same_address_begins_anew() -> None:
    gateway = Gateway(route(), THREE)
    gateway.end(gateway.endpoint("a-2"), *[True] * 5)
    gateway.register(*instances("a-1", "a-3"), instance("a", "b-9", 8_002))
    assert "b-9" in gateway.picked()
    assert gateway.balancing.report("b-9", "127.0.0.1:8002")[2:] == (0, 0.0)


def test_of_one_that_left_with_requests_in_progress_only_these_are_known_when_it_is_back() -> None:
    gateway = Gateway(route(), THREE)
    left = gateway.endpoint("a-2")
    for _ in range(3):
        gateway.balancing.began(left, 0.0)
    gateway.end(left, *[True] * 4)
    gateway.register(*instances("a-1"))
    gateway.balancing.ended(left, 0.1, 0.1, True)
    gateway.register(*THREE)
    assert gateway.report("a-2") == (2, 0.0, 0, 0.0)
    assert "a-2" not in gateway.picked(), "the others have less to do"
    gateway.balancing.ended(left, 0.1, 0.1, False)
    gateway.balancing.ended(left, 0.1, 0.1, False)
    assert gateway.report("a-2")[0] == 0


def test_a_try_of_an_endpoint_that_has_left_begins_and_ends_and_leaves_nothing() -> None:
    gateway = Gateway(route(), THREE)
    left = gateway.endpoint("a-2")
    gateway.register(*instances("a-1"))
    gateway.end(left, True)
    assert gateway.balancing._states.keys() == {gateway.endpoint("a-1").identity}


def test_a_route_of_a_former_snapshot_still_finds_endpoints_until_its_service_goes() -> None:
    gateway = Gateway(route(", balance: {policy: random}"), THREE)
    former = gateway.snapshot.routes[0]
    gateway.publish(route(name="new"), instances("a-1", "a-2"))
    picked = {gateway.balancing.pick(former, former.destinations[0], (), b"") for _ in range(100)}
    assert picked == set(gateway.snapshot.endpoints["a"])
    gateway.publish(route(name="new", service="b"), {})
    assert gateway.balancing.pick(former, former.destinations[0], (), b"") is None
    assert (gateway.balancing._states, gateway.balancing._by_authority) == ({}, {})


def test_one_instance_in_two_services_is_two_endpoints() -> None:
    both = {"a": instances("a-1", "a-2"), "b": [instance("b", "a-1", 8_001)]}
    gateway = Gateway(route() + route(name="s", service="b"), both)
    gateway.end(gateway.endpoint("a-1"), *[True] * 5)
    assert gateway.picked(number=0).keys() == {"a-2"}
    assert gateway.picked(number=1).keys() == {"a-1"}
    gateway.balancing.began(gateway.endpoint("a-1", "b"), 0.0)
    assert gateway.report("a-1")[0] == 1
    gateway.register(service="b")
    gateway.avoid(8001, 99.0)
    assert gateway.report("a-1")[3] == 10.0


def test_a_try_that_ends_twice_is_a_defect() -> None:
    gateway = Gateway(route(), THREE)
    gateway.end(gateway.endpoint("a-1"), False)
    with pytest.raises(InvariantViolation, match="never began"):
        gateway.balancing.ended(gateway.endpoint("a-1"), 0.0, None, None)


def test_a_fast_failure_is_no_good_latency() -> None:
    gateway = Gateway(route(), THREE)
    one = gateway.endpoint("a-1")
    gateway.end(one, False, latency_s=0.5)
    gateway.clock.advance(60.0)
    gateway.end(one, True, latency_s=0.001)
    assert gateway.report("a-1")[1] == pytest.approx(0.5)
    gateway.end(one, True, latency_s=2.0)
    assert gateway.report("a-1")[1] == 2.0


class Churn(RuleBasedStateMachine):
    """Whatever comes and goes, in whatever order: the counts are those of the tries that run, and nothing is left."""

    def __init__(self) -> None:
        super().__init__()
        self.there = {"a": ["a-1", "a-2"], "b": ["a-1"]}
        self.routes = route() + route(name="s", service="b")
        self.gateway = Gateway(self.routes, self.found())
        self.running: list[Endpoint] = []

    def found(self) -> dict[str, list[Instance]]:
        return {name: instances(*there, service=name) for name, there in self.there.items()}

    @rule(service=st.sampled_from("ab"), there=st.sets(st.sampled_from(["a-1", "a-2", "a-3"])))
    def register(self, service: str, there: set[str]) -> None:
        self.there[service] = sorted(there)
        if service in self.gateway.snapshot.endpoints:
            self.gateway.register(*self.found()[service], service=service)

    @rule(names=st.sets(st.sampled_from("ab"), min_size=1), policy=st.sampled_from(POLICIES))
    def publish(self, names: set[str], policy: str) -> None:
        routes = [
            route(f", balance: {{policy: {policy}}}, outlier_ejection: {{consecutive_failures: 2}}", f"r{name}", name)
            for name in sorted(names)
        ]
        self.gateway.publish("".join(routes), self.found())

    @rule(key=st.binary(max_size=2))
    def begin(self, key: bytes) -> None:
        found = self.gateway.snapshot.routes[0]
        there = self.gateway.snapshot.endpoints[found.service]
        picked = self.gateway.pick(key=key)
        assert (picked in there) if there else picked is None
        if picked is not None:
            self.gateway.balancing.began(picked, self.gateway.clock.monotonic_s())
            self.running.append(picked)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), failed=st.sampled_from([True, True, False, None]))
    def end(self, data: st.DataObject, failed: bool | None) -> None:
        endpoint = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.gateway.balancing.ended(endpoint, self.gateway.clock.monotonic_s(), 0.01, failed)

    @rule(port=st.integers(8_001, 8_003), seconds=st.sampled_from([0.0, 1.0]))
    def reach(self, port: int, seconds: float) -> None:
        self.gateway.avoid(port, seconds)

    @rule(seconds=st.sampled_from([0.5, 5.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.gateway.clock.advance(seconds)

    @invariant()
    def counts_are_those_of_what_runs(self) -> None:
        balancing, running = self.gateway.balancing, Counter(one.identity for one in self.running)
        there = {one.identity for found in self.gateway.snapshot.endpoints.values() for one in found}
        assert balancing._states.keys() == there | running.keys()
        for identity, state in balancing._states.items():
            assert state.active == running[identity]
            assert state.is_gone == (identity not in there)
        hashing = [one for one in balancing._clusters.values() if one.key.policy == "consistent_hash"]
        for state in balancing._states.values():
            if not state.is_gone:
                assert set(state.tallies) == {cluster.tally for cluster in hashing if state in cluster._all}
        for cluster in hashing:
            if cluster.key.service in self.gateway.snapshot.endpoints:
                assert cluster.tally.active == sum(running[one.identity] for one in cluster._all)
        assert {one.identity for found in balancing._by_authority.values() for one in found} == there


TestChurn = Churn.TestCase
TestChurn.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
