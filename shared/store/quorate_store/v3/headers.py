"""The header that every answer of the v3 API has, and the 64-bit ids in it, which are made from names.

It costs nothing to speak of: an engine that can say at once who it is and how far (`HasHead`) is not asked for more.
"""

import hashlib
from typing import Protocol, runtime_checkable

from quorate_store.model import MemberHead
from quorate_store.port import Store
from quorate_store.v3.codec import Header

PLATFORM_HEADER = b"quorate-platform"
"""The HTTP header by which a node that passes on to this one proves to be of the platform: it may write reserved
keys."""
REQUEST_ID_HEADER = b"quorate-request-id"
"""The HTTP header of a write that is to be applied once, however often it is sent."""


@runtime_checkable
class HasHead(Protocol):
    def head(self) -> MemberHead: ...


class Headers:
    """Of one node's answers."""

    def __init__(self, store: Store, cluster_id: str) -> None:
        self._store = store
        self._engine = store if isinstance(store, HasHead) else None
        self._cluster_id = str(id_of(cluster_id))
        self._member_ids: dict[str, str] = {}

    async def at(self, revision: int) -> Header:
        """For an answer made at `revision`."""
        head = await self._head()
        return Header(self._cluster_id, self.member_id(head.name), str(revision), str(head.term))

    async def newest(self) -> Header:
        """For an answer that has no revision of its own: this member's newest."""
        head = await self._head()
        return Header(self._cluster_id, self.member_id(head.name), str(head.revision), str(head.term))

    async def without_revision(self) -> Header:
        """For answers to which etcd gives none."""
        head = await self._head()
        return Header(self._cluster_id, self.member_id(head.name), raft_term=str(head.term))

    async def _head(self) -> MemberHead:
        if self._engine is not None:
            return self._engine.head()
        status = await self._store.status()
        return MemberHead(status.name, status.term, status.revision)

    def member_id(self, name: str) -> str:
        known = self._member_ids.get(name)
        if known is None:
            known = self._member_ids[name] = str(id_of(name))
        return known


def id_of(name: str) -> int:
    """The 64-bit id that stands for a name in etcd's API; never 0, which would mean that there is none."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") or 1


def header_value(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bytes:
    """Of an HTTP request; empty when there is none. Names are in lower case."""
    for name, value in headers:
        if name == wanted:
            return value
    return b""
