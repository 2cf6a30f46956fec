"""What has changed, told from the store's own history: for people who ask "who did that, and when?".

Nothing is remembered for this: a watch from an old revision yields every change since, with what was there before it,
as far back as compaction has left. So a node that has just started tells the same as one that was there, and no memory
is held. Times are those that values carry.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol, runtime_checkable

from quorate_core.errors import Compacted

from quorate_store.model import Event, prefix_end
from quorate_store.port import Store, Watch

REPLAYED_REVISIONS_MAX = 200_000
"""How far back from its end a span is read at most: some seconds of work, in slices."""
REPLAY_S_MAX = 10.0
UNBOUNDED = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Bound:
    """One end of a span, itself included. With `at_ms`, milliseconds since the Unix epoch, the moment decides, and
    `revision` only says where to look at all."""

    revision: int
    at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """One change. `at_ms` is 0 when it is not known. `details`: by field, what it was before and what it is since."""

    revision: int
    at_ms: int
    kind: str
    namespace: str
    name: str
    what: str
    by: str = ""
    details: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChangesPart:
    """What one app knows of a span, oldest first. `from_revision` is where it begins to know; `complete` is False when
    that is after the begin of the span, or when there were more than fit: then the oldest are missing."""

    from_revision: int
    complete: bool
    changes: Sequence[ChangeRow]


@runtime_checkable
class Chronicler(Protocol):
    """An app that can say what has changed."""

    async def changes(self, since: Bound, until: Bound, limit: int) -> ChangesPart:
        """The newest `limit` changes of the span; the store has the revision that `until` names. Raises the store's
        errors."""
        ...


@runtime_checkable
class Alarming(Protocol):
    """An app that can say what an operator should know now."""

    def alarms(self) -> Sequence[str]:
        """One sentence each; none when all is well."""
        ...


class Replay:
    """Reads one prefix's history once. Afterwards `floor` is the first revision that could be read, `reaches_back` says
    whether that is the one asked for, and `is_whole`, whether everything from there to the end was read."""

    def __init__(self, store: Store, prefix: bytes, since: int, until: int) -> None:
        """From revision `since` to `until`, both included; `until` is one that the store has."""
        self._store = store
        self._prefix = prefix
        self._until = until
        self.floor = max(since, until - REPLAYED_REVISIONS_MAX + 1, 1)
        self.reaches_back = self.floor <= max(since, 1)
        self.is_whole = True

    async def run(self) -> AsyncGenerator[tuple[int, tuple[Event, ...]], None]:
        """Each revision that has changed something, with its events, in order; ends after REPLAY_S_MAX at the latest.
        Use it in `contextlib.aclosing`."""
        next_revision = self.floor
        ends_s = asyncio.get_running_loop().time() + REPLAY_S_MAX
        while next_revision <= self._until:
            try:
                async with aclosing(self._read(next_revision, ends_s)) as found:
                    async for revision, events in found:
                        yield revision, events
                        next_revision = revision + 1
                return
            except Compacted as error:
                # Deletions at the compacted revision itself may be gone already: the next one is whole.
                oldest = int(error.extensions.get("compact_revision", next_revision)) + 1
                self.is_whole &= next_revision == self.floor  # else compaction has overtaken this reader
                self.floor = next_revision = max(next_revision + 1, oldest)
                self.reaches_back = False
            except TimeoutError:
                self.is_whole = False
                return

    async def _read(self, since: int, ends_s: float) -> AsyncGenerator[tuple[int, tuple[Event, ...]], None]:
        end = prefix_end(self._prefix)
        async with self._store.watch(self._prefix, end, start_revision=since, previous=True) as watch:
            await watch.request_progress()
            async with aclosing(_batches(watch, ends_s)) as batches:
                async for reached, events in batches:
                    for revision, group in groupby(events, key=_revision):
                        if revision > self._until:
                            return
                        yield revision, tuple(group)
                    if reached >= self._until:
                        return


async def _batches(watch: Watch, ends_s: float) -> AsyncGenerator[tuple[int, tuple[Event, ...]], None]:
    """Raises TimeoutError at `ends_s`, by the event loop's clock, also when the watch has nothing to say."""
    batches = aiter(watch)
    while True:
        async with asyncio.timeout_at(ends_s):
            batch = await anext(batches, None)
        if batch is None:
            raise TimeoutError("the store ended the watch")
        yield batch.revision, batch.events


def _revision(event: Event) -> int:
    return event.kv.mod_revision


class Span:
    """Collects the rows that lie between two bounds, the newest `limit` of them."""

    def __init__(self, since: Bound, until: Bound, limit: int) -> None:
        self._since = since
        self._until = until
        self._rows: deque[ChangeRow] = deque(maxlen=limit)
        self._left_out = False
        self._begins_within = False
        """Whether something before the span was seen, so that the whole of it was."""
        self._last_known_ms = 0

    def take(self, rows: Iterable[ChangeRow]) -> None:
        """A row that carries no time counts as of the one before it."""
        for row in rows:
            self._last_known_ms = row.at_ms or self._last_known_ms
            if not self._holds(row):
                continue
            self._left_out |= len(self._rows) == self._rows.maxlen
            self._rows.append(row)

    def part(self, replay: Replay) -> ChangesPart:
        reaches_back = replay.reaches_back or self._begins_within
        from_revision = self._rows[0].revision if self._left_out else replay.floor
        return ChangesPart(from_revision, replay.is_whole and reaches_back and not self._left_out, tuple(self._rows))

    def _holds(self, row: ChangeRow) -> bool:
        at_ms = row.at_ms or self._last_known_ms
        if self._since.at_ms is not None and at_ms < self._since.at_ms:
            self._begins_within = True
            return False
        return self._until.at_ms is None or at_ms <= self._until.at_ms
