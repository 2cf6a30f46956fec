"""The relay and its outbox, on real database files, with a bus that a test makes fail."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from quorate_core.clock import ManualClock
from quorate_core.tasks import TaskOwner
from quorate_messaging import Bus, Database, Event, Housekeeping, Outcome, Relay, RelayPolicy
from quorate_messaging.delivery import DeliveryStatus
from sqlalchemy import text
from support.services_bus import REFUSED, RETRY, FaultyBus, ScriptedBus
from support.services_database import INBOX, OUTBOX, an_event, create_database, note, notes, opened

POLICY = RelayPolicy(poll_interval_s=30.0, backoff_s_first=1.0, backoff_s_max=8.0, attempts_max=4)
"""Polls so seldom that a test which rests on polling fails by its time limit."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return create_database(tmp_path / "a.db")


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    async with opened(file) as database:
        yield database


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@asynccontextmanager
async def relaying(
    database: Database, bus: Bus, clock: ManualClock, owner: str = "r1", policy: RelayPolicy = POLICY
) -> AsyncIterator[Relay]:
    relay = Relay(database, OUTBOX, bus, owner, clock, policy, lot=lambda: 0.999)
    async with TaskOwner("test") as tasks:
        tasks.start(relay.run(), "relay")
        yield relay
        await relay.stop()


async def add(database: Database, *events: Event) -> None:
    async with database.writing() as connection:
        for event in events:
            await OUTBOX.add(connection, event)


async def row_of(database: Database, event: Event) -> tuple[str, int, float]:
    async with database.reading() as connection:
        row = await connection.execute(
            text("SELECT status, attempts, next_attempt_at_s FROM outbox WHERE id = :id"), {"id": event.id}
        )
        status, attempts, due_at_s = row.one()
        return status, attempts, due_at_s


async def until_attempts_are_written(database: Database, event: Event, attempts: int) -> None:
    async with asyncio.timeout(10):
        while (await row_of(database, event))[1] < attempts:  # noqa: ASYNC110 - a file tells nobody of its changes
            await asyncio.sleep(0)


@contextmanager
def consumer_of(database: Database, seen: list[str]) -> Iterator[ScriptedBus]:
    """A bus whose consumer notes each event once, by its inbox, in the same database."""

    async def consume(event: Event) -> None:
        async with database.writing() as connection:
            if await INBOX.admit(connection, event, event.occurred_at_s):
                await note(connection, event.id, event.sequence)
                seen.append(event.id)

    yield ScriptedBus(consume)


async def test_an_event_is_sent_at_once_when_its_commit_is_announced(database: Database, clock: ManualClock) -> None:
    bus = ScriptedBus()
    async with relaying(database, bus, clock) as relay:
        event = an_event("order", 1)
        await add(database, event)
        relay.wake()
        await bus.has_delivered(1)
        assert bus.delivered == [event]
    assert (await row_of(database, event))[:2] == ("DELIVERED", 1)


async def test_an_event_of_a_transaction_that_was_rolled_back_is_never_sent(
    database: Database, clock: ManualClock
) -> None:
    bus = ScriptedBus()
    async with relaying(database, bus, clock) as relay:

        async def change_and_fail() -> None:
            async with database.writing() as connection:
                await OUTBOX.add(connection, an_event("lost", 1))
                raise RuntimeError("the change failed")

        with pytest.raises(RuntimeError):
            await change_and_fail()
        await add(database, an_event("kept", 1))
        relay.wake()
        await bus.has_delivered(1)
    assert [event.id for event in bus.attempts] == ["kept-1"]


async def test_an_event_that_nobody_announced_is_found_by_polling(database: Database, clock: ManualClock) -> None:
    bus = ScriptedBus()
    async with relaying(database, bus, clock, policy=RelayPolicy(poll_interval_s=0.02)):
        await add(database, an_event("order", 1))
        await bus.has_delivered(1)


async def test_events_of_one_aggregate_go_one_by_one_in_order(database: Database, clock: ManualClock) -> None:
    bus = ScriptedBus()
    bus.answering.clear()
    async with relaying(database, bus, clock) as relay:
        await add(database, *(an_event("order", sequence) for sequence in (3, 1, 2)))
        relay.wake()
        await bus.attempted(1)
        assert [event.sequence for event in bus.attempts] == [1]
        bus.answering.set()
        await bus.has_delivered(3)
        assert [event.sequence for event in bus.delivered] == [1, 2, 3]


