"""The config center's part of "what changed?": who published or deleted which document, read from the store's history.

Contents are never told, since they may hold what not everybody should see: only versions, and the comments that people
gave them.
"""

from contextlib import aclosing
from datetime import datetime

from quorate_store.chronicle import Bound, ChangeRow, ChangesPart, Replay, Span
from quorate_store.model import Event, EventKind
from quorate_store.port import Store

from quorate_config_center.model import CURRENT_PREFIX, DocumentName, Head, decode_head, name_of_current

ROUTES_GROUP, ROUTES_KEY = "gateway", "routes.yaml"
"""The document that is the gateways' routes is told of as such."""


class DocumentTimeline:
    """Reads `store`'s history; remembers nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def changes(self, since: Bound, until: Bound, limit: int) -> ChangesPart:
        """See `quorate_store.chronicle.Chronicler`."""
        replay = Replay(self._store, CURRENT_PREFIX, since.revision, until.revision)
        span = Span(since, until, limit)
        async with aclosing(replay.run()) as revisions:
            async for revision, events in revisions:
                span.take(row for event in events if (row := row_of(revision, event)) is not None)
        return span.part(replay)


def row_of(revision: int, event: Event) -> ChangeRow | None:
    """What one change of a head says; None for what cannot be read. Pure."""
    if event.kind is not EventKind.PUT:
        return None  # a deletion is a head too
    try:
        name, head = name_of_current(event.kv.key), decode_head(event.kv.value)
    except ValueError:
        return None
    before = _head_before(event)
    details = {
        "version": ["" if before is None or before.deleted else str(before.version), str(head.version)],
        "comment": ["" if before is None else before.comment, head.comment],
        "format": ["" if before is None else before.format.value, head.format.value],
    }
    return ChangeRow(
        revision, _ms(head.changed_at), _kind(name), name.namespace, f"{name.group}/{name.key}",
        "deleted" if head.deleted else "published", head.author,
        {field: values for field, values in details.items() if values[0] != values[1]},
    )  # fmt: skip


def _head_before(event: Event) -> Head | None:
    try:
        return None if event.previous is None else decode_head(event.previous.value)
    except ValueError:
        return None


def _kind(name: DocumentName) -> str:
    return "route" if (name.group, name.key) == (ROUTES_GROUP, ROUTES_KEY) else "config"


def _ms(changed_at: str) -> int:
    try:
        return round(datetime.fromisoformat(changed_at).timestamp() * 1_000)
    except ValueError:
        return 0
