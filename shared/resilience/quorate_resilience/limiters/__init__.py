"""Rate limiters: whether one more request of a key may pass now. Each algorithm answers with a `Decision`."""

from quorate_resilience.limiters.decision import Decision
from quorate_resilience.limiters.token_bucket import BucketFill, TokenBucket

__all__ = ["BucketFill", "Decision", "TokenBucket"]
