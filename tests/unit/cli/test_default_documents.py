"""The documents of a first start: accepted by those who use them, and never written over anybody's own."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from quorate_cli.default_documents import DEFAULT_DOCUMENTS, publish_default_documents
from quorate_core.errors import InvalidContent
from quorate_gateway.routes import DOCUMENT
from quorate_inventory.settings import InventorySettings
from quorate_order.settings import OrderSettings
from quorate_sdk.wire import ConfigMetadata
from support import plain_http

Make = Callable[..., Any]
BY_NAME = {document.name: document for document in DEFAULT_DOCUMENTS}


def test_the_gateway_accepts_the_default_routes() -> None:
    assert list(DOCUMENT("routes.yaml", BY_NAME["gateway/routes.yaml"].content)) == []


def test_the_services_accept_their_default_settings_which_say_what_holds_without_them_too() -> None:
    order = OrderSettings.model_validate(yaml.safe_load(BY_NAME["order/settings.yaml"].content))
    inventory = InventorySettings.model_validate(yaml.safe_load(BY_NAME["inventory/settings.yaml"].content))
    assert (order, inventory) == (OrderSettings(), InventorySettings())


@pytest.fixture
def published_body() -> dict[str, object]:
    metadata = ConfigMetadata(
        namespace="default", group="g", key="k", version=1, revision=2, format="yaml", author="a", comment="",
        changed_at="2031-05-01T10:00:00Z", sha256="0",
    )  # fmt: skip
    return metadata.model_dump(mode="json")


async def test_what_is_there_already_is_left_alone(
    new_server: Make, make_answer: Make, make_problem: Make, published_body: dict[str, object]
) -> None:
    there = make_problem(412, "precondition-failed", "it exists")
    server = new_server(make_answer(201, published_body), there, make_answer(201, published_body))
    async with plain_http.async_client() as client:
        published = await publish_default_documents(client, [server.url])
    assert published == ["gateway/routes.yaml", "inventory/settings.yaml"]
    assert [asked.headers["if-none-match"] for asked in server.asked] == ["*"] * 3


async def test_publishing_goes_on_until_the_control_plane_can_write(
    new_server: Make, make_answer: Make, make_problem: Make, published_body: dict[str, object]
) -> None:
    not_yet = make_problem(503, "not-proposed", "no leader", retry="safe")
    unknown = make_problem(504, "outcome-unknown", "not seen", retry="unknown")
    away = new_server(make_answer(breaks_off=True))
    server = new_server(not_yet, unknown, make_answer(201, published_body))
    async with plain_http.async_client() as client:
        assert len(await publish_default_documents(client, [away.url, server.url])) == 3
    assert len(server.asked) == 5


async def test_a_document_that_is_refused_is_named(new_server: Make, make_problem: Make) -> None:
    server = new_server(make_problem(422, "invalid-content", "no such key"))
    async with plain_http.async_client() as client:
        with pytest.raises(InvalidContent, match=r"gateway/routes\.yaml could not be published: no such key"):
            await publish_default_documents(client, [server.url])
