"""What commands read of the gateway's admin API. Fields that it adds later are not in the way."""

from pydantic import BaseModel, RootModel


class GatewayRateLimit(BaseModel):
    """Such as `100 requests a second, 200 at once, by client`, and how many requests were over it."""

    summary: str
    limited: int


class GatewayBreaker(BaseModel):
    """`state`: `closed`, `half-open`, `open`, `forced-open` or `forced-closed`; the counts are those it rests on."""

    state: str
    calls: int
    failed: int
    slow: int
    retry_after_s: float

    @property
    def shown(self) -> str:
        """Such as `closed`, `open for 3.2 s (6 of 10 failed or slow)`."""
        counted = f"{self.failed + self.slow} of {self.calls} failed or slow"
        match self.state:
            case "open":
                return f"open for {self.retry_after_s:.1f} s ({counted})"
            case "half-open":
                return f"half-open ({counted})"
            case _:
                return self.state


class PolicyMet(BaseModel):
    """A policy that a request would meet, and whether it would let it through now."""

    policy: str
    lets_through: bool
    summary: str


class RouteDestination(BaseModel):
    """One place that a route leads to. `version` null: every one of the service."""

    service: str
    version: str | None = None
    weight: int = 1

    @property
    def shown(self) -> str:
        """Such as `order`, `order@v2`."""
        return self.service if self.version is None else f"{self.service}@{self.version}"


class GatewayRoute(BaseModel):
    """One served route. `endpoints`: to how many instances it leads now."""

    name: str
    service: str
    endpoints: int
    route: dict[str, object]
    destinations: list[RouteDestination] = []
    balance: str = ""
    rate_limit: GatewayRateLimit | None = None
    circuit_breaker: GatewayBreaker | None = None

    @property
    def matches(self) -> str:
        """Such as `/orders…`, or `GET,POST /orders/today on shop.example.com`."""
        match = self.route.get("match")
        if not isinstance(match, dict):
            return "?"
        methods = ",".join(map(str, match.get("methods") or ()))
        path = str(match.get("path") or match.get("path_template") or f"{match.get('path_prefix', '')}…")
        query = "&".join(f"{name}={value}" for name, value in (match.get("query") or {}).items())
        path += f"?{query}" if query else ""
        host = f"on {match['host']}" if match.get("host") else ""
        headers = "with " + ", ".join(map(str, match["headers"])) if match.get("headers") else ""
        return " ".join(word for word in (methods, path, host, headers) if word)

    @property
    def leads_to(self) -> str:
        """Such as `order`, or `95 % order@v1, 5 % order@v2`."""
        total = sum(share.weight for share in self.destinations)
        if len(self.destinations) < 2 or not total:
            return self.destinations[0].shown if self.destinations else self.service
        return ", ".join(f"{100 * share.weight / total:.3g} % {share.shown}" for share in self.destinations)

    @property
    def services(self) -> set[str]:
        return {share.service for share in self.destinations} or {self.service}


class RejectedRoutes(BaseModel):
    """What was published last, when it is not served, and why."""

    version: int
    reason: str


class GatewaySnapshot(BaseModel):
    """What is served. `stale_s`: 0 while the control plane confirms it, else for how long it has not."""

    revision: int
    routes_version: int
    connected: bool
    stale_s: float
    rejected: RejectedRoutes | None = None


class GatewayRoutes(RootModel[list[GatewayRoute]]):
    pass


class GatewayEndpoint(BaseModel):
    """One instance of a service that a route names."""

    service: str
    instance: str
    address: str
    routed: bool


class GatewayEndpoints(RootModel[list[GatewayEndpoint]]):
    pass


class Considered(BaseModel):
    route: str
    refused_by: str | None


class Share(RouteDestination):
    """One place that a request may go to, and its part of such requests."""

    percent: float
    endpoints: list[str]


class Explanation(BaseModel):
    """Where a request goes. `rule` is the gateway's own answer when it goes nowhere."""

    route: str | None
    service: str | None
    upstream_target: str | None
    upstream_host: str | None = None
    endpoints: list[str]
    shares: list[Share] = []
    rule: str | None
    considered: list[Considered]
    policies: list[PolicyMet] = []


def serves(routes: GatewayRoutes, endpoints: GatewayEndpoints, addresses: dict[str, set[str]]) -> bool:
    """Whether requests go to all of `addresses` (by service), as far as routes lead to their services at all."""
    routed = {(found.service, found.address) for found in endpoints.root if found.routed}
    named = {service for route in routes.root for service in route.services}
    return all((service, address) in routed for service in named & addresses.keys() for address in addresses[service])
