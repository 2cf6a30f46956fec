"""What the order service tells others, and what it is told: names, versions and shapes.

Shapes of events that come in are read tolerantly: a newer producer may add fields.
"""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints

SOURCE = "/quorate/order"


class Line(BaseModel):
    model_config = ConfigDict(frozen=True)

    sku: str
    quantity: StrictInt


class OrderPlaced(BaseModel):
    """An order waits for its stock."""

    TYPE: ClassVar[str] = "quorate.order.placed.v1"
    model_config = ConfigDict(frozen=True)

    order_id: str
    lines: tuple[Line, ...]


class OrderCancelled(BaseModel):
    """An order wants no stock any more; what is reserved for it is free again."""

    TYPE: ClassVar[str] = "quorate.order.cancelled.v1"
    model_config = ConfigDict(frozen=True)

    order_id: str
    reason: str


OrderId = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class StockReserved(BaseModel):
    """All lines of the order are reserved."""

    TYPE: ClassVar[str] = "quorate.inventory.stock-reserved.v1"
    model_config = ConfigDict(frozen=True)

    order_id: OrderId


class StockRejected(BaseModel):
    """Nothing is reserved for the order; `reason` is for people."""

    TYPE: ClassVar[str] = "quorate.inventory.stock-rejected.v1"
    model_config = ConfigDict(frozen=True)

    order_id: OrderId
    reason: Annotated[str, Field(min_length=1)]
