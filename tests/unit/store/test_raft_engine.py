"""The raft engine around the log: long reads, lease ids, housekeeping, and what it refuses to start on."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from quorate_core.clock import SystemClock
from quorate_core.errors import Compacted, Conflict, InvalidRequest, InvariantViolation
from quorate_core.tasks import TaskOwner
from quorate_store import mvcc, raft_engine
from quorate_store.model import RANGE_ALL, PutOp
from quorate_store.raft_engine import RANGE_SLICE_KEYS, RaftStore
from quorate_store.state import StateMachine
from support.store_local import DirectLog, DirectLogStatus, local_store, local_store_and_machine
from support.store_model import entries_of

PATIENCE_S = 20.0


class ShortLog(DirectLog):
    def status(self) -> DirectLogStatus:
        status = super().status()
        return replace(status, last_index=status.last_index - 1)


async def test_a_state_that_is_ahead_of_its_log_is_refused(tmp_path: Path) -> None:
    machine = StateMachine(tmp_path / "state", map_bytes=64 * 1024 * 1024)
    machine.apply(entries_of([PutOp(b"k", b"v")]))
    async with TaskOwner("test") as tasks:
        store = RaftStore(ShortLog(machine), machine, SystemClock(), tasks)
        with pytest.raises(InvariantViolation, match="applied entry 1, and the log ends at 0"):
            await store.start()
    machine.close()


def fill(machine: StateMachine, keys: int) -> None:
    entries = entries_of([PutOp(b"k%06d" % n, b"v") for n in range(keys)], machine.applied_index + 1)
    machine.apply(entries)


async def test_a_long_range_is_of_one_revision_though_others_write_meanwhile(tmp_path: Path) -> None:
    async with local_store_and_machine(tmp_path) as (store, machine):
        fill(machine, RANGE_SLICE_KEYS * 6)
        revision = machine.revision
        turns = 0

        async def disturb() -> None:
            nonlocal turns
            while True:
                turns += 1
                await store.put(b"k%06d" % (turns % 3_000), b"changed")
                await store.delete(b"k%06d" % (2_999 - turns % 3_000))

        async with TaskOwner("test") as tasks:
            tasks.start(disturb(), "disturb")
            whole = await store.range(b"k", b"l", revision=revision)
        assert turns > 1
        assert [kv.value for kv in whole.kvs] == [b"v"] * (RANGE_SLICE_KEYS * 6)
        assert whole.count == RANGE_SLICE_KEYS * 6


async def test_a_long_range_of_the_present_begins_again_when_compaction_overtakes_it(tmp_path: Path) -> None:
    async with local_store_and_machine(tmp_path) as (store, machine):
        fill(machine, RANGE_SLICE_KEYS * 4)
        reading = asyncio.ensure_future(store.range(b"k", b"l"))  # noqa: TID251 - awaited below
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        put = await store.put(b"k", b"new")
        await store.compact(put.revision)
        result = await reading
        assert result.revision == put.revision
        assert result.count == RANGE_SLICE_KEYS * 4 + 1


async def test_a_long_range_of_the_past_is_told_when_compaction_overtakes_it(tmp_path: Path) -> None:
    async with local_store_and_machine(tmp_path) as (store, machine):
        fill(machine, RANGE_SLICE_KEYS * 4)
        reading = asyncio.ensure_future(store.range(b"k", b"l", revision=machine.revision))  # noqa: TID251 - awaited
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        put = await store.put(b"k", b"new")
        await store.compact(put.revision)
        with pytest.raises(Compacted):
            await reading


async def test_an_answer_is_bounded_and_parts_of_it_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mvcc, "RANGE_BYTES_MAX", RANGE_SLICE_KEYS * 10)
    async with local_store_and_machine(tmp_path) as (store, machine):
        fill(machine, RANGE_SLICE_KEYS * 4)
        with pytest.raises(InvalidRequest, match="in parts"):
            await store.range(b"k", b"l")
        assert len((await store.range(b"k", b"l", limit=RANGE_SLICE_KEYS)).kvs) == RANGE_SLICE_KEYS


async def test_counting_and_cutting_need_no_walk(tmp_path: Path) -> None:
    async with local_store_and_machine(tmp_path) as (store, machine):
        fill(machine, RANGE_SLICE_KEYS * 20)
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with TaskOwner("test") as tasks:
            tasks.start(count_turns(), "turns")
            assert (await store.range(b"\0", RANGE_ALL, count_only=True)).count == RANGE_SLICE_KEYS * 20
            cut = await store.range(b"\0", RANGE_ALL, limit=2)
            assert (len(cut.kvs), cut.count, cut.more) == (2, RANGE_SLICE_KEYS * 20, True)
            assert turns < 10


def ids(*numbers: int) -> Iterator[int]:
    yield from numbers


async def test_an_id_that_is_taken_is_chosen_anew_a_few_times(tmp_path: Path) -> None:
    chosen = ids(5, 5, 5, 6, 5, 5, 5)
    async with local_store(tmp_path, random_bits=lambda _: next(chosen)) as store:
        assert (await store.lease_grant(60)).lease == 5
        assert (await store.lease_grant(60)).lease == 6
        with pytest.raises(Conflict):
            await store.lease_grant(60)
        assert raft_engine.LEASE_ID_ATTEMPTS_MAX == 3


async def test_the_leader_writes_the_quota_of_its_settings_into_the_log(tmp_path: Path) -> None:
    async with local_store_and_machine(tmp_path, quota_bytes=12_345) as (store, machine):
        await store._maintenance.lead()
        assert machine.quota_bytes == 12_345
        before = machine.applied_index
        await store._maintenance.lead()
        assert machine.applied_index == before
    async with local_store_and_machine(tmp_path) as (_, machine):
        assert machine.quota_bytes == 12_345  # until its leader says otherwise


async def test_history_is_kept_so_far_back_and_no_further(tmp_path: Path) -> None:
    async with local_store_and_machine(tmp_path, history_revisions_kept=100) as (store, machine):
        for number in range(100):
            await store.put(b"k", b"%d" % number)
        await store._maintenance.lead()
        assert machine.compact_revision == 0
        for number in range(100):
            await store.put(b"k", b"%d" % number)
        await store._maintenance.lead()
        assert machine.compact_revision == machine.revision - 100
        assert (await store.range(b"k", revision=machine.compact_revision)).count == 1


async def test_what_compaction_frees_is_swept_without_being_asked(tmp_path: Path) -> None:
    async with local_store_and_machine(tmp_path) as (store, machine):
        for number in range(2_000):
            await store.put(b"k", b"%d" % number)
        await store.compact(machine.revision)
        assert not machine.is_swept
        async with asyncio.timeout(PATIENCE_S):
            while not machine.is_swept:  # noqa: ASYNC110 - sweeping has no event to wait for
                await asyncio.sleep(0)
        with machine._database.read() as txn:
            assert len(list(machine._database.rows_from(txn, 0))) == 1
        assert (await store.range(b"k")).kvs[0].version == 2_000
