"""Callers that wait for their entries, and how each learns its outcome for certain.

A proposal is only ever given to the leader of one named term, so its entry can have no other. When an entry of a
higher term has been applied here and the proposal's has not, it never will be: the log before that entry is settled.
Then the caller may safely try again. Only a caller whose time runs out first, or whose entry may be inside a snapshot,
is told that the outcome is unknown.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from quorate_core.errors import NotProposed, OutcomeUnknown, QuorateError, TooManyRequests

from quorate_raft.core.messages import Entry

_NEVER_S = float("inf")


class Proposal:
    """`term` is 0 until it is given to the leader of that term."""

    __slots__ = ("data", "deadline_s", "outcome", "request_id", "term")

    def __init__(self, data: bytes, request_id: int, deadline_s: float, outcome: "asyncio.Future[Any]") -> None:
        self.data = data
        self.request_id = request_id
        self.deadline_s = deadline_s
        self.outcome = outcome
        """Holds the result of applying, or the error; errors are results, so none is ever left unretrieved."""
        self.term = 0

    def settle(self, result: Any) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)


class Proposals:
    """All that wait, by request id. Bounded by count and by bytes."""

    def __init__(self, first_request_id: int, proposals_max: int, bytes_max: int) -> None:
        self._waiting: dict[int, Proposal] = {}
        self._next_request_id = first_request_id
        self._proposals_max = proposals_max
        self._bytes_max = bytes_max
        self._waiting_bytes = 0
        self._earliest_deadline_s = _NEVER_S

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, data: bytes, deadline_s: float) -> Proposal:
        """Raises TooManyRequests when too much waits already."""
        if len(self._waiting) >= self._proposals_max or self._waiting_bytes + len(data) > self._bytes_max:
            raise TooManyRequests(
                f"{len(self._waiting)} writes of {self._waiting_bytes} bytes wait here already; try again"
            )
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        proposal = Proposal(data, self._next_request_id, deadline_s, outcome)
        self._next_request_id += 1
        self._waiting[proposal.request_id] = proposal
        self._waiting_bytes += len(data)
        self._earliest_deadline_s = min(self._earliest_deadline_s, deadline_s)
        return proposal

    def discard(self, proposal: Proposal) -> None:
        """Nobody waits for it any more."""
        if self._waiting.pop(proposal.request_id, None) is not None:
            self._waiting_bytes -= len(proposal.data)

    def on_applied(self, entries: Sequence[Entry], results: Sequence[Any]) -> None:
        """Hand each result to its proposer, if that is here."""
        waiting = self._waiting
        for entry, result in zip(entries, results, strict=True):
            proposal = waiting.pop(entry.request_id, None)
            if proposal is not None:
                self._waiting_bytes -= len(proposal.data)
                proposal.settle(result)

    def on_term_applied(self, term: int) -> None:
        """An entry of `term` was applied: entries of earlier terms that were not before it never will be."""
        for proposal in [p for p in self._waiting.values() if 0 < p.term < term]:
            proposal.settle(NotProposed(f"the leader of term {proposal.term} was replaced before the write was agreed"))
            self.discard(proposal)

    def on_restored(self) -> None:
        """A snapshot has taken the place of entries that were never applied here; any proposal's may be among them."""
        for proposal in [p for p in self._waiting.values() if p.term]:
            proposal.settle(_unsettled(proposal, "before a snapshot took the place of the log"))
            self.discard(proposal)

    def on_time(self, now_s: float) -> None:
        """Tell those whose time is up."""
        if now_s < self._earliest_deadline_s:
            return
        for proposal in [p for p in self._waiting.values() if p.deadline_s <= now_s]:
            proposal.settle(_unsettled(proposal, "in time"))
            self.discard(proposal)
        self._earliest_deadline_s = min((p.deadline_s for p in self._waiting.values()), default=_NEVER_S)

    def stop(self, reason: str) -> None:
        """Nothing will be applied here any more."""
        for proposal in self._waiting.values():
            proposal.settle(_unsettled(proposal, f"before {reason}"))
        self._waiting.clear()
        self._waiting_bytes = 0


def _unsettled(proposal: Proposal, when: str) -> QuorateError:
    if proposal.term == 0:
        return NotProposed(f"no leader took the write {when}")
    return OutcomeUnknown(f"the write was proposed, and its outcome was not seen {when}")
