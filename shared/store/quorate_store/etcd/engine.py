"""The `Store` on a cluster that speaks etcd's v3 JSON API: etcd 3.4 or newer, or nodes of Quorate.

Requests are checked here before they are sent, by the rules that members have, so that every engine refuses the same
ones, and in the same words. What only the store knows, it refuses itself (`errors`).
"""

import asyncio
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from quorate_core.clock import Clock
from quorate_core.errors import Compacted, NotImplementedHere, QuorateError
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner

from quorate_store.commands import encode_command
from quorate_store.etcd import messages
from quorate_store.etcd.client import StoreClient, Timeouts
from quorate_store.etcd.far_streams import FarStreams
from quorate_store.etcd.feed import FIRST_KEY, Feed, Wait
from quorate_store.etcd.leases import Leases
from quorate_store.etcd.ranges import RANGE_PATH, read_range
from quorate_store.etcd.recent import RECENT_REVISIONS_MAX, RecentChanges
from quorate_store.etcd.watch_stream import watch_stream
from quorate_store.etcd.watches import EtcdWatch
from quorate_store.model import (
    REQUEST_BYTES_MAX,
    Compare,
    DeleteOp,
    DeleteResult,
    LeaseStatus,
    MemberHead,
    MemberStatus,
    Operation,
    PutOp,
    PutResult,
    RangeOp,
    RangeResult,
    StateHash,
    TxnOp,
    TxnResult,
)
from quorate_store.once import OnceWriter
from quorate_store.port import Watch
from quorate_store.transactions import is_read_only, require_integer, require_key, validate_operation, validate_txn

HASH_PATH = "/v3/maintenance/hash"
COMPACT_REVISION_TIMEOUT_S = 2.0
"""To find out what an error does not say."""


