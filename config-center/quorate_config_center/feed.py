"""The current documents in memory, and their fan-out to subscribers.

The follower (`follow.py`) loads the feed once and then applies the store's changes to it, in order. Each document is
encoded once a change; a subscriber is handed bytes.

A subscriber's life: its first event is a `snapshot`, or, when it resumes from a revision, a `delta` of all that has
changed since (or a `bookmark`, when nothing has). Then it holds the names that changed since its last event, newest
state wins, so that a slow reader costs no memory and never sees an outdated state. Deletions stay in the feed as the
store keeps them, so a resume works from any revision, however old, and needs no record of recent changes.

The feed never goes back: a state older than what it holds is not taken, and while the store is away it simply stands.
Only a store that was restored from a backup does, under revisions that are all newer: documents then have older
versions than somebody may have seen. Who resumes from before that, or was told something before it, gets a snapshot.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import structlog
from quorate_core.errors import TooManyRequests, Unavailable
from quorate_core.sse import encode_event
from quorate_store.model import Event, EventKind, WatchBatch

from quorate_config_center.model import (
    CURRENT_PREFIX,
    HISTORY_PREFIX,
    DocumentName,
    Head,
    StoredVersion,
    decode_head,
    decode_version,
    document,
    name_of_current,
    name_of_version,
)

SUBSCRIBERS_MAX = 20_000
KEYS_PER_SUBSCRIBER_MAX = 256
WAKES_A_TURN = 128
"""Subscribers woken in one turn of the event loop, some ten milliseconds of sending: a change that everybody watches
must not keep a node from its heartbeats."""

K = TypeVar("K")

log = structlog.get_logger(__name__)


class IncompleteChange(Exception):
    """A change came without its content: the feed has to be loaded again."""


@dataclass(frozen=True, slots=True)
class Published:
    """The newest version of a document, a deletion included. `encoded` is its ConfigDocument as JSON."""

    name: DocumentName
    stored: StoredVersion
    encoded: bytes

    @classmethod
    def of(cls, name: DocumentName, stored: StoredVersion) -> "Published":
        return cls(name, stored, document(name, stored).model_dump_json().encode())

    @property
    def head(self) -> Head:
        return self.stored.head

    @property
    def revision(self) -> int:
        return self.stored.revision


@dataclass(frozen=True, slots=True)
class Interest:
    """What a subscriber watches: `names` of one namespace, or all of it when None."""

    namespace: str
    names: frozenset[DocumentName] | None = None


class _Subscriber:
    """`pending`: names that changed since its last event; at most as many as it watches."""

    __slots__ = ("bookmark_due", "interest", "must_begin_anew", "pending", "sent_revision", "woken")

    def __init__(self, interest: Interest) -> None:
        self.interest = interest
        self.pending: set[DocumentName] = set()
        self.sent_revision = 0
        self.bookmark_due = False
        self.must_begin_anew = False
        self.woken = asyncio.Event()


class Feed:
    def __init__(self, subscribers_max: int = SUBSCRIBERS_MAX) -> None:
        self._subscribers_max = subscribers_max
        self._revision = 0
        self._restored_revision = 0
        self._documents: dict[str, dict[DocumentName, Published]] = defaultdict(dict)
        self._subscribers: set[_Subscriber] = set()
        self._by_name: dict[DocumentName, set[_Subscriber]] = defaultdict(set)
        self._by_namespace: dict[str, set[_Subscriber]] = defaultdict(set)
        self._to_wake: dict[_Subscriber, None] = {}
        self._progress = asyncio.Event()
        # Set, and replaced, whenever the revision moves.
        self._last_delta: tuple[int, frozenset[DocumentName], bytes] = (0, frozenset(), b"")

    @property
    def revision(self) -> int:
        """Everything up to it is in the feed; 0 until it was loaded."""
        return self._revision

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)

    def find(self, name: DocumentName) -> Published | None:
        """The newest version, a deletion included; None when the document never was."""
        return self._documents[name.namespace].get(name) if name.namespace in self._documents else None

    def listed(self, namespace: str) -> list[Published]:
        """The documents of `namespace` that exist, by name."""
        found = self._documents.get(namespace, {})
        return [found[name] for name in sorted(found) if not found[name].head.deleted]

    # What the follower tells it

    def load(self, revision: int, documents: Iterable[Published], restored_revision: int = 0) -> None:
        """Take the state as of `revision`; what is newer here already stays, unless it is of before the store was
        restored from a backup, with `restored_revision`."""
        self._restored_revision = restored_revision
        if 0 < self._revision < restored_revision:
            self._begin_anew()
        changed = [published.name for published in documents if self._take(published)]
        self._advance(revision)
        self._wake(changed)

    def _begin_anew(self) -> None:
        self._documents.clear()
        for subscriber in self._subscribers:
            subscriber.must_begin_anew = True
            subscriber.pending.clear()
        self._wake_in_turns(self._subscribers)

    def apply(self, batch: WatchBatch) -> None:
        """Take the changes of a batch; without events it is a bookmark, which all subscribers are told of.

        Raises IncompleteChange when a document's content is not in the batch.
        """
        contents = dict(_contents(batch.events))
        changed = []
        for event in batch.events:
            name, head = _changed_head(event)
            if name is None or head is None:
                continue
            content = contents.get((name, head.version))
            if content is None:
                raise IncompleteChange(f"{name} in version {head.version} came without its content")
            if self._take(Published.of(name, StoredVersion(head, content, event.kv.mod_revision))):
                changed.append(name)
        is_ahead = batch.revision > self._revision
        self._advance(batch.revision)
        if batch.events:
            self._wake(changed)
        elif is_ahead:
            self._wake_in_turns(self._subscribers)

    def _take(self, published: Published) -> bool:
        documents = self._documents[published.name.namespace]
        held = documents.get(published.name)
        if held is not None and held.revision >= published.revision:
            return False
        documents[published.name] = published
        return True

    def publish_bookmark(self) -> None:
        """Tell every subscriber that it has everything up to the feed's revision, also when that has not moved. The
        caller has seen that the feed is not behind the store."""
        for subscriber in self._subscribers:
            subscriber.bookmark_due = True
        self._wake_in_turns(self._subscribers)

    async def reach(self, revision: int) -> None:
        """Until the feed has everything up to `revision`."""
        while self._revision < revision:
            await self._progress.wait()

    def _advance(self, revision: int) -> None:
        if revision > self._revision:
            self._revision = revision
            self._progress.set()
            self._progress = asyncio.Event()

    def _wake(self, changed: Iterable[DocumentName]) -> None:
        for name in changed:
            for subscribers in (self._by_name.get(name, ()), self._by_namespace.get(name.namespace, ())):
                for subscriber in subscribers:
                    subscriber.pending.add(name)
                self._wake_in_turns(subscribers)

    def _wake_in_turns(self, subscribers: Iterable[_Subscriber]) -> None:
        is_waking = bool(self._to_wake)
        self._to_wake.update(dict.fromkeys(subscribers))
        if self._to_wake and not is_waking:
            asyncio.get_running_loop().call_soon(self._wake_some)

    def _wake_some(self) -> None:
        for subscriber in list(islice(self._to_wake, WAKES_A_TURN)):
            del self._to_wake[subscriber]
            subscriber.woken.set()
        if self._to_wake:
            asyncio.get_running_loop().call_soon(self._wake_some)

    # What subscribers are told

    def require_room(self) -> None:
        """Raises Unavailable until the feed is loaded, TooManyRequests when it has all the subscribers it may."""
        if self._revision == 0:
            raise Unavailable("this node has not yet read the documents from the store; ask another one, or again")
        if len(self._subscribers) >= self._subscribers_max:
            raise TooManyRequests(f"this node has {self._subscribers_max} subscribers already; ask another one")

    async def events(self, interest: Interest, since: int = 0) -> AsyncIterator[bytes]:
        """Encoded events, without end. `since`: the revision to resume from; 0 begins with a snapshot."""
        subscriber = self._admit(interest)
        try:
            yield self._first_event(subscriber, since)
            while True:
                await subscriber.woken.wait()
                subscriber.woken.clear()
                upcoming = self._next_event(subscriber)
                if upcoming is not None:
                    yield upcoming
        finally:
            self._dismiss(subscriber)

    def _admit(self, interest: Interest) -> _Subscriber:
        subscriber = _Subscriber(interest)
        self._subscribers.add(subscriber)
        if interest.names is None:
            self._by_namespace[interest.namespace].add(subscriber)
        else:
            for name in interest.names:
                self._by_name[name].add(subscriber)
        return subscriber

    def _dismiss(self, subscriber: _Subscriber) -> None:
        self._subscribers.discard(subscriber)
        self._to_wake.pop(subscriber, None)
        interest = subscriber.interest
        if interest.names is None:
            _discard(self._by_namespace, interest.namespace, subscriber)
        else:
            for name in interest.names:
                _discard(self._by_name, name, subscriber)

    def _first_event(self, subscriber: _Subscriber, since: int) -> bytes:
        subscriber.sent_revision = max(self._revision, since)
        if since < max(self._restored_revision, 1):
            return self._snapshot(subscriber)
        watched = self._watched(subscriber.interest)
        changed = [published for published in watched if published.revision > since]
        # A client that is ahead of this node is told what it knows already, and nothing older.
        return _encode("delta" if changed else "bookmark", subscriber.sent_revision, changed)

    def _snapshot(self, subscriber: _Subscriber) -> bytes:
        watched = self._watched(subscriber.interest)
        return _encode("snapshot", self._revision, [each for each in watched if not each.head.deleted])

    def _next_event(self, subscriber: _Subscriber) -> bytes | None:
        before, subscriber.sent_revision = subscriber.sent_revision, max(subscriber.sent_revision, self._revision)
        names = frozenset(subscriber.pending)
        subscriber.pending.clear()
        bookmark_due, subscriber.bookmark_due = subscriber.bookmark_due, False
        if subscriber.must_begin_anew:
            subscriber.must_begin_anew = False
            return self._snapshot(subscriber)
        # A client that is ahead of this node has seen what is not newer than its own revision.
        unseen = frozenset(name for name in names if self._documents[name.namespace][name].revision > before)
        if unseen:
            return self._delta(unseen)
        is_bookmark = bookmark_due or self._revision > before
        return _encode("bookmark", subscriber.sent_revision, ()) if is_bookmark else None

    def _delta(self, names: frozenset[DocumentName]) -> bytes:
        """Subscribers who watch the same are woken by the same change: it is put together once for all of them."""
        revision, cached_names, encoded = self._last_delta
        if (revision, cached_names) != (self._revision, names):
            changed = [self._documents[name.namespace][name] for name in sorted(names)]
            encoded = _encode("delta", self._revision, changed)
            self._last_delta = (self._revision, names, encoded)
        return encoded

    def _watched(self, interest: Interest) -> list[Published]:
        held = self._documents.get(interest.namespace, {})
        names = held if interest.names is None else interest.names
        return [held[name] for name in sorted(names) if name in held]


def _encode(event: str, revision: int, documents: Iterable[Published]) -> bytes:
    data = b'{"revision":%d' % revision
    if event != "bookmark":
        data += b',"documents":[' + b",".join(published.encoded for published in documents) + b"]"
    return encode_event(event, data + b"}", revision)


def _contents(events: Iterable[Event]) -> Iterable[tuple[tuple[DocumentName, int], str]]:
    for event in events:
        if event.kind is EventKind.PUT and event.kv.key.startswith(HISTORY_PREFIX):
            try:
                yield name_of_version(event.kv.key), decode_version(event.kv.value)[1]
            except ValueError:
                log.error("config_version_unreadable", key=event.kv.key)


def _changed_head(event: Event) -> tuple[DocumentName | None, Head | None]:
    if event.kind is not EventKind.PUT or not event.kv.key.startswith(CURRENT_PREFIX):
        return None, None  # history is swept; a head is never deleted
    try:
        return name_of_current(event.kv.key), decode_head(event.kv.value)
    except ValueError:
        log.error("config_head_unreadable", key=event.kv.key)
        return None, None


def _discard(index: dict[K, set[_Subscriber]], key: K, subscriber: _Subscriber) -> None:
    index[key].discard(subscriber)
    if not index[key]:
        del index[key]