async def test_aggregates_do_not_wait_for_each_other_up_to_the_limit(database: Database, clock: ManualClock) -> None:
    bus = ScriptedBus()
    bus.answering.clear()
    async with relaying(database, bus, clock, policy=RelayPolicy(concurrency_max=5, poll_interval_s=30)) as relay:
        await add(database, *(an_event(f"order{n}", 1) for n in range(12)))
        relay.wake()
        await bus.attempted(5)
        relay.wake()
        assert len(bus.attempts) == 5
        bus.answering.set()
        await bus.has_delivered(12)


async def test_a_failed_attempt_is_repeated_after_its_backoff_and_not_before(
    database: Database, clock: ManualClock
) -> None:
    bus = ScriptedBus(script={"order": [RETRY, RETRY]})
    event = an_event("order", 1)
    async with relaying(database, bus, clock) as relay:
        await add(database, event)
        for attempts, backoff_s in ((1, 1.0), (2, 2.0)):
            relay.wake()
            await until_attempts_are_written(database, event, attempts)
            status, _, due_at_s = await row_of(database, event)
            assert status == "PENDING"
            assert due_at_s == pytest.approx(clock.wall_s() + backoff_s, rel=0.01)
            clock.advance(backoff_s * 0.5)
            relay.wake()
            await add(database, an_event(f"other{attempts}", 1))
            relay.wake()
            await bus.has_delivered(attempts)  # the other one has gone: this one was passed over
            clock.advance(backoff_s * 0.5)
        relay.wake()
        await bus.has_delivered(3)
    assert (await row_of(database, event))[:2] == ("DELIVERED", 3)


async def test_a_consumer_that_does_not_answer_in_time_is_tried_again(database: Database, clock: ManualClock) -> None:
    bus = ScriptedBus()
    bus.answering.clear()
    event = an_event("order", 1)
    async with relaying(database, bus, clock, policy=RelayPolicy(send_timeout_s=0.01, poll_interval_s=30)) as relay:
        await add(database, event)
        relay.wake()
        await until_attempts_are_written(database, event, 1)
        bus.answering.set()
        clock.advance(1.0)
        relay.wake()
        await bus.has_delivered(1)


async def test_a_bus_that_breaks_costs_an_attempt_and_not_the_event(database: Database, clock: ManualClock) -> None:
    async def broken(_event: Event) -> None:
        if len(bus.attempts) == 1:
            raise ZeroDivisionError("a defect")

    bus = ScriptedBus(broken)
    event = an_event("order", 1)
    async with relaying(database, bus, clock) as relay:
        await add(database, event)
        relay.wake()
        await until_attempts_are_written(database, event, 1)
        clock.advance(2.0)
        relay.wake()
        await bus.has_delivered(1)


@pytest.mark.parametrize("script", [[REFUSED], [RETRY] * 4], ids=["refused", "attempts used up"])
async def test_an_event_given_up_holds_back_its_aggregate_and_no_other_until_it_is_requeued(
    database: Database, clock: ManualClock, script: list[Outcome]
) -> None:
    bus = ScriptedBus(script={"order": script})
    first, second, other = an_event("order", 1), an_event("order", 2), an_event("other", 1)
    async with relaying(database, bus, clock) as relay:
        await add(database, first, second)
        for attempts in range(1, len(script) + 1):
            relay.wake()
            await until_attempts_are_written(database, first, attempts)
            clock.advance(POLICY.backoff_s_max)
        await add(database, other)
        relay.wake()
        await bus.has_delivered(1)
        assert bus.delivered == [other]
        assert (await row_of(database, first))[0] == "DEAD"
        assert (await row_of(database, second))[:2] == ("PENDING", 0)
        async with database.writing() as connection:
            assert await OUTBOX.counts(connection) == {DeliveryStatus.DEAD: 1, DeliveryStatus.PENDING: 1}
            assert not await OUTBOX.requeue(connection, second.id, clock.wall_s())
            assert await OUTBOX.requeue(connection, first.id, clock.wall_s())
        relay.wake()
        await bus.has_delivered(3)
        assert bus.delivered[1:] == [first, second]


