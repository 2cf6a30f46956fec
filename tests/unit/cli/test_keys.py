"""`quorate cluster get|put|del` as they are typed, against a real HTTP server that speaks the store's API."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quorate_cli import stored_keys
from quorate_cli.client import ControlPlane
from quorate_cli.endpoints import Target
from quorate_cli.key_formats import SHOWN_CHARS_MAX, shown
from quorate_cli.stored_keys import VALUE_BYTES_MAX, KeyRange
from quorate_core.errors import DeadlineExceeded, OutcomeUnknown

Make = Callable[..., Any]


def text64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def kv(key: bytes, value: bytes = b"", revision: int = 7, version: int = 1) -> dict[str, str]:
    """As etcd writes it: what is empty or zero is left out."""
    fields = {"key": text64(key), "create_revision": "2", "mod_revision": str(revision), "version": str(version)}
    return {**fields, **({"value": text64(value)} if value else {})}


def found(*kvs: dict[str, str], revision: int = 9, count: int | None = None) -> dict[str, Any]:
    count = len(kvs) if count is None else count
    answer: dict[str, Any] = {"header": {"revision": str(revision)}}
    return {**answer, **({"kvs": list(kvs)} if kvs else {}), **({"count": str(count)} if count else {})}


def etcd_error(make_answer: Make, status: int, code: int, message: str) -> Any:
    return make_answer(status, {"error": message, "message": message, "code": code})


def asked_of(server: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(asked.path, json.loads(asked.body)) for asked in server.asked]


class Terminal(io.StringIO):
    """A standard input that somebody sits at."""

    def isatty(self) -> bool:
        return True


def test_every_step_explains_itself_with_an_example(quorate: Make) -> None:
    for step in ("get", "put", "del", "watch"):
        code, explained, _ = quorate("cluster", step, "--help")
        assert code == 0
        assert f"quorate cluster {step} " in explained


def test_a_key_is_shown_with_its_revisions_and_its_value(quorate: Make, named: Make, make_answer: Make) -> None:
    server = named(make_answer(body=found(kv(b"app/flag", b"on", 7, 3))))
    code, out, err = quorate("cluster", "get", "app/flag")
    assert (code, err) == (0, "")
    assert ["app/flag", "7", "3", "2", "-", "on"] in [line.split() for line in out.splitlines()]
    path, body = asked_of(server)[0]
    assert path == "/v3/kv/range"
    assert (base64.b64decode(body["key"]), "range_end" in body, body["serializable"]) == (b"app/flag", False, False)


def test_for_scripts_text_is_text_and_other_bytes_are_base64(quorate: Make, named: Make, make_answer: Make) -> None:
    named(make_answer(body=found(kv(b"a", b"on"), kv(b"b\xff", b"\0\xfe"))))
    printed = json.loads(quorate("cluster", "get", "", "--prefix", "--json")[1])
    assert (printed["revision"], printed["count"]) == (9, 2)
    text, binary = printed["kvs"]
    assert text == {
        "key": "a", "value": "on", "create_revision": 2, "mod_revision": 7, "version": 1, "lease": 0,
    }  # fmt: skip
    assert (base64.b64decode(binary["key_base64"]), base64.b64decode(binary["value_base64"])) == (b"b\xff", b"\0\xfe")
    keys = json.loads(quorate("cluster", "get", "", "--prefix", "--keys-only", "-o", "json")[1])["kvs"]
    assert "value" not in keys[0]


def test_raw_gives_a_value_byte_for_byte_as_it_was_put(named: Make, make_answer: Make) -> None:
    """In a process of its own: bytes that are no text pass no terminal's encoding."""
    command = [sys.executable, "-m", "quorate_cli", "cluster"]
    named(make_answer(body=found(kv(b"a\xff", b"\0\xff\x1b[31m"))))
    done = subprocess.run([*command, "get", b"a\xff", "-o", "raw"], capture_output=True, check=True)
    assert done.stdout == b"\0\xff\x1b[31m"
    server = named(make_answer(body={"header": {"revision": "3"}}))
    subprocess.run([*command, "put", b"a\xff", b"\xfe"], capture_output=True, check=True)
    [(_, body)] = asked_of(server)
    assert (base64.b64decode(body["key"]), base64.b64decode(body["value"])) == (b"a\xff", b"\xfe")


