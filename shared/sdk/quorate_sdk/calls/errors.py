"""Errors of calls to services. Each is one of our family and one of httpx's, so that code that was written for httpx
(`except httpx.ConnectError`) goes on to work, and one table says what each means over HTTP.

An error of httpx that ends a call keeps its class, and gets a message that says what was tried.
"""

import httpx
from quorate_core.errors import DeadlineExceeded, OutcomeUnknown, Unavailable


class ServiceUnreachable(Unavailable, httpx.ConnectError):
    """No instance could be connected to, or there is none. Nothing was done."""

    def __init__(self, detail: str, request: httpx.Request | None = None) -> None:
        httpx.ConnectError.__init__(self, detail, request=request)
        self.detail = detail
        self.extensions = {}


class CircuitOpen(ServiceUnreachable):
    """The service mostly failed or was slow of late, and is not asked for a while. Nothing was sent."""

    def __init__(self, detail: str, request: httpx.Request | None = None, retry_after_s: float = 0.0) -> None:
        """`retry_after_s`: before that no other call is let through either."""
        super().__init__(detail, request)
        self.retry_after_s = retry_after_s


class CallNotSent(DeadlineExceeded, httpx.ReadTimeout):
    """The deadline had passed before anything was sent."""

    def __init__(self, detail: str, request: httpx.Request | None = None) -> None:
        httpx.ReadTimeout.__init__(self, detail, request=request)
        self.detail = detail
        self.extensions = {}


class CallTimedOut(OutcomeUnknown, httpx.ReadTimeout):
    """No answer has begun by the deadline. The service may have acted."""

    def __init__(self, detail: str, request: httpx.Request | None = None) -> None:
        httpx.ReadTimeout.__init__(self, detail, request=request)
        self.detail = detail
        self.extensions = {}
