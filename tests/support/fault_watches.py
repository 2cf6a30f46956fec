"""Watchers that go on whatever happens to the nodes, writers that give them something to see, and a judge.

A watcher has one `/v3/watch` stream at a time. When that breaks, or says nothing for a while, or just so, it goes to
another node and asks for what comes after the last thing that it knows. What it was told goes into its log as it came.
The judge compares each log with the history of the store, which is read by ranges at each revision, so that no part of
what serves watches has a say in it: all events of the range, in order, once, whole, with the values from before if they
were asked for; what a progress notification promises holds; and the one reason to have missed anything is compaction.
"""

import base64
import json
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx
from support import plain_http
from support.fault_clients import Outcome, ask
from support.node_processes import until
from support.nonsense import Wire, chunk_of, chunked, wire

GROUPS = ("a", "b", "c")
KEYS_A_GROUP = 5
WRITERS = 3
WRITE_PAUSE_S = 0.02
CALL_S_MAX = 3.0
QUIET_S_MIN, QUIET_S_MAX = 1.5, 12.0
"""Without a word for so long, a watcher asks another node: it cannot tell a quiet store from a stopped node. Each time
that this has brought it nothing, it has twice the patience: on a busy machine, asking anew only makes more work."""
RETRY_PAUSE_S = 0.1
SLOW_PAUSE_S = 0.05
SLOW_RECEIVE_BYTES = 64 * 1024
"""As much as one segment of loopback has: with less, the kernel itself stalls now and then, for seconds."""
RESTLESS_LINES = 15
PROGRESS_LINES = 7
"""So many lines after each other, a watcher asks how far it is."""
STOP_S_MAX = 90.0
HISTORY_REVISIONS_A_CALL = 50
BURST_TXNS, BURST_KEYS, BURST_VALUE_BYTES = 40, 100, 800
FAULTS_SHOWN_MAX = 5
NEVER = sys.maxsize
"""A revision behind all others."""


class Event(NamedTuple):
    """`previous`: the value from before, None where there was none or it was not asked for."""

    revision: int
    key: bytes
    is_deletion: bool
    value: bytes
    version: int
    create_revision: int
    previous: bytes | None


@dataclass(frozen=True)
class Events:
    """Those of one line."""

    events: tuple[Event, ...]


@dataclass(frozen=True)
class Progress:
    """Everything up to `revision` was told."""

    revision: int


@dataclass(frozen=True)
class Lost:
    """What was wanted, from `wanted` on, is compacted; it goes on at `compact_revision`."""

    wanted: int
    compact_revision: int


Entry = Events | Progress | Lost


@dataclass(frozen=True)
class Watched:
    """What a watcher watches, and how. `is_slow`: it takes its time between lines, and has small buffers;
    `is_restless`: it goes to another node now and then, for no reason; `starts_now`: it names no revision."""

    key: bytes
    range_end: bytes = b""
    wants_previous: bool = False
    is_slow: bool = False
    is_restless: bool = False
    starts_now: bool = False

    def covers(self, key: bytes) -> bool:
        return self.key <= key < self.range_end if self.range_end else key == self.key


