"""The registry in memory: all instances as of one revision, with their answers encoded once. Pure.

Every node has one, fed by its store's watch. `revision` is true: everything up to it is in the catalog. What is shown
is a function of the store's keys at that revision (`model`, `guard`), whatever way the catalog came to it: by changes,
taken revision by revision, or by loading everything. So a watcher may resume at any node. Recent changes of what is
shown are remembered by name, so that one who was away for a moment gets what it missed, and no more.

An instance that has lapsed is on the list while its service is protected, and hidden else; it is known here, with its
record, until that is reaped.
"""

import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import msgspec
from quorate_sdk.wire import HealthCheck, InstanceStatus, ServiceSettings
from quorate_store.model import Event, EventKind, KeyValue, WatchBatch

from quorate_registry.digest import Contributions, RegistryDigest
from quorate_registry.guard import Population
from quorate_registry.model import (
    DEFAULT_SETTINGS,
    Entry,
    Health,
    InstanceName,
    KeyKind,
    Record,
    ServiceName,
    check_of,
    decode_health,
    decode_record,
    decode_settings,
    entry_of,
    parse_key,
)

RECENT_CHANGES_MAX = 16_384
"""Who has missed more than that gets a snapshot."""
EMPTY_SERVICES_MAX = 10_000
"""Services without instances whose last change is remembered, for blocking queries."""
ENCODED_ANSWERS_MAX = 16
"""Encoded snapshots, deltas and compressed lists that are kept for those who need the same."""
GZIP_LEVEL = 1
DIFFERENCES_A_SLICE = 2_000
"""Instances that are compared between two pauses."""

OnUnreadable = Callable[[bytes, ValueError], None]

_encode = msgspec.json.Encoder().encode


class Filters(NamedTuple):
    """Of a list: those with any of the values, for each that is not empty."""

    statuses: frozenset[str] = frozenset()
    zones: frozenset[str] = frozenset()
    versions: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()

    def take(self, entry: Entry) -> bool:
        view = entry.view
        return (
            (not self.statuses or view.status in self.statuses)
            and (not self.zones or view.zone in self.zones)
            and (not self.versions or view.version in self.versions)
            and (not self.tags or not self.tags.isdisjoint(view.tags))
        )


class Interest(NamedTuple):
    """What somebody watches: these services and those that begin so; all of the namespace when `services` is None."""

    namespace: str
    services: frozenset[str] | None = None
    prefixes: tuple[str, ...] = ()

    def covers(self, service: str) -> bool:
        return self.services is None or service in self.services or service.startswith(self.prefixes)


class _Parts(NamedTuple):
    """What the keys of one name hold."""

    record: Record | None = None
    record_revision: int = 0
    lease: int = 0
    health: tuple[Health, int] | None = None


_NOTHING = _Parts()


@dataclass(slots=True)
class _Service:
    """`entries`: all that are known, those that have lapsed too. `changed_revision`: of the last change of what is
    shown, removals included. `encoded`: what is shown as a JSON array in order of id, or None until somebody asks.
    `guard_revision`: of the guard key, 0 without one."""

    entries: dict[str, Entry] = field(default_factory=dict)
    lapsed: set[str] = field(default_factory=set)
    population: Population = field(default_factory=Population)
    settings: ServiceSettings = DEFAULT_SETTINGS
    guard_revision: int = 0
    is_protected: bool = False
    changed_revision: int = 0
    encoded: bytes | None = None

    def put(self, entry: Entry) -> None:
        self.remove(entry.name.id)
        self.entries[entry.name.id] = entry
        self._count(entry, 1)
        if entry.has_lapsed:
            self.lapsed.add(entry.name.id)

    def remove(self, id_: str) -> None:
        former = self.entries.pop(id_, None)
        if former is not None:
            self._count(former, -1)
            self.lapsed.discard(id_)

    def _count(self, entry: Entry, by: int) -> None:
        if entry.record.ephemeral and entry.record.would_take_traffic:
            self.population.all += by
            self.population.lapsed += by if entry.has_lapsed else 0

    def judged(self) -> bool:
        return self.population.is_protected(self.settings.protection_threshold, is_guarded=self.guard_revision > 0)

    def shows(self, entry: Entry) -> bool:
        return self.is_protected or not entry.has_lapsed

    def shown(self) -> Iterator[Entry]:
        """In order of id."""
        return (entry for _, entry in sorted(self.entries.items()) if self.shows(entry))

    def shown_bytes(self, id_: str) -> bytes | None:
        entry = self.entries.get(id_)
        return entry.encoded if entry is not None and self.shows(entry) else None


