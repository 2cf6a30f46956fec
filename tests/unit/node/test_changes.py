"""`/v1/changes` joins what apps tell, and what bounds of a span may look like."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from quorate_core.clock import ManualClock
from quorate_core.errors import InvalidRequest
from quorate_node.changes import READERS_MAX, ChangesApi, parsed_bound
from quorate_store.chronicle import Bound, ChangeRow, ChangesPart
from support.store_local import local_store

NOW_MS = 1_769_860_800_000


class Telling:
    """An app that tells the same of every span, once `may_answer` is set."""

    def __init__(self, revisions: Sequence[int], *, complete: bool = True, from_revision: int = 1) -> None:
        rows = [ChangeRow(revision, revision, "instance", "default", "order/1", "changed") for revision in revisions]
        self.part = ChangesPart(from_revision, complete, rows)
        self.spans: list[tuple[Bound, Bound]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def changes(self, since: Bound, until: Bound, limit: int) -> ChangesPart:
        self.spans.append((since, until))
        await self.may_answer.wait()
        return self.part


@pytest.fixture
async def apps() -> list[Telling]:
    return [Telling([2, 5]), Telling([3, 4])]


@pytest.fixture
async def client(tmp_path: Path, apps: list[Telling]) -> AsyncIterator[httpx.AsyncClient]:
    async with local_store(tmp_path) as store:
        for number in range(9):
            await store.put(b"key", b"%d" % number)
        api = FastAPI()
        ChangesApi(store, apps, ManualClock()).mount(api)
        transport = httpx.ASGITransport(api, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            yield client


async def test_the_parts_are_one_timeline_in_order_of_revision(client: httpx.AsyncClient) -> None:
    found = (await client.get("/v1/changes", params={"from": "1"})).json()
    assert [change["revision"] for change in found["changes"]] == [2, 3, 4, 5]
    assert (found["complete"], found["from_revision"]) == (True, 1)
    assert found["changes"][0]["at"] == "1970-01-01T00:00:00.002Z"


async def test_the_limit_is_of_all_together(client: httpx.AsyncClient) -> None:
    found = (await client.get("/v1/changes", params={"from": "1", "limit": 3})).json()
    assert [change["revision"] for change in found["changes"]] == [3, 4, 5]
    assert (found["complete"], found["from_revision"]) == (False, 3)


async def test_all_is_known_only_from_where_the_last_of_them_begins_to_know(
    client: httpx.AsyncClient, apps: list[Telling]
) -> None:
    apps.append(Telling([8], complete=False, from_revision=7))
    found = (await client.get("/v1/changes", params={"from": "1"})).json()
    assert (found["complete"], found["from_revision"]) == (False, 7)


async def test_the_end_is_no_later_than_what_the_store_has(client: httpx.AsyncClient, apps: list[Telling]) -> None:
    found = (await client.get("/v1/changes", params={"from": "2", "to": "1000000"})).json()
    [(since, until)] = apps[0].spans
    assert (since, until, found["to_revision"]) == (Bound(2), Bound(found["to_revision"]), until.revision)
    assert until.revision < 20


async def test_so_many_may_read_at_once(client: httpx.AsyncClient, apps: list[Telling]) -> None:
    apps[0].may_answer.clear()
    asked = [asyncio.ensure_future(client.get("/v1/changes")) for _ in range(READERS_MAX)]  # noqa: TID251 - awaited below
    async with asyncio.timeout(10):
        while len(apps[0].spans) < READERS_MAX:  # noqa: ASYNC110 - an app is only called
            await asyncio.sleep(0)
        with pytest.raises(Exception, match="others read the history"):
            await client.get("/v1/changes")
        apps[0].may_answer.set()
        assert [(await each).status_code for each in asked] == [200] * READERS_MAX
    assert (await client.get("/v1/changes")).status_code == 200


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("7", Bound(7)),
        ("90s", Bound(1, NOW_MS - 90_000)),
        ("10m", Bound(1, NOW_MS - 600_000)),
        ("2h", Bound(1, NOW_MS - 7_200_000)),
        ("1d", Bound(1, NOW_MS - 86_400_000)),
        ("2026-01-31T12:00:00Z", Bound(1, NOW_MS)),
        ("2026-01-31T13:00:00.500+01:00", Bound(1, NOW_MS + 500)),
    ],
)
def test_a_bound_is_a_revision_a_span_or_a_moment(text: str, bound: Bound) -> None:
    assert parsed_bound(text, NOW_MS, "from") == bound


@pytest.mark.parametrize(
    "text",
    ["soon", "-1", "1.5h", "10 m", "10m ", "7\n", "٣", "2026-01-31T12:00:00", "1e3"],
)
def test_anything_else_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^from: "):
        parsed_bound(text, NOW_MS, "from")
