"""When a stream that has ended is begun again, and whether that is worth a line in the log. Pure.

The pause doubles with each failure in a row, and so does the number of failures from one line to the next: a store that
is away for a day is told of about twenty times, and not once a second.
"""

BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 1.0
WORKED_S_MIN = 60.0
"""A stream that lasted for so long has worked, whatever it told of."""

_DOUBLINGS_MAX = 8


class Retries:
    """Of one stream and its successors. `failures`: in a row."""

    def __init__(self) -> None:
        self.failures = 0

    def ended(self, *, has_worked: bool) -> tuple[float, bool]:
        """The pause before the next one, in seconds, and whether to tell of this end."""
        self.failures = 1 if has_worked else self.failures + 1
        pause_s = min(BACKOFF_S_MIN * 2 ** min(self.failures, _DOUBLINGS_MAX), BACKOFF_S_MAX)
        is_power_of_two = self.failures & (self.failures - 1) == 0
        return pause_s, is_power_of_two
