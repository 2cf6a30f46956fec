"""Subscribers get a snapshot, then what changes, newest state only; and can resume from any revision."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from quorate_config_center.feed import WAKES_A_TURN, Feed, IncompleteChange, Interest, Published
from quorate_config_center.model import (
    Change,
    DocumentName,
    Head,
    StoredVersion,
    current_key,
    encode_head,
    encode_version,
    next_deleted,
    next_published,
    version_key,
)
from quorate_core.errors import TooManyRequests, Unavailable
from quorate_sdk.wire import ConfigDelta, ConfigFormat, ConfigSnapshot
from quorate_store.model import Event, EventKind, KeyValue, WatchBatch

A, B = DocumentName("default", "order", "a"), DocumentName("default", "order", "b")
ELSEWHERE = DocumentName("other", "order", "a")
CHANGE = Change("ann", "", "2024-01-01T00:00:00.000Z")
ALL = Interest("default")


class Script:
    """Changes documents as a store would report it: one revision after the other."""

    def __init__(self, feed: Feed, revision: int = 1) -> None:
        self.feed = feed
        self.revision = revision
        self.heads: dict[DocumentName, Head] = {}
        feed.load(revision, ())

    def publish(self, name: DocumentName, content: str) -> None:
        head = next_published(self.heads.get(name), content.encode(), ConfigFormat.TEXT, CHANGE)
        assert head is not None
        self.feed.apply(self.batch(name, head, content))

    def delete(self, name: DocumentName) -> None:
        self.feed.apply(self.batch(name, next_deleted(name, self.heads[name], CHANGE), ""))

    def batch(self, name: DocumentName, head: Head, content: str) -> WatchBatch:
        self.heads[name] = head
        self.revision += 1
        rows = ((version_key(name, head.version), encode_version(head, content.encode())),
                (current_key(name), encode_head(head)))  # fmt: skip
        events = (Event(EventKind.PUT, KeyValue(key, value, 1, self.revision, 1)) for key, value in rows)
        return WatchBatch(self.revision, tuple(events))

    def bookmark(self, revisions: int = 1) -> None:
        self.revision += revisions
        self.feed.apply(WatchBatch(self.revision))


async def next_event(events: AsyncIterator[bytes]) -> tuple[str, dict[str, Any]]:
    """The event's name and data; its id is checked to be the revision in the data."""
    async with asyncio.timeout(5):
        fields = dict(line.split(": ", 1) for line in (await anext(events)).decode().splitlines() if line)
    data = json.loads(fields["data"])
    assert int(fields["id"]) == data["revision"]
    return fields["event"], data


def contents(data: dict[str, Any]) -> dict[str, str | None]:
    return {item["key"]: None if item["deleted"] else item["content"] for item in data["documents"]}


async def test_a_subscription_begins_with_a_snapshot_of_what_exists() -> None:
    feed = Feed()
    script = Script(feed)
    script.publish(A, "one")
    script.publish(B, "two")
    script.publish(ELSEWHERE, "three")
    script.delete(B)
    async with aclosing(feed.events(ALL)) as events:
        kind, data = await next_event(events)
    snapshot = ConfigSnapshot.model_validate(data)
    assert (kind, snapshot.revision) == ("snapshot", script.revision)
    assert contents(data) == {"a": "one"}


async def test_changes_follow_as_deltas_deletions_included() -> None:
    feed = Feed()
    script = Script(feed)
    async with aclosing(feed.events(ALL)) as events:
        await next_event(events)
        script.publish(A, "one")
        kind, data = await next_event(events)
        assert (kind, contents(data)) == ("delta", {"a": "one"})
        ConfigDelta.model_validate(data)
        script.delete(A)
        kind, data = await next_event(events)
        assert (kind, contents(data), data["revision"]) == ("delta", {"a": None}, script.revision)


async def test_a_slow_subscriber_gets_the_newest_state_of_each_document_once() -> None:
    feed = Feed()
    script = Script(feed)
    async with aclosing(feed.events(ALL)) as events:
        await next_event(events)
        for number in range(1_000):
            script.publish(A, f"content {number}")
        script.publish(B, "b")
        script.delete(B)
        kind, data = await next_event(events)
        assert (kind, contents(data), data["revision"]) == ("delta", {"a": "content 999", "b": None}, script.revision)
        script.publish(A, "last")
        assert contents((await next_event(events))[1]) == {"a": "last"}


