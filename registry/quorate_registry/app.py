"""The registry as an app of a node: `quorate_store.apps.App`."""

from fastapi import FastAPI
from quorate_core.errors import InvariantViolation
from quorate_store.apps import AppContext

from quorate_registry.api import RegistryApi
from quorate_registry.catalog import Catalog
from quorate_registry.feed import CatalogFeed
from quorate_registry.registrar import Registrar
from quorate_registry.watch import Subscriptions


class RegistryApp:
    name = "registry"

    def __init__(self) -> None:
        self._catalog = Catalog()
        self._api: RegistryApi | None = None

    async def start(self, context: AppContext) -> None:
        """Begin to load; does not wait for the store."""
        subscriptions = Subscriptions()
        feed = CatalogFeed(context.store, self._catalog, subscriptions, context.tasks)
        registrar = Registrar(context.store, self._catalog, feed, context.tasks)
        self._api = RegistryApi(registrar, self._catalog, feed, subscriptions, context.stopping)
        feed.start()

    def mount(self, api: FastAPI) -> None:
        if self._api is None:
            raise InvariantViolation("the registry was mounted before it was started")
        self._api.mount(api)

    def ready(self) -> str | None:
        return None if self._catalog.loaded else "the registry is loading"

    async def stop(self) -> None:
        """Its tasks are the node's, which ends them; nothing else is held."""
