"""The registry as an app of a node: `quorate_store.apps.App`."""

from collections.abc import Sequence

from fastapi import FastAPI
from quorate_core.errors import InvariantViolation
from quorate_store.apps import AppContext
from quorate_store.chronicle import Bound, ChangesPart

from quorate_registry.acknowledgements import Acknowledgements
from quorate_registry.api import RegistryApi
from quorate_registry.catalog import Catalog
from quorate_registry.checks.runner import Checks
from quorate_registry.delivery_api import DeliveryApi
from quorate_registry.divergence import Divergence
from quorate_registry.feed import CatalogFeed
from quorate_registry.guardian import Guardian
from quorate_registry.ownership import Ownership
from quorate_registry.reaper import Reaper
from quorate_registry.recent_nodes import RecentNodes
from quorate_registry.registrar import Registrar
from quorate_registry.timeline import RegistryTimeline
from quorate_registry.watch import Subscriptions


class RegistryApp:
    name = "registry"

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.watchers = Subscriptions()
        self.divergence: Divergence | None = None
        """None before the start."""
        self._api: RegistryApi | None = None
        self._delivery: DeliveryApi | None = None
        self._timeline: RegistryTimeline | None = None

    async def start(self, context: AppContext) -> None:
        """Begin to load; does not wait for the store."""
        feed = CatalogFeed(context.store, self.catalog, self.watchers, context.tasks)
        registrar = Registrar(context.store, self.catalog, feed, context.tasks, context.clock)
        self._api = RegistryApi(registrar, self.catalog, feed, self.watchers, context.stopping)
        acknowledgements = Acknowledgements(context.node_name, self.catalog, feed, self.watchers, context.clock)
        recent = RecentNodes(context.clock)
        self.divergence = Divergence(self.catalog.digest, context.fleet, recent)
        self._delivery = DeliveryApi(
            context.store, registrar, self.catalog, feed, context.fleet, acknowledgements, self.divergence, recent
        )  # fmt: skip
        self._timeline = RegistryTimeline(context.store)
        ownership = Ownership(context.store, context.node_name, context.tasks)
        parts = (context.node_name, self.catalog, feed, registrar, ownership, context.tasks, context.clock)
        checks, reaper, guardian = Checks(*parts), Reaper(*parts), Guardian(*parts)
        feed.start()
        ownership.start()
        checks.start()
        reaper.start()
        guardian.start()
        self.divergence.start(context.tasks)

    def mount(self, api: FastAPI) -> None:
        if self._api is None or self._delivery is None:
            raise InvariantViolation("the registry was mounted before it was started")
        self._api.mount(api)
        self._delivery.mount(api)

    async def changes(self, since: Bound, until: Bound, limit: int) -> ChangesPart:
        """See `quorate_store.chronicle.Chronicler`."""
        if self._timeline is None:
            raise InvariantViolation("the registry was asked for its changes before it was started")
        return await self._timeline.changes(since, until, limit)

    def alarms(self) -> Sequence[str]:
        """See `quorate_store.chronicle.Alarming`."""
        return () if self.divergence is None else self.divergence.alarms()

    def ready(self) -> str | None:
        return None if self.catalog.loaded else "the registry is loading"

    async def stop(self) -> None:
        """Its tasks are the node's, which ends them; nothing else is held."""
