"""What changes the registry: register, patch, deregister, and heartbeats, as transactions on the store.

An instance's key is attached to one lease, and the lease has no other key. A registration puts the key with its lease
first and revokes the former lease after that, so that an instance that registers again is never gone for a moment.
Each write compares the key's revision with what it was decided on; who loses the comparison decides again.
"""

import asyncio
from collections.abc import Sequence

import structlog
from quorate_core.errors import Conflict, DeadlineExceeded, NotFound, OutcomeUnknown, QuorateError
from quorate_core.tasks import TaskOwner
from quorate_sdk.wire import InstancePatch, InstanceSpec
from quorate_store.model import Compare, CompareResult, CompareTarget, KeyValue, PutOp, RangeOp, RangeResult
from quorate_store.port import Store

from quorate_registry.catalog import Catalog
from quorate_registry.feed import CatalogFeed
from quorate_registry.model import (
    InstanceName,
    InstanceView,
    Record,
    decode_record,
    encode_record,
    instance_key,
    patched,
    record_of,
    view_of,
)

DECISIONS_MAX = 8
"""Comparisons that one call may lose before it answers Conflict."""

REGISTER_S_MAX = 15.0
"""A registration whose caller has gone away is ended after so long at most."""

log = structlog.get_logger(__name__)


class Registrar:
    """Every call may raise the store's NotProposed, OutcomeUnknown or DeadlineExceeded."""

    def __init__(self, store: Store, catalog: Catalog, feed: CatalogFeed, tasks: TaskOwner) -> None:
        """`tasks`: what outlives its caller runs there."""
        self._store = store
        self._catalog = catalog
        self._feed = feed
        self._tasks = tasks

    async def register(self, name: InstanceName, spec: InstanceSpec) -> tuple[InstanceView, bool]:
        """The instance as registered, and whether it is new. Registering again replaces it.

        Raises Conflict when others keep changing it.

        It comes to its end also when this call is cancelled: cancelled midway it would leave a lease behind, or revoke
        one that the key is attached to by then.
        """
        outcome = await asyncio.shield(self._tasks.start(self._register(name, record_of(spec)), "registration"))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _register(self, name: InstanceName, record: Record) -> tuple[InstanceView, bool] | Exception:
        """Returns the error, which belongs to the caller and not to the owner of tasks."""
        attempt = _Registration(self._store, name, record)
        try:
            async with asyncio.timeout(REGISTER_S_MAX):
                return await attempt.run(await self._read(name))
        except OutcomeUnknown as error:
            return error  # the key may be attached to the new lease: it ends by itself, or lives by its heartbeats
        except TimeoutError:
            return DeadlineExceeded(f"the store has not registered {name} within {REGISTER_S_MAX} s")
        except Exception as error:
            await attempt.drop_unused_lease()
            return error

    async def patch(self, name: InstanceName, patch: InstancePatch) -> InstanceView:
        """Raises NotFound, or Conflict when others keep changing it."""
        current = await self._read(name)
        for _ in range(DECISIONS_MAX):
            if current is None:
                raise NotFound(f"there is no {name}")
            record = patched(_record(name, current), patch)
            try:
                revision, current = await _put_if_unchanged(self._store, name, record, current, current.lease)
            except NotFound:  # its lease has ended since
                current = await self._read(name)
                continue
            if revision:
                return view_of(name, record, revision)
        raise _contended(name)

    async def deregister(self, name: InstanceName) -> int:
        """The store's revision from which it is gone. Raises NotFound."""
        current = await self._read(name)
        if current is None:
            raise NotFound(f"there is no {name}")
        if not current.lease:
            return (await self._store.delete(instance_key(name))).revision
        try:
            return await self._store.lease_revoke(current.lease)
        except NotFound:  # ended since: its key went with it
            return (await self._store.range(instance_key(name), count_only=True)).revision

    async def get(self, name: InstanceName) -> InstanceView:
        """Linearizable. Raises NotFound."""
        current = await self._read(name)
        if current is None:
            raise NotFound(f"there is no {name}")
        return view_of(name, _record(name, current), current.mod_revision)

    async def renew(self, names: Sequence[InstanceName]) -> tuple[int, list[InstanceName]]:
        """Keep these alive; returns how many were renewed, and those that are not registered.

        The catalog may be behind, so nobody is called unknown before it has caught up with the store.
        """
        renewed, doubtful = await self._renew_known(names)
        if not doubtful:
            return renewed, []
        await self._feed.barrier()
        renewed_late, unknown = await self._renew_known(doubtful)
        return renewed + renewed_late, unknown

    async def _renew_known(self, names: Sequence[InstanceName]) -> tuple[int, list[InstanceName]]:
        leases: dict[int, InstanceName] = {}
        absent = []
        for name in names:
            entry = self._catalog.entry(name)
            if entry is None:
                absent.append(name)
            else:
                leases[entry.lease] = name
        ended = await self._store.lease_keepalive(list(leases)) if leases else ()
        return len(leases) - len(ended), absent + [leases[lease] for lease in ended]

    async def _read(self, name: InstanceName) -> KeyValue | None:
        found = (await self._store.range(instance_key(name))).kvs
        return found[0] if found else None


