"""From the control plane to the data plane: watches routes, API keys and instances, builds snapshots, swaps them in.

What is served is always the last good: an invalid document is told of and not applied, and a control plane that is
away changes nothing. A watch that breaks is opened again where it was, by revision (`quorate_sdk.following`).

Files in the data directory serve a restart without a control plane: the registry's copy and the documents' copy, which
the SDK keeps; the last routes and API keys that were good, which may be older than the newest ones
(`quorate_gateway.good_documents`); and when the control plane last confirmed all of it, which is later than the last
change by as long as nothing has changed. So the age that is told is of the confirmation, before a restart and after it.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog
from quorate_core.clock import Clock, SystemClock
from quorate_core.tasks import TaskOwner
from quorate_sdk import ConfigWatcher, ControlPlane, Discovery
from quorate_sdk.cache import CacheFile

from quorate_gateway.documents.access import ApiKeysDocument
from quorate_gateway.good_documents import GoodDocument, Rejected
from quorate_gateway.matching import CompileContext
from quorate_gateway.published_keys import API_KEYS_NAME, PublishedKeys
from quorate_gateway.routes import ROUTES_KEY, parse_routes
from quorate_gateway.snapshot import EMPTY, Revisions, Snapshot, build_snapshot, update_snapshot

ROUTES_NAME = f"gateway/{ROUTES_KEY}"
READY_POLL_S = 3_600.0
CONFIRMED_INTERVAL_S = 5.0
"""How often is noted on disk that the control plane still confirms what is served: the most by which a process that is
killed tells too high an age afterwards."""

log = structlog.get_logger(__name__)


async def at_once() -> None:
    """`swap` itself puts a snapshot in force."""


class Confirmation(msgspec.Struct, frozen=True):
    """The file that says when the control plane last confirmed what is served, in seconds since the Unix epoch."""

    at_s: float


class Control:
    """Keeps the data plane's snapshot up to date by calling `swap` with each new one."""

    def __init__(
        self,
        control_plane: ControlPlane,
        namespace: str,
        data_dir: Path,
        swap: Callable[[Snapshot], None],
        on_failure: Callable[[BaseException], None] | None = None,
        *,
        context: CompileContext | None = None,
        clock: Clock | None = None,
        swap_keys: Callable[[ApiKeysDocument], None] | None = None,
        subscriber: str | None = None,
        in_force: Callable[[], Awaitable[None]] = at_once,
    ) -> None:
        """`swap_keys` is given the API keys whenever others are published; by default the context is.

        `subscriber` is the name by which the registry is told what is served. `in_force` returns when nobody serves any
        more by another snapshot than those that `swap` had been given when it was called.
        """
        self.snapshot = EMPTY
        self.context = context or CompileContext()
        """What every snapshot is compiled with."""
        self.keys = PublishedKeys(data_dir, swap_keys or self.context.api_keys.replace)
        self._swap = swap
        self._config = ConfigWatcher(
            control_plane, namespace, [ROUTES_NAME, API_KEYS_NAME], data_dir / "documents.json"
        )
        self._discovery = Discovery(
            control_plane, namespace, None, data_dir / "registry.json", subscriber=subscriber,
            in_force=lambda _revision: in_force(),
        )  # fmt: skip
        self._routes = GoodDocument(ROUTES_NAME, parse_routes, EMPTY.document, data_dir / "good-routes.json")
        self._clock = clock or SystemClock()
        self._confirmed_file = CacheFile(data_dir / "confirmed.json", self._encode_confirmation)
        self._confirmed_at_s = -math.inf
        """By the monotonic clock; long before the start of the process when it was before a restart."""
        self._documents_changed = asyncio.Event()
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
        """0 while connected; else for how many seconds the control plane has not confirmed the snapshot, those before
        a restart included."""
        if self.connected:
            return 0.0
        followed_s = max(self._config.stale_s, self._discovery.stale_s)
        return min(followed_s, self._clock.monotonic_s() - self._confirmed_at_s)

    @property
    def revisions(self) -> Revisions:
        """What the snapshot holds: bookmarks move the registry's without a new snapshot."""
        good = self._routes.good
        return Revisions(good.version, good.revision, self._discovery.revision)

    @property
    def rejected(self) -> Rejected | None:
        """The newest published routes, when they are not served."""
        return self._routes.rejected

    def unready_reason(self) -> str | None:
        """Why requests cannot be routed yet, or None."""
        return None if self._is_known else "no routes and instances known yet, from the control plane or from disk"

    async def start(self) -> None:
        """Begin to watch; does not wait for the control plane."""
        self._routes.read()
        self.keys.read_good()
        self._read_confirmation()
        self.context.tokens.start(self._tasks)
        self._config.subscribe(self._on_documents)
        self._discovery.subscribe(self._on_services)
        await self._config.start()
        await self._discovery.start()
        self._tasks.start(self._routes.file.keep_written(), "good-routes")
        self._tasks.start(self.keys.keep_written(), "good-api-keys")
        self._tasks.start(self._confirmed_file.keep_written(), "confirmation")
        self._tasks.start(self._note_confirmations(), "confirmations")
        self._tasks.start(self._until_documents_known(), "documents")
        self._tasks.start(self._follow_routes(), "routes")

    async def stop(self) -> None:
        self._note_confirmation()
        await self._discovery.stop()
        await self._config.stop()
        await self._tasks.close()
        await self._routes.file.flush()
        await self.keys.flush()
        await self._confirmed_file.flush()

    async def _note_confirmations(self) -> None:
        while True:
            await asyncio.sleep(CONFIRMED_INTERVAL_S)
            self._note_confirmation()

    def _note_confirmation(self) -> None:
        if self.connected and self._is_known:
            self._confirmed_at_s = self._clock.monotonic_s()
            self._confirmed_file.mark_changed()

    def _encode_confirmation(self) -> bytes:
        age_s = self._clock.monotonic_s() - self._confirmed_at_s
        return msgspec.json.encode(Confirmation(self._clock.wall_s() - age_s))

    def _read_confirmation(self) -> None:
        found = self._confirmed_file.read()
        if found is None:
            return
        try:
            at_s = msgspec.json.decode(found[0], type=Confirmation).at_s
        except msgspec.DecodeError as error:
            log.warning("confirmation_ignored", reason=str(error))
            return
        # A wall clock that was set back meanwhile makes nothing younger than this moment.
        self._confirmed_at_s = self._clock.monotonic_s() - max(0.0, self._clock.wall_s() - at_s)

    async def _follow_routes(self) -> None:
        """The first snapshot is built when routes and instances are known, so that no service looks empty before."""
        if not self._routes.good.version:
            await self._until_documents_known()
        while not await self._discovery.ready(READY_POLL_S):
            pass
        while True:
            self._documents_changed.clear()
            if self._config.revision:  # the keys first: no route is to ask for one that is not there yet
                await self.keys.take(self._config.documents.get(API_KEYS_NAME))
            if await self._take_routes() or not self._is_known:
                self._is_known = True
                instances = self._discovery.instances
                self._serve(build_snapshot(self._routes.value, instances, self.revisions, self.snapshot, self.context))
            await self._documents_changed.wait()

    async def _until_documents_known(self) -> None:
        while not await self._config.ready(READY_POLL_S):
            pass
        self._documents_changed.set()

    def _on_documents(self, _changed: set[str]) -> None:
        self._documents_changed.set()

    def _on_services(self, changed: set[str]) -> None:
        if self._is_known:
            self._serve(update_snapshot(self.snapshot, changed, self._discovery.instances, self.revisions))

    async def _take_routes(self) -> bool:
        """Make the published routes the good ones; whether these are others than before."""
        if not self._config.revision:
            return False  # there are the good ones from disk, and no word on the published ones yet
        return await self._routes.take(self._config.documents.get(ROUTES_NAME))

    def _serve(self, snapshot: Snapshot) -> None:
        former, self.snapshot = self.snapshot, snapshot
        self._swap(snapshot)
        if former.document is not snapshot.document:
            log.info("routes_applied", version=snapshot.revisions.routes_version, routes=len(snapshot.routes))
