"""Writes with request ids over a real state machine, on a log that loses answers, refuses, and hangs; and over three
members whose leader dies between its commit and its answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from quorate_core.clock import ManualClock
from quorate_core.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    NotProposed,
    OutcomeUnknown,
    QuorateError,
    QuotaExceeded,
    TooManyRequests,
)
from quorate_core.tasks import TaskOwner
from quorate_store import lease_keeper, once
from quorate_store.commands import LeaseGrant, decode_command
from quorate_store.model import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    EventKind,
    PutOp,
    PutResult,
    RangeOp,
    TxnOp,
    TxnResult,
    prefix_end,
)
from quorate_store.once import (
    ATTEMPT_TIMEOUT_S,
    LEASE_SHARED_S,
    MARKER_TTL_S_MIN,
    REMEMBERED_S,
    WRITE_TIMEOUT_S,
    OnceWriter,
)
from quorate_store.raft_engine import RaftStore
from quorate_store.request_guard import REQUESTS_PREFIX
from quorate_store.state import Applied, StateMachine
from support.store_local import DirectLog
from support.store_raft import RaftMember, raft_stores, until_ready

PATIENCE_S = 30.0
EQUAL = CompareResult.EQUAL
REQUESTS_END = prefix_end(REQUESTS_PREFIX)


class TroubledLog(DirectLog):
    """What goes wrong with the next proposals, one after the other; None stands for nothing."""

    def __init__(self, machine: StateMachine) -> None:
        super().__init__(machine)
        self.before: list[QuorateError | None] = []
        """Of writes, before they are applied."""
        self.after: list[QuorateError | None] = []
        """And after."""
        self.grants: list[QuorateError | None] = []
        self.hangs_after = False
        """Writes are applied, and never answered."""

    async def propose(self, data: bytes, timeout_s: float) -> Any:
        command = decode_command(data)
        is_write = isinstance(command, PutOp | TxnOp | DeleteOp)
        if is_write:
            _raise_next(self.before)
        elif isinstance(command, LeaseGrant):
            _raise_next(self.grants)
        result = await super().propose(data, timeout_s)
        if is_write:
            _raise_next(self.after)
            if self.hangs_after:
                await asyncio.get_running_loop().create_future()
        return result


def _raise_next(errors: list[QuorateError | None]) -> None:
    error = errors.pop(0) if errors else None
    if error is not None:
        raise error


@dataclass
class Bench:
    """A store on that log; time is the clock's, and a pause between two attempts advances it."""

    log: TroubledLog
    machine: StateMachine
    store: RaftStore
    clock: ManualClock
    pauses_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.writer = OnceWriter(self.store, self.clock, random_bits=lambda _: 0, wait=self.pause)

    async def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.clock.advance(seconds)

    async def put(self, key: bytes = b"k", value: bytes = b"v", request_id: str = "one") -> PutResult:
        return await self.writer.put(PutOp(key, value), request_id)

    def version(self, key: bytes = b"k") -> int:
        """How often it was written."""
        kvs = self.machine.range(RangeOp(key)).kvs
        return kvs[0].version if kvs else 0

    def markers(self) -> int:
        return self.machine.live_count(REQUESTS_PREFIX, REQUESTS_END)


@asynccontextmanager
async def bench_in(folder: Path) -> AsyncIterator[Bench]:
    failures: list[BaseException] = []
    machine = StateMachine(folder / "state", map_bytes=2**28)
    clock, log = ManualClock(), TroubledLog(machine)
    async with TaskOwner("bench", failures.append) as tasks:
        store = RaftStore(log, machine, clock, tasks)
        await store.start()
        try:
            yield Bench(log, machine, store, clock)
        finally:
            await store.close()
            machine.close()
    assert failures == []


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench_in(tmp_path) as made:
        yield made


async def test_a_write_whose_answer_is_lost_is_made_again_and_applied_once(bench: Bench) -> None:
    bench.log.after = [OutcomeUnknown("lost"), OutcomeUnknown("lost again")]
    put = await bench.put()
    assert bench.version() == 1
    assert (await bench.store.range(b"k")).kvs[0].mod_revision == put.revision


async def test_without_an_id_nothing_is_made_again(bench: Bench) -> None:
    bench.log.after = [OutcomeUnknown("lost")]
    with pytest.raises(OutcomeUnknown):
        await bench.store.put(b"k", b"v")
    await bench.store.put(b"k", b"v")
    assert bench.version() == 2


async def test_a_write_that_was_not_proposed_is_proposed_again_after_growing_pauses(bench: Bench) -> None:
    bench.log.before = [NotProposed("no leader")] * 8
    await bench.put()
    assert bench.version() == 1
    assert bench.pauses_s == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5]


