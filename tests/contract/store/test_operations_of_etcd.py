"""What transactions can do besides the port's own calls: ranges that are filtered and sorted, and puts that keep."""

import pytest
from quorate_core.errors import InvalidRequest
from quorate_store.model import (
    Arrangement,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    KeyValue,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    SortOrder,
    SortTarget,
    TxnOp,
    prefix_end,
)
from quorate_store.port import Store
from quorate_store.refusals import KeyNotFound, LeaseProvided, ValueProvided

pytestmark = pytest.mark.asyncio(loop_scope="package")

DESCENDING = Arrangement(SortOrder.DESCEND)


async def put_all(store: Store, prefix: bytes) -> list[int]:
    """a=2, b=3, c=1, and a again; returns their last revisions."""
    revisions = [
        (await store.put(prefix + name, value)).revision for name, value in ((b"a", b"2"), (b"b", b"3"), (b"c", b"1"))
    ]
    again = await store.put(prefix + b"a", b"2")
    return [again.revision, *revisions[1:]]


async def ranged(store: Store, op: RangeOp) -> RangeResult:
    [result] = (await store.txn((), (op,))).results
    assert isinstance(result, RangeResult)
    return result


def names(result: RangeResult, prefix: bytes) -> bytes:
    return b"".join(kv.key.removeprefix(prefix) for kv in result.kvs)


def all_of(prefix: bytes, arrangement: Arrangement, **more: int | bool) -> RangeOp:
    return RangeOp(prefix, prefix_end(prefix), arrangement=arrangement, **more)


@pytest.mark.parametrize(
    ("target", "order", "expected"),
    [
        (SortTarget.KEY, SortOrder.DESCEND, b"cba"),
        (SortTarget.VALUE, SortOrder.ASCEND, b"cab"),
        (SortTarget.VALUE, SortOrder.DESCEND, b"bac"),
        (SortTarget.VERSION, SortOrder.DESCEND, b"abc"),
        (SortTarget.CREATE, SortOrder.DESCEND, b"cba"),
        (SortTarget.MOD, SortOrder.ASCEND, b"bca"),
        (SortTarget.MOD, SortOrder.NONE, b"bca"),
    ],
)
async def test_a_range_is_sorted(
    store: Store, prefix: bytes, target: SortTarget, order: SortOrder, expected: bytes
) -> None:
    await put_all(store, prefix)
    assert names(await ranged(store, all_of(prefix, Arrangement(order, target))), prefix) == expected


async def test_what_is_cut_is_what_is_last_after_sorting(store: Store, prefix: bytes) -> None:
    await put_all(store, prefix)
    result = await ranged(store, all_of(prefix, DESCENDING, limit=2))
    assert (names(result, prefix), result.count, result.more) == (b"cb", 3, True)
    fits = await ranged(store, all_of(prefix, DESCENDING, limit=3))
    assert (names(fits, prefix), fits.more) == (b"cba", False)


async def test_keys_are_sorted_by_values_that_are_not_asked_for(store: Store, prefix: bytes) -> None:
    await put_all(store, prefix)
    by_value = Arrangement(SortOrder.ASCEND, SortTarget.VALUE)
    result = await ranged(store, all_of(prefix, by_value, keys_only=True))
    assert names(result, prefix) == b"cab"
    assert {kv.value for kv in result.kvs} == {b""}


async def test_bounds_of_revisions_filter_and_do_not_count(store: Store, prefix: bytes) -> None:
    a, b, c = await put_all(store, prefix)
    later = await ranged(store, all_of(prefix, Arrangement(mod_revision_min=c)))
    assert (names(later, prefix), later.count) == (b"ac", 3)
    earlier = await ranged(store, all_of(prefix, Arrangement(mod_revision_max=c)))
    assert names(earlier, prefix) == b"bc"
    created = await ranged(store, all_of(prefix, Arrangement(create_revision_min=b, create_revision_max=b)))
    assert names(created, prefix) == b"b"
    assert (await ranged(store, all_of(prefix, Arrangement(mod_revision_min=a + 1)))).kvs == ()


