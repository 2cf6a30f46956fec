"""What the v3 API needs of the member that it is served by, beyond the store. A node that only passes on to a store
elsewhere has none of it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from quorate_core.errors import InvalidRequest


class InvalidPeerUrl(InvalidRequest):
    """Clients compare the text."""

    def __init__(self) -> None:
        super().__init__("etcdserver: given member URLs are invalid")


@dataclass(frozen=True, slots=True)
class V3Member:
    """`client_urls` is empty while the member is not up."""

    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


@dataclass(frozen=True, slots=True)
class DatabaseSize:
    """`allocated_bytes`: what the files use. `used_bytes`: of that, what a copy would take."""

    allocated_bytes: int
    used_bytes: int


class V3Snapshot(Protocol):
    """A copy of the member's state, for as long as its context is open."""

    @property
    def size_bytes(self) -> int: ...
    def pieces(self) -> AsyncIterator[bytes]: ...


class V3Administration(Protocol):
    """Members are named by their names; the API's 64-bit ids are made from these."""

    async def members(self) -> Sequence[V3Member]: ...

    async def add(self, name: str, peer_url: str) -> Sequence[V3Member]:
        """Add a learner. Raises InvalidPeerUrl, InvalidRequest for a name that is none, Conflict for what is taken."""
        ...

    async def promote(self, name: str) -> Sequence[V3Member]:
        """Raises Conflict, with `lag_entries` when the learner lacks too much."""
        ...

    async def remove(self, name: str) -> Sequence[V3Member]:
        """Raises Conflict when those who are left and alive would be no majority."""
        ...

    async def transfer_leadership(self, name: str) -> None: ...

    def is_learner(self) -> bool:
        """Whether the member itself is."""
        ...

    def database_size(self) -> DatabaseSize: ...

    def snapshot(self) -> AbstractAsyncContextManager[V3Snapshot]:
        """Of now. Raises TooManyRequests while another one is taken."""
        ...
