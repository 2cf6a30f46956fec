"""What a worker makes of the updates that it is sent: snapshots, each compiled once and swapped in."""

import asyncio
from collections.abc import Callable

from quorate_gateway.documents.access import ApiKeysDocument
from quorate_gateway.matching import CompileContext, Endpoint
from quorate_gateway.routes import RoutesDocument
from quorate_gateway.served import force_breaker
from quorate_gateway.snapshot import EMPTY, Revisions, Snapshot, compile_snapshot, replace_endpoints
from quorate_gateway.workers.messages import Update


class Followed:
    """Calls `swap` with each snapshot. `context` is what they are compiled with."""

    def __init__(
        self, swap: Callable[[Snapshot], None], context: CompileContext, monotonic_s: Callable[[], float]
    ) -> None:
        self.snapshot = EMPTY
        self._swap = swap
        self._context = context
        self._monotonic_s = monotonic_s
        self._by_authority: dict[str, dict[str, Endpoint]] = {}
        """By service, also of those that no route leads to any more, until they are gone by an update."""

    async def take(self, update: Update) -> None:
        """Serve by it. The keys come first: no route is to ask for one that is not there yet."""
        if update.api_keys is not None:
            keys = await asyncio.to_thread(ApiKeysDocument.model_validate_json, update.api_keys)
            self._context.api_keys.replace(keys)
        # In a thread: a document may be large, and requests must not wait for it.
        document = None
        if update.document is not None:
            document = await asyncio.to_thread(RoutesDocument.model_validate_json, update.document)
        changed = self._take_endpoints(update)
        revisions = Revisions(*update.revisions)
        if document is not None:
            snapshot = compile_snapshot(document, self._endpoints, revisions, self.snapshot, self._context)
        else:
            routed = {name: self._endpoints(name) for name in changed if name in self.snapshot.endpoints}
            snapshot = replace_endpoints(self.snapshot, routed, revisions)
        self.snapshot = snapshot
        self._swap(snapshot)
        self._force(update)

    def _take_endpoints(self, update: Update) -> set[str]:
        for service, put in update.put.items():
            known = self._by_authority.setdefault(service, {})
            known.update((one.authority, one.of_service(service)) for one in put)
        for service, gone in update.gone.items():
            known = self._by_authority.get(service, {})
            for authority in gone:
                known.pop(authority, None)
            if not known:
                self._by_authority.pop(service, None)
        return update.put.keys() | update.gone.keys()

    def _endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """In order of id, as every snapshot has them. One that has not changed is the very same."""
        known = self._by_authority.get(service, {}).values()
        found = tuple(sorted(known, key=lambda endpoint: endpoint.instance_id))
        former = self.snapshot.endpoints.get(service)
        return former if former is not None and found == former else found

    def _force(self, update: Update) -> None:
        if not update.forced:
            return
        for route in self.snapshot.routes:
            if route.name in update.forced and route.breaker is not None:
                force_breaker(route.breaker, update.forced[route.name], self._monotonic_s())
