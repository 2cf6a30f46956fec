"""What must hold after every step, whatever happens: figure 3 of the Raft paper, and what it stands on.

Theory of operation. Nothing is checked twice. For each process the shape of its log is remembered, and only what has
changed since is looked at. Log matching is kept by a register of all entries ever seen: an index and a term name one
entry, with one predecessor; by induction logs that share an entry share all before it. With that, leader completeness
and state machine safety are questions about single entries.

- *Election safety*: at most one leader in a term.
- *Leader append-only*: a leader never overwrites or deletes entries of its log.
- *Log matching*: as above.
- *Leader completeness*: an entry that was committed is in the logs of all leaders of higher terms.
- *State machine safety*: what is committed or applied at an index is the same on all members; so is what it leads to.
- A leader commits by counting copies of its own term's entries only (section 5.4.2), and changes the membership only
  after it has committed such an entry (raft-dev, 2015).
- A vote is given once in a term, in all lives of a member together.
- Terms and commit indexes never fall within a life; what was promised (a vote, a term, an entry held) was durable
  before the promise left, and what is committed is durable on a majority, read from their disks; nothing is applied
  that is not durable on the member itself; a leader has at most one change of the membership under way.
- *CheckQuorum*: a leader that hears from no majority does not go on leading.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from quorate_core.errors import NotFound
from quorate_raft.core.log import RaftLog
from quorate_raft.core.messages import AppendResponse, Entry, EntryKind, MemberName, Message, VoteRequest, VoteResponse
from quorate_raft.core.node import RaftNode
from quorate_raft.core.ready import Role
from quorate_store.model import Event
from quorate_store.state import Applied, StateMachine

from quorate_simulation.durable import DurableLog
from quorate_simulation.members import Member

_ALL_BYTES = 1 << 40
UNHEARD_S_MAX = 2.0
"""How long a leader may lead on though nothing comes from a majority: twice what CheckQuorum needs, two election
timeouts at the most."""


class InvariantBroken(Exception):
    """`name` of the invariant, and a diagnosis in a sentence."""

    def __init__(self, name: str, diagnosis: str) -> None:
        super().__init__(f"{name}: {diagnosis}")
        self.name = name
        self.diagnosis = diagnosis


@dataclass(slots=True, eq=False)
class _Life:
    """What is remembered of one process's core."""

    node: RaftNode
    shape: tuple[object, ...] = ()
    terms: dict[int, int] = field(default_factory=dict)
    """Of the log's entries, by index."""
    first_index: int = 1
    last_index: int = 0
    role: Role = Role.FOLLOWER
    term: int = 0
    commit_index: int = 0
    applied_index: int = 0
    leads_since_s: float = 0.0


