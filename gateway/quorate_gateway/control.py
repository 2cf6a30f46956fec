"""From the control plane to the data plane: watches routes and instances, builds snapshots, swaps them in.

What is served is always the last good: an invalid document is told of and not applied, and a control plane that is
away changes nothing. Three files in the data directory serve a restart without a control plane: the registry's copy and
the documents' copy, which the SDK keeps, and the last routes that were good, which may be older than the newest ones.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
from quorate_core.errors import InvalidContent
from quorate_core.tasks import TaskOwner
from quorate_sdk import ConfigWatcher, ControlPlane, Discovery
from quorate_sdk.cache import CacheFile

from quorate_gateway.routes import ROUTES_KEY, parse_routes
from quorate_gateway.snapshot import EMPTY, Revisions, Snapshot, build_snapshot, update_snapshot

ROUTES_NAME = f"gateway/{ROUTES_KEY}"
NO_ROUTES = "routes: []\n"
READY_POLL_S = 3_600.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RejectedRoutes:
    """A published version that is not applied, and why."""

    version: int
    revision: int
    reason: str


class GoodRoutes(msgspec.Struct, frozen=True):
    """The file with the last routes that were good. Version and revision are 0 when none are published."""

    version: int
    revision: int
    content: str


class Control:
    """Keeps the data plane's snapshot up to date by calling `swap` with each new one."""

    def __init__(
        self,
        control_plane: ControlPlane,
        namespace: str,
        data_dir: Path,
        swap: Callable[[Snapshot], None],
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.snapshot = EMPTY
        self.rejected: RejectedRoutes | None = None
        self._swap = swap
        self._config = ConfigWatcher(control_plane, namespace, [ROUTES_NAME], data_dir / "documents.json")
        self._discovery = Discovery(control_plane, namespace, None, data_dir / "registry.json")
        self._good_file = CacheFile(data_dir / "good-routes.json", lambda: msgspec.json.encode(self._good))
        self._good = GoodRoutes(0, 0, NO_ROUTES)
        self._document = EMPTY.document
        self._routes_changed = asyncio.Event()
        self._tasks = TaskOwner("control", on_failure)
        self._is_known = False

    @property
    def discovery(self) -> Discovery:
        return self._discovery

    @property
    def connected(self) -> bool:
        """Whether both watches are open."""
        return self._config.connected and self._discovery.connected

    @property
    def stale_s(self) -> float:
        """0 while connected; else for how many seconds the control plane has not confirmed the snapshot."""
        return max(self._config.stale_s, self._discovery.stale_s)

    @property
    def revisions(self) -> Revisions:
        """What the snapshot holds: bookmarks move the registry's without a new snapshot."""
        return Revisions(self._good.version, self._good.revision, self._discovery.revision)

    def unready_reason(self) -> str | None:
        """Why requests cannot be routed yet, or None."""
        return None if self._is_known else "no routes and instances known yet, from the control plane or from disk"

    async def start(self) -> None:
        """Begin to watch; does not wait for the control plane."""
        self._read_good()
        self._config.subscribe(self._on_documents)
        self._discovery.subscribe(self._on_services)
        await self._config.start()
        await self._discovery.start()
        self._tasks.start(self._good_file.keep_written(), "good-routes")
        self._tasks.start(self._until_documents_known(), "documents")
        self._tasks.start(self._follow_routes(), "routes")

    async def stop(self) -> None:
        await self._discovery.stop()
        await self._config.stop()
        await self._tasks.close()
        await self._good_file.flush()

    async def _follow_routes(self) -> None:
        """The first snapshot is built when routes and instances are known, so that no service looks empty before."""
        if not self._good.version:
            await self._until_documents_known()
        while not await self._discovery.ready(READY_POLL_S):
            pass
        while True:
            self._routes_changed.clear()
            if await self._take_routes() or not self._is_known:
                self._is_known = True
                instances = self._discovery.instances
                self._serve(build_snapshot(self._document, instances, self.revisions, self.snapshot))
            await self._routes_changed.wait()

    async def _until_documents_known(self) -> None:
        while not await self._config.ready(READY_POLL_S):
            pass
        self._routes_changed.set()

    def _on_documents(self, _changed: set[str]) -> None:
        self._routes_changed.set()

    def _on_services(self, changed: set[str]) -> None:
        if self._is_known:
            self._serve(update_snapshot(self.snapshot, changed, self._discovery.instances, self.revisions))

    async def _take_routes(self) -> bool:
        """Make the published routes the good ones; whether these are others than before."""
        if not self._config.revision:
            return False  # there are the good ones from disk, and no word on the published ones yet
        published = self._config.documents.get(ROUTES_NAME)
        if published is None:
            self._keep_without_document()
            return False
        good = GoodRoutes(published.version, published.revision, published.content)
        document = self._document
        if good.content != self._good.content:
            try:
                # In a thread: a document may have thousands of routes, and requests must not wait for them.
                document = await asyncio.to_thread(parse_routes, good.content)
            except InvalidContent as error:
                self._reject(good, error)
                return False
        self.rejected = None
        if good == self._good:
            return False
        changed = good.content != self._good.content
        self._document, self._good = document, good
        self._good_file.mark_changed()
        return changed

    def _keep_without_document(self) -> None:
        """A document that is deleted, or that a store set up anew has never had, ends no traffic by itself."""
        if self._good.version and self.rejected is None:
            reason = "the document is gone; what was served still is. To serve nothing, publish 'routes: []'"
            self.rejected = RejectedRoutes(0, 0, reason)
            log.warning("routes_gone", still_served=self._good.version)

    def _reject(self, published: GoodRoutes, error: InvalidContent) -> None:
        self.rejected = RejectedRoutes(published.version, published.revision, error.detail)
        log.error("routes_rejected", version=published.version, reason=error.detail, still_served=self._good.version)

    def _serve(self, snapshot: Snapshot) -> None:
        former, self.snapshot = self.snapshot, snapshot
        self._swap(snapshot)
        if former.document is not snapshot.document:
            log.info("routes_applied", version=snapshot.revisions.routes_version, routes=len(snapshot.routes))

    def _read_good(self) -> None:
        found = self._good_file.read()
        if found is None:
            return
        try:
            good = msgspec.json.decode(found[0], type=GoodRoutes)
            self._document = parse_routes(good.content)
        except (msgspec.DecodeError, InvalidContent) as error:
            log.warning("good_routes_ignored", reason=str(error))
            return
        self._good = good
