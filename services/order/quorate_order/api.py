"""The order service over HTTP. `POST /orders/events` is the bus's: it takes CloudEvents of other services."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints
from quorate_messaging.bus.http import event_of_request, require_sender

from quorate_order.handlers import OrderHandlers
from quorate_order.model import Order, OrderLine, OrderStatus
from quorate_order.ports import Orders
from quorate_order.settings import LINES_MAX, QUANTITY_MAX, LiveOrderSettings, OrderSettings

PAGE_ORDERS_MAX = 100
Sku = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
OrderId = Annotated[str, Path(max_length=64)]


class LineBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sku: Sku
    quantity: Annotated[StrictInt, Field(ge=1, le=QUANTITY_MAX)]


class PlaceOrderBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    customer: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    lines: Annotated[list[LineBody], Field(min_length=1, max_length=LINES_MAX)]


class Accepted(BaseModel):
    id: str
    status: OrderStatus


class OrderBody(BaseModel):
    """`reason` is there when the order was rejected or cancelled. Times are RFC 3339, UTC."""

    id: str
    status: OrderStatus
    reason: str | None = None
    customer: str
    lines: list[LineBody]
    placed_at: str
    changed_at: str


class OrderPage(BaseModel):
    """Newest first. `next`, when there may be more, is what to send as `after`."""

    orders: list[OrderBody]
    next: str | None = None


class SettingsBody(BaseModel):
    """The live settings in force. `version` and `revision` are the document's; 0 means the defaults."""

    version: int
    revision: int
    settings: OrderSettings


def order_routes(handlers: OrderHandlers, orders: Orders, settings: LiveOrderSettings, token: str | None) -> APIRouter:
    """`token` is what events must bring, if there is one."""
    routes = APIRouter()

    @routes.post("/orders", status_code=202, response_model=Accepted)
    async def place_order(body: PlaceOrderBody, response: Response) -> Any:
        lines = tuple(OrderLine(line.sku, line.quantity) for line in body.lines)
        order = await handlers.place(body.customer, lines)
        response.headers["location"] = f"/orders/{order.id}"
        return Accepted(id=order.id, status=order.status)

    @routes.get("/orders", response_model=OrderPage, response_model_exclude_none=True)
    async def list_orders(
        limit: Annotated[int, Query(ge=1, le=PAGE_ORDERS_MAX)] = 20,
        after: Annotated[str | None, Query(max_length=64)] = None,
    ) -> Any:
        return _page(await orders.page(limit, after), limit)

    @routes.get("/orders/settings", response_model=SettingsBody)
    async def live_settings() -> Any:
        return SettingsBody(version=settings.version, revision=settings.revision, settings=settings.current)

    @routes.get("/orders/{order_id}", response_model=OrderBody, response_model_exclude_none=True)
    async def get_order(order_id: OrderId) -> Any:
        return _body(await handlers.find(order_id))

    @routes.post("/orders/events", status_code=204)
    async def take_event(request: Request) -> Response:
        require_sender(request.headers, token)
        await handlers.on_event(event_of_request(request.headers, await request.body()))
        return Response(status_code=204)

    @routes.post("/orders/{order_id}/cancel", response_model=OrderBody, response_model_exclude_none=True)
    async def cancel_order(order_id: OrderId) -> Any:
        return _body(await handlers.cancel(order_id))

    return routes


def _page(found: Sequence[Order], limit: int) -> OrderPage:
    return OrderPage(orders=[_body(order) for order in found], next=found[-1].id if len(found) == limit else None)


def _body(order: Order) -> OrderBody:
    return OrderBody(
        id=order.id,
        status=order.status,
        reason=order.reason,
        customer=order.customer,
        lines=[LineBody(sku=line.sku, quantity=line.quantity) for line in order.lines],
        placed_at=_rfc3339(order.placed_at_s),
        changed_at=_rfc3339(order.changed_at_s),
    )


def _rfc3339(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
