"""Calls of services by name, from a client on an event loop and from one in threads, against real servers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest
from opentelemetry import propagate, trace
from quorate_core.errors import DeadlineExceeded, OutcomeUnknown, Unavailable
from quorate_resilience import BreakerSettings, BreakerState, Transition
from quorate_sdk.calls.errors import CallNotSent, CallTimedOut, CircuitOpen, ServiceUnreachable
from quorate_sdk.calls.options import CallSettings
from quorate_sdk.calls.request_context import deadline, request_context
from quorate_sdk.calls.services import Services
from quorate_sdk.service_http import ServiceTransport, http_client
from quorate_sdk.sync_http import SyncServiceTransport, sync_http_client
from quorate_sdk.wire import Instance, InstanceStatus
from support.gateway_upstream import Exchange, Handler, Upstream, unused_port

WAIT_S_MAX = 10.0
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
URL = "http://inventory/stock"


class Known:
    """A registry's copy that a test writes."""

    namespace = "default"
    revision = 1

    def __init__(self, *ports: int, **changes: Any) -> None:
        self._instances = tuple(instance(number, port, **changes) for number, port in enumerate(ports, 1))

    def instances(self, service: str) -> Sequence[Instance]:
        return self._instances if service == "inventory" else ()

    def now(self, *instances: Instance) -> None:
        self._instances = instances

    async def ready(self, timeout_s: float) -> bool:
        return True


def instance(number: int, port: int, **changes: Any) -> Instance:
    fields: dict[str, Any] = {
        "namespace": "default", "service": "inventory", "id": f"i-{number}", "host": "127.0.0.1", "port": port,
        "scheme": "http", "weight": 100, "zone": "", "version": "", "metadata": {}, "status": InstanceStatus.UP,
        "ttl_s": 10, "revision": 1,
    }  # fmt: skip
    return Instance(**{**fields, **changes})


Ask = Callable[..., Any]


@contextlib.asynccontextmanager
async def calling(known: Known, kind: str = "async", **options: Any) -> AsyncIterator[Ask]:
    """What makes a request: on the loop, or in a thread while the loop serves."""
    services = Services(known, **{"balance": "round_robin", **options})
    if kind == "async":
        async with http_client(ServiceTransport(known, services)) as client:
            yield client.request
        return
    with sync_http_client(SyncServiceTransport(services, lambda: None)) as sync:

        async def ask(*arguments: Any, **named: Any) -> httpx.Response:
            return await asyncio.to_thread(sync.request, *arguments, **named)

        yield ask


BOTH = pytest.mark.parametrize("kind", ["async", "sync"])


def dying(times: int) -> Handler:
    """Resets so many connections without a word, and answers after that."""
    left = [times]

    async def handle(exchange: Exchange) -> None:
        await exchange.read_body()
        if left[0] > 0:
            left[0] -= 1
            exchange.reset()
        else:
            await exchange.reply()

    return handle


def saying(status: str, fields: bytes = b"") -> Handler:
    async def handle(exchange: Exchange) -> None:
        await exchange.read_body()
        await exchange.reply(b"no", status, fields)

    return handle


@BOTH
async def test_a_connection_that_cannot_be_made_costs_no_request_of_any_method(kind: str) -> None:
    async with Upstream() as upstream, calling(Known(unused_port(), upstream.port), kind) as ask:
        for method in ("GET", "POST", "PATCH"):
            for _ in range(4):
                assert (await ask(method, URL)).status_code == 200
        assert len(upstream.requests) == 12


