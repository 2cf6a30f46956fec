"""`/v3/watch`: what is said of watches, in which order, and how streams end; through a real server and a real store."""

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from quorate_core.asgi import Protection, Surface, create_app
from quorate_core.errors import InvalidRequest, PayloadTooLarge
from quorate_core.settings import HostPort
from quorate_core.tasks import TaskOwner
from quorate_store.model import RANGE_ALL, DeleteOp, Event, EventKind, KeyValue, PutOp, WatchBatch, prefix_end
from quorate_store.raft_engine import RaftStore
from quorate_store.v3 import watch as watch_module
from quorate_store.v3.headers import Headers
from quorate_store.v3.json_messages import JsonMessages
from quorate_store.v3.watch import WatchEndpoints
from quorate_store.v3.watch_messages import ENCODED_BATCHES_MAX, RESPONSE_BYTES_MAX, EventEncoder, in_responses
from support.node_app import served
from support.store_local import local_store
from support.watch_streams import PATIENCE_S, WatchStream, b64, create, read_head, watch_stream

ANY = HostPort("127.0.0.1", 0)
CANCEL = {"cancel_request": {}}
PROGRESS: dict[str, Any] = {"progress_request": {}}


def surface_of(store: RaftStore, **options: Any) -> FastAPI:
    api = create_app(Surface("test", Protection.for_address(ANY, ANY, None)))
    WatchEndpoints(store, Headers(store, "cluster-of-the-test"), **options).mount(api)
    return api


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RaftStore]:
    async with local_store(tmp_path) as opened:
        yield opened


@pytest.fixture
async def url(store: RaftStore) -> AsyncIterator[str]:
    async with served(surface_of(store)) as found:
        yield found


@asynccontextmanager
async def opened(url: str, *requests: dict[str, Any] | bytes) -> AsyncIterator[WatchStream]:
    """A stream on which `requests` were said, and whose head is read."""
    async with watch_stream(url) as stream:
        await stream.say(*requests)
        status, headers = await read_head(stream)
        assert (status, headers["content-type"]) == (200, "application/json")
        yield stream


async def test_changes_are_told_as_they_happen(store: RaftStore, url: str) -> None:
    async with opened(url, create(b"a", prev_kv=True)) as stream:
        assert await stream.result() == {"created": True}
        assert stream.revision == 1
        await store.put(b"a", b"1")
        await store.put(b"b", b"not watched")
        await store.delete(b"a")
        first = {"key": b64(b"a"), "create_revision": "2", "mod_revision": "2", "version": "1", "value": b64(b"1")}
        assert await stream.result() == {"events": [{"kv": first}]}
        assert stream.revision == 2
        gone = {"key": b64(b"a"), "mod_revision": "4"}
        assert await stream.result() == {"events": [{"type": "DELETE", "kv": gone, "prev_kv": first}]}


async def test_previous_values_come_only_when_wanted(store: RaftStore, url: str) -> None:
    await store.put(b"a", b"1")
    async with opened(url, create(b"a")) as stream:
        await stream.result()
        await store.put(b"a", b"2")
        [event] = (await stream.result())["events"]
        assert set(event) == {"kv"}


async def test_a_stream_has_many_watches_with_the_ids_that_were_asked_for_or_the_next_free_ones(
    store: RaftStore, url: str
) -> None:
    requests = [create(b"a"), create(b"b", watch_id="1"), create(b"c"), create(b"d", watch_id=-7), create(b"e")]
    async with opened(url, b"".join(json.dumps(each).encode() + b"\n" for each in requests)) as stream:
        ids = [(await stream.result()).get("watch_id", "0") for _ in requests]
        assert ids == ["0", "1", "2", "-7", "3"]
        await store.txn([], [PutOp(key, b"x") for key in (b"a", b"b", b"c", b"d", b"e", b"f")])
        found = [await stream.result() for _ in requests]
        assert sorted(each.get("watch_id", "0") for each in found) == sorted(ids)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (create(b"b", b"a"), "mvcc: watcher range is empty"),
        (create(b"b", b"b"), "mvcc: watcher range is empty"),
        (create(b"z", watch_id=5), "mvcc: duplicate watch ID provided on the WatchStream"),
    ],
)
async def test_a_watch_that_cannot_be_is_canceled_as_it_is_created(
    url: str, request_: dict[str, Any], reason: str
) -> None:
    async with opened(url, create(b"a", watch_id=5), request_, create(b"c")) as stream:
        assert await stream.result() == {"watch_id": "5", "created": True}
        refused = {"watch_id": "-1", "created": True, "canceled": True, "cancel_reason": reason}
        assert await stream.result() == refused
        assert await stream.result() == {"created": True}


