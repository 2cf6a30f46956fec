"""Log replication, commitment and linearizable reads (paper, sections 5.3, 5.4.2 and 8; thesis, 6.4 and 10.2).

A leader only notes that something is due; `send_due` sends for all that gathered since, so that what arrives in one
turn of the caller's loop leaves in one request.
"""

from collections.abc import Collection

from quorate_core.errors import InvariantViolation

from quorate_raft.core import snapshots
from quorate_raft.core.membership import ForgottenMember
from quorate_raft.core.messages import (
    NO_MEMBER,
    AppendRequest,
    AppendResponse,
    Entry,
    HeartbeatRequest,
    HeartbeatResponse,
    MemberName,
    ReadIndexRequest,
    ReadIndexResponse,
    TimeoutNow,
)
from quorate_raft.core.progress import Progress, ProgressState
from quorate_raft.core.quorum import agreed
from quorate_raft.core.ready import ReadResult, Role
from quorate_raft.core.state import MemberState


def send_due(member: MemberState) -> None:
    """Leader: begin a read round when reads wait, and send what followers lack."""
    if member.reads.may_start:
        member.reads.start(member.log.commit_index)
        member.send_heartbeats()
        _echo_own(member)
    if member.replication_is_due:
        tells_commit = member.commit_is_awaited or not member.config.withholds_commit
        member.replication_is_due = member.commit_is_awaited = False
        for name, progress in member.progress.items():
            _send_appends(member, name, progress, tells_commit)


def on_append_request(member: MemberState, request: AppendRequest) -> None:
    """AppendEntries (paper, figure 2). The answer leaves when what it promises is durable."""
    member.follow(request.sender)
    log = member.log
    if request.previous_index < log.commit_index:
        # Old news, and maybe compacted away: what is committed agrees with every leader to come.
        answer = AppendResponse(member.name, request.sender, member.term, log.commit_index)
    elif member.knows_nothing:
        answer = AppendResponse(
            member.name, request.sender, member.term, request.previous_index, rejected=True, needs_snapshot=True
        )
    else:
        agreed_index = log.accept(request.previous_index, request.previous_term, request.entries)
        if agreed_index is None:
            answer = _rejection(member, request)
        else:
            log.commit_to(min(request.commit, agreed_index))
            answer = AppendResponse(member.name, request.sender, member.term, agreed_index)
        if log.membership is not member.membership:
            member.adopt_membership()
    member.messages_after_persist.append(answer)


def on_append_response(member: MemberState, response: AppendResponse) -> None:
    progress = member.progress.get(response.sender)
    if progress is None:
        return
    progress.is_recently_active = True
    if response.rejected:
        if response.needs_snapshot and progress.match_index == 0:
            snapshots.want(member, response.sender, progress)
            return
        probe_index = member.log.last_index_not_above(response.hint_term, response.hint_index)
        if progress.on_rejected(response.match_index, probe_index):
            member.replication_is_due = True
        return
    if response.match_index > member.log.last_index:
        raise InvariantViolation(
            f"{response.sender} says that it agrees up to {response.match_index}, "
            f"but the log of its leader {member.name} ends at {member.log.last_index}"
        )
    had_room = progress.may_send
    if progress.state is ProgressState.SNAPSHOT and response.match_index >= member.log.previous_index:
        progress.become_probe(response.match_index + 1)
    if progress.on_accepted(response.match_index):
        commit_if_agreed(member)
        _continue_transfer(member, response.sender, progress)
    if not had_room:
        member.replication_is_due = True


def on_heartbeat_request(member: MemberState, request: HeartbeatRequest) -> None:
    """Raises ForgottenMember when this member has had a log, and has none any more."""
    member.follow(request.sender)
    read_context = request.read_context
    if member.knows_nothing:
        read_context = 0
        if request.commit > 0:  # as much, the leader says, was acknowledged here
            raise ForgottenMember.named(member.name)
    member.log.commit_to(request.commit)
    member.messages.append(HeartbeatResponse(member.name, request.sender, member.term, read_context))


def on_heartbeat_response(member: MemberState, response: HeartbeatResponse) -> None:
    """Proves that the follower is there. One that may lack something gets an empty request after what was sent: if some
    of that was lost, its rejection says so. (Not the same entries again: a slow disk would get them every heartbeat.)
    """
    progress = member.progress.get(response.sender)
    if progress is None:
        return
    progress.is_recently_active = True
    log = member.log
    if progress.next_index <= log.previous_index:
        snapshots.want(member, response.sender, progress)
    elif progress.state is ProgressState.PROBE or (
        progress.state is ProgressState.REPLICATE and progress.match_index < log.last_index
    ):
        _send_append(member, response.sender, progress, ())
    _answer_confirmed_reads(member, response.sender, response.read_context)


def on_read_index_request(member: MemberState, request: ReadIndexRequest) -> None:
    ask_read_index(member, request.sender, request.context)


def on_read_index_response(member: MemberState, response: ReadIndexResponse) -> None:
    member.read_results.append(ReadResult(response.context, response.index))