async def test_two_relays_on_one_database_deliver_each_event_once_and_in_order(file: Path, clock: ManualClock) -> None:
    async with opened(file) as one, opened(file) as other:
        bus = ScriptedBus()
        await add(one, *(an_event(f"order{n}", sequence) for n in range(30) for sequence in (1, 2, 3)))

        async def keep_waking(relay: Relay) -> None:
            while True:
                relay.wake()
                await asyncio.sleep(0)

        async with (
            relaying(one, bus, clock, "r1") as first,
            relaying(other, bus, clock, "r2") as second,
            TaskOwner("wakers") as wakers,
        ):
            wakers.start(keep_waking(first), "first")
            wakers.start(keep_waking(second), "second")
            await bus.has_delivered(90)
        assert len(bus.attempts) == 90
        for n in range(30):
            assert [event.sequence for event in bus.delivered if event.aggregate_id == f"order{n}"] == [1, 2, 3]


async def test_an_event_that_is_leased_cannot_be_claimed_again_before_the_lease_ends(database: Database) -> None:
    async def claim(owner: str, now_s: float) -> list[str]:
        async with database.writing() as connection:
            claimed = await OUTBOX.claim(connection, ["order-1", "order-2"], owner, now_s, POLICY.lease_s)
        return [each.event.id for each in claimed]

    await add(database, an_event("order", 1), an_event("order", 2))
    assert await claim("r1", 1_000.0) == ["order-1"]
    assert await claim("r2", 1_000.0 + POLICY.lease_s - 0.1) == []
    assert await claim("r2", 1_000.0 + POLICY.lease_s) == ["order-1"]


async def test_what_a_dead_relay_had_claimed_is_sent_by_another_when_the_lease_ends(
    file: Path, clock: ManualClock
) -> None:
    async with opened(file) as one, opened(file) as other:
        await add(one, an_event("order", 1))
        async with one.writing() as connection:
            claimed = await OUTBOX.claim(connection, ["order-1"], "dead", clock.wall_s(), POLICY.lease_s)
        assert len(claimed) == 1
        bus = ScriptedBus()
        async with relaying(other, bus, clock) as relay:
            await add(one, an_event("probe", 1))
            relay.wake()
            await bus.has_delivered(1)
            assert [event.id for event in bus.delivered] == ["probe-1"]
            clock.advance(POLICY.lease_s)
            relay.wake()
            await bus.has_delivered(2)


async def test_a_relay_that_starts_anew_takes_over_at_once_what_it_had_claimed(
    database: Database, clock: ManualClock
) -> None:
    await add(database, an_event("order", 1))
    async with database.writing() as connection:
        await OUTBOX.claim(connection, ["order-1"], "r1", clock.wall_s(), POLICY.lease_s)
    bus = ScriptedBus()
    async with relaying(database, bus, clock, "r1"):
        await bus.has_delivered(1)


async def test_a_crash_between_sending_and_writing_it_down_delivers_twice_and_is_consumed_once(
    database: Database, clock: ManualClock
) -> None:
    seen: list[str] = []
    with consumer_of(database, seen) as bus:
        await add(database, an_event("order", 1), an_event("order", 2))
        async with database.writing() as connection:
            (claimed,) = await OUTBOX.claim(connection, ["order-1"], "r1", clock.wall_s(), POLICY.lease_s)
        await bus.publish(claimed.event)  # sent, and then the process died before it wrote that down
        async with relaying(database, bus, clock, "r1"):
            await bus.has_delivered(3)
    assert [event.id for event in bus.delivered] == ["order-1", "order-1", "order-2"]
    assert seen == ["order-1", "order-2"]
    assert await notes(database) == {"order-1": 1, "order-2": 2}


async def test_a_late_failure_does_not_disturb_a_lease_that_has_passed_to_another(
    database: Database, clock: ManualClock
) -> None:
    await add(database, an_event("order", 1))
    bus = ScriptedBus(script={"order": [RETRY]})
    bus.answering.clear()
    async with relaying(database, bus, clock, "slow") as relay:
        relay.wake()
        await bus.attempted(1)
        clock.advance(POLICY.lease_s + 1)
        async with database.writing() as connection:
            taken = await OUTBOX.claim(connection, ["order-1"], "other", clock.wall_s(), POLICY.lease_s)
        assert len(taken) == 1
        bus.answering.set()
    status, attempts, due_at_s = await row_of(database, an_event("order", 1))
    assert (status, attempts, due_at_s) == ("PENDING", 0, clock.wall_s() + POLICY.lease_s)


