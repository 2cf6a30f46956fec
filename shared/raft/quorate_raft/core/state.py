"""One member's state and its transitions between roles (paper, figure 4, with the pre-candidate of thesis 9.6).

    FOLLOWER      -> PRE_CANDIDATE   nobody led for an election timeout
    FOLLOWER      -> CANDIDATE       the leader asked for it (TimeoutNow)
    PRE_CANDIDATE -> CANDIDATE       a majority would vote for it
    CANDIDATE     -> LEADER          a majority, itself included once its vote is durable, voted for it
    any           -> FOLLOWER        a newer term, a leader of this term, a lost election, or, for a leader,
                                     no word from a majority for an election timeout (CheckQuorum)

Only a voter of the newest configuration in its log campaigns, or one that this removes as long as that is not known
to be committed: such a member may be the only one whose log is complete enough to be elected, so without it the
cluster could be without a leader for good (thesis, 4.2.2). It does not count itself, neither as candidate nor as
leader, and steps down once its removal is committed.

Terms only rise, and a vote is given once in a term. All transitions are here; `election` and `replication` decide
when they happen.
"""

from collections.abc import Callable, Sequence

from quorate_core.errors import InvariantViolation

from quorate_raft.core.log import RaftLog
from quorate_raft.core.messages import (
    NO_MEMBER,
    Entry,
    EntryKind,
    HardState,
    HeartbeatRequest,
    MemberName,
    Message,
    ReadIndexResponse,
    SnapshotMeta,
)
from quorate_raft.core.progress import Progress
from quorate_raft.core.quorum import Tally
from quorate_raft.core.reads import ReadRounds
from quorate_raft.core.ready import RaftConfig, ReadResult, Role

RandomBelow = Callable[[int], int]
"""`random_below(n)` draws an integer from 0 to n - 1."""


