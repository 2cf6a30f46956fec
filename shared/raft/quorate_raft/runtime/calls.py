"""Calls between peers: those that wait here for an answer, and those of others that are answered here.

A call is on the link that its caller dialled, and so is its answer. Who calls may give up: an answer that nobody waits
for is thrown away, and whoever answers stops when the caller has surely given up.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from quorate_core.errors import (
    NotProposed,
    OutcomeUnknown,
    QuorateError,
    TooManyRequests,
)
from quorate_core.frames import FrameTooLarge
from quorate_core.tasks import TaskOwner

from quorate_raft.core.messages import MemberName
from quorate_raft.runtime.link import Link
from quorate_raft.runtime.wire import (
    ANSWER,
    CALL,
    CALL_FAILED,
    CALL_TIMEOUT_MAX_S,
    Answer,
    Call,
    CallFailed,
    decode_answer,
    encode,
    problem_of,
)

CALLS_SERVED_MAX = 1024
"""Calls of one peer that are under way here, so that one peer cannot take the place of the others."""
CALL_BYTES_SERVED_MAX = 64 * 1024 * 1024
"""What the payloads of those may take together. One call is served whatever its size, which the frame bounds."""

CallHandler = Callable[[MemberName, str, bytes], Awaitable[bytes]]

log = structlog.get_logger(__name__)


class OutgoingCalls:
    """To one peer."""

    def __init__(self, own: MemberName, peer: MemberName) -> None:
        self._own = own
        self._peer = peer
        self._next_call_id = 1
        self._waiting: dict[int, asyncio.Future[bytes | QuorateError]] = {}

    async def call(self, link: Link | None, method: str, payload: bytes, timeout_s: float) -> bytes:
        """As `Network.call` says."""
        if link is None:
            raise NotProposed(f"{self._peer} cannot be reached from {self._own} now; try again")
        call_id = self._next_call_id
        self._next_call_id += 1
        if not link.send(CALL, encode(Call(call_id, method, payload, min(timeout_s, CALL_TIMEOUT_MAX_S)))):
            raise NotProposed(f"the queue of {self._own} for {self._peer} is full; try again")
        waiting: asyncio.Future[bytes | QuorateError] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = waiting
        try:
            async with asyncio.timeout(timeout_s):
                answer = await waiting
        except TimeoutError as error:
            raise OutcomeUnknown(f"{self._peer} did not answer {method} within {timeout_s:.3g} s") from error
        finally:
            self._waiting.pop(call_id, None)
        if isinstance(answer, QuorateError):
            raise answer
        return answer

    def on_frame(self, kind: bytes, body: memoryview) -> None:
        """A frame on the link that this member dialled. Raises InvalidRequest."""
        call_id, answer = decode_answer(kind, body)
        waiting = self._waiting.get(call_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def on_link_lost(self) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(OutcomeUnknown(f"the link to {self._peer} broke before it answered"))
        self._waiting.clear()


class ServedCalls:
    """Of one peer. They go on when the link ends, until their callers must have given up."""

    def __init__(self, own: MemberName, tasks: TaskOwner) -> None:
        self._own = own
        self._owner = tasks
        self._tasks: dict[asyncio.Task[None], int] = {}
        self._bytes = 0

    def serve(self, link: Link, handler: CallHandler, call: Call) -> None:
        size_bytes = len(call.payload)
        if self._tasks and (len(self._tasks) >= CALLS_SERVED_MAX or self._bytes + size_bytes > CALL_BYTES_SERVED_MAX):
            reason = f"{len(self._tasks)} calls of {link.peer} are under way at {self._own}, with {self._bytes} bytes"
            _answer(link, call, TooManyRequests(reason))
            return
        task = self._owner.start(_serve(link, handler, call), f"call {call.method}")
        self._tasks[task] = size_bytes
        self._bytes += size_bytes
        task.add_done_callback(self._ended)

    @property
    def is_busy(self) -> bool:
        return bool(self._tasks)

    async def wait(self, timeout_s: float) -> None:
        """Until those that are under way are answered, or for that long."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)

    def cancel(self) -> list["asyncio.Task[None]"]:
        """Those that were still under way, and end now."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        return tasks

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._bytes -= self._tasks.pop(task)


async def _serve(link: Link, handler: CallHandler, call: Call) -> None:
    result: bytes | QuorateError
    try:
        async with asyncio.timeout(call.timeout_s):
            result = await handler(link.peer, call.method, call.payload)
    except TimeoutError:
        return  # whoever asked has given up by now
    except QuorateError as error:
        result = error
    except Exception:
        log.exception("call_failed", peer=link.peer, method=call.method)
        result = QuorateError(f"{call.method} failed; the member's log says how")
    _answer(link, call, result)


def _answer(link: Link, call: Call, result: bytes | QuorateError) -> None:
    try:
        if isinstance(result, QuorateError):
            link.send(CALL_FAILED, encode(CallFailed(call.call_id, problem_of(result))))
        else:
            link.send(ANSWER, encode(Answer(call.call_id, result)))
    except FrameTooLarge as error:
        link.send(CALL_FAILED, encode(CallFailed(call.call_id, problem_of(error))))