_NOBODY = _Service()


class _Index:
    """Who has lapsed, in that order, who is to be checked, and which services have a guard key."""

    __slots__ = ("checked", "guarded", "lapsed")

    def __init__(self) -> None:
        self.lapsed: dict[InstanceName, None] = {}
        self.checked: dict[InstanceName, None] = {}
        self.guarded: dict[ServiceName, None] = {}

    def put(self, name: InstanceName, entry: Entry | None, settings: ServiceSettings) -> None:
        if entry is not None and entry.has_lapsed:
            self.lapsed.setdefault(name)
        else:
            self.lapsed.pop(name, None)
        if entry is not None and check_of(entry.record, settings) is not None:
            self.checked.setdefault(name)
        else:
            self.checked.pop(name, None)

    def put_guard(self, name: ServiceName, revision: int) -> None:
        if revision:
            self.guarded.setdefault(name)
        else:
            self.guarded.pop(name, None)


class Loading:
    """Everything that the store has at one revision, taken page by page in order of key: what belongs to an instance
    comes before its record."""

    def __init__(self) -> None:
        self.services: dict[str, dict[str, _Service]] = {}
        self.orphans: dict[InstanceName, _Parts] = {}
        self.contributions = Contributions()
        self.instances = 0
        self.index = _Index()

    def add(self, kvs: Iterable[KeyValue], on_unreadable: OnUnreadable) -> None:
        for kv in kvs:
            self.contributions.put(kv)
            try:
                self._add(kv)
            except ValueError as error:
                on_unreadable(kv.key, error)

    def _add(self, kv: KeyValue) -> None:
        kind, name = parse_key(kv.key)
        if isinstance(name, ServiceName):
            if kind is KeyKind.SETTINGS:
                self._service(name).settings = decode_settings(kv.value)
            elif kind is KeyKind.GUARD:
                self._service(name).guard_revision = kv.mod_revision
                self.index.put_guard(name, kv.mod_revision)
            return
        parts = _with(self.orphans.get(name, _NOTHING), kind, kv)
        if parts.record is None:
            self.orphans[name] = parts
            return
        self.orphans.pop(name, None)
        service = self._service(name.of)
        entry = _entry(name, parts.record, parts, service.settings)
        service.put(entry)
        self.index.put(name, entry, service.settings)
        self.instances += 1

    def _service(self, name: ServiceName) -> _Service:
        services = self.services.setdefault(name.namespace, {})
        found = services.get(name.service)
        if found is None:
            found = services[name.service] = _Service()
        return found

    def finish(self) -> None:
        for services in self.services.values():
            for service in services.values():
                service.is_protected = service.judged()


