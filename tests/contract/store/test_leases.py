"""What `port.Store` promises about leases."""

import asyncio

import pytest
from quorate_core.errors import Conflict, InvalidRequest, NotFound
from quorate_store.model import (
    Compare,
    CompareResult,
    CompareTarget,
    EventKind,
    LeaseStatus,
    PutOp,
    TxnResult,
    prefix_end,
)
from quorate_store.port import Store

pytestmark = pytest.mark.asyncio(loop_scope="package")

UNKNOWN = 2**62 + 7
PATIENCE_S = 20.0


async def test_a_grant_gives_an_id_and_the_time_to_live(store: Store) -> None:
    granted = await store.lease_grant(60)
    assert granted == LeaseStatus(granted.lease, 60, 60.0)
    assert granted.lease > 0
    assert (await store.lease_grant(60)).lease != granted.lease


async def test_an_id_can_be_chosen_and_taken_once(store: Store) -> None:
    assert (await store.lease_grant(60, 4_711)).lease == 4_711
    with pytest.raises(Conflict):
        await store.lease_grant(60, 4_711)
    await store.lease_revoke(4_711)
    assert (await store.lease_grant(60, 4_711)).lease == 4_711


@pytest.mark.parametrize("ttl_s", [0, -1, 9_000_000_001])
async def test_a_time_to_live_out_of_range_is_refused(store: Store, ttl_s: int) -> None:
    with pytest.raises(InvalidRequest):
        await store.lease_grant(ttl_s)


async def test_a_lease_is_no_change_of_keys(store: Store, prefix: bytes) -> None:
    before = (await store.range(prefix)).revision
    lease = (await store.lease_grant(60)).lease
    await store.lease_keepalive([lease])
    assert await store.lease_revoke(lease) == before
    assert (await store.range(prefix)).revision == before


async def test_a_put_under_a_lease_that_does_not_exist_is_refused(store: Store, prefix: bytes) -> None:
    with pytest.raises(NotFound):
        await store.put(prefix, b"", lease=UNKNOWN)
    assert (await store.range(prefix)).count == 0


async def test_revoking_deletes_the_keys_at_one_revision(store: Store, prefix: bytes) -> None:
    lease = (await store.lease_grant(60)).lease
    await store.put(prefix + b"other", b"")
    await store.put(prefix + b"b", b"", lease=lease)
    last = await store.txn([], [PutOp(prefix + b"a", b"", lease), PutOp(prefix + b"c", b"", lease)])
    async with store.watch(prefix, prefix_end(prefix), start_revision=last.revision + 1) as watch:
        assert await store.lease_revoke(lease) == last.revision + 1
        async with asyncio.timeout(PATIENCE_S):
            batch = await anext(aiter(watch))
    assert [(event.kind, event.kv.key) for event in batch.events] == [
        (EventKind.DELETE, prefix + name) for name in (b"a", b"b", b"c")
    ]
    assert {event.kv.mod_revision for event in batch.events} == {last.revision + 1}
    assert [kv.key for kv in (await store.range(prefix, prefix_end(prefix))).kvs] == [prefix + b"other"]
    with pytest.raises(NotFound):
        await store.lease_revoke(lease)


async def test_a_put_moves_its_key_from_one_lease_to_the_other(store: Store, prefix: bytes) -> None:
    first, second = (await store.lease_grant(60)).lease, (await store.lease_grant(60)).lease
    await store.put(prefix + b"moved", b"", lease=first)
    await store.put(prefix + b"freed", b"", lease=first)
    await store.put(prefix + b"gone", b"", lease=first)
    await store.put(prefix + b"moved", b"", lease=second)
    await store.put(prefix + b"freed", b"")
    await store.delete(prefix + b"gone")
    assert (await store.lease_time_to_live(first, keys=True)).keys == ()
    assert (await store.lease_time_to_live(second, keys=True)).keys == (prefix + b"moved",)
    await store.lease_revoke(first)
    assert (await store.range(prefix, prefix_end(prefix))).count == 2
    await store.lease_revoke(second)
    assert [kv.key for kv in (await store.range(prefix, prefix_end(prefix))).kvs] == [prefix + b"freed"]


async def test_what_is_left_of_a_lease(store: Store, prefix: bytes) -> None:
    lease = (await store.lease_grant(100)).lease
    await store.put(prefix + b"b", b"", lease=lease)
    await store.put(prefix + b"a", b"", lease=lease)
    status = await store.lease_time_to_live(lease)
    assert (status.lease, status.granted_ttl_s, status.keys) == (lease, 100, ())
    assert 90 < status.remaining_ttl_s <= 100
    assert (await store.lease_time_to_live(lease, keys=True)).keys == (prefix + b"a", prefix + b"b")
    for unknown in (UNKNOWN, 0):
        with pytest.raises(NotFound):
            await store.lease_time_to_live(unknown)


