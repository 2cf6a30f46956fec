"""Which node does what only one node shall do for a service: its active checks, and taking lapsed instances away.

The owner of a service is, by rendezvous hashing (Thaler and Ravishankar 1998), the node that is up whose hash with the
service's name is greatest. All nodes follow the same keys, so they agree without a word; when a node comes or goes,
only services that it owns move. A node is up while its key `quorate/nodes/{name}` is there: one that was killed is
followed when its lease has ended, one that stops in good order at once. A record may say which apps its node runs; one
without the registry owns nothing.

It is no lock. For a moment two nodes may both think that they own a service, or none. So whatever an owner writes is a
transaction that compares what it was decided on. A node that is cut off keeps what it knew: it can write nothing.

While no node is announced at all, as when an app runs without a node around it, each owns everything.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from hashlib import blake2b

import msgspec
import structlog
from quorate_core.errors import QuorateError
from quorate_core.tasks import TaskOwner
from quorate_store.model import EventKind, KeyValue, WatchBatch, prefix_end
from quorate_store.port import Store

NODES_PREFIX = b"quorate/nodes/"
"""The node writes these keys."""
APP_NAME = "registry"
RETRY_INTERVAL_S = 0.5
OWNERS_REMEMBERED_MAX = 100_000

Wait = Callable[[float], Awaitable[None]]
"""Waits this many seconds; `asyncio.sleep` outside tests."""

log = structlog.get_logger(__name__)


class _NodeRecord(msgspec.Struct, frozen=True):
    apps: tuple[str, ...] = ()


def rendezvous_owner(nodes: Iterable[str], namespace: str, service: str) -> str | None:
    """The same on every node and in every version: no use of Python's own hash. None without nodes."""
    key = f"{namespace}/{service}".encode()
    return max(nodes, key=lambda node: (_score(node, key), node), default=None)


def _score(node: str, key: bytes) -> bytes:
    # A name of a node has no NUL, so no two pairs give the same bytes.
    return blake2b(node.encode() + b"\0" + key, digest_size=8).digest()


class Ownership:
    """Start it with `start`. `listeners` are called on the loop when nodes have come or gone, and must not block."""

    def __init__(self, store: Store, own_name: str, tasks: TaskOwner, wait: Wait = asyncio.sleep) -> None:
        self.listeners: list[Callable[[], None]] = []
        self._store = store
        self._own_name = own_name
        self._tasks = tasks
        self._wait = wait
        self._nodes: frozenset[str] | None = None
        # None until they were read once.
        self._owners: dict[tuple[str, str], bool] = {}

    @property
    def nodes(self) -> frozenset[str]:
        """Those that are up and run the registry, as far as is known."""
        return self._nodes or frozenset()

    def start(self) -> None:
        """Does not wait for the store."""
        self._tasks.start(self._run(), "registry-ownership")

    def owns(self, namespace: str, service: str) -> bool:
        """False until it is known who is up."""
        if self._nodes is None:
            return False
        owned = self._owners.get((namespace, service))
        if owned is None:
            if len(self._owners) >= OWNERS_REMEMBERED_MAX:
                self._owners.clear()
            owner = rendezvous_owner(self._nodes, namespace, service)
            owned = self._owners[namespace, service] = owner is None or owner == self._own_name
        return owned

    async def _run(self) -> None:
        has_trouble = False
        while True:
            try:
                async with aclosing(self._changes()) as changes:
                    async for nodes in changes:
                        has_trouble = False
                        self._set(nodes)
                reason = "the store ended the watch"
            except QuorateError as error:
                reason = error.detail
            if not has_trouble:
                has_trouble = True
                log.info("registry_ownership_interrupted", reason=reason)
            await self._wait(RETRY_INTERVAL_S)

    async def _changes(self) -> AsyncGenerator[frozenset[str], None]:
        """Who is up, at first and after each change."""
        end = prefix_end(NODES_PREFIX)
        async with self._store.watch(NODES_PREFIX, end) as watch:
            running: set[str] | None = None
            async for batch in watch:
                if running is None:  # from this revision on the watch has everything
                    held = await self._store.range(NODES_PREFIX, end, revision=batch.revision, serializable=True)
                    running = {name for kv in held.kvs if (name := _running(kv)) is not None}
                _apply(running, batch)
                yield frozenset(running)

    def _set(self, nodes: frozenset[str]) -> None:
        if nodes == self._nodes:
            return
        log.info("registry_owners_changed", nodes=sorted(nodes))
        self._nodes = nodes
        self._owners.clear()
        for listener in self.listeners:
            listener()


def _apply(running: set[str], batch: WatchBatch) -> None:
    for event in batch.events:
        name = _running(event.kv) if event.kind is EventKind.PUT else None
        if name is None:
            running.discard(_name(event.kv.key))
        else:
            running.add(name)


def _running(kv: KeyValue) -> str | None:
    """The node's name, if it runs the registry. One whose record does not say which apps it runs has all of them."""
    try:
        apps = msgspec.json.decode(kv.value, type=_NodeRecord).apps
    except msgspec.DecodeError as error:
        log.error("node_record_unreadable", key=kv.key.decode(errors="replace"), error=str(error))
        return None
    return _name(kv.key) if not apps or APP_NAME in apps else None


def _name(key: bytes) -> str:
    return key.removeprefix(NODES_PREFIX).decode(errors="replace")