class Catalog:
    def __init__(self) -> None:
        self.revision = 0
        """Everything up to it is here; 0 until the first load."""
        self.digest = RegistryDigest()
        self.began_empty = False
        """Whether nothing was registered when it was loaded first."""
        self._services: dict[str, dict[str, _Service]] = {}
        self._orphans: dict[InstanceName, _Parts] = {}
        # What keys of an instance without a record hold.
        self._empty: OrderedDict[ServiceName, None] = OrderedDict()
        self._recent: deque[tuple[int, InstanceName]] = deque()
        self._recent_floor = 0
        # Changes at or below it are not all in `_recent`.
        self._unknown_changed_revision = 0
        # A service that is not in `_services` may have changed at this revision, and not after it.
        self._answers: OrderedDict[tuple[object, ...], tuple[int, bytes]] = OrderedDict()
        # With the revision that each is of: an older one of the same is not kept, since a snapshot may be large.
        self._index = _Index()

    @property
    def loaded(self) -> bool:
        return self.revision > 0

    # What is known of an instance or a service.

    def entry(self, name: InstanceName) -> Entry | None:
        """Also of one that has lapsed and is not shown."""
        service = self._find(name)
        return None if service is None else service.entries.get(name.id)

    def is_shown(self, name: InstanceName) -> bool:
        service = self._find(name)
        return service is not None and service.shown_bytes(name.id) is not None

    def lapsed(self) -> Iterator[Entry]:
        """Those that have lapsed and were not reaped yet, in the order in which they lapsed."""
        return (entry for name in tuple(self._index.lapsed) if (entry := self.entry(name)) is not None)

    def checked(self) -> Iterator[tuple[Entry, HealthCheck]]:
        """Those that are to be asked how they are."""
        for name in tuple(self._index.checked):
            entry = self.entry(name)
            check = None if entry is None else self.check_of(entry)
            if entry is not None and check is not None:
                yield entry, check

    def check_of(self, entry: Entry) -> HealthCheck | None:
        """How it is checked; None when it is not, as an ephemeral one never is."""
        return check_of(entry.record, self.settings(*entry.name.of))

    def is_protected(self, namespace: str, service: str) -> bool:
        return self._known(namespace, service).is_protected

    def is_short(self, namespace: str, service: str) -> bool:
        """Whether fewer than its threshold are alive: then it is protected with a guard key and without."""
        known = self._known(namespace, service)
        return known.population.is_short(known.settings.protection_threshold)

    def guard_revision(self, namespace: str, service: str) -> int:
        """Of the service's guard key; 0 when there is none."""
        return self._known(namespace, service).guard_revision

    def guarded(self) -> Sequence[ServiceName]:
        """Those with a guard key."""
        return tuple(self._index.guarded)

    def settings(self, namespace: str, service: str) -> ServiceSettings:
        return self._known(namespace, service).settings

    def changed_revision(self, namespace: str, service: str) -> int:
        """What is shown of the service has not changed after this revision, as far as the catalog reaches."""
        known = self._services.get(namespace, {}).get(service)
        return self._unknown_changed_revision if known is None else known.changed_revision

    def _find(self, name: InstanceName) -> _Service | None:
        return self._services.get(name.namespace, {}).get(name.service)

    def _known(self, namespace: str, service: str) -> _Service:
        return self._services.get(namespace, {}).get(service, _NOBODY)

    # What feeds it.

    def differences(self, loading: Loading) -> Iterator[InstanceName | None]:
        """The names of which another state is shown in what was loaded; None now and then, where whoever asks may
        pause. Nothing may change here meanwhile."""
        loading.finish()
        looked_at = 0
        for namespace in self._services.keys() | loading.services.keys():
            before, after = self._services.get(namespace, {}), loading.services.get(namespace, {})
            for name in before.keys() | after.keys():
                was, is_ = before.get(name, _NOBODY), after.get(name, _NOBODY)
                for id_ in was.entries.keys() | is_.entries.keys():
                    if was.shown_bytes(id_) != is_.shown_bytes(id_):
                        yield InstanceName(namespace, name, id_)
                    looked_at += 1
                    if looked_at % DIFFERENCES_A_SLICE == 0:
                        yield None

    def load(
        self, revision: int, loading: Loading, changed: Sequence[InstanceName] | None = None
    ) -> list[InstanceName]:
        """Replace everything by what the store had at `revision`; returns the names of which another state is shown:
        `changed`, when somebody has worked out the differences before.

        What was shown between the former revision and this one is not known here: something may have come and gone,
        and a watcher may have seen it at another node. So who resumes from before gets a snapshot, and each service
        may have changed.
        """
        if changed is None:
            changed = [name for name in self.differences(loading) if name is not None]
        self._services, self._orphans, self._index = loading.services, loading.orphans, loading.index
        for services in self._services.values():
            for service in services.values():
                service.changed_revision = revision
        self._unknown_changed_revision = max(self._unknown_changed_revision, revision)
        self._empty.clear()
        self._recent.clear()
        self._recent_floor = revision
        self._answers.clear()
        self.digest.load(revision, loading.contributions)
        if not self.loaded:
            self.began_empty = not loading.instances
        self.revision = revision
        return list(changed)

    def apply(self, batch: WatchBatch, on_unreadable: OnUnreadable) -> list[InstanceName]:
        """Take the store's changes; returns the names of which another state is shown, each once. A value that cannot
        be read counts as gone.

        Each revision is taken by itself: a watcher may come from another node with what was shown at any of them.
        """
        changed: dict[InstanceName, None] = {}
        for revision, events in groupby(batch.events, key=lambda event: event.kv.mod_revision):
            whole = tuple(events)
            changed.update(dict.fromkeys(self._take(revision, whole, on_unreadable)))
            self.digest.take(revision, whole)
        self.revision = max(self.revision, batch.revision)
        self.digest.take(self.revision)
        return list(changed)

    def _take(self, revision: int, events: Iterable[Event], on_unreadable: OnUnreadable) -> list[InstanceName]:
        touched: dict[InstanceName, _Parts] = {}
        settings: dict[ServiceName, ServiceSettings] = {}
        guards: dict[ServiceName, int] = {}
        for event in events:
            try:
                kind, name = parse_key(event.kv.key)
            except ValueError as error:
                on_unreadable(event.kv.key, error)
                continue
            kv = event.kv if event.kind is EventKind.PUT else None
            if isinstance(name, InstanceName):
                parts = touched.get(name)
                parts = self._parts(name) if parts is None else parts
                touched[name] = _read_or_gone(parts, kind, kv, event.kv.key, on_unreadable)
            elif kind is KeyKind.SETTINGS:
                settings[name] = _settings_or_default(kv, event.kv.key, on_unreadable)
            elif kind is KeyKind.GUARD:
                guards[name] = 0 if kv is None else kv.mod_revision
        before = self._shown_of(touched, settings, guards)
        for service_name, found in settings.items():
            self._set_settings(service_name, found)
        for service_name, guard_revision in guards.items():
            self._service(service_name).guard_revision = guard_revision
            self._index.put_guard(service_name, guard_revision)
        for name, parts in touched.items():
            self._set(name, parts)
        concerned = {name.of for name in touched} | settings.keys() | guards.keys()
        for service in map(self._service, concerned):
            service.is_protected = service.judged()
        return self._tell(revision, before, self._shown_of(touched, settings, guards))

    def _shown_of(
        self, touched: Iterable[InstanceName], settings: Iterable[ServiceName], guards: Iterable[ServiceName]
    ) -> dict[ServiceName, tuple[bool, dict[str, bytes]]]:
        """What is shown of these, and of all whose showing depends on theirs: whether each service is protected, and
        the bytes of those that are shown."""
        ids: dict[ServiceName, set[str]] = {}
        for name in touched:
            ids.setdefault(name.of, set()).add(name.id)
        for service_name in settings:
            ids.setdefault(service_name, set()).update(self._known(*service_name).entries)
        for service_name in guards:
            ids.setdefault(service_name, set())
        found = {}
        for service_name, those in ids.items():
            service = self._known(*service_name)
            shown = {id_: bytes_ for id_ in those if (bytes_ := service.shown_bytes(id_)) is not None}
            found[service_name] = (service.is_protected, shown)
        return found

    def _tell(
        self,
        revision: int,
        before: dict[ServiceName, tuple[bool, dict[str, bytes]]],
        after: dict[ServiceName, tuple[bool, dict[str, bytes]]],
    ) -> list[InstanceName]:
        changed = []
        for service_name, (is_protected, shown) in after.items():
            was_protected, former = before.get(service_name, (False, {}))
            service = self._service(service_name)
            ids = {id_ for id_ in former.keys() | shown.keys() if former.get(id_) != shown.get(id_)}
            if is_protected != was_protected:
                ids |= service.lapsed  # NB: hidden before and shown now, or the other way round
            if ids:
                service.changed_revision = revision
                service.encoded = None
                names = [InstanceName(*service_name, id_) for id_ in sorted(ids)]
                for name in names:
                    self._remember(revision, name)
                changed += names
            self._keep_or_forget(service_name)
        return changed

    def _parts(self, name: InstanceName) -> _Parts:
        entry = self.entry(name)
        if entry is None:
            return self._orphans.get(name, _NOTHING)
        health = None if entry.health is None else (entry.health, entry.health_revision)
        return _Parts(entry.record, entry.record_revision, entry.lease, health)

    def _set(self, name: InstanceName, parts: _Parts) -> None:
        service = self._service(name.of)
        entry = None if parts.record is None else _entry(name, parts.record, parts, service.settings)
        if entry is None:
            service.remove(name.id)
        else:
            service.put(entry)
        if entry is not None or parts == _NOTHING:
            self._orphans.pop(name, None)
        else:
            self._orphans[name] = parts
        self._index.put(name, entry, service.settings)

    def _set_settings(self, name: ServiceName, settings: ServiceSettings) -> None:
        service = self._service(name)
        service.settings = settings
        for entry in [entry for entry in service.entries.values() if not entry.record.ephemeral]:
            service.put(_entry(entry.name, entry.record, self._parts(entry.name), settings))
            self._index.put(entry.name, entry, settings)

    def _service(self, name: ServiceName) -> _Service:
        services = self._services.setdefault(name.namespace, {})
        if name.service not in services:
            services[name.service] = _Service(changed_revision=self._unknown_changed_revision)
        return services[name.service]

    def _remember(self, revision: int, name: InstanceName) -> None:
        self._recent.append((revision, name))
        if len(self._recent) > RECENT_CHANGES_MAX:
            self._recent_floor, _ = self._recent.popleft()

    def _keep_or_forget(self, name: ServiceName) -> None:
        """A service of which nothing is known but when it changed is forgotten when there are too many such."""
        service = self._service(name)
        if service.entries or service.settings != DEFAULT_SETTINGS or service.guard_revision:
            self._empty.pop(name, None)
            return
        self._empty[name] = None
        if len(self._empty) > EMPTY_SERVICES_MAX:
            oldest, _ = self._empty.popitem(last=False)
            gone = self._services[oldest.namespace].pop(oldest.service)
            self._unknown_changed_revision = max(self._unknown_changed_revision, gone.changed_revision)
            if not self._services[oldest.namespace]:
                del self._services[oldest.namespace]

    # What is asked of it.

    def changes_since(self, revision: int, interest: Interest) -> tuple[InstanceName, ...] | None:
        """Names that have changed after `revision`, each once; None when that is not remembered any more."""
        if revision < self._recent_floor or revision > self.revision:
            return None
        names: dict[InstanceName, None] = {}
        for changed_at, name in reversed(self._recent):
            if changed_at <= revision:
                break
            if name.namespace == interest.namespace and interest.covers(name.service):
                names[name] = None
        return tuple(names)

    def etag(self, namespace: str, service: str) -> str:
        """Weak: of what is shown, and not of the revision that an answer is of."""
        known = self._known(namespace, service)
        return f'W/"{zlib.crc32(self._array(namespace, service)):08x}-{int(known.is_protected)}"'

    def list_body(self, namespace: str, service: str, filters: Filters | None = None) -> bytes:
        """`ServiceInstances`; a service that nobody knows has no instances."""
        known = self._known(namespace, service)
        if filters is None:
            array = self._array(namespace, service)
        else:
            array = b"[" + b",".join(entry.encoded for entry in known.shown() if filters.take(entry)) + b"]"
        protected = b"true" if known.is_protected else b"false"
        head = b'{"namespace":%b,"service":%b,"revision":%d,"is_protected":%b,"instances":'
        return head % (_encode(namespace), _encode(service), self.revision, protected) + array + b"}"

    def gzipped_list_body(self, namespace: str, service: str) -> bytes:
        """The same, compressed once a revision."""
        key = ("gzip", namespace, service)
        return self._answer(key, lambda: _gzip(self.list_body(namespace, service)))

    def services_body(self, namespace: str) -> bytes:
        """`ServiceList`: services with at least one instance that is shown, by name."""
        summaries = [
            summary
            for name, service in sorted(self._services.get(namespace, {}).items())
            if (summary := _summary(name, service))["instances"]
        ]
        return _encode({"namespace": namespace, "revision": self.revision, "services": summaries})

    def namespaces_body(self) -> bytes:
        """`NamespaceList`: namespaces with at least one instance that is shown, by name."""
        found = []
        for namespace, services in sorted(self._services.items()):
            counts = [count for service in services.values() if (count := sum(1 for _ in service.shown()))]
            if counts:
                found.append({"namespace": namespace, "services": len(counts), "instances": sum(counts)})
        return _encode({"revision": self.revision, "namespaces": found})

    def snapshot_body(self, interest: Interest) -> bytes:
        """`RegistrySnapshot` of what is watched."""

        def encode() -> bytes:
            known = self._services.get(interest.namespace, {})
            arrays = ((name, self._array(interest.namespace, name)) for name in sorted(filter(interest.covers, known)))
            parts = (_encode(name) + b":" + array for name, array in arrays if array != b"[]")
            return b'{"revision":%d,"services":{%b}}' % (self.revision, b",".join(parts))

        return self._answer(("snapshot", interest), encode)

    def delta_body(self, names: tuple[InstanceName, ...]) -> bytes:
        """`RegistryDelta`: what is shown now of each name."""

        def encode() -> bytes:
            return b'{"revision":%d,"changes":[%b]}' % (self.revision, b",".join(map(self._change, names)))

        return self._answer(("delta", names), encode)

    def _change(self, name: InstanceName) -> bytes:
        service = self._find(name)
        shown = None if service is None else service.shown_bytes(name.id)
        head = b'{"service":%b,"id":%b,"instance":' % (_encode(name.service), _encode(name.id))
        return head + (b"null}" if shown is None else shown + b"}")

    def _array(self, namespace: str, name: str) -> bytes:
        service = self._services.get(namespace, {}).get(name)
        if service is None:
            return b"[]"
        if service.encoded is None:
            service.encoded = b"[" + b",".join(entry.encoded for entry in service.shown()) + b"]"
        return service.encoded

    def _answer(self, key: tuple[object, ...], encode: Callable[[], bytes]) -> bytes:
        held = self._answers.get(key)
        if held is None or held[0] != self.revision:
            self._answers.pop(key, None)
            held = self._answers[key] = (self.revision, encode())
            if len(self._answers) > ENCODED_ANSWERS_MAX:
                self._answers.popitem(last=False)
        return held[1]