async def test_writers_that_fail_together_do_not_come_again_together(bench: Bench) -> None:
    writer = OnceWriter(bench.store, bench.clock, random_bits=lambda bits: 2**bits - 1, wait=bench.pause)
    bench.log.before = [NotProposed("no leader")] * 2
    await writer.put(PutOp(b"k", b"v"), "one")
    assert bench.pauses_s == pytest.approx([0.01, 0.02], abs=1e-5)


async def test_at_the_deadline_the_last_refusal_is_told_if_nothing_is_in_doubt(bench: Bench) -> None:
    bench.log.before = [NotProposed("no leader")] * 1_000
    began_s = bench.clock.monotonic_s()
    with pytest.raises(NotProposed, match="no leader"):
        await bench.put()
    assert WRITE_TIMEOUT_S - 1 < bench.clock.monotonic_s() - began_s <= WRITE_TIMEOUT_S
    assert bench.version() == 0


async def test_and_an_unknown_outcome_stays_unknown_whatever_the_last_attempt_says(bench: Bench) -> None:
    bench.log.before = [OutcomeUnknown("the link broke"), *[NotProposed("no leader")] * 1_000]
    with pytest.raises(OutcomeUnknown, match=r"the link broke; the last attempt: no leader"):
        await bench.put()


async def test_a_refusal_after_an_unknown_outcome_says_nothing_of_that(bench: Bench) -> None:
    """The first attempt may come to the log after the second, and find the lease, or room, that it needs."""
    unknown = OutcomeUnknown("the link broke")
    for refused in (PutOp(b"k", b"v", lease=4_711), PutOp(b"k", b"v" * 4_000)):
        await fill(bench)
        bench.log.before = [unknown]
        with pytest.raises(OutcomeUnknown, match="the link broke; the last attempt: "):
            await bench.writer.put(refused, f"{refused.lease}")


async def fill(bench: Bench) -> None:
    bench.store._maintenance._quota_bytes = bench.machine.logical_bytes + 3_000
    await bench.store._maintenance.lead()


async def test_a_refusal_alone_is_told_as_it_is(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await bench.writer.put(PutOp(b"k", b"v", lease=4_711), "lease")
    await fill(bench)
    with pytest.raises(QuotaExceeded):
        await bench.put(value=b"v" * 4_000)
    assert bench.markers() == 0


async def test_a_full_store_says_how_to_delete_all_the_same(bench: Bench) -> None:
    await bench.put()
    bench.store._maintenance._quota_bytes = 1
    await bench.store._maintenance.lead()
    with pytest.raises(QuotaExceeded, match="delete without an id"):
        await bench.writer.delete(DeleteOp(b"k"), "two")
    assert (await bench.store.delete(b"k")).deleted == 1


async def test_an_attempt_that_hangs_is_given_up_and_the_next_finds_what_it_did(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once, "ATTEMPT_TIMEOUT_S", 0.01)
    bench.log.hangs_after = True

    async def mend(seconds: float) -> None:
        bench.log.hangs_after = False

    writer = OnceWriter(bench.store, bench.clock, wait=mend)
    put = await writer.put(PutOp(b"k", b"v"), "one")
    assert bench.version() == 1
    assert (await bench.store.range(b"k")).kvs[0].mod_revision == put.revision
    assert ATTEMPT_TIMEOUT_S < WRITE_TIMEOUT_S / 2


async def test_an_attempt_that_hangs_to_the_end_leaves_the_outcome_unknown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once, "ATTEMPT_TIMEOUT_S", 0.001)
    bench.log.hangs_after = True
    with pytest.raises(OutcomeUnknown, match="did not answer an attempt in time"):
        await bench.put()
    assert bench.version() == 1


async def test_two_that_send_the_same_at_once_get_the_same_answer(bench: Bench) -> None:
    put = PutOp(b"k", b"v", previous=True)
    other = OnceWriter(bench.store, bench.clock)
    answers = await asyncio.gather(*(writer.put(put, "one") for writer in (bench.writer, other) * 5))
    assert len({answer.revision for answer in answers}) == 1
    assert {answer.previous for answer in answers} == {None}
    assert bench.version() == 1


async def test_an_id_stands_for_one_write(bench: Bench) -> None:
    first = await bench.put()
    for other in (PutOp(b"k", b"w"), PutOp(b"l", b"v"), PutOp(b"k", b"v", previous=True)):
        with pytest.raises(Conflict, match="used for another write") as caught:
            await bench.writer.put(other, "one")
        assert caught.value.extensions == {"used_at_revision": first.revision}
    with pytest.raises(Conflict):
        await bench.writer.delete(DeleteOp(b"k"), "one")
    assert bench.version() == 1


