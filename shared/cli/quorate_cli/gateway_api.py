"""What commands read of the gateway's admin API. Fields that it adds later are not in the way."""

from pydantic import BaseModel, RootModel


class GatewayRoute(BaseModel):
    """One served route. `endpoints`: to how many instances it leads now."""

    name: str
    service: str
    endpoints: int
    route: dict[str, object]

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


def serves(routes: GatewayRoutes, endpoints: GatewayEndpoints, addresses: dict[str, set[str]]) -> bool:
    """Whether requests go to all of `addresses` (by service), as far as routes lead to their services at all."""
    routed = {(found.service, found.address) for found in endpoints.root if found.routed}
    named = {route.service for route in routes.root}
    return all((service, address) in routed for service in named & addresses.keys() for address in addresses[service])