async def test_an_empty_key_is_the_lowest_and_ranges_are_as_everywhere(store: RaftStore, url: str) -> None:
    lowest: dict[str, Any] = {"create_request": {}}
    async with opened(url, lowest, create(b"m", RANGE_ALL), create(b"\0", RANGE_ALL)) as stream:
        for _ in range(3):
            await stream.result()
        await store.txn([], [PutOp(b"\0", b""), PutOp(b"a", b""), PutOp(b"z", b"")])
        found = {}
        for _ in range(3):
            result = await stream.result()
            found[result.get("watch_id", "0")] = [event["kv"]["key"] for event in result["events"]]
        assert found == {"0": [b64(b"\0")], "1": [b64(b"z")], "2": [b64(b"\0"), b64(b"a"), b64(b"z")]}


async def test_a_canceled_watch_is_silent_and_its_id_is_free_again(store: RaftStore, url: str) -> None:
    async with opened(url, create(b"a", watch_id=3), create(b"a")) as stream:
        assert [(await stream.result()).get("watch_id", "0") for _ in range(2)] == ["3", "0"]
        await stream.say({"cancel_request": {"watch_id": "3"}}, {"cancel_request": {"watch_id": 99}})
        assert await stream.result() == {"watch_id": "3", "canceled": True}
        await store.put(b"a", b"1")
        assert set(await stream.result()) == {"events"}
        await stream.say(create(b"a", watch_id=3), CANCEL)
        assert await stream.result() == {"watch_id": "3", "created": True}
        assert await stream.result() == {"canceled": True}


async def test_a_watch_from_the_past_tells_it_all_and_goes_on(store: RaftStore, url: str) -> None:
    for number in range(1200):  # more than the store reads of its history at once
        await store.put(b"k", b"%d" % number)
    async with opened(url, create(b"k", start_revision=2)) as stream:
        assert await stream.result() == {"created": True}
        assert stream.revision == 1201, "the header tells the store's revision"
        await store.put(b"k", b"1200")
        events = await stream.events(1201)
        assert [event["kv"]["value"] for event in events] == [b64(b"%d" % number) for number in range(1201)]


async def test_history_is_read_in_bounded_pieces_between_which_others_work(store: RaftStore) -> None:
    for _ in range(40):
        await store.put(b"k", bytes(1024 * 1024))
    events, reached = store._machine.events(2, b"k", b"", previous=False, rows_max=1_000)
    assert (len(events), reached) == (8, 9), "8 MiB at once"
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with TaskOwner("test") as tasks, store.watch(b"k", start_revision=2) as watch:
        tasks.start(count_turns(), "turns")
        seen = 0
        async for batch in watch:
            seen += len(batch.events)
            if seen == 40:
                break
    assert turns >= 4, "a reader that never waits lets others work too"


async def test_a_watch_from_the_future_waits_for_it(store: RaftStore, url: str) -> None:
    async with opened(url, create(b"k", start_revision="4")) as stream:
        assert await stream.result() == {"created": True}
        for number in range(4):
            await store.put(b"k", b"%d" % number)
        events = await stream.events(2)
        assert [event["kv"]["mod_revision"] for event in events] == ["4", "5"]


async def test_a_watch_from_before_a_compaction_is_canceled_and_the_others_go_on(store: RaftStore, url: str) -> None:
    for number in range(6):
        await store.put(b"k", b"%d" % number)
    await store.compact(4)
    async with opened(url, create(b"k", start_revision=4), create(b"k", start_revision=3)) as stream:
        first = [await stream.result() for _ in range(4)]
        assert {"watch_id": "1", "canceled": True, "compact_revision": "4"} in first
        assert {"watch_id": "1", "created": True} in first
        [told] = [each["events"] for each in first if "events" in each]
        assert [event["kv"]["mod_revision"] for event in told] == ["4", "5", "6", "7"]
        await store.put(b"k", b"more")
        assert "events" in await stream.result()


@pytest.mark.parametrize(
    ("filters", "kinds"),
    [
        ([], ["PUT", "DELETE"]),
        (["NOPUT"], ["DELETE"]),
        (["NODELETE"], ["PUT"]),
        ([0], ["DELETE"]),
        ([1], ["PUT"]),
        ([7], ["PUT", "DELETE"]),
    ],
)
async def test_filters_hold_back_what_is_not_wanted(
    store: RaftStore, url: str, filters: list[int | str], kinds: list[str]
) -> None:
    async with opened(url, create(b"a", filters=filters), create(b"end")) as stream:
        await stream.result()
        await stream.result()
        await store.txn([], [PutOp(b"a", b"1")])
        await store.delete(b"a")
        await store.put(b"end", b"")
        found: list[str] = []
        while True:
            result = await stream.result()
            if result.get("watch_id") == "1":
                break
            found += [event.get("type", "PUT") for event in result["events"]]
        assert found == kinds


