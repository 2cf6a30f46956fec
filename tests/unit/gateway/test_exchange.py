"""The exchange, event by event: what is tried again and what not, whose time is over, and what a tunnel leaves."""

import asyncio
import re
from typing import Any

import pytest
from quorate_core.errors import Retry
from quorate_gateway.policies.admission import Admission
from quorate_gateway.proxy.exchange import HELD_BYTES_MAX
from quorate_gateway.proxy.heads import IDS_DRAWN
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.proxy.tunnel import accept_of
from quorate_gateway.proxy.upstream import UpstreamConnection
from support.gateway_exchange import Scene

GET = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\n{}"
DATE = b"Date: Mon, 23 Nov 2026 09:00:00 GMT\r\n"
OK = b"HTTP/1.1 200 OK\r\n" + DATE + b"Content-Length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\n" + DATE + b"Content-Length: 4\r\n\r\nbusy"
STATUSES = ", retry: {attempts: 2, statuses: [503]}"
PER_TRY = ", timeout_ms: 5000, retry: {attempts: 2, per_try_timeout_ms: 400}"


def sent(connection: UpstreamConnection) -> bytes:
    return connection.transport.written  # type: ignore[attr-defined, no-any-return]


async def turn() -> None:
    """Let the loop do what it was asked to do soon."""
    for _ in range(3):
        await asyncio.sleep(0)


async def lose(connection: UpstreamConnection) -> None:
    connection.transport.lose(None)  # type: ignore[attr-defined]
    await turn()


def connect(scene: Scene, uses: int = 0) -> UpstreamConnection:
    pool = scene.waiting_pool()
    assert pool is not None, "nobody waits for a connection"
    return pool.connect(uses)


async def ended_with(scene: Scene) -> str | None:
    await turn()
    scene.check_nothing_is_left()
    return scene.client.last_act


# Retries.


async def test_a_status_that_the_route_retries_goes_to_another_instance() -> None:
    scene = Scene(STATUSES, GET)
    scene.start()
    first = connect(scene)
    first.data_received(BUSY)
    assert scene.client.written == b""
    second = connect(scene)
    second.data_received(OK)
    assert scene.client.written.endswith(b"ok")
    assert [(name, failed) for name, _, failed in scene.balancing.ends] == [("order-1", True), ("order-2", False)]
    assert first.pool.idle == 1, "an answer that came whole leaves its connection usable"
    assert await ended_with(scene) == "answered, and goes on"


async def test_when_every_try_answers_so_the_last_answer_is_passed_on() -> None:
    scene = Scene(STATUSES, GET)
    scene.start()
    for _ in range(3):
        connect(scene).data_received(BUSY)
    assert scene.client.written == BUSY
    assert scene.counters.route(scene.route.name).retries == 2
    assert await ended_with(scene) == "answered, and goes on"


@pytest.mark.parametrize(
    ("route", "request_bytes", "answer"),
    [
        ("", GET, BUSY),
        (STATUSES, POST, BUSY),
        (STATUSES, GET, BUSY.replace(b"503", b"500")),
        (", retry: {attempts: 0, statuses: [503]}", GET, BUSY),
        (STATUSES, GET, b"HTTP/1.1 103 Early Hints\r\n\r\n" + BUSY),
    ],
    ids=["no statuses", "not idempotent", "another status", "no attempts", "hints have been passed on"],
)
async def test_otherwise_its_status_is_the_answer(route: str, request_bytes: bytes, answer: bytes) -> None:
    scene = Scene(route, request_bytes)
    scene.start()
    connect(scene).data_received(answer)
    assert scene.client.written == answer
    assert await ended_with(scene) == "answered, and goes on"


async def test_a_post_is_sent_again_only_where_the_route_says_that_it_may() -> None:
    for route, tries in ((", retry: {attempts: 2}", 1), (", retry: {attempts: 2, non_idempotent: true}", 3)):
        scene = Scene(route, POST)
        scene.start()
        for _ in range(tries):
            await lose(connect(scene))
        assert await ended_with(scene) == "refused: upstream-failed"
        assert scene.balancing.began_count == tries


