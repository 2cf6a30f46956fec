"""What clients saw, judged when a run is over: linearizable, watched without gap, leases neither early nor lost."""

from collections.abc import Mapping, Sequence

from quorate_store.model import Event

from quorate_simulation.invariants import InvariantBroken
from quorate_simulation.linearizability import Operation, Result, check
from quorate_simulation.models import KeyAnswer, KeyCall, KeyModel, Verb
from quorate_simulation.workload import KEY_PREFIX, Attempt, HeldLease, Kind, Observer, Outcome

_VERBS = {Kind.PUT: Verb.PUT, Kind.GET: Verb.GET, Kind.DELETE: Verb.DELETE, Kind.CAS: Verb.COMPARE_AND_SET}


def judge_watches(observers: Sequence[Observer], revisions: Mapping[int, Sequence[Event]]) -> None:
    """Each observer saw exactly what was committed, once, in order, but for what was compacted away before."""
    for observer in observers:
        seen = [event for _, events in observer.seen for event in events]
        expected = [event for event in expected_events(revisions) if not observer.has_skipped(event.kv.mod_revision)]
        for at, (found, wanted) in enumerate(zip(seen, expected, strict=False)):
            if (found.kind, found.kv) != (wanted.kind, wanted.kv):
                raise InvariantBroken("watches", f"event {at} that was seen is {found.kv}, and {wanted.kv} was due")
        if len(seen) != len(expected):
            raise InvariantBroken("watches", f"{len(seen)} events were seen, and there were {len(expected)}")


def expected_events(revisions: Mapping[int, Sequence[Event]]) -> list[Event]:
    return [
        event for revision in sorted(revisions) for event in revisions[revision] if event.kv.key.startswith(KEY_PREFIX)
    ]


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


def judge_histories(attempts: Sequence[Attempt]) -> None:
    """What the clients saw of each key is linearizable."""
    history = [_operation(one) for one in attempts if one.outcome is not Outcome.FAILED]
    verdict = check(KeyModel(), history)
    if verdict.result is not Result.LINEARIZABLE:
        raise InvariantBroken("linearizability", verdict.explain())


def _operation(one: Attempt) -> Operation:
    call = KeyCall(_VERBS[one.kind], one.key, one.value, one.expected)
    if one.outcome is Outcome.UNKNOWN:
        return Operation(one.client, call, None, one.begin_s, None)
    succeeded = one.succeeded if one.kind is Kind.CAS else one.kind is not Kind.DELETE or one.deleted > 0
    return Operation(one.client, call, KeyAnswer(one.found, succeeded, one.revision), one.begin_s, one.end_s)
