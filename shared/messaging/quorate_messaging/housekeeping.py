"""Keeps outbox and inbox small, shows what waits in them, and heals what a wall clock that went back has left.

An inbox row must outlive every repetition of its event: what a relay sends again it has sent first at most its
attempts' worth of backoffs ago, about a day. Forgetting is therefore a week away.
"""

import asyncio

import structlog
from prometheus_client import Gauge
from quorate_core.clock import Clock
from quorate_core.errors import QuorateError

from quorate_messaging.database import Database
from quorate_messaging.delivery import DeliveryStatus, RelayPolicy
from quorate_messaging.inbox import Inbox
from quorate_messaging.outbox import Outbox

log = structlog.get_logger(__name__)

INTERVAL_S = 15.0
OUTBOX_RETENTION_S = 24 * 3600.0
INBOX_RETENTION_S = 7 * 24 * 3600.0
PRUNED_ROWS_MAX = 500
"""Rows deleted in one transaction, so that no request waits long behind it."""

OUTBOX_EVENTS = Gauge("quorate_messaging_outbox_events", "Events in the outbox that are not delivered", ("status",))


class Housekeeping:
    def __init__(
        self, database: Database, outbox: Outbox, inbox: Inbox, clock: Clock, policy: RelayPolicy | None = None
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._inbox = inbox
        self._clock = clock
        policy = policy or RelayPolicy()
        self._due_in_s_max = max(policy.lease_s, policy.backoff_s_max)

    async def run(self) -> None:
        """Tidy up now and then until cancelled."""
        while True:
            try:
                await self.tidy()
            except QuorateError as error:
                log.warning("housekeeping_put_off", error=error.detail)
            await asyncio.sleep(INTERVAL_S)

    async def tidy(self) -> None:
        """One round. Raises Unavailable."""
        now_s = self._clock.wall_s()
        async with self._database.writing() as connection:
            await self._outbox.bring_forward(connection, now_s + self._due_in_s_max, now_s)
            await self._outbox.prune(connection, now_s - OUTBOX_RETENTION_S, PRUNED_ROWS_MAX)
            await self._inbox.prune(connection, now_s - INBOX_RETENTION_S, PRUNED_ROWS_MAX)
        async with self._database.reading() as connection:
            counts = await self._outbox.counts(connection)
        for status in (DeliveryStatus.PENDING, DeliveryStatus.DEAD):
            OUTBOX_EVENTS.labels(status.value).set(counts.get(status, 0))
