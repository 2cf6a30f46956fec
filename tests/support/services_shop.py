"""Both services in one process, on real database files, joined by a network that a test makes fail."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx
import quorate_inventory.bootstrap
import quorate_inventory.migrate
import quorate_order.bootstrap
import quorate_order.migrate
from pydantic import BaseModel
from quorate_core.clock import ManualClock
from quorate_core.tasks import TaskOwner
from quorate_inventory.adapters.tables import DATABASE_FILE as INVENTORY_FILE
from quorate_inventory.adapters.tables import OUTBOX as INVENTORY_OUTBOX
from quorate_inventory.adapters.tables import RESERVATIONS, STOCK
from quorate_inventory.bootstrap import InventoryService
from quorate_inventory.settings import InventorySettings
from quorate_messaging import Database, RelayPolicy
from quorate_messaging.bus.http import HttpBus
from quorate_order.adapters.tables import DATABASE_FILE as ORDER_FILE
from quorate_order.adapters.tables import ORDERS
from quorate_order.adapters.tables import OUTBOX as ORDER_OUTBOX
from quorate_order.bootstrap import OrderService
from quorate_order.settings import OrderSettings
from sqlalchemy import Table, func, select

SettingsT = TypeVar("SettingsT", bound=BaseModel)

START_STOCK = {"widget": 60, "gadget": 40, "rarity": 3}
POLICY = RelayPolicy(attempts_max=10_000, backoff_s_max=2.0, poll_interval_s=30.0)
"""Relays poll so seldom that they live by being woken."""
TICK_S = 0.02
REQUESTS_REMEMBERED_MAX = 64


@dataclass
class ChosenSettings(Generic[SettingsT]):
    """Live settings that a test sets; the same three attributes that the services read of the SDK's."""

    current: SettingsT
    version: int = 0
    revision: int = 0


class Network(httpx.AsyncBaseTransport):
    """Carries requests to the instances of a service by its name. By a seeded lot it loses requests or answers,
    repeats requests at once, and brings an old one again, out of order."""

    def __init__(self, lot: random.Random | None = None, fault_share: float = 0.0) -> None:
        self.instances: dict[str, list[httpx.ASGITransport]] = {"order": [], "inventory": []}
        self.is_cut = False
        self.fault_share = fault_share
        self._lot = lot or random.Random(0)
        self._history: deque[tuple[httpx.Request, bytes]] = deque(maxlen=REQUESTS_REMEMBERED_MAX)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        if self.is_cut:
            raise httpx.ConnectError("the network is cut")
        if self._lot.random() >= self.fault_share:
            return await self._carry(request, body)
        match self._lot.choice(("lost", "answer lost", "twice", "old one again", "overloaded")):
            case "lost":
                raise httpx.ConnectError("lost")
            case "answer lost":
                await self._carry(request, body)
                raise httpx.ReadTimeout("the answer was lost")
            case "twice":
                first, _ = await asyncio.gather(self._carry(request, body), self._carry(request, body))
                return first
            case "old one again":
                if self._history:
                    await self._carry(*self._lot.choice(self._history))
                return await self._carry(request, body)
            case _:
                return httpx.Response(503)

    async def _carry(self, request: httpx.Request, body: bytes) -> httpx.Response:
        self._history.append((request, body))
        instance = self._lot.choice(self.instances[request.url.host])
        repeated = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        response = await instance.handle_async_request(repeated)
        await response.aread()
        return response