async def test_progress_is_told_for_the_stream_behind_everything_that_it_stands_for(store: RaftStore, url: str) -> None:
    """One watch has much history to read yet when the question comes; the other one is in the present."""
    for number in range(2000):
        await store.put(b"k", b"%d" % number)
    requests = [create(b"other"), create(b"k", start_revision=2), PROGRESS, PROGRESS, PROGRESS]
    async with opened(url, b"".join(json.dumps(each).encode() for each in requests)) as stream:
        seen = 0
        for _ in range(2):
            await stream.result()
        progress: list[int] = []
        while not progress:
            result = await stream.result()
            if result.get("watch_id") == "-1":
                assert set(result) == {"watch_id"}
                progress.append(stream.revision)
            else:
                seen += len(result["events"])
        assert seen == 2000
        assert progress == [2001]
        assert await stream.result() == {"watch_id": "-1"}, "the other questions are answered too, by one more answer"


async def test_progress_without_a_watch_and_after_a_cancellation(store: RaftStore, url: str) -> None:
    await store.put(b"k", b"")
    async with opened(url, PROGRESS) as stream:
        assert await stream.result() == {"watch_id": "-1"}
        assert stream.revision == 2
        await stream.say(create(b"k"), PROGRESS, CANCEL, PROGRESS)
        assert await stream.result() == {"created": True}
        rest = [await stream.result() for _ in range(3)]
        assert sorted(map(str, rest)) == sorted(map(str, [{"watch_id": "-1"}, {"canceled": True}, {"watch_id": "-1"}]))


async def test_a_quiet_watch_that_wants_to_be_notified_is(store: RaftStore) -> None:
    async with (
        served(surface_of(store, progress_interval_s=0.01)) as url,
        opened(url, create(b"k", progress_notify=True), create(b"k")) as stream,
    ):
        for _ in range(2):
            await stream.result()
        await store.put(b"other", b"")
        for _ in range(3):
            assert await stream.result() == {}, "of the first watch alone, and without an event"
        assert stream.revision == 2


BAD_MESSAGES = [
    b"xyz",
    b"[]",
    b'{"create_request": 7}',
    b'{"create_request": {"key": "a?"}}',
    b'{"create_request": {"filters": ["NOX"]}}',
    b'{"create_request": {"start_revision": "x"}}',
    b'{"create_request": {"key": "YQ=="}',
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
]


@pytest.mark.parametrize("message", BAD_MESSAGES)
async def test_nonsense_is_a_clear_error_before_the_first_answer(url: str, message: bytes) -> None:
    async with watch_stream(url) as stream:
        await stream.say(message)
        stream.end_body()
        status, headers = await read_head(stream)
        assert (status, headers["content-type"]) == (400, "application/json")
        body = json.loads(await stream._reader.readexactly(int(headers["content-length"])))
        assert body["code"] == 3
        assert body["error"] == body["message"]


@pytest.mark.parametrize("message", BAD_MESSAGES)
async def test_nonsense_after_the_first_answer_ends_the_stream_with_an_error(url: str, message: bytes) -> None:
    async with opened(url, create(b"a")) as stream:
        await stream.result()
        await stream.say(message)
        stream.end_body()
        error = (await stream.line())["error"]
        assert (error["grpc_code"], error["http_code"], error["http_status"]) == (3, 400, "Bad Request")
        with pytest.raises(EOFError):
            await stream.line()


async def test_what_came_before_nonsense_is_answered(url: str) -> None:
    async with opened(url, json.dumps(create(b"a")).encode() + b"nonsense") as stream:
        assert await stream.result() == {"created": True}
        assert "error" in await stream.line()


async def test_a_message_that_asks_for_nothing_is_ignored(url: str) -> None:
    async with opened(url, b"{}", {"create_request": None}, b'{"foo": {"bar": 1}}', create(b"a")) as stream:
        assert await stream.result() == {"created": True}


