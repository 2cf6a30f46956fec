"""Who is in the cluster, and whose acknowledgement counts.

Voters are given at start and do not change in this version. A change will be one member at a time, and only after
an entry of the leader's term is committed (the single-server bug, raft-dev 2015); it will replace this value.
"""

from collections.abc import Iterable

from quorate_core.errors import SettingsError

from quorate_raft.core.messages import NO_MEMBER, MemberName

VOTERS_MAX = 9
"""Each voter costs every write one more copy; past seven, clusters only get slower (thesis, 11.1)."""


class Membership:
    """The members of a cluster. Immutable."""

    __slots__ = ("voters",)

    voters: tuple[MemberName, ...]
    """Sorted; every two are different."""

    def __init__(self, voters: Iterable[MemberName]) -> None:
        names = sorted(voters)
        if not 1 <= len(names) <= VOTERS_MAX:
            raise SettingsError(f"a cluster has between 1 and {VOTERS_MAX} voters, not {len(names)}")
        if len(set(names)) != len(names) or NO_MEMBER in names:
            raise SettingsError(f"every member needs a name of its own; got {', '.join(names)!r}")
        self.voters = tuple(names)

    def __contains__(self, name: object) -> bool:
        return name in self.voters

    def is_voter(self, name: MemberName) -> bool:
        return name in self.voters

    def others(self, name: MemberName) -> tuple[MemberName, ...]:
        """All members but `name`."""
        return tuple(member for member in self.voters if member != name)
