"""Documents and their versions in the store: read, publish, delete, list. Every change is one transaction.

A change reads the head, decides on it (`model`), and writes with a compare on the head's revision; when another
writer came first, it decides again on what that one left. So a version is never skipped, never given twice, and
never without its row of history.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog
from quorate_core.errors import Conflict, InvariantViolation, NotFound, Unavailable
from quorate_sdk.wire import ConfigFormat
from quorate_store.model import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteOp,
    Operation,
    PutOp,
    RangeOp,
    RangeResult,
    prefix_end,
)
from quorate_store.port import Store

from quorate_config_center.model import (
    CURRENT_PREFIX,
    Change,
    DocumentName,
    Head,
    Precondition,
    StoredHead,
    StoredVersion,
    current_key,
    decode_head,
    decode_version,
    encode_head,
    encode_version,
    name_of_current,
    namespace_prefix,
    next_deleted,
    next_published,
    version_key,
)

VERSIONS_KEPT_DEFAULT = 100
COMPARE_ATTEMPTS_MAX = 16
HEADS_A_PAGE = 1_000

log = structlog.get_logger(__name__)

NamedHead = tuple[DocumentName, StoredHead]
Decision = Callable[[Head | None], Head | None]
"""From the head as it is to the head that shall be, or None for no change. May raise."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change led to. `created`: the document was not there before; `changed`: there is a new version."""

    stored: StoredHead
    created: bool
    changed: bool


