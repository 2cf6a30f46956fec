"""The whole HTTP API of a running node, asked what its own OpenAPI document allows, and what it does not.

schemathesis makes the requests from the document; which ones is decided by `FUZZ_SEED` (default 1) and by nothing else,
and how many by `FUZZ_EXAMPLES` a kind and operation (default 10, which takes about 20 s; 1,000 for a long run).
Whatever is asked, the answer comes in time and is what the document says of it; an error is one of ours or of etcd's
form, and shows nothing of the machine. Afterwards the node is as well as before.
"""

import base64
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from quorate_core.errors import Problem, Retry
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as document_checks
from support import plain_http
from support.node_processes import NodeProcess, node_cluster
from support.repository import ROOT

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
AREAS = ("/v3/kv/", "/v3/(?!kv/)", "/v1/registry/", "/v1/config/", "/(v1/cluster/.*|v1/changes)?$")
"""Patterns of paths; together they match all, but for `/v3beta`, which has the same handlers as `/v3`."""

CALL_S_MAX = 10.0
WAIT_S_MAX = 0.05
"""For a change, where a request may say how long it waits for one."""
GROWTH_BYTES_MAX = 96 * 1024 * 1024
FAILURES_SHOWN_MAX = 5
SECONDS_MAX = max(600, EXAMPLES * 10)
"""For all examples of one area: bounds what hangs, on a machine that others use too."""

WATCHES = ("/v3/watch", "/v1/config/{namespace}/watch", "/v1/registry/{namespace}/watch")
"""Their answers have no end."""
STREAMS = ("/v3/lease/keepalive", "/v3/maintenance/snapshot")
"""Their answers are lines of JSON, as many as it takes."""
NOT_OFFERED = "/v3/auth/"
NOT_OFFERED_EXAMPLES = 2
LAST_MESSAGE = b'{"create_request":{"key":"Zm9v"}}'
"""Behind each body of `/v3/watch`: a stream on which nothing is asked for says nothing, and that is right."""
SERVER_ERRORS = (501, 503, 504, 507)
LEAKS = re.compile(
    rf"Traceback|File \"|\.py\b|site-packages|0x[0-9a-f]{{8}}|{re.escape(str(ROOT))}|{re.escape(sys.prefix)}"
)

NAMES = ("a", "b", "c.json")
KEYS = (b"a", b"b", b"quorate/x", b"\0")
"""So few that requests come upon what others have written."""
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

