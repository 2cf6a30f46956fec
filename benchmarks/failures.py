"""What can go wrong with a measurement; each message says what to look at."""


class BenchmarkFailed(Exception):
    """A contender did not start, gave a wrong answer, or was measured wrongly: there is no figure for it."""