async def test_an_answer_that_history_has_lost_is_refused_with_the_revision_at_which_it_was_given(bench: Bench) -> None:
    await bench.store.put(b"k", b"before")
    put = PutOp(b"k", b"v", previous=True)
    first = await bench.writer.put(put, "one")
    assert first.previous is not None
    await bench.store.put(b"other", b"")
    await bench.store.compact(first.revision - 1)
    assert await bench.writer.put(put, "one") == first
    await bench.store.compact(first.revision)
    said = f"at revision {first.revision}, and what it answered cannot be said again"
    with pytest.raises(Conflict, match=said) as caught:
        await bench.writer.put(put, "one")
    assert caught.value.extensions == {"applied_revision": first.revision}
    assert bench.version() == 2


async def test_an_answer_without_history_in_it_is_given_again_after_any_compaction(bench: Bench) -> None:
    txn = TxnOp((Compare(b"k", CompareTarget.VERSION, EQUAL, 0),), (PutOp(b"k", b"v"),), (PutOp(b"k", b"w"),))
    put, done = await bench.put(b"other"), await bench.writer.txn(txn, "two")
    last = await bench.store.put(b"k", b"later")
    await bench.store.compact(last.revision)
    assert await bench.put(b"other") == put
    assert await bench.writer.txn(txn, "two") == done == TxnResult(put.revision + 1, True, (PutResult(done.revision),))


async def test_a_transaction_that_failed_once_does_not_succeed_when_it_is_repeated(bench: Bench) -> None:
    """Though its comparison would hold by now: what was refused was refused."""
    txn = TxnOp((Compare(b"k", CompareTarget.VERSION, EQUAL, 1),), (PutOp(b"done", b""),), (RangeOp(b"k"),))
    refused = await bench.writer.txn(txn, "one")
    assert not refused.succeeded
    await bench.store.put(b"k", b"v")
    assert await bench.writer.txn(txn, "one") == refused
    assert bench.version(b"done") == 0


async def test_a_transaction_that_can_only_read_needs_no_marker(bench: Bench) -> None:
    txn = TxnOp((), (RangeOp(b"k"),))
    await bench.writer.txn(txn, "one")
    await bench.store.put(b"k", b"v")
    again = await bench.writer.txn(txn, "one")
    assert again.results[0].kvs[0].value == b"v"  # type: ignore[union-attr]
    assert bench.markers() == 0


async def test_many_markers_share_a_lease_and_no_more_than_are_deleted_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once, "MARKERS_PER_LEASE_MAX", 4)
    for number in range(10):
        await bench.put(request_id=str(number))
    assert sorted(len(list(bench.machine.leases.keys(lease))) for lease, _ in bench.machine.leases) == [2, 4, 4]


async def test_a_lease_is_shared_for_a_minute_and_a_marker_lives_as_long_as_is_promised(bench: Bench) -> None:
    await bench.put(request_id="first")
    bench.clock.advance(LEASE_SHARED_S - 1)
    late = await bench.put(request_id="late")
    [(lease, _)] = bench.machine.leases
    bench.clock.advance(1)
    await bench.put(request_id="next")
    assert [other for other, _ in bench.machine.leases if other != lease]
    async with bench.store.watch(REQUESTS_PREFIX, REQUESTS_END, start_revision=late.revision + 2) as watch:
        bench.clock.advance(REMEMBERED_S - 1)
        assert await bench.put(request_id="late") == late
        bench.clock.advance(MARKER_TTL_S_MIN - REMEMBERED_S - LEASE_SHARED_S + 1)
        async with asyncio.timeout(PATIENCE_S):
            batch = await anext(aiter(watch))
    assert {event.kind for event in batch.events} == {EventKind.DELETE}
    assert {event.kv.key for event in batch.events} == {REQUESTS_PREFIX + b"first", REQUESTS_PREFIX + b"late"}
    assert bench.markers() == 1
    assert (await bench.put(request_id="late")).revision > late.revision, "it is forgotten, and so is another write"


async def test_markers_that_end_at_one_moment_are_deleted_in_small_steps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once, "MARKERS_PER_LEASE_MAX", 4)
    monkeypatch.setattr(lease_keeper, "KEYS_ENDED_MAX", 9)
    steps: list[int] = []
    done = asyncio.Event()

    def on_applied(applied: Applied) -> None:
        deleted = sum(event.kind is EventKind.DELETE for _, events in applied.changes for event in events)
        steps.extend([deleted] * (deleted > 0))
        if not bench.markers():
            done.set()

    for number in range(22):
        await bench.put(request_id=str(number))
    bench.machine.add_applied_listener(on_applied)
    bench.clock.advance(MARKER_TTL_S_MIN)
    async with asyncio.timeout(PATIENCE_S):
        await done.wait()
    assert sum(steps) == 22
    assert max(steps) == 8, "two leases together, and never three"


