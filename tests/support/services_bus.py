"""A bus in this process that a test makes fail, refuse, hang, or deliver twice."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable

from quorate_messaging import Event, Outcome, Verdict
from quorate_messaging.delivery import DELIVERED

RETRY = Outcome(Verdict.RETRY, "the consumer is away")
REFUSED = Outcome(Verdict.REFUSED, "the consumer cannot read it")

Consumer = Callable[[Event], Awaitable[None]]


class ScriptedBus:
    """Delivers to `consumer`, unless `script` has another outcome for the aggregate's next attempt; remembers all."""

    def __init__(self, consumer: Consumer | None = None, script: dict[str, list[Outcome]] | None = None) -> None:
        self._consumer = consumer
        self._script = {aggregate_id: deque(outcomes) for aggregate_id, outcomes in (script or {}).items()}
        self._changed = asyncio.Condition()
        self.attempts: list[Event] = []
        self.delivered: list[Event] = []
        self.answering = asyncio.Event()
        """While it is not set, attempts hang after they were noted."""
        self.answering.set()

    async def publish(self, event: Event) -> Outcome:
        await self._remember(self.attempts, event)
        await self.answering.wait()
        script = self._script.get(event.aggregate_id)
        outcome = script.popleft() if script else DELIVERED
        if outcome.verdict is Verdict.DELIVERED:
            if self._consumer is not None:
                await self._consumer(event)
            await self._remember(self.delivered, event)
        return outcome

    async def attempted(self, count: int) -> None:
        """Wait until `count` attempts were made."""
        await self._until(lambda: len(self.attempts) >= count)

    async def has_delivered(self, count: int) -> None:
        await self._until(lambda: len(self.delivered) >= count)

    async def _remember(self, where: list[Event], event: Event) -> None:
        async with self._changed:
            where.append(event)
            self._changed.notify_all()

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(condition)


class FaultyBus:
    """Delivers to `consumer` as a bad network does, by a seeded lot: loses events, loses answers, delivers twice,
    and brings an old event again long after, out of order."""

    def __init__(self, consumer: Consumer, lot: random.Random, fault_share: float = 0.5) -> None:
        self._consumer = consumer
        self._lot = lot
        self._fault_share = fault_share
        self._history: list[Event] = []

    async def publish(self, event: Event) -> Outcome:
        if self._lot.random() >= self._fault_share:
            return await self._deliver(event)
        match self._lot.choice(("lost", "answer lost", "twice", "old one again")):
            case "lost":
                return RETRY
            case "answer lost":
                await self._deliver(event)
                return RETRY
            case "twice":
                await asyncio.gather(self._deliver(event), self._deliver(event))
                return DELIVERED
            case _:
                if self._history:
                    await self._deliver(self._lot.choice(self._history))
                return await self._deliver(event)

    async def _deliver(self, event: Event) -> Outcome:
        self._history.append(event)
        await self._consumer(event)
        return DELIVERED
