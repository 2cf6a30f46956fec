"""The inventory service over HTTP. `POST /stock/events` is the bus's: it takes CloudEvents of other services."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt
from quorate_messaging.bus.http import event_of_request, require_sender

from quorate_inventory.faults import FaultSwitch
from quorate_inventory.handlers import AVAILABLE_MAX, InventoryHandlers
from quorate_inventory.model import Stock
from quorate_inventory.ports import Inventory
from quorate_inventory.settings import InventorySettings, LiveInventorySettings
from quorate_inventory.stocking import is_sku

PAGE_SKUS_MAX = 500


def _require_sku(name: str) -> str:
    if not is_sku(name):
        raise ValueError(
            "a SKU is at most 64 letters, digits, '.', '_' or '-', beginning with a letter or digit, "
            "and neither 'events' nor 'settings'"
        )
    return name


Sku = Annotated[str, Path(), AfterValidator(_require_sku)]


class StockBody(BaseModel):
    sku: str
    available: int
    reserved: int


class StockPage(BaseModel):
    """By SKU. `next`, when there may be more, is what to send as `after`."""

    stock: list[StockBody]
    next: str | None = None


class SetAvailableBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    available: Annotated[StrictInt, Field(ge=0, le=AVAILABLE_MAX)]


class ReceiveBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    quantity: Annotated[StrictInt, Field(ge=1, le=AVAILABLE_MAX)]


class SettingsBody(BaseModel):
    """The live settings in force. `version` and `revision` are the document's; 0 means the defaults."""

    version: int
    revision: int
    settings: InventorySettings


def stock_routes(
    handlers: InventoryHandlers, inventory: Inventory, settings: LiveInventorySettings, token: str | None
) -> APIRouter:
    """`token` is what events must bring, if there is one."""
    routes = APIRouter()
    # Not the events: an order must not end otherwise because somebody looks at faults.
    may_fail = [Depends(FaultSwitch(settings))]

    @routes.get("/stock", response_model=StockPage, response_model_exclude_none=True, dependencies=may_fail)
    async def list_stock(
        limit: Annotated[int, Query(ge=1, le=PAGE_SKUS_MAX)] = 100,
        after: Annotated[str | None, Query(max_length=64)] = None,
        low: bool = False,
    ) -> Any:
        available_max = settings.current.low_stock_threshold if low else None
        return _page(await inventory.page(limit, after, available_max), limit)

    @routes.get("/stock/settings", response_model=SettingsBody)
    async def live_settings() -> Any:
        return SettingsBody(version=settings.version, revision=settings.revision, settings=settings.current)

    @routes.post("/stock/events", status_code=204)
    async def take_event(request: Request) -> Response:
        require_sender(request.headers, token)
        await handlers.on_event(event_of_request(request.headers, await request.body()))
        return Response(status_code=204)

    @routes.get("/stock/{sku}", response_model=StockBody, dependencies=may_fail)
    async def get_stock(sku: str) -> Any:
        return _body(await handlers.find(sku))

    @routes.put("/stock/{sku}", response_model=StockBody)
    async def set_available(sku: Sku, body: SetAvailableBody, response: Response) -> Any:
        stock, is_new = await handlers.set_available(sku, body.available)
        response.status_code = 201 if is_new else 200
        return _body(stock)

    @routes.post("/stock/{sku}/receive", response_model=StockBody)
    async def receive(sku: Sku, body: ReceiveBody) -> Any:
        return _body(await handlers.receive(sku, body.quantity))

    return routes


def _page(found: Sequence[Stock], limit: int) -> StockPage:
    return StockPage(stock=[_body(stock) for stock in found], next=found[-1].sku if len(found) == limit else None)


def _body(stock: Stock) -> StockBody:
    return StockBody(sku=stock.sku, available=stock.available, reserved=stock.reserved)
