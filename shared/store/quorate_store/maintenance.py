"""The store's housekeeping: freeing what compaction has left, the quota, and history that is bounded.

Sweeping is local and in slices. Quota and compaction are proposed by the leader, as log entries.
"""

import asyncio
from collections.abc import Callable

import structlog
from quorate_core.errors import InvariantViolation, QuorateError

from quorate_store.commands import Compact, SetQuota, encode_command
from quorate_store.database import QUOTA_BYTES_DEFAULT
from quorate_store.replicated_log import ReplicatedLog
from quorate_store.state import StateMachine

INTERVAL_S = 1.0
SWEEP_SLICE_ROWS = 256
"""Rows looked at in one turn of the event loop: about a millisecond."""
HISTORY_REVISIONS_KEPT_DEFAULT = 100_000
"""Watches resume and old values are read this far back; what is older is compacted away."""
PROPOSE_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


class Maintenance:
    def __init__(
        self,
        replicated_log: ReplicatedLog,
        machine: StateMachine,
        is_leading: Callable[[], bool],
        *,
        quota_bytes: int = QUOTA_BYTES_DEFAULT,
        history_revisions_kept: int = HISTORY_REVISIONS_KEPT_DEFAULT,
    ) -> None:
        self._log = replicated_log
        self._machine = machine
        self._is_leading = is_leading
        self._quota_bytes = quota_bytes
        self._history_revisions_kept = history_revisions_kept

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            while not self._machine.is_swept:
                self._machine.sweep(SWEEP_SLICE_ROWS)
                await asyncio.sleep(0)
            if self._is_leading():
                try:
                    await self.lead()
                except InvariantViolation:
                    raise
                except QuorateError as error:
                    log.info("maintenance_postponed", reason=error.detail)
            await asyncio.sleep(INTERVAL_S)

    async def lead(self) -> None:
        """What is the leader's to propose: the quota that its settings name, and the end of old history."""
        machine, kept = self._machine, self._history_revisions_kept
        if machine.quota_bytes != self._quota_bytes:
            log.info("quota_set", quota_bytes=self._quota_bytes, before_bytes=machine.quota_bytes)
            await self._log.propose(encode_command(SetQuota(self._quota_bytes)), PROPOSE_TIMEOUT_S)
        # A tenth more than is kept, so that a busy store is compacted now and then and not all the time.
        if machine.revision - machine.compact_revision > kept + kept // 10 + 1:
            await self._log.propose(encode_command(Compact(machine.revision - kept)), PROPOSE_TIMEOUT_S)
