"""Event buses: how an event leaves a service. `http` is the embedded default: CloudEvents over HTTP."""

from typing import Protocol

from quorate_messaging.delivery import Outcome
from quorate_messaging.event import Event


class Bus(Protocol):
    async def publish(self, event: Event) -> Outcome:
        """Hand `event` to whoever consumes its type. DELIVERED means that they have it durably."""
        ...