def _with(parts: _Parts, kind: KeyKind, kv: KeyValue | None) -> _Parts:
    """`parts` with what one key holds now; None: the key is gone. Raises ValueError for what cannot be read."""
    record, record_revision, lease, health = parts
    if kind is KeyKind.ALIVE:
        lease = 0 if kv is None else kv.lease
    elif kind is KeyKind.HEALTH:
        health = None if kv is None else (decode_health(kv.value), kv.mod_revision)
    elif kv is None:
        record, record_revision = None, 0
    else:
        record, record_revision = decode_record(kv.value), kv.mod_revision
    return _Parts(record, record_revision, lease, health)


def _read_or_gone(parts: _Parts, kind: KeyKind, kv: KeyValue | None, key: bytes, on_unreadable: OnUnreadable) -> _Parts:
    try:
        return _with(parts, kind, kv)
    except ValueError as error:
        on_unreadable(key, error)
        return _with(parts, kind, None)


def _settings_or_default(kv: KeyValue | None, key: bytes, on_unreadable: OnUnreadable) -> ServiceSettings:
    try:
        return DEFAULT_SETTINGS if kv is None else decode_settings(kv.value)
    except ValueError as error:
        on_unreadable(key, error)
        return DEFAULT_SETTINGS


def _entry(name: InstanceName, record: Record, parts: _Parts, settings: ServiceSettings) -> Entry:
    return entry_of(name, record, parts.record_revision, parts.lease, parts.health, settings)


def _summary(name: str, service: _Service) -> dict[str, object]:
    instances = up = stale = 0
    for entry in service.entries.values():
        if service.shows(entry):
            instances += 1
            stale += entry.view.stale
            up += entry.view.status is InstanceStatus.UP and not entry.view.stale
    return {
        "service": name, "instances": instances, "up": up, "stale": stale, "is_protected": service.is_protected,
    }  # fmt: skip


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()
