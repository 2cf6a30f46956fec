"""The fault switch at work: some or all answers about stock come late or not at all, as the live settings say."""

import asyncio

from quorate_core.errors import Unavailable

from quorate_inventory.settings import LiveInventorySettings


class FaultSwitch:
    """Called before a request is answered. It follows the live settings from request to request."""

    def __init__(self, settings: LiveInventorySettings) -> None:
        self._settings = settings
        self._due_percent = 0

    async def __call__(self) -> None:
        """Return at once or late. Raises Unavailable in mode `fail`."""
        fault = self._settings.current.fault
        if fault.mode == "off" or not self._is_due(fault.percent):
            return
        if fault.mode == "fail":
            raise Unavailable("the fault switch is on: fault.mode in inventory/settings.yaml is 'fail'")
        await asyncio.sleep(fault.delay_ms / 1_000)

    def _is_due(self, percent: int) -> bool:
        """Each request adds its share, so that just `percent` of a hundred are met, without a lot being drawn."""
        self._due_percent += percent
        if self._due_percent < 100:
            return False
        self._due_percent -= 100
        return True
