"""Which of a service's failing instances are held as passing, since the network may be the reason. Pure.

A check that hears nothing (no connection in time, no route, a name that is not resolved) cannot tell a dead instance
from a network that is cut. When the node that runs the checks is cut off, all instances of a service fail so, and if
they were believed nobody would be left to route to. So an instance that was passing, and fails without a word of the
other side, is in *doubt*; and of all that are in doubt, those of one service are judged together:

- While all of them counted as failing leave at least the service's threshold passing, each is believed: failing.
- When they do not, each is *held*: passing, and marked. It ends by a good result, by a bad one with a word of the other
  side, by the share's return (and as long again as checks take to agree, since when the network is back results come
  one by one), or `hold_s` after it was held first.

Results trickle in: of four that are cut off at once the first two are believed, when the third fails too few are left.
Then also they are held, since their doubt is as young as checks take to agree. One whose doubt is older failed of
something else, and stays failing. So what is decided depends on who is in doubt and since when, and not on the order in
which that was heard.

Only instances that would take traffic and have had a result count. Times are milliseconds of the wall clock: they are
in the store, so that another owner goes on from them.
"""

from collections.abc import Hashable, Mapping
from typing import NamedTuple, Self, TypeVar

from quorate_registry.model import Health

HELD_MARK = "in doubt, held as passing: "

K = TypeVar("K", bound=Hashable)


class Doubt(NamedTuple):
    """Since when it fails so; `held_ms`: since when it was held first, 0 if never; `is_held`: whether it is now."""

    since_ms: int
    held_ms: int = 0
    is_held: bool = False

    @classmethod
    def of(cls, health: Health, now_ms: int) -> Self | None:
        """As the store has it; None when it is in no doubt. A clock that was ahead of this one holds nobody longer."""
        if not health.doubt_since_ms:
            return None
        return cls(min(health.doubt_since_ms, now_ms), min(health.held_since_ms, now_ms), health.passing)


class Verdict(NamedTuple):
    """Of one instance by its own results. `agreement_ms`: how long after the network has gone its checks may take to
    decide so."""

    is_passing: bool
    output: str
    doubt: Doubt | None
    agreement_ms: int


class Terms(NamedTuple):
    """The service's settings."""

    threshold: float
    hold_ms: float


class Ruling(NamedTuple):
    """`doubts`: of those that are in doubt, as they are now. `due_ms`: when it is another one if nothing changes; None:
    never."""

    is_short: bool
    doubts: Mapping[object, Doubt]
    due_ms: float | None


def rule(verdicts: Mapping[K, Verdict], terms: Terms, now_ms: int, short_ms: int) -> Ruling:
    """`verdicts`: of all of a service that count. `short_ms`: when it was seen last that too few pass."""
    passing = sum(verdict.is_passing for verdict in verdicts.values())
    is_short = passing < terms.threshold * len(verdicts)
    agreement_ms = max((verdict.agreement_ms for verdict in verdicts.values()), default=0)
    recovered_ms = now_ms if is_short else short_ms + agreement_ms
    doubts: dict[object, Doubt] = {}
    ends_ms: list[float] = []
    for name, verdict in verdicts.items():
        doubt = verdict.doubt
        if doubt is None:
            continue
        if doubt.held_ms:
            is_held = now_ms < doubt.held_ms + terms.hold_ms and (is_short or (doubt.is_held and now_ms < recovered_ms))
        else:
            is_held = is_short and now_ms <= doubt.since_ms + agreement_ms
        doubts[name] = doubt._replace(is_held=is_held, held_ms=doubt.held_ms or (now_ms if is_held else 0))
        if is_held:
            ends_ms.append(doubts[name].held_ms + terms.hold_ms)
            if not is_short:
                ends_ms.append(recovered_ms)
    return Ruling(is_short, doubts, min(ends_ms, default=None))


def marked(output: str) -> str:
    return HELD_MARK + output


def without_mark(output: str) -> str:
    return output.removeprefix(HELD_MARK)