async def test_a_stale_connection_is_replaced_once_whatever_the_attempts_and_nobody_is_blamed() -> None:
    scene = Scene(", retry: {attempts: 0, budget_percent: 0}", GET)
    scene.start()
    await lose(connect(scene, uses=7))
    fresh = connect(scene)
    fresh.data_received(OK)
    assert [(name, failed) for name, _, failed in scene.balancing.ends] == [("order-1", None), ("order-1", False)]
    assert scene.counters.route(scene.route.name).retries == 0
    assert await ended_with(scene) == "answered, and goes on"


async def test_it_is_not_replaced_twice() -> None:
    scene = Scene(", retry: {attempts: 0}", GET)
    scene.start()
    await lose(connect(scene, uses=7))
    await lose(connect(scene))
    assert await ended_with(scene) == "refused: upstream-failed"


async def test_a_fresh_connection_is_waited_for_while_used_ones_come_free() -> None:
    scene = Scene(", retry: {attempts: 0}", GET)
    scene.start()
    await lose(connect(scene, uses=7))
    passed_over = connect(scene, uses=3)
    assert (sent(passed_over), passed_over.pool.idle, passed_over.pool.waiting) == (b"", 1, 1)
    connect(scene).data_received(OK)
    assert await ended_with(scene) == "answered, and goes on"


