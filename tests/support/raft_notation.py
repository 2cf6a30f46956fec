"""How transcripts write what members say and know; `tests/raft/testdata/README.md` explains it to their readers."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from quorate_raft.core.membership import Membership, decode_membership
from quorate_raft.core.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    HeartbeatRequest,
    HeartbeatResponse,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from quorate_raft.core.ready import Role, Standing

ENTRIES_SHOWN_MAX = 12
"""Longer runs are shown by their ends, term by term."""


def describe_standing(standing: Standing) -> str:
    term = f"term {standing.term}"
    if standing.role is Role.LEADER:
        return f"leads {term}"
    if standing.role is Role.FOLLOWER:
        return f"follows {standing.leader or 'nobody'} in {term}"
    return f"is {standing.role} in {term}"


def describe_entry(entry: Entry) -> str:
    """`index@term`, with what it holds."""
    place = f"{entry.index}@{entry.term}"
    if entry.kind is EntryKind.MEMBERSHIP:
        return f"{place} {describe_membership(decode_membership(entry.data))}"
    if entry.kind is EntryKind.NORMAL and entry.data:
        return f"{place}={entry.data.decode()}"
    return place


def describe_membership(membership: Membership) -> str:
    learners = "".join(f", learner {name}" for name in membership.learners)
    return f"{{{' '.join(membership.voters)}{learners}}}"


def describe_entries(entries: Sequence[Entry]) -> str:
    if len(entries) <= ENTRIES_SHOWN_MAX:
        return " ".join(map(describe_entry, entries))
    runs = [list(run) for _, run in groupby(entries, key=lambda entry: entry.term)]
    return " ".join(f"{run[0].index}..{run[-1].index}@{run[0].term}" for run in runs)


def describe_message(message: Message) -> str:
    """`a -> b Kind …`: the kind is the fourth word."""
    return f"{message.sender} -> {message.to} {_SAID[type(message)](message)}"


def _vote_request(request: VoteRequest) -> str:
    kind = "PreVote" if request.pre else "Vote"
    transfer = ", asked by the leader" if request.transfer else ""
    return f"{kind} term {request.term}, log ends {request.last_index}@{request.last_term}{transfer}"


def _vote_response(response: VoteResponse) -> str:
    kind = "PreVote" if response.pre else "Vote"
    return f"{kind} {'granted' if response.granted else 'refused'}, term {response.term}"


def _append_request(request: AppendRequest) -> str:
    entries = describe_entries(request.entries) or "nothing"
    previous = f"{request.previous_index}@{request.previous_term}"
    return f"Append term {request.term}, after {previous}: {entries}; commit {request.commit}"


def _append_response(response: AppendResponse) -> str:
    if not response.rejected:
        return f"Append accepted, term {response.term}, match {response.match_index}"
    if response.needs_snapshot:
        return f"Append rejected, term {response.term}: needs a snapshot"
    hint = f"{response.hint_index}@{response.hint_term}"
    return f"Append rejected, term {response.term}, after {response.match_index}; try after {hint}"


def _heartbeat_request(request: HeartbeatRequest) -> str:
    return f"Heartbeat term {request.term}, commit {request.commit}{_round(request.read_context)}"


def _heartbeat_response(response: HeartbeatResponse) -> str:
    return f"Heartbeat answered, term {response.term}{_round(response.read_context)}"


def _round(read_round: int) -> str:
    return f", read round {read_round}" if read_round else ""


def _read_index_response(response: ReadIndexResponse) -> str:
    return f"ReadIndex {f'answered, index {response.index}' if response.index else 'refused'}, term {response.term}"


_SAID: dict[type, Callable[[Any], str]] = {
    VoteRequest: _vote_request,
    VoteResponse: _vote_response,
    AppendRequest: _append_request,
    AppendResponse: _append_response,
    HeartbeatRequest: _heartbeat_request,
    HeartbeatResponse: _heartbeat_response,
    ReadIndexRequest: lambda request: f"ReadIndex asked, term {request.term}",
    ReadIndexResponse: _read_index_response,
    TimeoutNow: lambda message: f"TimeoutNow term {message.term}",
}

KINDS = frozenset({"PreVote", "Vote", "Append", "Heartbeat", "ReadIndex", "TimeoutNow"})
