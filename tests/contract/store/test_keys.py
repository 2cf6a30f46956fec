"""What `port.Store` promises about keys: ranges, puts, deletions, transactions, compaction."""

import asyncio

import pytest
from quorate_core.errors import (
    Compacted,
    FutureRevision,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
)
from quorate_store.model import (
    RANGE_ALL,
    REQUEST_BYTES_MAX,
    TXN_OPERATIONS_MAX,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    DeleteResult,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    TxnOp,
    TxnResult,
    prefix_end,
)
from quorate_store.port import Store

pytestmark = pytest.mark.asyncio(loop_scope="package")

EQUAL, NOT_EQUAL, GREATER, LESS = (
    CompareResult.EQUAL,
    CompareResult.NOT_EQUAL,
    CompareResult.GREATER,
    CompareResult.LESS,
)


async def test_what_was_put_is_read(store: Store, prefix: bytes) -> None:
    put = await store.put(prefix + b"k", b"v")
    result = await store.range(prefix + b"k")
    [kv] = result.kvs
    assert (kv.key, kv.value, kv.lease) == (prefix + b"k", b"v", 0)
    assert (kv.create_revision, kv.mod_revision, kv.version) == (put.revision, put.revision, 1)
    assert result.count == 1
    assert not result.more
    assert result.revision >= put.revision


async def test_each_write_makes_one_revision_and_one_version(store: Store, prefix: bytes) -> None:
    first = await store.put(prefix, b"1")
    second = await store.put(prefix, b"2")
    [kv] = (await store.range(prefix)).kvs
    assert second.revision == first.revision + 1
    assert (kv.create_revision, kv.mod_revision, kv.version) == (first.revision, second.revision, 2)


async def test_put_gives_what_was_there_only_when_asked(store: Store, prefix: bytes) -> None:
    assert (await store.put(prefix, b"1", previous=True)).previous is None
    asked = await store.put(prefix, b"2", previous=True)
    assert asked.previous is not None
    assert asked.previous.value == b"1"
    assert (await store.put(prefix, b"3")).previous is None


async def test_keys_and_values_are_any_bytes(store: Store, prefix: bytes) -> None:
    key, value = prefix + bytes(range(256)) * 4, bytes(range(256)) * 40
    await store.put(key, value)
    assert (await store.range(key)).kvs[0].value == value
    await store.put(key, b"")
    assert (await store.range(key)).kvs[0].value == b""


async def test_a_range_is_in_order_of_key_without_its_end(store: Store, prefix: bytes) -> None:
    for name in (b"c", b"a", b"\xff", b"b", b"aa"):
        await store.put(prefix + name, name)
    assert await _names(store, prefix, prefix_end(prefix)) == [b"a", b"aa", b"b", b"c", b"\xff"]
    assert await _names(store, prefix + b"a", prefix + b"c") == [b"a", b"aa", b"b"]
    assert await _names(store, prefix + b"c", prefix + b"a") == []
    assert (await _names(store, prefix + b"b", RANGE_ALL))[:3] == [b"b", b"c", b"\xff"]
    assert await _names(store, prefix + b"none") == []


async def _names(store: Store, key: bytes, range_end: bytes = b"") -> list[bytes]:
    return [kv.value for kv in (await store.range(key, range_end)).kvs]


async def test_a_limit_cuts_and_says_so(store: Store, prefix: bytes) -> None:
    for name in (b"a", b"b", b"c"):
        await store.put(prefix + name, name)
    cut = await store.range(prefix, prefix_end(prefix), limit=2)
    assert [kv.value for kv in cut.kvs] == [b"a", b"b"]
    assert (cut.count, cut.more) == (3, True)
    whole = await store.range(prefix, prefix_end(prefix), limit=3)
    assert (len(whole.kvs), whole.count, whole.more) == (3, 3, False)