CHECKS = [
    document_checks.status_code_conformance,
    document_checks.content_type_conformance,
    document_checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with node_cluster(tmp_path_factory.mktemp("fuzzed"), 1) as cluster:
        cluster.start()
        yield cluster.nodes[0]


@pytest.fixture(scope="module", autouse=True)
def formats() -> None:
    """What the document calls `byte` and `int64`: keys that are there and numbers that mean something, now and then."""
    data = st.sampled_from(KEYS) | st.binary(max_size=32)
    number = st.integers(-2, 12) | st.integers(INT64_MIN, INT64_MAX)
    schemathesis.openapi.format("byte", data.map(lambda key: base64.b64encode(key).decode()))
    schemathesis.openapi.format("int64", number.map(str))
    schemathesis.openapi.format("uint64", st.integers(0, 2**64 - 1).map(str))


@pytest.fixture(scope="module")
def document(node: NodeProcess) -> dict[str, Any]:
    return dict(plain_http.get(node.url + "/openapi.json", timeout=CALL_S_MAX).json())


def test_the_document_is_one_and_describes_errors_of_every_operation(document: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(document).validate()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            described = operation["responses"].get("default", {}).get("content", {})
            assert described, f"{method} {path} does not describe its errors"
            assert "422" not in operation["responses"], f"{method} {path}: wrong requests are answered by 400 here"
    for reference in references_in(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in found, f"{reference} leads nowhere"
            found = found[part]
    forgotten = [path for path in document["paths"] if not any(re.match(area, path) for area in AREAS)]
    assert all(path.startswith("/v3beta/") for path in forgotten), forgotten


def references_in(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from references_in(item)


@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("area", AREAS)
def test_whatever_is_asked_the_answer_is_in_time_and_as_the_document_has_it(
    node: NodeProcess, document: dict[str, Any], area: str
) -> None:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=node.url)
    operations = [found.ok() for found in schema.get_all_operations()]
    chosen = [operation for operation in operations if re.match(area, operation.path)]
    assert chosen, f"no path matches {area}"
    before_bytes, log_chars = resident_bytes(node), len(node.log)
    failures: list[str] = []
    with requests.Session() as session:
        for operation in chosen:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                failures += failures_of(operation, mode, Caller(session, node))
    assert not failures, "\n\n".join([f"{len(failures)} operations fail:", *failures[:FAILURES_SHOWN_MAX]])
    require_well(node, before_bytes, log_chars)


def failures_of(operation: Any, mode: GenerationMode, ask: "Caller") -> list[str]:
    """What is wrong with one of the answers to requests of one kind, if anything is."""
    asked, examples = 0, NOT_OFFERED_EXAMPLES if operation.path.startswith(NOT_OFFERED) else EXAMPLES

    @seed(SEED)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def every_answer_is_right(case: Any) -> None:
        nonlocal asked
        asked += 1
        if mode is GenerationMode.POSITIVE:
            name_what_is_there(case)
        ask(case)

    try:
        every_answer_is_right()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, (
            f"no request can be made of {operation.label}"
        )  # it takes nothing at all
    except BaseExceptionGroup as group:
        return [f"{operation.label}, {mode.value}: {'; '.join(str(error) for error in group.exceptions)}"]
    except (AssertionError, requests.RequestException) as error:
        return [f"{operation.label}, {mode.value}: {error}"]
    takes_a_body_or_name = bool(operation.body) or bool(operation.path_parameters)
    assert asked >= examples // 2 or not takes_a_body_or_name, f"{operation.label} was asked {asked} times only"
    return []


def name_what_is_there(case: Any) -> None:
    """Half of the names in a path become one of a few."""
    for parameter, name in (case.path_parameters or {}).items():
        draw = zlib.crc32(f"{parameter} {name}".encode())
        if draw % 2:
            case.path_parameters[parameter] = NAMES[draw // 2 % len(NAMES)]


class Caller:
    """Asks the node what a case says, and fails for an answer that must not be."""

    def __init__(self, session: requests.Session, node: NodeProcess) -> None:
        self._session = session
        self._leaks: Callable[[str], Any] = re.compile(f"{LEAKS.pattern}|{re.escape(str(node.folder))}").search

    def __call__(self, case: Any) -> None:
        if case.operation.path in WATCHES:
            self._watch(case)
            return
        if isinstance(case.query, dict) and "wait" in case.query:
            case.query["wait"] = shortened(case.query["wait"])
        answer = case.call(session=self._session, timeout=CALL_S_MAX)
        self._require_honest(case, answer.status_code, answer.content)
        if case.operation.path in STREAMS and answer.status_code == requests.codes.ok:
            assert all(json.loads(line)["result"] for line in answer.content.splitlines())
            return
        is_raw = "raw" in (case.query or {})  # content as its author has it, of any schema
        case.validate_response(answer, checks=CHECKS[:2] if is_raw else CHECKS)

    def _watch(self, case: Any) -> None:
        """As far as its head; the rest never ends."""
        request = case.as_transport_kwargs()
        if case.operation.path == "/v3/watch":
            body = json.dumps(request.pop("json")).encode() if "json" in request else request.get("data") or b""
            request["data"] = (body if isinstance(body, bytes) else str(body).encode()) + LAST_MESSAGE
        with self._session.request(**request, timeout=CALL_S_MAX, stream=True) as answer:
            content = b"" if answer.status_code == requests.codes.ok else answer.content
            self._require_honest(case, answer.status_code, content)

    def _require_honest(self, case: Any, status: int, content: bytes) -> None:
        curl = case.as_curl_command()
        assert status < 500 or status in SERVER_ERRORS, f"{status} {content[:500]!r} to {curl}"
        text = content.decode(errors="replace")
        if status >= 400:
            require_error_form(case.operation.path, status, text, curl)
            assert not self._leaks(text), f"{text} shows what is inside, to {curl}"


def require_error_form(path: str, status: int, text: str, curl: str) -> None:
    """etcd's under `/v3`, where what the surface itself refuses has ours; ours elsewhere."""
    body = json.loads(text)
    if path.startswith("/v3/") and "type" not in body:
        assert body["error"] == body["message"], f"{text} to {curl}"
        assert isinstance(body["code"], int), f"{text} to {curl}"
        return
    assert set(Problem.schema["required"]) <= set(body), f"{text} to {curl}"
    assert body["status"] == status, f"{text} to {curl}"
    assert body["retry"] in set(Retry), f"{text} to {curl}"


def shortened(wait: Any) -> Any:
    try:
        return min(float(wait), WAIT_S_MAX)
    except (TypeError, ValueError, OverflowError):
        return wait


def require_well(node: NodeProcess, before_bytes: int, log_chars: int) -> None:
    """Ready, writing and reading, without a defect in its log, and not much larger than it was."""
    said = node.log[log_chars:]
    assert "unhandled_error" not in said, said
    assert "Traceback" not in said, said
    with plain_http.client(base_url=node.url, timeout=CALL_S_MAX) as http:
        assert http.get("/readyz").text == "ok\n"
        put = http.post("/v3/kv/put", json={"key": "d2VsbA==", "value": "d2VsbA=="})
        found = http.post("/v3/kv/range", json={"key": "d2VsbA=="})
    assert put.status_code == 200, put.text
    assert found.json()["kvs"][0]["value"] == "d2VsbA=="
    assert resident_bytes(node) - before_bytes < GROWTH_BYTES_MAX


def resident_bytes(node: NodeProcess) -> int:
    assert node.process is not None
    pages = int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