async def test_the_stores_end_ends_the_stream_with_an_error_to_try_elsewhere(store: RaftStore, url: str) -> None:
    async with opened(url, create(b"a")) as stream:
        await stream.result()
        await store.close()
        assert (await stream.line())["error"]["grpc_code"] == 14
        with pytest.raises(EOFError):
            await stream.line()
    async with watch_stream(url) as stream:
        await stream.say(create(b"a"))
        await read_head(stream)
        refused = await stream.result()
        assert (refused["canceled"], refused["watch_id"]) == (True, "-1")
        assert "closing" in refused["cancel_reason"]


async def test_a_client_that_goes_leaves_no_watch_behind(store: RaftStore, url: str) -> None:
    async with opened(url, create(b"a"), create(b"b")) as stream:
        await stream.result()
        await stream.result()
        assert len(store._feed) == 2
    async with asyncio.timeout(PATIENCE_S):
        while len(store._feed):  # noqa: ASYNC110 - the server has to hear of it first
            await asyncio.sleep(0)


async def test_a_stream_may_have_a_thousand_watches(store: RaftStore, url: str) -> None:
    count = 1000
    body = b"".join(json.dumps(create(b"k%d" % number, watch_id=number + 1)).encode() for number in range(count))
    async with opened(url, body) as stream:
        assert [(await stream.result())["watch_id"] for _ in range(count)] == [str(at + 1) for at in range(count)]
        for first in range(0, count, 100):
            await store.txn([], [PutOp(b"k%d" % number, b"") for number in range(first, first + 100)])
        found = [(await stream.result()) for _ in range(count)]
        assert {(each["watch_id"], each["events"][0]["kv"]["key"]) for each in found} == {
            (str(number + 1), b64(b"k%d" % number)) for number in range(count)
        }


async def test_a_stream_has_a_limit_of_watches(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "WATCHES_MAX", 2)
    async with opened(url, create(b"a"), create(b"b"), create(b"c")) as stream:
        assert [(await stream.result()).get("canceled", False) for _ in range(3)] == [False, False, True]


async def test_a_reader_that_sleeps_misses_nothing(store: RaftStore, url: str) -> None:
    """Far more is written than all buffers on the way hold, while the client reads nothing."""
    value = b"v" * 20_000
    async with watch_stream(url, pauses=True) as stream:
        await stream.say(create(b"k"))
        await read_head(stream)
        await stream.result()
        for number in range(1500):
            await store.put(b"k", b"%d " % number + value)
        events = await stream.events(1500)
        assert [int(event["kv"]["mod_revision"]) for event in events] == list(range(2, 1502))


async def test_a_reader_that_sleeps_over_a_compaction_is_told(store: RaftStore, url: str) -> None:
    value = b"v" * 20_000
    async with watch_stream(url, pauses=True) as stream:
        await stream.say(create(b"k"))
        await read_head(stream)
        await stream.result()
        for _ in range(1500):
            await store.put(b"k", value)
        await store.compact(1501)
        seen = 1
        while True:
            result = await stream.result()
            if result.get("canceled"):
                assert result == {"canceled": True, "compact_revision": "1501"}
                break
            for event in result["events"]:
                assert int(event["kv"]["mod_revision"]) == seen + 1, "in order, up to where it is told"
                seen += 1
        assert 1 < seen < 1501


@pytest.mark.parametrize("seed", range(3))
async def test_every_watcher_sees_the_log_of_its_range(store: RaftStore, url: str, seed: int) -> None:
    """Watches begin between the writes, at any revision; each gets what the history of the store says."""
    await _fill(store, seed, 40)
    ranges = [(b"a/", prefix_end(b"a/")), (b"b/1", b""), (b"\0", RANGE_ALL), (b"a/2", b"b/2")]
    async with opened(
        url, *[create(key, end, start_revision=1 + at * 9) for at, (key, end) in enumerate(ranges)]
    ) as stream:
        await _fill(store, seed + 100, 40)
        await stream.say(PROGRESS)
        found: dict[int, list[tuple[str, str]]] = {at: [] for at in range(len(ranges))}
        while True:
            result = await stream.result()
            if result.get("watch_id") == "-1":
                break
            told = found[int(result.get("watch_id", "0"))]
            told += [(event["kv"]["key"], event["kv"]["mod_revision"]) for event in result.get("events", ())]
        assert stream.revision == (await store.status()).revision
    for at, (key, end) in enumerate(ranges):
        assert found[at] == await _history(store, key, end, max(1, 1 + at * 9), stream.revision)


async def _fill(store: RaftStore, seed: int, count: int) -> None:
    keys = [b"a/1", b"a/2", b"b/1", b"c"]
    for number in range(count):
        key = keys[(number * 7 + seed) % 4]
        if (number + seed) % 3:
            await store.put(key, b"%d" % number)
        else:
            await store.txn([], [DeleteOp(key), PutOp(keys[(number + 1) % 4] + b"x", b"")])


