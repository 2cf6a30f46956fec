"""What is known of the instances of a namespace, kept up to date by snapshots and deltas. Pure."""

from collections.abc import Iterable

from pydantic import BaseModel

from quorate_sdk.wire import Bookmark, Instance, RegistryDelta, RegistrySnapshot


class CachedInstances(BaseModel):
    """The file for a cold start."""

    namespace: str
    watched: list[str] | None
    snapshot: RegistrySnapshot


class InstanceTable:
    """Instances by service and id, as of `revision` (0: nothing known yet).

    `instances` of a service: those that take traffic first, then by id; the same tuple until something changes.
    """

    def __init__(self) -> None:
        self.revision = 0
        self._by_service: dict[str, dict[str, Instance]] = {}
        self._ordered: dict[str, tuple[Instance, ...]] = {}

    def instances(self, service: str) -> tuple[Instance, ...]:
        ordered = self._ordered.get(service)
        if ordered is None:
            known = self._by_service.get(service)
            if known is None:
                return ()
            ordered = tuple(sorted(known.values(), key=lambda instance: (not instance.takes_traffic, instance.id)))
            self._ordered[service] = ordered
        return ordered

    @property
    def services(self) -> tuple[str, ...]:
        """Services with at least one instance, by name."""
        return tuple(sorted(self._by_service))

    def replace(self, snapshot: RegistrySnapshot) -> set[str]:
        """The services that the snapshot has changed."""
        former = self._by_service
        self._by_service = {
            service: {instance.id: instance for instance in instances}
            for service, instances in snapshot.services.items()
            if instances
        }
        self.revision = snapshot.revision
        changed = {name for name in former.keys() | self._by_service if former.get(name) != self._by_service.get(name)}
        self._forget_order(changed)
        return changed

    def update(self, delta: RegistryDelta) -> set[str]:
        """The services that the delta has changed. A change that is older than what is known changes nothing."""
        changed = set()
        for change in delta.changes:
            known = self._by_service.setdefault(change.service, {})
            former = known.get(change.id)
            if change.instance is None:
                known.pop(change.id, None)
            elif former is None or former.revision <= change.instance.revision:
                known[change.id] = change.instance
            if known.get(change.id) != former:
                changed.add(change.service)
            if not known:
                del self._by_service[change.service]
        self.revision = max(self.revision, delta.revision)
        self._forget_order(changed)
        return changed

    def confirm(self, bookmark: Bookmark) -> None:
        self.revision = max(self.revision, bookmark.revision)

    def snapshot(self) -> RegistrySnapshot:
        services = {service: list(known.values()) for service, known in sorted(self._by_service.items())}
        return RegistrySnapshot(revision=self.revision, services=services)

    def _forget_order(self, services: Iterable[str]) -> None:
        for service in services:
            self._ordered.pop(service, None)
