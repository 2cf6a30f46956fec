"""Who is in the cluster, and whose acknowledgement counts.

A configuration is a value, and each change of it is an entry of the log that holds the whole new one. It is in force
for a member as soon as that has the entry, committed or not (thesis, 4.1); if the entry is cut off again, the one
before is in force again. Only one member is added, promoted or removed at a time, so that the majorities of two
configurations that follow each other always share a voter; and only by a leader that has committed an entry of its own
term, since two leaders could otherwise change the same configuration in two ways (raft-dev, 2015).

A member begins as a learner: it gets all entries and counts for nothing. Promoted when it has caught up, it is a voter.
Who is removed never comes back under the same name: what it acknowledged in its earlier life could be taken for what
it acknowledges in its new one.
"""

from collections.abc import Iterable, Mapping

import msgspec
from quorate_core.errors import Conflict, InvalidRequest, NotFound, SettingsError

MemberName = str
NO_MEMBER: MemberName = ""
"""Stands for "nobody": no vote given, no leader known."""

VOTERS_MAX = 9
"""Each voter costs every write one more copy; past seven, clusters only get slower (thesis, 11.1)."""
LEARNERS_MAX = 9
REMOVED_MAX = 1_000
"""Names of removed members that are remembered, newest first."""


class ForgottenMember(SettingsError):
    """A member that was to join has been one already, and has lost its log. Starting it again is useless."""

    @classmethod
    def named(cls, name: MemberName) -> "ForgottenMember":
        return cls(
            f"{name} is a member of this cluster already, and its log is gone: a member that has forgotten what it "
            "acknowledged must not vote. Remove it, and add a member with a new name and an empty folder"
        )


class Member(msgspec.Struct, frozen=True, array_like=True):
    """`address` is where the others reach it; it means nothing here."""

    name: MemberName
    address: str = ""
    is_learner: bool = False


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """One configuration. `members` are sorted by name; `removed` may never be members again.

    An empty one is that of a member which joins a cluster, and knows nothing of it yet.
    """

    members: tuple[Member, ...] = ()
    removed: tuple[MemberName, ...] = ()

    @classmethod
    def of_voters(cls, voters: Iterable[MemberName] | Mapping[MemberName, str]) -> "Membership":
        """The configuration that a cluster begins with. Raises SettingsError."""
        addresses = voters if isinstance(voters, Mapping) else {}
        names = sorted(voters)
        if not 1 <= len(names) <= VOTERS_MAX:
            raise SettingsError(f"a cluster has between 1 and {VOTERS_MAX} voters, not {len(names)}")
        if len(set(names)) != len(names) or NO_MEMBER in names:
            raise SettingsError(f"every member needs a name of its own; got {', '.join(names)!r}")
        return cls(tuple(Member(name, addresses.get(name, "")) for name in names))

    @property
    def voters(self) -> tuple[MemberName, ...]:
        return tuple(member.name for member in self.members if not member.is_learner)

    @property
    def learners(self) -> tuple[MemberName, ...]:
        return tuple(member.name for member in self.members if member.is_learner)

    @property
    def names(self) -> tuple[MemberName, ...]:
        return tuple(member.name for member in self.members)

    @property
    def is_empty(self) -> bool:
        return not self.members

    def __contains__(self, name: object) -> bool:
        return any(member.name == name for member in self.members)

    def find(self, name: MemberName) -> Member | None:
        return next((member for member in self.members if member.name == name), None)

    def is_voter(self, name: MemberName) -> bool:
        member = self.find(name)
        return member is not None and not member.is_learner

    def is_learner(self, name: MemberName) -> bool:
        member = self.find(name)
        return member is not None and member.is_learner

    def others(self, name: MemberName) -> tuple[MemberName, ...]:
        """All members but `name`, learners too."""
        return tuple(member.name for member in self.members if member.name != name)

    def address_of(self, name: MemberName) -> str | None:
        member = self.find(name)
        return None if member is None else member.address


class AddLearner(msgspec.Struct, frozen=True, array_like=True, tag="add"):
    name: MemberName
    address: str


class PromoteLearner(msgspec.Struct, frozen=True, array_like=True, tag="promote"):
    name: MemberName


class RemoveMember(msgspec.Struct, frozen=True, array_like=True, tag="remove"):
    name: MemberName


MembershipChange = AddLearner | PromoteLearner | RemoveMember


def apply_change(membership: Membership, change: MembershipChange) -> Membership:
    """The configuration after `change`. Raises Conflict, NotFound or InvalidRequest, with a sentence for people."""
    match change:
        case AddLearner(name, address):
            return _with_learner(membership, name, address)
        case PromoteLearner(name):
            return _with_promoted(membership, name)
        case RemoveMember(name):
            return _without(membership, name)


def encode_membership(membership: Membership) -> bytes:
    return _encode(membership)


def decode_membership(data: bytes) -> Membership:
    """Raises InvalidRequest for what is none, or could not be in force anywhere."""
    try:
        membership = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"a configuration of {len(data)} bytes cannot be read: {error}") from error
    names = membership.names
    if not membership.voters or list(names) != sorted(set(names)):
        raise InvalidRequest(f"a configuration of the members {', '.join(names) or 'none'} makes no sense")
    return membership


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Membership)


def _with_learner(membership: Membership, name: MemberName, address: str) -> Membership:
    if name == NO_MEMBER:
        raise InvalidRequest("a member needs a name")
    if name in membership:
        raise Conflict(f"{name} is a member already")
    if name in membership.removed:
        raise Conflict(f"{name} was a member and was removed; a member that comes back needs a new name")
    if len(membership.learners) >= LEARNERS_MAX:
        raise Conflict(f"the cluster has {LEARNERS_MAX} learners, and that is the most; promote or remove one first")
    members = sorted((*membership.members, Member(name, address, is_learner=True)), key=lambda member: member.name)
    return Membership(tuple(members), membership.removed)


def _with_promoted(membership: Membership, name: MemberName) -> Membership:
    _require_member(membership, name)
    if membership.is_voter(name):
        raise Conflict(f"{name} is a voter already")
    if len(membership.voters) >= VOTERS_MAX:
        raise Conflict(f"the cluster has {VOTERS_MAX} voters, and that is the most; remove one first")
    members = tuple(
        Member(member.name, member.address) if member.name == name else member for member in membership.members
    )
    return Membership(members, membership.removed)


def _without(membership: Membership, name: MemberName) -> Membership:
    _require_member(membership, name)
    if membership.voters == (name,):
        raise Conflict(f"{name} is the last voter; a cluster without one could do nothing any more")
    members = tuple(member for member in membership.members if member.name != name)
    return Membership(members, (name, *membership.removed)[:REMOVED_MAX])


def _require_member(membership: Membership, name: MemberName) -> None:
    if name not in membership:
        raise NotFound(f"{name} is no member; there are {', '.join(membership.names) or 'none'}")