@BOTH
async def test_an_idempotent_call_whose_connection_breaks_is_repeated_and_another_one_is_not(kind: str) -> None:
    async with Upstream(dying(1)) as upstream, calling(Known(upstream.port), kind) as ask:
        assert (await ask("GET", URL)).status_code == 200
    async with Upstream(dying(1)) as upstream, calling(Known(upstream.port), kind) as ask:
        with pytest.raises(httpx.TransportError, match=r"service 'inventory': tried i-1 at 127\.0\.0\.1:\d+: "):
            await ask("POST", URL, content=b"{}")
        assert len(upstream.requests) == 1
    async with Upstream(dying(1)) as upstream, calling(Known(upstream.port), kind) as ask:
        answer = await ask("POST", URL, content=b"{}", extensions={"quorate": {"retry": True}})
        assert answer.status_code == 200
        assert [request.body for request in upstream.requests] == [b"{}", b"{}"]
    async with Upstream(dying(1)) as upstream, calling(Known(upstream.port), kind) as ask:
        with pytest.raises(httpx.TransportError):
            await ask("GET", URL, extensions={"quorate": {"retry": False}})


async def test_a_body_that_cannot_be_sent_again_is_not() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"part"

    async with Upstream(dying(1)) as upstream, calling(Known(upstream.port)) as ask:
        with pytest.raises(httpx.TransportError):
            await ask("PUT", URL, content=body())
        assert len(upstream.requests) == 1


@BOTH
async def test_an_answer_that_says_that_another_may_do_better_is_not_the_callers(kind: str) -> None:
    busy = saying("503 Service Unavailable")
    async with Upstream(busy) as one, Upstream() as two, calling(Known(one.port, two.port), kind) as ask:
        assert [(await ask("GET", URL)).status_code for _ in range(4)] == [200] * 4
        assert (await ask("GET", URL)).text == "hello"
    async with Upstream(busy) as one, calling(Known(one.port), kind) as ask:
        answer = await ask("GET", URL)
        assert (answer.status_code, answer.text) == (503, "no"), "the last one is told as it is"
        assert len(one.requests) == 3
    async with Upstream(saying("500 Internal Server Error")) as one, calling(Known(one.port), kind) as ask:
        assert (await ask("GET", URL)).status_code == 500
        assert len(one.requests) == 1


@BOTH
async def test_a_service_that_says_when_to_come_back_is_not_asked_before(kind: str) -> None:
    later = saying("503 Service Unavailable", b"Retry-After: 60\r\n")
    async with Upstream(later) as upstream, calling(Known(upstream.port), kind) as ask:
        assert (await ask("GET", URL)).status_code == 503
        assert len(upstream.requests) == 1


async def test_retries_are_bounded_by_the_services_budget() -> None:
    settings = CallSettings(retry_percent=0.0, circuit_breaker=None)
    async with Upstream(dying(1_000)) as upstream, calling(Known(upstream.port), settings=settings) as ask:
        for _ in range(30):
            with pytest.raises(httpx.TransportError):
                await ask("GET", URL)
        assert len(upstream.requests) == 40, "ten of them, however few calls there are"


@BOTH
async def test_a_deadline_goes_along_and_is_what_is_left(kind: str) -> None:
    async with Upstream() as upstream, calling(Known(upstream.port), kind) as ask:
        await ask("GET", URL, timeout=5.0)
        assert 4_000 < int(upstream.requests[-1].field("x-request-timeout-ms") or 0) <= 5_000
        with request_context({"X-Request-Timeout-Ms": "1500"}):
            await ask("GET", URL, timeout=5.0)
        assert 500 < int(upstream.requests[-1].field("x-request-timeout-ms") or 0) <= 1_500
        await ask("GET", URL, timeout=None, extensions={"quorate": {"timeout_s": 3}})
        assert 2_000 < int(upstream.requests[-1].field("x-request-timeout-ms") or 0) <= 3_000
        with request_context({"x-request-timeout-ms": "0"}), pytest.raises(CallNotSent, match="deadline had passed"):
            await ask("GET", URL)
        assert len(upstream.requests) == 3


@BOTH
async def test_a_call_that_is_not_answered_in_time_says_so_in_both_families(kind: str) -> None:
    async with Upstream(Exchange.until_closed) as upstream, calling(Known(upstream.port), kind) as ask:
        with (
            deadline(0.2),
            pytest.raises(CallTimedOut, match=r"has not answered within 0\.\d\d s; tried i-1") as raised,
        ):
            await ask("GET", URL)
        assert isinstance(raised.value, OutcomeUnknown)
        assert isinstance(raised.value, httpx.ReadTimeout)
        assert isinstance(CallNotSent("x"), DeadlineExceeded)
        assert len(upstream.requests) == 1


