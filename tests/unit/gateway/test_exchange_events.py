"""The exchange under any sequence of events: it ends once, and leaves nothing behind.

Connections are refused, reset or never made; answers are whole, half, none of HTTP, or say that another try is wanted;
time passes; policies answer late; the client pauses, sends nonsense, or leaves, in every state.
"""

import asyncio
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from quorate_core.errors import Retry
from quorate_gateway.policies.admission import Admission
from quorate_gateway.proxy.refusals import Refusal
from quorate_gateway.proxy.tunnel import accept_of
from support.gateway_exchange import Scene

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
GET = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n"
REQUESTS = {
    "get": GET,
    "get in a hurry": b"GET /a HTTP/1.1\r\nHost: shop\r\nX-Request-Timeout-Ms: 700\r\n\r\n",
    "post": b"POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\n{}",
    "put whose body is still to come": b"PUT /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 6\r\n\r\nabc",
    "handshake": (
        b"GET /a HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % KEY
    ),
}
ROUTES = {
    "plain": "",
    "all": (
        ", websocket: true, timeout_ms: 3000, idle_timeout_ms: 4000, total_timeout_ms: 9000,"
        " retry: {attempts: 3, per_try_timeout_ms: 400, statuses: [503]}"
    ),
    "repeats posts": ", retry: {attempts: 1, non_idempotent: true, statuses: [500, 503]}",
}
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ANSWERS = {
    "200": WHOLE,
    "503": b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
    "503, half of it": b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\nbusy",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
    "a stream": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
    "until the end": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "early hints": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "no http": b"220 mail.example ESMTP\r\n\r\n",
    "more than one": WHOLE + WHOLE,
    "switch": (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\nframe" % accept_of(KEY)
    ),
}


def answer(data: bytes) -> Callable[[Scene], None]:
    def received(scene: Scene) -> None:
        connection = scene.serving()
        if connection is not None:
            connection.data_received(data)

    return received


def connect(scene: Scene) -> None:
    pool = scene.waiting_pool()
    if pool is not None:
        pool.connect()


def connect_used(scene: Scene) -> None:
    """A connection that has served somebody before, so that its end is nobody's failure."""
    pool = scene.waiting_pool()
    if pool is not None:
        pool.connect(uses=1)


def refuse(scene: Scene) -> None:
    pool = scene.waiting_pool()
    if pool is not None:
        pool.refuse()


def lose(error: Exception | None) -> Callable[[Scene], None]:
    def lost(scene: Scene) -> None:
        connection = scene.serving()
        if connection is not None:
            connection.transport.lose(error)  # type: ignore[attr-defined]

    return lost


def fill(paused: bool) -> Callable[[Scene], None]:
    def filled(scene: Scene) -> None:
        connection = scene.serving()
        if connection is not None:
            connection.pause_writing() if paused else connection.resume_writing()

    return filled


def pass_time(seconds: float) -> Callable[[Scene], None]:
    def passed(scene: Scene) -> None:
        scene.clock.advance(seconds)
        if scene.exchange is not None and not scene.has_ended:
            scene.exchange.expire(scene.clock.monotonic_s())

    return passed


