"""What proves that changes have arrived, over HTTP: draining, acknowledgements, and digests for comparison."""

from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from quorate_core.errors import NotFound
from quorate_sdk.wire import (
    NAME_PATTERN,
    Acknowledgement,
    Drained,
    InstancePatch,
    InstanceStatus,
)
from quorate_store.apps import Fleet
from quorate_store.port import Store

from quorate_registry.acknowledgements import Acknowledgements
from quorate_registry.api import PREFIX, Author, KeyPath, NamePath, who
from quorate_registry.catalog import Catalog
from quorate_registry.divergence import Divergence
from quorate_registry.drain import DRAIN_WAIT_S_DEFAULT, DRAIN_WAIT_S_MAX, await_acknowledgements
from quorate_registry.feed import CatalogFeed
from quorate_registry.model import InstanceName
from quorate_registry.recent_nodes import RecentNodes
from quorate_registry.registrar import Registrar

NameQuery = Annotated[str, Query(pattern=NAME_PATTERN)]
RevisionQuery = Annotated[int, Query(ge=0)]


class DeliveryApi:
    def __init__(
        self,
        store: Store,
        registrar: Registrar,
        catalog: Catalog,
        feed: CatalogFeed,
        fleet: Fleet,
        acknowledgements: Acknowledgements,
        divergence: Divergence,
        recent: RecentNodes,
    ) -> None:
        self._store = store
        self._recent = recent
        self._registrar = registrar
        self._catalog = catalog
        self._feed = feed
        self._fleet = fleet
        self._acknowledgements = acknowledgements
        self._divergence = divergence

    def mount(self, api: FastAPI) -> None:
        router = APIRouter(prefix=PREFIX, tags=["registry"])
        router.post("/{namespace}/services/{service}/instances/{id}/drain")(self.drain)
        router.post("/acks", status_code=204)(self.acknowledge)
        # For the other nodes.
        router.get("/acknowledged", include_in_schema=False)(self.acknowledged)
        router.get("/digest", include_in_schema=False)(self.digest)
        api.include_router(router)

    async def drain(
        self,
        request: Request,
        namespace: NamePath,
        service: NamePath,
        id: KeyPath,  # noqa: A002 - the API's name
        wait: Annotated[float, Query(ge=0, le=DRAIN_WAIT_S_MAX, description="Seconds")] = DRAIN_WAIT_S_DEFAULT,
        author: Author = None,
    ) -> Drained:
        """Let an instance get no new requests: its status becomes DRAINING, and the answer comes when everybody who
        watches the service has acknowledged that, or names those that have not when the time is over. What is under way
        goes on. To ask again for one that is draining only waits."""
        name = InstanceName(namespace, service, id)
        revision = await self._draining_since(name, who(request, author))
        return await await_acknowledgements(self._store, self._fleet, self._recent, name, revision, wait)

    async def acknowledge(self, said: Acknowledgement) -> None:
        """The answer to an `acknowledge` event, at the node that the stream is from. It is not found once the stream
        has ended: who has come back is asked again."""
        self._acknowledgements.take(said)

    async def acknowledged(
        self,
        namespace: NameQuery,
        service: NameQuery,
        revision: RevisionQuery,
        wait: Annotated[float, Query(ge=0, le=DRAIN_WAIT_S_MAX)] = 0.0,
    ) -> dict[str, Any]:
        """This node's streams alone."""
        self._feed.require_loaded()
        return await self._acknowledgements.answer(namespace, service, revision, wait)

    async def digest(self, at: Annotated[int | None, Query(ge=0)] = None) -> dict[str, Any]:
        """This node's alone; what it had at the revision `at`."""
        return self._divergence.word(at)

    async def _draining_since(self, name: InstanceName, by: str) -> int:
        """The revision from which on it is DRAINING. Raises NotFound."""
        self._feed.require_loaded()
        await self._feed.barrier()
        entry = self._catalog.entry(name)
        if entry is None:
            raise NotFound(f"there is no {name}")
        if entry.record.status is InstanceStatus.DRAINING:
            return entry.record_revision
        revision = (await self._registrar.patch(name, InstancePatch(status=InstanceStatus.DRAINING), by)).revision
        # NB: who is up is read from this node's own copy of the store, which may lack nodes that came before the patch.
        await self._feed.barrier()
        return revision
