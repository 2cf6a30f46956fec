"""How the command's client finds an endpoint, what it repeats, and what it reports."""

import socket
from collections.abc import Callable
from typing import Any

import pytest
from quorate_cli.client import ControlPlane, api_path
from quorate_cli.endpoints import Target
from quorate_core.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    NotProposed,
    OutcomeUnknown,
    QuorateError,
    Unauthenticated,
    Unavailable,
)
from quorate_sdk.wire import ServiceList

Make = Callable[..., Any]
SERVICES = {"namespace": "default", "revision": 7, "services": []}
PATH = "/v1/registry/default/services"


def refused_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def client(*urls: str, token: str | None = None, deadline_s: float = 5.0) -> ControlPlane:
    return ControlPlane(Target(urls, token), deadline_s)


def test_an_endpoint_that_refuses_connections_is_passed_over(new_server: Make, make_answer: Make) -> None:
    server = new_server(make_answer(body=SERVICES))
    with client(refused_url(), server.url) as control_plane:
        assert control_plane.read(ServiceList, PATH).revision == 7
        assert control_plane.write(ServiceList, "PUT", PATH, content=b"x").revision == 7
    assert [asked.method for asked in server.asked] == ["GET", "PUT"]


def test_when_nobody_listens_that_is_said_at_once_with_what_to_do() -> None:
    url = refused_url()
    with client(url) as control_plane, pytest.raises(Unavailable, match="no control plane answers at " + url) as caught:
        control_plane.read(ServiceList, PATH)
    assert "make up" in caught.value.extensions["advice"]


def test_a_write_that_was_not_proposed_is_sent_again_until_it_is_taken(
    new_server: Make, make_answer: Make, make_problem: Make
) -> None:
    not_yet = make_problem(503, "not-proposed", "no leader", retry="safe")
    server = new_server(not_yet, not_yet, make_answer(body=SERVICES))
    with client(server.url) as control_plane:
        control_plane.write(ServiceList, "PUT", PATH, content=b"x")
    assert [asked.body for asked in server.asked] == [b"x"] * 3


def test_a_write_that_is_never_proposed_is_given_up_at_the_deadline_with_the_servers_reason(
    new_server: Make, make_problem: Make
) -> None:
    server = new_server(make_problem(503, "not-proposed", "no leader", retry="safe"))
    with (
        client(refused_url(), server.url, deadline_s=0.5) as control_plane,
        pytest.raises(NotProposed, match="no leader"),
    ):
        control_plane.write(ServiceList, "PUT", PATH, content=b"x")
    assert 2 <= len(server.asked) <= 4


def test_a_write_whose_answer_was_lost_is_not_sent_again(new_server: Make, make_answer: Make) -> None:
    first, second = new_server(make_answer(breaks_off=True)), new_server(make_answer(body=SERVICES))
    with client(first.url, second.url) as control_plane, pytest.raises(OutcomeUnknown, match=first.url):
        control_plane.write(ServiceList, "PUT", PATH, content=b"x")
    assert second.asked == []


def test_a_read_whose_answer_was_lost_is_asked_of_the_next_endpoint(new_server: Make, make_answer: Make) -> None:
    first, second = new_server(make_answer(breaks_off=True)), new_server(make_answer(body=SERVICES))
    with client(first.url, second.url) as control_plane:
        assert control_plane.read(ServiceList, PATH).revision == 7


def test_an_unknown_outcome_is_reported_for_a_write_and_repeated_for_a_read(
    new_server: Make, make_answer: Make, make_problem: Make
) -> None:
    unknown = make_problem(504, "outcome-unknown", "not seen in time", retry="unknown")
    server = new_server(unknown, unknown, make_answer(body=SERVICES))
    with client(server.url) as control_plane:
        with pytest.raises(OutcomeUnknown):
            control_plane.write(ServiceList, "PUT", PATH, content=b"x")
        assert control_plane.read(ServiceList, PATH).revision == 7


