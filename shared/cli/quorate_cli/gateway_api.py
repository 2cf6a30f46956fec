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


class GatewayRoute(BaseModel):
    """One served route. `endpoints`: to how many instances it leads now."""

    name: str
    service: str
    endpoints: int
    route: dict[str, object]
    rate_limit: GatewayRateLimit | None = None
    circuit_breaker: GatewayBreaker | None = None

    @property
    def matches(self) -> str:
        """Such as `/orders…`, or `GET,POST /orders/today on shop.example.com`."""
        match = self.route.get("match")
        if not isinstance(match, dict):
            return "?"
        methods = ",".join(map(str, match.get("methods") or ()))
        path = str(match.get("path") or f"{match.get('path_prefix', '')}…")
        host = f"on {match['host']}" if match.get("host") else ""
        headers = "with " + ", ".join(map(str, match["headers"])) if match.get("headers") else ""
        return " ".join(word for word in (methods, path, host, headers) if word)


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


class Explanation(BaseModel):
    """Where a request goes. `rule` is the gateway's own answer when it goes nowhere."""

    route: str | None
    service: str | None
    upstream_target: str | None
    endpoints: list[str]
    rule: str | None
    considered: list[Considered]
    policies: list[PolicyMet] = []


def serves(routes: GatewayRoutes, endpoints: GatewayEndpoints, addresses: dict[str, set[str]]) -> bool:
    """Whether requests go to all of `addresses` (by service), as far as routes lead to their services at all."""
    routed = {(found.service, found.address) for found in endpoints.root if found.routed}
    named = {route.service for route in routes.root}
    return all((service, address) in routed for service in named & addresses.keys() for address in addresses[service])
