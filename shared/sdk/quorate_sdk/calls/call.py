"""One call to a service by its name, from its beginning to the end of its answer. Decides, and does no I/O.

Theory of operation. A call has one permit of the service's circuit breaker and one deadline, however many tries it
takes. A driver asks `next_try` for a request that is addressed to one instance, sends it, and says what became of it:

    not_connected     nothing was sent. Another instance may be tried, whatever the method
    broken            it was sent, or a part of it, and no answer has begun. It is tried again if it may be repeated
    answered          the head of an answer is there: it is the caller's, or, with a status that says that another
                      instance may do better (502, 503, 504), tried again if the call may be repeated
    ended, cut, left  the answer's body is complete, has failed, or is not wanted any more
    given_up          the caller waits no longer, which says nothing of the service

What may be repeated: idempotent methods (RFC 9110 section 9.2.2), or what the request says itself, with a body that is
still all there, while the service's retry budget has room and the deadline has not passed. What is raised says what was
tried.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from quorate_core.errors import InvariantViolation, QuorateError
from quorate_resilience import Permit
from quorate_resilience.deadline import HEADER as TIMEOUT_FIELD
from quorate_resilience.deadline import left_ms

from quorate_sdk.calls.endpoints import EndpointState
from quorate_sdk.calls.errors import CallNotSent, CallTimedOut, CircuitOpen, ServiceUnreachable
from quorate_sdk.calls.options import read_request_options
from quorate_sdk.calls.request_context import served_request
from quorate_sdk.calls.services import Services
from quorate_sdk.calls.trace import add_opentelemetry, new_trace

CONNECTS_MAX = 3
"""Instances that are tried to be connected to, for one call."""
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
REPEATED_STATUSES = frozenset({502, 503, 504})
FAILED_STATUS_MIN = 500
PAUSE_S = 0.025
"""Before the first further try at an instance that has just failed; twice as long before each one after it."""
RETRY_AFTER_S_MAX = 1.0
"""A call waits so long for a service that says when it can be asked again; else the answer is the caller's."""


@dataclass(frozen=True, slots=True)
class Try:
    """What to send, after `pause_s` seconds."""

    request: httpx.Request
    member: EndpointState
    pause_s: float = 0.0


