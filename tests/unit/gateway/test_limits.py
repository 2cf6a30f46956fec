"""The limits of a route: all algorithms, whom they count together, what they tell, and the leaky bucket's queue."""

import asyncio
import json

import pytest
from pydantic import TypeAdapter
from quorate_core.clock import ManualClock
from quorate_gateway.documents.limits import RouteRateLimit
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.limit import Checked, RouteLimit, compile_limit, identity, make_limiter
from quorate_gateway.policies.limit_keys import compile_key, shown_key
from quorate_gateway.proxy.framing import read_request_fields
from quorate_gateway.proxy.refusals import Refusal
from quorate_resilience.limiters import (
    FixedWindow,
    LeakyBucket,
    LocalTable,
    SlidingWindow,
    TabledTokenBucket,
    TokenBucket,
)

FIELDS = read_request_fields(b"\r\nHost: shop\r\nX-Tenant: blue")
ONE, TWO = Caller(b"192.0.2.1"), Caller(b"192.0.2.2")
TOKENS = '"requests_per_second": 0.5, "burst": 4'
FIXED = '"algorithm": "fixed_window", "requests": 4, "window_ms": 60000'
SLIDING = '"algorithm": "sliding_window", "requests": 4, "window_ms": 60000, "sub_windows": 4'
LEAKY = '"algorithm": "leaky_bucket", "requests_per_second": 10, "queue": 3, "queue_wait_ms": 2000'


def document(text: str) -> RouteRateLimit:
    return TypeAdapter(RouteRateLimit).validate_json("{" + text + "}")  # type: ignore[no-any-return]


def limit(text: str, clock: ManualClock | None = None) -> RouteLimit:
    found = compile_limit("orders", document(text), monotonic_s=(clock or ManualClock(0.0)).monotonic_s)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "field", "policy", "refused", "summary"),
    [
        (TOKENS, b"r=3;t=2", "q=4;w=8", 2, "0.5 requests a second, 4 at once, by route"),
        (FIXED, b"r=3;t=60", "q=4;w=60", 60, "4 requests in each window of 60 s, by route"),
        (SLIDING, b"r=3;t=75", "q=4;w=60", 75, "4 requests in each sliding window of 60 s, by route"),
        (
            '"algorithm": "leaky_bucket", "requests_per_second": 0.1, "queue": 0', b"r=0;t=10", "q=1;w=10", 10,
            "0.1 requests a second, one by one, 0 waiting for up to 5 s, by route",
        ),
    ],
    ids=["token bucket", "fixed window", "sliding window", "leaky bucket"],
)  # fmt: skip
def test_each_algorithm_tells_what_is_left_and_when_to_come_again(
    text: str, field: bytes, policy: str, refused: int, summary: str
) -> None:
    limited = limit(text)
    assert limited.check(FIELDS, ONE, 0.0) == Checked(b'\r\nratelimit: "orders";' + field)
    while isinstance(answer := limited.check(FIELDS, ONE, 0.0), Checked):
        pass
    assert isinstance(answer, Refusal)
    assert (answer.rule, answer.status, answer.retry_after_s) == ("rate-limited", 429, refused)
    assert answer.fields == (
        ("ratelimit-policy", f'"orders";{policy}'), ("ratelimit", f'"orders";r=0;t={refused}'),
    )  # fmt: skip
    assert answer.extensions == {"violated-policies": ["orders"]}
    assert limited.summary == summary
    assert limited.left(FIELDS, ONE, 0.0) == 0
    assert isinstance(limited.check(FIELDS, ONE, float(refused)), Checked)


