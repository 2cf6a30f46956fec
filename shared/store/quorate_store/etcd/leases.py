"""Leases, by etcd's v3 JSON API. They are granted and ended by the log, and renewed by the leader alone."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from quorate_core.errors import InvalidRequest, NotFound, NotProposed, QuorateError, TooManyRequests

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

KEEPALIVES_A_REQUEST = 20
"""A follower of etcd asks its leader for each, one after the other: a fifth of a second where that is 10 ms away."""
RENEWAL_ATTEMPTS_MAX = 20
KEEPALIVE_REQUESTS_MAX = 8
"""At a time; of one call, too, so that a long one leaves places to the others."""
RENEWALS_WAITING_MAX = 4_096
"""Requests under way, or waiting for a place."""
PLACE_TIMEOUT_S = 1.0
"""For a place to become free."""
GRANTED_KNOWN_MAX = 100_000
LIST_ATTEMPTS_MAX = 3
NO_LEASE_TTL_S = -1


class Leases:
    """`present` is a linearizable read, and gives the header of its answer."""

    def __init__(self, client: StoreClient, present: Callable[[], Awaitable[Header]]) -> None:
        self._client = client
        self._present = present
        self._places = asyncio.Semaphore(KEEPALIVE_REQUESTS_MAX)
        self._waiting = 0
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
        answer = await self._time_to_live(lease, keys=keys)
        if answer.ttl_s == NO_LEASE_TTL_S and lease:
            await self._present()  # as for a renewal: who is asked may have to hear of the grant still
            answer = await self._time_to_live(lease, keys=keys)
        if answer.ttl_s == NO_LEASE_TTL_S or lease == 0:
            raise NotFound(f"lease {lease} does not exist")
        return LeaseStatus(lease, answer.granted_ttl_s, float(answer.ttl_s), tuple(sorted(answer.keys)))

    async def _time_to_live(self, lease: int, *, keys: bool) -> LeaseAnswer:
        answer = decode_lease(await self._client.read("/v3/lease/timetolive", encode_lease(lease, keys=keys)))
        self._client.note(answer.header)
        return answer

    async def all(self) -> Sequence[int]:
        """etcd's members list those that they know of; one that has just answered a linearizable read knows all."""
        for _ in range(LIST_ATTEMPTS_MAX):
            present = await self._present()
            header, leases = decode_leases(await self._client.read("/v3/lease/leases", b"{}"))
            if header.member_id == present.member_id:
                return sorted(leases)
        raise NotProposed("no endpoint has answered twice in a row")

    async def _renew(self, leases: Sequence[int]) -> list[int]:
        """Those that do not exist, in the order given. When some cannot be renewed, the others are not waited for."""
        parts = [leases[at : at + KEEPALIVES_A_REQUEST] for at in range(0, len(leases), KEEPALIVES_A_REQUEST)]
        unknown: list[list[int]] = [[] for _ in parts]
        left = iter(enumerate(parts))

        async def renew() -> None:
            for place, part in left:
                unknown[place] = await self._renew_part(part)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(parts), KEEPALIVE_REQUESTS_MAX)):
                    group.create_task(renew())
        except* QuorateError as errors:
            raise errors.exceptions[0] from None
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
        request = encode_keepalives(leases)
        async with self._place():
            body = await self._client.read("/v3/lease/keepalive", request)
        lines = [decode_line(line) for line in body.splitlines() if line]
        for line in lines:
            if line.error is not None:
                said = line.error
                raise _refusal(
                    error_of_text(said.grpc_code, said.message, is_write=False, request_bytes=len(request))
                )  # fmt: skip
        answers = [decode_lease(line.result) for line in lines]
        if [answer.lease for answer in answers] != list(leases[: len(answers)]):
            raise NotProposed("the answers to renewals are of other leases than were named")
        return answers

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One of KEEPALIVE_REQUESTS_MAX. Raises NotProposed when none is free in time, and TooManyRequests."""
        if self._waiting >= RENEWALS_WAITING_MAX:
            raise TooManyRequests(f"{RENEWALS_WAITING_MAX} renewals of leases are under way")
        self._waiting += 1
        try:
            try:
                async with asyncio.timeout(PLACE_TIMEOUT_S):
                    await self._places.acquire()
            except TimeoutError:
                raise NotProposed(f"all places for renewals have been taken for {PLACE_TIMEOUT_S:g} s") from None
            try:
                yield
            finally:
                self._places.release()
        finally:
            self._waiting -= 1

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
