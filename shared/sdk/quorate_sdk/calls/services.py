"""The services that a client calls, each with its endpoints, its circuit breaker and its retry budget.

State belongs to one client, as connections do: two clients of a process learn apart. It is kept for the SERVICES_MAX
services that were called last.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from quorate_resilience import CircuitBreaker, Transition
from quorate_resilience.retry_budget import RetryBudget

from quorate_sdk.calls.endpoints import ServiceEndpoints
from quorate_sdk.calls.options import BALANCE_DEFAULT, CallSettings, require_balance
from quorate_sdk.forks import ForkSafeLogger
from quorate_sdk.wire import Instance

SERVICES_MAX = 1_024
INSTANCES_TOLD_MAX = 8
"""In the text of an error."""

BreakerListener = Callable[[str, Transition], None]
"""Is told the service's name and each change of its breaker's state, by whoever's call has caused it."""

log = ForkSafeLogger(__name__)


class Instances(Protocol):
    """Who knows the instances of services."""

    @property
    def namespace(self) -> str: ...

    @property
    def revision(self) -> int: ...

    def instances(self, service: str) -> Sequence[Instance]:
        """The same object until something changes."""
        ...


class CalledService:
    """One service, as one client sees it."""

    def __init__(self, name: str, settings: CallSettings, zone: str, chance: random.Random) -> None:
        self.name = name
        self.endpoints = ServiceEndpoints(settings.ejection, zone, chance.random)
        self.budget = RetryBudget(settings.retry_percent)
        self.breaker = None if settings.circuit_breaker is None else CircuitBreaker(settings.circuit_breaker)


class Services:
    """Plain state without a lock: one event loop, or whoever holds a lock, owns it."""

    def __init__(
        self,
        known: Instances,
        settings: CallSettings | None = None,
        *,
        balance: str = BALANCE_DEFAULT,
        zone: str = "",
        chance: random.Random | None = None,
        listeners: Sequence[BreakerListener] = (),
    ) -> None:
        """`zone`: where the caller stands; its own zone's instances are preferred. Raises ValueError for a balance that
        is none."""
        self.known = known
        self.settings = settings or CallSettings()
        self.balance = require_balance(balance)
        self.chance = chance or random.Random()
        self._zone = zone
        self._listeners = tuple(listeners)
        self._called: OrderedDict[str, CalledService] = OrderedDict()

    def service(self, name: str, now_s: float) -> CalledService:
        """With its instances of the moment."""
        called = self._called.get(name)
        if called is None:
            called = self._called[name] = CalledService(name, self.settings, self._zone, self.chance)
            if len(self._called) > SERVICES_MAX:
                self._called.popitem(last=False)
        else:
            self._called.move_to_end(name)
        called.endpoints.follow(self.known.instances(name), now_s)
        return called

    def tell(self, called: CalledService) -> None:
        """Log and tell the changes of its breaker's state."""
        if called.breaker is None:
            return
        for change in called.breaker.take_transitions():
            log.warning(
                "circuit_breaker_changed", service=called.name, former=change.former.value, state=change.state.value,
                calls=change.counts.calls, failed=change.counts.failed, slow=change.counts.slow,
            )  # fmt: skip
            for listener in self._listeners:
                listener(called.name, change)

    def why_nobody(self, name: str) -> str:
        """Why there is no instance to ask."""
        known = self.known.instances(name)
        if known:
            told = known[:INSTANCES_TOLD_MAX]
            states = ", ".join(f"{one.id} {one.scheme} {one.status} weight {one.weight}" for one in told)
            return f"service {name!r} has no instance that takes HTTP traffic ({states})"
        if not self.known.revision:
            return f"service {name!r} is not known: the registry has not answered yet"
        return f"service {name!r} has no registered instance in namespace {self.known.namespace!r}"
