"""What clients saw, judged when a run is over, against the log: what every revision has changed, on whatever member.

- *linearizable*: each key, and the group of keys that transactions read and change together;
- *once*: a write with a request id was applied once if anybody was told that it was, never if it was refused, and at
  most once otherwise; its marker came with it, at the same revision;
- *watch*: each watcher saw every event of its wish once, in order, from where it began, with what was there before; and
  only what was compacted was withheld from it, and it was told so;
- *leases*: none ended before its time, and all of its keys ended with it, at one revision.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from quorate_store.model import Event, EventKind, KeyValue
from quorate_store.request_guard import REQUESTS_PREFIX

from quorate_simulation.invariants import InvariantBroken
from quorate_simulation.lease_holders import HeldLease
from quorate_simulation.linearizability import Model, Operation, Result, check
from quorate_simulation.models import GroupCall, GroupModel, KeyAnswer, KeyCall, KeyModel, Verb
from quorate_simulation.watchers import Observer
from quorate_simulation.workload import GROUP_KEYS, KEY_PREFIX, LEASE_PREFIX, Attempt, Kind, Outcome

Revisions = Mapping[int, Sequence[Event]]

_VERBS = {Kind.PUT: Verb.PUT, Kind.GET: Verb.GET, Kind.DELETE: Verb.DELETE, Kind.CAS: Verb.COMPARE_AND_SET}


def with_previous(revisions: Revisions) -> list[Event]:
    """All events in order, each with what the events before it have left of its key. Raises InvariantBroken where a
    member itself said otherwise."""
    now: dict[bytes, KeyValue] = {}
    events: list[Event] = []
    for revision in sorted(revisions):
        for event in revisions[revision]:
            key = event.kv.key
            before = now.pop(key, None)
            if event.previous != before:
                raise InvariantBroken(
                    "watch", f"revision {revision} changes {key!r}, which was {before}, and is said to have been "
                    f"{event.previous}",
                )  # fmt: skip
            if event.kind is EventKind.PUT:
                now[key] = event.kv
            events.append(Event(event.kind, event.kv, before))
    return events


def judge_watches(observers: Sequence[Observer], events: Sequence[Event], compact_revision: int) -> None:
    """`compact_revision`: the highest of any member."""
    for one in observers:
        for gap in one.gaps:
            if gap.compact_revision > compact_revision:
                raise InvariantBroken(
                    "watch",
                    f"{one.name} was told that {gap.compact_revision} is the oldest revision, and no member has "
                    f"compacted further than to {compact_revision}",
                )
        _judge_seen(one, events)


def _judge_seen(one: Observer, events: Sequence[Event]) -> None:
    due = [
        event
        for event in events
        if one.wish.covers(event.kv.key)
        and event.kv.mod_revision >= one.begin_revision
        and not one.has_skipped(event.kv.mod_revision)
    ]
    for at, (found, wanted) in enumerate(zip(one.seen, due, strict=False)):
        if (found.kind, found.kv) != (wanted.kind, wanted.kv):
            raise InvariantBroken("watch", f"event {at} that {one.name} saw is {found.kv}, and {wanted.kv} was due")
        before = wanted.previous if one.wish.previous else None
        is_excused = found.previous is None and wanted.kv.mod_revision in one.without_previous
        if found.previous != before and not is_excused:
            raise InvariantBroken(
                "watch", f"{one.name} saw {found.kv}, and that {found.previous} was there before: it was {before}"
            )
    if len(one.seen) != len(due):
        raise InvariantBroken("watch", f"{one.name} saw {len(one.seen)} events, and {len(due)} were due")


def judge_once(attempts: Iterable[Attempt], revisions: Revisions) -> None:
    marked: dict[bytes, list[int]] = defaultdict(list)
    written: dict[bytes, list[int]] = defaultdict(list)
    for revision, events in revisions.items():
        for event in events:
            if event.kind is EventKind.PUT and event.kv.key.startswith(REQUESTS_PREFIX):
                marked[event.kv.key].append(revision)
            elif event.kind is EventKind.PUT and event.kv.key.startswith(KEY_PREFIX):
                written[event.kv.value].append(revision)
    for one in attempts:
        if one.request_id:
            _judge_request(one, marked[REQUESTS_PREFIX + one.request_id.encode()], written)


def _judge_request(one: Attempt, marked: list[int], written: Mapping[bytes, list[int]]) -> None:
    """`marked`: at which revisions it was remembered; `written`: at which each value was."""
    found = {tuple(written.get(value, ())) for value in one.values}
    is_once = len(marked) == 1 if one.outcome is Outcome.OK else len(marked) <= (one.outcome is Outcome.UNKNOWN)
    # A compare-and-set that was refused is remembered, and has written nothing.
    is_whole = found <= {tuple(marked)} or (one.kind in (Kind.CAS, Kind.SWAP_GROUP) and found == {()})
    is_told_so = one.revision in marked or not (one.kind is Kind.PUT or one.succeeded or one.deleted)
    if not is_once or not is_whole or (one.outcome is Outcome.OK and not is_told_so):
        raise InvariantBroken(
            "once",
            f"request {one.request_id} of client {one.client} ({one.kind}, {one.outcome}, told revision "
            f"{one.revision}) was remembered at the revisions {marked}, and what it writes was written at "
            f"{sorted(found)}",
        )


def judge_leases(leases: Sequence[HeldLease], ended_s: Mapping[int, float], jumps_s: Sequence[float]) -> None:
    """No lease ended before its time. That all have ended is judged by the world, which waits for it."""
    for held in leases:
        end_s = ended_s.get(held.lease)
        if end_s is None:
            continue
        for renewed_s in held.renewals:
            if renewed_s > end_s:
                raise InvariantBroken(
                    "leases", f"lease {held.lease:x} ended at {end_s:.3f}, and was renewed by a call of {renewed_s:.3f}"
                )
        if held.revoked_s is not None and end_s >= held.revoked_s:
            continue
        renewed_s = held.renewals[-1]
        jumps = sum(renewed_s <= at_s <= end_s for at_s in jumps_s)
        if end_s < held.safe_until_s(renewed_s, jumps):
            raise InvariantBroken(
                "leases",
                f"lease {held.lease:x} of {held.ttl_s} s was renewed by a call of {renewed_s:.3f}, and ended at "
                f"{end_s:.3f} already, {end_s - renewed_s:.3f} s later",
            )


def judge_leased_keys(revisions: Revisions, ended: Iterable[int]) -> None:
    """Keys end with their lease, all of them and at one revision; and with nothing else, for no client deletes them."""
    ended = set(ended)
    keys: dict[int, set[bytes]] = defaultdict(set)
    lease_of: dict[bytes, int] = {}
    for revision in sorted(revisions):
        gone: dict[int, set[bytes]] = defaultdict(set)
        for event in revisions[revision]:
            key, before = event.kv.key, lease_of.pop(event.kv.key, 0)
            if event.kind is EventKind.DELETE and key.startswith(LEASE_PREFIX):
                gone[before].add(key)
            elif before:
                keys[before].discard(key)
            if event.kv.lease:
                lease_of[key] = event.kv.lease
                keys[event.kv.lease].add(key)
        for lease, deleted in gone.items():
            if lease not in ended or keys.pop(lease, set()) != deleted:
                raise InvariantBroken("leases", f"revision {revision} deletes {deleted}, of lease {lease:x}, not all")
    left = {lease: of_lease for lease, of_lease in keys.items() if of_lease and lease in ended}
    if left:
        raise InvariantBroken("leases", f"these leases have ended, and left keys: {left}")


def judge_histories(attempts: Sequence[Attempt]) -> None:
    """What the clients saw of each key, and of the group, is linearizable."""
    done = [one for one in attempts if one.outcome is not Outcome.FAILED]
    _judge(KeyModel(), [_operation(one) for one in done if not one.is_of_group])
    _judge(GroupModel(len(GROUP_KEYS)), [_group_operation(one) for one in done if one.is_of_group])


def _judge(model: Model, history: list[Operation]) -> None:
    verdict = check(model, history)
    if verdict.result is not Result.LINEARIZABLE:
        raise InvariantBroken("linearizability", verdict.explain())


def _operation(one: Attempt) -> Operation:
    value, expected = (*one.values, None)[0], (*one.expected, None)[0]
    call = KeyCall(_VERBS[one.kind], one.keys[0], value, expected)
    if one.outcome is Outcome.UNKNOWN:
        return Operation(one.client, call, None, one.begin_s, None)
    succeeded = one.succeeded if one.kind is Kind.CAS else one.kind is not Kind.DELETE or one.deleted > 0
    found, revision = (*one.found, None)[0], (*one.revisions, one.revision)[0]
    return Operation(one.client, call, KeyAnswer(found, succeeded, revision), one.begin_s, one.end_s)


def _group_operation(one: Attempt) -> Operation:
    call = GroupCall(tuple(GROUP_KEYS.index(key) for key in one.keys), one.expected, one.values)
    if one.outcome is Outcome.UNKNOWN:
        return Operation(one.client, call, None, one.begin_s, None)
    answers = (
        tuple(KeyAnswer(None, True, one.revision) for _ in one.keys)
        if one.succeeded
        else tuple(KeyAnswer(*found) for found in zip(one.found, (False,) * len(one.keys), one.revisions, strict=True))
    )
    return Operation(one.client, call, answers, one.begin_s, one.end_s)
