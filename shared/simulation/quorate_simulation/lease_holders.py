"""Those who hold leases: take one, put keys under it, keep it alive for a while, and let it end, or end it."""

import asyncio
from dataclasses import dataclass, field

from quorate_core.errors import NotFound
from quorate_store.model import PutOp

from quorate_simulation.members import CLOCK_SKEW_MAX, Parts
from quorate_simulation.randomness import Stream
from quorate_simulation.timeline import Timeline
from quorate_simulation.workload import LEASE_PREFIX, Outcome, Stage, attempt

KEEPALIVES_PER_TTL = 3.0
RENEWAL_SPREAD = (0.4, 2.2)
"""Of that interval: some come so late that the leader has written down what is left."""
LEASE_TTL_S_MAX = 7
KEYS_MAX = 3
"""Under one lease."""
STALL_UNSEEN_S = 0.2
"""A jump of its clock that the leader cannot tell from its own pace: one tick, and what it takes for jitter."""


@dataclass(slots=True)
class HeldLease:
    """What its holder knows of a lease. `asked_s`: when the last call began that may have given it its whole time;
    `revoked_s`: when its end was asked for."""

    lease: int
    ttl_s: int
    asked_s: float
    revoked_s: float | None = None
    is_told_gone: bool = False
    renewals: list[float] = field(default_factory=list)
    """When each call began that gave it its whole time, the grant first."""

    def safe_until_s(self, renewed_s: float, jumps: int) -> float:
        """Until when it must live after the renewal `renewed_s`, though `jumps` clocks jumped meanwhile."""
        return renewed_s + self.ttl_s / (1 + CLOCK_SKEW_MAX) - STALL_UNSEEN_S * (1 + jumps)


class LeaseHolder:
    """One lease at a time."""

    def __init__(self, number: int, stage: Stage, chance: Stream, timeline: Timeline) -> None:
        self._name = f"holder {number}"
        self._stage = stage
        self._chance = chance
        self._timeline = timeline
        self.leases: list[HeldLease] = []

    async def run(self) -> None:
        while not self._stage.is_over:
            await asyncio.sleep(self._chance.between(0.05, 0.5))
            await self._hold()

    async def _hold(self) -> None:
        member = self._stage.choose(self._chance)
        if member is None:
            return
        ttl_s, begin_s = self._chance.randrange(1, LEASE_TTL_S_MAX + 1), self._stage.now_s
        granted = await attempt(self._stage, member, lambda parts: parts.store.lease_grant(ttl_s))
        if isinstance(granted, Outcome):
            return
        held = HeldLease(granted.lease, ttl_s, begin_s, renewals=[begin_s])
        self.leases.append(held)
        self._timeline.add(self._name, "client", f"lease {held.lease:x} of {ttl_s} s granted at {member.name}")
        await self._attach(held, self._chance.randrange(1, KEYS_MAX + 1))
        for _ in range(self._chance.randrange(8)):
            await asyncio.sleep(ttl_s / KEEPALIVES_PER_TTL * self._chance.between(*RENEWAL_SPREAD))
            if self._stage.is_over or not await self._renew(held):
                return
        if self._chance.happens(0.2):
            await self._detach(held)
        if self._chance.happens(0.2) and (last := self._stage.choose(self._chance)) is not None:
            held.revoked_s = self._stage.now_s
            await attempt(self._stage, last, lambda parts: parts.store.lease_revoke(held.lease))

    async def _attach(self, held: HeldLease, count: int) -> None:
        """One key by itself, or some in one transaction."""
        member = self._stage.choose(self._chance)
        if member is None:
            return
        puts = [PutOp(_key(held, place), b"here", held.lease) for place in range(count)]

        async def work(parts: Parts) -> None:
            try:
                if count == 1:
                    await parts.store.put(puts[0].key, puts[0].value, lease=held.lease)
                else:
                    await parts.store.txn([], puts, request_id=f"lease {held.lease}")
            except NotFound:
                held.is_told_gone = True

        await attempt(self._stage, member, work)

    async def _detach(self, held: HeldLease) -> None:
        """A key that is put again without the lease outlives it."""
        member = self._stage.choose(self._chance)
        if member is not None:
            await attempt(self._stage, member, lambda parts: parts.store.put(_key(held, 0), b"for good"))

    async def _renew(self, held: HeldLease) -> bool:
        member = self._stage.choose(self._chance)
        if member is None:
            return True
        held.asked_s = begin_s = self._stage.now_s
        unknown = await attempt(self._stage, member, lambda parts: parts.store.lease_keepalive([held.lease]))
        if isinstance(unknown, Outcome):
            return True
        if held.lease in unknown:
            held.is_told_gone = True
            self._timeline.add(self._name, "client", f"lease {held.lease:x} is gone, says {member.name}")
            return False
        held.renewals.append(begin_s)
        self._timeline.add(self._name, "client", f"lease {held.lease:x} renewed at {member.name}; since {begin_s:.6f}")
        return True


def _key(held: HeldLease, place: int) -> bytes:
    return LEASE_PREFIX + f"{held.lease}/{place}".encode()
