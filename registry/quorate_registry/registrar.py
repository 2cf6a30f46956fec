"""What changes the registry: register, patch, deregister, reap, settings, and heartbeats, as transactions on the store.

An ephemeral instance's record has no lease; its alive key is attached to one, which has no other key. Whoever changes
an instance compares the revisions of its keys with those that it decided on, all in one transaction; who loses the
comparison decides again. A registration that needs another lease attaches the alive key to it first and revokes the
former one after that, so that an instance that registers again has not lapsed for a moment.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import structlog
from quorate_core.clock import Clock, SystemClock
from quorate_core.errors import Conflict, DeadlineExceeded, NotFound, OutcomeUnknown, QuorateError
from quorate_core.tasks import TaskOwner
from quorate_sdk.wire import InstancePatch, InstanceSpec, ServiceSettings
from quorate_store.model import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    KeyValue,
    Operation,
    OperationResult,
    PutOp,
    RangeOp,
    RangeResult,
)
from quorate_store.port import Store

from quorate_registry.catalog import Catalog
from quorate_registry.feed import CatalogFeed
from quorate_registry.model import (
    DEFAULT_SETTINGS,
    Guard,
    Health,
    InstanceName,
    InstanceView,
    KeyKind,
    Note,
    Record,
    ServiceName,
    decode_health,
    decode_record,
    decode_settings,
    encode_guard,
    encode_health,
    encode_note,
    encode_record,
    encode_settings,
    is_checked,
    key_of,
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
    """Every call may raise the store's NotProposed, OutcomeUnknown or DeadlineExceeded. `by` is who asks for a change,
    as far as that is known."""

    def __init__(
        self, store: Store, catalog: Catalog, feed: CatalogFeed, tasks: TaskOwner, clock: Clock | None = None
    ) -> None:
        """`tasks`: what outlives its caller runs there."""
        self._store = store
        self._catalog = catalog
        self._feed = feed
        self._tasks = tasks
        self._clock = clock or SystemClock()

    async def register(self, name: InstanceName, spec: InstanceSpec, by: str = "") -> tuple[InstanceView, bool]:
        """The instance as registered, and whether it is new. Registering again replaces it.

        Raises Conflict when others keep changing it.

        It comes to its end also when this call is cancelled: cancelled midway it would leave a lease behind, or revoke
        one that the key is attached to by then.
        """
        record = record_of(spec, by, self._now_ms())
        outcome = await asyncio.shield(self._tasks.start(self._register(name, record), "registration"))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _register(self, name: InstanceName, record: Record) -> tuple[InstanceView, bool] | Exception:
        """Returns the error, which belongs to the caller and not to the owner of tasks."""
        attempt = _Registration(self._store, name, record)
        try:
            async with asyncio.timeout(REGISTER_S_MAX):
                return await attempt.run(await _read(self._store, name))
        except OutcomeUnknown as error:
            return error  # the key may be attached to the new lease: it ends by itself, or lives by its heartbeats
        except TimeoutError:
            return DeadlineExceeded(f"the store has not registered {name} within {REGISTER_S_MAX} s")
        except Exception as error:
            await attempt.drop_unused_lease()
            return error

    async def patch(self, name: InstanceName, patch: InstancePatch, by: str = "") -> InstanceView:
        """Raises NotFound, or Conflict when others keep changing it."""
        now = await _read(self._store, name)
        for _ in range(DECISIONS_MAX):
            record = patched(_present(name, now).read(name), patch, by, self._now_ms())
            if now.has_lapsed:
                await self._require_shown(name)
            put = PutOp(key_of(KeyKind.RECORD, name), encode_record(record))
            revision, later = await _if_unchanged(self._store, name, now, [put], KeyKind.RECORD)
            if revision:
                return now.view(name, record, revision)
            now = later
        raise _contended(name)

    async def _require_shown(self, name: InstanceName) -> None:
        """One that has lapsed is there for those who see it."""
        await self._feed.barrier()
        if not self._catalog.is_shown(name):
            raise NotFound(f"there is no {name}")

    async def deregister(self, name: InstanceName, by: str = "", reason: str = "deregistered") -> int:
        """The store's revision from which it is gone. Raises NotFound."""
        now = await _read(self._store, name)
        for _ in range(DECISIONS_MAX):
            _present(name, now)
            gone = _removal(name, Note(id=name.id, by=by, at_ms=self._now_ms(), reason=reason))
            revision, later = await _if_unchanged(self._store, name, now, gone, KeyKind.RECORD)
            if revision:
                await _end_lease(self._store, now.lease)
                return revision
            now = later
        raise _contended(name)

    async def reap(self, name: InstanceName, record_revision: int, reason: str, by: str) -> bool:
        """Take away one that has lapsed; False when its record is another one by now, or it is alive again."""
        unchanged = [
            Compare(key_of(KeyKind.RECORD, name), CompareTarget.MOD, CompareResult.EQUAL, record_revision),
            Compare(key_of(KeyKind.ALIVE, name), CompareTarget.VERSION, CompareResult.EQUAL, 0),
        ]
        note = Note(id=name.id, by=by, at_ms=self._now_ms(), reason=reason)
        return (await self._store.txn(unchanged, _removal(name, note), [])).succeeded

    async def put_guard(self, name: ServiceName, by: str) -> bool:
        """Keep the service protected until its guard key is taken away; False when there is one."""
        key = key_of(KeyKind.GUARD, name)
        absent = Compare(key, CompareTarget.VERSION, CompareResult.EQUAL, 0)
        put = PutOp(key, encode_guard(Guard(by=by, at_ms=self._now_ms())))
        return (await self._store.txn([absent], [put], [])).succeeded

    async def take_guard_away(self, name: ServiceName, guard_revision: int) -> bool:
        """False when the guard key is another one by now, or gone."""
        key = key_of(KeyKind.GUARD, name)
        unchanged = Compare(key, CompareTarget.MOD, CompareResult.EQUAL, guard_revision)
        return (await self._store.txn([unchanged], [DeleteOp(key)], [])).succeeded

    async def report_health(
        self, name: InstanceName, record_revision: int, health: Health, former_revision: int = 0
    ) -> bool:
        """Write what checks have decided; False when the record is another one by now, or what was decided before is
        not of `former_revision` any more (0: whatever it is)."""
        key = key_of(KeyKind.HEALTH, name)
        unchanged = [Compare(key_of(KeyKind.RECORD, name), CompareTarget.MOD, CompareResult.EQUAL, record_revision)]
        if former_revision:
            unchanged.append(Compare(key, CompareTarget.MOD, CompareResult.EQUAL, former_revision))
        return (await self._store.txn(unchanged, [PutOp(key, encode_health(health))], [])).succeeded

    async def settings(self, name: ServiceName) -> ServiceSettings:
        """Linearizable; the defaults when none are set. Raises Conflict for such as this version cannot read."""
        found = (await self._store.range(key_of(KeyKind.SETTINGS, name))).kvs
        if not found:
            return DEFAULT_SETTINGS
        try:
            return decode_settings(found[0].value)
        except ValueError as error:
            raise Conflict(f"the settings of {name} cannot be read by this version; set them again") from error

    async def set_settings(self, name: ServiceName, settings: ServiceSettings, by: str = "") -> int:
        """The store's revision from which they count."""
        put = encode_settings(settings, by, self._now_ms())
        return (await self._store.put(key_of(KeyKind.SETTINGS, name), put)).revision

    async def reset_settings(self, name: ServiceName) -> int:
        """Back to the defaults; the store's revision from which these count."""
        return (await self._store.delete(key_of(KeyKind.SETTINGS, name))).revision

    async def renew(self, names: Sequence[InstanceName]) -> tuple[int, list[InstanceName]]:
        """Keep these alive; returns how many were renewed, and those that are not registered, or have lapsed.

        The catalog may be behind, so nobody is called unknown before it has caught up with the store.
        """
        renewed, doubtful = await self._renew_known(names)
        if not doubtful:
            return renewed, []
        await self._feed.barrier()
        renewed_late, unknown = await self._renew_known(doubtful)
        return renewed + renewed_late, unknown

    async def _renew_known(self, names: Sequence[InstanceName]) -> tuple[int, list[InstanceName]]:
        """A persistent instance needs no heartbeat, and none does it harm."""
        leases: dict[int, InstanceName] = {}
        absent, persistent = [], 0
        for name in names:
            entry = self._catalog.entry(name)
            if entry is None or entry.has_lapsed:
                absent.append(name)
            elif entry.lease:
                leases[entry.lease] = name
            else:
                persistent += 1
        ended = await self._store.lease_keepalive(list(leases)) if leases else ()
        return persistent + len(leases) - len(ended), absent + [leases[lease] for lease in ended]

    def _now_ms(self) -> int:
        return round(self._clock.wall_s() * 1_000)


