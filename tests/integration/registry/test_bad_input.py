"""Whatever the registry is sent that makes no sense, it says which field is wrong and why, and goes on as before.

Bodies, names and queries are made by hand; what the API's own document allows and does not is fuzzed for all of a node
together (`tests/integration/node/test_api_fuzz.py`), and bodies that are no JSON and requests that are no HTTP are sent
to all endpoints in `tests/contract/v3/test_nonsense.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from quorate_sdk.wire import HEARTBEAT_INSTANCES_MAX, METADATA_ENTRIES_MAX, TAGS_MAX, TTL_S_MAX, WAIT_S_MAX
from support.node_processes import NodeProcess, node_cluster
from support.nonsense import Answer, Wire, open_files, request, resident_bytes, wire

SERVICE = "/v1/registry/default/services/shop"
INSTANCE = f"{SERVICE}/instances/shop-1"
HEARTBEAT = "/v1/registry/heartbeat"
WATCH = "/v1/registry/default/watch"
JSON = b"Content-Type: application/json"
GOOD: dict[str, Any] = {"host": "127.0.0.1", "port": 8000}
GROWTH_BYTES_MAX = 48 * 1024 * 1024
FILES_MORE_MAX = 8

WRONG_FIELDS: dict[str, list[str]] = {
    "host": ["null", "7", '""', '"a b"', '"a/b"', '"http://a"', '"a\\u0000b"', '"a\\r\\nb"', '"a@b"', '"ä"', "[]",
             json.dumps("a" * 254)],
    "port": ["null", "0", "-1", "65536", "1.5", '"x"', "true", '"8000"', "1e99", "NaN", "9" * 400, "[]"],
    "scheme": ["null", '""', '"ftp"', '"HTTP"', "7", '["http"]'],
    "weight": ["null", "-1", "1001", "0.5", '"heavy"', "true", '"100"', "1e400", "{}"],
    "zone": ["null", "7", json.dumps("z" * 64), "[]"],
    "version": ["null", "1.5", json.dumps("v" * 64), "{}"],
    "metadata": ["null", "[]", '"a=b"', '{"a":1}', '{"a":null}', '{"a":{"b":"c"}}', '{"":"empty"}',
                 json.dumps({"k" * 129: "v"}), json.dumps({"k": "v" * 1025}),
                 json.dumps({str(number): "" for number in range(METADATA_ENTRIES_MAX + 1)})],
    "status": ["null", '"up"', '"GONE"', '""', "1", '["UP"]'],
    "ttl_s": ["null", "0", "1", "-5", "2.5", '"long"', str(TTL_S_MAX + 1), "true", '"10"', "1e99"],
    "tags": ["null", '"a"', "[1]", "[null]", '[""]', '["a b"]', '["-a"]', json.dumps(["t" * 129]),
             json.dumps([f"t{number}" for number in range(TAGS_MAX + 1)]), '{"a":"b"}'],
    "ephemeral": ["null", '"yes"', "1", "0", '"false"', "[]"],
    "check": ["7", "[]", "{}", '"http"', '{"type":"smtp"}', '{"type":7}', '{"type":"http"}', '{"type":"tcp"}'],
    "colour": ['"red"'],
}  # fmt: skip
"""JSON in the place of a field's value; each is refused with the field's name. The last field is of nobody's, and what
would be a check elsewhere is none of an instance that lives by heartbeats."""

WRONG_CHECKS: dict[str, dict[str, list[Any]]] = {
    "http": {"path": ["", "a", "http://elsewhere/", "/a b", "/a\r\nHost: b", "/\0", "/" + "a" * 1024, None, 7],
             "host": ["a b", "a\r\nX: y", "a/b", "a" * 254, 7], "status_min": [99, 600, "200", True, 2.5, None],
             "status_max": [99, 600, "399"], "follow_redirects": [True]},
    "grpc": {"service": ["a b", "a" * 254, "a\0", 7, None], "path": ["/"]},
    "tcp": {"path": ["/"], "interval_s": [0, 0.5, 3601, "10", True, None, []],
            "timeout_s": [0, 0.05, 61, "1", True, None],
            "healthy_after": [0, 11, 1.5, "2", True], "unhealthy_after": [0, 11, 1.5, "3", True],
            "port": [0, 65536, "80", True, 1.5]},
}  # fmt: skip
"""By type, values of fields of a check; each is refused with the field's name."""