async def test_a_keepalive_names_what_does_not_exist(store: Store) -> None:
    leases = [(await store.lease_grant(60)).lease for _ in range(3)]
    await store.lease_revoke(leases[1])
    assert await store.lease_keepalive([*leases, UNKNOWN]) == [leases[1], UNKNOWN]
    assert await store.lease_keepalive([]) == []


async def test_a_lease_that_was_just_granted_is_known_to_whoever_renews_it(store: Store) -> None:
    """Though the member that answers keepalives may apply the grant later than the one that asked for it."""
    for _ in range(20):
        assert await store.lease_keepalive([(await store.lease_grant(60)).lease]) == []


async def test_a_lease_that_nobody_renews_ends_with_its_keys_and_one_that_is_renewed_does_not(
    store: Store, prefix: bytes
) -> None:
    ending, kept = (await store.lease_grant(1)).lease, (await store.lease_grant(2)).lease
    await store.put(prefix + b"kept", b"", lease=kept)
    last = await store.put(prefix + b"ending", b"", lease=ending)
    async with (
        store.watch(prefix, prefix_end(prefix), start_revision=last.revision + 1) as watch,
        asyncio.timeout(PATIENCE_S),
        asyncio.TaskGroup() as group,
    ):
        waiting = group.create_task(anext(aiter(watch)))
        while not waiting.done():
            assert await store.lease_keepalive([kept]) == []
            await asyncio.wait({waiting}, timeout=0.2)
    [event] = waiting.result().events
    assert (event.kind, event.kv.key) == (EventKind.DELETE, prefix + b"ending")
    assert await store.lease_keepalive([ending, kept]) == [ending]
    with pytest.raises(NotFound):
        await store.lease_time_to_live(ending)
    with pytest.raises(NotFound):
        await store.put(prefix, b"", lease=ending)
    assert [kv.key for kv in (await store.range(prefix, prefix_end(prefix))).kvs] == [prefix + b"kept"]


async def locked(store: Store, key: bytes, lease: int) -> TxnResult:
    """Take the lock `key` if nobody has it."""
    is_free = Compare(key, CompareTarget.CREATE, CompareResult.EQUAL, 0)
    return await store.txn([is_free], [PutOp(key, b"", lease)])


async def written_by_holder(store: Store, lock: bytes, token: int, value: bytes) -> bool:
    """A write that holds only while the lock is the one that was taken at revision `token`."""
    is_mine = Compare(lock, CompareTarget.CREATE, CompareResult.EQUAL, token)
    return (await store.txn([is_mine], [PutOp(lock + b"/guarded", value)])).succeeded


async def test_a_lock_by_lease_hands_out_a_revision_that_fences_earlier_holders(store: Store, prefix: bytes) -> None:
    """Pitfall (Jepsen, etcd 3.4.3): a holder that was paused past its lease believes that it holds the lock still. Its
    token is older than its successor's, and its guarded writes are refused, though the key and the lease's id are the
    same again."""
    lock = prefix + b"lock"
    lease = (await store.lease_grant(60)).lease
    first = await locked(store, lock, lease)
    assert first.succeeded
    assert not (await locked(store, lock, (await store.lease_grant(60)).lease)).succeeded
    assert await written_by_holder(store, lock, first.revision, b"first")
    await store.lease_revoke(lease)
    await store.lease_grant(60, lease)
    second = await locked(store, lock, lease)
    assert second.succeeded
    assert second.revision > first.revision
    assert (await store.range(lock)).kvs[0].create_revision == second.revision
    assert not await written_by_holder(store, lock, first.revision, b"late")
    assert await written_by_holder(store, lock, second.revision, b"second")
    assert (await store.range(lock + b"/guarded")).kvs[0].value == b"second"


async def test_all_leases_that_there_are_can_be_listed(store: Store) -> None:
    granted = [(await store.lease_grant(60)).lease for _ in range(3)]
    listed = await store.lease_list()
    assert set(granted) <= set(listed)
    assert list(listed) == sorted(set(listed))
    await store.lease_revoke(granted[1])
    assert set(listed) - set(await store.lease_list()) == {granted[1]}


async def test_many_are_renewed_at_once(store: Store) -> None:
    async with asyncio.TaskGroup() as group:
        granting = [group.create_task(store.lease_grant(60)) for _ in range(450)]
    leases = [task.result().lease for task in granting]
    ended = leases[::100]
    for lease in ended:
        await store.lease_revoke(lease)
    assert await store.lease_keepalive(leases) == ended


async def test_a_lease_that_cannot_be_is_refused(store: Store) -> None:
    for wrong in (-1, 2**63):
        with pytest.raises(InvalidRequest):
            await store.lease_keepalive([wrong])
        with pytest.raises(InvalidRequest):
            await store.lease_revoke(wrong)
        with pytest.raises(InvalidRequest):
            await store.lease_grant(60, wrong)
