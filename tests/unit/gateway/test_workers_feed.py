"""What a worker is told, and what it makes of it: the same snapshot as the first process has, whatever was skipped."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import InvariantViolation
from quorate_gateway.matching import CompileContext
from quorate_gateway.routes import parse_routes
from quorate_gateway.served import force_breaker
from quorate_gateway.snapshot import EMPTY, Revisions, Snapshot, build_snapshot, update_snapshot
from quorate_gateway.workers.feed import Feed, Told, forced_breakers
from quorate_gateway.workers.followed import Followed
from quorate_gateway.workers.messages import Codec, Update
from quorate_resilience import BreakerState
from support.gateway_snapshots import instance

SERVICES = ("order", "stock")
DOCUMENTS = [
    parse_routes(
        "routes:\n"
        + "".join(
            f"  - {{name: {service}, match: {{path_prefix: /{service}}}, service: {service},\n"
            f"     timeout_ms: {timeout_ms}, circuit_breaker: {{}}}}\n"
            for service in services
        )
    )
    for services in (("order",), SERVICES, ("stock",))
    for timeout_ms in (1_000, 2_000)
]
INSTANCES = st.fixed_dictionaries(
    {
        service: st.dictionaries(st.integers(1, 4), st.tuples(st.integers(8_000, 8_004), st.integers(1, 3)), max_size=4)
        for service in SERVICES
    }
)


def build(document: int, found: dict[str, dict[int, tuple[int, int]]], revision: int, former: Snapshot) -> Snapshot:
    registry = {
        service: [
            instance(service, f"{service}-{number}", port, weight=weight) for number, (port, weight) in known.items()
        ]
        for service, known in found.items()
    }
    revisions = Revisions(revision, revision, revision)
    if former.document is DOCUMENTS[document]:
        return update_snapshot(former, SERVICES, registry.__getitem__, revisions)
    return build_snapshot(DOCUMENTS[document], registry.__getitem__, revisions, former)


class Worker:
    """The worker's end, with every message as bytes between them."""

    def __init__(self) -> None:
        self.swapped: list[Snapshot] = []
        self.followed = Followed(self.swapped.append, CompileContext(), lambda: 0.0)

    async def take(self, update: Update) -> int:
        message = Codec.to_worker(Codec.encode(update))
        assert isinstance(message, Update)
        await self.followed.take(message)
        return message.number


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, len(DOCUMENTS) - 1), INSTANCES, st.booleans(), st.booleans()), max_size=8)
)  # fmt: skip
async def test_a_worker_ends_with_what_is_served_however_much_it_was_not_told_between(
    steps: list[tuple[int, dict[str, dict[int, tuple[int, int]]], bool, bool]],
) -> None:
    """Each step has another snapshot; the worker answers at once, or is slow and hears of several as one."""
    feed, worker, now = Feed(), Worker(), Told()
    pending: Update | None = None
    for revision, (document, found, forces, answers) in enumerate(steps, 1):
        snapshot = build(document, found, revision, now.snapshot)
        for route in snapshot.routes:
            if route.breaker is not None and forces:
                force_breaker(route.breaker, "open", 0.0)
        now = Told(snapshot, None, forced_breakers(snapshot))
        update = feed.next_update(now)
        assert update is None or pending is None, "one at a time"
        pending = update or pending
        if pending is not None and answers:
            feed.was_applied(await worker.take(pending))
            pending = None
    while (pending := pending or feed.next_update(now)) is not None:
        feed.was_applied(await worker.take(pending))
        pending = None
    has = worker.followed.snapshot
    assert has.endpoints == now.snapshot.endpoints
    assert has.document == now.snapshot.document
    assert has.revisions == now.snapshot.revisions
    assert forced_breakers(has) == now.forced
    assert feed.applied_revision == now.snapshot.revisions.newest


def snapshot_of(document: int = 2, ports: tuple[int, ...] = (8_000, 8_001), former: Snapshot = EMPTY) -> Snapshot:
    found = {service: {number: (port, 1) for number, port in enumerate(ports)} for service in SERVICES}
    return build(document, found, len(ports), former)


def test_only_what_has_changed_is_sent() -> None:
    feed = Feed()
    first = snapshot_of()
    whole = feed.next_update(Told(first))
    assert whole is not None
    assert whole.document is not None
    feed.was_applied(1)
    second = snapshot_of(ports=(8_000, 8_001, 8_002), former=first)
    change = feed.next_update(Told(second))
    assert change is not None
    assert change.document is None
    assert {service: [one.port for one in put] for service, put in change.put.items()} == {
        "order": [8_002], "stock": [8_002],
    }  # fmt: skip
    assert change.gone == {}
    feed.was_applied(2)
    third = feed.next_update(Told(snapshot_of(ports=(8_000,), former=second)))
    assert third is not None
    assert third.put == {}
    assert third.gone == {service: ["127.0.0.1:8001", "127.0.0.1:8002"] for service in SERVICES}


def test_nothing_is_sent_before_anything_is_known_nor_while_an_update_is_on_its_way() -> None:
    feed = Feed()
    assert feed.next_update(Told()) is None
    first = snapshot_of()
    assert feed.next_update(Told(first)) is not None
    assert feed.next_update(Told(snapshot_of(ports=(1,)))) is None
    feed.was_applied(1)
    assert feed.next_update(Told(first)) is None


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_answer_to_what_was_not_sent_is_a_defect(number: int) -> None:
    feed = Feed()
    with pytest.raises(InvariantViolation):
        feed.was_applied(number)


async def test_a_breaker_that_is_released_is_released_in_the_worker_too() -> None:
    feed, worker, snapshot = Feed(), Worker(), snapshot_of()
    for state in ({"order": "open"}, {"order": "closed"}, {}):
        update = feed.next_update(replace(Told(snapshot), forced=state))  # type: ignore[arg-type]
        assert update is not None
        feed.was_applied(await worker.take(update))
        assert forced_breakers(worker.followed.snapshot) == state
    assert {route.breaker.state for route in worker.followed.snapshot.routes if route.breaker} == {BreakerState.CLOSED}


async def test_what_a_worker_serves_by_is_known_by_number_though_nothing_had_to_be_sent() -> None:
    feed, worker = Feed(), Worker()
    first = snapshot_of()
    update = feed.next_update(Told(first, number=3))
    assert (update is not None, feed.told_applied) == (True, 0)
    # While it works on that, there is another one, and then the first again.
    assert feed.next_update(Told(snapshot_of(ports=(1,), former=first), number=4)) is None
    assert feed.next_update(Told(first, number=5)) is None
    assert feed.told_applied == 0
    assert update is not None
    feed.was_applied(await worker.take(update))
    assert feed.told_applied == 3
    assert feed.next_update(Told(first, number=5)) is None
    assert feed.told_applied == 5
