"""`quorate cluster watch`: every change once and in order, over streams that break, fall silent, or begin too late."""

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
from quorate_cli import keys_watch
from quorate_cli.client import ControlPlane
from quorate_cli.endpoints import Target
from quorate_cli.keys_watch import KeyWatch
from quorate_cli.stored_keys import KeyRange
from quorate_core.errors import Forbidden, InvalidRequest, PayloadTooLarge, QuorateError, Unavailable

Make = Callable[..., Any]
KEYS = KeyRange(b"app/", is_prefix=True)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_watch, "RECONNECT_INTERVAL_S", 0.0)


def header(revision: int) -> dict[str, Any]:
    return {"header": {"revision": str(revision)}}


def created(revision: int) -> dict[str, Any]:
    return {"result": {**header(revision), "created": True}}


def bookmark(revision: int) -> dict[str, Any]:
    return {"result": {**header(revision), "watch_id": "-1"}}


def changed(*revisions: int, **more: Any) -> dict[str, Any]:
    """A put of `app/N` at each of `revisions`. etcd leaves out the type of a put."""
    key = {revision: base64.b64encode(b"app/%d" % revision).decode() for revision in revisions}
    events = [
        {"kv": {"key": key[revision], "mod_revision": str(revision), "version": "1", "value": "b24="}, **more}
        for revision in revisions
    ]
    return {"result": {**header(revisions[-1]), "events": events}}


def compacted(oldest: int) -> dict[str, Any]:
    return {"result": {"header": {}, "canceled": True, "compact_revision": str(oldest)}}