class Invariants:
    """Of one run. `check` raises InvariantBroken; so do the `on_…` calls."""

    def __init__(self, members: Mapping[MemberName, Member]) -> None:
        self._members = members
        self._lives: dict[MemberName, _Life] = {}
        self._leaders: dict[int, MemberName] = {}
        self._entries: dict[tuple[int, int], tuple[int, Entry]] = {}
        """By index and term: the term of the entry before it, and the entry."""
        self._committed: dict[int, int] = {}
        """The term of the entry that is committed at an index."""
        self._committed_index = 0
        self._committed_in: dict[int, int] = {}
        """The last entry that was committed in a term, or at least was known to be before a higher term saw it."""
        self._states: dict[int, tuple[int, ...]] = {}
        """What the state counts after the entry at an index."""
        self.revisions: dict[int, list[Event]] = {}
        """What every revision changed."""
        self.compact_revision = 0
        """The highest of any member."""
        self.elections = 0
        self._heard_s: dict[tuple[MemberName, MemberName], float] = {}
        """When something of the second last came to the first."""

    @property
    def committed_index(self) -> int:
        return self._committed_index

    def check(self, now_s: float) -> None:
        for name, member in self._members.items():
            process, node = member.process, member.node
            if node is None or process is None or not process.has_run:
                continue
            process.has_run = False
            life = self._lives.get(name)
            if life is None or life.node is not node:
                life = self._lives[name] = _Life(node)
            log, standing = node.log, node.standing
            shape = (
                log.previous_index, log.last_index, log.last_term, log.commit_index, log.applied_index,
                standing.term, standing.role,
            )  # fmt: skip
            if shape != life.shape:
                if standing.role is Role.LEADER and standing.term != life.term:
                    life.leads_since_s = now_s
                self._check(name, member, life, log)
                life.shape = shape

    def on_sent(self, name: MemberName, message: Message) -> None:
        """`name` is about to send `message`: what that promises must be durable."""
        durable = self._members[name].durable
        if isinstance(message, AppendResponse):
            if not message.rejected and not message.needs_snapshot:
                self._require_held(name, durable, message)
        elif isinstance(message, VoteResponse):
            if message.granted and not message.pre:
                self._require_voted(name, durable, message.term, message.to)
        elif isinstance(message, VoteRequest) and not message.pre:
            self._require_voted(name, durable, message.term, name)

    def on_delivered(self, message: Message, now_s: float) -> None:
        self._heard_s[message.to, message.sender] = now_s

    def check_quorum(self, now_s: float) -> None:
        """To be called every now and then, since it is about what does not come."""
        for name, life in self._lives.items():
            member, node = self._members[name], life.node
            if member.node is not node or not node.is_leader or member.process is None or member.process.is_paused:
                continue
            since_s = max(life.leads_since_s, member.running_since_s)
            heard = [
                voter == name or max(self._heard_s.get((name, voter), 0.0), since_s) > now_s - UNHEARD_S_MAX
                for voter in node.membership.voters
            ]
            if 2 * sum(heard) <= len(heard):
                voters = ", ".join(node.membership.voters)
                raise InvariantBroken(
                    "CheckQuorum",
                    f"{name} leads term {life.term}, and no majority of {voters} was heard for {UNHEARD_S_MAX:g} s",
                )

    def on_applied(self, name: MemberName, machine: StateMachine, applied: Applied) -> None:
        for revision, events in applied.changes:
            known = self.revisions.setdefault(revision, list(events))
            if known != list(events):
                raise InvariantBroken(
                    "state machine safety", f"revision {revision} changes {events} on {name}, and {known} elsewhere"
                )
        self.on_state(name, machine)

    def on_state(self, name: MemberName, machine: StateMachine) -> None:
        counts = (machine.applied_term, machine.revision, machine.compact_revision, machine.logical_bytes)
        self.compact_revision = max(self.compact_revision, machine.compact_revision)
        known = self._states.setdefault(machine.applied_index, counts)
        if known != counts:
            raise InvariantBroken(
                "state machine safety",
                f"after entry {machine.applied_index} {name} is at (term, revision, compacted, bytes) {counts}, "
                f"and others were at {known}",
            )

    def _check(self, name: MemberName, member: Member, life: _Life, log: RaftLog) -> None:
        node = life.node
        standing = node.standing
        votes = member.durable.votes.get(standing.term, ())
        if len(votes) > 1:
            told = " and for ".join(sorted(votes))
            raise InvariantBroken("one vote in a term", f"{name} voted in term {standing.term} for {told}")
        if standing.term < life.term:
            raise InvariantBroken("terms never fall", f"{name} went from term {life.term} to {standing.term}")
        is_same_reign = standing.role is Role.LEADER and (standing.role, standing.term) == (life.role, life.term)
        cut_index = self._take_in_log(name, life, log)
        if is_same_reign and cut_index <= life.last_index:
            raise InvariantBroken(
                "leader append-only", f"{name} leads term {standing.term} and cut its log at entry {cut_index}"
            )
        if standing.role is Role.LEADER and not is_same_reign:
            self._elected(name, standing.term, log)
        if standing.role is Role.LEADER:
            self._require_one_change(name, log)
        if is_same_reign and log.commit_index > life.commit_index:
            self._require_own_term(name, standing.term, log)
        if log.commit_index != life.commit_index:
            self._take_in_commit(name, node, life, log)
        if log.applied_index != life.applied_index:
            self._take_in_applied(name, member, life, log)
        life.role, life.term, life.last_index = standing.role, standing.term, log.last_index

    def _take_in_log(self, name: MemberName, life: _Life, log: RaftLog) -> int:
        """Look at what is new in the log. Returns the index from which it is."""
        terms = life.terms
        index = min(life.last_index, log.last_index)
        while index > log.previous_index and terms.get(index) != log.term_at(index):
            index -= 1
        new_index = max(index, log.previous_index) + 1
        for gone in range(new_index, life.last_index + 1):
            terms.pop(gone, None)
        for gone in range(life.first_index, log.first_index):
            terms.pop(gone, None)
        life.first_index = log.first_index
        if new_index <= log.last_index:
            previous_term = log.term_at(new_index - 1) or 0
            for entry in log.slice(new_index, _ALL_BYTES):
                self._register(name, entry, previous_term)
                terms[entry.index] = previous_term = entry.term
        return new_index

    def _register(self, name: MemberName, entry: Entry, previous_term: int) -> None:
        known = self._entries.setdefault((entry.index, entry.term), (previous_term, entry))
        if known[0] != previous_term:
            raise InvariantBroken(
                "log matching",
                f"entry {entry.index} of term {entry.term} follows one of term {previous_term} on {name}, and one of "
                f"term {known[0]} elsewhere",
            )
        if known[1] is not entry and known[1] != entry:
            raise InvariantBroken(
                "log matching",
                f"entry {entry.index} of term {entry.term} is {entry} on {name}, and {known[1]} elsewhere",
            )

    def _elected(self, name: MemberName, term: int, log: RaftLog) -> None:
        self.elections += 1
        leader = self._leaders.setdefault(term, name)
        if leader != name:
            raise InvariantBroken("election safety", f"{leader} and {name} both lead term {term}")
        self._require_complete(name, term, log)

    def _require_complete(self, name: MemberName, term: int, log: RaftLog) -> None:
        # NB: a leader of an old term that nobody has told may lack what later ones have committed.
        index = max((index for committed_in, index in self._committed_in.items() if committed_in < term), default=0)
        if index < log.first_index:
            return
        committed_term = self._committed[index]
        if log.term_at(index) != committed_term:
            raise InvariantBroken(
                "leader completeness",
                f"{name} leads term {term} without entry {index} of term {committed_term}, which is committed; it has "
                f"one of term {log.term_at(index)} there, and its log ends at {log.last_index}",
            )

    def _require_own_term(self, name: MemberName, term: int, log: RaftLog) -> None:
        committed_term = log.term_at(log.commit_index)
        if committed_term != term:
            raise InvariantBroken(
                "only entries of the own term are counted",
                f"{name} leads term {term}, and has committed entry {log.commit_index} of term {committed_term} itself",
            )

    def _require_one_change(self, name: MemberName, log: RaftLog) -> None:
        under_way = log.configurations.unsettled_index
        if not under_way:
            return
        term = log.last_term
        if log.term_at(under_way) == term != log.term_at(log.commit_index):
            raise InvariantBroken(
                "no change before an entry of the own term is committed",
                f"{name} leads term {term}, and changes the membership by entry {under_way}, with nothing of its term "
                f"committed before",
            )
        entries = log.slice(under_way, _ALL_BYTES)
        changes = [entry.index for entry in entries if entry.kind is EntryKind.MEMBERSHIP]
        if len(changes) > 1 and log.term_at(changes[0]) == log.last_term:
            raise InvariantBroken(
                "one change at a time", f"{name} leads with the changes of the membership {changes} not committed"
            )

    def _take_in_commit(self, name: MemberName, node: RaftNode, life: _Life, log: RaftLog) -> None:
        if log.commit_index < life.commit_index:
            raise InvariantBroken(
                "the commit index never falls", f"{name}'s went from {life.commit_index} to {log.commit_index}"
            )
        for index in range(max(life.commit_index + 1, log.previous_index, 1), log.commit_index + 1):
            term = log.term_at(index)
            if term is None:
                continue
            known = self._committed.setdefault(index, term)
            if known != term:
                raise InvariantBroken(
                    "state machine safety",
                    f"{name} takes entry {index} of term {term} for committed, and that of term {known} is",
                )
        life.commit_index = log.commit_index
        if log.commit_index > self._committed_index:
            self._committed_index = self._committed_in[node.standing.term] = log.commit_index
            if node.is_leader:
                self._require_durable_majority(name, node, log.commit_index)
            self._require_leaders_have(node.standing.term)

    def _require_durable_majority(self, name: MemberName, node: RaftNode, index: int) -> None:
        term, voters = self._committed[index], node.membership.voters
        holders = [voter for voter in voters if voter in self._members and self._holds(voter, index, term)]
        if 2 * len(holders) <= len(voters):
            raise InvariantBroken(
                "committed means durable on a majority",
                f"{name} has committed entry {index} of term {term}, which only {', '.join(holders) or 'nobody'} of "
                f"{', '.join(voters)} surely has on disk",
            )

    def _require_leaders_have(self, term: int) -> None:
        for name, life in self._lives.items():
            standing = life.node.standing
            if standing.role is Role.LEADER and standing.term > term and self._members[name].node is life.node:
                self._require_complete(name, standing.term, life.node.log)

    def _take_in_applied(self, name: MemberName, member: Member, life: _Life, log: RaftLog) -> None:
        life.applied_index = index = log.applied_index
        term = self._committed.get(index)
        if not member.durable.holds(index, term):
            raise InvariantBroken(
                "applied means durable",
                f"{name} has applied entry {index}, and its own log on disk ends at {member.durable.last_index}",
            )

    def _holds(self, name: MemberName, index: int, term: int) -> bool:
        return self._members[name].durable.holds(index, term)

    def _require_held(self, name: MemberName, durable: DurableLog, message: AppendResponse) -> None:
        life, index = self._lives.get(name), message.match_index
        term = None if life is None else life.node.log.term_at(index)
        if index and not durable.holds(index, term):
            raise InvariantBroken(
                "promised means durable",
                f"{name} tells {message.to} that it holds entry {index}, and its log on disk ends at "
                f"{durable.last_index}",
            )

    def _require_voted(self, name: MemberName, durable: DurableLog, term: int, candidate: MemberName) -> None:
        kept = durable.hard_state
        if kept.term < term or (kept.term == term and kept.vote != candidate):
            raise InvariantBroken(
                "promised means durable",
                f"{name} votes for {candidate} in term {term}, and its disk says term {kept.term}, vote {kept.vote!r}",
            )


def require_same_state(members: Iterable[Member]) -> None:
    """At the end, when all have applied the same: the whole states are equal."""
    hashes = {member.name: member.parts.machine.state_hash() for member in members}
    if len(set(hashes.values())) > 1:
        told = ", ".join(f"{name} {value[:12]}" for name, value in hashes.items())
        raise InvariantBroken("state machine safety", f"members that have applied the same differ: {told}")


def membership_of(node: RaftNode) -> tuple[MemberName, ...]:
    """The committed configuration's members, as `node` knows it."""
    try:
        return node.membership_at(node.log.commit_index).names
    except NotFound:
        return node.membership.names