class EtcdStore:
    """`port.Store`. Needs no start: it works when no endpoint is there yet, and calls raise NotProposed then.

    `headers` are sent with every request; `tls` makes them HTTPS. What runs for watches belongs to `tasks`. Of the
    store's newest changes, `recent_revisions_max` are kept here.
    """

    def __init__(
        self,
        endpoints: Sequence[HostPort],
        tasks: TaskOwner,
        clock: Clock,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        timeouts: Timeouts | None = None,
        recent_revisions_max: int = RECENT_REVISIONS_MAX,
        random_bits: Callable[[int], int] = secrets.randbits,
        wait: Wait = asyncio.sleep,
    ) -> None:
        self._client = StoreClient(endpoints, clock, headers or {}, tls, timeouts)
        self._tasks = tasks
        self._clock = clock
        self._wait = wait
        self._recent_revisions_max = recent_revisions_max
        self._leases = Leases(self._client, self._present)
        self._once = OnceWriter(self, clock, random_bits=random_bits)
        self._far_streams = FarStreams(self._client, tasks, clock, wait)
        self._feeds: dict[bool, Feed] = {}
        """Those that are in use, with and without previous values."""
        self._feed_tasks: set[asyncio.Task[None]] = set()
        self._names: dict[str, str] = {}
        """Of members, by their ids."""

    async def close(self) -> None:
        """End all watches, and what runs for them, and all connections."""
        for feed in self._feeds.values():
            feed.close()
        for task in self._feed_tasks:
            task.cancel()
        await asyncio.gather(*self._feed_tasks, return_exceptions=True)
        await self._far_streams.close()
        self._client.close()

    async def range(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        serializable: bool = False,
        counted: bool = True,
    ) -> RangeResult:
        """See `port.Store.range`."""
        op = RangeOp(key, range_end, limit, revision, keys_only, count_only)
        validate_operation(op)
        try:
            return await read_range(self._client, op, serializable=serializable)
        except Compacted as error:
            raise await self._with_compact_revision(error) from error

    async def put(
        self, key: bytes, value: bytes, *, lease: int = 0, previous: bool = False, request_id: str = ""
    ) -> PutResult:
        """See `port.Store.put`."""
        op = PutOp(key, value, lease, previous)
        validate_operation(op)
        if request_id:
            return await self._once.put(op, request_id)
        header, result = messages.decode_put(await self._write("/v3/kv/put", messages.encode_put(op), op))
        self._client.note(header)
        return result

    async def delete(
        self, key: bytes, range_end: bytes = b"", *, previous: bool = False, request_id: str = ""
    ) -> DeleteResult:
        """See `port.Store.delete`."""
        op = DeleteOp(key, range_end, previous)
        validate_operation(op)
        if request_id:
            return await self._once.delete(op, request_id)
        answer = await self._write("/v3/kv/deleterange", messages.encode_delete(op), op)
        header, result = messages.decode_delete(answer)
        self._client.note(header)
        return result

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
        *,
        request_id: str = "",
    ) -> TxnResult:
        """See `port.Store.txn`."""
        op = TxnOp(tuple(compare), tuple(success), tuple(failure))
        validate_txn(op)
        if request_id:
            return await self._once.txn(op, request_id)
        try:
            header, result = messages.decode_txn(await self._send_txn(op))
        except Compacted as error:
            raise await self._with_compact_revision(error) from error
        self._client.note(header)
        return messages.require_same_shape(op, result)

    async def _send_txn(self, op: TxnOp) -> bytes:
        body = messages.encode_txn(op)
        if is_read_only(op):
            return await self._client.read("/v3/kv/txn", body)
        return await self._write("/v3/kv/txn", body, op)

    async def _write(self, path: str, body: bytes, op: PutOp | DeleteOp | TxnOp) -> bytes:
        if len(body) > REQUEST_BYTES_MAX:
            encode_command(op)  # which refuses what is too large: bytes are longer in JSON, and this may be allowed
        return await self._client.write(path, body)

    async def compact(self, revision: int) -> None:
        """See `port.Store.compact`."""
        require_integer("revision", revision)
        try:
            await self._client.write("/v3/kv/compaction", messages.encode_compaction(revision))
        except Compacted as error:
            raise await self._with_compact_revision(error) from error

    async def lease_grant(self, ttl_s: int, lease: int = 0) -> LeaseStatus:
        """See `port.Store.lease_grant`."""
        return await self._leases.grant(ttl_s, lease)

    async def lease_keepalive(self, leases: Sequence[int]) -> Sequence[int]:
        """See `port.Store.lease_keepalive`."""
        return await self._leases.keepalive(leases)

    async def lease_revoke(self, lease: int) -> int:
        """See `port.Store.lease_revoke`."""
        return await self._leases.revoke(lease)

    async def lease_time_to_live(self, lease: int, *, keys: bool = False) -> LeaseStatus:
        """See `port.Store.lease_time_to_live`. In whole seconds: etcd says no more."""
        return await self._leases.time_to_live(lease, keys=keys)

    async def lease_list(self) -> Sequence[int]:
        """See `port.Store.lease_list`."""
        return await self._leases.all()

    def granted_ttl_s(self, lease: int) -> int | None:
        """What a lease was granted for, in seconds, if that was heard of lately."""
        return self._leases.granted_ttl_s(lease)

    def watch(
        self, key: bytes, range_end: bytes = b"", *, start_revision: int = 0, previous: bool = False
    ) -> AbstractAsyncContextManager[Watch]:
        """See `port.Store.watch`."""
        require_key(key)
        require_integer("start_revision", start_revision)
        return EtcdWatch(
            lambda key, revision: self.range(key, revision=revision, count_only=True),
            lambda revision: self._obtain_feed(revision, previous=previous),
            self._far_streams, key, range_end, start_revision, previous=previous,
        )  # fmt: skip

    def _obtain_feed(self, revision: int, *, previous: bool) -> Feed:
        feed = self._feeds.get(previous)
        if feed is None or feed.has_ended:
            recent = RecentChanges.until(revision, self._recent_revisions_max)
            feed = Feed(
                self._client, self._clock, self._present_revision, recent, previous=previous, wait=self._wait
            )  # fmt: skip
            task = self._tasks.start(feed.run(), "feed with previous values" if previous else "feed")
            self._feeds[previous] = feed
            self._feed_tasks.add(task)
            task.add_done_callback(lambda task: self._forget(previous, feed, task))
        return feed

    def _forget(self, previous: bool, feed: Feed, task: asyncio.Task[None]) -> None:
        """A feed that has ended, with the changes that it has kept."""
        self._feed_tasks.discard(task)
        if self._feeds.get(previous) is feed:
            del self._feeds[previous]

    async def hash(self, revision: int = 0) -> StateHash:
        """See `port.Store.hash`. Raises NotImplementedHere for a revision of the past when the store's JSON API has no
        hash of that, as etcd's has not."""
        require_integer("revision", revision)
        if revision:
            await self.range(FIRST_KEY, revision=revision, count_only=True)
        answer = messages.decode_hash(await self._client.read(HASH_PATH, messages.encode_hash(revision)))
        self._client.note(answer.header)
        if answer.hash_revision is not None:
            return StateHash(answer.hash, answer.compact_revision, answer.hash_revision)
        if revision not in (0, answer.header.revision):
            raise NotImplementedHere("this store has no hash of a revision of the past; ask for that of the newest")
        return StateHash(answer.hash, answer.compact_revision, answer.header.revision)

    def head(self) -> MemberHead:
        """Whom was heard of last, and how far the store was; costs nothing."""
        newest = self._client.newest
        return MemberHead(self._name_of(newest.member_id), newest.raft_term, newest.revision)

    async def status(self) -> MemberStatus:
        """Of the member that is asked just now, as it sees itself; which links it has, it does not say."""
        answer = messages.decode_status(await self._client.read("/v3/maintenance/status", b"{}"))
        self._client.note(answer.header)
        ids = await self._find_members() or dict.fromkeys(filter(None, (answer.header.member_id, answer.leader)))
        member_id = answer.header.member_id
        role = "learner" if answer.is_learner else "leader" if answer.leader == member_id else "follower"
        return MemberStatus(
            name=self._name_of(member_id),
            role=role,
            leader=self._name_of(answer.leader),
            term=answer.raft_term,
            commit_index=answer.raft_index,
            applied_index=answer.raft_applied_index,
            revision=answer.header.revision,
            store_bytes=answer.db_size,
            members=tuple(map(self._name_of, ids)),
            connected=(),
        )

    async def _find_members(self) -> Sequence[str]:
        """The ids of all; none when who is asked does not know. Their names are remembered."""
        try:
            members = messages.decode_members(await self._client.read("/v3/cluster/member/list", b"{}"))
        except NotImplementedHere:
            return ()
        self._names = {member.ID: member.name for member in members if member.name}
        return [member.ID for member in members]

    def _name_of(self, member_id: str) -> str:
        """Of a member that has no name yet: its id, as etcd's own tools print it."""
        name = self._names.get(member_id)
        if name is None and member_id.isdecimal():
            return f"{int(member_id):x}"
        return name or member_id

    async def _present(self) -> messages.Header:
        """The header of a linearizable read."""
        body = messages.encode_range(RangeOp(FIRST_KEY, count_only=True))
        header, _ = messages.decode_range(await self._client.read(RANGE_PATH, body))
        self._client.note(header)
        return header

    async def _present_revision(self) -> int:
        return (await self._present()).revision

    async def _with_compact_revision(self, error: Compacted) -> Compacted:
        """etcd does not say in an error how far the store is compacted, but to a watch that begins too early."""
        try:
            async with (
                asyncio.timeout(COMPACT_REVISION_TIMEOUT_S),
                watch_stream(self._client, FIRST_KEY, b"", 1, previous=False) as stream,
            ):
                await anext(stream)
        except Compacted as found:
            return Compacted(error.detail, **found.extensions)
        except (QuorateError, TimeoutError):
            pass
        return error
