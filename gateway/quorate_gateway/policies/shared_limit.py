"""Limits that several gateways count together, in Redis: one connection, and never a request that waits for long.

Theory of operation. `SharedLimits` is

- *up*: questions are sent over the one connection as they come, many at a time, and the answers come in their order.
  A question that is not answered within `wait_s_max` is decided by the gateway's own share of the limit; its answer is
  thrown away when it comes. So is one that Redis answers with an error;
- *down*: every check is decided by the own share, at once and without a future. No request asks, and none probes: one
  task does, with a pause that doubles up to PAUSE_S_MAX. It connects, loads the scripts, and wants an answer within the
  time that a request would get.

Up turns to down when the connection is lost, when nothing has come for `silence_s_max` although something is owed, and
when MISSES_MAX times in a row answers were late or errors. So a Redis that is paused, gone, full, loading or just slow
costs a few requests `wait_s_max` each, and the others nothing. Down turns to up by the probe alone.

The own share is `local_share_percent` of the limit. Its state is kept while Redis decides, so that a Redis that comes
and goes does not give the share out anew each time; in the worst case a gateway admits what Redis did and its share.

A script that Redis has lost (a restart, SCRIPT FLUSH) is sent whole with the question, which loads it again.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import structlog
from quorate_core.clock import Clock, SystemClock
from quorate_core.errors import InvariantViolation, SettingsError
from quorate_core.tasks import TaskOwner
from quorate_resilience.adapters.redis_limiter import (
    GIVE_BACK,
    SCRIPTS,
    TOKEN_BUCKET,
    Script,
    ScriptedDecision,
    ScriptedLimit,
    decision,
    scripted,
)
from quorate_resilience.limiters import LeakyBucket, Table
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry as RedisRetry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError

from quorate_gateway.documents.limits import RouteRateLimit
from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.limit import Answer, RouteLimit, identity, make_limiter
from quorate_gateway.policies.limit_queue import TIMER_S_MIN, LimitQueue
from quorate_gateway.proxy.framing import RequestFields

BUDGET_S = 0.010
"""A check is done within so long, whatever Redis does."""
MISSES_MAX = 5
OWN_PAUSE_S = 0.004
"""When our timer is so much late, it was we who were busy, and Redis may have answered long ago."""
PROBE_S_MAX = 1.0
"""For connecting and loading the scripts."""
PAUSE_S_MIN = 0.05
PAUSE_S_MAX = 2.0
PREFIX = b"quorate:limit:"
"""Of all keys in Redis."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, and for how much, Redis is waited for."""

    wait_s_max: float = 0.008
    """For an answer: what the budget leaves when the event loop's timer is a bit late."""
    silence_s_max: float = 0.1
    in_flight_max: int = 4_096
    """Questions that are not answered; those over it are decided by the own share."""


class _Slow(Exception):
    """Redis is there, and would not answer in time."""


class _Question:
    """`answered` is called once, with what Redis said or None; None itself once it was."""

    __slots__ = ("answered", "arguments", "asked_s", "script")

    def __init__(
        self, script: Script, arguments: tuple[bytes, ...], answered: "Callable[[Any], None] | None", asked_s: float
    ) -> None:
        self.script = script
        self.arguments = arguments
        self.answered = answered
        self.asked_s = asked_s

    def answer(self, reply: Any) -> None:
        answered, self.answered = self.answered, None
        if answered is not None:
            answered(reply)


