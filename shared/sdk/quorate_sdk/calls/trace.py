"""W3C trace context (Trace Context, level 1): the fields `traceparent` and `tracestate`, from hop to hop.

A call carries on the trace of the request that is being served, with a new span id for each try, or begins a trace of
its own. Where OpenTelemetry is in use, its active span and its propagators decide instead: it is found when a program
has imported it, and never imported from here.
"""

import re
import sys
from collections.abc import Callable, MutableMapping
from typing import NamedTuple

GetRandomBits = Callable[[int], int]

TRACESTATE_CHARS_MAX = 512
"""What the recommendation asks everybody to pass on; a longer one is dropped, and the trace goes on without it."""
_NOT_SAMPLED = "00"
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-.*)?"
)


class Trace(NamedTuple):
    """A trace that calls are part of. `flags` are two hexadecimal digits; `state` is a tracestate field's value."""

    id: str
    flags: str
    state: str = ""

    def traceparent(self, bits: GetRandomBits) -> str:
        """The field for one hop more."""
        return f"00-{self.id}-{bits(64) or 1:016x}-{self.flags}"


def read_trace(traceparent: str, tracestate: str = "") -> Trace | None:
    """None for what is no traceparent; then the tracestate means nothing either."""
    found = _TRACEPARENT.fullmatch(traceparent.strip())
    if found is None or (found["version"] == "00" and found["more"]):
        return None
    state = tracestate.strip()
    known = len(state) <= TRACESTATE_CHARS_MAX and state.isascii() and state.isprintable()
    # Of the flags, version 00 knows the first bit alone (sampled).
    return Trace(found["trace"], f"{int(found['flags'], 16) & 1:02x}", state if known else "")


def new_trace(bits: GetRandomBits) -> Trace:
    """One that nobody has asked to record."""
    return Trace(f"{bits(128) or 1:032x}", _NOT_SAMPLED)


def add_opentelemetry(headers: MutableMapping[str, str]) -> bool:
    """Let OpenTelemetry write its fields, when it is in use and a span is active; whether it was so."""
    tracing = sys.modules.get("opentelemetry.trace")
    if tracing is None or not tracing.get_current_span().get_span_context().is_valid:
        return False
    propagation = sys.modules.get("opentelemetry.propagate")
    if propagation is None:
        return False
    carrier: dict[str, str] = {}
    propagation.inject(carrier)
    headers.update(carrier)
    return bool(carrier)