def ask_read_index(member: MemberState, asker: MemberName, context: int) -> None:
    """Queue a read, pass it to the leader, or refuse it. A leader that has committed nothing in its term does not
    know yet what is committed (paper, section 8)."""
    if member.role is Role.LEADER:
        if not (member.has_committed_in_term and member.reads.ask(asker, context)):
            member.answer_read(asker, context, 0)
    elif asker == member.name and member.leader != NO_MEMBER:
        member.messages.append(ReadIndexRequest(member.name, member.leader, member.term, context))
    else:
        member.answer_read(asker, context, 0)


def commit_if_agreed(member: MemberState) -> None:
    """Advance the commit index to what a majority has made durable, if it is of this term (paper, 5.4.2). A leader that
    is not among the voters does not count itself."""
    log = member.log
    matches = [progress.match_index for progress in member.voter_progress]
    if member.is_voter:
        matches.append(log.stable_index)
    index = agreed(matches)
    if index > log.commit_index and log.term_at(index) == member.term:
        is_change = 0 < log.configurations.unsettled_index <= index
        log.commit_to(index)
        if is_change or not member.config.withholds_commit:
            member.tell_commit()
        if not member.is_voter and log.configurations.unsettled_index == 0:
            _leave(member)


def begin_transfer(member: MemberState, to: MemberName) -> bool:
    """Leader: hand over to the voter `to` as soon as it has the whole log. Says whether it was begun."""
    progress = member.progress.get(to)
    if progress is None or not member.membership.is_voter(to):
        return False
    member.transferee = to
    member.transfer_elapsed_ticks = 0
    member.replication_is_due = True
    _continue_transfer(member, to, progress)
    return True


def most_caught_up(member: MemberState, among: Collection[MemberName]) -> MemberName:
    """Leader: the other voter of `among` that lacks least; empty when there is none."""
    matches = [
        (progress.match_index, name)
        for name, progress in member.progress.items()
        if name in among and member.membership.is_voter(name)
    ]
    return max(matches)[1] if matches else NO_MEMBER


def _leave(member: MemberState) -> None:
    """Leader: its own removal is committed. The voter that lacks least need not wait for its election timeout."""
    successor = most_caught_up(member, [name for name, progress in member.progress.items() if progress.is_alive])
    if successor != NO_MEMBER:
        member.messages.append(TimeoutNow(member.name, successor, member.term))
    member.become_follower(member.term, NO_MEMBER)


def _rejection(member: MemberState, request: AppendRequest) -> AppendResponse:
    """With the last place, not after the request's, where the logs could still agree: whole terms are skipped."""
    log = member.log
    hint_index = log.last_index_not_above(request.previous_term, min(request.previous_index, log.last_index))
    return AppendResponse(
        member.name, request.sender, member.term, request.previous_index, rejected=True,
        hint_index=hint_index, hint_term=log.term_at(hint_index) or 0,
    )  # fmt: skip


def _send_appends(member: MemberState, name: MemberName, progress: Progress, tells_commit: bool) -> None:
    log, append_bytes_max = member.log, member.config.append_bytes_max
    if progress.state is not ProgressState.REPLICATE and not progress.may_send:
        return
    if progress.next_index <= log.previous_index:
        snapshots.want(member, name, progress)
    elif progress.state is ProgressState.PROBE:
        progress.is_told_to_wait = True
        _send_append(member, name, progress, log.slice(progress.next_index, append_bytes_max))
    else:
        while progress.next_index <= log.last_index and not progress.is_window_full:
            entries = log.slice(progress.next_index, append_bytes_max)
            _send_append(member, name, progress, entries)
            progress.on_sent(entries[-1].index, log.size_bytes(entries[0].index, entries[-1].index))
        if tells_commit and progress.commit_sent < log.commit_index and not progress.is_window_full:
            _send_append(member, name, progress, ())


def _send_append(member: MemberState, name: MemberName, progress: Progress, entries: tuple[Entry, ...]) -> None:
    log = member.log
    previous_index = progress.next_index - 1
    previous_term = log.term_at(previous_index)
    if previous_term is None:
        raise InvariantViolation(f"{name} needs entry {previous_index}, which is not in the log")
    member.messages.append(
        AppendRequest(member.name, name, member.term, previous_index, previous_term, entries, log.commit_index)
    )
    progress.commit_sent = log.commit_index


def _continue_transfer(member: MemberState, name: MemberName, progress: Progress) -> None:
    if name == member.transferee and progress.match_index == member.log.last_index:
        member.messages.append(TimeoutNow(member.name, name, member.term))


def _echo_own(member: MemberState) -> None:
    _answer_confirmed_reads(member, member.name, member.reads.newest_round)


def _answer_confirmed_reads(member: MemberState, echoer: MemberName, read_round: int) -> None:
    if read_round == 0:
        return
    for (asker, context), index in member.reads.echo(echoer, read_round):
        member.answer_read(asker, context, index)
