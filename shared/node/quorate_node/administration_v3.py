"""What etcd's API asks of the member behind it, answered by what the platform's own API stands on."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from pydantic import ValidationError
from quorate_core.errors import InvalidRequest
from quorate_sdk.wire import AddMember, MemberList, MemberRole, Transfer
from quorate_store.v3.administration import DatabaseSize, InvalidPeerUrl, V3Member, V3Snapshot

from quorate_node.backup import CopiedLog, MemberBackups
from quorate_node.cluster import MemberAdministration

_SCHEMES = ("http", "https", "tcp")
"""Any of them is taken: members speak a protocol of their own over TCP."""


class MeasuredState(Protocol):
    """`quorate_store.state.StateMachine`, as far as it is measured."""

    @property
    def used_bytes(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...


class MemberAdministrationV3:
    """`quorate_store.v3.administration.V3Administration` of a member."""

    def __init__(
        self, members: MemberAdministration, backups: MemberBackups, state: MeasuredState, log: CopiedLog
    ) -> None:
        self._members = members
        self._backups = backups
        self._state = state
        self._log = log

    async def members(self) -> Sequence[V3Member]:
        return _v3_members(await self._members.list())

    async def add(self, name: str, peer_url: str) -> Sequence[V3Member]:
        try:
            wanted = AddMember(name=name, address=_address_of(peer_url))
        except ValidationError as error:
            raise InvalidRequest(f"{name!r} cannot be a member's name") from error
        return _v3_members(await self._members.add(wanted))

    async def promote(self, name: str) -> Sequence[V3Member]:
        return _v3_members(await self._members.promote(name))

    async def remove(self, name: str) -> Sequence[V3Member]:
        return _v3_members(await self._members.remove(name))

    async def transfer_leadership(self, name: str) -> None:
        await self._members.transfer(Transfer(to=name))

    def is_learner(self) -> bool:
        own = self._log.status()
        return own.membership.is_learner(own.name)

    def database_size(self) -> DatabaseSize:
        return DatabaseSize(self._state.used_bytes, self._state.size_bytes)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[V3Snapshot]:
        async with self._backups.take(may_be_stale=False) as backup:
            yield backup


def _address_of(peer_url: str) -> str:
    scheme, separator, address = peer_url.partition("://")
    address = address.removesuffix("/")
    if scheme not in _SCHEMES or not separator or not address or "/" in address:
        raise InvalidPeerUrl
    return address


def _v3_members(found: MemberList) -> list[V3Member]:
    return [
        V3Member(
            member.name,
            (f"http://{member.peer}",),
            (member.url,) if member.url else (),
            is_learner=member.role == MemberRole.LEARNER,
        )
        for member in found.members
    ]