class History:
    """All events below `prefix`, by revision, from ranges at each of them. Read what compaction is about to forget
    before it does."""

    def __init__(self, prefix: bytes, after: int) -> None:
        self._prefix = prefix
        self.through = after
        self._present: dict[bytes, bytes] = {}
        self.revisions: list[int] = []
        self._events: list[list[Event]] = []
        """At each of `revisions`."""
        self.compactions: set[int] = set()

    def extend(self, http: httpx.Client, url: str, through: int) -> None:
        """Read on, up to and with `through`, at a node that answers."""
        while self.through < through:
            revisions = range(self.through + 1, min(self.through + HISTORY_REVISIONS_A_CALL, through) + 1)
            answers = iter(self._ask(http, url, revisions))
            for revision in revisions:
                changed, present = next(answers), next(answers)
                self._add(revision, changed, {_bytes(kv["key"]) for kv in present})
            self.through = revisions[-1]

    def events(self, revision: int, watched: Watched) -> list[Event]:
        """At `revision`, as such a watcher is told of them; sorted, as a range says nothing of their order."""
        at = bisect_left(self.revisions, revision)
        found = [event for event in self._events[at] if watched.covers(event.key)]
        return sorted(found if watched.wants_previous else [event._replace(previous=None) for event in found])

    def relevant(self, watched: Watched) -> list[int]:
        """The revisions with something for such a watcher."""
        touched = zip(self.revisions, self._events, strict=True)
        return [revision for revision, events in touched if any(watched.covers(event.key) for event in events)]

    def value_at(self, revision: int, key: bytes) -> bytes | None:
        """What was put there then; None when nothing was."""
        found = list(self.events(revision, Watched(key))) if revision in set(self.revisions) else []
        return found[0].value if found and not found[0].is_deletion else None

    def _ask(self, http: httpx.Client, url: str, revisions: range) -> Iterator[list[dict[str, str]]]:
        whole = {"key": _text(self._prefix), "range_end": _text(end_of(self._prefix))}
        operations = []
        for revision in revisions:
            at = {**whole, "revision": str(revision)}
            operations += [{**at, "min_mod_revision": str(revision)}, {**at, "keys_only": True}]
        body = {"success": [{"request_range": operation} for operation in operations]}
        answer = http.post(url + "/v3/kv/txn", json=body)
        assert answer.is_success, answer.text
        for response in answer.json()["responses"]:
            yield response["response_range"].get("kvs", [])

    def _add(self, revision: int, changed: list[dict[str, str]], present: set[bytes]) -> None:
        events = [_event(kv, is_deletion=False, previous=self._present.get(_bytes(kv["key"]))) for kv in changed]
        assert all(event.revision == revision for event in events), f"{revision}: {events}"
        events += [
            Event(revision, key, True, b"", 0, 0, value) for key, value in self._present.items() if key not in present
        ]
        for event in events:
            if event.is_deletion:
                del self._present[event.key]
            else:
                self._present[event.key] = event.value
        assert set(self._present) == present, f"at {revision} there is {present}"
        if events:
            self.revisions.append(revision)
            self._events.append(events)


def judge(watched: Watched, start: int, log: Sequence[Entry], history: History) -> list[str]:
    """What is wrong with what a watcher was told that wanted everything from `start` on; empty if nothing is."""
    relevant = history.relevant(watched)
    wanted = start
    for entry in log:
        following = _first_from(wanted, relevant)
        if isinstance(entry, Lost):
            is_right = entry.wanted == wanted < entry.compact_revision and entry.compact_revision in history.compactions
            if not is_right:
                return [f"{entry}, when {wanted} was wanted, and {history.compactions} compacted"]
            wanted = entry.compact_revision
        elif isinstance(entry, Progress):
            if following <= entry.revision:
                return [f"{entry}, when the events of {following} were not told"]
            wanted = max(wanted, entry.revision + 1)
        else:
            for revision, told in by_revision(entry.events):
                if revision != following:
                    return [f"events of {revision}, when those of {following} were next"]
                expected = history.events(revision, watched)
                if revision in history.compactions:
                    expected = without_forgotten(expected, told)
                if wrong := _wrong_with(told, expected):
                    return [wrong]
                wanted = revision + 1
                following = _first_from(wanted, relevant)
    missing = _first_from(wanted, relevant)
    return [f"the events of {missing} never came"] if missing != NEVER else []


def without_forgotten(expected: Sequence[Event], told: Sequence[Event]) -> list[Event]:
    """At the revision up to which history is compacted, the values from before it may be forgotten, as in etcd."""
    lacking = {event.key for event in told if event.previous is None}
    return [event._replace(previous=None) if event.key in lacking else event for event in expected]


def _wrong_with(told: list[Event], expected: list[Event]) -> str:
    """Of what was told of one revision; `expected` is sorted."""
    if sorted(told) != expected:
        return f"it was told {told}, and there was {expected}"
    if not is_in_order_of_operations(told):
        return f"it was told {told}, in another order than that of the operations"
    return ""


