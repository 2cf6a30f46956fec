"""Each member in turn, whatever its weight."""

from collections.abc import Collection, Sequence
from typing import Generic, TypeVar

CandidateT = TypeVar("CandidateT")


class RoundRobin(Generic[CandidateT]):
    """Each candidate in turn. Of candidates, only their equality is asked.

    The turn is a place in the order, tied to the candidate that was picked last: when candidates come and go, the
    turn continues after that one, so that a set that changes at every request still gives each its share. When the
    last one itself is gone, its place is kept. Tuples that are identical objects cost no search.

    A pick with `excluded`, which takes the place of one that failed, has a turn of its own: it takes no candidate's
    regular turn, so that a dead one is met once a round and what it fails is shared by all the others.
    """

    __slots__ = ("_candidates", "_last_index", "_last_spare_index")

    def __init__(self, first_index: int = 0) -> None:
        """`first_index`: whose turn is first, modulo their number. Give each process another one, so that a fleet
        that starts together does not send its first requests to one endpoint."""
        self._candidates: Sequence[CandidateT] = ()
        self._last_index = self._last_spare_index = first_index - 1

    def pick(
        self,
        members: Sequence[CandidateT],
        excluded: Collection[CandidateT] = (),
        key: bytes = b"",
        now_s: float = 0.0,
    ) -> CandidateT | None:
        """The next candidate that is not in `excluded`; None when there is no such candidate. O(1) in the common case,
        O(number of candidates) after a change or with `excluded`."""
        if members is not self._candidates:
            self._follow(members)
        if excluded:
            return self._pick_spare(members, excluded)
        if not members:
            return None
        self._last_index = (self._last_index + 1) % len(members)
        return members[self._last_index]

    def _pick_spare(self, candidates: Sequence[CandidateT], excluded: Collection[CandidateT]) -> CandidateT | None:
        count = len(candidates)
        for step in range(1, count + 1):
            index = (self._last_spare_index + step) % count
            if candidates[index] not in excluded:
                self._last_spare_index = index
                return candidates[index]
        return None

    def _follow(self, candidates: Sequence[CandidateT]) -> None:
        if 0 <= self._last_index < len(self._candidates):
            last = self._candidates[self._last_index]
            if last in candidates:
                self._last_index = candidates.index(last)
            else:
                # Whoever stood after the lost one now stands at its place, and is next.
                self._last_index -= 1
        self._candidates = candidates
