"""What is concluded from the gateway's admin API."""

import pytest
from quorate_cli.gateway_api import GatewayEndpoints, GatewayRoute, GatewayRoutes, serves

ROUTES = GatewayRoutes.model_validate(
    [{"name": "orders", "service": "order", "endpoints": 1, "route": {"match": {"path_prefix": "/orders"}}}]
)


def endpoints(*addresses: str, routed: bool = True) -> GatewayEndpoints:
    found = [{"service": "order", "instance": f"order-{at}", "address": address, "routed": routed}
             for at, address in enumerate(addresses, 1)]  # fmt: skip
    return GatewayEndpoints.model_validate(found)


@pytest.mark.parametrize(
    ("known", "wanted", "is_served"),
    [
        (endpoints("a:1", "a:2"), {"order": {"a:1", "a:2"}}, True),
        (endpoints("a:1"), {"order": {"a:1", "a:2"}}, False),
        (endpoints("a:9"), {"order": {"a:1"}}, False),
        (endpoints("a:1", routed=False), {"order": {"a:1"}}, False),
        (endpoints(), {"inventory": {"a:3"}}, True),
    ],
)
def test_services_are_served_when_each_instance_of_a_routed_service_gets_requests_where_it_is_now(
    known: GatewayEndpoints, wanted: dict[str, set[str]], is_served: bool
) -> None:
    assert serves(ROUTES, known, wanted) is is_served


@pytest.mark.parametrize(
    ("match", "text"),
    [
        ({"path_prefix": "/orders"}, "/orders…"),
        ({"path": "/orders/today", "methods": ["GET", "POST"], "host": "shop.example.com"},
         "GET,POST /orders/today on shop.example.com"),
        ({"path_prefix": "/", "headers": {"x-channel": "web"}}, "/… with x-channel"),
    ],
)  # fmt: skip
def test_a_route_is_told_by_what_it_takes(match: dict[str, object], text: str) -> None:
    assert GatewayRoute(name="r", service="s", endpoints=1, route={"match": match}).matches == text
