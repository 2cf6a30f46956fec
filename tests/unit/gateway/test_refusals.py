"""The gateway's own answers: problem+json that names the rule, whole and well-framed."""

import json

import httptools
import pytest
from quorate_core.errors import QuorateError, Retry, error_from_problem
from quorate_gateway.proxy.refusals import Refusal, Reply, encode_refusal, encode_reply, encode_welcome


class Answer:
    """An answer as llhttp reads it."""

    def __init__(self, data: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.body = b""
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(data)
        self.status = parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[name.decode()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body


def encode(
    refusal: Refusal, *, keeps_alive: bool = True, head_only: bool = False, route: str | None = "orders"
) -> bytes:
    return encode_refusal(
        refusal, route=route, request_id=b"id-1", now_s=0.0, keeps_alive=keeps_alive, head_only=head_only
    )


def test_a_refusal_is_a_problem_that_names_its_rule() -> None:
    answer = Answer(encode(Refusal("no-endpoint", 503, "none of 'order'", Retry.SAFE)))
    assert answer.status == 503
    assert answer.fields == {
        "date": "Thu, 01 Jan 1970 00:00:00 GMT", "content-type": "application/problem+json",
        "content-length": str(len(answer.body)), "retry-after": "1", "x-request-id": "id-1",
    }  # fmt: skip
    assert json.loads(answer.body) == {
        "type": "urn:quorate:problem:no-endpoint", "title": "Service Unavailable", "status": 503,
        "detail": "none of 'order'", "rule": "no-endpoint", "retry": "safe", "request_id": "id-1", "route": "orders",
    }  # fmt: skip


def test_a_refusal_can_be_raised_again_by_a_client_of_the_platform() -> None:
    answer = Answer(encode(Refusal("no-route", 404, "no route")))
    error = error_from_problem(json.loads(answer.body))
    assert isinstance(error, QuorateError)
    assert error.detail == "no route"


def test_a_refusal_says_for_how_long_and_carries_what_else_is_to_be_told() -> None:
    refusal = Refusal("rate-limited", 429, "y", Retry.SAFE, retry_after_s=7, extensions={"violated-policies": ["a"]})
    answer = Answer(encode(refusal.with_answer_fields(b'\r\nratelimit: "a";r=0;t=7')))
    assert (answer.fields["retry-after"], answer.fields["ratelimit"]) == ("7", '"a";r=0;t=7')
    assert json.loads(answer.body)["violated-policies"] == ["a"]


def test_a_connection_that_ends_is_announced() -> None:
    assert Answer(encode(Refusal("x", 400, "y"), keeps_alive=False)).fields["connection"] == "close"
    assert "connection" not in Answer(encode(Refusal("x", 400, "y"))).fields


def test_the_answer_to_head_has_the_length_and_no_body() -> None:
    data = encode(Refusal("x", 404, "y"), head_only=True)
    assert data.endswith(b"\r\n\r\n")
    assert b"content-length: 0" not in data


@pytest.mark.parametrize(
    "status", [400, 401, 403, 404, 405, 408, 413, 414, 417, 426, 429, 431, 500, 501, 502, 503, 504, 505]
)
def test_every_status_that_is_used_has_its_title(status: int) -> None:
    assert json.loads(Answer(encode(Refusal("x", status, "y"), route=None)).body)["title"]


@pytest.mark.parametrize(("keeps_alive", "connection"), [(True, None), (False, "close")])
def test_a_reply_has_no_body_and_does_not_announce_one(keeps_alive: bool, connection: str | None) -> None:
    data = encode_reply(Reply(204, b"\r\nvary: Origin"), request_id=b"id-1", now_s=0.0, keeps_alive=keeps_alive)
    assert data.endswith(b"\r\n\r\n")
    answer = Answer(data)
    assert (answer.status, answer.body, answer.fields.get("connection")) == (204, b"", connection)
    assert answer.fields.keys() - {"connection"} == {"date", "x-request-id", "vary"}


def test_the_welcome_is_short_json_that_says_where_to_look() -> None:
    text = encode_welcome("gateway", "http://127.0.0.1:8090").decode()
    assert len(text.splitlines()) < 15
    assert json.loads(text)["docs"] == "http://127.0.0.1:8090/docs"
    assert "Quorate" in text
