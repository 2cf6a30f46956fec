"""Discovery: who serves what, pushed by the registry, kept when the control plane is away, and found again on disk."""

import asyncio
import itertools
import os
import re
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from pydantic import ValidationError
from quorate_core.tasks import TaskOwner

from quorate_sdk.acknowledging import Acknowledger, InForce, at_once
from quorate_sdk.cache import CacheFile
from quorate_sdk.control_plane import ControlPlane, Params, StreamEvent
from quorate_sdk.following import BOOKMARK_SILENCE_S_MAX, EventFollower
from quorate_sdk.forks import ForkSafeLogger
from quorate_sdk.instance_table import CachedInstances, InstanceTable
from quorate_sdk.subscribers import Subscribers
from quorate_sdk.wire import DEFAULT_NAMESPACE, Bookmark, Instance, RegistryDelta, RegistrySnapshot

_numbers = itertools.count(1)

log = ForkSafeLogger(__name__)


def default_subscriber() -> str:
    """Another name for each copy in each process: who drains an instance waits for every one of them."""
    machine = re.sub(r"[^A-Za-z0-9.-]+", "-", socket.gethostname())[:64].strip(".-") or "unnamed"
    return f"sdk/{machine}/{os.getpid()}-{next(_numbers)}"


class Discovery:
    """The instances of a namespace's services, always at hand: reading them is a dictionary lookup.

    `services`: those to watch; None for all. `cache_file`: where the last good copy is kept and read at start.
    The copy is never emptied because the control plane is away; `stale_s` says for how long it has been.

    `subscriber`: the name by which this copy acknowledges what it has, unique among all that watch; one is made when
    none is given. `in_force`: waits until what the copy has is in force; by default it is at once.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        namespace: str = DEFAULT_NAMESPACE,
        services: Sequence[str] | None = None,
        cache_file: Path | None = None,
        *,
        subscriber: str | None = None,
        in_force: InForce = at_once,
    ) -> None:
        self.namespace = namespace
        self._watched = None if services is None else sorted(set(services))
        self._table = InstanceTable()
        self._subscribers: Subscribers[set[str]] = Subscribers(f"discovery/{namespace}")
        self._tasks = TaskOwner(f"discovery/{namespace}")
        self._known = asyncio.Event()
        self._cache = None if cache_file is None else CacheFile(cache_file, self._encode_cache)
        self._acknowledger = Acknowledger(control_plane, subscriber or "", namespace, in_force)
        self._follower = EventFollower(
            f"registry/{namespace}",
            control_plane,
            f"/v1/registry/{namespace}/watch",
            self._params,
            self,
            event_silence_s_max=BOOKMARK_SILENCE_S_MAX,
            acknowledger=self._acknowledger,
        )

    def instances(self, service: str) -> tuple[Instance, ...]:
        """Those that take traffic first (`Instance.takes_traffic`), then by id; empty when the service is not known.
        The same object until something changes."""
        return self._table.instances(service)

    @property
    def services(self) -> tuple[str, ...]:
        """Services with at least one instance, by name."""
        return self._table.services

    @property
    def subscriber(self) -> str:
        """The name by which this copy acknowledges what it has; empty before `start`, when none was given."""
        return self._acknowledger.subscriber

    @property
    def revision(self) -> int:
        """Everything up to this store revision is in the copy; 0 when nothing is known yet."""
        return self._table.revision

    @property
    def connected(self) -> bool:
        return self._follower.connected

    @property
    def stale_s(self) -> float:
        """0 while connected; else seconds since the control plane last confirmed the copy."""
        return self._follower.stale_s

    def subscribe(self, callback: Callable[[set[str]], None]) -> Callable[[], None]:
        """Call `callback` with the names of services whose instances have changed, on the event loop. Returns what
        ends it."""
        return self._subscribers.add(callback)

    async def start(self) -> None:
        """Read the cache and begin to watch; does not wait for the control plane."""
        if not self._acknowledger.subscriber:  # made here: who has made this object may have forked since
            self._acknowledger.subscriber = default_subscriber()
        if self._cache is not None:
            self._read_cache(self._cache)
            self._tasks.start(self._cache.keep_written(), "cache")
        self._tasks.start(self._acknowledger.run(), "acknowledgements")
        self._tasks.start(self._follower.run(), "watch")

    async def ready(self, timeout_s: float) -> bool:
        """Wait until there is a copy, from the control plane or from the cache; False when there is none in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._known.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        if self.connected:
            await self._acknowledger.leave()
        await self._tasks.close()
        if self._cache is not None:
            await self._cache.flush()

    def apply(self, event: StreamEvent) -> None:
        """One event of the watch. Raises pydantic's ValidationError for one that cannot be read."""
        match event.event:
            case "snapshot":
                changed = self._table.replace(RegistrySnapshot.model_validate_json(event.data))
            case "delta":
                changed = self._table.update(RegistryDelta.model_validate_json(event.data))
            case "bookmark":
                self._table.confirm(Bookmark.model_validate_json(event.data))
                changed = set()
            case _:
                return  # of a later version of the protocol
        self._known.set()
        if changed or event.event == "snapshot":
            self._mark_cache()
        self._tell(changed)

    def _params(self) -> Params:
        watched = [("service", service) for service in self._watched or ()]
        return [*watched, ("subscriber", self.subscriber)]

    def _tell(self, changed: set[str]) -> None:
        if changed:
            self._subscribers.tell(changed)

    def _mark_cache(self) -> None:
        if self._cache is not None:
            self._cache.mark_changed()

    def _encode_cache(self) -> bytes:
        cached = CachedInstances(namespace=self.namespace, watched=self._watched, snapshot=self._table.snapshot())
        return cached.model_dump_json().encode()

    def _read_cache(self, cache: CacheFile) -> None:
        found = cache.read()
        if found is None:
            return
        content, age_s = found
        try:
            cached = CachedInstances.model_validate_json(content)
        except ValidationError as error:
            log.warning("cache_ignored", reason="cannot be read", errors=error.error_count())
            return
        if (cached.namespace, cached.watched) != (self.namespace, self._watched):
            return
        changed = self._table.replace(cached.snapshot)
        self._follower.start_from_age(age_s)
        self._known.set()
        log.info("discovery_from_cache", revision=self.revision, age_s=round(age_s, 1))
        self._tell(changed)


def takes_traffic(instances: Collection[Instance]) -> tuple[Instance, ...]:
    """Those of `instances` that are UP with a weight, in the same order."""
    return tuple(instance for instance in instances if instance.takes_traffic)
