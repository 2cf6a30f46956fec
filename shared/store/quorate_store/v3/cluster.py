"""`/v3/cluster/member/…`: who is a member, seen and changed as etcd's clients do it.

Ids are made from the members' names (`headers.id_of`). A member is always added as a learner: a voter that has nothing
yet would count for the majority at once, and one that never starts would cost the cluster a failure that it could bear.
What etcd calls a peer URL is `http://host:port` here, of which only host and port mean something.
"""

import re
from collections.abc import Sequence
from typing import NoReturn

from fastapi import FastAPI
from msgspec import UNSET
from quorate_core.asgi import add_raw_endpoint
from quorate_core.errors import Conflict, NotFound, NotImplementedHere

from quorate_store.v3 import cluster_messages as messages
from quorate_store.v3.administration import InvalidPeerUrl, V3Administration, V3Member
from quorate_store.v3.codec import decode_empty
from quorate_store.v3.errors import error_response
from quorate_store.v3.headers import Headers
from quorate_store.v3.openapi import FLAG, UINT64, VERSIONS, operation

NOT_A_MEMBER = "this node is no member of the store, and cannot tell or change who is: ask a node that is one"

_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")


class MemberNotFound(NotFound):
    """Clients compare the text."""

    def __init__(self) -> None:
        super().__init__("etcdserver: member not found")


class ClusterEndpoints:
    """`administration` is None on a node that is no member."""

    def __init__(self, headers: Headers, administration: V3Administration | None) -> None:
        self._headers = headers
        self._given = administration

    def mount(self, api: FastAPI) -> None:
        for path, handler, summary, properties in (
            ("list", self.list, "The members", {}),
            ("add", self.add, "Add a learner", _ADD_PROPERTIES),
            ("promote", self.promote, "Make a learner a voter", _ID_PROPERTIES),
            ("remove", self.remove, "Remove a member for good", _ID_PROPERTIES),
            ("update", self.update, "Change a member's address: not offered", _ID_PROPERTIES),
        ):
            for version in VERSIONS:
                whole = f"/{version}/cluster/member/{path}"
                add_raw_endpoint(api, whole, handler, summary, operation(properties), error_response)

    @property
    def _administration(self) -> V3Administration:
        if self._given is None:
            raise NotImplementedHere(NOT_A_MEMBER)
        return self._given

    async def list(self, body: bytes) -> bytes:
        decode_empty(body)
        return await self._answer(await self._administration.members())

    async def add(self, body: bytes) -> bytes:
        request = messages.decode_add_member(body)
        administration = self._administration
        if len(request.peer_urls) != 1:
            raise InvalidPeerUrl
        if not request.is_learner:
            raise NotImplementedHere(
                "a member is added as a learner here: set isLearner, start it, and promote it when it has caught up"
            )
        [url] = request.peer_urls
        name = request.name or name_of(url)
        members = await administration.add(name, url)
        return await self._answer(members, added=name)

    async def promote(self, body: bytes) -> bytes:
        request = messages.decode_member(body)
        member = await self._find(request.member_id)
        if not member.is_learner:
            raise Conflict("etcdserver: can only promote a learner member")
        try:
            return await self._answer(await self._administration.promote(member.name))
        except Conflict as error:
            if "lag_entries" not in error.extensions:
                raise
            text = "etcdserver: can only promote a learner member which is in sync with leader"
            raise Conflict(text, **error.extensions) from error

    async def remove(self, body: bytes) -> bytes:
        member = await self._find(messages.decode_member(body).member_id)
        return await self._answer(await self._administration.remove(member.name))

    async def update(self, body: bytes) -> bytes:
        request = messages.decode_member(body)
        member = await self._find(request.member_id)
        if tuple(request.peer_urls) != member.peer_urls:
            _refuse_update()
        return await self._answer(await self._administration.members())

    async def _find(self, member_id: str) -> V3Member:
        for member in await self._administration.members():
            if self._headers.member_id(member.name) == member_id:
                return member
        raise MemberNotFound

    async def _answer(self, members: Sequence[V3Member], added: str = "") -> bytes:
        wire = tuple(sorted(map(self._wire, members), key=lambda member: int(member.id)))
        new = next((member for member in wire if member.name == added), None) if added else None
        return messages.encode_members(await self._headers.without_revision(), wire, new)

    def _wire(self, member: V3Member) -> messages.WireMember:
        return messages.WireMember(
            self._headers.member_id(member.name),
            member.name,
            member.peer_urls,
            member.client_urls or UNSET,
            True if member.is_learner else UNSET,
        )


def name_of(peer_url: str) -> str:
    """The name of a member that was added without one: its address, in what names may have."""
    return _NOT_IN_NAMES.sub("-", peer_url.lower().partition("://")[2]).strip("-")


def _refuse_update() -> NoReturn:
    raise NotImplementedHere(
        "a member keeps its address for life here: add a member with the new address and another name, and remove this"
    )


_ID_PROPERTIES = {"ID": UINT64}
_ADD_PROPERTIES = {
    "peerURLs": {"type": "array", "items": {"type": "string"}},
    "isLearner": FLAG,
    "name": {"type": "string"},
}