async def test_a_subscriber_to_documents_hears_of_no_others() -> None:
    feed = Feed()
    script = Script(feed)
    async with aclosing(feed.events(Interest("default", frozenset({A})))) as events:
        await next_event(events)
        waiting = asyncio.ensure_future(anext(events))  # noqa: TID251 - awaited below
        script.publish(B, "not watched")
        script.publish(ELSEWHERE, "another namespace")
        await asyncio.sleep(0)
        assert not waiting.done()
        script.publish(A, "watched")
        assert b'"content":"watched"' in await waiting


async def test_a_watched_document_may_come_into_being_later() -> None:
    feed = Feed()
    script = Script(feed)
    async with aclosing(feed.events(Interest("default", frozenset({A})))) as events:
        assert contents((await next_event(events))[1]) == {}
        script.publish(A, "born")
        assert contents((await next_event(events))[1]) == {"a": "born"}


async def test_resuming_gives_what_has_changed_since_and_nothing_else() -> None:
    feed = Feed()
    script = Script(feed)
    script.publish(A, "one")
    seen = script.revision
    script.publish(B, "two")
    script.delete(B)
    async with aclosing(feed.events(ALL, since=seen)) as events:
        kind, data = await next_event(events)
    assert (kind, contents(data)) == ("delta", {"b": None})


async def test_resuming_with_nothing_changed_gives_a_bookmark() -> None:
    feed = Feed()
    script = Script(feed)
    script.publish(A, "one")
    script.bookmark(revisions=5)
    async with aclosing(feed.events(ALL, since=script.revision - 2)) as events:
        assert await next_event(events) == ("bookmark", {"revision": script.revision})


async def test_a_client_ahead_of_this_node_is_told_nothing_that_it_has_seen() -> None:
    feed = Feed()
    script = Script(feed)
    script.publish(A, "one")
    ahead = script.revision + 1
    async with aclosing(feed.events(ALL, since=ahead)) as events:
        assert await next_event(events) == ("bookmark", {"revision": ahead})
        script.publish(A, "seen at another node")
        script.publish(B, "not seen yet")
        kind, data = await next_event(events)
        assert (kind, contents(data), data["revision"]) == ("delta", {"b": "not seen yet"}, script.revision)


async def test_a_bookmark_reaches_those_whose_documents_stand_still() -> None:
    feed = Feed()
    script = Script(feed)
    async with aclosing(feed.events(ALL)) as events:
        await next_event(events)
        script.bookmark()
        assert await next_event(events) == ("bookmark", {"revision": script.revision})


async def test_loading_again_tells_subscribers_only_what_is_newer() -> None:
    feed = Feed()
    script = Script(feed)
    script.publish(A, "one")
    script.publish(B, "two")
    kept = feed.find(A)
    assert kept is not None
    newer = Published.of(B, StoredVersion(script.heads[B], "newer", script.revision + 10))
    async with aclosing(feed.events(ALL)) as events:
        await next_event(events)
        feed.load(script.revision + 20, [kept, newer])
        kind, data = await next_event(events)
        assert (kind, contents(data), data["revision"]) == ("delta", {"b": "newer"}, script.revision + 20)


async def test_the_feed_never_goes_back() -> None:
    feed = Feed()
    script = Script(feed)
    script.publish(A, "one")
    old = feed.find(A)
    assert old is not None
    script.publish(A, "two")
    feed.load(1, [old])
    found = feed.find(A)
    assert found is not None
    assert (found.stored.content, feed.revision) == ("two", script.revision)


def test_a_change_without_its_content_is_not_taken() -> None:
    feed = Feed()
    script = Script(feed)
    head = next_published(None, b"x", ConfigFormat.TEXT, CHANGE)
    assert head is not None
    whole = script.batch(A, head, "x")
    with pytest.raises(IncompleteChange):
        feed.apply(WatchBatch(whole.revision, whole.events[1:]))
    assert feed.find(A) is None


def test_swept_history_and_foreign_rows_change_nothing() -> None:
    feed = Feed()
    Script(feed)
    swept = Event(EventKind.DELETE, KeyValue(version_key(A, 1), b"", 0, 2, 0))
    odd = Event(EventKind.PUT, KeyValue(current_key(A), b"not a head", 2, 2, 1))
    odd_row = Event(EventKind.PUT, KeyValue(version_key(A, 1), b"not a row", 2, 2, 1))
    feed.apply(WatchBatch(2, (swept, odd, odd_row)))
    assert (feed.revision, feed.find(A)) == (2, None)


