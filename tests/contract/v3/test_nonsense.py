"""Whatever nonsense a node is sent, it says clearly what is wrong, keeps or closes the connection as HTTP has it, and
goes on as before: nothing hangs, nothing of its inside is shown, nothing grows."""

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from quorate_core.asgi import Protection, Surface, create_app
from quorate_store.v3 import mount_v3
from support import plain_http
from support.node_app import LOOPBACK, served
from support.node_processes import NodeProcess, node_cluster, until
from support.nonsense import (
    BODY_BYTES_MAX,
    NO_HTTP,
    NO_MESSAGE,
    PATIENCE_S,
    STRANGE_PATHS,
    WRONG_BYTES,
    WRONG_NUMBERS,
    Answer,
    Wire,
    chunk_of,
    chunked,
    open_files,
    request,
    resident_bytes,
    wire,
)
from support.store_local import local_store
from support.watch_streams import read_head, watch_stream

PUT, RANGE, TXN, WATCH, KEEPALIVE = "/v3/kv/put", "/v3/kv/range", "/v3/kv/txn", "/v3/watch", "/v3/lease/keepalive"
INSTANCE = "/v1/registry/default/services/a/instances/b"
HEARTBEAT = "/v1/registry/heartbeat"
JSON = b"Content-Type: application/json"
TOO_LARGE = chunk_of(b"A" * 65_536) * (BODY_BYTES_MAX // 65_536 + 1)
"""Chunks that are over the limit of any body."""
GOOD_PUT = b'{"key":"Zm9v","value":"YmFy"}'
STREAMS = (WATCH, KEEPALIVE)
PLACES = {
    (PUT, b'"key":"Zm9v","lease"'), (RANGE, b'"key":"Zm9v","limit"'), (RANGE, b'"key":"Zm9v","revision"'),
    ("/v3/kv/compaction", b'"revision"'), ("/v3/lease/grant", b'"TTL"'), ("/v3/lease/revoke", b'"ID"'),
    (TXN, b'"compare":[{"key":"Zm9v","target":"VERSION","version":7}],"success":[{"request_range":{"limit"'),
}  # fmt: skip
"""Where a 64-bit integer belongs: the body up to its colon."""

STALL_S = 0.05
GROWTH_BYTES_MAX = 64 * 1024 * 1024
UNREAD_STREAMS = 20
EVENTS_BEHIND = 10_000
EVENTS_A_TXN = 100
VALUE = base64.b64encode(bytes(1024)).decode()
RECEIVE_BYTES = 4096
WATCHES = 1_000
DROPPED = 200
PIPELINED = 200


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with node_cluster(tmp_path_factory.mktemp("asked"), 1) as cluster:
        cluster.start()
        yield cluster.nodes[0]


@pytest.fixture
def node(started: NodeProcess) -> Iterator[NodeProcess]:
    """As well after each test as before it."""
    said_before, bytes_before = len(started.log), resident_bytes(started)
    yield started
    said = started.log[said_before:]
    assert "Traceback" not in said, said
    assert "unhandled_error" not in said, said
    with wire(started.url) as client:
        assert client.ask(PUT, GOOD_PUT).status == 200
    assert resident_bytes(started) - bytes_before < GROWTH_BYTES_MAX


@pytest.fixture(scope="module")
def json_paths(started: NodeProcess) -> list[tuple[str, str]]:
    """Path and method of every operation that takes a JSON object, but streams, and users and roles, which nobody has
    here whatever is sent."""
    document = plain_http.get(started.url + "/openapi.json", timeout=PATIENCE_S).json()
    found = [(PUT, "POST"), (INSTANCE, "PUT"), (INSTANCE, "PATCH"), ("/v1/config/default/a/b/rollback", "POST")]
    for path, operations in document["paths"].items():
        takes = operations.get("post", {}).get("requestBody", {}).get("content", {})
        is_offered = "/auth/" not in path
        if "application/json" in takes and "{" not in path and path not in STREAMS and is_offered:
            found.append((path, "POST"))
    return sorted(set(found))


@pytest.mark.parametrize("name", NO_MESSAGE)
def test_a_body_that_is_no_message_is_refused_everywhere_and_the_connection_goes_on(
    node: NodeProcess, json_paths: list[tuple[str, str]], name: str
) -> None:
    assert len(json_paths) > 15
    with wire(node.url) as client:
        for path, method in json_paths:
            client.ask(path, NO_MESSAGE[name], JSON, method=method).require_clear_error(400)


@pytest.mark.parametrize("name", NO_MESSAGE)
@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_that_begins_with_no_message_ends_with_an_error(node: NodeProcess, path: str, name: str) -> None:
    with wire(node.url) as client:
        client.ask(path, NO_MESSAGE[name]).require_clear_error(400)
        assert client.ask(PUT, GOOD_PUT).status == 200


@pytest.mark.parametrize("name", WRONG_NUMBERS)
def test_what_is_no_64_bit_integer_is_refused_wherever_one_belongs(node: NodeProcess, name: str) -> None:
    with wire(node.url) as client:
        for path, opening in sorted(PLACES):
            closing = b"}}]}" if path == TXN else b"}"
            body = b"{" + opening + b":" + WRONG_NUMBERS[name] + closing
            client.ask(path, body).require_clear_error(400)


@pytest.mark.parametrize("name", WRONG_BYTES)
def test_what_is_no_base64_is_refused_wherever_bytes_belong(node: NodeProcess, name: str) -> None:
    wrong = WRONG_BYTES[name]
    with wire(node.url) as client:
        for path, body in (
            (PUT, b'{"key":%b}'), (PUT, b'{"key":"Zm9v","value":%b}'), (RANGE, b'{"key":"Zm9v","range_end":%b}'),
            ("/v3/kv/deleterange", b'{"key":%b}'),
            (TXN, b'{"compare":[{"key":%b}]}'), (TXN, b'{"success":[{"request_put":{"key":%b}}]}'),
        ):  # fmt: skip
            client.ask(path, body % wrong).require_clear_error(400)


def test_fields_twice_are_taken_once_and_fields_that_nobody_knows_not_at_all(node: NodeProcess) -> None:
    body = b'{"key":"YQ==","key":"dHdpY2U=","value":"YmFy","lease":null,"unknown":{"a":[1,{"b":null}]}}'
    with wire(node.url) as client:
        put = client.ask(PUT, body)
        found = json.loads(client.ask(RANGE, b'{"key":"dHdpY2U="}').body)
    assert put.status in (200, 400)
    assert (put.status == 200) == (found.get("count") == "1")


def test_transactions_that_are_nested_deep_or_wide_are_refused(node: NodeProcess) -> None:
    get = {"request_range": {"key": "Zm9v"}}
    deep: dict[str, Any] = get
    for _ in range(200):
        deep = {"request_txn": {"success": [deep]}}
    operations = [{"request_range": {"key": "Zm9v"}}] * 100_000
    deeper = b'{"success":[{"request_txn":' * 20_000 + b"{}" + b"}]}" * 20_000
    bodies = (json.dumps({"success": [deep]}).encode(), json.dumps({"failure": operations}).encode()[:BODY_BYTES_MAX])
    with wire(node.url) as client:
        for body in (*bodies, deeper):
            answer = client.ask(TXN, body)
            if answer.status != 200:
                answer.require_clear_error(400)
        assert client.ask(TXN, json.dumps({"failure": operations[:129]}).encode()).status == 400


@pytest.mark.parametrize("path", [PUT, HEARTBEAT, INSTANCE])
def test_a_body_of_the_limit_is_read_and_one_over_it_is_not(node: NodeProcess, path: str) -> None:
    method = "PUT" if path == INSTANCE else "POST"
    over_limit = {400} if path == PUT else {413}  # etcd has no other code for it
    whole = b'{"key":"' + b"A" * (BODY_BYTES_MAX - 10) + b'"}'
    assert len(whole) == BODY_BYTES_MAX
    with wire(node.url) as client:
        client.ask(path, whole, JSON, method=method).require_clear_error(400, 413)
        client.ask(path, whole + b" ", JSON, method=method).require_clear_error(*over_limit)
        assert client.ask(PUT, GOOD_PUT).status == 200, "what was refused by its head is thrown away"
    with wire(node.url) as client:
        client.send(chunked(path, b'{"key":"', method=method).replace(b"Host", JSON + b"\r\nHost"))
        client.send(TOO_LARGE)
        client.answer().require_clear_error(*over_limit)
        client.send(b"0\r\n\r\n")
        assert client.ask(PUT, GOOD_PUT).status == 200


def test_a_body_that_is_announced_too_large_is_refused_before_it_comes_and_not_waited_for(node: NodeProcess) -> None:
    with wire(node.url) as client:
        client.send(b"POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        client.answer().require_clear_error(400)
        assert client.is_closed()


async def test_a_body_that_stalls_is_given_up_in_time_and_a_stream_that_is_silent_is_not(tmp_path: Path) -> None:
    """The same limits as a node's, and less patience."""
    surface = Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None), body_timeout_s=STALL_S)
    api = create_app(surface)
    async with asyncio.timeout(PATIENCE_S), local_store(tmp_path) as store:
        mount_v3(api, store, "cluster")
        async with served(api) as url, watch_stream(url) as stream:
            await stream.say(b'{"create_request":')
            for path in (PUT, TXN, RANGE):
                answer = await asyncio.to_thread(answer_to_half_a_body, url, path)
                answer.require_clear_error(408)
            await stream.say(b'{"key":"Zm9v"}}')
            status, _ = await read_head(stream)
            assert status == 200
            assert (await stream.result())["created"]


