"""Elections: campaigns, votes, and who is listened to (paper, section 5.2 and 5.4.1; thesis, 4.2.3, 6.2, 9.6).

A member that hears from a leader refuses to help another to become one (so a member that was cut off, or is cut off
from the leader only, disturbs nobody), unless the leader itself asked for the election.

Whoever is asked answers, whether or not its own configuration has the candidate, or itself, as a voter: that may be
behind the candidate's. Say that a learner was promoted and does not know it yet: without its vote the cluster could
have no leader, and then it would never learn it (thesis, 4.1). The candidate counts those that its own newest
configuration names. A member that was removed cannot win: a majority has the entry that removed it, and it has not;
and while there is a leader, nobody listens to it.

The one exception is a member that knows no configuration: it joins, or has lost its disk. Were it a voter that forgot
what it acknowledged, its vote could elect a leader without that; so it gives none, and echoes no read. Nobody needs
either of a member that joins: it is a learner, and is promoted only after it has taken a snapshot over.
"""

from collections.abc import Iterator

from quorate_raft.core.messages import (
    NO_MEMBER,
    AppendRequest,
    AppendResponse,
    HeartbeatRequest,
    InstallSnapshot,
    MemberName,
    Message,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from quorate_raft.core.quorum import TallyResult, majority
from quorate_raft.core.ready import Role
from quorate_raft.core.state import MemberState

PRE_VOTE_REPEAT_TICKS = 2
"""Whoever heard from the lost leader a moment later than this member is silent at first, and would vote soon after:
waiting another election timeout for it would double the time without a leader."""


def meet_newer_term(member: MemberState, message: Message) -> bool:
    """Decide what a message of a newer term does to this member; says whether it is then handled."""
    if isinstance(message, VoteRequest):
        if member.hears_leader and not message.transfer:
            return False
        if message.pre:
            return True
    elif isinstance(message, VoteResponse) and message.pre and message.granted:
        # It carries the term that this member would have as candidate; nobody is there yet.
        return True
    leads = isinstance(message, AppendRequest | HeartbeatRequest | InstallSnapshot)
    member.become_follower(message.term, message.sender if leads else NO_MEMBER)
    return True


def answer_older_term(member: MemberState, message: Message) -> None:
    """Tell a leader or candidate of an older term that it is over: with PreVote nobody else would."""
    if isinstance(message, AppendRequest | HeartbeatRequest | InstallSnapshot):
        answer: Message = AppendResponse(member.name, message.sender, member.term, 0, rejected=True)
    elif isinstance(message, VoteRequest):
        answer = VoteResponse(member.name, message.sender, member.term, granted=False, pre=message.pre)
    else:
        return
    member.messages_after_persist.append(answer)


def tick_follower(member: MemberState) -> None:
    """Followers and candidates: start an election when the timeout has passed. The only voter need not wait for
    anybody: not for a leader, and not, as a candidate, for more than its own disk."""
    if member.is_only_voter:
        if member.role is Role.FOLLOWER and member.may_campaign:
            campaign_if_electable(member)
        return
    member.election_elapsed_ticks += 1
    if member.election_elapsed_ticks >= member.election_timeout_ticks:
        if member.may_campaign:
            campaign_if_electable(member)
        else:
            member.become_follower(member.term, NO_MEMBER)
    elif member.role is Role.PRE_CANDIDATE and member.election_elapsed_ticks % PRE_VOTE_REPEAT_TICKS == 0:
        _ask_pre_votes(member)


def tick_leader(member: MemberState) -> None:
    """Heartbeats, CheckQuorum (a leader that a majority does not answer steps down: thesis, 6.2), and the end of a
    transfer that takes too long."""
    election_ticks = member.config.election_ticks
    member.election_elapsed_ticks += 1
    member.heartbeat_elapsed_ticks += 1
    if member.transferee != NO_MEMBER:
        member.transfer_elapsed_ticks += 1
        if member.transfer_elapsed_ticks >= election_ticks:
            member.transferee = NO_MEMBER  # proposals are welcome again
    if member.election_elapsed_ticks >= election_ticks:
        member.election_elapsed_ticks = 0
        if not _is_heard_by_majority(member):
            member.become_follower(member.term, NO_MEMBER)
            return
    if member.heartbeat_elapsed_ticks >= member.config.heartbeat_ticks:
        member.send_heartbeats()


def campaign_if_electable(member: MemberState) -> None:
    """Ask who would vote for this member, without disturbing anybody."""
    member.become_pre_candidate()
    member.tally.record(member.name, granted=True)
    _ask_pre_votes(member)
    _conclude(member)


def campaign(member: MemberState, *, transfer: bool = False) -> None:
    """Stand for election in a new term. Requests leave once term and vote are durable."""
    member.become_candidate()
    for name in _other_voters(member):
        member.messages_after_persist.append(
            VoteRequest(member.name, name, member.term, member.log.last_index, member.log.last_term, transfer=transfer)
        )


def on_vote_request(member: MemberState, request: VoteRequest) -> None:
    """RequestVote (paper, figure 2); a pre-vote also checks the log, else a member that lags could be elected never
    and still keep everybody busy."""
    may_vote = (
        member.vote == request.sender
        or (member.vote == NO_MEMBER and member.leader == NO_MEMBER)
        or (request.pre and request.term > member.term)
    )
    granted = may_vote and not member.knows_nothing and member.log.is_up_to_date(request.last_index, request.last_term)
    term = request.term if granted else member.term
    if granted and not request.pre:
        member.vote = request.sender
        member.reset_election_timer()
    member.messages_after_persist.append(
        VoteResponse(member.name, request.sender, term, granted=granted, pre=request.pre)
    )


def on_vote_response(member: MemberState, response: VoteResponse) -> None:
    awaited = Role.PRE_CANDIDATE if response.pre else Role.CANDIDATE
    if member.role is not awaited:
        return
    if response.pre and response.granted and response.term != member.term + 1:
        return  # for an election of another term
    member.tally.record(response.sender, response.granted)
    _conclude(member)


def on_own_vote_durable(member: MemberState) -> None:
    member.tally.record(member.name, granted=True)
    _conclude(member)


def on_timeout_now(member: MemberState, message: TimeoutNow) -> None:
    """The leader hands over: no pre-vote, and members that hear from it vote all the same (thesis, 3.10)."""
    if message.sender == member.leader and member.may_campaign:
        campaign(member, transfer=True)


def _ask_pre_votes(member: MemberState) -> None:
    log, term = member.log, member.term + 1
    for name in _other_voters(member):
        if not member.tally.has_answered(name):
            member.messages.append(VoteRequest(member.name, name, term, log.last_index, log.last_term, pre=True))


def _conclude(member: MemberState) -> None:
    result = member.tally.result
    if result is TallyResult.LOST:
        member.become_follower(member.term, NO_MEMBER)
    elif result is TallyResult.WON and member.role is Role.PRE_CANDIDATE:
        campaign(member)
    elif result is TallyResult.WON:
        member.become_leader()


def _other_voters(member: MemberState) -> Iterator[MemberName]:
    return (name for name in member.membership.voters if name != member.name)


def _is_heard_by_majority(member: MemberState) -> bool:
    heard = member.is_voter + sum(progress.is_recently_active for progress in member.voter_progress)
    for progress in member.progress.values():
        progress.begin_activity_period()
    return heard >= majority(len(member.membership.voters))