class SharedLimits:
    """The connection to Redis, and what is owed over it. Counters are since the start.

    `redis_url` is as redis-py has it (`redis://`, `rediss://`, `unix://`); it may hold a password, and is never shown.
    Raises SettingsError when it is none.
    """

    def __init__(
        self,
        redis_url: str,
        tasks: TaskOwner,
        clock: Clock | None = None,
        chance: random.Random | None = None,
        patience: Patience = Patience(),
    ) -> None:
        try:
            self._pool = ConnectionPool.from_url(
                redis_url, protocol=2, retry=RedisRetry(NoBackoff(), 0), socket_timeout=None,
                socket_connect_timeout=PROBE_S_MAX, health_check_interval=0,
            )  # fmt: skip
        except ValueError as error:
            raise SettingsError("the URL of Redis is redis://, rediss:// or unix://, a host and a port") from error
        self._tasks = tasks
        self._patience = patience
        self._monotonic_s = (clock or SystemClock()).monotonic_s
        self._chance = chance or random.Random()
        self._connection: AbstractConnection | None = None
        self._in_flight: deque[_Question] = deque()
        """In the order in which they were asked; the answers come so."""
        self._owed: deque[_Question] = deque()
        """Those of them whose time may not be up."""
        self._outgoing: list[bytes] = []
        self._wake = asyncio.Event()
        self._failed: asyncio.Future[str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = math.inf
        self._misses = 0
        self._running: asyncio.Task[None] | None = None
        self.down_reason = "not connected yet"
        """Empty while up."""
        self._is_down_told = False
        self.answered = 0
        self.late = 0
        self.errors = 0
        self.times_down = 0

    def start(self) -> None:
        """Connect, and stay connected."""
        self._running = self._tasks.start(self._run(), "shared-limits")

    async def close(self) -> None:
        """Decide by the own share from now on."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    @property
    def is_up(self) -> bool:
        return self._connection is not None

    @property
    def takes_questions(self) -> bool:
        """Whether this is the time to `ask`."""
        return self._connection is not None and len(self._in_flight) < self._patience.in_flight_max

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def limit(
        self,
        route_name: str,
        document: RouteRateLimit,
        table: Table | None = None,
        monotonic_s: Callable[[], float] = monotonic,
    ) -> "SharedRouteLimit":
        """A limit that asks here. `table` is for its own share, where several processes have that together."""
        return SharedRouteLimit(self, route_name, document, table, monotonic_s)

    def ask(
        self, script: Script, arguments: tuple[bytes, ...], answered: Callable[[Any], None] | None, key: bytes
    ) -> None:
        """Send the question, while `takes_questions`; `answered` will be called once, within the budget, with the reply
        or None."""
        question = _Question(script, (b"1", PREFIX + key, *arguments), answered, self._monotonic_s())
        self._send(question, b"EVALSHA", script.sha.encode())
        self._owed.append(question)
        if question.asked_s + self._patience.wait_s_max < self._timer_due_s:
            self._set_timer(question.asked_s + self._patience.wait_s_max)

    def _send(self, question: _Question, command: bytes, script: bytes) -> None:
        if self._connection is None:
            raise InvariantViolation("a question to Redis while there is no connection")
        self._in_flight.append(question)
        self._outgoing += self._connection.pack_command(command, script, *question.arguments)
        self._wake.set()

    # Being up.

    async def _run(self) -> None:
        pause_s = PAUSE_S_MIN
        while True:
            try:
                async with asyncio.timeout(PROBE_S_MAX):
                    connection = await self._open()
            except (RedisError, OSError, TimeoutError, ValueError, _Slow) as error:
                self._told_down(str(error) or type(error).__name__)
            else:
                up_s = self._monotonic_s()
                await self._serve(connection)
                if self._monotonic_s() - up_s > PAUSE_S_MAX:
                    pause_s = PAUSE_S_MIN
            await asyncio.sleep(pause_s * self._chance.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def _open(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            for script in SCRIPTS:
                await connection.send_command("SCRIPT", "LOAD", script.text)
                await connection.read_response()
            asked_s = self._monotonic_s()
            # A check that is always admitted, and so writes: a replica, or a Redis that is full, would do to read from.
            await connection.send_command("EVALSHA", TOKEN_BUCKET.sha, 1, PREFIX + b"probe", 1_000, 1_000, 1)
            await connection.read_response()
            if self._monotonic_s() - asked_s > self._patience.wait_s_max:
                raise _Slow(f"no answer within {self._patience.wait_s_max * 1_000:g} ms")
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _serve(self, connection: AbstractConnection) -> None:
        """Until the connection fails; then nothing is owed any more."""
        self._failed = asyncio.get_running_loop().create_future()
        self._connection, self._misses = connection, 0
        self._wake.clear()
        log.info("shared_limits_up", was=self.down_reason)
        self.down_reason, self._is_down_told = "", False
        working = [
            self._tasks.start(work(connection), name)
            for work, name in ((self._read, "shared-limits-read"), (self._write, "shared-limits-write"))
        ]
        try:
            self._told_down(await self._failed)
        finally:
            self._connection = None
            self._forget_owed()
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            await connection.disconnect(nowait=True)

    async def _read(self, connection: AbstractConnection) -> None:
        try:
            while True:
                reply = await _reply(connection)
                if isinstance(reply, NoScriptError):
                    self._lost_script()
                elif isinstance(reply, ResponseError):
                    self._refused(reply)
                else:
                    self._replied(reply)
        except (RedisError, OSError) as error:
            self._fail(f"the connection was lost: {error}")

    async def _write(self, connection: AbstractConnection) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                outgoing, self._outgoing = self._outgoing, []
                await connection.send_packed_command(outgoing, check_health=False)
        except (RedisError, OSError) as error:
            self._fail(f"the connection was lost: {error}")

    def _fail(self, reason: str) -> None:
        """Down from this moment on, whenever the tasks hear of it."""
        self._connection = None
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(reason)

    def _told_down(self, reason: str) -> None:
        if not self._is_down_told:
            self.times_down += 1
            log.warning("shared_limits_down", reason=reason)
        self.down_reason, self._is_down_told = reason, True

    def _forget_owed(self) -> None:
        self._set_timer(math.inf)
        questions, self._in_flight = self._in_flight, deque()
        self._owed.clear()
        self._outgoing.clear()
        for question in questions:
            question.answer(None)

    # Answers, and those that do not come.

    def _replied(self, reply: Any) -> None:
        question = self._answered_next()
        if question.answered is not None:
            self.answered += 1
            self._misses = 0
            question.answer(reply)

    def _answered_next(self) -> _Question:
        if not self._in_flight:
            raise RedisError("it answers what was not asked")
        return self._in_flight.popleft()

    def _lost_script(self) -> None:
        question = self._answered_next()
        if self._connection is None:
            question.answer(None)
        elif question.answered is not None:
            self._send(question, b"EVAL", question.script.text.encode())

    def _refused(self, error: ResponseError) -> None:
        question = self._answered_next()
        self.errors += 1
        question.answer(None)
        self._missed(f"Redis answers with an error: {error}")

    def _missed(self, reason: str) -> None:
        self._misses += 1
        if self._misses >= MISSES_MAX:
            self._fail(reason)

    def _set_timer(self, due_s: float) -> None:
        """For the one moment that comes next; infinity for none."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_due_s = due_s
        if due_s < math.inf:
            wait_s = max(due_s - self._monotonic_s(), TIMER_S_MIN)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._expire, due_s)

    def _expire(self, due_s: float) -> None:
        """Decide without Redis what has waited for too long."""
        now_s, owed, late = self._monotonic_s(), self._owed, self.late
        while owed and (owed[0].answered is None or now_s - owed[0].asked_s >= self._patience.wait_s_max):
            question = owed.popleft()
            if question.answered is not None:
                self.late += 1
                question.answer(None)
        if self.late > late and now_s - due_s < OWN_PAUSE_S:
            self._missed(f"no answer within {self._patience.wait_s_max * 1_000:g} ms")
        if self._in_flight and now_s - self._in_flight[0].asked_s >= self._patience.silence_s_max:
            self._fail(f"silent for {self._patience.silence_s_max * 1_000:g} ms")
        if owed:
            self._set_timer(owed[0].asked_s + self._patience.wait_s_max)
        else:
            self._set_timer(self._in_flight[0].asked_s + self._patience.silence_s_max if self._in_flight else math.inf)


