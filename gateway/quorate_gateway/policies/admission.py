"""Whether a request may go on to its upstream: a route's policies, in one order.

CORS preflight, authentication, rate limit, queue, shedding, breaker, endpoint. A preflight carries no credentials, so
it is answered first. Limits come after authentication, since they may count by key or claim; a caller that is not let
in is not counted. A request that is over the limit costs the breaker nothing; one that is shed, or that the breaker
refuses, has been counted by the limit, so that a client which knocks at an open breaker without a pause is limited too.

The first three are compiled into one closure, `admit`, that is asked as soon as the head is there. What it gives may
have to wait: for the answer of a shared limit, or for its turn in a queue. So the last two, which are about this very
moment, are asked by `enter` when the request really begins. A permit of the breaker is never held by one that waits.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from quorate_resilience import CircuitBreaker, Permit
from quorate_resilience.shedding import LoadShedder

from quorate_gateway.policies.caller import Caller
from quorate_gateway.policies.circuit import breaker_refusal
from quorate_gateway.policies.limit import Answer, Checked, RouteLimit
from quorate_gateway.policies.shedding import overload_refusal
from quorate_gateway.proxy.framing import RequestFields, RequestHead
from quorate_gateway.proxy.refusals import Refusal, Reply

NOBODY = Caller(b"")
_new_tuple = tuple.__new__
"""As `Admission(...)`, in half the time."""


class Admission(NamedTuple):
    """What an admitted request carries. `answer_fields` belong into the head of its answer, `request_fields` into that
    of the request, each with its CRLF in front."""

    caller: Caller = NOBODY
    answer_fields: bytes = b""
    request_fields: bytes = b""


Admitted = Admission | Refusal | Reply
Admit = Callable[[RequestHead, Caller, float], "Admitted | asyncio.Future[Admission | Refusal]"]
"""From a request's head, its client and the monotonic time. A future is done within a shared limit's time budget, or
when the request's turn in a queue has come; cancelling it gives the place back."""

Authenticate = Callable[[RequestFields, Caller, float], Caller | Refusal]
"""From a request's fields, its client and the wall time to who calls."""


class Cors(Protocol):
    def preflight(self, fields: RequestFields, head: RequestHead) -> Reply | None: ...

    def answer_fields(self, fields: RequestFields) -> bytes: ...


class Guarded(Protocol):
    """What `enter` needs of a route."""

    @property
    def priority(self) -> int: ...

    @property
    def breaker(self) -> CircuitBreaker | None: ...


def compile_admission(
    cors: Cors | None, authenticate: Authenticate | None, limit: RouteLimit | None, wall_s: Callable[[], float]
) -> Admit | None:
    """None when there is nothing to check."""
    if cors is None and authenticate is None:
        return None if limit is None else _admit_by(limit)

    def admit(head: RequestHead, caller: Caller, now_s: float) -> "Admitted | asyncio.Future[Admission | Refusal]":
        fields = head.fields
        answer_fields = request_fields = b""
        if cors is not None:
            preflight = cors.preflight(fields, head)
            if preflight is not None:
                return preflight
            answer_fields = cors.answer_fields(fields)
        if authenticate is not None:
            known = authenticate(fields, caller, wall_s())
            if isinstance(known, Refusal):
                return known.with_answer_fields(answer_fields)
            caller, request_fields = known, identity_fields(known)
        if limit is None:
            return Admission(caller, answer_fields, request_fields)
        checked = limit.check(fields, caller, now_s)
        if isinstance(checked, Checked):  # the common case
            return Admission(caller, answer_fields + checked.answer_fields, request_fields)
        return _not_yet(checked, caller, answer_fields, request_fields)

    return admit


def _admit_by(limit: RouteLimit) -> Admit:
    """As above for a route that has nothing but a limit, which most have that have anything."""
    check = limit.check

    def admit(head: RequestHead, caller: Caller, now_s: float) -> "Admitted | asyncio.Future[Admission | Refusal]":
        checked = check(head.fields, caller, now_s)
        if isinstance(checked, Checked):
            [answer_fields] = checked
            return _new_tuple(Admission, (caller, answer_fields, b""))
        return _not_yet(checked, caller, b"", b"")

    return admit


def enter(route: Guarded, load: LoadShedder, now_s: float) -> Permit | Refusal | None:
    """Whether a request that is admitted, and that `load` counts already, may begin now. A permit is to be settled by
    what becomes of the request; None when the route has no breaker."""
    if load.active > load.limits[route.priority] and not load.admits(route.priority):
        return overload_refusal(load, route.priority)
    breaker = route.breaker
    if breaker is None:
        return None
    permit = breaker.try_acquire(now_s)
    return permit if isinstance(permit, Permit) else breaker_refusal(breaker, permit, now_s)


def identity_fields(caller: Caller) -> bytes:
    """What the caller proved, for the service."""
    found = b""
    if caller.api_key_id:
        found += b"\r\nx-quorate-api-key-id: " + _field_value(caller.api_key_id)
    if caller.subject:
        found += b"\r\nx-quorate-subject: " + _field_value(caller.subject)
    return found


def _field_value(value: bytes) -> bytes:
    """A token's subject may hold anything: what is not visible ASCII is percent-encoded, so that it stays one value."""
    if value.isascii() and value.decode("ascii").isprintable() and b" " not in value and b"%" not in value:
        return value
    return b"".join(b"%c" % octet if 33 <= octet <= 126 and octet != 37 else b"%%%02X" % octet for octet in value)


def _not_yet(
    checked: "Refusal | asyncio.Future[Answer]", caller: Caller, answer_fields: bytes, request_fields: bytes
) -> "Refusal | asyncio.Future[Admission | Refusal]":
    """The limit refuses the request, or cannot say at once."""
    if isinstance(checked, Refusal):
        return checked.with_answer_fields(answer_fields)
    return _when_checked(checked, caller, answer_fields, request_fields)


def _checked(checked: Answer, caller: Caller, answer_fields: bytes, request_fields: bytes) -> Admission | Refusal:
    if isinstance(checked, Refusal):
        return checked.with_answer_fields(answer_fields)
    return Admission(caller, answer_fields + checked.answer_fields, request_fields)


def _when_checked(
    checking: "asyncio.Future[Answer]", caller: Caller, answer_fields: bytes, request_fields: bytes
) -> "asyncio.Future[Admission | Refusal]":
    """Cancelling it cancels the question too."""
    admitting: asyncio.Future[Admission | Refusal] = checking.get_loop().create_future()

    def done(checked: "asyncio.Future[Answer]") -> None:
        if admitting.done():
            return
        error = None if checked.cancelled() else checked.exception()
        if checked.cancelled():
            admitting.cancel()
        elif error is not None:
            admitting.set_exception(error)
        else:
            admitting.set_result(_checked(checked.result(), caller, answer_fields, request_fields))

    checking.add_done_callback(done)
    admitting.add_done_callback(lambda ended: checking.cancel() if ended.cancelled() else None)
    return admitting
