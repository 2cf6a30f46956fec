"""What every HTTP surface shares: problems instead of traces, bounds, protected mode, health."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from quorate_core.asgi import Protection, Surface, add_raw_endpoint, create_app
from quorate_core.errors import NotProposed
from quorate_core.settings import HostPort
from quorate_core.sse import EventStream, encode_event

LOOPBACK = HostPort("127.0.0.1", 8501)
OUTSIDE = HostPort("0.0.0.0", 8501)
TOKEN = "t" * 40


class Body(BaseModel):
    count: int


def build(protection: Protection | None = None, **options: object) -> FastAPI:
    protection = protection or Protection.for_address(LOOPBACK, LOOPBACK, None)
    api = create_app(Surface("test", protection, **options))  # type: ignore[arg-type]

    @api.get("/boom")
    async def boom() -> None:
        raise ZeroDivisionError("secret detail")

    @api.get("/later")
    async def later() -> None:
        raise NotProposed("no leader now")

    @api.post("/typed")
    async def typed(body: Body) -> dict[str, int]:
        return {"count": body.count}

    async def raw(body: bytes) -> bytes:
        if body == b"bad":
            raise NotProposed("no leader now")
        if body == b"boom":
            raise ZeroDivisionError("secret detail")
        return body[::-1]

    add_raw_endpoint(api, "/raw", raw, "Reverse", {"responses": {"200": {"description": "reversed"}}})
    return api


def client_of(api: FastAPI, base_url: str = "http://127.0.0.1:8501") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=api, raise_app_exceptions=False), base_url=base_url)


async def test_an_unexpected_error_shows_an_id_and_no_trace() -> None:
    async with client_of(build()) as client:
        answer = await client.get("/boom", headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "abc-1"
    assert "secret detail" not in answer.text
    assert "abc-1" in answer.json()["detail"]


async def test_an_error_of_the_family_says_whether_to_try_again() -> None:
    async with client_of(build()) as client:
        answer = await client.get("/later")
    assert (answer.status_code, answer.json()["retry"], answer.headers["retry-after"]) == (503, "safe", "1")


@pytest.mark.parametrize("body", [b'{"count": "many"}', b"{", b"[]", b""])
async def test_a_bad_body_is_a_400_that_says_where(body: bytes) -> None:
    async with client_of(build()) as client:
        answer = await client.post("/typed", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["errors"]


async def test_a_body_that_is_no_json_is_named_by_its_offset_and_what_curl_sends_is_read_as_json() -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    async with client_of(build()) as client:
        good = await client.post("/typed", content=b'{"count": 3}', headers=form)
        bad = await client.post("/typed", content=b'{"count": 3', headers=form)
        page = await client.post("/typed", content=b'{"count": 3}', headers={**form, "origin": "http://localhost"})
    assert good.json() == {"count": 3}
    assert (bad.status_code, page.status_code) == (400, 400)
    assert "no valid JSON at offset 11" in bad.json()["detail"]


async def test_unknown_paths_and_methods_are_problems_too() -> None:
    async with client_of(build()) as client:
        nowhere, wrong = await client.get("/nowhere"), await client.put("/raw")
    assert (nowhere.status_code, nowhere.json()["detail"]) == (404, "GET /nowhere is not served here")
    assert (wrong.status_code, wrong.headers["content-type"]) == (405, "application/problem+json")


async def test_a_raw_endpoint_answers_raises_and_is_described() -> None:
    async with client_of(build()) as client:
        good, bad = await client.post("/raw", content=b"abc"), await client.post("/raw", content=b"bad")
        described = (await client.get("/openapi.json")).json()["paths"]["/raw"]["post"]
    assert good.content == b"cba"
    assert (bad.status_code, bad.json()["retry"]) == (503, "safe")
    assert described["summary"] == "Reverse"


async def test_a_raw_endpoint_hides_defects_and_names_its_requests() -> None:
    async with client_of(build()) as client:
        boom = await client.post("/raw", content=b"boom", headers={"x-request-id": "abc-2"})
        good = await client.post("/raw", content=b"abc")
        other = await client.post("/raw", content=b"abc")
    assert (boom.status_code, boom.headers["x-request-id"]) == (500, "abc-2")
    assert "secret detail" not in boom.text
    assert "abc-2" in boom.json()["detail"]
    assert good.headers["x-request-id"] != other.headers["x-request-id"]


async def test_a_raw_endpoint_tells_strangers_nothing_and_names_a_failure_as_the_log_does() -> None:
    async with client_of(build()) as client:
        stranger = await client.get("/raw", headers={"host": "evil.example"})
        boom = await client.post("/raw", content=b"boom")
    assert stranger.status_code == 403
    assert boom.headers["x-request-id"] in boom.json()["detail"]


async def test_a_body_over_the_limit_is_refused_with_and_without_a_length() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 10

    async with client_of(build(body_bytes_max=100)) as client:
        announced = await client.post("/raw", content=b"x" * 101)
        chunked = await client.post("/raw", content=chunks())
    assert (announced.status_code, chunked.status_code) == (413, 413)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8501", "127.0.0.1.evil.example", ""])
async def test_on_loopback_a_foreign_host_is_refused(host: str) -> None:
    async with client_of(build()) as client:
        answer = await client.post("/raw", content=b"abc", headers={"host": host})
    assert (answer.status_code, answer.json()["retry"]) == (403, "never")


@pytest.mark.parametrize("host", ["localhost:8501", "127.0.0.1", "[::1]:8501", "LOCALHOST"])
async def test_on_loopback_its_own_names_are_answered(host: str) -> None:
    async with client_of(build()) as client:
        assert (await client.post("/raw", content=b"abc", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"), [("http://evil.example", 403), ("null", 403), ("http://localhost:3000", 200)]
)
async def test_on_loopback_a_foreign_origin_is_refused(origin: str, status: int) -> None:
    async with client_of(build()) as client:
        answer = await client.post("/raw", content=b"abc", headers={"origin": origin})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("authorization", "status"),
    [(None, 401), ("Bearer wrong", 401), (TOKEN, 200), (f"Bearer {TOKEN}", 200), ("Bearer ", 401)],
)
async def test_bound_to_the_outside_a_token_is_wanted(authorization: str | None, status: int) -> None:
    protection = Protection.for_address(OUTSIDE, OUTSIDE, TOKEN)
    headers = {} if authorization is None else {"authorization": authorization}
    async with client_of(build(protection), "http://node-1.example") as client:
        answer = await client.post("/raw", content=b"abc", headers=headers)
    assert answer.status_code == status


async def test_health_is_open_and_readiness_says_why_not() -> None:
    protection = Protection.for_address(OUTSIDE, OUTSIDE, TOKEN)
    async with client_of(build(protection, ready=lambda: "no leader")) as client:
        live, ready = await client.get("/livez"), await client.get("/readyz")
        metrics = await client.get("/metrics")
    assert (live.status_code, ready.status_code, ready.text) == (200, 503, "no leader\n")
    assert metrics.status_code == 401


class Sent:
    """Collects what an ASGI application sends."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.arrived = asyncio.Event()
        self.disconnected = asyncio.Event()

    async def send(self, message: dict[str, object]) -> None:
        self.chunks.append(bytes(message.get("body", b"")))  # type: ignore[call-overload]
        if b"event: delta" in self.chunks[-1]:
            self.arrived.set()

    async def receive(self) -> dict[str, object]:
        await self.disconnected.wait()
        return {"type": "http.disconnect"}


@pytest.mark.parametrize("end", ["stopping", "disconnect"])
async def test_a_stream_ends_at_shutdown_and_on_disconnect_and_closes_its_source(end: str) -> None:
    stopping, closed = asyncio.Event(), asyncio.Event()

    async def events() -> AsyncIterator[bytes]:
        try:
            yield encode_event("delta", b"{}", 7)
            await asyncio.Event().wait()
        finally:
            closed.set()

    sent = Sent()
    stream = EventStream(events(), stopping)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(stream({}, sent.receive, sent.send))  # type: ignore[arg-type]
        await sent.arrived.wait()
        (stopping if end == "stopping" else sent.disconnected).set()
    assert closed.is_set()
    assert b"id: 7\nevent: delta\ndata: {}\n\n" in sent.chunks