async def _reply(connection: AbstractConnection) -> Any:
    """The next one; of Redis's own family of errors as a value. Raises RedisError and OSError for the connection's."""
    try:
        return await connection.read_response(timeout=math.inf, disable_decoding=True)
    except ResponseError as error:
        return error
    except ValueError as error:
        raise InvalidResponse(f"this is no answer of Redis: {error}") from error


class SharedRouteLimit(RouteLimit):
    """A route's limit in Redis. `limiter` is this gateway's own share of it, which decides when Redis does not."""

    __slots__ = ("_name", "_scripted", "_shared", "_shared_queue", "decided_locally")

    def __init__(
        self,
        shared: SharedLimits,
        route_name: str,
        document: RouteRateLimit,
        table: Table | None,
        monotonic_s: Callable[[], float],
    ) -> None:
        share = document.local_share_percent / 100
        super().__init__(route_name, document, make_limiter(document, share, table), monotonic_s)
        whole = make_limiter(document)
        self.decided_locally = 0
        """Checks that the own share has decided."""
        self._shared = shared
        self._scripted: ScriptedLimit = scripted(whole)
        self._name = identity(route_name, document) + b":"
        self._shared_queue = LimitQueue(self._give_back, monotonic_s) if isinstance(whole, LeakyBucket) else None

    def check(self, fields: RequestFields, caller: Caller, now_s: float) -> "Answer | asyncio.Future[Answer]":
        """Counts the request. The future is done within the budget, or when its turn in the queue has come."""
        key, shared = self._key_of(fields, caller), self._shared
        if not shared.takes_questions:
            return self._decide_locally(key, now_s)
        found: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        answered = partial(self._answered, found, key, now_s)
        shared.ask(self._scripted.script, self._scripted.call(), answered, self._name + key)
        return found

    @property
    def waiting(self) -> int:
        return super().waiting + (0 if self._shared_queue is None else len(self._shared_queue))

    @property
    def summary(self) -> str:
        share = f"; Redis is away, and {self.document.local_share_percent:g} % of it are this gateway's"
        return f"{super().summary}, counted by all gateways together{'' if self._shared.is_up else share}"

    def _answered(self, found: "asyncio.Future[Answer]", key: bytes, now_s: float, reply: Any) -> None:
        """NB: who has left meanwhile was counted, as everybody is who is admitted and leaves; a place is given back."""
        said = None if reply is None else decision(self._scripted, reply)
        if found.done():
            if said is not None and said.decision.delay_s:
                self._give_back(key, said.now_s + said.decision.delay_s, said.now_s)
            return
        answer = self._decide_locally(key, now_s) if said is None else self._shared_answer(key, said)
        if isinstance(answer, asyncio.Future):
            _follow(answer, found)
        else:
            found.set_result(answer)

    def _shared_answer(self, key: bytes, said: ScriptedDecision) -> "Answer | asyncio.Future[Answer]":
        answer = self._answer(said.decision)
        if not said.decision.delay_s or self._shared_queue is None:
            return answer
        return self._shared_queue.join(key, said.now_s, said.now_s + said.decision.delay_s, answer)

    def _decide_locally(self, key: bytes, now_s: float) -> "Answer | asyncio.Future[Answer]":
        self.decided_locally += 1
        return self._settled(key, now_s, self.limiter.decide(key, now_s))

    def _give_back(self, key: bytes, departure_s: float, _now_s: float) -> None:
        if self._shared.takes_questions:
            self._shared.ask(GIVE_BACK, self._scripted.give_back_call(departure_s), None, self._name + key)


def _follow(waiting: "asyncio.Future[Answer]", found: "asyncio.Future[Answer]") -> None:
    """`found` ends as `waiting` does, and takes it along when it is cancelled."""

    def ended(done: "asyncio.Future[Answer]") -> None:
        if not found.done() and not done.cancelled():
            found.set_result(done.result())

    waiting.add_done_callback(ended)
    found.add_done_callback(lambda done: waiting.cancel() if done.cancelled() else None)