def lines(*messages: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def watched(servers: list[Any], count: int, from_revision: int = 0, silence_s: float = 5.0) -> Iterator[int]:
    """The revisions of the next `count` events."""
    urls = tuple(server if isinstance(server, str) else server.url for server in servers)
    with ControlPlane(Target(urls, None)) as control_plane:
        watch = KeyWatch(control_plane, KEYS, from_revision, previous=False, silence_s=silence_s)
        yield from (event.kv.mod_revision for event in islice(watch.events(), count))


def asked_from(server: Any) -> list[int]:
    """Where each stream was to begin."""
    return [int(json.loads(asked.body.splitlines()[0])["create_request"]["start_revision"]) for asked in server.asked]


class SilentServer:
    """Answers every request with the same beginning of a stream, and then nothing more."""

    def __init__(self, beginning: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + beginning
        self.requests: list[bytes] = []
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            request = b""
            while b"progress_request" not in request:
                request += connection.recv(65_536)
            self.requests.append(request)
            connection.sendall(self._head)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._connections:
            connection.close()


@pytest.fixture
def new_silent() -> Iterator[Callable[..., SilentServer]]:
    servers: list[SilentServer] = []

    def make(*messages: dict[str, Any]) -> SilentServer:
        servers.append(SilentServer(lines(*messages)))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def test_a_change_is_printed_as_it_comes_and_ctrl_c_is_a_good_end(
    quorate: Make, named: Make, make_answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    deletion = {"type": "DELETE", "prev_kv": {"key": "YXBwLzg=", "value": "b24=", "mod_revision": "7", "version": "2"}}
    first = lines(created(6), changed(7), changed(8, **deletion))
    monkeypatch.setattr(keys_watch, "STREAM_S_MIN", 60.0)

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(keys_watch.time, "sleep", interrupted)
    server = named(make_answer(body=first))
    code, out, err = quorate("cluster", "watch", "app/", "--prefix", "--previous")
    assert (code, err) == (0, "")
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [
        ["7", "app/7 version 1: on  (before: not there)"], ["8", "app/8 deleted  (before: on)"],
    ]  # fmt: skip
    create, progress = (json.loads(line) for line in server.asked[0].body.splitlines())
    wanted = create["create_request"]
    assert (base64.b64decode(wanted["key"]), base64.b64decode(wanted["range_end"])) == (b"app/", b"app0")
    assert (wanted["prev_kv"], wanted["start_revision"], progress) == (True, "0", {"progress_request": {}})
    printed = [json.loads(line) for line in quorate("cluster", "watch", "app/", "--previous", "--json")[1].splitlines()]
    assert [(event["type"], event["key"], event["mod_revision"]) for event in printed] == [
        ("PUT", "app/7", 7), ("DELETE", "app/8", 8),
    ]  # fmt: skip
    assert [event["previous"] and event["previous"]["value"] for event in printed] == [None, "on"]


def test_when_a_node_dies_another_one_goes_on_behind_the_last_event(new_server: Make, make_answer: Make) -> None:
    first = new_server(make_answer(body=lines(created(6), changed(7, 9))))
    second = new_server(make_answer(body=lines(created(20), changed(12))))
    assert list(watched([first, second], 3)) == [7, 9, 12]
    assert (asked_from(first), asked_from(second)) == ([0], [10])


def test_a_watch_from_now_on_goes_on_from_where_it_began_though_nothing_has_come(
    new_server: Make, make_answer: Make
) -> None:
    first = new_server(make_answer(body=lines(created(6))))
    second = new_server(make_answer(body=lines(created(9), changed(8))))
    assert list(watched([first, second], 1)) == [8]
    assert asked_from(second) == [7]


def test_a_silent_node_is_left_and_a_quiet_key_does_not_fall_behind(
    new_silent: Make, new_server: Make, make_answer: Make
) -> None:
    """A frozen node and a quiet key look alike. The bookmark that the stream began with counts from then on."""
    silent = new_silent(created(6), bookmark(50))
    second = new_server(make_answer(body=lines(created(60), changed(51))))
    assert list(watched([silent, second], 1, from_revision=3, silence_s=0.2)) == [51]
    assert asked_from(second) == [51]


def test_a_bookmark_of_a_stream_that_broke_counts_for_nothing(new_server: Make, make_answer: Make) -> None:
    """Events that were due before it may still have been on their way."""
    first = new_server(make_answer(body=lines(created(6), bookmark(50))))
    second = new_server(make_answer(body=lines(created(60), changed(20))))
    assert list(watched([first, second], 1, from_revision=3)) == [20]
    assert asked_from(second) == [3]


def test_a_node_that_answers_nothing_at_all_is_passed_over(
    new_silent: Make, new_server: Make, make_answer: Make
) -> None:
    second = new_server(make_answer(body=lines(created(6), changed(7))))
    assert list(watched([new_silent(), second], 1, silence_s=0.2)) == [7]
    assert list(watched(["http://127.0.0.1:1", second], 1)) == [7]


def test_when_nobody_answers_at_first_it_says_so_and_ends(new_silent: Make) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        list(watched(["http://127.0.0.1:1", "http://127.0.0.1:2"], 1))
    with pytest.raises(Unavailable, match="has sent nothing"):
        list(watched([new_silent()], 1, silence_s=0.1))


def test_when_nobody_answers_later_it_says_so_once_and_tries_on(
    new_server: Make, make_answer: Make, make_problem: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    away = make_problem(503, "unavailable", "there is no leader", retry="safe")
    server = new_server(make_answer(body=lines(created(6), changed(7))), away, away, away,
                        make_answer(body=lines(created(9), changed(8))))  # fmt: skip
    assert list(watched([server], 2)) == [7, 8]
    told = capsys.readouterr().err.splitlines()
    assert told == ["No node answers; connecting again.", "Connected again; nothing is left out from revision 8 on."]


def test_history_that_was_compacted_meanwhile_is_said_and_the_rest_is_told(
    new_server: Make, make_answer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    server = new_server(
        make_answer(body=lines(created(6), changed(7))), make_answer(body=lines(created(40), compacted(30))),
        make_answer(body=lines(created(40), changed(33))),
    )  # fmt: skip
    assert list(watched([server], 2)) == [7, 33]
    assert asked_from(server) == [0, 8, 30]
    assert "before revision 30 was compacted: changes from revision 8 on may be missing" in capsys.readouterr().err


def test_a_watch_from_a_revision_that_is_compacted_ends_and_says_where_history_begins(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    named(make_answer(body=lines(created(40), compacted(30))))
    code, out, err = quorate("cluster", "watch", "app/", "--from", "3")
    assert (code, out) == (4, "")
    assert "revision 3 is compacted: history begins at 30" in err
    assert "--from 30" in err


REFUSED = {"result": {**header(6), "created": True, "canceled": True, "cancel_reason": "mvcc: watcher range is empty"}}
DENIED = {"error": {"grpc_code": 7, "http_code": 403, "message": "not allowed", "http_status": "Forbidden"}}


@pytest.mark.parametrize(
    ("message", "error", "said"),
    [
        (REFUSED, InvalidRequest, "watcher range is empty"),
        (DENIED, Forbidden, "not allowed"),
        ({"error": "not allowed", "message": "not allowed", "code": 7}, Forbidden, "not allowed"),
    ],
)
def test_a_refusal_ends_the_watch_with_the_nodes_own_words(
    new_server: Make, make_answer: Make, message: dict[str, Any], error: type[QuorateError], said: str
) -> None:
    with pytest.raises(error, match=said):
        list(watched([new_server(make_answer(body=lines(message)))], 1))


@pytest.mark.parametrize("body", [b"{\n", b"[]\n", b'{"result": {"events": [{"kv": {"key": "?"}}]}}\n'])
def test_what_is_no_answer_of_a_node_is_told_and_shows_no_trace(
    quorate: Make, named: Make, make_answer: Make, body: bytes
) -> None:
    named(make_answer(body=body))
    code, _, err = quorate("cluster", "watch", "app/")
    assert (code, "cannot be understood" in err, "Traceback" in err) == (1, True, False)


def test_a_line_without_an_end_is_bounded(new_server: Make, make_answer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate_cli.client.LINE_BYTES_MAX", 1000)
    with pytest.raises(PayloadTooLarge, match="a line of over 1000 bytes"):
        list(watched([new_server(make_answer(body=b"x" * 2000))], 1))
