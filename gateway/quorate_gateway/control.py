"""From the control plane to the data plane: watches routes and instances, builds snapshots, swaps them in.

What is served is always the last good: an invalid document is told of and not applied, and a control plane that is
away changes nothing. Three files in the data directory serve a restart without a control plane: the registry's copy and
the documents' copy, which the SDK keeps, and the last routes that were good, which may be older than the newest ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
from quorate_core.errors import InvalidContent
from quorate_core.tasks import TaskOwner
from quorate_sdk import ConfigWatcher, ControlPlane, Discovery
from quorate_sdk.cache import CacheFile
from quorate_sdk.wire import ConfigDocument

from quorate_gateway.routes import ROUTES_KEY, RoutesDocument, parse_routes
from quorate_gateway.snapshot import EMPTY, Revisions, Snapshot, build_snapshot, update_snapshot

ROUTES_NAME = f"gateway/{ROUTES_KEY}"
READY_POLL_S = 3_600.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RejectedRoutes:
    """A published version that is not applied, and why."""

    version: int
    revision: int
    reason: str


class GoodRoutes(msgspec.Struct, frozen=True):
    """The file with the last routes that were good."""

    version: int
    revision: int
    content: str


class Control:
    """Keeps the data plane's snapshot up to date by calling `swap` with each new one."""

    def __init__(
        self, control_plane: ControlPlane, namespace: str, data_dir: Path, swap: Callable[[Snapshot], None]
    ) -> None:
        self.snapshot = EMPTY
        self.rejected: RejectedRoutes | None = None
        self._swap = swap
        self._config = ConfigWatcher(control_plane, namespace, [ROUTES_NAME], data_dir / "documents.json")
        self._discovery = Discovery(control_plane, namespace, None, data_dir / "registry.json")
        self._good_file = CacheFile(data_dir / "good-routes.json", lambda: msgspec.json.encode(self._good))
        self._good = GoodRoutes(0, 0, "routes: []\n")
        self._document: RoutesDocument | None = None
        self._tasks = TaskOwner("control")
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
        self._tasks.start(self._begin_when_known(), "begin")

    async def stop(self) -> None:
        await self._discovery.stop()
        await self._config.stop()
        await self._tasks.close()
        await self._good_file.flush()

    async def _begin_when_known(self) -> None:
        """The first snapshot is built when both are known, so that no service looks empty in between."""
        while not await self._config.ready(READY_POLL_S):
            pass
        while not await self._discovery.ready(READY_POLL_S):
            pass
        self._is_known = True
        self._take_routes()
        if self._document is None:
            # Either nothing has ever been published, or only what is invalid, and there is no good copy: no routes.
            self._document = RoutesDocument(routes=[])
        self._rebuild()

    def _on_documents(self, _changed: set[str]) -> None:
        if self._is_known and self._take_routes():
            self._rebuild()

    def _on_services(self, changed: set[str]) -> None:
        if self._is_known:
            self._serve(update_snapshot(self.snapshot, changed, self._discovery.instances, self.revisions))

    def _take_routes(self) -> bool:
        """Whether there are other routes than before."""
        published = self._config.documents.get(ROUTES_NAME)
        if published is None:
            if self._good.version == 0 and self._document is not None:
                return False
            log.info("routes_absent", reason="no such document is published")
            self.rejected = None
            return self._accept(RoutesDocument(routes=[]), GoodRoutes(0, self._config.revision, "routes: []\n"))
        if self._document is not None and published.revision == self._good.revision:
            self.rejected = None
            return False
        try:
            document = parse_routes(published.content)
        except InvalidContent as error:
            self._reject(published, error)
            return False
        self.rejected = None
        return self._accept(document, GoodRoutes(published.version, published.revision, published.content))

    def _accept(self, document: RoutesDocument, good: GoodRoutes) -> bool:
        self._document, self._good = document, good
        self._good_file.mark_changed()
        return True

    def _reject(self, published: ConfigDocument, error: InvalidContent) -> None:
        self.rejected = RejectedRoutes(published.version, published.revision, error.detail)
        log.error(
            "routes_rejected", version=published.version, reason=error.detail, still_served=self._good.version
        )  # fmt: skip

    def _rebuild(self) -> None:
        if self._document is not None:
            self._serve(build_snapshot(self._document, self._discovery.instances, self.revisions))

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