def _first_from(wanted: int, relevant: Sequence[int]) -> int:
    at = bisect_left(relevant, wanted)
    return relevant[at] if at < len(relevant) else NEVER


def by_revision(events: Sequence[Event]) -> list[tuple[int, list[Event]]]:
    """Neighbours of the same revision."""
    found: list[tuple[int, list[Event]]] = []
    for event in events:
        if not found or found[-1][0] != event.revision:
            found.append((event.revision, []))
        found[-1][1].append(event)
    return found


def is_in_order_of_operations(events: Sequence[Event]) -> bool:
    """Values end with the number of the operation in its transaction."""
    numbers = [int(event.value.rpartition(b".")[2]) for event in events if not event.is_deletion]
    return numbers == sorted(numbers)


class Watcher:
    """One thread. `wanted` is the revision from which on it does not know yet."""

    def __init__(self, load: "WatchLoad", number: int, watched: Watched, start: int) -> None:
        self.watched = watched
        self.start = 0 if watched.starts_now else start
        self.log: list[Entry] = []
        self.wanted = self.start
        self.streams = 0
        self.surprises: list[str] = []
        self._patience_s = QUIET_S_MIN
        self.may_rest = threading.Event()
        """Set at the end, when whoever was slow reads on as fast as it can."""
        self._load = load
        self._number = number
        self._random = Random(f"{load.seed} watcher {number}")
        self._goal: int | None = None
        self.thread = threading.Thread(target=self._run, name=f"watcher {number}", daemon=True)

    def is_begun(self) -> bool:
        return self.wanted > 0

    def follow_to(self, revision: int) -> None:
        """End once everything up to `revision`, its last event, is known."""
        self._goal = revision
        self.may_rest.set()

    def _run(self) -> None:
        urls = list(self._load.urls.values())
        at = self._number
        while not self._is_done():
            wanted = self.wanted
            try:
                self._stream(urls[at % len(urls)])
            except (OSError, EOFError, ValueError) as error:
                if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
                    self.surprises.append(repr(error))
                    return
                self._load.stopping.wait(RETRY_PAUSE_S)
            at += self._random.choice((1, 2))
            self._patience_s = QUIET_S_MIN if self.wanted > wanted else min(QUIET_S_MAX, 2 * self._patience_s)

    def _is_done(self) -> bool:
        return self._load.aborting.is_set() or (self._goal is not None and self.wanted > self._goal)

    def _stream(self, url: str) -> None:
        """Until it breaks, says nothing, or the watcher has had enough of it. Raises OSError and EOFError."""
        with wire(url, SLOW_RECEIVE_BYTES if self.watched.is_slow else None) as client:
            client.socket.settimeout(self._patience_s)
            fields = [f"{name}: {value}".encode() for name, value in self._load.headers.items()]
            client.send(chunked("/v3/watch", self._create(), fields=fields))
            head = client.head()
            if head.status in (429, 503, 504):
                return
            if head.status != 200:
                raise ValueError(f"{head}")
            self.streams += 1
            for count, result in enumerate(_results(client), 1):
                if not self._take(result) or self._is_done():
                    return
                if count % PROGRESS_LINES == 0:
                    client.send(chunk_of(b'{"progress_request":{}}'))
                if self.watched.is_slow and not self.may_rest.is_set():
                    self._load.stopping.wait(SLOW_PAUSE_S)
                if self.watched.is_restless and count >= RESTLESS_LINES and not self.may_rest.is_set():
                    return

    def _create(self) -> bytes:
        fields: dict[str, Any] = {"key": _text(self.watched.key), "prev_kv": self.watched.wants_previous}
        if self.watched.range_end:
            fields["range_end"] = _text(self.watched.range_end)
        if self.wanted:
            fields["start_revision"] = str(self.wanted)
        return json.dumps({"create_request": fields}).encode()

    def _take(self, result: dict[str, Any]) -> bool:
        """Log what was told; False when the stream has no more to say to us."""
        revision = int(result["header"].get("revision", 0))
        if result.get("canceled"):
            compact_revision = int(result.get("compact_revision", 0))
            if not compact_revision:
                raise ValueError(f"{result}")
            self.log.append(Lost(self.wanted, compact_revision))
            self.wanted = compact_revision
            return False
        if result.get("created"):
            if not self.wanted:
                self.start = self.wanted = revision + 1
        elif "events" in result:
            events = tuple(_event_of(event) for event in result["events"])
            self.log.append(Events(events))
            self.wanted = events[-1].revision + 1
        else:
            self.log.append(Progress(revision))
            self.wanted = max(self.wanted, revision + 1)
        return True