@pytest.mark.parametrize("text", [TOKENS, FIXED, SLIDING])
@pytest.mark.parametrize(
    ("key", "same", "other"),
    [
        ("route", ONE, None),
        ("client", ONE._replace(subject=b"a"), TWO),
        ("api_key", TWO._replace(api_key_id=b"mobile"), ONE._replace(api_key_id=b"web")),
        ("jwt:sub", TWO._replace(claims={"sub": "anna"}), ONE._replace(claims={"sub": "bert"})),
        ("jwt:org", TWO._replace(claims={"org": 7}), ONE._replace(claims={"org": 8})),
    ],
)
def test_requests_with_one_key_are_counted_together_and_others_apart(
    text: str, key: str, same: Caller, other: Caller | None
) -> None:
    limited = limit(f'{text}, "key": "{key}"')
    first = ONE._replace(api_key_id=b"mobile", claims={"sub": "anna", "org": 7})
    limited.check(FIELDS, first, 0.0)
    assert limited.left(FIELDS, same, 0.0) == 3
    assert other is None or limited.left(FIELDS, other, 0.0) == 4


def test_a_header_counts_by_its_value() -> None:
    limited = limit(f'{TOKENS}, "key": "header:X-Tenant"')
    limited.check(FIELDS, ONE, 0.0)
    assert limited.left(FIELDS, TWO, 0.0) == 3
    assert limited.left(read_request_fields(b"\r\nHost: shop\r\nX-Tenant: red"), ONE, 0.0) == 4


@pytest.mark.parametrize("value", [None, True, ["a"], {"a": 1}, "", 1.5])
def test_a_claim_that_names_nobody_is_no_key(value: object) -> None:
    claims = {} if value is None else {"sub": value}
    assert compile_key("jwt:sub")(FIELDS, ONE._replace(claims=claims)) == b""


def test_a_claim_is_bounded_and_any_text_is_one() -> None:
    key_of = compile_key("jwt:sub")
    assert len(key_of(FIELDS, ONE._replace(claims={"sub": "x" * 1_000}))) == 32
    assert len(key_of(FIELDS, ONE._replace(claims={"sub": 10**100}))) == 32
    half_a_character = json.loads('"\\ud800"')
    assert key_of(FIELDS, ONE._replace(claims={"sub": half_a_character})) == b"\xed\xa0\x80"


def test_a_claim_is_shown_as_a_digest() -> None:
    shown = shown_key(b"anna@example.org", document(f'{TOKENS}, "key": "jwt:sub"'))
    assert shown.startswith("digest ")
    assert shown_key(b"mobile", document(f'{TOKENS}, "key": "api_key"')) == "mobile"


@pytest.mark.parametrize(
    ("text", "kind", "share"),
    [
        (TOKENS, TokenBucket, {"rate_per_s": 0.125, "burst": 1}),
        (FIXED, FixedWindow, {"limit": 1, "window_s": 60}),
        (SLIDING, SlidingWindow, {"limit": 1, "window_s": 60, "sub_windows": 4}),
        (LEAKY, LeakyBucket, {"rate_per_s": 2.5, "queue": 0, "queue_wait_s": 2}),
    ],
)
def test_a_share_is_a_part_and_never_nothing(text: str, kind: type, share: dict[str, float]) -> None:
    limiter = make_limiter(document(text), 0.25)
    assert type(limiter) is kind
    assert {name: getattr(limiter, name) for name in share} == share
    assert make_limiter(document(FIXED), 0.001).limit == 1  # type: ignore[union-attr]


def test_limits_over_one_table_count_together() -> None:
    table = LocalTable()
    limits = [compile_limit("orders", document(TOKENS), tables=lambda _name: table) for _ in range(2)]
    assert all(isinstance(found.limiter, TabledTokenBucket) for found in limits if found is not None)
    answers = [found.check(FIELDS, ONE, 0.0) for found in limits * 3 if found is not None]
    assert [isinstance(answer, Checked) for answer in answers] == [True] * 4 + [False] * 2


def test_a_limits_identity_is_another_as_soon_as_a_parameter_is() -> None:
    names = {identity(route, document(text)) for route in ("a", "b") for text in (TOKENS, FIXED, SLIDING, LEAKY)}
    names.add(identity("a", document(TOKENS.replace("4", "5"))))
    assert len(names) == 9
    assert identity("a", document(TOKENS)) in names


# The queue.