def test_a_refusal_is_final_and_carries_what_the_server_said(new_server: Make, make_problem: Make) -> None:
    server = new_server(make_problem(409, "conflict", "already there", holder="node-2"))
    with client(server.url, server.url) as control_plane, pytest.raises(Conflict, match="already there") as caught:
        control_plane.read(ServiceList, PATH)
    assert caught.value.extensions["holder"] == "node-2"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "error_type"),
    [(404, NotFound), (401, Unauthenticated), (405, InvalidRequest), (500, QuorateError)],
)
def test_an_answer_without_a_problem_of_ours_is_judged_by_its_status(
    new_server: Make, make_answer: Make, status: int, error_type: type[QuorateError]
) -> None:
    about_blank = {"type": "about:blank", "title": "?", "status": status, "detail": "not here", "retry": "never"}
    for body in (b"<html>", about_blank, b"[]"):
        with client(new_server(make_answer(status, body)).url) as control_plane, pytest.raises(QuorateError) as caught:
            control_plane.read(ServiceList, PATH)
        assert type(caught.value) is error_type


@pytest.mark.parametrize("body", [b"", b"<html>", {"revision": "x"}])
def test_an_answer_that_is_not_what_was_asked_for_is_an_error_and_no_trace(
    new_server: Make, make_answer: Make, body: object
) -> None:
    with (
        client(new_server(make_answer(body=body)).url) as control_plane,
        pytest.raises(QuorateError, match="understood"),
    ):
        control_plane.read(ServiceList, PATH)


def test_the_token_is_sent_as_a_bearer_credential_and_only_when_there_is_one(
    new_server: Make, make_answer: Make
) -> None:
    server = new_server(make_answer(body=SERVICES))
    for token in ("s3cret", None):
        with client(server.url, token=token) as control_plane:
            control_plane.read(ServiceList, PATH)
    assert [asked.headers.get("authorization") for asked in server.asked] == ["Bearer s3cret", None]


def test_a_redirect_is_not_followed_since_the_token_would_go_along(new_server: Make, make_answer: Make) -> None:
    stranger = new_server(make_answer(body=SERVICES))
    server = new_server(make_answer(307, b"", {"location": stranger.url + PATH}))
    with client(server.url, token="s3cret") as control_plane, pytest.raises(QuorateError, match="307"):
        control_plane.read(ServiceList, PATH)
    assert stranger.asked == []


def test_names_from_the_command_line_cannot_change_the_path() -> None:
    assert api_path("config", "default", "../x", "a/b?c=d#e") == "/v1/config/default/..%2Fx/a%2Fb%3Fc%3Dd%23e"


def sse(*events: tuple[str, str, str]) -> bytes:
    return b": keep-alive\n\n" + b"".join(f"id: {i}\nevent: {e}\ndata: {d}\n\n".encode() for e, i, d in events)


def test_a_stream_gives_its_events_and_ends_quietly_when_it_is_cut(new_server: Make, make_answer: Make) -> None:
    body = sse(("snapshot", "5", "{}"), ("delta", "6", '{"a": 1}'))
    headers = {"content-type": "text/event-stream", "content-length": str(len(body) + 50)}
    cut, other = new_server(make_answer(200, body, headers)), new_server(make_answer(200, body, headers))
    with client(cut.url, other.url) as control_plane:
        events = list(control_plane.stream("/watch", {"key": ["a/b", "c/d"]}, "4"))
    assert [(event.event, event.id, event.data) for event in events] == [
        ("snapshot", "5", "{}"),
        ("delta", "6", '{"a": 1}'),
    ]
    assert cut.asked[0].headers["last-event-id"] == "4"
    assert cut.asked[0].path == "/watch?key=a%2Fb&key=c%2Fd"
    assert other.asked == []


def test_a_stream_begins_at_the_next_endpoint_when_one_is_away_or_not_ready(
    new_server: Make, make_answer: Make, make_problem: Make
) -> None:
    body = sse(("snapshot", "5", "{}"))
    good = new_server(make_answer(200, body, {"content-type": "text/event-stream"}))
    busy = new_server(make_problem(503, "unavailable", "starting", retry="safe"))
    with client(refused_url(), busy.url, good.url) as control_plane:
        assert [event.id for event in control_plane.stream("/watch", {}, "")] == ["5"]
    assert "last-event-id" not in good.asked[0].headers


def test_a_stream_that_is_refused_says_why(new_server: Make, make_problem: Make) -> None:
    with (
        client(new_server(make_problem(400, "invalid-request", "bad key")).url) as control_plane,
        pytest.raises(InvalidRequest, match="bad key"),
    ):
        list(control_plane.stream("/watch", {}, ""))
    with client(refused_url()) as control_plane, pytest.raises(Unavailable):
        list(control_plane.stream("/watch", {}, ""))
