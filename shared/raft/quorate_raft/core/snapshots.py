"""Snapshots, as far as consensus has a say: who needs one, and what becomes of a log that one replaces (paper, 7).

A leader whose log no longer has what a follower lacks asks its caller to send that follower a snapshot
(`Ready.snapshots_wanted`), once, and sends it nothing meanwhile. It asks only for followers that it has just heard
from: a member that is down gets no snapshot before it is back. When the caller says that the snapshot has arrived, or
was lost, the follower is probed; should it still lack too much, its next answer has another one asked for. So there is
at most one attempt a heartbeat, and each ends before the next.

A follower takes a snapshot only for what it does not know to be committed. If its log has the snapshot's last entry,
that and all before it are committed, and nothing is restored. Else nothing in the log is of use: the log begins anew
after the snapshot, in memory at once, and the answer leaves when the caller has made it durable and restored the state.
Until then what follows may be appended, and is not applied.

A member that knows no configuration, and finds itself a voter in the first that it is sent, has lost its log: who joins
is no voter before it has made a snapshot durable. It must not go on. Others count what it once acknowledged, and may
lead by a vote of a later term than that of the leader which has found it.
"""

from quorate_core.errors import InvalidRequest, InvariantViolation

from quorate_raft.core.membership import ForgottenMember
from quorate_raft.core.messages import AppendResponse, InstallSnapshot, MemberName
from quorate_raft.core.progress import Progress, ProgressState
from quorate_raft.core.state import MemberState


def want(member: MemberState, name: MemberName, progress: Progress) -> None:
    """Leader: the log alone cannot bring this follower up to date."""
    if progress.state is ProgressState.SNAPSHOT:
        return
    if progress.is_recently_active:
        progress.become_snapshot()
        member.snapshots_wanted.append(name)
    else:
        progress.become_probe(progress.next_index, is_told_to_wait=True)


def on_sent(member: MemberState, to: MemberName, index: int) -> None:
    """Leader: `to` has taken a snapshot of entry `index` over. Raises InvariantViolation for one that cannot be."""
    if index > member.log.applied_index:
        raise InvariantViolation(f"{to} was sent a snapshot of entry {index}, past {member.log.applied_index}")
    progress = member.progress.get(to)
    if progress is not None and progress.state is ProgressState.SNAPSHOT:
        progress.become_probe(max(progress.match_index, index) + 1)
        member.replication_is_due = True


def on_failed(member: MemberState, to: MemberName) -> None:
    """Leader: `to` has not taken the snapshot over, or may not have. Its next sign of life allows the next probe."""
    progress = member.progress.get(to)
    if progress is not None and progress.state is ProgressState.SNAPSHOT:
        progress.become_probe(progress.match_index + 1, is_told_to_wait=True)


def on_install_snapshot(member: MemberState, message: InstallSnapshot) -> None:
    """Follower: the leader's snapshot is durable here. Raises InvalidRequest for one that cannot be of a leader, and
    ForgottenMember when it shows that this member has lost its log."""
    snapshot, log = message.snapshot, member.log
    if snapshot.term > message.term or not snapshot.membership.voters:
        raise InvalidRequest(
            f"{message.sender}, leader of term {message.term}, has a snapshot of term {snapshot.term} "
            f"with {len(snapshot.membership.voters)} voters"
        )
    if member.knows_nothing and snapshot.membership.is_voter(member.name):
        raise ForgottenMember.named(member.name)
    member.follow(message.sender)
    if snapshot.index <= log.commit_index:
        match_index = log.commit_index
    elif log.term_at(snapshot.index) == snapshot.term:
        log.commit_to(snapshot.index)
        match_index = snapshot.index
    elif member.restoring is not None:
        return  # one at a time; the leader will find out what is still lacking
    else:
        log.restore(snapshot)
        member.restoring = snapshot
        member.adopt_membership()
        match_index = snapshot.index
    member.messages_after_persist.append(AppendResponse(member.name, message.sender, member.term, match_index))
