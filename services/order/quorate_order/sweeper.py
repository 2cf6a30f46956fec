"""The sweeper: no order waits for ever. Every instance sweeps; that two of them meet on an order does no harm."""

import asyncio

import structlog
from quorate_core.errors import QuorateError

from quorate_order.handlers import OVERDUE_ORDERS_MAX, OrderHandlers

log = structlog.get_logger(__name__)

SWEEP_INTERVAL_S = 1.0


async def run_sweeper(handlers: OrderHandlers) -> None:
    """Cancel overdue orders until cancelled."""
    while True:
        try:
            more = await handlers.cancel_overdue() == OVERDUE_ORDERS_MAX
        except QuorateError as error:
            log.warning("sweep_put_off", error=error.detail)
            more = False
        await asyncio.sleep(0 if more else SWEEP_INTERVAL_S)