class _Registration:
    """One registration. `_granted` is a lease of its own that no key is attached to yet."""

    def __init__(self, store: Store, name: InstanceName, record: Record) -> None:
        self._store = store
        self._name = name
        self._record = record
        self._granted = 0

    async def run(self, current: KeyValue | None) -> tuple[InstanceView, bool]:
        for _ in range(DECISIONS_MAX):
            lease = self._granted or await self._lease_of(current)
            if not lease:
                lease = self._granted = (await self._store.lease_grant(self._record.ttl_s)).lease
            former = current
            try:
                revision, current = await _put_if_unchanged(self._store, self._name, self._record, current, lease)
            except NotFound:  # the lease has ended before the put: with a fresh one it goes on
                self._granted = 0
                current = None if former is not None and lease == former.lease else former
                continue
            if revision:
                self._granted = 0
                if former is not None and former.lease not in (0, lease):
                    await self._end(former.lease)
                return view_of(self._name, self._record, revision), former is None
        raise _contended(self._name)

    async def drop_unused_lease(self) -> None:
        if self._granted:
            await self._end(self._granted)

    async def _lease_of(self, current: KeyValue | None) -> int:
        """The lease of the present registration, renewed, when it has the time to live that is wanted; else 0."""
        if current is None or not current.lease:
            return 0
        try:
            if decode_record(current.value).ttl_s != self._record.ttl_s:
                return 0
        except ValueError:
            return 0
        return 0 if await self._store.lease_keepalive([current.lease]) else current.lease

    async def _end(self, lease: int) -> None:
        try:
            await self._store.lease_revoke(lease)
        except QuorateError as error:
            # Harmless: no key is attached to it, and it ends by its time to live.
            log.info("lease_left_to_lapse", lease=lease, error=error.detail)


async def _put_if_unchanged(
    store: Store, name: InstanceName, record: Record, current: KeyValue | None, lease: int
) -> tuple[int, KeyValue | None]:
    """The revision of the put and None; or 0 and what is there now, when that is not `current` any more. Raises
    NotFound when the lease has ended."""
    key = instance_key(name)
    unchanged = Compare(key, CompareTarget.MOD, CompareResult.EQUAL, 0 if current is None else current.mod_revision)
    outcome = await store.txn([unchanged], [PutOp(key, encode_record(record), lease)], [RangeOp(key)])
    if outcome.succeeded:
        return outcome.revision, None
    found = outcome.results[0]
    return 0, found.kvs[0] if isinstance(found, RangeResult) and found.kvs else None


def _record(name: InstanceName, kv: KeyValue) -> Record:
    try:
        return decode_record(kv.value)
    except ValueError as error:
        raise Conflict(f"{name} has a record that this version cannot read; register it again") from error


def _contended(name: InstanceName) -> Conflict:
    return Conflict(f"{name} was changed by others {DECISIONS_MAX} times meanwhile; try again")