class DocumentHistory:
    """The documents in `store`. The newest `versions_kept` versions of each are kept."""

    def __init__(
        self, store: Store, versions_kept: int = VERSIONS_KEPT_DEFAULT, heads_a_page: int = HEADS_A_PAGE
    ) -> None:
        self._store = store
        self._heads_a_page = heads_a_page
        self._versions_kept = versions_kept

    async def head(self, name: DocumentName, *, serializable: bool = False) -> StoredHead | None:
        """The newest head, a deletion's included; None when the document never was."""
        return _head_of(await self._store.range(current_key(name), serializable=serializable))

    async def read(self, name: DocumentName, *, serializable: bool = False) -> StoredVersion:
        """The document as it is. Raises NotFound when there is none."""
        for _ in range(COMPARE_ATTEMPTS_MAX):
            stored = await self.head(name, serializable=serializable)
            if stored is None or stored.head.deleted:
                raise NotFound(f"there is no document {name}")
            # The head was read up to date, and this member has applied at least that: its own row is new enough.
            found = await self.find_version(name, stored.head.version, serializable=True)
            if found is not None:
                return found
            # Its row was swept away by that many newer versions in between: read the head again.
        raise Unavailable(f"{name} changes faster than it can be read")

    async def read_version(self, name: DocumentName, version: int, *, serializable: bool = False) -> StoredVersion:
        """One version, a deletion included. Raises NotFound when it never was or is no longer kept."""
        found = await self.find_version(name, version, serializable=serializable)
        if found is None:
            raise NotFound(f"{name} has no version {version}; the newest {self._versions_kept} are kept")
        return found

    async def find_version(self, name: DocumentName, version: int, *, serializable: bool) -> StoredVersion | None:
        """One version, a deletion included; None when it never was or is no longer kept. Raises InvariantViolation
        for a row that cannot be read."""
        found = await self._store.range(version_key(name, version), serializable=serializable)
        if not found.kvs:
            return None
        try:
            head, content = decode_version(found.kvs[0].value)
        except ValueError as error:
            raise InvariantViolation(f"version {version} of {name} cannot be read: {error}") from error
        return StoredVersion(head, content, found.kvs[0].mod_revision)

    async def versions(self, name: DocumentName, limit: int) -> list[StoredHead]:
        """Up to `limit` heads, newest first, deletions included. Raises NotFound when the document never was."""
        newest = await self.head(name)
        if newest is None:
            raise NotFound(f"there never was a document {name}")
        count = min(limit, self._versions_kept, newest.head.version)
        found: list[StoredHead] = []
        # One row at a time: a hundred contents at once would be a hundred megabytes.
        for version in range(newest.head.version, newest.head.version - count, -1):
            row = await self.find_version(name, version, serializable=True)
            if row is not None:
                found.append(StoredHead(row.head, row.revision))
        return found

    async def present_revision(self) -> int:
        """The store's, read linearizably."""
        return (await self._store.range(CURRENT_PREFIX, count_only=True)).revision

    async def heads(self, prefix: bytes = CURRENT_PREFIX, *, serializable: bool = False) -> tuple[int, list[NamedHead]]:
        """The newest head of every document under `prefix`, deletions included, and a store revision: everything up
        to it is in the answer, what came later may be."""
        page = await self._store.range(prefix, prefix_end(prefix), limit=self._heads_a_page, serializable=serializable)
        revision, found = page.revision, _named_heads(page)
        while page.more:
            after = page.kvs[-1].key + b"\0"
            page = await self._store.range(after, prefix_end(prefix), limit=self._heads_a_page, serializable=True)
            found += _named_heads(page)
        return revision, found

    async def listed(
        self, namespace: str, group: str | None, *, serializable: bool = False
    ) -> tuple[int, list[NamedHead]]:
        """The documents that exist in a namespace, or in one of its groups, by name."""
        revision, found = await self.heads(namespace_prefix(namespace, group), serializable=serializable)
        return revision, [(name, stored) for name, stored in found if not stored.head.deleted]

    async def publish(
        self, name: DocumentName, content: str, content_format: ConfigFormat, change: Change, required: Precondition
    ) -> Outcome:
        """Make `content` the newest version; the same content again changes nothing.

        Raises PreconditionFailed, and what a transaction of the store raises.
        """
        encoded = content.encode()

        def decide(current: Head | None) -> Head | None:
            required.require(name, current)
            return next_published(current, encoded, content_format, change)

        return await self._change(name, decide, encoded)

    async def delete(self, name: DocumentName, change: Change, required: Precondition) -> Outcome:
        """Make a deletion the newest version. Raises NotFound, PreconditionFailed."""

        def decide(current: Head | None) -> Head | None:
            if current is not None and not current.deleted:
                required.require(name, current)
            return next_deleted(name, current, change)

        return await self._change(name, decide, b"")

    async def content_to_restore(self, name: DocumentName, version: int) -> StoredVersion:
        """The version that a rollback publishes again. Raises NotFound, or Conflict for a deletion."""
        restored = await self.read_version(name, version)
        if restored.head.deleted:
            raise Conflict(f"version {version} of {name} is a deletion; delete the document instead")
        return restored

    async def _change(self, name: DocumentName, decide: Decision, content: bytes) -> Outcome:
        current = await self.head(name)
        for _ in range(COMPARE_ATTEMPTS_MAX):
            head = None if current is None else current.head
            upcoming = decide(head)
            if upcoming is None:
                if current is None:
                    raise InvariantViolation(f"{name}: no change was decided on, of nothing")
                return Outcome(current, created=False, changed=False)
            result = await self._store.txn(
                (_unchanged_since(name, current),),
                self._writes(name, upcoming, content),
                (RangeOp(current_key(name)),),
            )
            if result.succeeded:
                created = head is None or head.deleted
                return Outcome(StoredHead(upcoming, result.revision), created, changed=True)
            current = _head_of(result.results[0])
        raise Unavailable(f"{name} is being changed by too many writers at once; nothing was written")

    def _writes(self, name: DocumentName, upcoming: Head, content: bytes) -> list[Operation]:
        writes: list[Operation] = [
            PutOp(current_key(name), encode_head(upcoming)),
            PutOp(version_key(name, upcoming.version), encode_version(upcoming, content)),
        ]
        swept_below = upcoming.version - self._versions_kept + 1
        if swept_below > 1:
            writes.append(DeleteOp(version_key(name, 0), version_key(name, swept_below)))
        return writes


def _named_heads(page: RangeResult) -> list[NamedHead]:
    found = []
    for kv in page.kvs:
        try:
            found.append((name_of_current(kv.key), StoredHead(decode_head(kv.value), kv.mod_revision)))
        except ValueError:
            log.error("config_head_unreadable", key=kv.key)  # one bad row must not hide all others
    return found


def _head_of(result: object) -> StoredHead | None:
    if not isinstance(result, RangeResult):
        raise InvariantViolation(f"a range was answered with {type(result).__name__}")
    if not result.kvs:
        return None
    kv = result.kvs[0]
    try:
        return StoredHead(decode_head(kv.value), kv.mod_revision)
    except ValueError as error:
        raise InvariantViolation(f"the head at {kv.key!r} cannot be read: {error}") from error


def _unchanged_since(name: DocumentName, current: StoredHead | None) -> Compare:
    revision = 0 if current is None else current.revision
    return Compare(current_key(name), CompareTarget.MOD, CompareResult.EQUAL, revision)