async def test_stopping_lets_what_is_under_way_end_and_claims_no_more(database: Database, clock: ManualClock) -> None:
    bus = ScriptedBus()
    bus.answering.clear()
    first, second = an_event("order", 1), an_event("order", 2)
    relay = Relay(database, OUTBOX, bus, "r1", clock, POLICY)
    async with TaskOwner("test") as tasks:
        running = tasks.start(relay.run(), "relay")
        await add(database, first, second)
        relay.wake()
        await bus.attempted(1)
        stopping = tasks.start(relay.stop(), "stop")
        await asyncio.wait({stopping}, timeout=0)
        assert not stopping.done()
        bus.answering.set()
        await stopping
        await running
    assert (await row_of(database, first))[0] == "DELIVERED"
    assert (await row_of(database, second))[:2] == ("PENDING", 0)


async def test_a_relay_waits_out_a_database_that_is_away(file: Path, clock: ManualClock) -> None:
    hidden = file.with_suffix(".hidden")
    async with opened(file) as database:
        await add(database, an_event("order", 1))
    file.rename(hidden)  # noqa: ASYNC240 - nothing else runs meanwhile
    bus = ScriptedBus()
    async with opened(file) as database, relaying(database, bus, clock, policy=RelayPolicy(poll_interval_s=0.01)):
        await database.probe()
        assert database.unreachable is not None
        hidden.rename(file)
        await bus.has_delivered(1)


async def test_a_wall_clock_that_went_back_does_not_strand_events(database: Database) -> None:
    before = ManualClock(100_000.0)
    bus = ScriptedBus(script={"order": [RETRY]})
    event = an_event("order", 1, before.wall_s())
    async with relaying(database, bus, before) as relay:
        await add(database, event)
        relay.wake()
        await until_attempts_are_written(database, event, 1)
    after = ManualClock(1_000.0)
    await Housekeeping(database, OUTBOX, INBOX, after, POLICY).tidy()
    async with relaying(database, bus, after):
        await bus.has_delivered(1)


async def test_housekeeping_deletes_what_was_delivered_long_ago_and_nothing_else(
    database: Database, clock: ManualClock
) -> None:
    old, dead, new = an_event("old", 1), an_event("dead", 1), an_event("new", 1)
    bus = ScriptedBus(script={"dead": [REFUSED]})
    async with relaying(database, bus, clock) as relay:
        await add(database, old)
        relay.wake()
        await until_attempts_are_written(database, old, 1)
        await add(database, dead)
        relay.wake()
        await until_attempts_are_written(database, dead, 1)
        clock.advance(25 * 3600)
        await add(database, new)
        relay.wake()
        await until_attempts_are_written(database, new, 1)
    await Housekeeping(database, OUTBOX, INBOX, clock).tidy()
    async with database.reading() as connection:
        kept = {row.id for row in await connection.execute(text("SELECT id FROM outbox"))}
    assert kept == {"dead-1", "new-1"}


@pytest.mark.parametrize("seed", range(4))
async def test_under_random_faults_every_event_is_consumed_once_and_in_order(
    file: Path, clock: ManualClock, seed: int
) -> None:
    """Losses, lost answers, duplicates and old events again, with two relays at work."""
    consumed: list[str] = []
    all_consumed = asyncio.Event()
    events = [an_event(f"order{n}", sequence) for n in range(10) for sequence in (1, 2, 3)]
    policy = RelayPolicy(backoff_s_first=0.001, backoff_s_max=0.002, poll_interval_s=0.01, attempts_max=1_000)

    async with opened(file) as one, opened(file) as other:

        async def consume(event: Event) -> None:
            async with one.writing() as connection:
                if await INBOX.admit(connection, event, event.occurred_at_s):
                    consumed.append(event.id)
            if len(consumed) == len(events):
                all_consumed.set()

        async def run_the_clock() -> None:
            while True:
                clock.advance(0.001)
                await asyncio.sleep(0)

        bus = FaultyBus(consume, random.Random(seed))
        await add(one, *events)
        async with (
            TaskOwner("clock") as tasks,
            relaying(one, bus, clock, "r1", policy),
            relaying(other, bus, clock, "r2", policy),
            asyncio.timeout(20),
        ):
            tasks.start(run_the_clock(), "clock")
            await all_consumed.wait()
    for n in range(10):
        assert [i for i in consumed if i.startswith(f"order{n}-")] == [f"order{n}-{sequence}" for sequence in (1, 2, 3)]