class Writer:
    """One thread that puts, deletes, and does several of these at once, going on at another node when one fails."""

    def __init__(self, load: "WatchLoad", number: int) -> None:
        self._load = load
        self._number = number
        self._random = Random(f"{load.seed} writer {number}")
        self._written = 0
        self.acknowledged: list[tuple[int, bytes, bytes]] = []
        """Revision, key and value of what was put."""
        self.surprises: list[str] = []
        self.thread = threading.Thread(target=self._run, name=f"writer {number}", daemon=True)

    def _run(self) -> None:
        urls = list(self._load.urls.values())
        at = self._number
        with plain_http.client(headers=self._load.headers, timeout=CALL_S_MAX) as http:
            while not self._load.stopping.is_set():
                puts, operations = self._draw()
                reply = ask(http, "POST", urls[at % len(urls)] + "/v3/kv/txn", json={"success": operations})
                if reply.outcome is Outcome.DONE:
                    revision = int(reply.body["header"]["revision"])
                    self.acknowledged += [(revision, key, value) for key, value in puts.items()]
                elif reply.outcome is Outcome.SURPRISE:
                    self.surprises.append(f"{reply.body!r}")
                at += reply.outcome is not Outcome.DONE
                self._load.stopping.wait(WRITE_PAUSE_S)

    def _draw(self) -> tuple[dict[bytes, bytes], list[dict[str, Any]]]:
        """Puts of different keys, or one deletion."""
        draw = self._random.random()
        if draw < 0.1:
            return {}, [delete_of(self._random.choice(self._load.keys))]
        if draw < 0.13:
            group = self._load.prefix + self._random.choice(GROUPS).encode()
            return {}, [delete_of(group, end_of(group))]
        self._written += 1
        keys = self._random.sample(self._load.keys, self._random.choice((1, 1, 1, 2, 5)))
        puts = {key: b"%d.%d.%d" % (self._number, self._written, at) for at, key in enumerate(keys)}
        return puts, [put_of(key, value) for key, value in puts.items()]