def test_a_key_that_is_not_there_exits_with_3_and_a_prefix_of_none_does_not(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    named(make_answer(body=found()))
    code, out, err = quorate("cluster", "get", "nope")
    assert (code, out) == (3, "")
    assert "there is no key 'nope' at revision 9" in err
    code, out, _ = quorate("cluster", "get", "nope", "--prefix")
    assert (code, out) == (0, "No key begins with 'nope' at revision 9.\n")
    assert json.loads(quorate("cluster", "get", "nope", "--prefix", "--json")[1])["kvs"] == []


def test_a_long_range_is_read_in_pages_of_one_revision(
    quorate: Make, named: Make, make_answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_keys, "PAGE_KEYS", 2)
    pages = [
        found(kv(b"a1"), kv(b"a2"), revision=9, count=5),
        found(kv(b"a3"), kv(b"a4"), revision=12, count=3),
        found(kv(b"a5"), revision=13, count=1),
    ]
    server = named(*[make_answer(body=page) for page in pages])
    _, out, err = quorate("cluster", "get", "a", "--prefix", "--keys-only", "-o", "raw", "--limit", "0")
    assert (out.split(), err) == (["a1", "a2", "a3", "a4", "a5"], "")
    bodies = [body for _, body in asked_of(server)]
    assert [base64.b64decode(body["key"]) for body in bodies] == [b"a", b"a2\0", b"a4\0"]
    assert [body["revision"] for body in bodies] == ["0", "9", "9"]
    assert {base64.b64decode(body["range_end"]) for body in bodies} == {b"b"}


def test_a_limit_is_kept_over_pages_and_what_is_left_out_is_said(
    quorate: Make, named: Make, make_answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_keys, "PAGE_KEYS", 2)
    server = named(
        make_answer(body=found(kv(b"a1"), kv(b"a2"), count=5)), make_answer(body=found(kv(b"a3"), count=3))
    )  # fmt: skip
    _, out, err = quorate("cluster", "get", "a", "--prefix", "--keys-only", "-o", "raw", "--limit", "3")
    assert out.split() == ["a1", "a2", "a3"]
    assert "first 3 of 5 keys; for all: --limit 0" in err
    assert [body["limit"] for _, body in asked_of(server)] == ["2", "1"]


@pytest.mark.parametrize(
    ("status", "code", "message", "exit_code", "said"),
    [
        (400, 11, "etcdserver: mvcc: required revision has been compacted", 4, "required revision has been compacted"),
        (400, 11, "etcdserver: mvcc: required revision is a future revision", 4, "is a future revision"),
        (404, 5, "etcdserver: requested lease not found", 3, "requested lease not found"),
        (403, 7, "keys under 'quorate/' belong to the platform; use its own API", 4, "belong to the platform"),
        (429, 8, "etcdserver: mvcc: database space exceeded", 4, "Delete what is no longer needed"),
        (501, 12, "not offered here", 4, "not offered here"),
        (401, 16, "etcdserver: invalid auth token", 4, "--token-file FILE"),
        (500, 13, "an internal error", 1, "an internal error"),
    ],
)
def test_an_error_is_one_clear_sentence_and_an_exit_code(
    quorate: Make, named: Make, make_answer: Make, status: int, code: int, message: str, exit_code: int, said: str
) -> None:
    named(etcd_error(make_answer, status, code, message))
    found_code, out, err = quorate("cluster", "put", "a", "b")
    assert (found_code, out) == (exit_code, "")
    assert said in err
    assert "etcdserver" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("code", "status"), [(14, 503), (4, 504)])
def test_a_write_that_timed_out_in_the_store_may_have_been_done_and_a_read_has_done_nothing(
    new_server: Make, make_answer: Make, code: int, status: int
) -> None:
    """etcd gives this text with the code of an unavailable service, too."""
    server = new_server(etcd_error(make_answer, status, code, "etcdserver: request timed out, possibly due to a fault"))
    with ControlPlane(Target((server.url,), None), deadline_s=0.1) as control_plane:
        with pytest.raises(OutcomeUnknown, match="request timed out"):
            control_plane.call_json("/v3/kv/put", {}, request_id="r-1")
        with pytest.raises(DeadlineExceeded):
            control_plane.call_json("/v3/kv/range", {})


def test_a_write_goes_with_a_request_id_and_the_same_one_when_it_is_sent_again(
    quorate: Make, named: Make, make_answer: Make, make_problem: Make
) -> None:
    """So it may be sent again after a lost answer: it is applied once."""
    written = make_answer(body={"header": {"revision": "12"}})
    server = named(make_answer(breaks_off=True), make_problem(504, "outcome-unknown", "?", retry="unknown"), written)
    code, out, _ = quorate("cluster", "put", "app/flag", "on")
    assert (code, out) == (0, "app/flag is written at revision 12.\n")
    assert len(server.asked) == 3
    [request_id] = {asked.headers["quorate-request-id"] for asked in server.asked}
    assert len(request_id) >= 32
    quorate("cluster", "put", "app/flag", "on")
    assert server.asked[-1].headers["quorate-request-id"] != request_id


