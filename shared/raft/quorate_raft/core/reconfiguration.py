"""Changes of the membership: what a leader demands before it appends one (`membership` says what a change is).

Beside the rules of safety there are those of prudence, since a change cannot be taken back without a majority: a
learner is promoted only when it lags little and is alive, and no change is begun after which the voters that are
alive would be no majority. (With three voters and one of them down, removing one of the others would end the cluster.)
"""

from quorate_core.errors import Conflict, NotProposed

from quorate_raft.core.membership import Membership, MembershipChange, PromoteLearner, apply_change, encode_membership
from quorate_raft.core.messages import Entry, EntryKind
from quorate_raft.core.quorum import majority
from quorate_raft.core.state import MemberState

PROMOTION_LAG_ENTRIES_MAX = 1_000
"""A voter that lacks so many entries has them within an election timeout, or else commits wait for it."""


def append_change(member: MemberState, change: MembershipChange, request_id: int) -> tuple[int, int]:
    """Leader: append the configuration after `change`, which is in force at once; returns its index and term.

    Raises NotProposed before an entry of this term is committed (the same configuration could otherwise be changed in
    two ways by two leaders: raft-dev, 2015), and Conflict, NotFound or InvalidRequest for a change that cannot be.
    """
    log = member.log
    if not member.has_committed_in_term:
        raise NotProposed(f"{member.name} has only begun to lead, and does not know yet what is committed; try again")
    if log.configurations.unsettled_index:
        raise Conflict("another change of the membership is not settled yet; try again when it is")
    membership = apply_change(member.membership, change)
    if isinstance(change, PromoteLearner):
        _require_caught_up(member, change)
    _require_live_majority(member, membership)
    index = log.last_index + 1
    log.extend((Entry(index, member.term, EntryKind.MEMBERSHIP, encode_membership(membership), request_id),))
    member.adopt_membership()
    member.replication_is_due = True
    return index, member.term


def _require_caught_up(member: MemberState, change: PromoteLearner) -> None:
    progress = member.progress[change.name]
    lag = member.log.last_index - progress.match_index
    if lag > PROMOTION_LAG_ENTRIES_MAX:
        raise Conflict(
            f"{change.name} lacks {lag} entries, and may lack {PROMOTION_LAG_ENTRIES_MAX} to be promoted; "
            "try again when it has caught up",
            lag_entries=lag,
        )
    if progress.match_index == 0:
        raise Conflict(f"{change.name} has not taken a snapshot over yet; try again when it has", lag_entries=lag)
    if not progress.is_alive:
        raise Conflict(f"{change.name} does not answer; as a voter it would only be missed", lag_entries=lag)


def _require_live_majority(member: MemberState, membership: Membership) -> None:
    alive = [name for name in membership.voters if name == member.name or member.progress[name].is_alive]
    if len(alive) < majority(len(membership.voters)):
        raise Conflict(
            f"of the voters {', '.join(membership.voters)} that there would be, only {', '.join(alive) or 'none'} "
            "would be alive, and nothing could be agreed on any more"
        )
