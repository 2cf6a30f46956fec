"""The configurations of one log: which is in force, which are settled, and whom a member must reach meanwhile.

The newest one is in force, committed or not (`membership` says why). A follower may have several that it does not know
to be committed; any of them may still be cut off, and then the one before is in force again. So a member stays in touch
with everybody who is a member in any configuration from the newest committed one on: else a member whose log holds a
removal that never happened would be deaf to the leader that could tell it so. And nobody is told that it was removed
before that is settled.
"""

from bisect import bisect_right

from quorate_core.errors import NotFound

from quorate_raft.core.membership import Member, MemberName, Membership


def _index_of(configuration: tuple[int, Membership]) -> int:
    return configuration[0]


class Configurations:
    """Those at the base of a log and after it, oldest first; never none."""

    __slots__ = ("_history", "contacts", "unsettled_index")

    def __init__(self, index: int, membership: Membership) -> None:
        """`membership` is in force after the entry `index`, which is committed."""
        # NB: replaced and never changed in place, so that `at` may be asked in any thread.
        self._history: tuple[tuple[int, Membership], ...] = ((index, membership),)
        self.unsettled_index = 0
        """The first configuration that is not known to be committed; 0 when all are."""
        self.contacts = membership
        """Whom to reach: members of any configuration that may be, or come to be, in force. `removed` are those of the
        newest committed one. Another object whenever it changes."""

    @property
    def newest(self) -> Membership:
        return self._history[-1][1]

    @property
    def newest_index(self) -> int:
        return self._history[-1][0]

    def at(self, index: int) -> Membership:
        """The configuration in force after the entry `index`. Raises NotFound for one that is forgotten."""
        history = self._history
        position = bisect_right(history, index, key=_index_of)
        if position == 0:
            raise NotFound(f"the configuration at entry {index} is forgotten; the oldest known is at {history[0][0]}")
        return history[position - 1][1]

    def since(self, index: int) -> tuple[Membership, ...]:
        """The configuration in force after the entry `index`, and all newer ones."""
        history = self._history
        return tuple(membership for _, membership in history[max(bisect_right(history, index, key=_index_of) - 1, 0) :])

    def add(self, index: int, membership: Membership) -> None:
        """An entry that is not committed yet has brought a configuration. The base knows those before it already."""
        if index > self.newest_index:
            self._history = (*self._history, (index, membership))
            self._review(self.unsettled_index or index)

    def cut_from(self, index: int) -> None:
        """The entries from `index` on are gone."""
        if self.newest_index >= index:
            self._history = tuple(known for known in self._history if known[0] < index)
            self._review(self.unsettled_index if self.unsettled_index < index else 0)

    def settle(self, commit_index: int) -> None:
        """Everything up to `commit_index` is committed."""
        self._review(next((index for index, _ in self._history if index > commit_index), 0))

    def forget_before(self, index: int) -> None:
        """Nobody will ask for a configuration before the entry `index`."""
        position = bisect_right(self._history, index, key=_index_of) - 1
        if position > 0:
            self._history = self._history[position:]

    def _review(self, unsettled_index: int) -> None:
        self.unsettled_index = unsettled_index
        in_play = self.since(unsettled_index - 1) if unsettled_index else (self.newest,)
        if len(in_play) == 1:
            self.contacts = self.newest
            return
        members: dict[MemberName, Member] = {}
        for membership in in_play:
            members |= {member.name: member for member in membership.members}
        self.contacts = Membership(tuple(members[name] for name in sorted(members)), in_play[0].removed)
