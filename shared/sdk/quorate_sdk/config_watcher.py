"""Documents of the config center, pushed on change, kept when the control plane is away, and found again on disk."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, ValidationError
from quorate_core.tasks import TaskOwner

from quorate_sdk.cache import CacheFile
from quorate_sdk.control_plane import ControlPlane, StreamEvent
from quorate_sdk.following import BOOKMARK_SILENCE_S_MAX, EventFollower
from quorate_sdk.forks import ForkSafeLogger
from quorate_sdk.subscribers import Subscribers
from quorate_sdk.wire import DEFAULT_NAMESPACE, Bookmark, ConfigDelta, ConfigDocument, ConfigSnapshot

log = ForkSafeLogger(__name__)


class CachedDocuments(BaseModel):
    """The file for a cold start."""

    namespace: str
    keys: list[str]
    snapshot: ConfigSnapshot


class ConfigWatcher:
    """Watches documents of a namespace, each named `group/key`, such as `gateway/routes.yaml`.

    `documents` has those that exist. They are never dropped because the control plane is away; `stale_s` says for
    how long it has been.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        namespace: str = DEFAULT_NAMESPACE,
        keys: Iterable[str] = (),
        cache_file: Path | None = None,
    ) -> None:
        self.namespace = namespace
        self._keys = sorted(set(keys))
        self._documents: dict[str, ConfigDocument] = {}
        self._revision = 0
        self._subscribers: Subscribers[set[str]] = Subscribers(f"config/{namespace}")
        self._tasks = TaskOwner(f"config/{namespace}")
        self._known = asyncio.Event()
        self._watching = False
        self._following = False
        self._cache = None if cache_file is None else CacheFile(cache_file, self._encode_cache)
        self._follower = EventFollower(
            f"config/{namespace}",
            control_plane,
            f"/v1/config/{namespace}/watch",
            lambda: [("key", key) for key in self._keys],
            self,
            event_silence_s_max=BOOKMARK_SILENCE_S_MAX,
        )

    @property
    def documents(self) -> Mapping[str, ConfigDocument]:
        """The documents that exist, by `group/key`."""
        return MappingProxyType(self._documents)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._keys)

    @property
    def revision(self) -> int:
        """Everything up to this store revision is in `documents`; 0 when nothing is known yet."""
        return self._revision

    @property
    def connected(self) -> bool:
        return self._follower.connected

    @property
    def stale_s(self) -> float:
        """0 while connected; else seconds since the control plane last confirmed the documents."""
        return self._follower.stale_s

    def subscribe(self, callback: Callable[[set[str]], None]) -> Callable[[], None]:
        """Call `callback` with the `group/key` names that have changed, on the event loop. Returns what ends it."""
        return self._subscribers.add(callback)

    def add_key(self, key: str) -> None:
        """Watch one more document; the stream begins anew when it is open already."""
        if key in self._keys:
            return
        self._keys = sorted([*self._keys, key])
        if self._following:
            self._follower.restart()
        elif self._watching:
            self._follow()

    async def start(self) -> None:
        """Read the cache and begin to watch; does not wait for the control plane."""
        if self._cache is not None:
            self._read_cache(self._cache)
            self._tasks.start(self._cache.keep_written(), "cache")
        self._watching = True
        if self._keys:
            self._follow()

    async def ready(self, timeout_s: float) -> bool:
        """Wait until the documents are known, from the control plane or from the cache; False when not in time.
        True at once when no document is watched."""
        if not self._keys:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._known.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        self._watching = self._following = False
        await self._tasks.close()
        if self._cache is not None:
            await self._cache.flush()

    def _follow(self) -> None:
        self._following = True
        self._tasks.start(self._follower.run(), "watch")

    def apply(self, event: StreamEvent) -> None:
        """One event of the watch. Raises pydantic's ValidationError for one that cannot be read."""
        match event.event:
            case "snapshot":
                changed = self._replace(ConfigSnapshot.model_validate_json(event.data))
            case "delta":
                changed = self._update(ConfigDelta.model_validate_json(event.data))
            case "bookmark":
                self._revision = max(self._revision, Bookmark.model_validate_json(event.data).revision)
                changed = set()
            case _:
                return  # of a later version of the protocol
        self._known.set()
        if self._cache is not None and (changed or event.event == "snapshot"):
            self._cache.mark_changed()
        self._tell(changed)

    def _replace(self, snapshot: ConfigSnapshot) -> set[str]:
        former = self._documents
        self._documents = {name_of(document): document for document in snapshot.documents if not document.deleted}
        self._revision = snapshot.revision
        names = former.keys() | self._documents
        return {name for name in names if former.get(name) != self._documents.get(name)}

    def _update(self, delta: ConfigDelta) -> set[str]:
        changed = set()
        for document in delta.documents:
            name = name_of(document)
            former = self._documents.get(name)
            if document.deleted:
                self._documents.pop(name, None)
            elif former is None or former.revision <= document.revision:
                self._documents[name] = document
            if self._documents.get(name) != former:
                changed.add(name)
        self._revision = max(self._revision, delta.revision)
        return changed

    def _tell(self, changed: set[str]) -> None:
        if changed:
            self._subscribers.tell(changed)

    def _encode_cache(self) -> bytes:
        snapshot = ConfigSnapshot(revision=self._revision, documents=list(self._documents.values()))
        return CachedDocuments(namespace=self.namespace, keys=self._keys, snapshot=snapshot).model_dump_json().encode()

    def _read_cache(self, cache: CacheFile) -> None:
        found = cache.read()
        if found is None:
            return
        content, age_s = found
        try:
            cached = CachedDocuments.model_validate_json(content)
        except ValidationError as error:
            log.warning("cache_ignored", reason="cannot be read", errors=error.error_count())
            return
        if cached.namespace != self.namespace:
            return
        changed = self._replace(_only(cached.snapshot, self._keys))
        if cached.keys != self._keys:
            self._revision = 0  # what it says is true, and not all that is asked for: the next event is a snapshot
        self._follower.start_from_age(age_s)
        self._known.set()
        log.info("config_from_cache", revision=self.revision, age_s=round(age_s, 1))
        self._tell(changed)


def _only(snapshot: ConfigSnapshot, keys: list[str]) -> ConfigSnapshot:
    documents = [document for document in snapshot.documents if name_of(document) in keys]
    return ConfigSnapshot(revision=snapshot.revision, documents=documents)


def name_of(document: ConfigDocument) -> str:
    """`group/key`, as documents are named here."""
    return f"{document.group}/{document.key}"
