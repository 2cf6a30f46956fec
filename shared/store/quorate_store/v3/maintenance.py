"""`/v3/maintenance/…`: the member's status, hash, alarms, snapshot and leader; and `/v3/auth/…`, which is not offered.

Alarms are facts here and no switches. NOSPACE is on while the store is so near its quota that writes are refused, or
about to be, and goes off by itself when deletes and a compaction have made room; so nothing can be activated, and there
is nothing to deactivate before writes go on.
"""

from collections.abc import AsyncIterator
from hashlib import sha256

import structlog
from fastapi import FastAPI
from quorate_core.asgi import add_raw_endpoint, add_raw_stream
from quorate_core.errors import Conflict, NotImplementedHere

from quorate_store.model import MemberStatus
from quorate_store.port import Store
from quorate_store.v3 import cluster_messages as messages
from quorate_store.v3.administration import DatabaseSize, V3Administration
from quorate_store.v3.cluster_messages import AlarmAction, AlarmType
from quorate_store.v3.codec import ETCD_VERSION, decode_empty
from quorate_store.v3.errors import error_response, stream_error_line
from quorate_store.v3.headers import Headers
from quorate_store.v3.json_messages import json_messages
from quorate_store.v3.openapi import INT64, UINT64, VERSIONS, choice, operation

QUOTA_ROOM_BYTES_MIN = 256
"""What a small put takes."""
QUOTA_ROOM_PARTS = 1024
"""NOSPACE is on when less than this part of the quota is left: by default 2 MiB, more than any one request takes."""
NO_STATE = "this node is no member of the store, and has no state of its own: ask a node that is one"

_AUTH_CALLS = (
    "enable", "disable", "authenticate", "user/add", "user/get", "user/list", "user/delete", "user/changepw",
    "user/grant", "user/revoke", "role/add", "role/get", "role/list", "role/delete", "role/grant", "role/revoke",
)  # fmt: skip

log = structlog.get_logger(__name__)


class MaintenanceEndpoints:
    """`administration` is None on a node that is no member."""

    def __init__(self, store: Store, headers: Headers, administration: V3Administration | None) -> None:
        self._store = store
        self._headers = headers
        self._given = administration

    def mount(self, api: FastAPI) -> None:
        for path, handler, summary, properties in (
            ("maintenance/status", self.status, "The member's status", {}),
            ("maintenance/hash", self.hash, "A hash of all changes of keys up to a revision", _HASH_PROPERTIES),
            ("maintenance/alarm", self.alarm, "The member's alarms", _ALARM_PROPERTIES),
            ("maintenance/defragment", self.defragment, "Nothing: there is nothing to defragment", {}),
            ("maintenance/transfer-leadership", self.transfer, "Let another voter lead", _TRANSFER_PROPERTIES),
        ):
            for version in VERSIONS:
                add_raw_endpoint(api, f"/{version}/{path}", handler, summary, operation(properties), error_response)
        for version in VERSIONS:
            for call in _AUTH_CALLS:
                path = f"/{version}/auth/{call}"
                add_raw_endpoint(api, path, _refuse_auth, "Not offered", operation({}), error_response)
            add_raw_stream(
                api, f"/{version}/maintenance/snapshot", self.snapshot, "The member's state", operation({}),
                error_response, stream_error_line,
            )  # fmt: skip

    @property
    def _administration(self) -> V3Administration:
        if self._given is None:
            raise NotImplementedHere(NO_STATE)
        return self._given

    async def status(self, body: bytes) -> bytes:
        decode_empty(body)
        status = await self._store.status()
        size = DatabaseSize(status.store_bytes, status.store_bytes)
        is_learner = False
        if self._given is not None:
            size, is_learner = self._given.database_size(), self._given.is_learner()
        return messages.encode_status(
            messages.StatusAnswer(
                header=await self._headers.at(status.revision),
                version=ETCD_VERSION,
                db_size=str(size.allocated_bytes),
                leader=self._headers.member_id(status.leader) if status.leader else "",
                raft_index=str(status.commit_index),
                raft_term=str(status.term),
                raft_applied_index=str(status.applied_index),
                errors=tuple(self._errors_of(status)),
                db_size_in_use=str(size.used_bytes),
                is_learner=is_learner,
            )
        )

    def _errors_of(self, status: MemberStatus) -> list[str]:
        """As etcd words them."""
        errors = [] if status.leader else ["etcdserver: no leader"]
        own_id = self._headers.member_id(status.name)
        return errors + [f"memberID:{own_id} alarm:{alarm.name} " for alarm in alarms_of(status)]

    async def hash(self, body: bytes) -> bytes:
        found = await self._store.hash(messages.decode_hash(body))
        return messages.encode_hash(await self._headers.newest(), found)

    async def alarm(self, body: bytes) -> bytes:
        request = messages.decode_alarm(body)
        if self._given is None:
            raise NotImplementedHere(NO_STATE)
        if request.action is AlarmAction.ACTIVATE:
            raise NotImplementedHere("alarms are not set by hand here: NOSPACE is on while the store is at its quota")
        status = await self._store.status()
        alarms = () if request.action is AlarmAction.DEACTIVATE else alarms_of(status)
        wanted = tuple(alarm for alarm in alarms if request.alarm in (AlarmType.NONE, alarm))
        return messages.encode_alarms(self._headers.member_id(status.name), wanted)

    async def defragment(self, body: bytes) -> bytes:
        decode_empty(body)
        log.info("defragment_is_not_needed", reason="pages that compaction has freed are written again by what comes")
        return b"{}"

    async def transfer(self, body: bytes) -> bytes:
        """Any member may be asked; etcd's leader alone answers this."""
        wanted = messages.decode_transfer(body).member_id
        for member in await self._administration.members():
            if self._headers.member_id(member.name) == wanted and not member.is_learner:
                await self._administration.transfer_leadership(member.name)
                return b"{}"
        raise Conflict("etcdserver: bad leader transferee")

    async def snapshot(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The file that `quorate cluster snapshot save` gets, and then its SHA-256, as etcd adds one to its own."""
        async for message in json_messages(body):
            decode_empty(message)
        digest = sha256()
        async with self._administration.snapshot() as taken:
            remaining_bytes = taken.size_bytes
            async for piece in taken.pieces():
                remaining_bytes -= len(piece)
                digest.update(piece)
                yield messages.encode_blob(piece, remaining_bytes)
        yield messages.encode_blob(digest.digest(), 0)


def alarms_of(status: MemberStatus) -> tuple[AlarmType, ...]:
    room_bytes_min = max(QUOTA_ROOM_BYTES_MIN, status.quota_bytes // QUOTA_ROOM_PARTS)
    is_full = status.quota_bytes > 0 and status.store_bytes + room_bytes_min > status.quota_bytes
    return (AlarmType.NOSPACE,) if is_full else ()


async def _refuse_auth(_body: bytes) -> bytes:
    raise NotImplementedHere(
        "users and roles are not offered: a node that is bound to more than loopback asks for its token"
    )


_HASH_PROPERTIES = {"revision": INT64}
_TRANSFER_PROPERTIES = {"targetID": UINT64}
_ALARM_PROPERTIES = {
    "action": choice(list(AlarmAction.__members__)),
    "memberID": UINT64,
    "alarm": choice(list(AlarmType.__members__)),
}
