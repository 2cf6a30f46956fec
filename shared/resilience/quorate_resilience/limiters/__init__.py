"""Rate limiters: whether one more request of a key may pass now. Each algorithm answers with a `Decision`.

What a limiter remembers of its keys is in a `Table`: of this process, or shared by several.
"""

from quorate_resilience.limiters.decision import Decision
from quorate_resilience.limiters.fixed_window import FixedWindow
from quorate_resilience.limiters.leaky_bucket import LeakyBucket
from quorate_resilience.limiters.sliding_window import SUB_WINDOWS_MAX, SlidingWindow
from quorate_resilience.limiters.table import RECORD_FLOATS_MAX, LocalTable, Record, Table
from quorate_resilience.limiters.tabled import BucketFill, Limiter
from quorate_resilience.limiters.token_bucket import TabledTokenBucket, TokenBucket
from quorate_resilience.limiters.waiting_line import WaitingLine

__all__ = [
    "RECORD_FLOATS_MAX",
    "SUB_WINDOWS_MAX",
    "BucketFill",
    "Decision",
    "FixedWindow",
    "LeakyBucket",
    "Limiter",
    "LocalTable",
    "Record",
    "SlidingWindow",
    "Table",
    "TabledTokenBucket",
    "TokenBucket",
    "WaitingLine",
]
