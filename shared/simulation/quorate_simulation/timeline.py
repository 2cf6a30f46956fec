"""What happened in a run, for people: a table of virtual time, member, kind and a sentence; and its digest.

Everything that the run decides by is in the digest, so two runs with the same digest were the same run.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from quorate_raft.core.messages import (
    AppendRequest,
    AppendResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    VoteRequest,
    VoteResponse,
)

HAPPENINGS_MAX = 2_000_000
"""After these a run is told from its end only."""
ENTRIES_NAMED_MAX = 3


class Happening(NamedTuple):
    at_s: float
    who: str
    kind: str
    what: str | Message


class Timeline:
    """`clock` gives the true time in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._happenings: list[Happening] = []
        self._hash = hashlib.blake2b(digest_size=8)

    def __len__(self) -> int:
        return len(self._happenings)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def add(self, who: str, kind: str, what: str | Message) -> None:
        at_s = self._clock()
        if len(self._happenings) >= HAPPENINGS_MAX:
            del self._happenings[: HAPPENINGS_MAX // 2]
        self._happenings.append(Happening(at_s, who, kind, what))
        # NB: a message's own text would do for the digest too, and costs more than the run itself.
        named = what if isinstance(what, str) else f"{type(what).__name__}{what.sender}{what.to}{what.term}"
        self._hash.update(f"{at_s:.9f}{who}{kind}{named}\n".encode())

    def last(self, count: int, *, with_messages: bool = True) -> list[Happening]:
        chosen = self._happenings if with_messages else [one for one in self._happenings if one.kind != "message"]
        return chosen[-count:] if count else chosen


def format_table(happenings: Iterable[Happening]) -> str:
    return "\n".join(f"{one.at_s:12.6f}  {one.who:<8} {one.kind:<8} {_sentence(one.what)}" for one in happenings)


def _sentence(what: str | Message) -> str:
    return what if isinstance(what, str) else describe(what)


def describe(message: Message) -> str:
    """One line that says who says what to whom."""
    return f"{message.sender} → {message.to}, term {message.term}: {_say(message)}"


def _say(message: Message) -> str:
    match message:
        case VoteRequest():
            kind = "would you vote for me" if message.pre else "vote for me"
            why = ", the leader asked for it" if message.transfer else ""
            return f"{kind}? my log ends at {message.last_index} of term {message.last_term}{why}"
        case VoteResponse():
            kind = "I would" if message.pre else "my vote is yours"
            return kind if message.granted else f"not {'in a pre-vote' if message.pre else 'my vote'}"
        case AppendRequest():
            after = f"after {message.previous_index} of term {message.previous_term}"
            return f"{after}: {_entries(message)}; committed up to {message.commit}"
        case AppendResponse():
            if message.needs_snapshot:
                return "I know nothing yet; send me a snapshot"
            if message.rejected:
                return f"I do not hold {message.match_index}; try {message.hint_index} of term {message.hint_term}"
            return f"I hold everything up to {message.match_index}"
        case HeartbeatRequest():
            asks = f"; read round {message.read_context}" if message.read_context else ""
            return f"I lead; committed up to {message.commit}{asks}"
        case HeartbeatResponse():
            return f"you lead{f'; read round {message.read_context}' if message.read_context else ''}"
        case ReadIndexRequest():
            return f"read {message.context}: which index?"
        case ReadIndexResponse():
            return f"read {message.context}: {message.index or 'refused'}"
        case _:
            return type(message).__name__


def _entries(message: AppendRequest) -> str:
    entries = message.entries
    if not entries:
        return "nothing"
    named = ", ".join(f"{entry.index}/{entry.term}" for entry in entries[:ENTRIES_NAMED_MAX])
    more = f" and {len(entries) - ENTRIES_NAMED_MAX} more" if len(entries) > ENTRIES_NAMED_MAX else ""
    return f"{named}{more}"