def test_a_write_that_may_have_been_done_is_never_reported_as_not_done(
    quorate: Make, named: Make, make_answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try is lost with its node, and then nobody listens any more."""
    server = named(make_answer(breaks_off=True))
    answer = server.answer

    def answer_and_go(handler: Any) -> None:
        answer(handler)
        server._http.socket.close()

    monkeypatch.setattr(server, "answer", answer_and_go)
    code, _, err = quorate("cluster", "put", "app/flag", "on")
    assert code == 6
    assert "its answer was lost" in err


def test_a_value_comes_from_the_command_line_a_file_or_standard_input(
    quorate: Make, named: Make, make_answer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = named(make_answer(body={"header": {"revision": "3"}}))
    (tmp_path / "value").write_bytes(b"\0\xff")
    quorate("cluster", "put", "a", "text")
    quorate("cluster", "put", "a", f"@{tmp_path}/value")
    for arguments in (["-"], []):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"piped")))
        quorate("cluster", "put", "a", *arguments)
    values = [base64.b64decode(body["value"]) for _, body in asked_of(server)]
    assert values == [b"text", b"\0\xff", b"piped", b"piped"]


def test_what_no_store_would_take_is_refused_before_it_is_sent(
    quorate: Make, named: Make, make_answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = named(make_answer(body={"header": {"revision": "3"}}))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"x" * (VALUE_BYTES_MAX + 1))))
    code, _, err = quorate("cluster", "put", "a")
    assert (code, "larger than a value may be" in err) == (4, True)
    assert quorate("cluster", "put", "", "x")[0] == 4
    assert quorate("cluster", "get", "")[0] == 4
    assert quorate("cluster", "put", "a", "x", "--lease", "eleven")[0] == 4
    assert quorate("cluster", "put", "a", "@/nowhere/value")[0] == 1
    assert server.asked == []


def test_a_lease_is_given_in_either_notation_and_what_was_there_is_shown(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    server = named(make_answer(body={"header": {"revision": "3"}, "prev_kv": kv(b"a", b"old", 2)}))
    _, out, _ = quorate("cluster", "put", "a", "new", "--lease", "0x10", "--previous")
    assert "Before: old (since revision 2)" in out
    printed = json.loads(quorate("cluster", "put", "a", "new", "--lease", "16", "--previous", "--json")[1])
    assert (printed["revision"], printed["previous"]["value"]) == (3, "old")
    assert [(body["lease"], body["prev_kv"]) for _, body in asked_of(server)] == [("16", True)] * 2


def test_a_key_is_deleted_and_one_that_was_not_there_exits_with_3(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    server = named(
        make_answer(body={"header": {"revision": "8"}, "deleted": "1"}), make_answer(body={"header": {"revision": "8"}})
    )
    assert quorate("cluster", "del", "a")[:2] == (0, "1 key is deleted as of revision 8.\n")
    code, out, err = quorate("cluster", "del", "a")
    assert (code, out, "there is no key 'a'" in err) == (3, "", True)
    assert [path for path, _ in asked_of(server)] == ["/v3/kv/deleterange"] * 2
    assert all(asked.headers["quorate-request-id"] for asked in server.asked)


def test_many_keys_are_not_deleted_without_a_yes(
    quorate: Make, named: Make, make_answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = named(
        make_answer(body=found(count=1234)), make_answer(body=found(count=1234)), make_answer(body=found(count=1234)),
        make_answer(body={"header": {"revision": "8"}, "deleted": "1234"}),
    )  # fmt: skip
    code, _, err = quorate("cluster", "del", "app/", "--prefix")
    assert (code, "1,234 keys that begin with 'app/'" in err, "--yes" in err) == (2, True, True)
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    assert quorate("cluster", "del", "app/", "--prefix")[0] == 4
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    code, out, _ = quorate("cluster", "del", "app/", "--prefix")
    assert (code, "1,234 keys are deleted" in out) == (0, True)
    assert [path for path, _ in asked_of(server)] == ["/v3/kv/range"] * 3 + ["/v3/kv/deleterange"]
    quorate("cluster", "del", "app/", "--prefix", "--yes")
    assert [path for path, _ in asked_of(server)][4:] == ["/v3/kv/deleterange"]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"plain", "plain"),
        ("ÄÖ 東".encode(), "ÄÖ 東"),
        (b"two\nlines\t\x1b[31m\x9b".replace(b"\x9b", "\x9b".encode()), r"two\nlines\t\x1b[31m\x9b"),
        ("\u202egnp.exe".encode(), r"\u202egnp.exe"),
        (b"", ""),
        (b"\xff\0", "0xff00"),
        (b"\xff" * 17, "0x" + "ff" * 16 + "… (17 B)"),
        (b"x" * 2048, "x" * SHOWN_CHARS_MAX + "… (2.0 KiB)"),
    ],
)
def test_whatever_a_value_is_it_is_shown_on_one_line_and_steers_no_terminal(data: bytes, line: str) -> None:
    assert shown(data) == line


@given(st.binary(max_size=400) | st.text().map(str.encode))
def test_no_byte_reaches_the_terminal_that_cannot_be_printed(data: bytes) -> None:
    assert shown(data).isprintable()


@given(st.binary(max_size=4), st.binary(max_size=6))
def test_a_prefix_is_the_range_of_exactly_the_keys_that_begin_with_it(prefix: bytes, key: bytes) -> None:
    keys = KeyRange(prefix, is_prefix=True)
    ends_nowhere = keys.end == b"\0"
    is_inside = bool(key) and keys.begin <= key and (ends_nowhere or key < keys.end)
    # The smallest key there is, a zero byte, is where the range of all keys begins.
    assert is_inside == (bool(key) and key.startswith(prefix))