class Call:
    """Times are of one monotonic clock. Exactly one of `ended`, `cut`, `left` and `given_up` ends a call whose
    `next_try` has returned; what raises has ended it."""

    def __init__(self, services: Services, request: httpx.Request, now_s: float) -> None:
        """Raises CircuitOpen, or CallNotSent when the deadline has passed already, and ValueError or TypeError for
        options of the request that cannot be read."""
        self._services = services
        self._request = request
        self._options = read_request_options(request.extensions)
        self._served = served_request()
        self._called = services.service(request.url.host, now_s)
        self._began_s = now_s
        self.deadline_s = self._deadline_s()
        self._tried: list[EndpointState] = []
        self._connects = 0
        self._repeats = 0
        self._pause_s = 0.0
        self._findings: list[str] = []
        self._try_began_s = now_s
        self._member: EndpointState | None = None
        self._last: Exception | None = None
        if self.deadline_s <= now_s:
            raise CallNotSent(f"service {self._called.name!r} was not asked: the deadline had passed", request)
        self._called.budget.count(now_s)
        self.permit = self._permit(now_s)

    # Tries.

    def next_try(self, now_s: float) -> Try:
        """Raises what ends the call: the error of the last try, with what was tried, or ServiceUnreachable."""
        if now_s + self._pause_s >= self.deadline_s:
            raise self._given_up_at_deadline(now_s)
        endpoints = self._called.endpoints
        endpoints.follow(self._services.known.instances(self._called.name), now_s)
        member = endpoints.pick(self._services.balance, self._tried, self._options.key, now_s)
        pause_s, self._pause_s = self._pause_s, 0.0
        if member is None and self._repeats and self._tried:
            member = self._tried[-1]  # the only ones there are have failed: the last one gets a moment
            pause_s = max(pause_s, PAUSE_S * 2 ** (self._repeats - 1) * (0.5 + self._services.chance.random()))
        if member is None or (self._last is not None and self._connects >= CONNECTS_MAX):
            raise self._nobody(now_s)
        endpoints.began(member)
        self._member, self._try_began_s = member, now_s + pause_s
        return Try(self._addressed(member, now_s + pause_s), member, pause_s)

    def not_connected(self, error: httpx.TransportError, now_s: float) -> None:
        """The instance could not be connected to."""
        member = self._end_try()
        self._called.endpoints.unreachable(member, now_s)
        self._connects += 1
        self._note(member, error)

    def broken(self, error: httpx.TransportError, now_s: float) -> None:
        """The connection failed before an answer. Returns when there may be another try; raises else."""
        member = self._end_try()
        self._called.endpoints.failed(member, now_s)
        self._note(member, error)
        if now_s >= self.deadline_s:
            raise self._given_up_at_deadline(now_s)
        if not self._may_repeat(now_s):
            self._failed(now_s)
            raise self._explained(error)
        self._repeats += 1

    def answered(self, status: int, headers: Mapping[str, str], now_s: float) -> bool:
        """Whether this answer is the caller's; else it is to be dropped, and there may be another try."""
        member = self._asked()
        if status < FAILED_STATUS_MIN:
            self._called.endpoints.succeeded(member, now_s - self._try_began_s, now_s)
        else:
            self._called.endpoints.failed(member, now_s)
        if status in REPEATED_STATUSES:
            pause_s = _retry_after_s(headers)
            can_wait = pause_s <= RETRY_AFTER_S_MAX and now_s + pause_s < self.deadline_s
            if can_wait and self._may_repeat(now_s):
                self._findings.append(f"{member}: {status}")
                self._end_try()
                self._repeats += 1
                self._pause_s = pause_s
                return False
        if self.permit is not None:
            if status < FAILED_STATUS_MIN:
                self.permit.responded(now_s)
            else:
                self.permit.failure(now_s)
            self._services.tell(self._called)
        return True

    # The end.

    def ended(self, now_s: float) -> None:
        """The answer is complete."""
        self._end_try()
        if self.permit is not None:
            self.permit.success(now_s)
            self._services.tell(self._called)

    def cut(self, now_s: float) -> None:
        """The answer's body has failed."""
        member = self._end_try()
        self._called.endpoints.failed(member, now_s)
        self._failed(now_s)

    def left(self, now_s: float) -> None:
        """The caller has closed the answer before its end."""
        self._end_try()
        self._cancelled(now_s)

    def given_up(self, now_s: float) -> None:
        """The caller waits no longer, or could not go on for reasons of its own."""
        if self._member is not None:
            self._end_try()
        self._cancelled(now_s)

    def mark_slow(self, now_s: float) -> None:
        """The breaker's mark has passed without an answer."""
        if self.permit is not None:
            self.permit.mark_slow(now_s)
            self._services.tell(self._called)

    # What goes with it.

    def _deadline_s(self) -> float:
        read_s = self._request.extensions.get("timeout", {}).get("read")
        deadline_s = self._began_s + min(self._options.timeout_s, math.inf if read_s is None else read_s)
        return deadline_s if self._served is None else min(deadline_s, self._served.deadline_s)

    def _addressed(self, member: EndpointState, now_s: float) -> httpx.Request:
        """The request for this instance: its address, and its Host, since a server answers to its own names only."""
        request, instance = self._request, member.instance
        url = request.url.copy_with(scheme=instance.scheme, host=instance.host, port=instance.port)
        headers = request.headers.copy()
        headers["host"] = instance.authority
        extensions = dict(request.extensions)
        if self.deadline_s < math.inf:
            left_s = max(self.deadline_s - now_s, 0.001)
            headers.setdefault(TIMEOUT_FIELD, str(left_ms(self.deadline_s, now_s)))
            timeout = dict(extensions.get("timeout", {}))
            for name in ("connect", "read", "write", "pool"):
                given = timeout.get(name)
                timeout[name] = left_s if given is None else min(given, left_s)
            extensions["timeout"] = timeout
        self._add_trace(headers)
        return httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=extensions)

    def _add_trace(self, headers: httpx.Headers) -> None:
        if "traceparent" in headers or add_opentelemetry(headers):
            return
        bits = self._services.chance.getrandbits
        trace = self._served.trace if self._served is not None else None
        trace = trace or new_trace(bits)
        headers["traceparent"] = trace.traceparent(bits)
        if trace.state:
            headers["tracestate"] = trace.state

    # What is decided.

    def _permit(self, now_s: float) -> Permit | None:
        breaker = self._called.breaker
        if breaker is None:
            return None
        permit = breaker.try_acquire(now_s)
        self._services.tell(self._called)
        if isinstance(permit, Permit):
            return permit
        detail = (
            f"the circuit of service {self._called.name!r} is {permit.state.value}: it mostly failed or was slow of"
            f" late; it may be asked again in {permit.retry_after_s:.1f} s"
        )
        raise CircuitOpen(detail, self._request, permit.retry_after_s)

    def _may_repeat(self, now_s: float) -> bool:
        retry = self._options.retry
        is_wanted = self._request.method in IDEMPOTENT if retry is None else retry
        return (
            is_wanted
            and self._repeats < self._services.settings.retries_max
            and isinstance(self._request.stream, httpx.ByteStream)
            and self._called.budget.try_take(now_s)
        )

    def _end_try(self) -> EndpointState:
        member = self._asked()
        self._called.endpoints.ended(member)
        self._member = None
        if member not in self._tried:
            self._tried.append(member)
        return member

    def _asked(self) -> EndpointState:
        if self._member is None:
            raise InvariantViolation("something is said of a try that was not begun")
        return self._member

    def _note(self, member: EndpointState, error: httpx.TransportError) -> None:
        self._last = error
        self._findings.append(f"{member}: {type(error).__name__}{f' ({error})' if str(error) else ''}")

    def _nobody(self, now_s: float) -> Exception:
        if self._last is None and not self._findings:
            self._cancelled(now_s)  # NB: nobody was asked, so nothing was learned
            return ServiceUnreachable(self._services.why_nobody(self._called.name), self._request)
        self._failed(now_s)
        detail = f"service {self._called.name!r}: no connection to any instance; {self._told()}"
        return ServiceUnreachable(detail, self._request)

    def _given_up_at_deadline(self, now_s: float) -> Exception:
        waited_s = now_s - self._began_s
        self._failed(now_s)
        if not self._findings:
            return CallNotSent(f"service {self._called.name!r} was not asked within {waited_s:.2f} s", self._request)
        detail = f"service {self._called.name!r} has not answered within {waited_s:.2f} s; {self._told()}"
        return CallTimedOut(detail, self._request)

    def _explained(self, error: httpx.TransportError) -> Exception:
        """Of its own class, so that who catches it goes on to, with what was tried."""
        if isinstance(error, QuorateError):
            return error
        error.args = (f"service {self._called.name!r}: {self._told()}",)
        error.request = self._request
        return error

    def _told(self) -> str:
        return "tried " + ", then ".join(self._findings)

    def _failed(self, now_s: float) -> None:
        if self.permit is not None:
            self.permit.failure(now_s)
            self._services.tell(self._called)

    def _cancelled(self, now_s: float) -> None:
        if self.permit is not None:
            self.permit.cancelled(now_s)
            self._services.tell(self._called)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Of a Retry-After field in seconds; 0 without one, or with a date, which clocks may not agree on."""
    value = headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdecimal() and len(value) < 7 else 0.0
