"""What every limiter answers."""

from typing import NamedTuple


class Decision(NamedTuple):
    """Whether a request may pass, and what its sender may be told of the limit."""

    admitted: bool
    remaining: int
    """How many more would be admitted at this moment."""
    retry_after_s: float
    """0 when admitted; otherwise when the same request would be, infinity when it never can."""
    reset_s: float
    """Until the whole limit is there again, if nothing more is asked."""
    limit: int
    """How many are admitted at once, at most."""
    delay_s: float = 0.0
    """An admitted request begins only after so long: it waits in a leaky bucket's queue."""
