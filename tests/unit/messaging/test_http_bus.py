"""CloudEvents over HTTP: what is sent, what is read, and what is refused."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_core.errors import Forbidden, InvalidRequest, Unauthenticated
from quorate_messaging import Event, Verdict
from quorate_messaging.bus.http import HttpBus, event_of_request, require_sender
from support.services_database import an_event

URL = "http://inventory/stock/events"
EVENT = Event(
    "id-1", "/test/producer", "test.noted.v1", "order-1", 7, 1_700_000_000.25, {"täg": "ünï", "n": [1, {"x": None}]}
)
STRUCTURED = {
    "specversion": "1.0", "id": "id-1", "source": "/test/producer", "type": "test.noted.v1", "subject": "order-1",
    "time": "2023-11-14T22:13:20.250000Z", "datacontenttype": "application/json", "sequence": "0000000007",
    "data": EVENT.data,
}  # fmt: skip


class Endpoint(httpx.AsyncBaseTransport):
    """Answers a real httpx client as a test chooses."""

    def __init__(self, status: int = 204, text: str = "", error: Exception | None = None) -> None:
        self.requests: list[httpx.Request] = []
        self.client = httpx.AsyncClient(transport=self)
        self._status, self._text, self._error = status, text, error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self._error is not None:
            raise self._error
        return httpx.Response(self._status, text=self._text)


async def test_an_event_arrives_as_it_was_sent() -> None:
    endpoint = Endpoint()
    async with endpoint.client as client:
        outcome = await HttpBus(client, {"test.noted.v1": URL}).publish(EVENT)
    assert outcome.verdict is Verdict.DELIVERED
    (request,) = endpoint.requests
    assert str(request.url) == URL
    assert request.headers["ce-specversion"] == "1.0"
    assert event_of_request(request.headers, request.content) == EVENT


async def test_a_token_goes_along_when_there_is_one() -> None:
    endpoint = Endpoint()
    async with endpoint.client as client:
        await HttpBus(client, {"test.noted.v1": URL}, token="t" * 40).publish(EVENT)
        await HttpBus(client, {"test.noted.v1": URL}).publish(EVENT)
    with_token, without = endpoint.requests
    assert with_token.headers["authorization"] == "Bearer " + "t" * 40
    assert "authorization" not in without.headers


async def test_an_answer_is_kept_for_people_to_read_but_not_all_of_it() -> None:
    async with Endpoint(422, "no such thing " * 1_000).client as client:
        outcome = await HttpBus(client, {"test.noted.v1": URL}).publish(EVENT)
    assert outcome.verdict is Verdict.REFUSED
    assert outcome.detail.startswith(f"{URL} answered 422: no such thing")
    assert len(outcome.detail) < 400


async def test_a_consumer_that_cannot_be_reached_is_tried_again() -> None:
    async with Endpoint(error=httpx.ConnectError("refused")).client as client:
        outcome = await HttpBus(client, {"test.noted.v1": URL}).publish(EVENT)
    assert outcome.verdict is Verdict.RETRY
    assert "ConnectError: refused" in outcome.detail


async def test_a_type_that_nobody_consumes_is_refused_without_sending() -> None:
    endpoint = Endpoint()
    async with endpoint.client as client:
        outcome = await HttpBus(client, {}).publish(an_event("order", 1))
    assert (outcome.verdict, endpoint.requests) == (Verdict.REFUSED, [])


def structured(changes: dict[str, Any] | None = None) -> bytes:
    return json.dumps({k: v for k, v in {**STRUCTURED, **(changes or {})}.items() if v != "absent"}).encode()


def test_an_event_in_structured_mode_is_read_too() -> None:
    headers = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
    assert event_of_request(headers, structured()) == EVENT


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"id": "absent"}, "id"),
        ({"id": 5}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"id": "a\nb"}, "id"),
        ({"source": "absent"}, "source"),
        ({"type": ""}, "type"),
        ({"subject": "absent"}, "subject"),
        ({"time": "absent"}, "time"),
        ({"time": "yesterday"}, "cannot be read"),
        ({"time": 12}, "cannot be read"),
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": "2.0"}, "specversion"),
        ({"sequence": "absent"}, "sequence"),
        ({"sequence": 7}, "sequence"),
        ({"sequence": "-1"}, "sequence"),
        ({"sequence": "9" * 11}, "sequence"),
        ({"data": "absent"}, "no JSON object"),
        ({"data": [1]}, "no JSON object"),
        ({"data": "text"}, "no JSON object"),
    ],
)
def test_an_event_that_says_too_little_is_refused_naming_what(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(InvalidRequest, match=cause):
        event_of_request({"content-type": "application/cloudevents+json"}, structured(changes))


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b'"text"', b"{", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        event_of_request({"content-type": "application/cloudevents+json"}, body)


def test_a_request_that_claims_to_be_no_event_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="neither"):
        event_of_request({"content-type": "application/json"}, structured())


TOKEN = "t" * 40


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN[:-1]}, {"authorization": "Bearer tü"}]
)
def test_with_a_token_an_event_without_it_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        require_sender(headers, TOKEN)


def test_with_a_token_an_event_that_brings_it_is_taken_whatever_it_came_through() -> None:
    require_sender({"Authorization": f"Bearer {TOKEN}", "X-Forwarded-For": "10.0.0.1"}, TOKEN)


def test_without_a_token_an_event_is_taken_directly_only() -> None:
    require_sender({"host": "inventory"}, None)
    with pytest.raises(Forbidden, match="not through a gateway"):
        require_sender({"X-Forwarded-For": "10.0.0.1"}, None)


@given(
    headers=st.dictionaries(
        st.sampled_from(["ce-id", "ce-source", "ce-type", "ce-subject", "ce-time", "ce-specversion", "ce-sequence",
                         "ce-data", "ce-", "ce-UPPER", "content-type"]),
        st.text(max_size=20),
    ),
    body=st.binary(max_size=50),
)  # fmt: skip
def test_whatever_a_request_brings_is_an_event_or_refused(headers: dict[str, str], body: bytes) -> None:
    try:
        event = event_of_request(headers, body)
    except InvalidRequest:
        return
    assert isinstance(event.data, dict)
