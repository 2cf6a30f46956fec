"""The relay: sends what is due in an outbox, at least once, in order for one aggregate, whoever relays.

Any number of relays work on one database. Theory of operation, a turn at a time: what ended since the last turn is
written down and, in the same transaction, what has become due is claimed under a lease; then every claimed event is
sent by a task of its own, and its end wakes the next turn. So a busy relay writes one transaction for many events. A
turn without news only reads.

What can go wrong costs a repeated send and never a lost one: a relay that dies, or whose lease ends before it is
heard of again, leaves its events due; the consumer's inbox knows them.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import Counter
from quorate_core.clock import Clock
from quorate_core.errors import QuorateError
from quorate_core.tasks import TaskOwner
from sqlalchemy.ext.asyncio import AsyncConnection

from quorate_messaging.bus import Bus
from quorate_messaging.database import Database
from quorate_messaging.delivery import DeliveryStatus, Outcome, RelayPolicy, Verdict, state_after
from quorate_messaging.outbox import Claimed, Head, Outbox

log = structlog.get_logger(__name__)

WAIT_S_MIN = 0.01
"""A turn that could claim nothing although something is due (another relay was first) does not spin."""
STOP_GRACE_S = 1.0
"""Beyond the send timeout, for writing down what ended last."""

ATTEMPTS = Counter(
    "quorate_messaging_delivery_attempts_total", "Attempts to deliver an event, by how they ended", ("verdict",)
)
DEAD_LETTERS = Counter("quorate_messaging_dead_letters_total", "Events that were given up", ("type",))


@dataclass(frozen=True, slots=True)
class _Ended:
    claimed: Claimed
    outcome: Outcome


class Relay:
    """Delivers the events of `outbox` over `bus`.

    `owner` names this relay among those on the database; one that starts anew under the same name takes over what it
    had claimed. Call `wake` after a commit that added events; others are seen at the next poll.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        bus: Bus,
        owner: str,
        clock: Clock,
        policy: RelayPolicy | None = None,
        lot: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._bus = bus
        self._owner = owner
        self._clock = clock
        self._policy = policy or RelayPolicy()
        self._lot = lot
        self._news = asyncio.Event()
        self._stopping = False
        self._finished = asyncio.Event()
        self._taken_over = False
        self._under_way: dict[str, Claimed] = {}
        """What this relay has claimed and not yet written down the end of; at most `concurrency_max`."""
        self._ended: list[_Ended] = []
        """Ends that are not written down yet; each is in `_under_way` too."""

    def wake(self) -> None:
        """There may be something to deliver."""
        self._news.set()

    async def stop(self) -> None:
        """Claim no more, and return when what is under way has ended and is written down.

        That takes at most the send timeout and STOP_GRACE_S; what is not written down by then is sent again later.
        """
        self._stopping = True
        self._news.set()
        try:
            async with asyncio.timeout(self._policy.send_timeout_s + STOP_GRACE_S):
                await self._finished.wait()
        except TimeoutError:
            log.warning("relay_stopped_with_events_under_way", events=len(self._under_way))

    async def run(self) -> None:
        """Relay until `stop`. A database that is away is waited out."""
        try:
            async with TaskOwner("deliveries") as deliveries:
                await self._relay(deliveries)
        finally:
            self._finished.set()

    async def _relay(self, deliveries: TaskOwner) -> None:
        while True:
            self._news.clear()
            wait_s = await self._turn(deliveries)
            if self._stopping and not self._under_way:
                return
            try:
                async with asyncio.timeout(max(WAIT_S_MIN, wait_s)):
                    await self._news.wait()
            except TimeoutError:
                pass  # the poll

    async def _turn(self, deliveries: TaskOwner) -> float:
        """Write down what ended, claim what is due, start sending it. Returns seconds until the next turn."""
        try:
            if self._taken_over and not self._ended:
                wait_s = await self._due_in_s()
                if wait_s > 0:
                    return wait_s
            claimed, wait_s = await self._settle_and_claim()
        except QuorateError as error:
            log.warning("relay_waits_for_database", error=error.detail)
            return self._policy.poll_interval_s
        for each in claimed:
            self._under_way[each.event.id] = each
            deliveries.start(self._deliver(each), each.event.id)
        return wait_s

    async def _due_in_s(self) -> float:
        """Seconds until something may be claimed, by reading alone; 0 when it is now."""
        if self._stopping or len(self._under_way) >= self._policy.concurrency_max:
            return self._policy.poll_interval_s
        async with self._database.reading() as connection:
            heads = await self._outbox.heads(connection, len(self._under_way) + 1)
        return self._until_first_due_s([head for head in heads if head.id not in self._under_way])

    async def _settle_and_claim(self) -> tuple[list[Claimed], float]:
        ended = list(self._ended)
        still_under_way = self._under_way.keys() - {each.claimed.event.id for each in ended}
        async with self._database.writing() as connection:
            if not self._taken_over:
                await self._outbox.free_leases(connection, self._owner, self._clock.wall_s())
            await self._settle(connection, ended)
            claimed, wait_s = await self._claim(connection, still_under_way)
        self._taken_over = True
        del self._ended[: len(ended)]
        for each in ended:
            del self._under_way[each.claimed.event.id]
        return claimed, wait_s

    async def _settle(self, connection: AsyncConnection, ended: Sequence[_Ended]) -> None:
        delivered = [each.claimed.event.id for each in ended if each.outcome.verdict is Verdict.DELIVERED]
        if delivered:
            await self._outbox.mark_delivered(connection, delivered)
        for each in ended:
            if each.outcome.verdict is Verdict.DELIVERED:
                continue
            event = each.claimed.event
            state = state_after(self._policy, each.claimed.attempts + 1, each.outcome, self._clock.wall_s(), self._lot)
            mine = await self._outbox.mark_failed(connection, event.id, self._owner, state)
            if mine and state.status is DeliveryStatus.DEAD:
                DEAD_LETTERS.labels(event.type).inc()
                log.error(
                    "event_given_up", event_id=event.id, type=event.type, aggregate_id=event.aggregate_id,
                    attempts=each.claimed.attempts + 1, error=state.last_error,
                )  # fmt: skip

    async def _claim(self, connection: AsyncConnection, under_way: Collection[str]) -> tuple[list[Claimed], float]:
        """What is claimed now, and seconds until more may be."""
        places = self._policy.concurrency_max - len(under_way)
        if self._stopping or places == 0:
            return [], self._policy.poll_interval_s
        heads = await self._outbox.heads(connection, places + len(under_way) + 1)
        heads = [head for head in heads if head.id not in under_way]
        now_s = self._clock.wall_s()
        due = [head.id for head in heads if head.due_at_s <= now_s][:places]
        rest = heads[len(due) :]
        claimed = await self._outbox.claim(connection, due, self._owner, now_s, self._policy.lease_s) if due else []
        return claimed, self._until_first_due_s(rest)

    def _until_first_due_s(self, heads: Sequence[Head]) -> float:
        if not heads:
            return self._policy.poll_interval_s
        return min(self._policy.poll_interval_s, max(0.0, heads[0].due_at_s - self._clock.wall_s()))

    async def _deliver(self, claimed: Claimed) -> None:
        try:
            async with asyncio.timeout(self._policy.send_timeout_s):
                outcome = await self._bus.publish(claimed.event)
        except TimeoutError:
            outcome = Outcome(Verdict.RETRY, f"no answer within {self._policy.send_timeout_s:g} s")
        except Exception as error:  # a defect of the bus must not lose the event, nor stop the others
            log.exception("bus_failed", event_id=claimed.event.id)
            outcome = Outcome(Verdict.RETRY, f"{type(error).__name__}: {error}")
        ATTEMPTS.labels(outcome.verdict.value).inc()
        if outcome.verdict is not Verdict.DELIVERED:
            log.info("event_not_delivered", event_id=claimed.event.id, type=claimed.event.type,
                     attempts=claimed.attempts + 1, verdict=outcome.verdict.value, error=outcome.detail)  # fmt: skip
        self._ended.append(_Ended(claimed, outcome))
        self._news.set()