class WatchLoad:
    """Use as a context manager: inside it, writers write and watchers watch. `judge` after it."""

    def __init__(self, urls: Mapping[str, str], headers: Mapping[str, str], label: str, seed: int) -> None:
        self.urls = dict(urls)
        self.headers = dict(headers)
        self.label = label
        self.seed = seed
        self.prefix = f"{label}/".encode()
        self.keys = [f"{label}/{group}/{number}".encode() for group in GROUPS for number in range(KEYS_A_GROUP)]
        self.stopping = threading.Event()
        self.aborting = threading.Event()
        self._http = plain_http.client(headers=self.headers, timeout=CALL_S_MAX)
        self.history = History(self.prefix, self._present_revision())
        start = self.history.through + 1
        ranges = watched_ranges(self.prefix)
        self.watchers = [Watcher(self, number, watched, start) for number, watched in enumerate(ranges)]
        self.writers = [Writer(self, number) for number in range(WRITERS)]

    def __enter__(self) -> Self:
        for watcher in self.watchers:
            watcher.thread.start()
        until("all watchers have begun", lambda: all(watcher.is_begun() for watcher in self.watchers))
        for writer in self.writers:
            writer.thread.start()
        self.wait_for_writes(WRITERS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        for writer in self.writers:
            writer.thread.join(STOP_S_MAX)
        if error is not None:
            self._end()

    def wait_for_writes(self, more: int, within_s: float = 30.0) -> None:
        """Until so many further transactions with puts are acknowledged, by whichever node."""
        target = self._acknowledged() + more
        until(f"{more} more writes", lambda: self._acknowledged() >= target, within_s)

    def run_for(self, seconds: float) -> None:
        """Let everybody go on for so long: the length of a fault is a part of it."""
        self.stopping.wait(seconds)

    def burst(self) -> None:
        """More than a stream keeps for a reader that is slow, within a moment; what is deleted again is history too."""
        keys = [self.prefix + b"burst/%03d" % number for number in range(BURST_KEYS)]
        for count in range(BURST_TXNS):
            operations = [
                put_of(key, b"x" * BURST_VALUE_BYTES + b".%d.%d" % (count, at)) for at, key in enumerate(keys)
            ]
            until("a burst is written", lambda operations=operations: self._txn(operations))
        until("the burst is deleted", lambda: self._txn([delete_of(keys[0], end_of(self.prefix + b"burst/"))]))

    def compact(self) -> int:
        """Forget all that is past, once the judge has read it; returns up to where."""
        revision = until("the present revision", self._present_revision)
        until("history is read", lambda: self._read_history(revision))

        def is_compacted() -> bool:
            body = {"revision": str(revision)}
            replies = [ask(self._http, "POST", url + "/v3/kv/compaction", json=body) for url in self.urls.values()]
            said = [reply.body.get("message", "") for reply in replies if isinstance(reply.body, dict)]
            return any(reply.outcome is Outcome.DONE for reply in replies) or any("compacted" in text for text in said)

        self.history.compactions.add(revision)
        until(f"history up to {revision} is compacted", is_compacted)
        return revision

    def judge(self) -> str:
        """Let all watchers come to the end of history; fail unless each was told all of it. Returns what it was."""
        try:
            last = until("the present revision", self._present_revision)
            until("history is read", lambda: self._read_history(last), STOP_S_MAX)
            for watcher in self.watchers:
                relevant = self.history.relevant(watcher.watched)
                watcher.follow_to(relevant[-1] if relevant else 0)
            deadline_s = time.monotonic() + STOP_S_MAX
            for watcher in self.watchers:
                watcher.thread.join(max(0.0, deadline_s - time.monotonic()))
        finally:
            self._end()
        self._require_right()
        told = sum(len(entry.events) for one in self.watchers for entry in one.log if isinstance(entry, Events))
        streams = sum(watcher.streams for watcher in self.watchers)
        lost = sum(isinstance(entry, Lost) for watcher in self.watchers for entry in watcher.log)
        promised = sum(isinstance(entry, Progress) for watcher in self.watchers for entry in watcher.log)
        return (
            f"{self.label}: {told} events of {len(self.history.revisions)} revisions told to {len(self.watchers)} "
            f"watchers by {streams} streams, each once and in order; {promised} promises of progress kept, "
            f"{lost} times compacted"
        )

    def faults(self) -> list[str]:
        """What is wrong with what any watcher was told, or with what history has."""
        found = [f"{one.thread.name}: {text}" for one in (*self.watchers, *self.writers) for text in one.surprises]
        for watcher in self.watchers:
            wrong = judge(watcher.watched, watcher.start, watcher.log, self.history)
            found += [f"{watcher.thread.name}, {watcher.watched}: {text}" for text in wrong]
        for writer in self.writers:
            for revision, key, value in writer.acknowledged:
                if self.history.value_at(revision, key) != value:
                    found.append(f"{value!r} was put at {key!r}, acknowledged at {revision}, and is not in history")
        return found

    def _require_right(self) -> None:
        faults = self.faults()
        assert not faults, f"seed {self.seed}: {len(faults)} faults: {faults[:FAULTS_SHOWN_MAX]}"

    def _end(self) -> None:
        self.aborting.set()
        self.stopping.set()
        for one in (*self.watchers, *self.writers):
            one.thread.join(STOP_S_MAX)
            assert not one.thread.is_alive(), f"{one.thread.name} does not end"
        self._http.close()

    def _acknowledged(self) -> int:
        return sum(len(writer.acknowledged) for writer in self.writers)

    def _present_revision(self) -> int:
        """Linearizable; 0 when nobody answers."""
        for url in self.urls.values():
            reply = ask(self._http, "POST", url + "/v3/kv/range", json={"key": _text(self.prefix), "count_only": True})
            if reply.outcome is Outcome.DONE:
                return int(reply.body["header"]["revision"])
        return 0

    def _read_history(self, through: int) -> bool:
        """At whichever node answers."""
        for url in self.urls.values():
            try:
                self.history.extend(self._http, url, through)
            except (httpx.HTTPError, AssertionError):
                continue
            return True
        return False

    def _txn(self, operations: list[dict[str, Any]]) -> bool:
        for url in self.urls.values():
            if ask(self._http, "POST", url + "/v3/kv/txn", json={"success": operations}).outcome is Outcome.DONE:
                return True
        return False


def watched_ranges(prefix: bytes) -> list[Watched]:
    """Twenty: keys, groups, ranges across groups, and everything; each kind slow, restless and neither."""
    whole, end = prefix, end_of(prefix)
    group_a, group_b = prefix + b"a/", prefix + b"b/"
    return [
        Watched(whole, end),
        Watched(whole, end, wants_previous=True),
        Watched(whole, end, is_slow=True),
        Watched(whole, end, is_slow=True, wants_previous=True),
        Watched(whole, end, is_restless=True),
        Watched(whole, end, is_restless=True, is_slow=True),
        Watched(whole, end, starts_now=True),
        Watched(group_a, end_of(group_a)),
        Watched(group_a, end_of(group_a), is_slow=True),
        Watched(group_a, end_of(group_a), is_restless=True, wants_previous=True),
        Watched(group_a, end_of(group_a), starts_now=True, is_restless=True),
        Watched(group_b, end_of(group_b), wants_previous=True),
        Watched(group_b, end_of(group_b), is_restless=True),
        Watched(group_a + b"3", group_b + b"2"),
        Watched(group_a + b"3", group_b + b"2", is_restless=True, wants_previous=True),
        Watched(group_a + b"1"),
        Watched(group_a + b"1", wants_previous=True, is_restless=True),
        Watched(group_b + b"4", is_slow=True),
        Watched(group_b + b"4", starts_now=True),
        Watched(prefix + b"burst/", end_of(prefix + b"burst/"), is_slow=True),
    ]


def put_of(key: bytes, value: bytes) -> dict[str, Any]:
    return {"request_put": {"key": _text(key), "value": _text(value)}}


def delete_of(key: bytes, range_end: bytes = b"") -> dict[str, Any]:
    return {"request_delete_range": {"key": _text(key), "range_end": _text(range_end)}}


def end_of(prefix: bytes) -> bytes:
    """Of the range of all keys that begin with `prefix`, whose last byte is below 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _results(client: Wire) -> Iterator[dict[str, Any]]:
    """The lines of a stream. Raises OSError when it breaks or is quiet, EOFError when it ends without its end."""
    kept = b""
    while chunk := client.chunk():
        *lines, kept = (kept + chunk).split(b"\n")
        for line in filter(None, lines):
            said = json.loads(line)
            if "error" in said:
                if said["error"]["grpc_code"] not in (4, 8, 14):
                    raise ValueError(f"{said}")
                return
            yield said["result"]


def _event_of(told: Mapping[str, Any]) -> Event:
    kv = told["kv"]
    previous = _bytes(told["prev_kv"].get("value", "")) if "prev_kv" in told else None
    return _event(kv, is_deletion=told.get("type") == "DELETE", previous=previous)


def _event(kv: Mapping[str, str], *, is_deletion: bool, previous: bytes | None) -> Event:
    return Event(
        int(kv["mod_revision"]), _bytes(kv["key"]), is_deletion, _bytes(kv.get("value", "")),
        int(kv.get("version", 0)), int(kv.get("create_revision", 0)), previous,
    )  # fmt: skip


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)
