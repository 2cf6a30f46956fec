"""All chance of one run, from one seed.

Each part draws from a stream of its own, named by what it is for, so that one more draw in one part leaves all the
others as they were: a change of the product then changes what it causes, and not the whole schedule.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Stream(random.Random):
    """One part's chance."""

    def happens(self, probability: float) -> bool:
        return self.random() < probability

    def between(self, low: float, high: float) -> float:
        return self.uniform(low, high)

    def one_of(self, things: Sequence[T]) -> T:
        return self.choice(things)

    def skewed(self, low: float, high: float) -> float:
        """Between two positive bounds, each order of magnitude as likely as another."""
        return float(low * (high / low) ** self.random())

    def some_of(self, things: Sequence[T], count: int) -> list[T]:
        return self.sample(list(things), min(count, len(things)))


class Randomness:
    """`stream(*name)`: the same for the same seed and name, in every process."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def stream(self, *name: str | int) -> Stream:
        return Stream("/".join(str(part) for part in (self.seed, *name)))
