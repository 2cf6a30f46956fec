"""What a supervisor decides about one part: a state machine without I/O.

States and transitions:

    WAITING ──spawned──> STARTING ──became_ready──> READY
    STARTING, READY ──exited──> BACKING_OFF, with the delay until it is spawned again
    BACKING_OFF ──spawned──> STARTING
    STARTING, READY ──retired──> RETIRED: it said that it is never to be started again
    STARTING, READY ──stop_asked──> STOPPING ──exited──> STOPPED
    WAITING, BACKING_OFF ──stop_asked──> STOPPED

The delay doubles with each exit in a row, from `BACKOFF_S_MIN` to `BACKOFF_S_MAX` (for a part that has been ready
once, to `PROVEN_BACKOFF_S_MAX`: it can start, and is needed), and starts over once the part has been up for
`STABLE_AFTER_S`. A part that says it cannot start is tried again too, since what it refused (a port that is taken, a
file that is missing) may be put right meanwhile, but only every `SETTINGS_RETRY_S`.

The caller owes: each event once and in the order in which it happened, with a clock that never goes back.
"""

import signal
from dataclasses import dataclass, replace
from enum import StrEnum

from quorate_core.errors import InvariantViolation
from quorate_core.process import EXIT_SETTINGS

BACKOFF_S_MIN = 0.2
BACKOFF_S_MAX = 10.0
PROVEN_BACKOFF_S_MAX = 2.0
STABLE_AFTER_S = 30.0
SETTINGS_RETRY_S = 15.0
START_ATTEMPTS_MAX = 5
"""After so many exits before it was ever ready, a part has failed to start."""


class PartState(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing-off"
    STOPPING = "stopping"
    STOPPED = "stopped"
    RETIRED = "removed"
    """Only members of the cluster are retired, by being removed from it."""


@dataclass(frozen=True, slots=True)
class PartStatus:
    """`pid` is 0 while there is no process. `exits_in_a_row` counts since the part was last stable; `restarts` counts
    spawns after the first; `ever_ready` stays true once the part has been ready."""

    state: PartState = PartState.WAITING
    pid: int = 0
    spawned_at_s: float = 0.0
    spawns: int = 0
    exits_in_a_row: int = 0
    ever_ready: bool = False
    last_exit_code: int | None = None

    @property
    def restarts(self) -> int:
        return max(0, self.spawns - 1)

    @property
    def has_process(self) -> bool:
        return self.state in (PartState.STARTING, PartState.READY, PartState.STOPPING)

    @property
    def has_failed_to_start(self) -> bool:
        """Whether waiting any longer for the first readiness is of no use."""
        if self.ever_ready or self.last_exit_code is None:
            return False
        return self.last_exit_code == EXIT_SETTINGS or self.exits_in_a_row >= START_ATTEMPTS_MAX


def spawned(status: PartStatus, pid: int, now_s: float) -> PartStatus:
    _expect(status, "spawned", PartState.WAITING, PartState.BACKING_OFF)
    return replace(status, state=PartState.STARTING, pid=pid, spawned_at_s=now_s, spawns=status.spawns + 1)


def became_ready(status: PartStatus) -> PartStatus:
    """Readiness that is noticed late, when the part is stopping or gone again, changes nothing."""
    if status.state is not PartState.STARTING:
        return status
    return replace(status, state=PartState.READY, ever_ready=True)


def exited(status: PartStatus, code: int, now_s: float) -> tuple[PartStatus, float | None]:
    """The part's process has ended with `code` (negative: minus the signal's number, as asyncio says it).

    Returns the new status, and the seconds until the part is spawned again, or None when it was to stop.
    """
    _expect(status, "exited", PartState.STARTING, PartState.READY, PartState.STOPPING)
    gone = replace(status, pid=0, last_exit_code=code)
    if status.state is PartState.STOPPING:
        return replace(gone, state=PartState.STOPPED), None
    was_stable = now_s - status.spawned_at_s >= STABLE_AFTER_S
    exits_before = 0 if was_stable else status.exits_in_a_row
    longest_s = PROVEN_BACKOFF_S_MAX if status.ever_ready else BACKOFF_S_MAX
    delay_s = SETTINGS_RETRY_S if code == EXIT_SETTINGS else backoff_s(exits_before, longest_s)
    return replace(gone, state=PartState.BACKING_OFF, exits_in_a_row=exits_before + 1), delay_s


def retired(status: PartStatus, code: int) -> PartStatus:
    """The part's process has ended with `code`, and for good."""
    _expect(status, "retired", PartState.STARTING, PartState.READY, PartState.STOPPING)
    return replace(status, state=PartState.RETIRED, pid=0, last_exit_code=code)


def stop_asked(status: PartStatus) -> PartStatus:
    if status.state in (PartState.STARTING, PartState.READY):
        return replace(status, state=PartState.STOPPING)
    if status.state in (PartState.WAITING, PartState.BACKING_OFF):
        return replace(status, state=PartState.STOPPED)
    return status


def backoff_s(exits_before: int, longest_s: float = BACKOFF_S_MAX) -> float:
    """Seconds to wait after `exits_before` earlier exits in a row."""
    doublings = min(exits_before, 16)  # enough to be over the maximum, and no overflow after weeks
    return float(min(longest_s, BACKOFF_S_MIN * 2**doublings))


def describe_exit(code: int) -> str:
    """What happened to a process, as the end of a sentence that begins with its name."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    if code == EXIT_SETTINGS:
        return "cannot start"
    if code == 0:
        return "ended by itself"
    return f"failed with exit code {code}"


def _expect(status: PartStatus, event: str, *allowed: PartState) -> None:
    if status.state not in allowed:
        wanted = ", ".join(allowed)
        raise InvariantViolation(f"a part that is {status.state} cannot be {event}; only one that is {wanted}")