async def turn() -> None:
    """Let the event loop tell what it knows."""
    for _ in range(3):
        await asyncio.sleep(0)


def queued(limited: RouteLimit, clock: ManualClock, client: Caller = ONE) -> "asyncio.Future[Checked | Refusal]":
    answer = limited.check(FIELDS, client, clock.monotonic_s())
    assert isinstance(answer, asyncio.Future)
    return answer


def let_go(limited: RouteLimit, clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)
    assert limited.queue is not None
    limited.queue.advance(b"")


async def test_who_comes_faster_than_the_rate_waits_for_a_turn_and_over_the_queue_gets_429() -> None:
    clock = ManualClock(0.0)
    limited = limit(LEAKY, clock)
    assert isinstance(limited.check(FIELDS, ONE, 0.0), Checked)
    places = [queued(limited, clock) for _ in range(3)]
    refusal = limited.check(FIELDS, ONE, 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.retry_after_s, limited.waiting) == (429, 1, 3)
    gone = []
    for _ in range(3):
        let_go(limited, clock, 0.1)
        gone.append([place.done() for place in places])
    assert gone == [[True, False, False], [True, True, False], [True, True, True]]
    assert [place.result().answer_fields for place in places] == [  # type: ignore[union-attr]
        b'\r\nratelimit: "orders";r=%d;t=1' % left for left in (2, 1, 0)
    ]
    assert (limited.waiting, limited.admitted, limited.limited) == (0, 4, 1)


async def test_who_leaves_the_queue_lets_all_behind_move_up() -> None:
    clock = ManualClock(0.0)
    limited = limit(LEAKY, clock)
    limited.check(FIELDS, ONE, 0.0)
    places = [queued(limited, clock) for _ in range(3)]
    places[0].cancel()
    await turn()
    assert limited.waiting == 2
    places.append(queued(limited, clock))
    assert isinstance(limited.check(FIELDS, ONE, 0.0), Refusal)
    let_go(limited, clock, 0.1)
    assert [place.done() for place in places[1:]] == [True, False, False]
    let_go(limited, clock, 0.2)
    assert [place.done() for place in places[1:]] == [True, True, True]


async def test_when_all_have_left_the_next_one_waits_for_nobody_but_the_last_that_went() -> None:
    clock = ManualClock(0.0)
    limited = limit(LEAKY, clock)
    limited.check(FIELDS, ONE, 0.0)
    for place in [queued(limited, clock) for _ in range(3)]:
        place.cancel()
    await turn()
    assert limited.waiting == 0
    clock.advance(0.05)
    place = queued(limited, clock)
    let_go(limited, clock, 0.049)
    assert not place.done()
    let_go(limited, clock, 0.002)
    assert place.done()


async def test_each_key_has_a_queue_of_its_own() -> None:
    clock = ManualClock(0.0)
    limited = limit(f'{LEAKY}, "key": "client"', clock)
    for client in (ONE, TWO):
        assert isinstance(limited.check(FIELDS, client, 0.0), Checked)
    one, two = queued(limited, clock, ONE), queued(limited, clock, TWO)
    clock.advance(0.1)
    assert limited.queue is not None
    limited.queue.advance(ONE.client_key)
    assert (one.done(), two.done(), limited.waiting) == (True, False, 1)


async def test_the_queue_moves_on_by_the_event_loops_own_timer() -> None:
    """With a real clock: nobody calls `advance`."""
    loop = asyncio.get_running_loop()
    limited = compile_limit("orders", document(LEAKY))
    assert limited is not None
    began_s, left_s = loop.time(), []
    places = [limited.check(FIELDS, ONE, loop.time()) for _ in range(4)]
    for place in places[1:]:
        assert isinstance(place, asyncio.Future)
        assert isinstance(await place, Checked)
        left_s.append(loop.time() - began_s)
    assert all(at >= turn_s - 0.002 for at, turn_s in zip(left_s, (0.1, 0.2, 0.3), strict=True))
    assert limited.waiting == 0
