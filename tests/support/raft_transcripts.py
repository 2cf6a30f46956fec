"""Transcripts of the consensus core: text files of commands and what came of them, which read as prose.

A file is a sequence of blocks. Lines that begin with `#` tell the story; then come commands, one a line; then a line
`----`; then everything that the commands led to, up to an empty line. `replay` runs the commands of a file on a
`Cluster` of pure members, whose invariants are checked meanwhile, and returns the file with the output that it has now.
`tests/raft/testdata/README.md` explains the notation to readers of the files; the commands are the `do_…` methods of
`Scene`.

Nothing depends on time or chance: messages move when a command says so, in the order in which they were sent, and
election timeouts are what the file says they are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from quorate_core.errors import QuorateError
from quorate_raft.core.membership import AddLearner, Membership, MembershipChange, PromoteLearner, RemoveMember
from quorate_raft.core.messages import (
    NO_MEMBER,
    Entry,
    EntryKind,
    HardState,
    InstallSnapshot,
    Message,
    VoteRequest,
    VoteResponse,
)
from quorate_raft.core.ready import Role
from support.raft_cluster import ELECTION_TICKS, Cluster, Member
from support.raft_notation import (
    KINDS,
    describe_entries,
    describe_membership,
    describe_message,
    describe_standing,
)

SEPARATOR = "----"
TIMEOUT_STEP_TICKS = 3
"""Unless a file says otherwise, the first member's election timeout is T ticks, and every other's so much longer than
that of the one before."""
DELIVERIES_MAX = 1_000
"""Messages that one command may deliver; more is a conversation that does not end."""
ADVERBS = frozenset({"quietly", "silently"})
"""`quietly` leaves out messages and what they do to logs, `silently` everything; for what a story begins with."""
CAMPAIGN_TICKS_MAX = 10 * ELECTION_TICKS

CHANGES: dict[str, Callable[[str], MembershipChange]] = {"promote": PromoteLearner, "remove": RemoveMember}


@dataclass
class Block:
    """Commands of a transcript with the lines before them, and the output that the file says they have."""

    lead: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)


def parse(text: str) -> Iterator[Block]:
    """The blocks of a file. Comments after the last output are a block without commands."""
    block, in_output = Block(), False
    for line in text.splitlines():
        if in_output:
            if line:
                block.expected.append(line)
                continue
            yield block
            block, in_output = Block(), False
        elif line == SEPARATOR:
            in_output = True
        elif not line or line.startswith("#"):
            block.lead.append(line)
        else:
            block.commands.append(line)
    if block.lead or block.commands:
        yield block


def replay(text: str) -> str:
    """Run the commands of a transcript; returns it with the output that they have now."""
    scene, lines = Scene(), []
    for number, block in enumerate(parse(text)):
        lead = block.lead
        while lead and not lead[0]:
            lead = lead[1:]
        lines += [""] * (number > 0) + lead
        if block.commands:
            lines += [*block.commands, SEPARATOR, *scene.run(block.commands)]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class View:
    """What of one member is told when it changes. `previous_index` is where its log begins."""

    standing: str
    membership: Membership
    is_removed: bool
    previous_index: int
    entries: tuple[Entry, ...]
    commit_index: int
    applied_index: int
    reads: frozenset[tuple[int, int]]
    writing: str

    @classmethod
    def of(cls, member: Member) -> "View":
        node = member.node
        if node is None:
            return cls("is down", Membership(), False, 0, (), 0, len(member.applied), frozenset(), "")
        return cls(
            standing=describe_standing(node.standing),
            membership=node.membership,
            is_removed=node.is_removed,
            previous_index=node.log.previous_index,
            entries=tuple(member.log_entries()),
            commit_index=node.log.commit_index,
            applied_index=len(member.applied),
            reads=frozenset(member.reads.items()),
            writing=_describe_writing(member),
        )


class Scene:
    """One cluster, and the commands that a transcript may give it."""

    def __init__(self) -> None:
        self._cluster: Cluster | None = None
        self._lines: list[str] = []
        self._is_quiet = False
        self._timeouts: dict[str, int] = {}
        self._held: set[tuple[str, str]] = set()
        self._reads: dict[tuple[str, int], str] = {}

    def run(self, commands: Iterable[str]) -> list[str]:
        """Carry out commands; returns what came of them. Errors of the core are part of that."""
        self._lines = []
        for command in commands:
            adverb, *words = command.split()
            self._is_quiet, told = adverb == "quietly", len(self._lines)
            name, *arguments = words if adverb in ADVERBS else (adverb, *words)
            carry_out: Callable[..., None] = getattr(self, "do_" + name.replace("-", "_"))
            try:
                carry_out(*arguments)
            except QuorateError as error:
                self._lines.append(f"{type(error).__name__}: {error}")
            if adverb == "silently":
                del self._lines[told:]
        return self._lines

    @property
    def cluster(self) -> Cluster:
        assert self._cluster is not None, "a transcript begins with `cluster`"
        return self._cluster

    # How a story begins

    def do_cluster(self, names: str, *options: str) -> None:
        """`cluster abc [window=3] …`: new members of one letter each, and limits of the core."""
        limits = {key: int(value) for key, value in (option.split("=") for option in options)}
        self._cluster = Cluster(names, **limits)
        for number, name in enumerate(self.cluster.members):
            self._timeouts[name] = min(ELECTION_TICKS + TIMEOUT_STEP_TICKS * number, 2 * ELECTION_TICKS)
            self._script_timeouts(name)
            self.cluster.members[name].restart()

    def do_log(self, names: str, *terms: str) -> None:
        """`log c 1 1 2 term 3`: the members begin with entries of these terms, as the paper's figures draw them, and in
        term 3."""
        if "term" in terms:
            *terms, _, term = terms
        else:
            term = terms[-1]
        for name in names:
            member = self.cluster.members[name]
            member.entries = [Entry(index, int(term)) for index, term in enumerate(terms, start=1)]
            member.hard_state = HardState(int(term))
            member.restart()

    def do_timeout(self, name: str, ticks: str) -> None:
        """`timeout b 10`: the election timeout of the member from now on."""
        self._timeouts[name] = int(ticks)
        self.cluster[name]._state.election_timeout_ticks = int(ticks)

    # Time and messages

    def do_tick(self, names: str, times: str = "1") -> None:
        """`tick ab 3`: so much time passes for these members, and nothing is delivered."""
        for _ in range(int(times)):
            for name in names:
                self._step(name, lambda name=name: self.cluster.tick(name))  # type: ignore[misc]

    def do_campaign(self, name: str) -> None:
        """`campaign b`: time passes for this member until it asks for votes."""
        for _ in range(CAMPAIGN_TICKS_MAX):
            self.do_tick(name)
            if self.cluster[name].standing.role in (Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER):
                return
        raise AssertionError(f"{name} does not campaign: {self.cluster.describe()}")

    def do_settle(self) -> None:
        """Deliver everything, and what that leads to, until nothing moves; links that are held keep what they have."""
        for _ in range(DELIVERIES_MAX):
            moving = next((m for m in self.cluster.wire if (m.sender, m.to) not in self._held), None)
            wanted = next((pair for pair in self.cluster.wanted if pair not in self._held), None)
            if moving is not None:
                self._deliver(moving)
            elif wanted is not None:
                self._stream(*wanted)
            else:
                self.cluster.check()
                return
        raise AssertionError("the conversation does not end")

    def do_pass(self, times: str) -> None:
        """`pass 20`: so many ticks for everybody who is up, each followed by `settle`."""
        for _ in range(int(times)):
            self.do_tick("".join(member.name for member in self._up()))
            self.do_settle()

    def do_elect(self, name: str) -> None:
        """`campaign` and `settle`."""
        self.do_campaign(name)
        self.do_settle()

    def do_win(self, name: str) -> None:
        """`win a`: let time pass for this member, and deliver nothing but votes, until it leads."""
        for _ in range(CAMPAIGN_TICKS_MAX):
            while votes := [m for m in self.cluster.wire if isinstance(m, VoteRequest | VoteResponse)]:
                self._deliver(votes[0])
            if self.cluster[name].is_leader:
                return
            self.do_tick(name)
        raise AssertionError(f"{name} does not win: {self.cluster.describe()}")

    def do_deliver(self, *which: str) -> None:
        """`deliver [count] [kind] a -> b`: those messages, and not what they lead to. Either name may be left out."""
        for message in self._select(which):
            self._deliver(message)

    def do_lose(self, *which: str) -> None:
        """As `deliver`, but they are lost."""
        for message in self._select(which):
            self._take(message)
            self._tell(f"  lost: {describe_message(message)}")

    def do_repeat(self, *which: str) -> None:
        """As `deliver`, but a copy stays on its way."""
        for message in self._select(which):
            self.cluster.wire.append(message)
            self._deliver(message)

    def do_hold(self, sender: str, _arrow: str, to: str) -> None:
        """`hold a -> b`: the link is slow; `settle` leaves alone what is on it until `release`."""
        self._held |= {(one, other) for one in sender for other in to}

    def do_release(self) -> None:
        self._held.clear()

    def do_wire(self) -> None:
        """What is on its way."""
        self._lines += ["  " + describe_message(message) for message in self.cluster.wire] or ["nothing"]

    # Faults

    def do_cut(self, sender: str, arrow: str, to: str) -> None:
        """`cut a -> bc`, or both ways with `<->`: what is sent there is lost."""
        pairs = {(one, other) for one in sender for other in to}
        if arrow == "<->":
            pairs |= {(other, one) for one, other in pairs}
        self.cluster.cut |= pairs

    def do_partition(self, *sides: str) -> None:
        self.cluster.partition(*sides)

    def do_heal(self) -> None:
        self.cluster.heal()

    def do_crash(self, names: str) -> None:
        """The members lose all that is not durable. What is on its way to them is lost if it comes before `restart`."""
        for name in names:
            self.cluster.crash(name)
            self._lines.append(f"{name} is down")

    def do_restart(self, name: str, applied: str = "") -> None:
        """`restart a [2]`: with what was durable, and a state machine that kept so many entries (all of them)."""
        self.cluster.restart(name, int(applied) if applied else None)
        self._lines.append(self._show(name))
        self._step(name, lambda: self.cluster.process(name))

    def do_hold_disk(self, name: str) -> None:
        """`hold-disk a`: from now on what it writes is durable only when `sync` says so."""
        self.cluster.members[name].holds_disk = True

    def do_sync(self, name: str) -> None:
        self._step(name, lambda: self.cluster.sync(name))

    # What is asked of members

    def do_propose(self, name: str, *words: str) -> None:
        """`propose a one two`: entries that leave together."""

        def propose() -> None:
            for word in words:
                self.cluster.propose(name, word.encode())
            self.cluster.process(name)

        self._step(name, propose)

    def do_read(self, name: str, *labels: str) -> None:
        """`read b r1 r2`: ask for read indexes, which are told under these labels."""

        def read() -> None:
            for label in labels:
                self._reads[name, self.cluster.read(name)] = label
            self.cluster.process(name)

        self._step(name, read)

    def do_transfer(self, name: str, _arrow: str, to: str) -> None:
        """`transfer a -> b`."""

        def transfer() -> None:
            if not self.cluster[name].transfer(to):
                self._lines.append(f"{name} does not hand over to {to}")
            self.cluster.process(name)

        self._step(name, transfer)

    def do_change(self, name: str, verb: str, other: str) -> None:
        """`change a add d`, `promote d`, `remove d`: a change of the membership, asked of a."""
        change = AddLearner(other, "") if verb == "add" else CHANGES[verb](other)

        def begin() -> None:
            self.cluster.change(name, change)
            self.cluster.process(name)

        self._step(name, begin)

    def do_join(self, name: str) -> None:
        """`join d`: a new member starts, which knows of no cluster."""
        self.cluster.add(name)
        self._timeouts[name] = ELECTION_TICKS
        self._script_timeouts(name)
        self.cluster.members[name].restart()

    def do_snapshot(self, name: str, trailing_entries: str = "0") -> None:
        """`snapshot a [3]`: it makes its state durable, and forgets what led to it, but for so many entries."""

        def save() -> None:
            meta = self.cluster.take_snapshot(name, int(trailing_entries))
            self._tell(f"{name} has a snapshot of {meta.index}@{meta.term} {describe_membership(meta.membership)}")
            self.cluster.process(name)

        self._step(name, save)

    def do_stream(self, sender: str, _arrow: str, to: str) -> None:
        """`stream a -> d`: bring the snapshot that a wants to send to d, if the link is whole and d is up."""
        self._stream(sender, to)

    def do_deliver_snapshot(self, sender: str, _arrow: str, to: str, index: str) -> None:
        """`deliver-snapshot a -> c 7`: a snapshot that a has taken at that index comes to c late, or again."""
        snapshot = self.cluster.members[sender].snapshots[int(index)]
        self.cluster.members[to].snapshots[int(index)] = snapshot
        message = InstallSnapshot(sender, to, self.cluster[sender].standing.term, snapshot.meta)
        self._step(to, lambda: self.cluster.deliver([message]))

    # What is looked at

    def do_show(self, *names: str) -> None:
        """`show [a b]`: where members stand, and their logs."""
        self._lines += [self._show(name) for name in (names or self.cluster.members)]

    def do_progress(self, name: str) -> None:
        """What a leader knows of the others."""
        for other, progress in self.cluster[name].progress().items():
            self._lines.append(f"{other}: {progress.state}, match {progress.match_index}, next {progress.next_index}")

    def _show(self, name: str) -> str:
        member = self.cluster.members[name]
        if member.node is None:
            return f"{name} is down"
        log, state = member.node.log, member.node._state
        vote = f", voted {state.vote}" if state.vote != NO_MEMBER else ""
        base = f"after {log.previous_index}@{log.previous_term} " if log.previous_index else ""
        entries = base + (describe_entries(member.log_entries()) or "empty")
        return f"{name} {describe_standing(member.node.standing)}{vote}; log {entries}; commit {log.commit_index}"

    def do_members(self, *names: str) -> None:
        """`members [a b]`: the configuration that is in force for each."""
        for name in names or self.cluster.members:
            if self.cluster.members[name].node is not None:
                self._lines.append(f"{name} is of {describe_membership(self.cluster[name].membership)}")

    def _script_timeouts(self, name: str) -> None:
        def below(bound: int) -> int:
            return min(self._timeouts[name] - ELECTION_TICKS, bound - 1)

        self.cluster.members[name]._random_below = below

    def _up(self) -> list[Member]:
        return [member for member in self.cluster.members.values() if member.node is not None]

    def _select(self, which: Iterable[str]) -> list[Message]:
        """The messages on the wire that `[count] [kind] [a] -> [b]` means."""
        words = list(which)
        count = int(words.pop(0)) if words and words[0].isdigit() else len(self.cluster.wire)
        kind = words.pop(0) if words and words[0] in KINDS else ""
        arrow = words.index("->") if "->" in words else len(words)
        senders, receivers = "".join(words[:arrow]), "".join(words[arrow + 1 :])
        found = [
            message
            for message in self.cluster.wire
            if (not kind or describe_message(message).split()[3] == kind)
            and (not senders or message.sender in senders)
            and (not receivers or message.to in receivers)
        ][:count]
        if not found:
            self._lines.append("nothing is on its way there")
        return found

    def _deliver(self, message: Message) -> None:
        self._take(message)
        if self._is_lost(message):
            self._tell(f"  lost: {describe_message(message)}")
            return
        self._step(message.to, lambda: self.cluster.deliver([message]))

    def _stream(self, sender: str, to: str) -> None:
        receiver = self.cluster.members[to]
        before = View.of(receiver)

        def stream() -> None:
            self.cluster.stream(sender, to)
            if receiver.node is None or (sender, to) in self.cluster.cut:
                self._tell(f"  {sender} -x {to} Snapshot")
            else:
                self._tell(f"  {sender} -> {to} Snapshot of {max(receiver.snapshots)}")
            self._tell_changes(to, before, View.of(receiver))

        self._step(sender, stream)

    def _take(self, message: Message) -> None:
        """Take the first copy of it off the wire."""
        wire = self.cluster.wire
        del wire[next(position for position, other in enumerate(wire) if other is message)]

    def _is_lost(self, message: Message) -> bool:
        return self.cluster.members[message.to].node is None or (message.sender, message.to) in self.cluster.cut

    def _step(self, name: str, action: Callable[[], object]) -> None:
        """Let one member do something, and tell what came of it. An error is told after what happened before it."""
        member = self.cluster.members[name]
        before, wire_length, wanted_length = View.of(member), len(self.cluster.wire), len(self.cluster.wanted)
        try:
            action()
        finally:
            self._tell_changes(name, before, View.of(member))
            self._tell_sent(wire_length, wanted_length)

    def _tell_changes(self, name: str, before: View, after: View) -> None:
        if after.standing != before.standing:
            self._lines.append(f"{name} {after.standing}")
        for context, index in sorted(after.reads - before.reads):
            answer = f"at {index}" if index else "refused"
            self._lines.append(f"{name} reads {self._reads[name, context]}: {answer}")
        self._tell_log(name, before, after)
        if after.writing != before.writing and after.writing:
            self._tell(f"{name} begins to write {after.writing}")
        self._tell_applied(name, before, after)
        if after.commit_index > max(before.commit_index, after.applied_index):
            self._tell(f"{name} knows that {after.commit_index} is committed, and has not made it durable")
        if after.is_removed and not before.is_removed:
            self._lines.append(f"{name} knows that it is removed")

    def _tell_log(self, name: str, before: View, after: View) -> None:
        if after.previous_index > before.previous_index:
            is_compacted = after.previous_index <= before.applied_index
            self._tell(f"{name} {'forgets' if is_compacted else 'begins its log after'} {after.previous_index}")
        known = [entry for entry in before.entries if entry.index > after.previous_index]
        kept = _count_common(known, after.entries)
        new = after.entries[kept:]
        if lost := known[kept:]:
            self._tell(f"{name} cuts {describe_entries(lost)}")
        if new:
            self._tell(f"{name} appends {describe_entries(new)}")
        if after.membership != before.membership and not any(entry.kind is EntryKind.MEMBERSHIP for entry in new):
            self._lines.append(f"{name} is of {describe_membership(after.membership)}")

    def _tell_applied(self, name: str, before: View, after: View) -> None:
        first = before.applied_index
        if after.previous_index > before.applied_index and after.applied_index >= after.previous_index:
            self._tell(f"{name} restores the state of {after.previous_index}")
            first = after.previous_index
        if applied := self.cluster.members[name].applied[first:]:
            self._tell(f"{name} applies {describe_entries(applied)}")

    def _tell_sent(self, wire_length: int, wanted_length: int) -> None:
        for sender, to in self.cluster.wanted[wanted_length:]:
            self._tell(f"{sender} wants to send {to} a snapshot")
        for message in self.cluster.wire[wire_length:]:
            if self._is_lost(message):
                self._take(message)
                self._tell("  " + describe_message(message).replace(" -> ", " -x ", 1))
            else:
                self._tell("  " + describe_message(message))

    def _tell(self, line: str) -> None:
        """Details, of which `quietly` spares the reader."""
        if not self._is_quiet:
            self._lines.append(line)


def _count_common(one: Sequence[Entry], other: Sequence[Entry]) -> int:
    for count, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return count
    return min(len(one), len(other))


def _describe_writing(member: Member) -> str:
    """What is on its way to the disk of a member."""
    ready = member.persisting
    if ready is None:
        return ""
    state, durable = ready.hard_state, member.hard_state
    parts = []
    if state is not None and (state.term, state.vote) != (durable.term, durable.vote):
        parts.append(f"term {state.term}" + (f" and its vote for {state.vote}" if state.vote else ""))
    if ready.snapshot is not None:
        parts.append(f"a snapshot of {ready.snapshot.index}@{ready.snapshot.term}")
    if ready.entries:
        parts.append(describe_entries(ready.entries))
    return ", ".join(parts) or "its commit index"
