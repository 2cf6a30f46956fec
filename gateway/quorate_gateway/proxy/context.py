"""What an exchange needs of the data plane around it: the port between the two."""

from collections.abc import Callable, Sequence
from typing import Protocol

from quorate_resilience.shedding import LoadShedder

from quorate_gateway.documents.destinations import Destination
from quorate_gateway.matching import CompiledRoute, Endpoint
from quorate_gateway.proxy.counters import PlaneCounters
from quorate_gateway.proxy.upstream import EndpointPool


class Choosing(Protocol):
    """Chooses endpoints, and is told of each try that it began and that it ended; see `Balancing`."""

    def pick(
        self, route: CompiledRoute, destination: Destination, tried: Sequence[Endpoint], key: bytes
    ) -> Endpoint | None: ...

    def began(self, endpoint: Endpoint, now_s: float) -> None: ...

    def ended(self, endpoint: Endpoint, now_s: float, latency_s: float | None, failed: bool | None) -> None: ...


class ExchangeContext(Protocol):
    @property
    def monotonic_s(self) -> Callable[[], float]: ...

    @property
    def wall_s(self) -> Callable[[], float]: ...

    @property
    def counters(self) -> PlaneCounters: ...

    @property
    def load(self) -> LoadShedder: ...

    @property
    def balancing(self) -> Choosing: ...

    def pool(self, endpoint: Endpoint) -> EndpointPool: ...