async def test_a_range_is_sorted_after_the_writes_before_it(store: Store, prefix: bytes) -> None:
    await put_all(store, prefix)
    result = await store.txn((), (PutOp(prefix + b"d", b"0"), all_of(prefix, DESCENDING, limit=1)))
    ranged_after = result.results[1]
    assert isinstance(ranged_after, RangeResult)
    assert names(ranged_after, prefix) == b"d"


async def test_the_past_is_sorted_too(store: Store, prefix: bytes) -> None:
    _, b, _ = await put_all(store, prefix)
    assert names(await ranged(store, all_of(prefix, DESCENDING, revision=b)), prefix) == b"ba"


async def test_a_put_keeps_the_value_or_the_lease(store: Store, prefix: bytes) -> None:
    lease = (await store.lease_grant(600)).lease
    await store.put(prefix, b"v", lease=lease)
    kept = await store.txn((), (PutOp(prefix, b"", previous=True, ignore_value=True),))
    [put] = kept.results
    assert isinstance(put, PutResult)
    assert put.previous is not None
    assert put.previous.lease == lease
    [kv] = (await store.range(prefix)).kvs
    assert (kv.value, kv.lease, kv.version) == (b"v", 0, 2)
    await store.txn((), (PutOp(prefix, b"", lease, ignore_value=True),))
    await store.txn((), (PutOp(prefix, b"w", ignore_lease=True),))
    await store.txn((), (PutOp(prefix, b"", ignore_value=True, ignore_lease=True),))
    [kv] = (await store.range(prefix)).kvs
    assert (kv.value, kv.lease, kv.version) == (b"w", lease, 5)
    assert (await store.lease_time_to_live(lease, keys=True)).keys == (prefix,)
    await store.lease_revoke(lease)
    assert (await store.range(prefix)).count == 0


async def test_there_must_be_something_to_keep_before_the_transaction(store: Store, prefix: bytes) -> None:
    for put in (PutOp(prefix, b"", ignore_value=True), PutOp(prefix, b"v", ignore_lease=True)):
        with pytest.raises(KeyNotFound):
            await store.txn((), (PutOp(prefix + b"other", b"v"), put))
    assert (await store.range(prefix, prefix_end(prefix))).count == 0
    is_there = Compare(prefix, CompareTarget.VERSION, CompareResult.GREATER, 0)
    taken = await store.txn((is_there,), (PutOp(prefix, b"", ignore_value=True),), (PutOp(prefix, b"v"),))
    assert not taken.succeeded


@pytest.mark.parametrize(
    ("wrong", "refusal"),
    [
        (PutOp(b"k", b"v", ignore_value=True), ValueProvided),
        (PutOp(b"k", b"v", 7, ignore_lease=True), LeaseProvided),
    ],
)
async def test_what_is_kept_is_not_given(store: Store, wrong: PutOp, refusal: type[InvalidRequest]) -> None:
    with pytest.raises(refusal):
        await store.txn((), (TxnOp((), (), (wrong,)),))


async def test_with_a_request_id_they_are_done_once_and_answered_again(store: Store, prefix: bytes) -> None:
    lease = (await store.lease_grant(600)).lease
    await put_all(store, prefix)
    await store.put(prefix + b"b", b"3", lease=lease)
    operations = (
        all_of(prefix, DESCENDING, limit=2),
        PutOp(prefix + b"a", b"", ignore_value=True, previous=True),
        PutOp(prefix + b"b", b"9", ignore_lease=True),
        DeleteOp(prefix + b"c"),
        all_of(prefix, Arrangement(SortOrder.DESCEND, SortTarget.VALUE), limit=1),
        RangeOp(prefix + b"b"),
    )
    request_id = prefix.decode()
    first = await store.txn((), operations, request_id=request_id)
    last = first.results[-1]
    assert isinstance(last, RangeResult)
    assert last.kvs == (KeyValue(prefix + b"b", b"9", last.kvs[0].create_revision, first.revision, 3, lease),)
    await store.put(prefix + b"z", b"later")
    again = await store.txn((), operations, request_id=request_id)
    assert again == first
