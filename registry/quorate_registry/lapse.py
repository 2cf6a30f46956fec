"""What becomes of one instance whose heartbeats have ended. Pure: times and what was found are arguments.

Its record is there still, and somebody, the owner of its service, decides when it goes:

- The service is not protected: nobody is shown the instance. Its record goes `ttl_s` after the owner saw it lapse, or
  last saw too few alive: while others of its service come back it is likely to do so too, and is then no new one.
- The service is protected, and fewer than its threshold are alive: everybody is shown the instance, marked stale,
  while the owner probes it: at once, then after SECOND_PROBE_AFTER_S, then every PROBE_INTERVAL_S. Refused
  REFUSALS_MAX times in a row, it goes. Connected or undecided, it stays; but `hold_s` after the owner saw it lapse it
  goes in any case, so that protection ends.
- The service is protected by its guard key alone, since enough are alive again: everybody is shown the instance still,
  and it is probed as before; but its record goes `ttl_s` after the last step that saw too few, as without protection.

Protection may begin and end meanwhile, and so is asked for at each step. An instance that comes back is no lapse any
more; the next one begins anew. An owner that takes over sees the lapse from then on.
"""

from dataclasses import dataclass
from enum import StrEnum

from quorate_registry.probes import Finding

SECOND_PROBE_AFTER_S = 0.2
PROBE_INTERVAL_S = 1.0
REFUSALS_MAX = 2


class Step(StrEnum):
    WAIT = "wait"
    PROBE = "probe"
    REAP_LAPSED = "lapsed"
    REAP_REFUSED = "refused"
    REAP_HELD = "hold ended"

    @property
    def reaps(self) -> bool:
        return self not in (Step.WAIT, Step.PROBE)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Of the instance's service, and its own, at the moment of a step."""

    is_protected: bool
    is_short: bool
    """Fewer than its threshold are alive."""
    ttl_s: float
    hold_s: float


@dataclass(slots=True)
class Lapse:
    """`seen_s`: when its owner saw it, on a clock that never goes back. `short_s`: when a step last saw too few alive.
    `refusals`: in a row, up to the last probe."""

    seen_s: float
    short_s: float = 0.0
    probes: int = 0
    probed_s: float = 0.0
    refusals: int = 0

    def step(self, now_s: float, now: Circumstances) -> Step:
        """What is to be done at `now_s`."""
        if now.is_short:
            self.short_s = now_s
        if not now.is_protected:
            return Step.REAP_LAPSED if now_s >= self._given_up_s(now) else Step.WAIT
        if self.refusals >= REFUSALS_MAX:
            return Step.REAP_REFUSED
        if now_s >= self.seen_s + now.hold_s:
            return Step.REAP_HELD
        if not now.is_short and now_s >= self._given_up_s(now):
            return Step.REAP_LAPSED
        return Step.PROBE if now_s >= self._next_probe_s() else Step.WAIT

    def due_s(self, now: Circumstances) -> float:
        """When `step` says something else than WAIT, if nothing changes until then; in the past: now."""
        if not now.is_protected:
            return self._given_up_s(now)
        if self.refusals >= REFUSALS_MAX:
            return self.probed_s
        ends_s = self.seen_s + now.hold_s
        return min(self._next_probe_s(), ends_s if now.is_short else min(ends_s, self._given_up_s(now)))

    def take(self, finding: Finding, began_s: float) -> None:
        """What a probe that began at `began_s` has found."""
        self.probes += 1
        self.probed_s = began_s
        self.refusals = self.refusals + 1 if finding is Finding.REFUSED else 0

    def _given_up_s(self, now: Circumstances) -> float:
        """When it has had its time to live to come back, since enough others did."""
        return max(self.seen_s, self.short_s) + now.ttl_s

    def _next_probe_s(self) -> float:
        if not self.probes:
            return self.seen_s
        return self.probed_s + (SECOND_PROBE_AFTER_S if self.probes == 1 else PROBE_INTERVAL_S)
