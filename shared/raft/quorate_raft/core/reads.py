"""Read-index bookkeeping of a leader (thesis, section 6.4).

Reads that arrive together share a round: a number that goes out with a heartbeat to every member. The read index of
a round is the commit index when the round starts. A member that echoes a round has then seen no newer term, so once
a majority has echoed it, or a later one of the same term, the leader was the leader when the round started.

When the configuration changes, the rounds under way begin anew, so a round is always confirmed by a majority of the
configuration in which it began, and that is the newest one of the leader until it ends. That is enough. Say a newer
leader was elected before the round began, and take the first such. It had every entry committed before, so the
configuration before the leader's newest (which was committed before the newest was made), and was elected by a majority
of that one or of the newest. Either shares a voter with the majority that echoed; that voter had then left the
leader's term before it echoed a round of it, and a member that has left a term echoes nothing of it any more.

Round numbers rise as long as this member lives and are never used twice; answers of another term are dropped before
they come here, and a member leads a term at most once. So a late echo can only confirm what it was asked for.
"""

from collections import deque
from collections.abc import Sequence

from quorate_raft.core.messages import MemberName
from quorate_raft.core.quorum import agreed

READS_WAITING_MAX = 4096
"""Reads that one leader holds unanswered; a driver sends one for a whole batch of its callers."""
ROUNDS_OPEN_MAX = 4
"""Rounds under way at once. More would send more heartbeats, each for fewer reads."""

Ask = tuple[MemberName, int]
"""Who asks, and the context that is unique for it."""


class ReadRounds:
    __slots__ = ("_echoed", "_open", "_voters", "_waiting", "newest_round")

    def __init__(self, voters: Sequence[MemberName]) -> None:
        self._voters = voters
        self._waiting: list[Ask] = []
        self._open: deque[tuple[int, int, list[Ask]]] = deque()
        self._echoed = dict.fromkeys(voters, 0)
        self.newest_round = 0

    def __len__(self) -> int:
        return len(self._waiting) + sum(len(asks) for _, _, asks in self._open)

    @property
    def open_round(self) -> int:
        """The newest round that is not confirmed; 0 when there is none. Heartbeats repeat it, since some get lost."""
        return self._open[-1][0] if self._open else 0

    @property
    def may_start(self) -> bool:
        return bool(self._waiting) and len(self._open) < ROUNDS_OPEN_MAX

    def ask(self, asker: MemberName, context: int) -> bool:
        """Queue a read for the next round; False when too many wait."""
        if len(self) >= READS_WAITING_MAX:
            return False
        self._waiting.append((asker, context))
        return True

    def start(self, commit_index: int) -> int:
        """Begin a round for all reads that wait; returns its number."""
        self.newest_round += 1
        self._open.append((self.newest_round, commit_index, self._waiting))
        self._waiting = []
        return self.newest_round

    def echo(self, member: MemberName, round_number: int) -> list[tuple[Ask, int]]:
        """`member` has answered `round_number`: the reads that are thereby confirmed, each with its read index."""
        if round_number <= self._echoed.get(member, round_number):
            return []
        self._echoed[member] = round_number
        confirmed_round = agreed(list(self._echoed.values()))
        confirmed: list[tuple[Ask, int]] = []
        while self._open and self._open[0][0] <= confirmed_round:
            _, index, asks = self._open.popleft()
            confirmed += [(ask, index) for ask in asks]
        return confirmed

    def begin_anew(self, voters: Sequence[MemberName]) -> None:
        """The configuration changed: rounds under way join those that wait, and `voters` confirm from now on."""
        self._voters = voters
        self._waiting = self.drop_all()

    def drop_all(self) -> list[Ask]:
        """Forget every read, as a leader that steps down must; returns them, to be refused."""
        asks = [ask for _, _, asks in self._open for ask in asks] + self._waiting
        self._open.clear()
        self._waiting = []
        self._echoed = dict.fromkeys(self._voters, 0)
        return asks