async def _history(store: RaftStore, key: bytes, end: bytes, start: int, last: int) -> list[tuple[str, str]]:
    events, reached = store._machine.events(start, key, end, previous=False, rows_max=10_000)
    assert reached == last
    return [(b64(event.kv.key), str(event.kv.mod_revision)) for event in events]


@pytest.mark.skipif(
    importlib.util.find_spec("websockets") is None, reason="the library for WebSockets is not installed"
)
async def test_the_same_over_a_websocket(store: RaftStore, url: str) -> None:
    from websockets.asyncio.client import connect

    async with asyncio.timeout(PATIENCE_S), connect(url.replace("http", "ws") + "/v3/watch") as socket:

        async def ask(message: dict[str, Any]) -> dict[str, Any]:
            await socket.send(json.dumps(message))
            found: dict[str, Any] = json.loads(await socket.recv())["result"]
            return found

        assert (await ask(create(b"a")))["created"]
        assert (await ask(PROGRESS))["watch_id"] == "-1"
        await store.put(b"a", b"1")
        assert json.loads(await socket.recv())["result"]["events"][0]["kv"]["value"] == b64(b"1")
        assert (await ask(CANCEL))["canceled"]
        await socket.send("nonsense")
        assert json.loads(await socket.recv())["error"]["grpc_code"] == 3


def batch_of(*sizes: tuple[int, int]) -> WatchBatch:
    """Events as (revision, bytes of value)."""
    events = tuple(Event(EventKind.PUT, KeyValue(b"k", bytes(size), revision, revision, 1)) for revision, size in sizes)
    return WatchBatch(events[-1].kv.mod_revision, events)


def test_a_large_batch_is_divided_between_revisions_or_anywhere_for_those_who_want_fragments() -> None:
    half = RESPONSE_BYTES_MAX // 2
    batch = batch_of((2, half), (3, half), (3, half), (3, half), (4, 10))

    def divided(*, fragment: bool) -> list[tuple[list[int], bool]]:
        parts = in_responses(batch, fragment=fragment)
        return [([event.kv.mod_revision for event in part.events], is_cut) for part, is_cut in parts]

    assert divided(fragment=False) == [([2], False), ([3, 3, 3], False), ([4], False)]
    assert divided(fragment=True) == [([2], False), ([3], True), ([3], True), ([3, 4], False)]
    assert [part.revision for part, _ in in_responses(batch, fragment=False)] == [2, 3, 4]


def test_a_batch_is_encoded_once_for_all_and_not_kept_for_ever() -> None:
    encoder = EventEncoder()
    batch = batch_of((2, 10))
    [first] = encoder.encode(batch, fragment=False)
    [again] = encoder.encode(batch, fragment=False)
    assert again is first
    for revision in range(3, 3 + 2 * ENCODED_BATCHES_MAX):
        list(encoder.encode(batch_of((revision, 10)), fragment=False))
    assert len(encoder._kept) == ENCODED_BATCHES_MAX
    [later] = encoder.encode(batch, fragment=False)
    assert (later == first, later is first) == (True, False)


TEXTS = st.text(alphabet='"\\{}[]ß ', max_size=5)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(TEXTS, JSON_VALUES, max_size=3)


@given(objects=st.lists(OBJECTS, max_size=5), cuts=st.lists(st.integers(1, 20)), ascii_only=st.booleans())
def test_a_body_is_cut_into_its_messages_however_it_comes(
    objects: list[dict[str, Any]], cuts: list[int], *, ascii_only: bool
) -> None:
    body = b" \n".join(json.dumps(each, ensure_ascii=ascii_only).encode() for each in objects) + b"\r\n"
    messages = JsonMessages()
    found: list[bytes] = []
    for size in [*cuts, len(body)]:
        found += messages.feed(body[:size])
        body = body[size:]
    messages.require_complete()
    assert [json.loads(message) for message in found] == objects


@given(data=st.binary(max_size=50) | st.text(alphabet='{}[]"\\ a', max_size=30).map(str.encode))
def test_no_body_is_kept_over_the_limit_and_nothing_but_a_clear_error_comes_of_it(data: bytes) -> None:
    messages = JsonMessages(message_bytes_max=20)
    try:
        for byte in data:
            for message in messages.feed(bytes([byte])):
                assert len(message) <= 20
        messages.require_complete()
    except (InvalidRequest, PayloadTooLarge):
        return
    assert not data.strip() or data.strip().startswith((b"{", b"["))
