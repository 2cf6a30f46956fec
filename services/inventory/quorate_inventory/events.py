"""What the inventory service is told, and what it answers: names, versions and shapes.

Shapes of events that come in are read tolerantly: a newer producer may add fields.
"""

from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints, model_validator

SOURCE = "/quorate/inventory"
LINES_MAX = 1_000
QUANTITY_MAX = 1_000_000_000

OrderId = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Line(BaseModel):
    model_config = ConfigDict(frozen=True)

    sku: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    quantity: Annotated[StrictInt, Field(ge=1, le=QUANTITY_MAX)]


class OrderPlaced(BaseModel):
    """An order waits for its stock; each line is of another SKU."""

    TYPE: ClassVar[str] = "quorate.order.placed.v1"
    model_config = ConfigDict(frozen=True)

    order_id: OrderId
    lines: Annotated[tuple[Line, ...], Field(min_length=1, max_length=LINES_MAX)]

    @model_validator(mode="after")
    def _require_different_skus(self) -> Self:
        if len({line.sku for line in self.lines}) < len(self.lines):
            raise ValueError("a SKU is on more than one line")
        return self


class OrderCancelled(BaseModel):
    """An order wants no stock any more."""

    TYPE: ClassVar[str] = "quorate.order.cancelled.v1"
    model_config = ConfigDict(frozen=True)

    order_id: OrderId


class StockReserved(BaseModel):
    """All lines of the order are reserved."""

    TYPE: ClassVar[str] = "quorate.inventory.stock-reserved.v1"
    model_config = ConfigDict(frozen=True)

    order_id: str


class StockRejected(BaseModel):
    """Nothing is reserved for the order; `reason` is for people."""

    TYPE: ClassVar[str] = "quorate.inventory.stock-rejected.v1"
    model_config = ConfigDict(frozen=True)

    order_id: str
    reason: str
