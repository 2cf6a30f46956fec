"""Those who watch: each has one wish, and must see every event of it once, in order, with what was there before.

A watcher goes from member to member: when its member dies, or it has had enough, it resumes at another by revision.
Some read slowly, so that their members stop keeping events for them and serve them from history. What a watcher begins
with is the beginning, or a revision in the past, or what its member calls now.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from quorate_core.errors import Compacted, InvariantViolation, QuorateError
from quorate_store.key_index import is_in_range
from quorate_store.model import RANGE_ALL, Event, WatchBatch, prefix_end

from quorate_simulation.invariants import InvariantBroken
from quorate_simulation.members import Member, Parts, ProcessGone
from quorate_simulation.randomness import Stream
from quorate_simulation.timeline import Timeline
from quorate_simulation.workload import GROUP_PREFIX, KEY_PREFIX, LEASE_PREFIX, Stage

VISIT_S_MIN = 0.5
VISIT_S_MAX = 20.0
"""How long a watcher stays at one member."""
READ_PAUSE_S_MIN = 0.02
READ_PAUSE_S_MAX = 2.0
"""Of a slow reader, between two batches."""
PROGRESS_ASKED = 0.1
"""After how many of the batches it asks how far the member is."""


class Start(StrEnum):
    BEGINNING = "the beginning"
    PAST = "the past"
    NOW = "now"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a watcher watches."""

    key: bytes
    range_end: bytes
    start: Start
    previous: bool
    is_slow: bool

    def covers(self, key: bytes) -> bool:
        return is_in_range(key, self.key, self.range_end)

    @classmethod
    def draw(cls, chance: Stream) -> "Wish":
        key, range_end = chance.one_of(_RANGES)
        start = chance.one_of((Start.BEGINNING, Start.PAST, Start.NOW))
        return cls(key, range_end, start, chance.happens(0.5), chance.happens(0.4))


_RANGES = (
    (KEY_PREFIX, prefix_end(KEY_PREFIX)),
    (KEY_PREFIX + b"0", b""),
    (KEY_PREFIX + b"1", KEY_PREFIX + b"3"),
    (GROUP_PREFIX, prefix_end(GROUP_PREFIX)),
    (LEASE_PREFIX, prefix_end(LEASE_PREFIX)),
    (b"\0", RANGE_ALL),
)
FIRST_WISH = Wish(*_RANGES[0], Start.BEGINNING, previous=False, is_slow=False)
"""Of the first watcher of every run."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Revisions from `first` to before `compact_revision`, which the watcher was told are compacted."""

    first: int
    compact_revision: int


class Observer:
    """`revisions`: what every revision has changed, as far as any member knows. Raises InvariantBroken where a batch
    alone is wrong; the rest is judged at the end."""

    def __init__(
        self,
        number: int,
        stage: Stage,
        chance: Stream,
        timeline: Timeline,
        wish: Wish,
        revisions: Mapping[int, Sequence[Event]],
    ) -> None:
        self.name = f"watcher {number}"
        self.wish = wish
        self._stage = stage
        self._chance = chance
        self._timeline = timeline
        self._revisions = revisions
        self._visits = 0
        self.begin_revision = 1 if wish.start is Start.BEGINNING else 0
        """From where on it must see everything; 0 until that is known."""
        self.next_revision = self.begin_revision
        self.seen: list[Event] = []
        self.without_previous: set[int] = set()
        """Revisions whose events may lack what was there before: it was compacted when they were seen."""
        self.gaps: list[Gap] = []

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._chance.between(0.01, 0.2))
            member = self._stage.choose(self._chance)
            if member is None:
                continue
            if self.wish.start is Start.PAST and not self.begin_revision:
                newest = max(self._revisions, default=1)
                self.begin_revision = self.next_revision = self._chance.randrange(1, newest + 2)
            self._timeline.add(self.name, "client", f"watches at {member.name} from revision {self.next_revision}")
            await self._visit(member)
            self._visits += 1

    async def _visit(self, member: Member) -> None:
        try:
            async with asyncio.timeout(self._chance.skewed(VISIT_S_MIN, VISIT_S_MAX)):
                await member.ask(partial(self._watch, self._visits))
        except Compacted as error:
            self._skip(error, member)
        except (TimeoutError, ProcessGone):
            pass
        except InvariantViolation:
            raise
        except QuorateError:
            pass

    async def _watch(self, visit: int, parts: Parts) -> None:
        wish, reached = self.wish, 0
        if visit != self._visits:
            return  # its process was paused, and it was given up before it began
        async with parts.store.watch(
            wish.key, wish.range_end, start_revision=self.next_revision, previous=wish.previous
        ) as watch:
            async for batch in watch:
                if visit != self._visits:
                    return  # it was given up, and its process has not noticed yet
                self._require_order(batch, reached)
                self._take(batch, parts.machine.compact_revision)
                reached = batch.revision
                if self._chance.happens(PROGRESS_ASKED):
                    await watch.request_progress()
                if wish.is_slow and not self._stage.is_over:
                    await asyncio.sleep(self._chance.skewed(READ_PAUSE_S_MIN, READ_PAUSE_S_MAX))

    def _require_order(self, batch: WatchBatch, reached: int) -> None:
        """A batch of the same watch says how far everything was handed out before."""
        revisions = [event.kv.mod_revision for event in batch.events]
        floor = max(reached + 1, self.next_revision)
        is_ordered = revisions == sorted(revisions) and all(floor <= one <= batch.revision for one in revisions)
        if not is_ordered or batch.revision < reached:
            raise InvariantBroken(
                "watch",
                f"{self.name} has everything before revision {floor}, and is handed changes of {revisions} as all up "
                f"to {batch.revision}",
            )

    def _take(self, batch: WatchBatch, compact_revision: int) -> None:
        if not self.begin_revision:
            self.begin_revision = batch.revision + 1
        for event in batch.events:
            self.seen.append(event)
            if event.kv.mod_revision <= compact_revision:
                self.without_previous.add(event.kv.mod_revision)
        self.next_revision = max(self.next_revision, batch.revision + 1)

    def _skip(self, error: Compacted, member: Member) -> None:
        compact_revision: int = error.extensions["compact_revision"]
        if compact_revision <= self.next_revision:
            raise InvariantBroken(
                "watch",
                f"{self.name} asked {member.name} for revision {self.next_revision}, and was told that it is compacted "
                f"and {compact_revision} is the oldest",
            )
        self.gaps.append(Gap(self.next_revision, compact_revision))
        self.next_revision = max(self.next_revision, compact_revision)
        self._timeline.add(self.name, "client", f"is told by {member.name}: {error.detail}")

    def has_skipped(self, revision: int) -> bool:
        return any(gap.first <= revision < gap.compact_revision for gap in self.gaps)

    def is_complete(self, present: int) -> bool:
        """Whether everything of its wish up to the revision `present` was seen, or is gone."""
        return self.begin_revision > 0 and not any(
            self.wish.covers(event.kv.key)
            for revision in range(self.next_revision, present + 1)
            for event in self._revisions.get(revision, ())
        )