@BOTH
async def test_the_trace_of_the_served_request_goes_on_with_another_span(kind: str) -> None:
    async with Upstream() as upstream, calling(Known(upstream.port), kind) as ask:
        with request_context({"traceparent": TRACEPARENT, "tracestate": "a=b"}):
            await ask("GET", URL)
        went = upstream.requests[-1]
        version, trace, span, flags = (went.field("traceparent") or "").split("-")
        assert (version, trace, flags) == tuple(TRACEPARENT.split("-")[i] for i in (0, 1, 3))
        assert span != TRACEPARENT.split("-")[2]
        assert went.field("tracestate") == "a=b"
        await ask("GET", URL)
        assert (upstream.requests[-1].field("traceparent") or "").endswith("-00"), "one of its own, not sampled"
        await ask("GET", URL, headers={"traceparent": TRACEPARENT})
        assert upstream.requests[-1].field("traceparent") == TRACEPARENT


@BOTH
async def test_a_service_that_fails_is_not_asked_for_a_while_and_then_by_probes(kind: str) -> None:
    changes: list[tuple[str, BreakerState]] = []

    def told(service: str, change: Transition) -> None:
        changes.append((service, change.state))

    settings = CallSettings(retries_max=0, circuit_breaker=BreakerSettings(calls_min=5, open_s=0.2, probes=1))
    failing = [True]

    async def handle(exchange: Exchange) -> None:
        await exchange.reply(status="500 Internal Server Error" if failing[0] else "200 OK")

    async with (
        Upstream(handle) as upstream,
        calling(Known(upstream.port), kind, settings=settings, listeners=[told]) as ask,
    ):
        assert [(await ask("GET", URL)).status_code for _ in range(5)] == [500] * 5
        with pytest.raises(CircuitOpen, match="the circuit of service 'inventory' is open") as raised:
            await ask("GET", URL)
        assert 0 < raised.value.retry_after_s <= 0.2
        assert isinstance(raised.value, Unavailable | httpx.ConnectError)
        assert len(upstream.requests) == 5
        failing[0] = False
        ends_s = time.monotonic() + WAIT_S_MAX
        while changes[-1][1] is not BreakerState.CLOSED and time.monotonic() < ends_s:
            with contextlib.suppress(CircuitOpen):
                await ask("GET", URL)
        assert [state for _, state in changes] == [BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED]


async def test_a_call_that_hangs_is_found_slow_when_it_passes_the_mark() -> None:
    opened = asyncio.Event()
    settings = CallSettings(circuit_breaker=BreakerSettings(calls_min=3, slow_call_s=0.1))
    async with (
        Upstream(Exchange.until_closed) as upstream,
        calling(Known(upstream.port), settings=settings, listeners=[lambda *_: opened.set()]) as ask,
        asyncio.TaskGroup() as group,
    ):
        hanging = [group.create_task(ask("GET", URL)) for _ in range(3)]
        async with asyncio.timeout(WAIT_S_MAX):
            await opened.wait()
        with pytest.raises(CircuitOpen):
            await ask("GET", URL)
        for task in hanging:
            task.cancel()


async def test_a_caller_that_gives_up_says_nothing_of_the_service() -> None:
    services = Services(Known(), settings=CallSettings(circuit_breaker=BreakerSettings(calls_min=1)))
    async with Upstream(Exchange.until_closed) as upstream:
        known = Known(upstream.port)
        services.known = known
        async with http_client(ServiceTransport(known, services)) as client:
            for number in range(3):
                asked = asyncio.get_running_loop().create_task(client.get(URL))
                await upstream.until(lambda number=number: len(upstream.requests) > number)
                asked.cancel()
                await asyncio.wait({asked})
        called = services.service("inventory", time.monotonic())
        assert called.breaker is not None
        assert called.breaker.state is BreakerState.CLOSED
        assert called.endpoints.active == 0