def on_exchange(act: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """As the client's connection does: only while the exchange has not ended."""

    def acted(scene: Scene) -> None:
        if not scene.has_ended:
            act(scene)

    return acted


@on_exchange
def more_body(scene: Scene) -> None:
    if scene.exchange is not None and scene.head.fields.length == 6 and len(scene.rest) < 6:
        scene.rest += b"d" * (6 - len(scene.rest))
        scene.exchange.body(b"def", True)


@on_exchange
def bad_body(scene: Scene) -> None:
    if scene.exchange is not None and scene.head.fields.length == 6 and len(scene.rest) < 6:
        scene.exchange.refuse_body(Refusal("bad-chunk", 400, "not a chunk"))


def pause(paused: bool) -> Callable[[Scene], None]:
    @on_exchange
    def acted(scene: Scene) -> None:
        scene.client.is_paused = paused
        if scene.exchange is not None:
            scene.exchange.client_paused(paused)

    return acted


def leave(scene: Scene) -> None:
    """The client is gone, from the exchange or from the tunnel."""
    if scene.client.tunnel is not None:
        scene.client.tunnel.client_gone()
    elif scene.exchange is not None and not scene.has_ended:
        scene.client.last_act = "left"
        scene.exchange.client_gone()


ALWAYS: dict[str, Callable[[Scene], None]] = {
    "0.25 s pass": pass_time(0.25),
    "1.1 s pass": pass_time(1.1),
    "4 s pass": pass_time(4.0),
    "the client stops reading": pause(True),
    "the client reads on": pause(False),
    "the client leaves": leave,
}
WHILE_BODY_COMES: dict[str, Callable[[Scene], None]] = {
    "the rest of the body comes": more_body,
    "the body is bad": bad_body,
}
WHILE_CONNECTING: dict[str, Callable[[Scene], None]] = {
    "a connection is made": connect,
    "a used connection comes free": connect_used,
    "the connection is refused": refuse,
}
WHILE_SERVED: dict[str, Callable[[Scene], None]] = {
    "the upstream closes": lose(None),
    "the upstream resets": lose(ConnectionResetError()),
    "the upstream's buffer is full": fill(True),
    "the upstream's buffer has room": fill(False),
    **{f"the upstream answers: {name}": answer(data) for name, data in ANSWERS.items()},
}
EVENTS = {**ALWAYS, **WHILE_BODY_COMES, **WHILE_CONNECTING, **WHILE_SERVED}


def possible(scene: Scene) -> list[str]:
    """What can happen now; most of what matters comes first, which is where shrinking goes to."""
    found: list[str] = []
    if scene.waiting_pool() is not None:
        found += [*WHILE_CONNECTING] * 2
    if scene.serving() is not None:
        found += WHILE_SERVED
    if scene.head.fields.length == 6 and len(scene.rest) < 6:
        found += WHILE_BODY_COMES
    return [*found, *ALWAYS]


STEPS_MAX = 12
ADMISSIONS = ("at once", "asked", "asked and refused", "asked, never answered")


async def play(request: str, route: str, admission: str, draw: Callable[[list[str]], str]) -> Scene:
    scene = Scene(ROUTES[route], REQUESTS[request])
    asked: asyncio.Future[Admission | Refusal] = asyncio.get_running_loop().create_future()
    scene.start(asked if admission.startswith("asked") else Admission())
    for step in range(STEPS_MAX):
        if scene.has_ended and scene.client.tunnel is None:
            break
        EVENTS[draw(possible(scene))](scene)
        if step == 1 and not asked.done() and admission != "asked, never answered":
            refused = Refusal("rate-limited", 429, "over the limit", Retry.SAFE)
            asked.set_result(refused if admission == "asked and refused" else Admission())
        for _ in range(3):  # for what the loop was asked to do soon
            await asyncio.sleep(0)
    leave(scene)
    for _ in range(3):
        await asyncio.sleep(0)
    if admission == "asked, never answered":
        assert asked.cancelled(), "its place in the queue is not given back"
    return scene


@settings(max_examples=600)
@given(
    st.sampled_from(sorted(REQUESTS)),
    st.sampled_from(sorted(ROUTES)),
    st.sampled_from([*ADMISSIONS, *ADMISSIONS[:1] * 9]),
    st.data(),
)
def test_whatever_happens_it_ends_once_and_leaves_nothing_behind(
    request_name: str, route: str, admission: str, data: st.DataObject
) -> None:
    scene = asyncio.run(
        play(request_name, route, admission, lambda events: data.draw(st.sampled_from(events), label="event"))
    )
    assert scene.client.last_act is not None
    scene.check_nothing_is_left()
    counters = scene.counters.route(scene.route.name)
    assert sum(counters.ended) == 1
    sent = b"".join(connection.transport.written for pool in scene.pools.values() for connection in pool.made)  # type: ignore[attr-defined]
    if request_name == "post" and route != "repeats posts":
        assert sent.count(b"POST /a") <= 1, "a POST was sent twice"
    assert sent.count(b"HTTP/1.1\r\n") <= 1 + counters.retries + 1, "more tries than retries, and a stale connection"
