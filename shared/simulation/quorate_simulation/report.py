"""A run, told to people."""

import traceback

from quorate_simulation.invariants import InvariantBroken
from quorate_simulation.timeline import format_table
from quorate_simulation.world import Result

LAST_HAPPENINGS = 60
"""Shown of a run that failed, messages included; the last hundred without them come before."""
LAST_EVENTS = 40


def replay_command(seed: int, profile: str) -> str:
    return f"./quorate sim --seed {seed} --profile {profile}"


def tell(result: Result, *, full: bool = False) -> str:
    """What a person wants to know of a run: a line when all is well; else what was broken, and how it came to that."""
    if full:
        return f"{format_table(result.timeline.last(0))}\n{_verdict(result)}"
    if result.broken is None:
        return _verdict(result)
    events = result.timeline.last(LAST_EVENTS, with_messages=False)
    happenings = result.timeline.last(LAST_HAPPENINGS)
    return "\n\n".join(
        (
            f"What happened at last, without the messages between members:\n{format_table(events)}",
            f"The last {len(happenings)} of {len(result.timeline)} happenings:\n{format_table(happenings)}",
            _verdict(result),
        )
    )


def name_of(broken: Exception) -> str:
    return broken.name if isinstance(broken, InvariantBroken) else type(broken).__name__


def diagnosis_of(broken: Exception) -> str:
    return broken.diagnosis if isinstance(broken, InvariantBroken) else str(broken)


def _verdict(result: Result) -> str:
    counts = (
        f"{result.virtual_s:.1f} virtual seconds, {result.steps} steps, {result.elections} elections, "
        f"{result.committed} entries committed, {result.operations} operations ({result.unknown} of unknown outcome)"
    )
    head = f"seed {result.seed}, profile {result.profile}"
    if result.broken is None:
        return f"{head}: nothing was broken in {counts}; digest {result.digest}"
    lines = [
        f"{head}: BROKEN: {name_of(result.broken)}",
        f"  {diagnosis_of(result.broken)}",
        f"  after {counts}",
        f"  again: {replay_command(result.seed, result.profile)}    (all of it: --full)",
        f"  digest {result.digest}",
    ]
    if result.broken.__cause__ is not None:
        lines.append("".join(traceback.format_exception(result.broken.__cause__)))
    return "\n".join(lines)
