"""What `port.Store` promises about writes with request ids: applied once, and answered the same each time."""

import asyncio

import pytest
from quorate_core.errors import Conflict, InvalidRequest, NotFound
from quorate_store.model import (
    RANGE_ALL,
    TXN_OPERATIONS_MAX,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    PutOp,
    RangeOp,
    TxnOp,
    prefix_end,
)
from quorate_store.port import Store

pytestmark = pytest.mark.asyncio(loop_scope="package")

EQUAL = CompareResult.EQUAL
UNKNOWN_LEASE = 2**62 + 11


def is_version(key: bytes, version: int) -> Compare:
    return Compare(key, CompareTarget.VERSION, EQUAL, version)


async def version_of(store: Store, key: bytes) -> int:
    kvs = (await store.range(key)).kvs
    return kvs[0].version if kvs else 0


@pytest.fixture
def request_id(prefix: bytes) -> str:
    return prefix.decode()


async def test_a_put_is_done_once(store: Store, prefix: bytes, request_id: str) -> None:
    await store.put(prefix, b"before")
    first = await store.put(prefix, b"v", previous=True, request_id=request_id)
    assert first.previous is not None
    assert first.previous.value == b"before"
    await store.put(prefix, b"after")
    assert await store.put(prefix, b"v", previous=True, request_id=request_id) == first
    [kv] = (await store.range(prefix)).kvs
    assert (kv.value, kv.version) == (b"after", 3)


async def test_a_deletion_is_done_once(store: Store, prefix: bytes, request_id: str) -> None:
    for name in (b"a", b"b", b"c"):
        await store.put(prefix + name, name)
    end = prefix + b"c"
    first = await store.delete(prefix, end, previous=True, request_id=request_id)
    assert first.deleted == 2
    assert [kv.value for kv in first.previous] == [b"a", b"b"]
    await store.put(prefix + b"a", b"again")
    assert await store.delete(prefix, end, previous=True, request_id=request_id) == first
    assert await version_of(store, prefix + b"a") == 1


async def test_a_deletion_of_nothing_is_remembered_too(store: Store, prefix: bytes, request_id: str) -> None:
    assert (await store.delete(prefix, request_id=request_id)).deleted == 0
    await store.put(prefix, b"v")
    assert (await store.delete(prefix, request_id=request_id)).deleted == 0
    assert await version_of(store, prefix) == 1


async def test_a_transaction_is_done_once_and_answers_all_that_it_did(
    store: Store, prefix: bytes, request_id: str
) -> None:
    a, b, c = (prefix + name for name in (b"a", b"b", b"c"))
    await store.put(a, b"1")
    await store.put(b, b"2")
    compare = [is_version(a, 1)]
    nested = TxnOp((is_version(c, 0),), (PutOp(c, b"3"),), (DeleteOp(c),))
    success = [
        RangeOp(prefix, prefix_end(prefix)), PutOp(a, b"4", previous=True), nested, DeleteOp(b, previous=True),
        RangeOp(prefix, prefix_end(prefix), limit=1),
    ]  # fmt: skip
    first = await store.txn(compare, success, request_id=request_id)
    assert first.succeeded
    assert len(first.results) == len(success)
    await store.delete(prefix, prefix_end(prefix))
    again = await store.txn(compare, success, request_id=request_id)
    assert again == first
    assert (await store.range(prefix, prefix_end(prefix))).count == 0


async def test_a_refusal_stays_one_though_the_comparison_holds_by_now(
    store: Store, prefix: bytes, request_id: str
) -> None:
    compare, success = [is_version(prefix, 1)], [PutOp(prefix, b"done")]
    first = await store.txn(compare, success, [RangeOp(prefix)], request_id=request_id)
    assert not first.succeeded
    await store.put(prefix, b"v")
    assert await store.txn(compare, success, [RangeOp(prefix)], request_id=request_id) == first
    assert await version_of(store, prefix) == 1


async def test_many_that_ask_the_same_at_once_get_one_answer(store: Store, prefix: bytes, request_id: str) -> None:
    answers = await asyncio.gather(*(store.put(prefix, b"v", request_id=request_id) for _ in range(20)))
    assert len(set(answers)) == 1
    assert await version_of(store, prefix) == 1


async def test_one_id_stands_for_one_write(store: Store, prefix: bytes, request_id: str) -> None:
    await store.put(prefix, b"v", request_id=request_id)
    with pytest.raises(Conflict, match="used for another write"):
        await store.put(prefix, b"w", request_id=request_id)
    with pytest.raises(Conflict, match="used for another write"):
        await store.delete(prefix, request_id=request_id)
    await store.put(prefix, b"v", request_id=request_id + "another")
    assert await version_of(store, prefix) == 2


async def test_an_answer_that_compaction_has_taken_is_refused(store: Store, prefix: bytes, request_id: str) -> None:
    await store.put(prefix, b"before")
    first = await store.put(prefix, b"v", previous=True, request_id=request_id)
    await store.compact(first.revision)
    with pytest.raises(Conflict, match=f"applied at revision {first.revision}"):
        await store.put(prefix, b"v", previous=True, request_id=request_id)
    assert await version_of(store, prefix) == 2


async def test_an_answer_that_is_known_without_history_outlives_it(
    store: Store, prefix: bytes, request_id: str
) -> None:
    first = await store.put(prefix, b"v", request_id=request_id)
    last = await store.put(prefix, b"w")
    await store.compact(last.revision)
    assert await store.put(prefix, b"v", request_id=request_id) == first
    assert await version_of(store, prefix) == 2


async def test_a_write_that_was_refused_is_not_remembered(store: Store, prefix: bytes, request_id: str) -> None:
    with pytest.raises(NotFound):
        await store.put(prefix, b"v", lease=UNKNOWN_LEASE, request_id=request_id)
    await store.put(prefix, b"v", request_id=request_id)
    assert await version_of(store, prefix) == 1


async def test_a_transaction_may_be_as_large_with_an_id_as_without(
    store: Store, prefix: bytes, request_id: str
) -> None:
    puts = [PutOp(prefix + b"%d" % number, b"v") for number in range(TXN_OPERATIONS_MAX)]
    compare = [is_version(put.key, 0) for put in puts[:-3]]
    first = await store.txn(compare, puts, puts, request_id=request_id)
    assert (first.succeeded, len(first.results)) == (True, len(puts))
    assert await store.txn(compare, puts, puts, request_id=request_id) == first
    assert await version_of(store, puts[-1].key) == 1


async def test_a_transaction_that_only_reads_reads_again(store: Store, prefix: bytes, request_id: str) -> None:
    first = await store.txn([], [RangeOp(prefix)], request_id=request_id)
    await store.put(prefix, b"v")
    second = await store.txn([], [RangeOp(prefix)], request_id=request_id)
    assert (first.results[0].count, second.results[0].count) == (0, 1)  # type: ignore[union-attr]


async def test_an_id_is_bounded_and_its_write_leaves_other_ids_alone(
    store: Store, prefix: bytes, request_id: str
) -> None:
    with pytest.raises(InvalidRequest):
        await store.put(prefix, b"v", request_id="x" * 129)
    with pytest.raises(InvalidRequest):
        await store.delete(b"\0", RANGE_ALL, request_id=request_id)
    assert await version_of(store, prefix) == 0