async def test_keys_only_and_count_only(store: Store, prefix: bytes) -> None:
    put = await store.put(prefix + b"a", b"value")
    [kv] = (await store.range(prefix, prefix_end(prefix), keys_only=True)).kvs
    assert (kv.key, kv.value, kv.mod_revision) == (prefix + b"a", b"", put.revision)
    counted = await store.range(prefix, prefix_end(prefix), count_only=True)
    assert (counted.kvs, counted.count, counted.more) == ((), 1, False)


async def test_the_past_can_be_read(store: Store, prefix: bytes) -> None:
    first = await store.put(prefix + b"a", b"1")
    second = await store.put(prefix + b"b", b"2")
    third = await store.delete(prefix + b"a")
    fourth = await store.put(prefix + b"a", b"4")
    seen = [
        [kv.value for kv in (await store.range(prefix, prefix_end(prefix), revision=revision)).kvs]
        for revision in (first.revision, second.revision, third.revision, fourth.revision)
    ]
    assert seen == [[b"1"], [b"1", b"2"], [b"2"], [b"4", b"2"]]
    old = await store.range(prefix, prefix_end(prefix), revision=second.revision, limit=1)
    assert (old.count, old.more, old.revision >= fourth.revision) == (2, True, True)


async def test_a_revision_to_come_cannot_be_read(store: Store, prefix: bytes) -> None:
    revision = (await store.put(prefix, b"")).revision
    with pytest.raises(FutureRevision):
        await store.range(prefix, revision=revision + 1_000_000)


async def test_a_serializable_read_needs_no_more_than_this_member(store: Store, prefix: bytes) -> None:
    put = await store.put(prefix, b"v")
    result = await store.range(prefix, serializable=True)
    assert result.revision >= put.revision
    assert result.kvs[0].value == b"v"


async def test_an_empty_key_is_refused_everywhere(store: Store) -> None:
    with pytest.raises(InvalidRequest):
        await store.range(b"")
    with pytest.raises(InvalidRequest):
        await store.put(b"", b"v")
    with pytest.raises(InvalidRequest):
        await store.delete(b"")
    with pytest.raises(InvalidRequest):
        await store.txn([], [PutOp(b"", b"v")])
    with pytest.raises(InvalidRequest):
        await store.txn([Compare(b"", CompareTarget.VERSION, EQUAL, 0)], [])
    with pytest.raises(InvalidRequest):
        async with store.watch(b"") as watch:
            await anext(aiter(watch))