async def test_members_leases_for_markers_end_at_different_moments(bench: Bench) -> None:
    writers = [OnceWriter(bench.store, bench.clock, random_bits=lambda _, spread=spread: spread) for spread in (0, 63)]
    for number, writer in enumerate(writers):
        await writer.put(PutOp(b"k", b"v"), str(number))
    assert {row.ttl_s for _, row in bench.machine.leases} == {MARKER_TTL_S_MIN, MARKER_TTL_S_MIN + 63}


async def test_a_lease_that_ended_before_its_marker_was_put_is_replaced(bench: Bench) -> None:
    await bench.put()
    [(lease, _)] = bench.machine.leases
    await bench.store.lease_revoke(lease)
    assert bench.markers() == 0
    before = bench.machine.applied_index
    await bench.put(request_id="two")
    assert bench.machine.applied_index == before + 3, "a refusal, another lease, and the write"
    assert bench.version() == 2
    [(other, _)] = bench.machine.leases
    assert other != lease
    await bench.put(request_id="two")
    assert bench.version() == 2


async def test_too_many_markers_are_refused_before_anything_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once, "MARKERS_PER_LEASE_MAX", 2)
    monkeypatch.setattr(once, "MARKERS_MAX", 4)
    for number in range(4):
        await bench.put(request_id=str(number))
    with pytest.raises(TooManyRequests, match="4 requests are remembered, and 4 is the limit"):
        await bench.put(request_id="more")
    assert bench.version() == 4
    await bench.store.put(b"k", b"without an id")


async def test_a_lease_that_cannot_be_had_is_asked_for_again_and_nothing_is_in_doubt(bench: Bench) -> None:
    bench.log.grants = [OutcomeUnknown("no answer"), NotProposed("no leader")]
    await bench.put()
    assert bench.version() == 1
    assert len(bench.pauses_s) == 2
    await bench.store.lease_revoke(next(lease for lease, _ in bench.machine.leases))
    bench.log.grants = [OutcomeUnknown("no answer")] * 1_000
    with pytest.raises(NotProposed, match="no lease for the marker of the request yet: no answer"):
        await bench.put(request_id="two")


async def test_the_port_takes_ids_for_every_kind_of_write(bench: Bench) -> None:
    store = bench.store
    put = await store.put(b"a", b"1", request_id="put")
    txn = await store.txn([], [PutOp(b"b", b"2")], request_id="txn")
    deleted = await store.delete(b"a", b"c", previous=True, request_id="delete")
    assert deleted.deleted == 2
    assert await store.put(b"a", b"1", request_id="put") == put
    assert await store.txn([], [PutOp(b"b", b"2")], request_id="txn") == txn
    assert await store.delete(b"a", b"c", previous=True, request_id="delete") == deleted
    assert (await store.range(b"a", b"c")).count == 0
    with pytest.raises(InvalidRequest):
        await store.put(b"a", b"1", request_id="x" * 129)


@pytest.mark.parametrize("request_id", ["the same", ""])
async def test_a_write_is_applied_once_though_the_leader_dies_between_its_commit_and_its_answer(
    tmp_path: Path, request_id: str
) -> None:
    """Pitfall (Jepsen, jetcd 0.8.2): the client cannot know, asks the next member for the same, and without an id it is
    written twice."""
    add = [PutOp(b"counter", b"added")]
    async with raft_stores(tmp_path) as members, asyncio.timeout(PATIENCE_S):
        leader = next(member for member in members if member.leads)
        others = [member for member in members if member is not leader]
        await leader.store.put(b"before", b"", request_id="before")  # there is a lease for markers by now
        await die_before_the_answer(leader, leader.store.txn([], add, request_id=request_id))
        await until_ready(others)
        answers = [await other.store.txn([], add, request_id=request_id) for other in others]
        [kv] = (await others[0].store.range(b"counter")).kvs
    if request_id:
        assert kv.version == 1
        assert {answer.revision for answer in answers} == {kv.mod_revision}
    else:
        assert kv.version == 3, "else this test could not fail"


async def die_before_the_answer(leader: RaftMember, write: Any) -> None:
    """Let the leader commit and apply `write`, and end before it can say so."""
    applied = asyncio.Event()

    def on_applied(batch: Applied) -> None:
        if any(event.kv.key == b"counter" for _, events in batch.changes for event in events):
            writing.cancel()  # in the same turn: no line of the answer is run
            applied.set()

    leader.machine.add_applied_listener(on_applied)
    async with TaskOwner("client") as tasks:
        writing = tasks.start(write, "write")
        await applied.wait()
        await asyncio.wait([writing])
    assert writing.cancelled()
    await leader.stop()