async def test_subscribers_that_leave_are_forgotten_and_their_number_is_bounded() -> None:
    feed = Feed(subscribers_max=2)
    with pytest.raises(Unavailable):
        feed.require_room()
    Script(feed)
    feed.require_room()
    async with aclosing(feed.events(ALL)) as one, aclosing(feed.events(Interest("default", frozenset({A})))) as two:
        await next_event(one)
        await next_event(two)
        assert feed.subscribers == 2
        with pytest.raises(TooManyRequests):
            feed.require_room()
    assert feed.subscribers == 0
    feed.require_room()


async def test_a_thousand_subscribers_share_the_bytes_of_a_change() -> None:
    feed = Feed()
    script = Script(feed)
    streams = [feed.events(Interest("default", frozenset({A}))) for _ in range(1_000)]
    for stream in streams:
        await anext(stream)
    script.publish(A, "pushed")
    events = [await anext(stream) for stream in streams]
    assert len({id(event) for event in events}) == 1
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]  # async generators have it


async def test_a_change_that_everybody_watches_leaves_the_loop_to_others_in_between() -> None:
    feed = Feed()
    script = Script(feed)
    streams = [feed.events(ALL) for _ in range(10 * WAKES_A_TURN)]
    for stream in streams:
        await anext(stream)
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]  # noqa: TID251 - awaited below
    await asyncio.sleep(0)
    script.publish(A, "pushed")
    told_in_a_turn = []
    async with asyncio.timeout(10):
        while not all(task.done() for task in waiting):
            before = sum(task.done() for task in waiting)
            await asyncio.sleep(0)
            told_in_a_turn.append(sum(task.done() for task in waiting) - before)
    assert max(told_in_a_turn) <= WAKES_A_TURN
    assert sum(told_in_a_turn) == len(streams)
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]  # async generators have it


async def test_a_bookmark_is_sent_also_when_the_revision_stands_still() -> None:
    feed = Feed()
    Script(feed)
    async with aclosing(feed.events(ALL)) as events:
        await next_event(events)
        for _ in range(2):
            feed.publish_bookmark()
            assert await next_event(events) == ("bookmark", {"revision": feed.revision})


def document(name: DocumentName, version: int, content: str, revision: int) -> Published:
    head = next_published(None, content.encode(), ConfigFormat.TEXT, CHANGE)
    assert head is not None
    return Published.of(name, StoredVersion(msgspec.structs.replace(head, version=version), content, revision))


async def test_who_resumes_from_before_a_restoration_gets_a_snapshot() -> None:
    """The document is older than what the client has seen, so that nothing seems to have changed since."""
    feed = Feed()
    feed.load(1_000, [document(A, 1, "as it was", 5)], restored_revision=900)
    for since in (5, 10, 899):
        async with aclosing(feed.events(ALL, since)) as events:
            kind, data = await next_event(events)
        assert (kind, contents(data)) == ("snapshot", {"a": "as it was"})
    async with aclosing(feed.events(ALL, 900)) as events:
        assert (await next_event(events))[0] == "bookmark"


async def test_a_store_that_is_restored_under_a_running_feed_is_told_anew_to_everybody() -> None:
    feed = Feed()
    script = Script(feed)
    script.publish(A, "one")
    script.publish(A, "two")
    script.publish(B, "not in the backup")
    async with aclosing(feed.events(ALL)) as events:
        await next_event(events)
        feed.load(1_000, [document(A, 1, "one", 2)], restored_revision=900)
        kind, data = await next_event(events)
        assert (kind, data["revision"], contents(data)) == ("snapshot", 1_000, {"a": "one"})
        script.revision = 1_000
        script.publish(A, "three")
        assert contents((await next_event(events))[1]) == {"a": "three"}
    # To be loaded again in the same life is no new beginning.
    async with aclosing(feed.events(ALL)) as events:
        await next_event(events)
        feed.load(1_001, [document(A, 1, "one", 2)], restored_revision=900)
        script.publish(B, "new")
        assert contents((await next_event(events))[1]) == {"b": "new"}