@BOTH
async def test_an_answer_is_the_calls_until_its_end_and_is_counted_once(kind: str) -> None:
    known = Known()
    services = Services(known)
    async with Upstream() as upstream:
        known.now(instance(1, upstream.port))
        called = services.service("inventory", time.monotonic())
        if kind == "async":
            async with http_client(ServiceTransport(known, services)) as client:
                async with client.stream("GET", URL) as answer:
                    assert called.endpoints.active == 1
                    assert await answer.aread() == b"hello"
                assert called.endpoints.active == 0
                async with client.stream("GET", URL):
                    assert called.endpoints.active == 1
        else:

            def ask() -> None:
                with sync_http_client(SyncServiceTransport(services, lambda: None)) as sync:
                    with sync.stream("GET", URL) as answer:
                        assert called.endpoints.active == 1
                        assert answer.read() == b"hello"
                    with sync.stream("GET", URL):
                        assert called.endpoints.active == 1

            await asyncio.to_thread(ask)
        assert called.endpoints.active == 0


async def test_weights_are_honoured_and_those_of_other_schemes_are_not_asked() -> None:
    async with Upstream() as light, Upstream() as heavy:
        known = Known()
        known.now(
            instance(1, light.port, weight=10), instance(2, heavy.port, weight=30),
            instance(3, unused_port(), scheme="grpc"), instance(4, unused_port(), status=InstanceStatus.DRAINING),
        )  # fmt: skip
        async with calling(known, balance="weighted_round_robin") as ask:
            for _ in range(40):
                assert (await ask("GET", URL)).status_code == 200
        assert (len(light.requests), len(heavy.requests)) == (10, 30)


async def test_a_key_stays_with_its_instance() -> None:
    async with Upstream() as one, Upstream() as two:
        async with calling(Known(one.port, two.port), balance="consistent_hash") as ask:
            for _ in range(10):
                await ask("GET", URL, extensions={"quorate": {"key": "user-7"}})
        assert sorted([len(one.requests), len(two.requests)]) == [0, 10]


@BOTH
async def test_nobody_to_ask_says_why(kind: str) -> None:
    async with calling(Known(), kind) as ask:
        with pytest.raises(ServiceUnreachable, match="no registered instance in namespace 'default'"):
            await ask("GET", URL)
    async with calling(Known(unused_port(), scheme="tcp"), kind) as ask:
        with pytest.raises(httpx.ConnectError, match="i-1 tcp UP weight 100"):
            await ask("GET", URL)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retries": 1}, "and not retries"),
        ({"retry": 1.5}, "retry is True"),
        ({"timeout_s": "1"}, "timeout_s is a number"),
    ],
)
async def test_options_that_cannot_be_read_are_named(options: dict[str, object], said: str) -> None:
    async with calling(Known(1)) as ask:
        with pytest.raises((ValueError, TypeError), match=said):
            await ask("GET", URL, extensions={"quorate": options})
    with pytest.raises(ValueError, match="balance is one of"):
        Services(Known(), balance="best")


async def test_where_opentelemetry_has_an_active_span_its_trace_goes_on() -> None:
    assert propagate is not None  # a program that uses it has imported both
    context = trace.SpanContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, False, trace.TraceFlags(1))
    async with Upstream() as upstream, calling(Known(upstream.port)) as ask:
        with trace.use_span(trace.NonRecordingSpan(context)), request_context({"traceparent": OTHER_TRACEPARENT}):
            await ask("GET", URL)
        assert upstream.requests[-1].field("traceparent") == TRACEPARENT
        with request_context({"traceparent": OTHER_TRACEPARENT}):
            await ask("GET", URL)
        assert (upstream.requests[-1].field("traceparent") or "").startswith(OTHER_TRACEPARENT[:36])
