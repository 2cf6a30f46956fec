"""Deadlines that go along with a request: how long its caller still waits, in a header field, from hop to hop.

A caller says in `x-request-timeout-ms` how many milliseconds it still waits. Whoever passes the request on says what
is then left; whoever finds nothing left does not begin. So nobody works for a caller that has given up, and a chain of
services needs no timeouts tuned to each other. A duration is sent and not a time of day: clocks of machines differ, and
what a duration loses is only the time on the wire. (gRPC's `grpc-timeout`; Envoy's
`x-envoy-expected-rq-timeout-ms`.)

Everything here is arithmetic: time is an argument, in seconds of a monotonic clock.
"""

import re

HEADER = "x-request-timeout-ms"
TIMEOUT_MS_MAX = 3_600_000
"""An hour. A caller that would wait longer is taken for one that waits so long."""

_VALUE = re.compile(rb"-?[0-9]{1,12}")


def read_timeout_ms(value: bytes) -> int | None:
    """The milliseconds of a field's value, at most TIMEOUT_MS_MAX; 0 when nothing is left, also for a negative number,
    as a careless subtraction gives. None when it is no whole number."""
    if _VALUE.fullmatch(value) is None:
        return None
    return max(0, min(int(value), TIMEOUT_MS_MAX))


def left_ms(deadline_s: float, now_s: float) -> int:
    """What is to be sent on: whole milliseconds, rounded down; 0 from the deadline on, and just before it."""
    return max(0, int((deadline_s - now_s) * 1_000))
