"""The registry's part of "what changed?": its keys' history, read as what people did and what befell instances.

One transaction touches several keys of an instance, under one revision; together they are one line. What a revision
says of an instance, in order:

    record put, and was not there              registered
    record put, and was there                  changed, with the fields that differ; came back, when it was not alive
    record deleted, with a note of the reason  reaped; without one: deregistered
    alive deleted                              lapsed
    alive put, and was not there               came back
    health put                                 passing, failing, or in doubt: held as passing though nothing is heard

Settings of a service, and the beginning and end of its guard (`guard`), are one line each. Whatever cannot be read is
told of by its name alone.
"""

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from quorate_store.chronicle import Bound, ChangeRow, ChangesPart, Replay, Span
from quorate_store.model import Event, EventKind
from quorate_store.port import Store

REGISTRY_PREFIX = b"quorate/registry"
RECORDS, ALIVE, HEALTH, SETTINGS, NOTES, GUARDS = (
    "registry", "registry-alive", "registry-health", "registry-services", "registry-notes", "registry-guard"
)  # fmt: skip
NOT_TOLD = frozenset({"changed_by", "changed_at_ms"})
"""Fields that say who and when, and not what."""
VALUE_CHARS_MAX = 256

Fields = dict[str, Any]


class RegistryTimeline:
    """Reads `store`'s history; remembers nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def changes(self, since: Bound, until: Bound, limit: int) -> ChangesPart:
        """See `quorate_store.chronicle.Chronicler`."""
        replay = Replay(self._store, REGISTRY_PREFIX, since.revision, until.revision)
        span = Span(since, until, limit)
        async with aclosing(replay.run()) as revisions:
            async for revision, events in revisions:
                span.take(rows_of(revision, events))
        return span.part(replay)


@dataclass(slots=True)
class _Touched:
    """What one revision has done to one instance, or to one service when `id` is empty: by kind of key, the event and
    what its value was before and is since."""

    namespace: str
    service: str
    id: str
    events: dict[str, Event] = field(default_factory=dict)
    note: Fields = field(default_factory=dict)

    def put(self, kind: str) -> bool:
        event = self.events.get(kind)
        return event is not None and event.kind is EventKind.PUT

    def deleted(self, kind: str) -> bool:
        event = self.events.get(kind)
        return event is not None and event.kind is EventKind.DELETE

    def was_there(self, kind: str) -> bool:
        event = self.events.get(kind)
        return event is not None and event.previous is not None

    def before(self, kind: str) -> Fields:
        event = self.events.get(kind)
        return {} if event is None or event.previous is None else _fields(event.previous.value)

    def since(self, kind: str) -> Fields:
        event = self.events.get(kind)
        return {} if event is None or event.kind is EventKind.DELETE else _fields(event.kv.value)


def rows_of(revision: int, events: Iterable[Event]) -> Sequence[ChangeRow]:
    """What the events of one revision say, in order of name. Pure."""
    touched: dict[tuple[str, str, str], _Touched] = {}
    notes: dict[tuple[str, str], Fields] = {}
    for event in events:
        kind, *names = event.kv.key.decode(errors="replace").removeprefix("quorate/").split("/")
        if kind == NOTES and len(names) == 2:
            notes[names[0], names[1]] = _fields(event.kv.value)
        elif len(names) == (2 if kind in (SETTINGS, GUARDS) else 3):
            namespace, service, id_ = (*names, "")[:3]
            found = touched.setdefault((namespace, service, id_), _Touched(namespace, service, id_))
            found.events[kind] = event
    rows: list[ChangeRow] = []
    for (namespace, service, id_), found in sorted(touched.items()):
        note = notes.get((namespace, service), {})
        found.note = note if note.get("id") == id_ else {}
        rows += _rows(revision, found)
    return rows


def _rows(revision: int, touched: _Touched) -> Sequence[ChangeRow]:
    if not touched.id:
        found = (_settings_row(revision, touched), _guard_row(revision, touched))
        return [row for row in found if row is not None]
    name = f"{touched.service}/{touched.id}"
    what, by, at_ms, details = _told(touched)
    if not what:
        return ()
    return [ChangeRow(revision, at_ms, "instance", touched.namespace, name, what, by, details)]


def _told(touched: _Touched) -> tuple[str, str, int, dict[str, list[str]]]:
    """What, by whom, when, and the fields that differ; an empty first one for nothing."""
    if touched.deleted(RECORDS):
        note = touched.note
        reason = str(note.get("reason", ""))
        what = "reaped" if reason and reason != "deregistered" else "deregistered"
        details = {"reason": ["", _shown(reason)]} if what == "reaped" else {}
        return what, str(note.get("by", "")), _ms(note.get("at_ms")), details
    if touched.put(RECORDS):
        record = touched.since(RECORDS)
        details = _differences(touched.before(RECORDS), record)
        who = (str(record.get("changed_by", "")), _ms(record.get("changed_at_ms")))
        if not touched.was_there(RECORDS):
            return "registered", *who, details
        is_back = touched.put(ALIVE) and not touched.was_there(ALIVE)
        return ("came back" if is_back else "changed" if details else "registered again"), *who, details
    if touched.deleted(ALIVE):
        return "lapsed", "", 0, {}
    if touched.put(ALIVE):
        return ("" if touched.was_there(ALIVE) else "came back"), "", 0, {}
    if touched.put(HEALTH):
        health = touched.since(HEALTH)
        details = _differences(touched.before(HEALTH), {key: health.get(key) for key in ("passing", "output")})
        is_in_doubt = bool(_ms(health.get("doubt_since_ms")))
        what = ("in doubt" if is_in_doubt else "passing") if health.get("passing") else "failing"
        return what, str(health.get("checked_by", "")), _ms(health.get("changed_at_ms")), details
    return "", "", 0, {}


def _guard_row(revision: int, touched: _Touched) -> ChangeRow | None:
    """Who has taken the key away, and when, the store does not say."""
    if GUARDS not in touched.events:
        return None
    guard, is_put = touched.since(GUARDS), touched.put(GUARDS)
    if is_put and touched.was_there(GUARDS):
        return None
    return ChangeRow(
        revision, _ms(guard.get("at_ms")), "service", touched.namespace, touched.service,
        "protected" if is_put else "protection ended", str(guard.get("by", "")), {},
    )  # fmt: skip


def _settings_row(revision: int, touched: _Touched) -> ChangeRow | None:
    if SETTINGS not in touched.events:
        return None
    settings = touched.since(SETTINGS)
    what = "settings changed" if touched.put(SETTINGS) else "settings deleted"
    details = _differences(touched.before(SETTINGS), settings)
    return ChangeRow(
        revision, _ms(settings.get("changed_at_ms")), "service", touched.namespace, touched.service, what,
        str(settings.get("changed_by", "")), details,
    )  # fmt: skip


def _differences(before: Fields, since: Fields) -> dict[str, list[str]]:
    names = [name for name in (before.keys() | since.keys()) - NOT_TOLD if before.get(name) != since.get(name)]
    return {name: [_shown(before.get(name)), _shown(since.get(name))] for name in sorted(names)}


def _shown(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 1] + "…"


def _fields(value: bytes) -> Fields:
    try:
        return msgspec.json.decode(value, type=dict[str, Any]) if value else {}
    except msgspec.DecodeError:
        return {}


def _ms(found: object) -> int:
    return found if isinstance(found, int) and found >= 0 else 0