@dataclass
class Shop:
    orders: list[OrderService]
    inventories: list[InventoryService]
    order_database: Database
    inventory_database: Database
    network: Network
    clock: ManualClock
    order_settings: ChosenSettings[OrderSettings]
    inventory_settings: ChosenSettings[InventorySettings]
    order_clients: list[httpx.AsyncClient] = field(default_factory=list)
    inventory_clients: list[httpx.AsyncClient] = field(default_factory=list)

    async def settle(self) -> None:
        """Drive the clock until every order has ended and every event is delivered."""
        async with asyncio.timeout(60):
            while not await self.is_quiet():
                await self.tick()

    async def tick(self) -> None:
        self.clock.advance(TICK_S)
        for service in (*self.orders, *self.inventories):
            service.relay.wake()
        for service in self.orders:
            await service.handlers.cancel_overdue()

    async def is_quiet(self) -> bool:
        open_orders = await self._count(self.order_database, ORDERS, "PENDING")
        return open_orders == 0 and await self.undelivered() == 0

    async def undelivered(self) -> int:
        return await self._count(self.order_database, ORDER_OUTBOX, "PENDING") + await self._count(
            self.inventory_database, INVENTORY_OUTBOX, "PENDING"
        )

    async def _count(self, database: Database, table: Table, status: str) -> int:
        async with database.reading() as connection:
            query = select(func.count()).select_from(table).where(table.c.status == status)
            return (await connection.execute(query)).scalar_one()

    async def stock(self) -> dict[str, tuple[int, int]]:
        async with self.inventory_database.reading() as connection:
            return {row.sku: (row.available, row.reserved) for row in await connection.execute(select(STOCK))}

    async def all_orders(self) -> dict[str, Any]:
        async with self.order_database.reading() as connection:
            return {row.id: row for row in await connection.execute(select(ORDERS))}

    async def reservations(self) -> dict[str, Any]:
        async with self.inventory_database.reading() as connection:
            return {row.order_id: row for row in await connection.execute(select(RESERVATIONS))}

    async def place(self, *lines: tuple[str, int], instance: int = 0) -> str:
        body = {"customer": "c-1", "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in lines]}
        answer = await self.order_clients[instance].post("/orders", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def order(self, order_id: str) -> dict[str, Any]:
        answer = await self.order_clients[0].get(f"/orders/{order_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@asynccontextmanager
async def open_shop(
    folder: Path, *, instances: int = 1, network: Network | None = None, stock: Mapping[str, int] | None = None
) -> AsyncIterator[Shop]:
    """A shop with so many instances of each service. Its relays run; its clock is driven by the test."""
    quorate_order.migrate.migrate(folder)
    quorate_inventory.migrate.migrate(folder, START_STOCK if stock is None else stock)
    network, clock = network or Network(), ManualClock(1_700_000_000.0)
    order_settings, inventory_settings = ChosenSettings(OrderSettings()), ChosenSettings(InventorySettings())
    async with AsyncExitStack() as ends:
        bus_client = await ends.enter_async_context(httpx.AsyncClient(transport=network))
        databases: dict[str, list[Database]] = {"order": [], "inventory": []}
        for service, file in (("order", ORDER_FILE), ("inventory", INVENTORY_FILE)):
            for _ in range(instances):
                database = Database.open_sqlite(folder / file)
                ends.push_async_callback(database.close)
                databases[service].append(database)
        orders = [
            quorate_order.bootstrap.build_service(
                f"order-{n}", database, HttpBus(bus_client, quorate_order.bootstrap.CONSUMERS), order_settings, clock,
                None, asyncio.Event(), POLICY,
            )
            for n, database in enumerate(databases["order"])
        ]  # fmt: skip
        inventories = [
            quorate_inventory.bootstrap.build_service(
                f"inventory-{n}", database, HttpBus(bus_client, quorate_inventory.bootstrap.CONSUMERS),
                inventory_settings, clock, None, asyncio.Event(), POLICY,
            )
            for n, database in enumerate(databases["inventory"])
        ]  # fmt: skip
        shop = Shop(
            orders, inventories, databases["order"][0], databases["inventory"][0], network, clock, order_settings,
            inventory_settings,
        )  # fmt: skip
        tasks = await ends.enter_async_context(TaskOwner("shop"))
        for service, built, clients in (
            ("order", orders, shop.order_clients),
            ("inventory", inventories, shop.inventory_clients),
        ):
            for each in built:
                transport = httpx.ASGITransport(each.app)
                network.instances[service].append(transport)
                client = httpx.AsyncClient(transport=transport, base_url=f"http://{service}")
                clients.append(await ends.enter_async_context(client))
                tasks.start(each.relay.run(), "relay")
                ends.push_async_callback(each.relay.stop)
        yield shop