NEVER_CHECKED = [
    "169.254.169.254", "169.254.0.1", "fe80::1", "fd00:ec2::254", "100.100.100.200", "0.0.0.0", "::", "224.0.0.1",
    "255.255.255.255", "ff02::1", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe",
    # Other spellings of 169.254.169.254, which resolvers take.
    "2852039166", "0xa9fea9fe", "0xA9.0xFE.0xA9.0xFE", "169.254.43518", "0251.0376.0251.0376",
]  # fmt: skip
"""Addresses of the link, of a cloud's metadata, of nobody or of many: no node sends anything there."""

WRONG_SETTINGS: dict[str, list[Any]] = {
    "protection_threshold": [-0.1, 1.1, "half", None, [], True],
    "hold_s": [9, 86_401, 10.5, "300", None, True],
    "default_check": [7, {}, {"type": "smtp"}, {"type": "tcp", "interval_s": 0}, {"type": "tcp", "timeout_s": 11}],
    "colour": ["red"],
}

WRONG_NAMES = ["Shop", "-shop", "shop-", "a b", "a%00b", "a%0d%0ab", "%ff", "..", "a" * 64, "sh%C3%B6p", "a%2fb", "*"]
"""As they stand in a path: no namespace and no service."""
WRONG_IDS = ["-1", "a b", "a%00b", "%2e%2e", "a" * 129, "a%2fb", "%F0%9F%90%B1"]

WRONG_HEARTBEATS: dict[str, Any] = {
    "no instances": {},
    "instances that are none": {"instances": 7},
    "one that is none": {"instances": [7]},
    "one without a service": {"instances": [{"id": "a"}]},
    "one without an id": {"instances": [{"service": "a"}]},
    "a service that cannot be": {"instances": [{"service": "A b", "id": "a"}]},
    "an id that cannot be": {"instances": [{"service": "a", "id": "/"}]},
    "a namespace that cannot be": {"instances": [{"namespace": "../x", "service": "a", "id": "a"}]},
    "a field of nobody's": {"instances": [{"service": "a", "id": "a", "ttl_s": 5}]},
    "a field of nobody's beside them": {"instances": [], "wait": 5},
    "too many": {"instances": [{"service": "a", "id": "a"}] * (HEARTBEAT_INSTANCES_MAX + 1)},
}

WRONG_QUERIES = {
    f"{SERVICE}?consistency=maybe": "consistency",
    f"{SERVICE}?min_revision=-1": "min_revision",
    f"{SERVICE}?min_revision=x": "min_revision",
    f"{SERVICE}?min_revision=1.5": "min_revision",
    f"{SERVICE}?min_revision=99999999999999999999999999": "min_revision",
    f"{SERVICE}?min_revision=1&wait=-1": "wait",
    f"{SERVICE}?min_revision=1&wait=nan": "wait",
    f"{SERVICE}?min_revision=1&wait=inf": "wait",
    f"{SERVICE}?min_revision=1&wait={WAIT_S_MAX + 1}": "wait",
    f"{SERVICE}?min_revision=4611686018427387904": "min_revision",
    f"{WATCH}?revision=-1": "revision",
    f"{WATCH}?revision=now": "revision",
    f"{WATCH}?service=A%20b": "service",
    f"{WATCH}?service=": "service",
    f"{WATCH}?prefix=A%20b": "prefix",
    f"{WATCH}?prefix=": "prefix",
    f"{WATCH}?{'&'.join(f'prefix=s{number}' for number in range(257))}": "prefix",
    f"{WATCH}?subscriber=a%20b": "subscriber",
    f"{WATCH}?subscriber=a%0d%0ab": "subscriber",
    f"{WATCH}?subscriber={'a' * 129}": "subscriber",
    f"{SERVICE}?status=up": "status",
    f"{WATCH}?{'&'.join(f'service=s{number}' for number in range(257))}": "service",
}
"""With what the answer names."""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with node_cluster(tmp_path_factory.mktemp("asked"), 1) as cluster:
        cluster.start()
        yield cluster.nodes[0]