class _Keys(NamedTuple):
    """What the store has of one instance at a revision."""

    record: KeyValue | None = None
    alive: KeyValue | None = None
    health: KeyValue | None = None
    settings: KeyValue | None = None

    @property
    def lease(self) -> int:
        return 0 if self.alive is None else self.alive.lease

    @property
    def has_lapsed(self) -> bool:
        former = self.former()
        return former is not None and former.ephemeral and self.alive is None

    def read(self, name: InstanceName) -> Record:
        """Raises Conflict for a record that cannot be read."""
        if self.record is None:
            raise NotFound(f"there is no {name}")
        try:
            return decode_record(self.record.value)
        except ValueError as error:
            raise Conflict(f"{name} has a record that this version cannot read; register it again") from error

    def former(self) -> Record | None:
        """None also for one that cannot be read."""
        try:
            return None if self.record is None else decode_record(self.record.value)
        except ValueError:
            return None

    def view(self, name: InstanceName, record: Record, revision: int) -> InstanceView:
        """With `record` in place of its own, as of `revision`."""
        try:
            settings = DEFAULT_SETTINGS if self.settings is None else decode_settings(self.settings.value)
            health = None if self.health is None else decode_health(self.health.value)
        except ValueError:
            settings, health = DEFAULT_SETTINGS, None
        is_stale = record.ephemeral and self.alive is None
        return view_of(
            name, record, revision, is_checked=is_checked(record, settings), health=health, is_stale=is_stale
        )


