"""Leases, by etcd's v3 JSON API. They are granted and ended by the log, and renewed by the leader alone."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from quorate_core.errors import InvalidRequest, NotFound, NotProposed, QuorateError

from quorate_store.etcd.client import StoreClient
from quorate_store.etcd.errors import error_of_text, goes_on_elsewhere
from quorate_store.etcd.messages import (
    Header,
    LeaseAnswer,
    decode_lease,
    decode_leases,
    decode_line,
    encode_grant,
    encode_keepalives,
    encode_lease,
)
from quorate_store.model import LeaseStatus
from quorate_store.refusals import LeaseTtlTooLarge
from quorate_store.transactions import LEASE_TTL_S_MAX, require_integer

KEEPALIVES_A_REQUEST = 100
"""A follower of etcd asks its leader for each, one after the other: a tenth of a second."""
RENEWAL_ATTEMPTS_MAX = 20
KEEPALIVE_REQUESTS_MAX = 8
"""At a time."""
GRANTED_KNOWN_MAX = 100_000
LIST_ATTEMPTS_MAX = 3
NO_LEASE_TTL_S = -1


class Leases:
    """`present` is a linearizable read, and gives the header of its answer."""

    def __init__(self, client: StoreClient, present: Callable[[], Awaitable[Header]]) -> None:
        self._client = client
        self._present = present
        self._requests = asyncio.Semaphore(KEEPALIVE_REQUESTS_MAX)
        self._granted: OrderedDict[int, int] = OrderedDict()
        """What leases were granted for, in seconds: those heard of last."""

    def granted_ttl_s(self, lease: int) -> int | None:
        return self._granted.get(lease)

    async def grant(self, ttl_s: int, lease: int) -> LeaseStatus:
        """etcd makes a time to live under its own election timeout longer: the status says what it is."""
        if ttl_s > LEASE_TTL_S_MAX:
            raise LeaseTtlTooLarge(f"a time to live of {ttl_s} s; the limit is {LEASE_TTL_S_MAX} s")
        if ttl_s < 1:
            raise InvalidRequest(f"a time to live of {ttl_s} s; it must be at least 1 s")
        require_integer("lease", lease)
        granted = decode_lease(await self._client.write("/v3/lease/grant", encode_grant(ttl_s, lease)))
        self._note(granted)
        return LeaseStatus(granted.lease, granted.ttl_s, float(granted.ttl_s))

    async def keepalive(self, leases: Sequence[int]) -> Sequence[int]:
        for lease in leases:
            require_integer("lease", lease)
        unknown = await self._renew(leases)
        if not unknown:
            return []
        # NB: a grant is answered by the member that was asked for it, and renewed by the leader, which may have to
        # apply it still (etcd before 3.6 does not wait for that). A linearizable read takes longer than that.
        await self._present()
        return await self._renew(unknown)

    async def revoke(self, lease: int) -> int:
        require_integer("lease", lease)
        answer = decode_lease(await self._client.write("/v3/lease/revoke", encode_lease(lease)))
        self._granted.pop(lease, None)
        self._client.note(answer.header)
        return answer.header.revision

    async def time_to_live(self, lease: int, *, keys: bool) -> LeaseStatus:
        require_integer("lease", lease)
        answer = decode_lease(await self._client.read("/v3/lease/timetolive", encode_lease(lease, keys=keys)))
        self._client.note(answer.header)
        if answer.ttl_s == NO_LEASE_TTL_S or lease == 0:
            raise NotFound(f"lease {lease} does not exist")
        return LeaseStatus(lease, answer.granted_ttl_s, float(answer.ttl_s), tuple(sorted(answer.keys)))

    async def all(self) -> Sequence[int]:
        """etcd's members list those that they know of; one that has just answered a linearizable read knows all."""
        for _ in range(LIST_ATTEMPTS_MAX):
            present = await self._present()
            header, leases = decode_leases(await self._client.read("/v3/lease/leases", b"{}"))
            if header.member_id == present.member_id:
                return sorted(leases)
        raise NotProposed("no endpoint has answered twice in a row")

    async def _renew(self, leases: Sequence[int]) -> list[int]:
        """Those that do not exist, in the order given."""
        parts = [leases[at : at + KEEPALIVES_A_REQUEST] for at in range(0, len(leases), KEEPALIVES_A_REQUEST)]
        unknown = await asyncio.gather(*(self._renew_part(part) for part in parts))
        return [lease for part in unknown for lease in part]

    async def _renew_part(self, leases: Sequence[int]) -> list[int]:
        """NB: etcd 3.4 drops answers that are not on their way yet when it has read the last request. What was not
        answered is asked again, and each time some are."""
        missing, unknown = list(leases), []
        for _ in range(RENEWAL_ATTEMPTS_MAX):
            answers = await self._renew_once(missing)
            for answer in answers:
                self._note(answer)
            unknown += [answer.lease for answer in answers if answer.ttl_s <= 0]
            missing = missing[len(answers) :]  # they come in the order of the requests
            if not missing:
                return unknown
        raise NotProposed(f"{len(leases)} leases were to be renewed, and {len(missing)} were never answered")

    async def _renew_once(self, leases: Sequence[int]) -> list[LeaseAnswer]:
        async with self._requests:
            body = await self._client.read("/v3/lease/keepalive", encode_keepalives(leases))
        lines = [decode_line(line) for line in body.splitlines() if line]
        for line in lines:
            if line.error is not None:
                raise _refusal(error_of_text(line.error.grpc_code, line.error.message, is_write=False))
        answers = [decode_lease(line.result) for line in lines]
        if [answer.lease for answer in answers] != list(leases[: len(answers)]):
            raise NotProposed("the answers to renewals are of other leases than were named")
        return answers

    def _note(self, answer: LeaseAnswer) -> None:
        self._client.note(answer.header)
        self._granted.pop(answer.lease, None)
        if answer.ttl_s > 0:
            self._granted[answer.lease] = answer.ttl_s
            if len(self._granted) > GRANTED_KNOWN_MAX:
                self._granted.popitem(last=False)


def _refusal(error: QuorateError) -> QuorateError:
    """To renew a lease again does no harm."""
    return NotProposed(error.detail) if goes_on_elsewhere(error) else error