def answer_to_half_a_body(url: str, path: str) -> Answer:
    with wire(url) as client:
        client.send(chunked(path, GOOD_PUT[:9]))
        return client.answer()


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/xml", "multipart/form-data; boundary=x", "application/json; charset=utf-7", "///"],
)
def test_the_type_of_a_body_changes_nothing_of_what_is_in_it(node: NodeProcess, kind: str) -> None:
    field = b"Content-Type: " + kind.encode()
    with wire(node.url) as client:
        assert client.ask(PUT, GOOD_PUT, field).status == 200
        client.ask(PUT, b"no JSON", field).require_clear_error(400)
        answer = client.ask(INSTANCE, b'{"port":"x"}', field, method="PUT")
        answer.require_clear_error(400, 415)


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_is_answered_once_and_its_connection_is_closed(node: NodeProcess, name: str) -> None:
    with wire(node.url) as client:
        client.send(NO_HTTP[name])
        client.answer().require_clear_error(400, 403)
        assert client.is_closed()


@pytest.mark.parametrize("name", STRANGE_PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_paths_that_are_nothing_are_refused(node: NodeProcess, method: str, name: str) -> None:
    with wire(node.url) as client:
        client.send(request("/", b"{}", method=method).replace(b" / ", b" %b " % STRANGE_PATHS[name]))
        client.answer().require_clear_error(400, 404, 405)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", [PUT, WATCH, "/v3/maintenance/status", HEARTBEAT])
def test_other_methods_than_post_are_refused(node: NodeProcess, path: str, method: str) -> None:
    with wire(node.url) as client:
        refused = client.ask(path, b"{}", method=method)
        refused.require_clear_error(405)
        assert refused.fields["allow"] == "post"
        assert client.ask(PUT, GOOD_PUT).status == 200


def test_heads_with_thousands_of_fields_or_one_of_a_megabyte_are_refused(node: NodeProcess) -> None:
    for fields in ([b"X-%d: a" % number for number in range(5_000)], [b"X-A: " + b"a" * 1024 * 1024]):
        with wire(node.url) as client:
            try:
                client.send(request(PUT, GOOD_PUT, *fields))
            except ConnectionError:
                pass  # refused before it was whole
            client.answer().require_clear_error(431)
            assert client.is_closed()


def test_pipelined_requests_are_answered_in_order(node: NodeProcess) -> None:
    """Good ones, bad ones, direct ones and others, all in one write."""
    asked = [
        (request(PUT, b'{"key":"Zm9v","value":"YmFy"}'), 200),
        (request(PUT, b"{"), 400),
        (request("/nowhere", b""), 404),
        (request(RANGE, b'{"key":"Zm9v"}'), 200),
        (request("/livez", b"", method="GET"), 200),
        (request(INSTANCE, b"[]", JSON, method="PUT"), 400),
    ] * (PIPELINED // 6)
    with wire(node.url) as client:
        client.send(b"".join(data for data, _ in asked))
        assert [client.answer().status for _ in asked] == [status for _, status in asked]


def test_a_body_in_chunks_of_a_byte_is_a_body(node: NodeProcess) -> None:
    with wire(node.url) as client:
        for byte in chunked(PUT, *[bytes([byte]) for byte in GOOD_PUT]) + b"0\r\n\r\n":
            client.send(bytes([byte]))
        assert client.answer().status == 200


def test_connections_that_are_dropped_anywhere_leave_nothing_behind(node: NodeProcess) -> None:
    files_before = open_files(node)
    openings = (
        b"", b"POST /v3", request(PUT, GOOD_PUT)[:-3], request(PUT, GOOD_PUT), chunked(PUT, b'{"key"'),
        chunked(WATCH), chunked(WATCH, b'{"create_request":{"key":"Zm9v"}}'), chunked(KEEPALIVE, b'{"ID":"7"'),
        request("/v1/registry/default/watch", b"", method="GET"),
        request("/v1/config/default/watch", b"", method="GET"),
    )  # fmt: skip
    for number in range(DROPPED):
        with wire(node.url) as client:
            client.send(openings[number % len(openings)])
            if number % 2:
                client.reset()
    until("all connections are gone", lambda: open_files(node) <= files_before + 2, PATIENCE_S)


async def test_streams_whose_clients_have_gone_leave_no_task_behind(tmp_path: Path) -> None:
    api = create_app(Surface("test", Protection.for_address(LOOPBACK, LOOPBACK, None)))
    openings = (
        chunked(WATCH), chunked(WATCH, b'{"create_request":{"key":"Zm9v"}}'), chunked(WATCH, b'{"create'),
        chunked(KEEPALIVE), chunked(KEEPALIVE, b'{"ID":"7"}'), chunked(PUT, b'{"key"'),
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE_S), local_store(tmp_path) as store:
        mount_v3(api, store, "cluster")
        async with served(api) as url:
            tasks_before = len(asyncio.all_tasks())
            with ExitStack() as stack:
                for opening in openings:
                    client = stack.enter_context(wire(url))
                    client.send(opening)
                while len(asyncio.all_tasks()) < tasks_before + len(openings):  # noqa: ASYNC110 - nobody tells of tasks
                    await asyncio.sleep(0)
            while len(asyncio.all_tasks()) > tasks_before:  # noqa: ASYNC110
                await asyncio.sleep(0)


def test_a_thousand_watches_in_one_stream_each_get_every_event(node: NodeProcess) -> None:
    create = b'{"create_request":{"key":"dGhvdXNhbmQ="}}'
    with wire(node.url) as client, wire(node.url) as writer:
        client.send(chunked(WATCH, *[create] * WATCHES))
        client.head()
        lines = stream_lines(client)
        created = [next(lines) for _ in range(WATCHES)]
        assert all(line["created"] for line in created)
        assert writer.ask(PUT, b'{"key":"dGhvdXNhbmQ=","value":"YmFy"}').status == 200
        told = [next(lines) for _ in range(WATCHES)]
    ids = [int(line.get("watch_id", 0)) for line in told]
    assert sorted(ids) == list(range(WATCHES))
    assert {len(line["events"]) for line in told} == {1}


def test_streams_that_nobody_reads_cost_little_and_miss_nothing(node: NodeProcess) -> None:
    """10,000 events behind, of a kilobyte each: what is not read waits in the store's history, not in memory."""
    create = b'{"create_request":{"key":"dW5yZWFkLw==","range_end":"dW5yZWFkMA=="}}'
    before_bytes = resident_bytes(node)
    with ExitStack() as stack:
        streams = [stack.enter_context(wire(node.url, RECEIVE_BYTES)) for _ in range(UNREAD_STREAMS)]
        for stream in streams:
            stream.send(chunked(WATCH, create))
            stream.head()
        lines = stream_lines(streams[0])
        assert next(lines)["created"]
        writer = stack.enter_context(wire(node.url))
        for number in range(EVENTS_BEHIND // EVENTS_A_TXN):
            assert writer.ask(TXN, puts_of("unread/", number * EVENTS_A_TXN)).status == 200
        assert resident_bytes(node) - before_bytes < GROWTH_BYTES_MAX
        seen: list[str] = []
        while len(seen) < EVENTS_BEHIND:
            seen += [event["kv"]["key"] for event in next(lines)["events"]]
    assert seen == [key_of("unread/", number) for number in range(EVENTS_BEHIND)]


@pytest.mark.parametrize(
    "after",
    [
        b'{"create_request":7}', b"[]", b"{", b'{"create_request":{"key":"$"}}', b'{"cancel_request":{"watch_id":1.5}}',
        b'{"create_request":{"key":"YQ==","filters":["NOTHING"]}}', b"\xff", b"[" * 100_000,
    ],
    ids=["number", "list", "half", "bad base64", "fraction", "unknown filter", "no UTF-8", "deep"],
)  # fmt: skip
def test_a_bad_message_after_good_ones_ends_a_watch_stream_with_a_line_that_says_so(
    node: NodeProcess, after: bytes
) -> None:
    with wire(node.url) as client:
        client.send(chunked(WATCH, b'{"create_request":{"key":"YQ=="}}'))
        client.head()
        lines = stream_lines(client)
        assert next(lines)["created"]
        client.send(chunk_of(after) + b"0\r\n\r\n")
        last = json.loads(client.chunk())
        assert last["error"]["message"]
        assert last["error"]["http_code"] == 400
        assert client.chunk() == b""


def test_a_message_that_never_ends_is_refused_at_its_limit(node: NodeProcess) -> None:
    with wire(node.url) as client:
        client.send(chunked(WATCH, b'{"create_request":{"key":"') + TOO_LARGE)
        client.answer().require_clear_error(400)
        client.send(b"0\r\n\r\n")
        assert client.ask(PUT, GOOD_PUT).status == 200


def stream_lines(client: Wire) -> Iterator[dict[str, Any]]:
    """The results of a stream."""
    kept = b""
    while chunk := client.chunk():
        *lines, kept = (kept + chunk).split(b"\n")
        for line in lines:
            yield json.loads(line)["result"]


def puts_of(prefix: str, first: int) -> bytes:
    keys = [key_of(prefix, number) for number in range(first, first + EVENTS_A_TXN)]
    return json.dumps({"success": [{"request_put": {"key": key, "value": VALUE}} for key in keys]}).encode()


def key_of(prefix: str, number: int) -> str:
    return base64.b64encode(f"{prefix}{number:05}".encode()).decode()
