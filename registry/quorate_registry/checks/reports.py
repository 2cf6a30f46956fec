"""What checks have decided, into the store."""

import structlog
from quorate_core.clock import Clock
from quorate_core.errors import QuorateError

from quorate_registry.checks.doubt import Doubt
from quorate_registry.model import Entry, Health
from quorate_registry.registrar import Registrar

log = structlog.get_logger(__name__)


class Reports:
    def __init__(self, node_name: str, registrar: Registrar, clock: Clock) -> None:
        self._node_name = node_name
        self._registrar = registrar
        self._clock = clock
        self._has_trouble = False
        # With the store; it is said once.

    async def write(self, entry: Entry, is_passing: bool, output: str, doubt: Doubt | None = None) -> bool:
        """False when the store has not taken it: it cannot, or it has another record or another result by now."""
        health = Health(
            passing=is_passing, output=output, checked_by=self._node_name,
            changed_at_ms=round(1_000 * self._clock.wall_s()),
            doubt_since_ms=0 if doubt is None else doubt.since_ms, held_since_ms=0 if doubt is None else doubt.held_ms,
        )  # fmt: skip
        try:
            is_written = await self._registrar.report_health(
                entry.name, entry.record_revision, health, entry.health_revision
            )
        except QuorateError as error:
            if not self._has_trouble:
                self._has_trouble = True
                log.warning("registry_health_not_written", instance=str(entry.name), reason=error.detail)
            return False
        self._has_trouble = False
        if is_written:
            log.info(
                "registry_health_changed", instance=str(entry.name), passing=is_passing, in_doubt=doubt is not None,
                output=output,
            )  # fmt: skip
        return is_written
