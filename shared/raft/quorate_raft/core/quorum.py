"""Majority arithmetic."""

from collections.abc import Iterable, Sequence
from enum import Enum, auto

from quorate_raft.core.messages import MemberName


def majority(voters: int) -> int:
    """The smallest number of voters of which any two groups share a member."""
    return voters // 2 + 1


def agreed(values: Sequence[int]) -> int:
    """The highest value that a majority has reached; `values` has one number a voter (paper, figure 2: matchIndex)."""
    return sorted(values)[len(values) - majority(len(values))]


class TallyResult(Enum):
    PENDING = auto()
    WON = auto()
    LOST = auto()


class Tally:
    """The votes of one election. A voter's first answer counts."""

    __slots__ = ("_answers", "_voters")

    def __init__(self, voters: Iterable[MemberName]) -> None:
        self._voters = frozenset(voters)
        self._answers: dict[MemberName, bool] = {}

    def record(self, voter: MemberName, granted: bool) -> None:
        if voter in self._voters:
            self._answers.setdefault(voter, granted)

    def has_answered(self, voter: MemberName) -> bool:
        return voter in self._answers

    @property
    def result(self) -> TallyResult:
        needed = majority(len(self._voters))
        granted = sum(self._answers.values())
        if granted >= needed:
            return TallyResult.WON
        if len(self._voters) - (len(self._answers) - granted) < needed:
            return TallyResult.LOST
        return TallyResult.PENDING
