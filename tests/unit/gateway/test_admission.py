"""Admission: the order of a route's policies, and what each of them leaves on the answer and on the request."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_core.errors import Retry
from quorate_gateway.policies.admission import Admission, Admit, compile_admission, enter, identity_fields
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.limit import Answer, Checked
from quorate_gateway.policies.shedding import load_summary
from quorate_gateway.proxy.framing import RequestFields, RequestHead, is_field_line, read_request_head
from quorate_gateway.proxy.refusals import Refusal, Reply
from quorate_resilience import CircuitBreaker, Permit
from quorate_resilience.shedding import LoadShedder, Priority

CLIENT = Caller(b"192.0.2.7")
WITHIN = Checked(b"\r\nratelimit: l")


def head(method: str = "GET") -> RequestHead:
    found = read_request_head(f"{method} /orders HTTP/1.1\r\nHost: shop\r\n\r\n".encode())
    assert found is not None
    return found


@dataclass
class Policies:
    """All policies of a route, each of which notes that it was asked."""

    asked: list[str] = field(default_factory=list)
    lets_in: bool = True
    limited: "Answer | asyncio.Future[Answer]" = WITHIN

    def preflight(self, _fields: RequestFields, request: RequestHead) -> Reply | None:
        self.asked.append("preflight")
        return Reply(204) if request.method == b"OPTIONS" else None

    def answer_fields(self, _fields: RequestFields) -> bytes:
        return b"\r\nvary: Origin"

    def authenticate(self, _fields: RequestFields, caller: Caller, wall_s: float) -> Caller | Refusal:
        self.asked.append(f"auth at {wall_s}")
        if not self.lets_in:
            return Refusal("unauthorized", 401, "no key")
        return caller._replace(api_key_id=b"shop", subject=b"u 7")

    def check(self, _fields: RequestFields, caller: Caller, now_s: float) -> "Answer | asyncio.Future[Answer]":
        self.asked.append(f"limit of {caller.api_key_id.decode()} at {now_s}")
        return self.limited

    @property
    def admit(self) -> Admit:
        found = compile_admission(self, self.authenticate, self, lambda: 1_700.0)  # type: ignore[arg-type]
        assert found is not None
        return found


def test_without_a_policy_there_is_nothing_to_ask() -> None:
    assert compile_admission(None, None, None, lambda: 0.0) is None


def test_the_order_is_preflight_then_authentication_then_limit() -> None:
    policies = Policies()
    admitted = policies.admit(head(), CLIENT, 5.0)
    assert policies.asked == ["preflight", "auth at 1700.0", "limit of shop at 5.0"]
    assert isinstance(admitted, Admission)
    assert admitted.caller == Caller(b"192.0.2.7", b"shop", subject=b"u 7")
    assert admitted.answer_fields == b"\r\nvary: Origin\r\nratelimit: l"
    assert admitted.request_fields == b"\r\nx-quorate-api-key-id: shop\r\nx-quorate-subject: u%207"


def test_a_preflight_is_answered_before_anybody_asks_who_it_is() -> None:
    policies = Policies(lets_in=False)
    assert policies.admit(head("OPTIONS"), CLIENT, 5.0) == Reply(204)
    assert policies.asked == ["preflight"]


def test_who_is_not_let_in_is_not_counted_and_can_still_be_read_by_a_browser() -> None:
    policies = Policies(lets_in=False)
    refused = policies.admit(head(), CLIENT, 5.0)
    assert isinstance(refused, Refusal)
    assert (refused.rule, refused.answer_fields) == ("unauthorized", b"\r\nvary: Origin")
    assert policies.asked == ["preflight", "auth at 1700.0"]


def test_so_can_a_refusal_of_the_limit() -> None:
    refused = Policies(limited=Refusal("rate-limited", 429, "over", Retry.SAFE)).admit(head(), CLIENT, 5.0)
    assert isinstance(refused, Refusal)
    assert (refused.rule, refused.answer_fields) == ("rate-limited", b"\r\nvary: Origin")


async def test_a_limit_that_answers_later_is_waited_for() -> None:
    for result, expected in ((Checked(b""), Admission), (Refusal("rate-limited", 429, "over"), Refusal)):
        asked: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        admitting = Policies(limited=asked).admit(head(), CLIENT, 5.0)
        assert isinstance(admitting, asyncio.Future)
        asked.set_result(result)
        admitted = await admitting
        assert isinstance(admitted, expected)
        assert admitted.answer_fields.startswith(b"\r\nvary: Origin")


async def test_who_waits_no_longer_takes_the_question_back() -> None:
    asked: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    admitting = Policies(limited=asked).admit(head(), CLIENT, 5.0)
    assert isinstance(admitting, asyncio.Future)
    admitting.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asked.cancelled()


async def test_a_limit_that_fails_is_not_taken_for_leave() -> None:
    asked: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    admitting = Policies(limited=asked).admit(head(), CLIENT, 5.0)
    assert isinstance(admitting, asyncio.Future)
    asked.set_exception(OSError("a defect"))
    with pytest.raises(OSError, match="a defect"):
        await admitting


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_whatever_a_token_calls_its_subject_it_is_one_field_and_reads_back(key_id: bytes, subject: bytes) -> None:
    from urllib.parse import unquote_to_bytes

    encoded = identity_fields(Caller(b"", key_id, subject=subject))
    lines = encoded.split(b"\r\n")[1:]
    assert len(lines) == bool(key_id) + bool(subject)
    for line, value in zip(lines, [one for one in (key_id, subject) if one], strict=True):
        assert is_field_line(line)
        assert unquote_to_bytes(line.partition(b": ")[2]) == value


# The moment at which it begins.


@dataclass
class Route:
    priority: int = Priority.NORMAL
    breaker: CircuitBreaker | None = None


def loaded(active: int) -> LoadShedder:
    load = LoadShedder(active_max=100)
    load.active = active
    return load


def test_it_may_begin_and_holds_a_permit_where_there_is_a_breaker() -> None:
    assert enter(Route(), loaded(1), 0.0) is None
    assert isinstance(enter(Route(breaker=CircuitBreaker()), loaded(1), 0.0), Permit)


@pytest.mark.parametrize(("priority", "taken"), [(Priority.LOW, 80), (Priority.NORMAL, 95), (Priority.HIGH, 100)])
def test_saturated_it_refuses_by_priority_and_the_breaker_is_not_asked(priority: Priority, taken: int) -> None:
    breaker = CircuitBreaker()
    breaker.force_open(0.0)
    route = Route(priority, breaker)
    refused = enter(route, loaded(taken), 0.0)
    assert isinstance(refused, Refusal)
    assert refused.rule == "circuit-open"
    refused = enter(route, loaded(taken + 1), 0.0)
    assert isinstance(refused, Refusal)
    assert (refused.rule, refused.status, refused.retry, refused.retry_after_s) == ("overloaded", 503, Retry.SAFE, 1)
    assert f"priority '{priority.name.lower()}'" in refused.detail
    assert breaker.refused == 1


def test_what_is_told_of_the_load_is_what_it_rests_on() -> None:
    load = loaded(81)
    load.measured(0.2)
    load.measured(0.3)
    told = "the gateway is at 81 % of what it takes; requests in progress: 81 of 100, event loop late by 200 of 500 ms"
    assert load_summary(load) == told