async def test_a_negative_limit_or_revision_is_refused(store: Store, prefix: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await store.range(prefix, limit=-1)
    with pytest.raises(InvalidRequest):
        await store.range(prefix, revision=-1)


async def test_a_request_over_the_limit_is_refused_and_does_nothing(store: Store, prefix: bytes) -> None:
    before = (await store.range(prefix)).revision
    with pytest.raises(PayloadTooLarge):
        await store.put(prefix, b"x" * REQUEST_BYTES_MAX)
    assert (await store.range(prefix)).revision == before
    await store.put(prefix, b"x" * (REQUEST_BYTES_MAX - 1_024))


async def test_a_deletion_gives_what_was_there_only_when_asked(store: Store, prefix: bytes) -> None:
    for name in (b"a", b"b", b"c"):
        await store.put(prefix + name, name)
    asked = await store.delete(prefix + b"a", prefix + b"c", previous=True)
    assert (asked.deleted, [kv.value for kv in asked.previous]) == (2, [b"a", b"b"])
    unasked = await store.delete(prefix, prefix_end(prefix))
    assert (unasked.deleted, unasked.previous) == (1, ())
    assert unasked.revision == asked.revision + 1


async def test_deleting_nothing_makes_no_revision(store: Store, prefix: bytes) -> None:
    put = await store.put(prefix + b"else", b"")
    assert await store.delete(prefix + b"none") == DeleteResult(put.revision, 0)


async def test_a_key_that_comes_again_begins_again(store: Store, prefix: bytes) -> None:
    await store.put(prefix, b"1")
    await store.put(prefix, b"2")
    await store.delete(prefix)
    put = await store.put(prefix, b"3")
    [kv] = (await store.range(prefix)).kvs
    assert (kv.create_revision, kv.mod_revision, kv.version) == (put.revision, put.revision, 1)


async def test_a_transaction_takes_one_branch_at_one_revision(store: Store, prefix: bytes) -> None:
    put = await store.put(prefix + b"a", b"1")
    compare = [Compare(prefix + b"a", CompareTarget.VALUE, EQUAL, b"1")]
    taken = await store.txn(compare, [PutOp(prefix + b"a", b"2"), PutOp(prefix + b"b", b"2")], [])
    assert taken.succeeded
    assert taken.revision == put.revision + 1
    kvs = (await store.range(prefix, prefix_end(prefix))).kvs
    assert [(kv.value, kv.mod_revision) for kv in kvs] == [(b"2", taken.revision)] * 2
    other = await store.txn(compare, [PutOp(prefix + b"a", b"3")], [DeleteOp(prefix + b"b")])
    assert not other.succeeded
    assert other.results == (DeleteResult(taken.revision + 1, 1),)


async def test_every_comparison(store: Store, prefix: bytes) -> None:
    lease = (await store.lease_grant(60)).lease
    created = (await store.put(prefix + b"k", b"m")).revision
    changed = (await store.put(prefix + b"k", b"m", lease=lease)).revision
    subjects: list[tuple[CompareTarget, int | bytes, int | bytes, int | bytes]] = [
        (CompareTarget.VERSION, 1, 2, 3),
        (CompareTarget.CREATE, created - 1, created, created + 1),
        (CompareTarget.MOD, changed - 1, changed, changed + 1),
        (CompareTarget.LEASE, lease - 1, lease, lease + 1),
        (CompareTarget.VALUE, b"l", b"m", b"ma"),
    ]
    for target, below, exact, above in subjects:
        holding = [
            (below, [NOT_EQUAL, GREATER]),
            (exact, [EQUAL]),
            (above, [NOT_EQUAL, LESS]),
        ]
        for operand, results in holding:
            for result in CompareResult:
                compare = Compare(prefix + b"k", target, result, operand)
                assert (await store.txn([compare], [])).succeeded == (result in results), compare


async def test_an_absent_key_has_zeros_and_no_value(store: Store, prefix: bytes) -> None:
    key = prefix + b"absent"
    for target in (CompareTarget.VERSION, CompareTarget.CREATE, CompareTarget.MOD, CompareTarget.LEASE):
        assert (await store.txn([Compare(key, target, EQUAL, 0)], [])).succeeded
        assert (await store.txn([Compare(key, target, LESS, 1)], [])).succeeded
        assert not (await store.txn([Compare(key, target, GREATER, 0)], [])).succeeded
    for result in CompareResult:
        assert not (await store.txn([Compare(key, CompareTarget.VALUE, result, b"")], [])).succeeded


async def test_a_comparison_with_a_range_holds_for_every_key(store: Store, prefix: bytes) -> None:
    await store.put(prefix + b"a", b"1")
    await store.put(prefix + b"b", b"1")
    compare = Compare(prefix, CompareTarget.VALUE, EQUAL, b"1", prefix_end(prefix))
    assert (await store.txn([compare], [])).succeeded
    await store.put(prefix + b"b", b"2")
    assert not (await store.txn([compare], [])).succeeded


async def test_a_comparison_with_the_wrong_type_is_refused(store: Store, prefix: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await store.txn([Compare(prefix, CompareTarget.VALUE, EQUAL, 1)], [])
    with pytest.raises(InvalidRequest):
        await store.txn([Compare(prefix, CompareTarget.VERSION, EQUAL, b"1")], [])


async def test_a_read_inside_a_transaction_sees_its_writes(store: Store, prefix: bytes) -> None:
    before = await store.put(prefix + b"a", b"1")
    read = RangeOp(prefix, prefix_end(prefix))
    result = await store.txn([], [read, PutOp(prefix + b"b", b"2"), read, DeleteOp(prefix + b"a"), read])
    first, put, second, deleted, third = result.results
    assert isinstance(first, RangeResult)
    assert isinstance(second, RangeResult)
    assert isinstance(third, RangeResult)
    assert [kv.value for kv in first.kvs] == [b"1"]
    assert [kv.value for kv in second.kvs] == [b"1", b"2"]
    assert [kv.value for kv in third.kvs] == [b"2"]
    assert (put, deleted) == (PutResult(before.revision + 1), DeleteResult(before.revision + 1, 1))
    assert (first.revision, second.revision) == (before.revision, before.revision + 1)


async def test_a_nested_transaction_is_decided_before_anything_is_written(store: Store, prefix: bytes) -> None:
    absent = Compare(prefix + b"a", CompareTarget.VERSION, EQUAL, 0)
    inner = TxnOp((absent,), (PutOp(prefix + b"b", b"absent"),), (PutOp(prefix + b"b", b"present"),))
    result = await store.txn([absent], [PutOp(prefix + b"a", b""), inner])
    _, nested = result.results
    assert nested == TxnResult(result.revision, True, (PutResult(result.revision),))
    assert (await store.range(prefix + b"b")).kvs[0].value == b"absent"


async def test_a_key_written_twice_is_refused(store: Store, prefix: bytes) -> None:
    put = PutOp(prefix + b"a", b"")
    nested = TxnOp((), (put,))
    for operations in (
        [put, put],
        [put, DeleteOp(prefix + b"a")],
        [DeleteOp(prefix, prefix_end(prefix)), put],
        [put, nested],
        [nested, nested],
        [put, TxnOp((), (), (put,))],
        [TxnOp((), (), (put,)), DeleteOp(prefix + b"a")],
        [nested, DeleteOp(prefix, RANGE_ALL)],
    ):
        with pytest.raises(InvalidRequest):
            await store.txn([], operations)
        with pytest.raises(InvalidRequest):
            await store.txn([], [], operations)
    assert (await store.range(prefix, prefix_end(prefix))).count == 0


async def test_branches_that_exclude_each_other_may_write_the_same_key(store: Store, prefix: bytes) -> None:
    put = PutOp(prefix + b"a", b"")
    result = await store.txn([], [TxnOp((), (put,), (put,)), DeleteOp(prefix + b"b"), DeleteOp(prefix + b"b")], [put])
    assert result.succeeded


async def test_too_many_operations_are_refused(store: Store, prefix: bytes) -> None:
    puts = [PutOp(prefix + b"%d" % number, b"") for number in range(TXN_OPERATIONS_MAX)]
    assert (await store.txn([], puts)).succeeded
    with pytest.raises(InvalidRequest):
        await store.txn([], [*puts, PutOp(prefix + b"more", b"")])
    with pytest.raises(InvalidRequest):
        await store.txn([], [], [*puts, PutOp(prefix + b"more", b"")])
    with pytest.raises(InvalidRequest):
        await store.txn([Compare(prefix, CompareTarget.VERSION, EQUAL, 0)] * (TXN_OPERATIONS_MAX + 1), [])
    nested = TxnOp((), (TxnOp((), tuple(puts[:64])),), ())
    with pytest.raises(InvalidRequest):
        await store.txn([], [nested, *puts[64:]])
    assert (await store.txn([], [nested, *puts[66:]])).succeeded
    assert (await store.range(prefix, prefix_end(prefix))).count == TXN_OPERATIONS_MAX


async def test_a_transaction_that_is_refused_has_done_nothing(store: Store, prefix: bytes) -> None:
    before = (await store.put(prefix + b"a", b"1")).revision
    with pytest.raises(NotFound):
        await store.txn([], [PutOp(prefix + b"a", b"2"), PutOp(prefix + b"b", b"2", lease=2**62 + 1)])
    with pytest.raises(FutureRevision):
        await store.txn([], [PutOp(prefix + b"a", b"2"), RangeOp(prefix, revision=before + 1_000_000)])
    result = await store.range(prefix, prefix_end(prefix))
    assert ([kv.value for kv in result.kvs], result.revision) == ([b"1"], before)


async def test_a_transaction_that_only_reads_makes_no_revision(store: Store, prefix: bytes) -> None:
    before = (await store.put(prefix + b"a", b"1")).revision
    result = await store.txn(
        [Compare(prefix + b"a", CompareTarget.VERSION, EQUAL, 1)],
        [RangeOp(prefix + b"a"), TxnOp((), (RangeOp(prefix),))],
    )
    first, nested = result.results
    assert (result.succeeded, result.revision) == (True, before)
    assert isinstance(first, RangeResult)
    assert first.kvs[0].value == b"1"
    assert nested == TxnResult(before, True, (RangeResult(before, (), 0),))
    with pytest.raises(FutureRevision):
        await store.txn([], [RangeOp(prefix, revision=before + 1_000_000)])


async def test_compare_and_set_loses_no_increment(store: Store, prefix: bytes) -> None:
    key, writers, increments = prefix + b"counter", 8, 5
    await store.put(key, b"0")

    async def increment() -> None:
        for _ in range(increments):
            while True:
                [kv] = (await store.range(key)).kvs
                compare = Compare(key, CompareTarget.MOD, EQUAL, kv.mod_revision)
                if (await store.txn([compare], [PutOp(key, b"%d" % (int(kv.value) + 1))])).succeeded:
                    break

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(writers):
            group.create_task(increment())
    assert (await store.range(key)).kvs[0].value == b"%d" % (writers * increments)


async def test_compaction_forgets_what_is_older_and_keeps_what_is_not(store: Store, prefix: bytes) -> None:
    await store.put(prefix + b"kept", b"before")
    gone = await store.put(prefix + b"a", b"1")
    kept = await store.put(prefix + b"a", b"2")
    last = await store.delete(prefix + b"a")
    await store.compact(kept.revision)
    with pytest.raises(Compacted) as caught:
        await store.range(prefix + b"a", revision=gone.revision)
    assert caught.value.extensions["compact_revision"] == kept.revision
    with pytest.raises(Compacted):
        await store.txn([], [PutOp(prefix + b"b", b""), RangeOp(prefix, revision=gone.revision)])
    old = await store.range(prefix, prefix_end(prefix), revision=kept.revision)
    assert [kv.value for kv in old.kvs] == [b"2", b"before"]
    now = await store.range(prefix, prefix_end(prefix), revision=last.revision)
    assert [kv.value for kv in now.kvs] == [b"before"]
    assert (await store.range(prefix + b"b")).count == 0


async def test_compaction_goes_forward_and_not_into_the_future(store: Store, prefix: bytes) -> None:
    revision = (await store.put(prefix, b"")).revision
    await store.compact(revision)
    with pytest.raises(Compacted):
        await store.compact(revision)
    with pytest.raises(FutureRevision):
        await store.compact(revision + 1_000_000)


async def test_a_member_says_what_it_is(store: Store, prefix: bytes) -> None:
    put = await store.put(prefix, b"v")
    status = await store.status()
    assert status.leader in status.members
    assert status.name in status.members
    assert status.term >= 1
    assert status.revision >= put.revision
    assert status.applied_index <= status.commit_index
    assert status.store_bytes > 0


async def test_a_long_range_is_of_one_revision_and_knows_its_limit(store: Store, prefix: bytes) -> None:
    keys = [prefix + b"%05d" % number for number in range(2_500)]
    for at in range(0, len(keys), TXN_OPERATIONS_MAX):
        await store.txn([], [PutOp(key, b"v") for key in keys[at : at + TXN_OPERATIONS_MAX]])
    whole = await store.range(prefix, prefix_end(prefix))
    assert ([kv.key for kv in whole.kvs], whole.count, whole.more) == (keys, 2_500, False)
    cut = await store.range(prefix, prefix_end(prefix), limit=2_100, keys_only=True)
    assert ([kv.key for kv in cut.kvs], cut.count, cut.more) == (keys[:2_100], 2_500, True)
    before = (await store.delete(keys[-1])).revision - 1
    past = await store.range(prefix, prefix_end(prefix), revision=before)
    assert (past.kvs, past.count, past.more) == (whole.kvs, 2_500, False)


async def test_pages_of_one_revision_are_all_that_was_there_then(store: Store, prefix: bytes) -> None:
    """While keys come and go; whether or not each page is to be counted."""
    keys = [prefix + b"%05d" % number for number in range(400)]
    for at in range(0, len(keys), TXN_OPERATIONS_MAX):
        made = await store.txn([], [PutOp(key, b"v") for key in keys[at : at + TXN_OPERATIONS_MAX]])
    for counted in (True, False):
        found: list[bytes] = []
        first, more = prefix, True
        while more:
            page = await store.range(
                first, prefix_end(prefix), limit=90, revision=made.revision, keys_only=True, counted=counted
            )
            found += [kv.key for kv in page.kvs]
            assert not counted or page.count == len(keys) - len(found) + len(page.kvs)
            first, more = found[-1] + b"\0", page.more
            await store.put(prefix + b"%05d-new" % len(found), b"new")
            await store.delete(keys[len(found) // 2])
        assert found == keys


async def test_large_values_come_whole(store: Store, prefix: bytes) -> None:
    values = [bytes([65 + number]) * 1_000_000 for number in range(6)]
    for number, value in enumerate(values):
        await store.put(prefix + b"%d" % number, value)
    assert [kv.value for kv in (await store.range(prefix, prefix_end(prefix))).kvs] == values
    await store.delete(prefix, prefix_end(prefix))


async def test_a_hash_says_whether_anything_has_changed(store: Store, prefix: bytes) -> None:
    put = await store.put(prefix, b"1")
    first = await store.hash()
    assert first.revision >= put.revision
    assert await store.hash() == first
    assert await store.hash(first.revision) == first
    await store.put(prefix, b"2")
    second = await store.hash()
    assert second.hash != first.hash
    assert second.revision == first.revision + 1


async def test_a_hash_is_of_what_there_is(store: Store, prefix: bytes) -> None:
    first = (await store.put(prefix, b"1")).revision
    second = (await store.put(prefix, b"2")).revision
    await store.compact(second)
    with pytest.raises(Compacted):
        await store.hash(first)
    with pytest.raises(FutureRevision):
        await store.hash(second + 1_000_000)
    with pytest.raises(InvalidRequest):
        await store.hash(-1)


async def test_a_long_range_is_not_torn_by_writes_that_come_meanwhile(store: Store, prefix: bytes) -> None:
    """The first and the last key always change together."""
    keys = [prefix + b"%05d" % number for number in range(2_500)]
    for at in range(0, len(keys), TXN_OPERATIONS_MAX):
        await store.txn([], [PutOp(key, b"0") for key in keys[at : at + TXN_OPERATIONS_MAX]])

    async def write() -> None:
        for number in range(10_000):
            await store.txn([], [PutOp(keys[0], b"%d" % number), PutOp(keys[-1], b"%d" % number)])

    seen: set[bytes] = set()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        while len(seen) < 5:
            kvs = (await store.range(prefix, prefix_end(prefix))).kvs
            assert len(kvs) == len(keys)
            assert kvs[0].value == kvs[-1].value
            seen.add(kvs[0].value)
        writing.cancel()