async def test_a_body_that_was_too_much_to_hold_is_not_sent_again() -> None:
    size = HELD_BYTES_MAX + 1
    scene = Scene("", b"PUT /a HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    scene.start()
    await lose(connect(scene))
    assert await ended_with(scene) == "refused: upstream-failed"


async def test_the_budget_bounds_the_retries_of_a_whole_route() -> None:
    route = ", retry: {attempts: 5, budget_percent: 0}, circuit_breaker: off"
    first = Scene(route, GET)
    retries = 0
    for _ in range(10):
        scene = Scene(route, GET)
        scene.route = first.route  # one route, and so one budget
        scene.start()
        while (pool := scene.waiting_pool()) is not None:
            pool.refuse()
        assert scene.client.last_act == "refused: upstream-unreachable"
        retries += scene.counters.route(scene.route.name).retries
    assert retries == 10
    assert first.route.retry.budget.refused == 5


async def test_a_pool_that_is_exhausted_sends_the_request_elsewhere() -> None:
    scene = Scene("", GET)
    scene.pool(scene.balancing.endpoints[0]).waiters_max = 0
    scene.start()
    connect(scene).data_received(OK)
    assert [(name, failed) for name, _, failed in scene.balancing.ends] == [("order-1", None), ("order-2", False)]
    assert await ended_with(scene) == "answered, and goes on"


# Times.


async def test_a_try_that_is_out_of_time_is_given_up_for_another_one() -> None:
    scene = Scene(PER_TRY, GET)
    exchange = scene.start()
    scene.clock.advance(0.3)  # waiting for the connection is not the instance's time
    hanging = connect(scene)
    scene.clock.advance(0.3)
    exchange.expire(scene.clock.monotonic_s())
    assert scene.serving() is hanging
    scene.clock.advance(0.1)
    exchange.expire(scene.clock.monotonic_s())
    assert hanging.transport.is_closing()
    connect(scene).data_received(OK)
    assert [failed for _, _, failed in scene.balancing.ends] == [True, False]
    assert scene.balancing.ends[0][1] == pytest.approx(0.7)
    assert await ended_with(scene) == "answered, and goes on"


async def test_a_try_that_cannot_be_repeated_goes_on_until_the_routes_timeout() -> None:
    scene = Scene(PER_TRY, POST)
    exchange = scene.start()
    hanging = connect(scene)
    for _ in range(4):
        scene.clock.advance(1.2)
        exchange.expire(scene.clock.monotonic_s())
        assert scene.serving() is hanging
    scene.clock.advance(0.3)
    exchange.expire(scene.clock.monotonic_s())
    assert await ended_with(scene) == "refused: upstream-timeout"


def hurried(timeout_ms: bytes) -> bytes:
    return b"GET /a HTTP/1.1\r\nHost: shop\r\nX-Request-Timeout-Ms: %b\r\n\r\n" % timeout_ms


@pytest.mark.parametrize("timeout_ms", [b"0", b"-20"])
async def test_a_caller_that_no_longer_waits_is_refused_at_once(timeout_ms: bytes) -> None:
    scene = Scene("", hurried(timeout_ms))
    scene.start()
    assert scene.balancing.began_count == 0
    assert scene.client.refusal is not None
    assert (scene.client.refusal.status, scene.client.refusal.retry) == (504, Retry.SAFE)
    assert await ended_with(scene) == "refused: deadline-exceeded"


async def test_each_try_is_told_what_is_left_when_it_is_sent() -> None:
    scene = Scene("", hurried(b"750"))
    scene.start()
    scene.clock.advance(0.25)
    first = connect(scene)
    assert b"\r\nx-request-timeout-ms: 500\r\n\r\n" in sent(first)
    scene.clock.advance(0.25)
    await lose(first)
    second = connect(scene)
    assert b"\r\nx-request-timeout-ms: 250\r\n\r\n" in sent(second)
    assert sent(second).count(b"imeout-") == 1
    second.data_received(OK)
    assert await ended_with(scene) == "answered, and goes on"


async def test_nothing_is_told_where_the_caller_said_nothing() -> None:
    scene = Scene("", GET)
    scene.start()
    connection = connect(scene)
    assert b"imeout" not in sent(connection)
    connection.data_received(OK)
    assert await ended_with(scene) == "answered, and goes on"


async def test_a_caller_in_a_hurry_says_nothing_of_the_upstream() -> None:
    scene = Scene("", hurried(b"200"))
    exchange = scene.start()
    connect(scene)
    scene.clock.advance(0.2)
    exchange.expire(scene.clock.monotonic_s())
    assert await ended_with(scene) == "refused: deadline-exceeded"
    assert scene.client.refusal is not None
    assert scene.client.refusal.retry is Retry.UNKNOWN
    assert [failed for _, _, failed in scene.balancing.ends] == [None]
    assert scene.breaker.counts(scene.clock.monotonic_s()) == (0, 0, 0)


async def test_a_deadline_sets_a_timer_of_its_own_and_leaves_none() -> None:
    scene = Scene("", hurried(b"900"))
    exchange = scene.start()
    timer = exchange._timer
    assert timer is not None
    connection = connect(scene)
    assert timer.cancelled(), "it is set anew, and the former one is not left behind"
    timer = exchange._timer
    assert timer is not None
    connection.data_received(OK)
    assert timer.cancelled()
    assert await ended_with(scene) == "answered, and goes on"


STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"


async def test_a_client_that_reads_slowly_is_not_idle_and_one_that_does_not_read_is_not_the_upstreams_fault() -> None:
    scene = Scene(", idle_timeout_ms: 4000", GET)
    exchange = scene.start()
    connect(scene).data_received(STREAM)
    scene.client.is_paused, scene.client.unsent = True, 300_000
    exchange.client_paused(True)
    for _ in range(5):
        scene.clock.advance(3.0)
        scene.client.unsent -= 1_000
        exchange.expire(scene.clock.monotonic_s())
    scene.clock.advance(3.9)
    exchange.expire(scene.clock.monotonic_s())
    assert scene.client.last_act is None
    scene.clock.advance(0.1)
    exchange.expire(scene.clock.monotonic_s())
    assert await ended_with(scene) == "cut short"
    assert [failed for _, _, failed in scene.balancing.ends] == [None]


async def test_a_stream_that_falls_silent_is_the_upstreams_fault() -> None:
    scene = Scene(", idle_timeout_ms: 4000", GET)
    exchange = scene.start()
    connection = connect(scene)
    connection.data_received(STREAM)
    for _ in range(3):
        scene.clock.advance(3.9)
        exchange.expire(scene.clock.monotonic_s())
        connection.data_received(b"1\r\ny\r\n")
    scene.clock.advance(4.0)
    exchange.expire(scene.clock.monotonic_s())
    assert await ended_with(scene) == "cut short"
    assert [failed for _, _, failed in scene.balancing.ends] == [True]


async def test_a_head_that_never_ends_is_bounded_by_the_routes_timeout_however_it_trickles() -> None:
    scene = Scene(", timeout_ms: 3000", GET)
    exchange = scene.start()
    connection = connect(scene)
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: aaaaaaaa":
        connection.data_received(bytes([byte]))
        scene.clock.advance(0.1)
        exchange.expire(scene.clock.monotonic_s())
        if scene.has_ended:
            break
    assert await ended_with(scene) == "refused: upstream-timeout"
    assert scene.breaker.counts(scene.clock.monotonic_s()) == (1, 0, 1)


# Admission.


Asked = asyncio.Future[Admission | Refusal]


def start_asking(scene: Scene) -> Asked:
    """As with a shared limit, or a place in the queue of a leaky bucket."""
    asked: Asked = asyncio.get_running_loop().create_future()
    scene.start(asked)
    assert (scene.client.last_act, scene.balancing.began_count) == (None, 0)
    return asked


async def admit(asked: Asked, answer_fields: bytes = b"") -> None:
    asked.set_result(Admission(answer_fields=answer_fields))
    await turn()


async def test_the_body_waits_with_its_request_and_is_bounded() -> None:
    scene = Scene("", b"POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 100000\r\n\r\n")
    asked = start_asking(scene)
    exchange = scene.exchange
    assert exchange is not None
    exchange.body(b"x" * 60_000, False)
    assert not scene.client.is_body_held
    exchange.body(b"x" * 10_000, False)
    assert scene.client.is_body_held
    await admit(asked)
    connection = connect(scene)
    assert not scene.client.is_body_held
    exchange.body(b"x" * 30_000, True)
    assert sent(connection).endswith(b"\r\n\r\n" + b"x" * 100_000)
    connection.data_received(OK)
    assert await ended_with(scene) == "answered, and goes on"


async def test_the_time_in_a_queue_is_not_the_services() -> None:
    scene = Scene(", timeout_ms: 3000", GET)
    asked = start_asking(scene)
    exchange = scene.exchange
    assert exchange is not None
    for _ in range(5):
        scene.clock.advance(1.0)
        exchange.expire(scene.clock.monotonic_s())
    await admit(asked)
    connection = connect(scene)
    scene.clock.advance(0.9)
    exchange.expire(scene.clock.monotonic_s())
    connection.data_received(OK)
    assert await ended_with(scene) == "answered, and goes on"
    assert scene.breaker.counts(scene.clock.monotonic_s()) == (1, 0, 0), "nor was it slow"


async def test_a_client_that_leaves_a_queue_gives_its_place_back() -> None:
    scene = Scene("", GET)
    asked = start_asking(scene)
    assert scene.exchange is not None
    scene.exchange.client_gone()
    scene.client.last_act = "left"
    assert asked.cancelled()
    assert scene.breaker.permits == []
    assert await ended_with(scene) == "left"


async def test_a_limit_that_refuses_late_is_told_with_its_fields() -> None:
    scene = Scene("", GET)
    asked = start_asking(scene)
    asked.set_result(Refusal("rate-limited", 429, "over", Retry.SAFE).with_answer_fields(b"\r\nvary: Origin"))
    assert await ended_with(scene) == "refused: rate-limited"
    assert scene.client.refusal is not None
    assert scene.client.refusal.answer_fields == b"\r\nvary: Origin"


async def test_a_limit_that_fails_is_told_as_a_defect_and_holds_nobody() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    scene = Scene("", GET)
    asked = start_asking(scene)
    asked.set_exception(OSError("a defect"))
    assert await ended_with(scene) == "refused: gateway-fault"
    assert [str(context["exception"]) for context in told] == ["a defect"]


async def test_what_a_route_admits_may_still_be_shed_or_broken_when_its_turn_comes() -> None:
    for cause, rule in (("load", "overloaded"), ("breaker", "circuit-open")):
        scene = Scene("", GET)
        asked = start_asking(scene)
        if cause == "load":
            scene.load.active += scene.load.active_max
        else:
            scene.breaker.force_open(scene.clock.monotonic_s())
        await admit(asked, b"\r\nratelimit: x")
        if cause == "load":
            scene.load.active -= scene.load.active_max
        assert await ended_with(scene) == f"refused: {rule}"
        assert scene.client.refusal is not None
        assert scene.client.refusal.answer_fields == b"\r\nratelimit: x"


@pytest.mark.parametrize(
    ("route", "request_bytes", "rule"),
    [(", total_timeout_ms: 2000", GET, "queued-too-long"), ("", hurried(b"2000"), "deadline-exceeded")],
)
async def test_one_that_waits_too_long_for_its_turn_gives_it_back(route: str, request_bytes: bytes, rule: str) -> None:
    scene = Scene(route, request_bytes)
    asked = start_asking(scene)
    assert scene.exchange is not None
    scene.clock.advance(2.0)
    scene.exchange.expire(scene.clock.monotonic_s())
    assert asked.cancelled()
    assert await ended_with(scene) == f"refused: {rule}"
    assert scene.client.refusal is not None
    assert scene.client.refusal.retry is Retry.SAFE


# Tunnels.

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = (
    b"GET /a HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % KEY
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %b\r\n\r\n"
)


async def test_a_tunnel_counts_as_a_request_and_as_a_try_until_its_connection_ends() -> None:
    scene = Scene(", websocket: true", HANDSHAKE)
    scene.start()
    connection = connect(scene)
    scene.clock.advance(0.25)
    connection.data_received(SWITCH % accept_of(KEY))
    assert scene.client.last_act == "tunnelled"
    assert scene.client.written.startswith(b"HTTP/1.1 101 ")
    assert (scene.load.active, scene.counters.route(scene.route.name).active, scene.balancing.ends) == (1, 1, [])
    assert all(permit.is_settled for permit in scene.breaker.permits)
    assert scene.client.tunnel is not None
    scene.client.tunnel.client_sent(b"frame")
    assert sent(connection).endswith(b"frame")
    scene.client.tunnel.client_gone()
    await turn()
    assert scene.balancing.ends == [("order-1", 0.25, False)]
    assert await ended_with(scene) == "tunnelled"


async def test_a_101_for_another_handshake_is_a_bad_answer() -> None:
    scene = Scene(", websocket: true", HANDSHAKE)
    scene.start()
    connect(scene).data_received(SWITCH % b"bm90IHRoZSBhY2NlcHQgb2YgdGhpcw==")
    await turn()
    assert await ended_with(scene) == "refused: bad-upstream-response"


# What is added to an answer.


@pytest.mark.parametrize("answer_fields", [b"", b"\r\nratelimit: 1"])
@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2", b"ok"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", b"2\r\nok\r\n0\r\n\r\n"),
    ],
    ids=["passed on whole", "passed on piece by piece"],
)
async def test_an_answer_without_a_date_is_given_one(head: bytes, rest: bytes, answer_fields: bytes) -> None:
    """RFC 9110, section 6.6.1: who forwards a response must append the Date that it lacks."""
    scene = Scene("", GET)
    scene.start(Admission(answer_fields=answer_fields))
    connect(scene).data_received(head + b"\r\n\r\n" + rest)
    assert scene.client.written.count(b"\r\ndate: Thu, 01 Jan 1970 00:16:40 GMT\r\n") == 1
    assert scene.client.written.startswith(head + b"\r\n")
    assert answer_fields in scene.client.written
    assert scene.client.written.endswith(b"\r\n\r\n" + rest)
    assert await ended_with(scene) == "answered, and goes on"


async def test_a_date_that_a_route_removes_is_not_added() -> None:
    scene = Scene(", response_headers: {remove: [date]}", GET)
    scene.start()
    connect(scene).data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert scene.client.written == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    assert await ended_with(scene) == "answered, and goes on"


async def test_an_answer_that_has_a_date_keeps_its_own() -> None:
    scene = Scene("", GET)
    scene.start()
    connect(scene).data_received(OK)
    assert scene.client.written == OK
    assert await ended_with(scene) == "answered, and goes on"


async def test_every_request_has_an_id_and_a_trace_of_its_own() -> None:
    """They are drawn many at a time: more requests than are drawn at once."""
    ids, traces = set(), set()
    for _ in range(3 * IDS_DRAWN):
        scene = Scene("", GET)
        scene.start()
        connection = connect(scene)
        found = re.search(
            rb"\r\nx-request-id: ([0-9a-f]{16})\r\ntraceparent: (00-[0-9a-f]{32}-[0-9a-f]{16}-00)\r\n", sent(connection)
        )
        assert found is not None
        ids.add(found[1])
        traces.add(found[2])
    assert len(ids) == len(traces) == 3 * IDS_DRAWN