@pytest.fixture
def node(started: NodeProcess) -> Iterator[NodeProcess]:
    """As well after each test as before it, and with not one instance more."""
    said_before, bytes_before, files_before = len(started.log), resident_bytes(started), open_files(started)
    yield started
    said = started.log[said_before:]
    assert "Traceback" not in said, said
    assert "unhandled_error" not in said, said
    with wire(started.url) as client:
        listed = client.ask("/v1/registry/default/services", b"", method="GET")
        client.ask(INSTANCE, b"", method="DELETE")  # so that one test that fails is not all that come after it
    assert json.loads(listed.body)["services"] == []
    assert resident_bytes(started) - bytes_before < GROWTH_BYTES_MAX
    assert open_files(started) - files_before < FILES_MORE_MAX


def put(client: Wire, path: str, body: bytes) -> Answer:
    return client.ask(path, body, JSON, method="PUT")


def detail(answer: Answer) -> str:
    return str(json.loads(answer.body)["detail"])


def spec_with(field: str, value: str) -> bytes:
    """A good registration but for one field, whose value is that JSON."""
    rest = {name: json.dumps(given) for name, given in GOOD.items() if name != field}
    return ("{" + ",".join(f'"{name}":{text}' for name, text in {**rest, field: value}.items()) + "}").encode()


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_a_field_that_cannot_be_is_refused_by_its_name(node: NodeProcess, field: str) -> None:
    with wire(node.url) as client:
        for value in WRONG_FIELDS[field]:
            answer = put(client, INSTANCE, spec_with(field, value))
            answer.require_clear_error(400)
            # What no JSON parser takes for a number is refused as a body.
            assert field in detail(answer) or value in ("NaN", "9" * 400), f"{value}: {detail(answer)}"
            assert answer.body.count(b"a" * 100) == 0, "what was wrong is not said back at length"


@pytest.mark.parametrize("field", ["host", "port"])
def test_a_field_that_is_missing_is_named(node: NodeProcess, field: str) -> None:
    body = json.dumps({name: given for name, given in GOOD.items() if name != field}).encode()
    with wire(node.url) as client:
        answer = put(client, INSTANCE, body)
        answer.require_clear_error(400)
        assert field in detail(answer)


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_a_name_that_cannot_be_names_nothing(node: NodeProcess, name: str) -> None:
    escaped = quote(name, safe="%")
    body = json.dumps(GOOD).encode()
    with wire(node.url) as client:
        for path in (
            f"/v1/registry/{escaped}/services/shop/instances/shop-1",
            f"/v1/registry/default/services/{escaped}/instances/shop-1",
        ):
            for method in ("PUT", "PATCH", "GET", "DELETE"):
                client.ask(path, body, JSON, method=method).require_clear_error(400, 404, 405)


@pytest.mark.parametrize("name", WRONG_IDS)
def test_an_id_that_cannot_be_is_nobodys(node: NodeProcess, name: str) -> None:
    path = f"{SERVICE}/instances/{quote(name, safe='%')}"
    with wire(node.url) as client:
        for method in ("PUT", "PATCH", "GET", "DELETE"):
            client.ask(path, json.dumps(GOOD).encode(), JSON, method=method).require_clear_error(400, 404, 405)


@pytest.mark.parametrize("what", WRONG_HEARTBEATS)
def test_a_heartbeat_that_makes_no_sense_renews_nobody(node: NodeProcess, what: str) -> None:
    with wire(node.url) as client:
        client.ask(HEARTBEAT, json.dumps(WRONG_HEARTBEATS[what]).encode()).require_clear_error(400)


def test_a_heartbeat_of_nobody_renews_nobody_and_one_twice_is_one(node: NodeProcess) -> None:
    reference = {"service": "shop", "id": "shop-1"}
    with wire(node.url) as client:
        empty = client.ask(HEARTBEAT, b'{"instances":[]}')
        assert json.loads(empty.body) == {"renewed": 0, "unknown": []}
        twice = client.ask(HEARTBEAT, json.dumps({"instances": [reference, reference]}).encode())
        assert json.loads(twice.body) == {"renewed": 0, "unknown": [{"namespace": "default", **reference}]}


