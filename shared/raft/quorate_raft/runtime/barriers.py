"""Callers that wait until what they read is linearizable. Those that come together share one read index.

A reader waits in `_waiting`, is then part of a batch under a context in `_asked`, and, when the read index is known,
waits in `_confirmed` until as much is applied. A batch that is refused or lost goes back to `_waiting`, and is asked
for again under a new context, until the readers' own deadlines.
"""

import asyncio
from collections.abc import Sequence

from quorate_core.errors import DeadlineExceeded, NotProposed, QuorateError, TooManyRequests, Unavailable

from quorate_raft.core.node import RaftNode
from quorate_raft.core.ready import ReadResult

BATCHES_ASKED_MAX = 4
"""Batches under way at once; readers that come meanwhile gather for the next."""

_NEVER_S = float("inf")


class _Reader:
    __slots__ = ("deadline_s", "outcome")

    def __init__(self, deadline_s: float, outcome: "asyncio.Future[int | QuorateError]") -> None:
        self.deadline_s = deadline_s
        self.outcome = outcome

    def settle(self, result: int | QuorateError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)


class _Batch:
    __slots__ = ("age_ticks", "readers")

    def __init__(self, readers: list[_Reader]) -> None:
        self.readers = readers
        self.age_ticks = 0


class ReadBarriers:
    def __init__(self, first_context: int, readers_max: int, patience_ticks: int) -> None:
        """`patience_ticks`: a batch without an answer for so long is taken to be lost."""
        self._next_context = first_context
        self._readers_max = readers_max
        self._patience_ticks = patience_ticks
        self._readers = 0
        self._waiting: list[_Reader] = []
        self._asked: dict[int, _Batch] = {}
        self._confirmed: list[tuple[int, list[_Reader]]] = []
        self._is_refused = False

    async def wait(self, deadline_s: float) -> int:
        """The read index, once it is applied."""
        if self._readers >= self._readers_max:
            raise TooManyRequests(f"{self._readers} linearizable reads wait here already; try again")
        reader = _Reader(deadline_s, asyncio.get_running_loop().create_future())
        self._waiting.append(reader)
        self._readers += 1
        try:
            result = await reader.outcome
        finally:
            self._readers -= 1
        if isinstance(result, QuorateError):
            raise result
        return result

    def ask(self, node: RaftNode) -> None:
        """Begin a batch for all who wait, if there is somebody to ask."""
        if not self._waiting or self._is_refused or len(self._asked) >= BATCHES_ASKED_MAX or not node.standing.leader:
            return
        context = self._next_context
        self._next_context += 1
        self._asked[context] = _Batch(self._waiting)
        self._waiting = []
        node.read_index(context)

    def on_results(self, results: Sequence[ReadResult], applied_index: int) -> None:
        for result in results:
            batch = self._asked.pop(result.context, None)
            if batch is None:
                continue  # asked for again meanwhile
            if result.index == 0:
                self._is_refused = True
                self._waiting = batch.readers + self._waiting
            elif result.index <= applied_index:
                _settle(batch.readers, result.index)
            else:
                self._confirmed.append((result.index, batch.readers))

    def on_applied(self, applied_index: int) -> None:
        if not self._confirmed:
            return
        for index, readers in self._confirmed:
            if index <= applied_index:
                _settle(readers, index)
        self._confirmed = [batch for batch in self._confirmed if batch[0] > applied_index]

    def on_standing_changed(self) -> None:
        """Whoever was asked may lead no more: ask again."""
        for batch in self._asked.values():
            self._waiting += batch.readers
        self._asked.clear()
        self.on_encouraged()

    def on_encouraged(self) -> None:
        """What refused before may answer now."""
        self._is_refused = False

    def on_tick(self, now_s: float, *, has_leader: bool) -> None:
        self.on_encouraged()
        for context, batch in list(self._asked.items()):
            batch.age_ticks += 1
            if batch.age_ticks >= self._patience_ticks:
                self._waiting += self._asked.pop(context).readers
        if self._readers:
            self._end_overdue(now_s, has_leader=has_leader)

    def stop(self, reason: str) -> None:
        for reader in self._everybody():
            reader.settle(Unavailable(f"the read was not answered before {reason}"))

    def _end_overdue(self, now_s: float, *, has_leader: bool) -> None:
        for reader in self._everybody():
            if reader.deadline_s <= now_s:
                reader.settle(
                    DeadlineExceeded("the leader did not confirm the read, or this member did not catch up, in time")
                    if has_leader
                    else NotProposed("no leader is known at present, so nothing can be read linearizably; try again")
                )
        self._waiting = [reader for reader in self._waiting if not reader.outcome.done()]

    def _everybody(self) -> list[_Reader]:
        asked = [reader for batch in self._asked.values() for reader in batch.readers]
        return self._waiting + asked + [reader for _, readers in self._confirmed for reader in readers]


def _settle(readers: list[_Reader], index: int) -> None:
    for reader in readers:
        reader.settle(index)