class MemberState:
    """Mutable, and owned by one `RaftNode`; the handlers of `election` and `replication` work on it."""

    def __init__(
        self,
        config: RaftConfig,
        hard_state: HardState,
        base: SnapshotMeta,
        entries: Sequence[Entry],
        applied_index: int,
        random_below: RandomBelow,
    ) -> None:
        self.config = config
        self.name = config.name
        self.log = RaftLog(base, entries, hard_state, applied_index)
        # NB: a torn tail may have taken the hard state of a term whose entries it left; terms never fall.
        self.term = max(hard_state.term, self.log.last_term)
        self.vote = hard_state.vote if self.term == hard_state.term else NO_MEMBER
        self.role = Role.FOLLOWER
        self.leader = NO_MEMBER
        self.progress: dict[MemberName, Progress] = {}
        """Of the other members, learners too; empty unless this member leads."""
        self.voter_progress: tuple[Progress, ...] = ()
        """Of those whose acknowledgement counts."""
        self.tally = Tally(())
        self.reads = ReadRounds(())
        self.transferee = NO_MEMBER
        self.transfer_elapsed_ticks = 0
        self.restoring: SnapshotMeta | None = None
        """A snapshot that has taken the place of the log, and is not taken over yet."""
        self.snapshots_wanted: list[MemberName] = []
        """Followers that wait for a snapshot, and were not handed out yet."""
        self.election_elapsed_ticks = 0
        self.heartbeat_elapsed_ticks = 0
        self.replication_is_due = False
        """Something may be sent to followers that was not yet."""
        self.commit_is_awaited = False
        """The commit index is to be sent also where nothing else is."""
        self.messages: list[Message] = []
        self.messages_after_persist: list[Message] = []
        self.read_results: list[ReadResult] = []
        self._random_below = random_below
        self.election_timeout_ticks = 0
        self.reset_election_timer()
        self.adopt_membership()

    @property
    def hears_leader(self) -> bool:
        """Whether a leader was heard of within the minimum election timeout; always so for a leader itself."""
        return self.leader != NO_MEMBER and self.election_elapsed_ticks < self.config.election_ticks

    @property
    def may_campaign(self) -> bool:
        """A voter; or one that was, and is removed by a configuration that may yet be cut off. Not while a snapshot is
        taken over: others can do more than a leader without a state."""
        if self.restoring is not None:
            return False
        log = self.log
        return self.is_voter or any(m.is_voter(self.name) for m in log.configurations.since(log.commit_index))

    @property
    def knows_nothing(self) -> bool:
        """Whether it has no configuration: it joins, or was a member and has lost its disk."""
        return self.membership.is_empty

    @property
    def has_committed_in_term(self) -> bool:
        return self.log.term_at(self.log.commit_index) == self.term

    def reset_election_timer(self) -> None:
        election_ticks = self.config.election_ticks
        self.election_elapsed_ticks = 0
        self.election_timeout_ticks = election_ticks + self._random_below(election_ticks + 1)

    def adopt_membership(self) -> None:
        """The newest configuration of the log is another one than before, and in force from now on."""
        self.membership = self.log.membership
        voters = self.membership.voters
        self.is_voter = self.name in voters
        self.is_only_voter = voters == (self.name,)
        self.reads.begin_anew(voters)
        if self.role is Role.LEADER:
            self._follow_up_progress()

    def follow(self, leader: MemberName) -> None:
        """`leader` leads this term, and has just been heard of."""
        if self.role is Role.FOLLOWER and self.leader == leader:
            self.election_elapsed_ticks = 0
        else:
            self.become_follower(self.term, leader)

    def become_follower(self, term: int, leader: MemberName) -> None:
        """Raises InvariantViolation for a second leader of one term."""
        if term < self.term:
            raise InvariantViolation(f"{self.name} would go back from term {self.term} to {term}")
        if term > self.term:
            self._enter_term(term, NO_MEMBER)
        elif self.role is Role.LEADER and leader != NO_MEMBER:
            raise InvariantViolation(f"{leader} and {self.name} both lead term {term}")
        self._leave_leadership()
        self.role = Role.FOLLOWER
        self.leader = leader
        self.reset_election_timer()

    def become_pre_candidate(self) -> None:
        """Neither term nor vote changes, so nobody is disturbed by an election that cannot be won."""
        self.role = Role.PRE_CANDIDATE
        self.leader = NO_MEMBER
        self.tally = Tally(self.membership.voters)
        self.reset_election_timer()

    def become_candidate(self) -> None:
        """Its own vote counts when it is durable, as any other."""
        self._enter_term(self.term + 1, self.name)
        self.role = Role.CANDIDATE
        self.leader = NO_MEMBER
        self.tally = Tally(self.membership.voters)
        self.reset_election_timer()

    def become_leader(self) -> None:
        """Appends the no-op that lets entries of earlier terms be committed (paper, section 8)."""
        if self.role is not Role.CANDIDATE:
            raise InvariantViolation(f"{self.name} would lead term {self.term} coming from {self.role}")
        self.role = Role.LEADER
        self.leader = self.name
        self.reset_election_timer()
        self.heartbeat_elapsed_ticks = 0
        self._follow_up_progress()
        self.log.append(Entry(self.log.last_index + 1, self.term, EntryKind.NO_OP))
        self.replication_is_due = True

    def send_heartbeats(self) -> None:
        """To every follower, with the newest read round that is not confirmed yet."""
        self.heartbeat_elapsed_ticks = 0
        read_round, commit_index = self.reads.open_round, self.log.commit_index
        for name, progress in self.progress.items():
            commit = min(progress.match_index, commit_index)
            self.messages.append(HeartbeatRequest(self.name, name, self.term, commit, read_round))

    def answer_read(self, asker: MemberName, context: int, index: int) -> None:
        """`index` 0 refuses."""
        if asker == self.name:
            self.read_results.append(ReadResult(context, index))
        else:
            self.messages.append(ReadIndexResponse(self.name, asker, self.term, context, index))
            if index:  # the asker cannot answer before it has applied so much
                self.tell_commit()

    def tell_commit(self) -> None:
        """Leader: have the commit index sent to all who were not told of it."""
        self.commit_is_awaited = self.replication_is_due = True

    def _follow_up_progress(self) -> None:
        """Leader: one progress for each other member, old ones kept. Who is new is probed from the end of the log."""
        config, next_index = self.config, self.log.last_index + 1
        self.progress = {
            name: self.progress.get(name)
            or Progress(next_index, config.inflight_messages_max, config.inflight_bytes_max)
            for name in self.membership.others(self.name)
        }
        self.voter_progress = tuple(self.progress[name] for name in self.membership.voters if name != self.name)
        self.snapshots_wanted = [name for name in self.snapshots_wanted if name in self.progress]

    def _enter_term(self, term: int, vote: MemberName) -> None:
        self.term = term
        self.vote = vote

    def _leave_leadership(self) -> None:
        self.progress = {}
        self.voter_progress = ()
        self.snapshots_wanted.clear()
        self.transferee = NO_MEMBER
        self.replication_is_due = self.commit_is_awaited = False
        for asker, context in self.reads.drop_all():
            self.answer_read(asker, context, 0)