@pytest.mark.parametrize("target", WRONG_QUERIES, ids=lambda target: target[:80])
def test_a_query_that_cannot_be_is_refused_by_its_name(node: NodeProcess, target: str) -> None:
    with wire(node.url) as client:
        client.send(request(target, b"", method="GET"))
        head = client.head()
        assert head.status != 200, "a stream that begins would never end"
        answer = replace(head, body=client._take(int(head.fields["content-length"])))
        answer.require_clear_error(400)
        assert WRONG_QUERIES[target] in detail(answer), detail(answer)


@pytest.mark.parametrize("event_id", [b"x", b"-1", b"1.5", b"9" * 20, b"\xc2\xb2", b"0x1", b"1 2"])
def test_a_last_event_id_that_is_no_revision_is_refused(node: NodeProcess, event_id: bytes) -> None:
    with wire(node.url) as client:
        client.ask(WATCH, b"", b"Last-Event-ID: " + event_id, method="GET").require_clear_error(400)


def test_a_watch_from_a_revision_that_is_not_yet_begins_anew(node: NodeProcess) -> None:
    """It is of another history, so what its watcher has is worth nothing."""
    with wire(node.url) as client:
        client.send(b"GET %b?revision=999999999 HTTP/1.1\r\nHost: localhost\r\n\r\n" % WATCH.encode())
        assert client.head().status == 200
        said = b""
        while b"data: " not in said:
            said += client.chunk()
    assert b"event: snapshot" in said


def test_a_patch_of_nothing_and_of_nobody_is_not_found_and_makes_nobody(node: NodeProcess) -> None:
    with wire(node.url) as client:
        for body in (b"{}", b'{"weight":0}', b'{"status":"DOWN"}'):
            client.ask(INSTANCE, body, JSON, method="PATCH").require_clear_error(404)
        client.ask(INSTANCE, b"", method="DELETE").require_clear_error(404)
        client.ask(INSTANCE, b"", method="GET").require_clear_error(404)


def test_what_a_patch_cannot_change_is_refused_by_its_name_and_nothing_is_changed(node: NodeProcess) -> None:
    with wire(node.url) as client:
        assert put(client, INSTANCE, json.dumps(GOOD).encode()).status == 201
        for field in ("host", "port", "ttl_s", "zone", "colour"):
            answer = client.ask(
                INSTANCE, spec_with(field, '"x"').replace(b'"host":"127.0.0.1",', b""), JSON, method="PATCH"
            )
            answer.require_clear_error(400)
        found = json.loads(client.ask(INSTANCE, b"", method="GET").body)
        assert (found["host"], found["port"], found["weight"]) == ("127.0.0.1", 8000, 100)
        assert client.ask(INSTANCE, b"", method="DELETE").status == 200


def persistent(**changes: Any) -> bytes:
    return json.dumps({**GOOD, "ephemeral": False, **changes}).encode()


@pytest.mark.parametrize("kind", WRONG_CHECKS)
def test_a_check_that_cannot_be_is_refused_by_the_name_of_what_is_wrong_with_it(node: NodeProcess, kind: str) -> None:
    with wire(node.url) as client:
        for field, values in WRONG_CHECKS[kind].items():
            for value in values:
                answer = put(client, INSTANCE, persistent(check={"type": kind, field: value}))
                answer.require_clear_error(400)
                assert field in detail(answer), f"{value}: {detail(answer)}"


@pytest.mark.parametrize("changes", [{"timeout_s": 11}, {"interval_s": 1, "timeout_s": 1.5}])
def test_a_check_that_outlasts_its_interval_is_refused(node: NodeProcess, changes: dict[str, float]) -> None:
    with wire(node.url) as client:
        answer = put(client, INSTANCE, persistent(check={"type": "tcp", **changes}))
        answer.require_clear_error(400)
        assert "timeout_s" in detail(answer)


