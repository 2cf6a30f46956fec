"""`/v3/lease/…`: grant, revoke, time to live, list, and the stream of keepalives, as etcd answers them.

A keepalive stream takes what has arrived and renews all of it by one call to the store, so that a client with thousands
of leases costs few calls; answers come in the order of the requests. A lease that does not exist is answered without a
time to live.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from fastapi import FastAPI
from quorate_core.asgi import add_headed_endpoint, add_raw_endpoint, add_raw_stream
from quorate_core.errors import InvalidRequest, NotFound, PayloadTooLarge, QuorateError
from quorate_core.plain_requests import Headers as HttpHeaders

from quorate_store.model import RESERVED_PREFIX, LeaseStatus
from quorate_store.port import Store
from quorate_store.v3 import lease_messages as messages
from quorate_store.v3.codec import decode_empty
from quorate_store.v3.errors import error_response, stream_error_line
from quorate_store.v3.headers import Headers
from quorate_store.v3.json_messages import JsonMessages
from quorate_store.v3.openapi import FLAG, INT64, VERSIONS, operation
from quorate_store.v3.reserved import Guard, refusal

GRANTED_TTL_S_MIN = 2
"""What etcd makes of less, with its default election timeout of one second."""


@runtime_checkable
class KnowsLeases(Protocol):
    """An engine that can say at once what a lease was granted for."""

    def granted_ttl_s(self, lease: int) -> int | None:
        """None when it is not known here, which does not mean that there is no such lease."""
        ...


class LeaseEndpoints:
    def __init__(self, store: Store, headers: Headers, guard: Guard) -> None:
        self._store = store
        self._headers = headers
        self._guard = guard
        self._knower = store if isinstance(store, KnowsLeases) else None

    def mount(self, api: FastAPI) -> None:
        for names, handler, summary, properties in (
            (("lease/grant",), self.grant, "Grant a lease", _GRANT_PROPERTIES),
            (("lease/timetolive", "kv/lease/timetolive"), self.time_to_live, "What is left of it", _TTL_PROPERTIES),
            (("lease/leases", "kv/lease/leases"), self.leases, "All leases", _NO_PROPERTIES),
        ):
            for path in (f"/{version}/{name}" for version in VERSIONS for name in names):
                add_raw_endpoint(api, path, handler, summary, operation(properties), error_response)
        for version in VERSIONS:
            for name in ("lease/revoke", "kv/lease/revoke"):
                add_headed_endpoint(
                    api, f"/{version}/{name}", self.revoke, "End a lease, and delete its keys",
                    operation(_ID_PROPERTIES), error_response,
                )  # fmt: skip
            add_raw_stream(
                api, f"/{version}/lease/keepalive", self.keepalive, "Renew leases", operation(_ID_PROPERTIES),
                error_response, stream_error_line,
            )  # fmt: skip

    async def grant(self, body: bytes) -> bytes:
        request = messages.decode_grant(body)
        if request.lease < 0:
            raise InvalidRequest(f"lease {request.lease}: the ids of leases are positive")
        granted = await self._store.lease_grant(max(GRANTED_TTL_S_MIN, request.ttl_s), request.lease)
        return messages.encode_grant(await self._headers.newest(), granted)

    async def revoke(self, body: bytes, http: HttpHeaders) -> bytes:
        lease = messages.decode_lease(body)
        if lease <= 0:
            raise NotFound(f"lease {lease} does not exist")
        if not self._guard.is_platform(http):
            await self._require_open(lease)
        revision = await self._store.lease_revoke(lease)
        return messages.encode_revoke(await self._headers.at(revision))

    async def _require_open(self, lease: int) -> None:
        """Raises Forbidden when reserved keys would be deleted with the lease."""
        held = await self._store.lease_time_to_live(lease, keys=True)
        if any(key.startswith(RESERVED_PREFIX) for key in held.keys):
            raise refusal()

    async def time_to_live(self, body: bytes) -> bytes:
        request = messages.decode_time_to_live(body)
        status = await self._status(request.lease, keys=request.keys)
        header = await self._headers.newest()
        if status is None:
            return messages.encode_no_time_to_live(header, request.lease)
        return messages.encode_time_to_live(header, status)

    async def _status(self, lease: int, *, keys: bool = False) -> LeaseStatus | None:
        try:
            return await self._store.lease_time_to_live(lease, keys=keys) if lease > 0 else None
        except NotFound:
            return None

    async def leases(self, body: bytes) -> bytes:
        decode_empty(body)
        leases = await self._store.lease_list()
        return messages.encode_leases(await self._headers.newest(), leases)

    async def keepalive(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """One stream, until its body ends. Raises InvalidRequest for a message that cannot be read."""
        arriving = JsonMessages()
        async for chunk in body:
            wanted, wrong = _leases_in(arriving.feed(chunk))
            if wanted:
                yield await self._renewed(wanted)
            if wrong is not None:
                raise wrong
        arriving.require_complete()

    async def _renewed(self, leases: Sequence[int]) -> bytes:
        """The lines that answer these keepalives, in order."""
        renewable = list(dict.fromkeys(lease for lease in leases if lease > 0))
        unknown = set(await self._store.lease_keepalive(renewable)) if renewable else set()
        ttls = {lease: await self._granted_ttl_s(lease) for lease in renewable if lease not in unknown}
        header = await self._headers.newest()
        return b"".join(messages.encode_keepalive(header, lease, ttls.get(lease, 0)) for lease in leases)

    async def _granted_ttl_s(self, lease: int) -> int:
        """0 when the lease has ended since it was renewed."""
        ttl_s = None if self._knower is None else self._knower.granted_ttl_s(lease)
        if ttl_s is None:
            status = await self._status(lease)
            return 0 if status is None else status.granted_ttl_s
        return ttl_s


def _leases_in(arrived: Iterator[bytes]) -> tuple[list[int], QuorateError | None]:
    """The leases that these messages name, up to one that cannot be read, and what is wrong with that."""
    leases: list[int] = []
    try:
        for message in arrived:
            leases.append(messages.decode_lease(message))  # noqa: PERF401 - what was read before an error counts
    except (InvalidRequest, PayloadTooLarge) as error:
        return leases, error
    return leases, None


_NO_PROPERTIES: dict[str, Any] = {}
_ID_PROPERTIES: dict[str, Any] = {"ID": INT64}
_GRANT_PROPERTIES: dict[str, Any] = {"TTL": INT64, "ID": INT64}
_TTL_PROPERTIES: dict[str, Any] = {"ID": INT64, "keys": FLAG}
