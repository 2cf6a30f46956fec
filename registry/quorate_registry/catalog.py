"""The registry in memory: all instances as of one revision, with their answers encoded once. Pure.

Every node has one, fed by its store's watch. `revision` is true: everything up to it is in the catalog. Recent
changes are remembered by name, so that a watcher who was away for a moment gets what it missed, and no more.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec
from quorate_sdk.wire import InstanceStatus
from quorate_store.model import EventKind, WatchBatch

from quorate_registry.model import Entry, InstanceName, entry_of, instance_name

RECENT_CHANGES_MAX = 16_384
"""Who has missed more than that gets a snapshot."""
EMPTY_SERVICES_MAX = 10_000
"""Services without instances whose last change is remembered, for blocking queries."""
ENCODED_ANSWERS_MAX = 16
"""Encoded snapshots and deltas that are kept for those who need the same."""

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _Service:
    """`changed_revision`: of the last change that is known, removals included. `encoded`: the instances as a JSON
    array in order of id, or None until somebody asks."""

    entries: dict[str, Entry] = field(default_factory=dict)
    changed_revision: int = 0
    encoded: bytes | None = None


class Catalog:
    def __init__(self) -> None:
        self.revision = 0
        """Everything up to it is here; 0 until the first load."""
        self._services: dict[str, dict[str, _Service]] = {}
        self._empty: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._recent: deque[tuple[int, InstanceName]] = deque()
        self._recent_floor = 0
        # Changes at or below it are not all in `_recent`.
        self._unknown_changed_revision = 0
        # A service that is not in `_services` may have changed at this revision, and not after it.
        self._answers: OrderedDict[tuple[object, ...], bytes] = OrderedDict()

    @property
    def loaded(self) -> bool:
        return self.revision > 0

    def entry(self, name: InstanceName) -> Entry | None:
        service = self._services.get(name.namespace, {}).get(name.service)
        return None if service is None else service.entries.get(name.id)

    def changed_revision(self, namespace: str, service: str) -> int:
        """The service has not changed after this revision, as far as the catalog reaches."""
        known = self._services.get(namespace, {}).get(service)
        return self._unknown_changed_revision if known is None else known.changed_revision

    # What feeds it.

    def load(self, revision: int, entries: Iterable[Entry]) -> list[InstanceName]:
        """Replace everything by what the store had at `revision`; returns the names that differ from before."""
        fresh = {entry.name: entry for entry in entries}
        changed = [name for name, entry in fresh.items() if _revision(self.entry(name)) != entry.view.revision]
        changed += [name for name in self._names() if name not in fresh]
        for name in changed:
            self._set(name, fresh.get(name), revision)
        if not self.loaded or revision < self.revision:
            self._recent.clear()
            self._recent_floor = revision
        self._answers.clear()
        self._unknown_changed_revision = max(self._unknown_changed_revision, revision)
        self.revision = revision
        return changed

    def apply(self, batch: WatchBatch, on_unreadable: Callable[[bytes, ValueError], None]) -> list[InstanceName]:
        """Take the store's changes; returns the names they touch. A value that cannot be read counts as gone."""
        changed = []
        for event in batch.events:
            try:
                name = instance_name(event.kv.key)
            except ValueError as error:
                on_unreadable(event.kv.key, error)
                continue
            entry = None
            if event.kind is EventKind.PUT:
                try:
                    entry = entry_of(event.kv)
                except ValueError as error:
                    on_unreadable(event.kv.key, error)
            self._set(name, entry, event.kv.mod_revision)
            changed.append(name)
        self.revision = max(self.revision, batch.revision)
        return changed

    def _names(self) -> Iterator[InstanceName]:
        for services in self._services.values():
            for service in services.values():
                yield from (entry.name for entry in service.entries.values())

    def _set(self, name: InstanceName, entry: Entry | None, revision: int) -> None:
        services = self._services.setdefault(name.namespace, {})
        service = services.setdefault(name.service, _Service())
        if entry is None:
            service.entries.pop(name.id, None)
        else:
            service.entries[name.id] = entry
        service.changed_revision = revision
        service.encoded = None
        self._remember(revision, name)
        if service.entries:
            self._empty.pop((name.namespace, name.service), None)
        else:
            self._remember_empty(name.namespace, name.service)

    def _remember(self, revision: int, name: InstanceName) -> None:
        self._recent.append((revision, name))
        if len(self._recent) > RECENT_CHANGES_MAX:
            self._recent_floor, _ = self._recent.popleft()

    def _remember_empty(self, namespace: str, service: str) -> None:
        self._empty[namespace, service] = None
        if len(self._empty) > EMPTY_SERVICES_MAX:
            (old_namespace, old_service), _ = self._empty.popitem(last=False)
            gone = self._services[old_namespace].pop(old_service)
            self._unknown_changed_revision = max(self._unknown_changed_revision, gone.changed_revision)
            if not self._services[old_namespace]:
                del self._services[old_namespace]

    # What is asked of it.

    def changes_since(
        self, revision: int, namespace: str, services: frozenset[str] | None
    ) -> tuple[InstanceName, ...] | None:
        """Names that have changed after `revision`, each once; None when that is not remembered any more."""
        if revision < self._recent_floor or revision > self.revision:
            return None
        names: dict[InstanceName, None] = {}
        for changed_at, name in reversed(self._recent):
            if changed_at <= revision:
                break
            if name.namespace == namespace and (services is None or name.service in services):
                names[name] = None
        return tuple(names)

    def list_body(self, namespace: str, service: str) -> bytes:
        """`ServiceInstances`; a service that nobody knows has no instances."""
        head = b'{"namespace":%b,"service":%b,"revision":%d,"instances":'
        return head % (_encode(namespace), _encode(service), self.revision) + self._array(namespace, service) + b"}"

    def services_body(self, namespace: str) -> bytes:
        """`ServiceList`: services with at least one instance, by name."""
        services = [
            {"service": name, "instances": len(service.entries), "up": _count_up(service)}
            for name, service in sorted(self._services.get(namespace, {}).items())
            if service.entries
        ]
        return _encode({"namespace": namespace, "revision": self.revision, "services": services})

    def snapshot_body(self, namespace: str, services: frozenset[str] | None) -> bytes:
        """`RegistrySnapshot` of these services, or of all."""

        def encode() -> bytes:
            known = self._services.get(namespace, {})
            names = sorted(known if services is None else services & known.keys())
            parts = (_encode(name) + b":" + self._array(namespace, name) for name in names if known[name].entries)
            return b'{"revision":%d,"services":{%b}}' % (self.revision, b",".join(parts))

        return self._answer(("snapshot", self.revision, namespace, services), encode)

    def delta_body(self, names: tuple[InstanceName, ...]) -> bytes:
        """`RegistryDelta`: the present state of each name."""

        def encode() -> bytes:
            return b'{"revision":%d,"changes":[%b]}' % (self.revision, b",".join(map(self._change, names)))

        return self._answer(("delta", self.revision, names), encode)

    def _change(self, name: InstanceName) -> bytes:
        entry = self.entry(name)
        head = b'{"service":%b,"id":%b,"instance":' % (_encode(name.service), _encode(name.id))
        return head + (b"null}" if entry is None else entry.encoded + b"}")

    def _array(self, namespace: str, name: str) -> bytes:
        service = self._services.get(namespace, {}).get(name)
        if service is None:
            return b"[]"
        if service.encoded is None:
            service.encoded = b"[" + b",".join(service.entries[id_].encoded for id_ in sorted(service.entries)) + b"]"
        return service.encoded

    def _answer(self, key: tuple[object, ...], encode: Callable[[], bytes]) -> bytes:
        held = self._answers.get(key)
        if held is None:
            held = self._answers[key] = encode()
            if len(self._answers) > ENCODED_ANSWERS_MAX:
                self._answers.popitem(last=False)
        return held


def _revision(entry: Entry | None) -> int:
    return 0 if entry is None else entry.view.revision


def _count_up(service: _Service) -> int:
    return sum(1 for entry in service.entries.values() if entry.view.status is InstanceStatus.UP)
