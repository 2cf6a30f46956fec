"""`/v1/changes`: what has changed, by all apps together, in one timeline.

Each app reads its own part from the store's history (`quorate_store.chronicle`); here they are put in order of revision
and cut to what was asked for, the newest last. Nothing is remembered between two calls.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, Query
from quorate_core.clock import Clock
from quorate_core.errors import InvalidRequest, TooManyRequests
from quorate_sdk.wire import Change, ChangeList
from quorate_store.chronicle import Bound, ChangeRow, Chronicler
from quorate_store.model import RESTORED_KEY
from quorate_store.port import Store

PATH = "/v1/changes"
CHANGES_DEFAULT = 1_000
CHANGES_MAX = 10_000
READERS_MAX = 2
"""Calls that are answered at once: each may read all of the history, and hold CHANGES_MAX lines of it."""
BOUND_CHARS_MAX = 40
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_YEAR_10000_MS = 253_402_300_800_000
_SPAN = re.compile(r"([0-9]{1,9})([smhd])\Z")
_REVISION = re.compile(r"[0-9]{1,18}\Z")

_DESCRIPTION = "A revision, a time such as `2026-01-31T12:00:00Z`, or how long ago, such as `10m`"


class ChangesApi:
    def __init__(self, store: Store, chroniclers: Sequence[Chronicler], clock: Clock) -> None:
        self._store = store
        self._chroniclers = chroniclers
        self._clock = clock
        self._readers = 0

    def mount(self, api: FastAPI) -> None:
        api.get(PATH, tags=["changes"])(self.changes)

    async def changes(
        self,
        since: Annotated[str, Query(alias="from", max_length=BOUND_CHARS_MAX, description=_DESCRIPTION)] = "10m",
        until: Annotated[str, Query(alias="to", max_length=BOUND_CHARS_MAX, description=_DESCRIPTION)] = "",
        limit: Annotated[int, Query(ge=1, le=CHANGES_MAX)] = CHANGES_DEFAULT,
    ) -> ChangeList:
        """Instances, services' settings, documents and routes: what changed, when, by whom, from what to what.

        `from` and `to` are included. There is no `to`: up to now. When there are more than `limit`, the oldest are left
        out, and `complete` is false, as it is when history does not reach back so far.
        """
        # One key suffices: what is wanted is the revision of a linearizable read.
        present = (await self._store.range(RESTORED_KEY, count_only=True)).revision
        now_ms = round(self._clock.wall_s() * 1_000)
        begin = parsed_bound(since, now_ms, "from") if since else Bound(1)
        end = parsed_bound(until, now_ms, "to") if until else Bound(present)
        end = Bound(present if end.at_ms is not None else min(end.revision, present), end.at_ms)
        begin = Bound(min(max(begin.revision, 1), present + 1), begin.at_ms)
        if begin.revision > end.revision:
            return ChangeList(from_revision=begin.revision, to_revision=end.revision, complete=True, changes=[])
        return await self._read(begin, end, limit)

    async def _read(self, since: Bound, until: Bound, limit: int) -> ChangeList:
        if self._readers >= READERS_MAX:
            raise TooManyRequests(f"{READERS_MAX} others read the history at this node; try again in a moment")
        self._readers += 1
        try:
            parts = [await app.changes(since, until, limit) for app in self._chroniclers]
        finally:
            self._readers -= 1
        rows = sorted((row for part in parts for row in part.changes), key=lambda row: row.revision)
        shown = rows[-limit:]
        is_cut = len(shown) < len(rows)
        begins = max((part.from_revision for part in parts), default=since.revision)
        return ChangeList(
            from_revision=shown[0].revision if is_cut else begins,
            to_revision=until.revision,
            complete=not is_cut and all(part.complete for part in parts),
            changes=[_change(row) for row in shown],
        )


def parsed_bound(text: str, now_ms: int, name: str) -> Bound:
    """A revision, a time (RFC 3339), or a span before `now_ms`, as in `10m`. Raises InvalidRequest."""
    if _REVISION.match(text):
        return Bound(int(text))
    if (span := _SPAN.match(text)) is not None:
        return Bound(1, now_ms - int(span[1]) * _UNITS_MS[span[2]])
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            raise ValueError("without an offset it is another moment at every place")
        return Bound(1, round(found.timestamp() * 1_000))
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"{name}: {text!r} is no revision, no time with its offset such as 2026-01-31T12:00:00Z, and no span such "
            "as 30s, 10m, 2h, 1d"
        ) from error


def _change(row: ChangeRow) -> Change:
    is_time = 0 < row.at_ms < _YEAR_10000_MS
    at = datetime.fromtimestamp(row.at_ms / 1_000, UTC).isoformat(timespec="milliseconds") if is_time else ""
    return Change(
        revision=row.revision, at=at.replace("+00:00", "Z"), kind=row.kind, namespace=row.namespace, name=row.name,
        what=row.what, by=row.by, details=row.details,
    )  # fmt: skip
