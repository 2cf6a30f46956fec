"""Whether all nodes show the same: their digests compared, again and again, and an alarm while they differ.

Theory of operation. Each node asks all, itself included, in two steps: how far is everybody, and then, what is your
digest at the greatest revision that all have? Two nodes that differ at one revision have applied different things,
however far each is: that is never a matter of delay, and one comparison suffices for an alarm. It ends when a
comparison that had everybody finds them equal. A node that does not answer, has just loaded, or is too far behind, is
left out of a comparison: it neither raises an alarm nor ends one about itself.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from prometheus_client import Gauge
from quorate_core.tasks import TaskOwner
from quorate_store.apps import Fleet, FleetAnswer

from quorate_registry.digest import RULE, RegistryDigest
from quorate_registry.recent_nodes import RecentNodes

DIGEST_PATH = "/v1/registry/digest"
INTERVAL_S = 10.0
ASK_TIMEOUT_S = 2.0

log = structlog.get_logger(__name__)

DIVERGING = Gauge(
    "quorate_registry_diverging_nodes",
    "Nodes that show another state of the registry than most, by digests at one revision; 0 when all agree",
)


class Word(msgspec.Struct, frozen=True):
    """One node's. `floor` to `revision`: where it can be compared; `digest`: at the revision that it was asked for."""

    rule: int
    floor: int
    revision: int
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """At `revision`. `groups` are nodes that agree among themselves, the largest group first; equal ones by name."""

    revision: int
    groups: tuple[tuple[str, ...], ...]

    @property
    def odd(self) -> tuple[str, ...]:
        """Those that differ from most; all, when there is no majority to differ from."""
        first, *rest = self.groups
        others = tuple(sorted(name for group in rest for name in group))
        return others if len(first) > len(others) else tuple(sorted((*first, *others)))

    def is_open(self, compared: AbstractSet[str], up: AbstractSet[str]) -> bool:
        """Whether nodes that differed are still up and have not been compared since."""
        left = [up & set(group) for group in self.groups]
        return sum(bool(names) for names in left) > 1 and any(names - compared for names in left)

    def __str__(self) -> str:
        told = (f"{', '.join(group)} {'agree' if len(group) > 1 else 'differs'}" for group in self.groups)
        return f"copies of the registry differ at revision {self.revision}: {'; '.join(told)}"


class Divergence:
    """`compare` once, or `start` to do so every INTERVAL_S."""

    def __init__(
        self, digest: RegistryDigest, fleet: Fleet, recent: RecentNodes, interval_s: float = INTERVAL_S
    ) -> None:
        """`recent` is told who is up, since this asks all the time."""
        self._recent = recent
        self._digest = digest
        self._fleet = fleet
        self._interval_s = interval_s
        self.difference: Difference | None = None

    def start(self, tasks: TaskOwner) -> None:
        tasks.start(self._run(), "registry-divergence")

    def word(self, at: int | None) -> dict[str, Any]:
        """What this node says of itself."""
        digest = self._digest
        known = None if at is None else digest.at(at)
        return {"rule": RULE, "floor": digest.floor, "revision": digest.revision, "digest": known}

    def alarms(self) -> Sequence[str]:
        return () if self.difference is None else (str(self.difference),)

    async def compare(self) -> None:
        """Ask all nodes, and raise the alarm, keep it, or end it."""
        answers = await self._fleet.ask_all(DIGEST_PATH, ASK_TIMEOUT_S)
        self._recent.take({answer.node.name for answer in answers})
        revision = common_revision(_words(answers)) or 0
        if revision:
            answers = await self._fleet.ask_all(f"{DIGEST_PATH}?at={revision}", ASK_TIMEOUT_S)
        digests = {name: word.digest for name, word in _words(answers).items() if word.digest is not None}
        self._judge(revision, digests, {answer.node.name for answer in answers})

    def _judge(self, revision: int, digests: Mapping[str, str], up: AbstractSet[str]) -> None:
        """`up`: the nodes that there are, whether they have answered or not."""
        found = difference(revision, digests)
        if found is None:
            if self.difference is None or self.difference.is_open(digests.keys(), up):
                return
            log.info("registry_copies_agree_again", revision=revision)
        elif self.difference is None or self.difference.groups != found.groups:
            log.error("registry_copies_differ", revision=revision, groups=[list(group) for group in found.groups])
        self.difference = found
        DIVERGING.set(0 if found is None else len(found.odd))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.compare()


def common_revision(words: Mapping[str, Word]) -> int | None:
    """The greatest that all can be compared at that can be compared at all: who has begun after the slowest has come so
    far is left out. None when nobody is left to compare with."""
    loaded = [word for word in words.values() if word.rule == RULE and word.revision]
    if len(loaded) < 2:
        return None
    revision = min(word.revision for word in loaded)
    if sum(word.floor <= revision for word in loaded) >= 2:
        return revision
    # The slowest lags behind what the others remember: without it.
    ahead = {name: word for name, word in words.items() if word.revision > revision}
    return common_revision(ahead) if len(ahead) < len(words) else None


def difference(revision: int, digests: Mapping[str, str]) -> Difference | None:
    """None when all are equal."""
    counts = Counter(digests.values())
    if len(counts) < 2:
        return None
    groups = [tuple(sorted(name for name, found in digests.items() if found == digest)) for digest in counts]
    return Difference(revision, tuple(sorted(groups, key=lambda group: (-len(group), group))))


def _words(answers: Sequence[FleetAnswer]) -> dict[str, Word]:
    """By node, of those that answer and make sense."""
    found = {}
    for answer in answers:
        if answer.error is None:
            try:
                found[answer.node.name] = msgspec.convert(answer.body, Word)
            except msgspec.ValidationError as error:
                log.warning("registry_digest_unreadable", node=answer.node.name, error=str(error))
    return found
