"""The nodes that are up: each holds a key by a lease, and answers questions about the present.

`quorate/nodes/{name}` is `{"url": …, "apps": […]}`, attached to a lease that its node renews. A node that dies is
forgotten when its lease ends; one that stops in good order takes its key away. A name belongs to whoever has it: a
second node of that name, at another address, is not announced before the first one's lease has ended, and says so.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
import structlog
from quorate_core.errors import Conflict, NotFound, QuorateError
from quorate_core.tasks import TaskOwner
from quorate_store.apps import FleetAnswer, FleetNode
from quorate_store.model import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    KeyValue,
    PutOp,
    RangeOp,
    RangeResult,
    prefix_end,
)
from quorate_store.port import Store
from starlette.types import ASGIApp

NODES_PREFIX = b"quorate/nodes/"
NODE_TTL_S = 10
RENEW_INTERVAL_S = 3.0
RETRY_INTERVAL_S = 0.5
LEAVE_TIMEOUT_S = 1.0
NODES_TIMEOUT_S = 1.0
"""For reading who is up. A member reads that in its own copy; a node on an external store asks for it."""
ASK_TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 16 * 1024 * 1024

Wait = Callable[[float], Awaitable[None]]
"""Waits this many seconds; `asyncio.sleep` outside tests."""

log = structlog.get_logger(__name__)


class _NodeRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    url: str
    apps: Sequence[str] = ()
    """Which it runs; none: it was not said. An app reads it that shares work among the nodes that run it."""


class StoreFleet:
    """`quorate_store.apps.Fleet` over the store's keys. `own` is answered by `own_app` itself, without the network.

    Use as `async with`: it holds connections to the other nodes.
    """

    def __init__(self, store: Store, own: FleetNode, own_app: ASGIApp, token: str | None = None) -> None:
        self._store = store
        self._own = own
        self._last_seen: Sequence[FleetNode] = (own,)
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        within = httpx.ASGITransport(own_app, raise_app_exceptions=False)
        self._own_client = httpx.AsyncClient(transport=within, headers=headers)
        # Nodes are reached directly, whatever proxies the environment names.
        self._client = httpx.AsyncClient(headers=headers, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()
        await self._own_client.aclose()

    async def nodes(self) -> Sequence[FleetNode]:
        """By name; this one is always among them. It needs no leader, and while the store does not answer at all, they
        are those that were last seen."""
        try:
            async with asyncio.timeout(NODES_TIMEOUT_S):
                held = await self._store.range(NODES_PREFIX, prefix_end(NODES_PREFIX), serializable=True)
        except (QuorateError, TimeoutError):
            return self._last_seen
        self._last_seen = self._nodes_of(held.kvs)
        return self._last_seen

    def _nodes_of(self, kvs: Sequence[KeyValue]) -> Sequence[FleetNode]:
        found = {self._own.name: self._own}
        for kv in kvs:
            name = kv.key.removeprefix(NODES_PREFIX).decode(errors="replace")
            try:
                found.setdefault(name, FleetNode(name, msgspec.json.decode(kv.value, type=_NodeRecord).url))
            except msgspec.DecodeError:
                log.error("node_record_unreadable", node=name)
        return [found[name] for name in sorted(found)]

    async def ask_all(self, path: str, timeout_s: float = ASK_TIMEOUT_S) -> Sequence[FleetAnswer]:
        """See `Fleet.ask_all`. Answers are in order of name."""
        nodes = await self.nodes()
        return await asyncio.gather(*(self._ask(node, path, timeout_s) for node in nodes))

    async def _ask(self, node: FleetNode, path: str, timeout_s: float) -> FleetAnswer:
        try:
            async with asyncio.timeout(timeout_s):
                client = self._own_client if node.name == self._own.name else self._client
                return FleetAnswer(node, await _get(client, node.url + path))
        except TimeoutError:
            return FleetAnswer(node, error=f"no answer within {timeout_s:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return FleetAnswer(node, error=f"no answer: {error or type(error).__name__}")
        except ValueError as error:
            return FleetAnswer(node, error=f"an answer that makes no sense: {error}")


async def _get(client: httpx.AsyncClient, url: str) -> Any:
    """Raises httpx.HTTPError, and ValueError for another status than 200, too much, or no JSON."""
    body = bytearray()
    async with client.stream("GET", url, timeout=None) as response:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > ANSWER_BYTES_MAX:
                raise ValueError(f"over {ANSWER_BYTES_MAX} bytes")
    if response.status_code != 200:
        raise ValueError(f"status {response.status_code}")
    return json.loads(body)


class FleetMembership:
    """Keeps this node among the nodes that are up, from `join` to `leave`."""

    def __init__(self, store: Store, own: FleetNode, wait: Wait = asyncio.sleep, apps: Sequence[str] = ()) -> None:
        self._store = store
        self._key = NODES_PREFIX + own.name.encode()
        self._record = msgspec.json.encode(_NodeRecord(own.url, apps))
        self._wait = wait
        self._lease = 0
        self._is_announced = False
        self._has_trouble = False
        self._running: asyncio.Task[None] | None = None

    def join(self, tasks: TaskOwner) -> None:
        """Begin to announce this node; does not wait for the store."""
        self._running = tasks.start(self._run(), "membership")

    async def leave(self) -> None:
        """Take this node's key away, as far as the store lets it; else the lease ends by itself."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                if self._lease:
                    await self._store.lease_revoke(self._lease)
                if not self._is_announced:
                    await self._remove_what_was_left()
        except TimeoutError:
            self._not_withdrawn(f"the store did not end its lease within {LEAVE_TIMEOUT_S:g} s")
        except QuorateError as error:
            self._not_withdrawn(error.detail)
        self._lease = 0
        self._is_announced = False

    async def _remove_what_was_left(self) -> None:
        """The key from before this node was killed. It hangs on a lease that nobody remembers, and that each new leader
        begins anew; a node that stops before it has announced itself again would be taken for one that is up."""
        held = await self._store.range(self._key, serializable=True)
        if held.kvs and held.kvs[0].value == self._record:
            unchanged = Compare(self._key, CompareTarget.MOD, CompareResult.EQUAL, held.kvs[0].mod_revision)
            await self._store.txn([unchanged], [DeleteOp(self._key)], [])

    def _not_withdrawn(self, reason: str) -> None:
        log.info("node_not_withdrawn", reason=reason, gone_after_s=NODE_TTL_S)

    async def _run(self) -> None:
        """Announce this node, renew its lease, and announce it again when the lease was lost."""
        while True:
            try:
                await (self._renew() if self._is_announced else self._announce())
                pause_s = RENEW_INTERVAL_S if self._is_announced else 0.0
                self._has_trouble = False
            except QuorateError as error:
                pause_s = RETRY_INTERVAL_S
                if not self._has_trouble:
                    self._has_trouble = True
                    log.info("node_not_announced_yet", reason=error.detail)
            await self._wait(pause_s)

    async def _announce(self) -> None:
        if not self._lease:
            self._lease = (await self._store.lease_grant(NODE_TTL_S)).lease
        try:
            holder = await self._put_unless_taken(0)
            if holder is not None and holder.value == self._record:  # this node's own, from before it was killed
                holder = await self._put_unless_taken(holder.mod_revision)
        except NotFound:
            self._lease = 0  # it ended before it was used; the next turn grants another
            return
        if holder is not None:
            raise Conflict(
                f"another node has this one's name, and has announced {holder.value.decode(errors='replace')}"
            )
        self._is_announced = True

    async def _put_unless_taken(self, mod_revision: int) -> KeyValue | None:
        """None when this node's key is put; else what is there instead of what was changed at `mod_revision` last (0:
        of nothing)."""
        unchanged = Compare(self._key, CompareTarget.MOD, CompareResult.EQUAL, mod_revision)
        put = PutOp(self._key, self._record, self._lease)
        outcome = await self._store.txn([unchanged], [put], [RangeOp(self._key)])
        if outcome.succeeded:
            return None
        found = outcome.results[0]
        return found.kvs[0] if isinstance(found, RangeResult) and found.kvs else None

    async def _renew(self) -> None:
        if await self._store.lease_keepalive([self._lease]):
            log.warning("node_lease_lost", lease=self._lease)
            self._lease = 0
            self._is_announced = False