class _Registration:
    """One registration. `_granted` is a lease of its own that no key is attached to yet."""

    def __init__(self, store: Store, name: InstanceName, record: Record) -> None:
        self._store = store
        self._name = name
        self._record = record
        self._granted = 0

    async def run(self, now: _Keys) -> tuple[InstanceView, bool]:
        for _ in range(DECISIONS_MAX):
            lease = await self._lease(now) if self._record.ephemeral else 0
            former = now
            keeps_health = _is_asked_alike(former.former(), self._record)
            try:
                revision, now = await _if_unchanged(
                    self._store, self._name, former, self._writes(lease, keeps_health), KeyKind.RECORD, KeyKind.ALIVE
                )
            except NotFound:  # the lease has ended before the put: with a fresh one it goes on
                self._granted = 0
                now = former._replace(alive=None) if lease == former.lease else former
                continue
            if revision:
                self._granted = 0
                if former.lease != lease:
                    await _end_lease(self._store, former.lease)
                told = former._replace(alive=_ALIVE, health=former.health if keeps_health else None)
                return told.view(self._name, self._record, revision), former.record is None or former.has_lapsed
        raise _contended(self._name)

    def _writes(self, lease: int, keeps_health: bool) -> list[Operation]:
        alive = key_of(KeyKind.ALIVE, self._name)
        found: list[Operation] = [
            PutOp(key_of(KeyKind.RECORD, self._name), encode_record(self._record)),
            PutOp(alive, b"", lease) if lease else DeleteOp(alive),
        ]
        return found if keeps_health else [*found, DeleteOp(key_of(KeyKind.HEALTH, self._name))]

    async def drop_unused_lease(self) -> None:
        await _end_lease(self._store, self._granted)

    async def _lease(self, now: _Keys) -> int:
        """That of the present registration, renewed, when it has the time to live that is wanted; else a new one."""
        if self._granted:
            return self._granted
        former = now.former()
        is_like = bool(now.lease) and former is not None and former.ttl_s == self._record.ttl_s
        if is_like and not await self._store.lease_keepalive([now.lease]):
            return now.lease
        self._granted = (await self._store.lease_grant(self._record.ttl_s)).lease
        return self._granted


_ALIVE = KeyValue(b"", b"", 0, 0, 0)
"""In place of a key that was just put."""


def _is_asked_alike(former: Record | None, record: Record) -> bool:
    """Whether what checks have found of the former registration holds for this one."""
    if former is None:
        return False
    return (former.host, former.port, former.check) == (record.host, record.port, record.check)


def _removal(name: InstanceName, note: Note) -> list[Operation]:
    return [
        *(DeleteOp(key_of(kind, name)) for kind in (KeyKind.RECORD, KeyKind.ALIVE, KeyKind.HEALTH)),
        PutOp(key_of(KeyKind.NOTE, name.of), encode_note(note)),
    ]


def _ranges(name: InstanceName) -> list[Operation]:
    kinds = (KeyKind.RECORD, KeyKind.ALIVE, KeyKind.HEALTH)
    return [*(RangeOp(key_of(kind, name)) for kind in kinds), RangeOp(key_of(KeyKind.SETTINGS, name.of))]


def _found(results: Sequence[OperationResult]) -> _Keys:
    return _Keys(*(found.kvs[0] if isinstance(found, RangeResult) and found.kvs else None for found in results))


async def _read(store: Store, name: InstanceName) -> _Keys:
    return _found((await store.txn([], _ranges(name), [])).results)


async def _if_unchanged(
    store: Store, name: InstanceName, known: _Keys, writes: Sequence[Operation], *compared: KeyKind
) -> tuple[int, _Keys]:
    """Write if the compared keys are as they are known: the revision, and what is known; or 0, and what there is.
    Raises NotFound when a lease has ended."""
    held = {KeyKind.RECORD: known.record, KeyKind.ALIVE: known.alive}
    unchanged = [
        Compare(
            key_of(kind, name), CompareTarget.MOD, CompareResult.EQUAL,
            0 if (found := held[kind]) is None else found.mod_revision,
        )
        for kind in compared
    ]  # fmt: skip
    outcome = await store.txn(unchanged, writes, _ranges(name))
    return (outcome.revision, known) if outcome.succeeded else (0, _found(outcome.results))


async def _end_lease(store: Store, lease: int) -> None:
    if not lease:
        return
    try:
        await store.lease_revoke(lease)
    except QuorateError as error:
        # Harmless: no key is attached to it, and it ends by its time to live.
        log.info("lease_left_to_lapse", lease=lease, error=error.detail)


def _present(name: InstanceName, keys: _Keys) -> _Keys:
    if keys.record is None:
        raise NotFound(f"there is no {name}")
    return keys


def _contended(name: InstanceName) -> Conflict:
    return Conflict(f"{name} was changed by others {DECISIONS_MAX} times meanwhile; try again")
