"""The `Store` port: what the apps stand on, whatever engine is behind it. One contract suite runs on every engine.

Every call may raise NotProposed (nothing was done; try again), OutcomeUnknown (a write may have happened) or
DeadlineExceeded (a read took too long); what else a call raises stands with it.

A write with a `request_id` is applied once, however often it is sent, by whom and to which member: a repetition gets
the first one's answer, for as long as it is remembered (`once`). So the engines repeat it themselves until it is
answered.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from quorate_store.model import (
    Compare,
    DeleteResult,
    LeaseStatus,
    MemberStatus,
    Operation,
    PutResult,
    RangeResult,
    StateHash,
    TxnResult,
    WatchBatch,
)


class Watch(Protocol):
    """An open watch: iterate it for batches, ordered, gap-free, each revision whole. A reader that falls behind is
    served from history; only compaction can break the order, and then iterating raises Compacted."""

    def __aiter__(self) -> AsyncIterator[WatchBatch]: ...

    async def request_progress(self) -> None:
        """Ask for a bookmark of the engine's present revision, delivered in order after all events up to it."""
        ...


class Store(Protocol):
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
        """Key-values in order of key. Linearizable, unless `serializable` (this member's state, maybe stale). Who reads
        page after page needs `more` and no `count`: unless `counted`, that may be any number which agrees with `more`,
        and what comes after the page need not be looked at.

        Raises Compacted or FutureRevision for a `revision` that cannot be served.
        """
        ...

    async def put(
        self, key: bytes, value: bytes, *, lease: int = 0, previous: bool = False, request_id: str = ""
    ) -> PutResult:
        """Raises NotFound for an unknown lease, PayloadTooLarge over 1.5 MiB, QuotaExceeded for a full store."""
        ...

    async def delete(
        self, key: bytes, range_end: bytes = b"", *, previous: bool = False, request_id: str = ""
    ) -> DeleteResult: ...

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
        *,
        request_id: str = "",
    ) -> TxnResult:
        """Atomic, at one revision. Raises InvalidRequest for over 128 operations or a key written twice, and Conflict
        for a `request_id` that another write has used, or whose answer is not kept any more."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget history before `revision`. Raises Compacted or FutureRevision."""
        ...

    async def lease_grant(self, ttl_s: int, lease: int = 0) -> LeaseStatus:
        """A lease of at least `ttl_s` seconds; `lease` 0 lets the store choose its id. Raises Conflict when the id
        is taken, InvalidRequest for a time to live out of range."""
        ...

    async def lease_keepalive(self, leases: Sequence[int]) -> Sequence[int]:
        """Renew many at once, without a log entry. Returns those that do not exist."""
        ...

    async def lease_revoke(self, lease: int) -> int:
        """End the lease and delete its keys; returns the store's revision. Raises NotFound."""
        ...

    async def lease_time_to_live(self, lease: int, *, keys: bool = False) -> LeaseStatus:
        """Raises NotFound."""
        ...

    async def lease_list(self) -> Sequence[int]:
        """All leases that there are, in order."""
        ...

    def watch(
        self, key: bytes, range_end: bytes = b"", *, start_revision: int = 0, previous: bool = False
    ) -> AbstractAsyncContextManager[Watch]:
        """Watch a range from `start_revision` on (0: from the next change; the first batch is then a bookmark of the
        revision from which the watch is gap-free). Iterating raises Compacted when history does not reach back."""
        ...

    async def hash(self, revision: int = 0) -> StateHash:
        """Of what this member has applied up to `revision` (0: the newest). Members of one engine that have compacted
        equally far have equal hashes, or have diverged. Raises Compacted or FutureRevision."""
        ...

    async def status(self) -> MemberStatus: ...