@pytest.mark.parametrize("host", NEVER_CHECKED)
def test_no_node_is_made_to_ask_an_address_of_the_link_or_a_clouds_metadata(node: NodeProcess, host: str) -> None:
    with wire(node.url) as client:
        for kind in WRONG_CHECKS:
            answer = put(client, INSTANCE, persistent(host=host, check={"type": kind}))
            answer.require_clear_error(400)
            assert "host" in detail(answer), detail(answer)


@pytest.mark.parametrize("field", WRONG_SETTINGS)
def test_a_setting_that_cannot_be_is_refused_by_its_name(node: NodeProcess, field: str) -> None:
    with wire(node.url) as client:
        before = client.ask(f"{SERVICE}/settings", b"", method="GET")
        for value in WRONG_SETTINGS[field]:
            answer = put(client, f"{SERVICE}/settings", json.dumps({field: value}).encode())
            answer.require_clear_error(400)
            assert field in detail(answer), f"{value}: {detail(answer)}"
        assert client.ask(f"{SERVICE}/settings", b"", method="GET").body == before.body


@pytest.mark.parametrize("author", [b"a" * 129, b"a\tb", b"a\x7fb", b"a\x01b", b"a\xc2\x9bb", b"a\xad"])
def test_an_author_that_is_no_short_text_is_refused_and_registers_nobody(node: NodeProcess, author: bytes) -> None:
    with wire(node.url) as client:
        answer = client.ask(INSTANCE, json.dumps(GOOD).encode(), JSON, b"Quorate-Author: " + author, method="PUT")
        answer.require_clear_error(400)


@pytest.mark.parametrize(
    "body",
    [{}, {"subscriber": "a"}, {"subscriber": "a", "revision": -1}, {"subscriber": "a", "revision": "7"},
     {"subscriber": "a", "revision": True}, {"subscriber": "", "revision": 1}, {"subscriber": "a b", "revision": 1},
     {"subscriber": "a" * 129, "revision": 1}, {"subscriber": "a", "namespace": "A b", "revision": 1},
     {"subscriber": "a", "revision": 1, "node": "b"}, [], 7],
    ids=json.dumps,
)  # fmt: skip
def test_an_acknowledgement_that_makes_no_sense_is_refused(node: NodeProcess, body: Any) -> None:
    with wire(node.url) as client:
        client.ask("/v1/registry/acks", json.dumps(body).encode(), JSON).require_clear_error(400)


@pytest.mark.parametrize("wait", ["-1", "nan", "inf", "x", "56", "1e9"])
def test_a_drain_that_would_wait_for_ever_is_refused_and_drains_nobody(node: NodeProcess, wait: str) -> None:
    with wire(node.url) as client:
        assert put(client, INSTANCE, json.dumps(GOOD).encode()).status == 201
        answer = client.ask(f"{INSTANCE}/drain?wait={wait}", b"")
        answer.require_clear_error(400)
        assert "wait" in detail(answer)
        assert json.loads(client.ask(INSTANCE, b"", method="GET").body)["status"] == "UP"
        assert client.ask(INSTANCE, b"", method="DELETE").status == 200


def test_nobody_can_be_drained_who_is_not_there(node: NodeProcess) -> None:
    with wire(node.url) as client:
        client.ask(f"{INSTANCE}/drain?wait=0", b"").require_clear_error(404)


@pytest.mark.parametrize(
    "query",
    ["from=x", "from=-1", "from=10", "from=10m&to=x", "from=1e9m", "from=2024-13-01T00:00:00Z", "from=2024-01-01",
     "from=10m&limit=0", "from=10m&limit=x", "from=10m&limit=99999999", "from=9999999999999999999999",
     "from=%00"],
)  # fmt: skip
def test_a_span_of_changes_that_cannot_be_is_refused_or_answered_as_empty(node: NodeProcess, query: str) -> None:
    """A revision is a number, so `10` is one; whatever is none of revision, time and span is refused."""
    with wire(node.url) as client:
        answer = client.ask(f"/v1/changes?{query}", b"", method="GET")
        if query == "from=10":
            assert answer.status == 200
            return
        answer.require_clear_error(400)
