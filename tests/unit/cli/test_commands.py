"""The commands as they are typed, against a real HTTP server: output, requests, exit codes."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]


def metadata(version: int = 3, **changes: object) -> dict[str, object]:
    return {
        "namespace": "default", "group": "order", "key": "settings.yaml", "version": version, "revision": 40 + version,
        "format": "yaml", "deleted": False, "author": "ada", "comment": "why", "changed_at": "2031-05-01T10:00:00Z",
        "sha256": hashlib.sha256(b"x").hexdigest(), **changes,
    }  # fmt: skip


def test_every_command_explains_itself(quorate: Make) -> None:
    code, out, _ = quorate("--help")
    assert code == 0
    assert "Exit codes: 0 done" in out
    listed = out.partition("Commands:")[2].partition("Exit codes")[0]
    commands = [line.split()[0] for line in listed.splitlines() if line.strip()]
    assert {"up", "down", "reset", "ps", "logs", "services", "config", "cluster"} <= set(commands)
    for command in commands:
        code, out, _ = quorate(command, "--help")
        assert (code, f"quorate {command}" in out) == (0, True)


def test_wrong_usage_exits_with_2(quorate: Make) -> None:
    assert quorate("nonsense")[0] == 2
    assert quorate("config", "put", "default")[0] == 2
    assert quorate("up", "--nodes", "2")[0] == 2


def test_without_a_platform_the_error_says_how_to_start_one(quorate: Make) -> None:
    code, out, err = quorate("services")
    assert (code, out) == (5, "")
    assert "no platform runs here" in err
    assert "make up" in err


def test_services_are_listed_for_people_and_for_scripts(quorate: Make, named: Make, make_answer: Make) -> None:
    summary = {"service": "order", "instances": 2, "up": 1, "stale": 0, "is_protected": False}
    body = {"namespace": "default", "revision": 9, "services": [summary]}
    server = named(make_answer(body=body))
    code, out, _ = quorate("services")
    assert code == 0
    assert ["order", "2", "1", "0", "-"] in [line.split() for line in out.splitlines()]
    code, out, _ = quorate("services", "--json", "--namespace", "shop")
    assert json.loads(out) == body
    assert [asked.path for asked in server.asked] == ["/v1/registry/default/services", "/v1/registry/shop/services"]


def test_the_instances_of_a_service_are_listed_and_their_absence_is_3(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    instance = {
        "namespace": "default", "service": "order", "id": "order-1", "host": "127.0.0.1", "port": 20001,
        "scheme": "http", "weight": 100, "zone": "", "version": "1.0", "metadata": {}, "status": "UP", "ttl_s": 10,
        "revision": 12,
    }  # fmt: skip
    listed = {"namespace": "default", "service": "order", "revision": 12, "instances": [instance]}
    named(make_answer(body=listed), make_answer(body={**listed, "instances": []}))
    code, out, _ = quorate("services", "order")
    assert (code, "http://127.0.0.1:20001" in out) == (0, True)
    code, out, err = quorate("services", "order")
    assert (code, out) == (3, "")
    assert "has no instance" in err


NODE = {
    "name": "node-1", "url": "http://127.0.0.1:8501", "role": "leader", "leader": "node-1", "term": 4,
    "commit_index": 90, "applied_index": 89, "revision": 70, "store_bytes": 1_572_864, "members": ["node-1", "node-2"],
    "connected": ["node-2"], "apps": [], "uptime_s": 200.0,
}  # fmt: skip


def test_the_cluster_is_shown_with_the_nodes_that_did_not_answer(quorate: Make, named: Make, make_answer: Make) -> None:
    nodes = [
        {"name": "node-1", "url": NODE["url"], "status": NODE, "error": None},
        {"name": "node-2", "url": "", "status": None, "error": "no answer"},
    ]
    named(make_answer(body={"leader": "node-1", "nodes": nodes}))
    code, out, _ = quorate("cluster", "status")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert [
        "node-1",
        NODE["url"],
        "leader",
        "4",
        "90",
        "89",
        "70",
        "1.5",
        "MiB",
        "-",
        "3",
        "min",
        "20",
        "s",
        "node-2",
    ] in rows
    assert any(row[:4] == ["node-2", "-", "no", "answer"] for row in rows)


def test_a_cluster_without_a_leader_is_1(quorate: Make, named: Make, make_answer: Make) -> None:
    named(make_answer(body={"leader": "", "nodes": []}))
    assert quorate("cluster", "status")[0] == 1
    code, out, err = quorate("cluster", "status", "--json")
    assert (code, json.loads(out)["leader"]) == (1, "")
    assert "no leader" in err


def test_a_document_is_printed_byte_for_byte(quorate: Make, named: Make, make_answer: Make) -> None:
    server = named(make_answer(body={**metadata(), "content": "a: ä\n\n"}))
    assert quorate("config", "get", "default", "order", "settings.yaml") == (0, "a: ä\n\n", "")
    _, out, _ = quorate("config", "get", "default", "order", "settings.yaml", "--version", "2", "--json")
    assert json.loads(out)["version"] == 3
    assert server.asked[1].path.endswith("?version=2")


def test_put_publishes_the_file_with_author_comment_and_condition(
    quorate: Make, named: Make, make_answer: Make, tmp_path: Path
) -> None:
    server = named(make_answer(body=metadata(version=4)))
    (tmp_path / "new.yaml").write_bytes(b"max_lines: 5\n")
    arguments = ("config", "put", "default", "order", "settings.yaml", "new.yaml", "-m", "less", "--author", "ada")
    code, out, _ = quorate(*arguments, "--if-version", "3")
    assert (code, "version 4" in out) == (0, True)
    quorate(*arguments, "--if-version", "0")
    quorate(*arguments)
    assert {asked.body for asked in server.asked} == {b"max_lines: 5\n"}
    assert server.asked[0].path == "/v1/config/default/order/settings.yaml?author=ada&comment=less"
    conditions = [(asked.headers.get("if-match"), asked.headers.get("if-none-match")) for asked in server.asked]
    assert conditions == [('"3"', None), (None, "*"), (None, None)]


def test_refused_content_is_shown_with_its_lines_and_is_4(
    quorate: Make, named: Make, make_problem: Make, tmp_path: Path
) -> None:
    errors = [{"message": "unknown key 'servce'", "line": 4, "path": "routes.0"}, {"message": "no name", "line": 0}]
    named(make_problem(422, "invalid-content", "routes.yaml is not valid", errors=errors))
    (tmp_path / "routes.yaml").write_text("routes: []")
    code, out, err = quorate("config", "put", "default", "gateway", "routes.yaml", "routes.yaml")
    assert (code, out) == (4, "")
    assert err.splitlines()[:3] == [
        "quorate: routes.yaml is not valid", "  line 4, routes.0: unknown key 'servce'", "  no name",
    ]  # fmt: skip
    assert "what was in force still is" in err


@pytest.mark.parametrize(
    ("status", "slug", "retry", "code", "advice"),
    [
        (404, "not-found", "never", 3, "config list"),
        (412, "precondition-failed", "never", 4, "read it again"),
        (401, "unauthenticated", "never", 4, "--token-file"),
        (504, "outcome-unknown", "unknown", 6, "look first"),
        (507, "quota-exceeded", "never", 4, "Delete"),
        (500, "internal", "unknown", 1, ""),
    ],
)
def test_each_kind_of_error_has_an_exit_code_and_says_what_to_do(
    quorate: Make, named: Make, make_problem: Make, tmp_path: Path, status: int, slug: str, retry: str, code: int,
    advice: str,
) -> None:  # fmt: skip
    named(make_problem(status, slug, "the cause", retry=retry))
    (tmp_path / "f").write_text("x")
    command = ("get",) if status == 404 else ("put",)
    rest = () if status == 404 else ("f",)
    got, out, err = quorate("config", *command, "default", "order", "settings.yaml", *rest)
    assert (got, out) == (code, "")
    assert err.startswith("quorate: the cause")
    assert advice in err
    assert "Traceback" not in err


def test_what_the_error_says_already_is_not_said_twice(
    quorate: Make, named: Make, make_problem: Make, tmp_path: Path
) -> None:
    errors = [{"message": "no such service", "line": 2}, {"message": "no path", "line": 3}]
    named(make_problem(422, "invalid-content", "refused, line 2: no such service", errors=errors))
    (tmp_path / "f").write_text("x")
    _, _, err = quorate("config", "put", "default", "gateway", "routes.yaml", "f")
    assert err.splitlines()[:2] == ["quorate: refused, line 2: no such service", "  line 3: no path"]


def test_a_file_that_is_missing_or_too_large_is_named_before_anything_is_sent(
    quorate: Make, named: Make, make_answer: Make, tmp_path: Path
) -> None:
    server = named(make_answer())
    code, _, err = quorate("config", "put", "default", "order", "settings.yaml", "none.yaml")
    assert (code, "none.yaml" in err) == (1, True)
    (tmp_path / "huge.yaml").write_bytes(b"x" * 1_048_577)
    code, _, err = quorate("config", "put", "default", "order", "settings.yaml", "huge.yaml")
    assert (code, "huge.yaml" in err) == (4, True)
    assert server.asked == []


def test_history_diff_and_rollback(quorate: Make, named: Make, make_answer: Make) -> None:
    versions = [metadata(3, deleted=True, comment="[bold]not markup[/bold]\x1b[2J"), metadata(2)]
    server = named(
        make_answer(body={"versions": versions}),
        make_answer(body={**metadata(2), "content": "a: 1\nb: 2\n"}),
        make_answer(body={**metadata(3), "content": "a: 1\nb: 3\n"}),
        make_answer(body=metadata(4)),
    )
    _, out, _ = quorate("config", "history", "default", "order", "settings.yaml")
    assert "deleted" in out
    assert "[bold]not markup[/bold]" in out
    assert "\x1b" not in out
    _, out, _ = quorate("config", "diff", "default", "order", "settings.yaml", "--from", "2")
    assert out.splitlines()[-2:] == ["-b: 2", "+b: 3"]
    code, out, _ = quorate("config", "rollback", "default", "order", "settings.yaml", "2", "--author", "ada")
    assert (code, "version 4" in out) == (0, True)
    body = json.loads(server.asked[-1].body)
    assert body == {"version": 2, "comment": "rollback to version 2", "author": "ada"}


def editor(tmp_path: Path, python: str) -> str:
    """An editor that runs `python` with the file's path as `path`."""
    script = tmp_path / "editor.py"
    script.write_text(f"import sys, pathlib\npath = pathlib.Path(sys.argv[1])\n{python}\n")
    return f"{sys.executable} {script}"


def test_an_edit_is_published_on_the_version_that_was_read(
    quorate: Make, named: Make, make_answer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = named(make_answer(body={**metadata(3), "content": "a: 1\n"}), make_answer(body=metadata(4)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("VISUAL", editor(tmp_path, "path.write_text(path.read_text() + 'b: 2\\n')"))
    code, out, _ = quorate("config", "edit", "default", "order", "settings.yaml")
    assert (code, "version 4" in out) == (0, True)
    assert (server.asked[1].body, server.asked[1].headers["if-match"]) == (b"a: 1\nb: 2\n", '"3"')
    assert list(tmp_path.glob("quorate-edit-*")) == []


def test_an_edit_that_changes_nothing_sends_nothing(
    quorate: Make, named: Make, make_answer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = named(make_answer(body={**metadata(3), "content": "a: 1\n"}))
    monkeypatch.setenv("VISUAL", editor(tmp_path, ""))
    code, out, _ = quorate("config", "edit", "default", "order", "settings.yaml")
    assert (code, out) == (0, "Nothing was changed.\n")
    assert len(server.asked) == 1


def test_an_edit_of_what_does_not_exist_is_published_only_if_it_still_does_not(
    quorate: Make, named: Make, make_answer: Make, make_problem: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = named(make_problem(404, "not-found", "no such document"), make_answer(201, metadata(1)))
    monkeypatch.setenv("VISUAL", editor(tmp_path, "path.write_text('new: 1')"))
    assert quorate("config", "edit", "default", "order", "settings.yaml")[0] == 0
    assert server.asked[1].headers["if-none-match"] == "*"


def test_an_edit_that_is_refused_is_kept_and_its_place_is_told(
    quorate: Make, named: Make, make_answer: Make, make_problem: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("sys.stdin", (tmp_path / "no-terminal").open("w+"))
    monkeypatch.setenv("VISUAL", editor(tmp_path, "path.write_text('my work')"))
    for refusal in (
        make_problem(412, "precondition-failed", "version 5 now"),
        make_problem(422, "invalid-content", "no"),
    ):
        named(make_answer(body={**metadata(3), "content": "a: 1\n"}), refusal)
        code, _, err = quorate("config", "edit", "default", "order", "settings.yaml")
        (kept,) = tmp_path.glob("quorate-edit-*")
        assert (code, str(kept) in err) == (4, True)
        assert kept.read_text() == "my work"
        kept.unlink()
    sys.stdin.close()


def test_an_editor_that_cannot_be_started_is_named(
    quorate: Make, named: Make, make_answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(make_answer(body={**metadata(3), "content": "a: 1\n"}))
    monkeypatch.setenv("VISUAL", "no-such-editor")
    code, _, err = quorate("config", "edit", "default", "order", "settings.yaml")
    assert (code, "no-such-editor" in err) == (3, True)


def test_watch_prints_each_change_once_and_says_when_the_connection_is_lost(
    quorate: Make, named: Make, make_answer: Make, make_problem: Make
) -> None:
    document = {**metadata(3), "content": "a: 1"}

    def stream(event: str, revision: int, **data: object) -> object:
        text = json.dumps({"revision": revision, **data})
        body = f"id: {revision}\nevent: {event}\ndata: {text}\n\n".encode()
        return make_answer(200, body, {"content-type": "text/event-stream"})

    server = named(
        stream("snapshot", 43, documents=[document]),
        stream("delta", 44, documents=[{**document, "version": 4}]),
        stream("snapshot", 45, documents=[]),
        make_problem(403, "forbidden", "enough"),
    )
    code, out, err = quorate("config", "watch", "default", "order", "settings.yaml")
    assert code == 4  # the script's way of ending a watch that has no end
    words = [line.split()[2:4] for line in out.splitlines()]
    assert words == [["version", "3"], ["version", "4"], ["deleted", "by"]]
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "43", "44", "45"]
    assert err.count("connection was lost") == 3


def test_a_stranger_never_gets_the_token_of_the_platform_that_runs_here(
    quorate: Make, new_server: Make, make_answer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_server(make_answer(body={"namespace": "default", "revision": 9, "services": []}))
    root = tmp_path / ".quorate"
    (root / "run").mkdir(parents=True)
    (root / "cluster.json").write_text('{"cluster_id": "c", "nodes": 1}')
    token = "".join(chr(97 + number % 26) for number in range(40))
    (root / "token").write_text(token)
    (root / "token").chmod(0o600)
    part = {"kind": "node", "pid": 1, "start_ticks": 0, "url": server.url, "state": "ready", "restarts": 0,
            "log": str(root / "logs" / "node-1.log")}  # fmt: skip
    run = {"pid": 1, "start_ticks": 0, "started_at": "", "state": "ready", "endpoints": [server.url], "gateway": "",
           "admin": "", "parts": {"node-1": part}}  # fmt: skip
    (root / "run" / "state.json").write_text(json.dumps(run))
    assert quorate("services")[0] == 0
    assert quorate("services", "--endpoints", server.url)[0] == 0
    assert [asked.headers.get("authorization") for asked in server.asked] == [f"Bearer {token}", None]


def test_where_nothing_runs_ps_is_3_and_down_has_nothing_to_do(quorate: Make) -> None:
    code, out, _ = quorate("ps")
    assert (code, out) == (3, "")
    code, out, _ = quorate("down")
    assert (code, "No platform runs" in out) == (0, True)


def test_logs_without_any_say_where_they_would_be(quorate: Make) -> None:
    code, _, err = quorate("logs")
    assert (code, ".quorate/logs" in err) == (3, True)


def test_logs_of_a_part_that_is_not_there_names_those_that_are(quorate: Make, tmp_path: Path) -> None:
    logs = tmp_path / ".quorate" / "logs"
    logs.mkdir(parents=True)
    (logs / "node-1.log").write_text("2031-05-01T10:00:01Z one\n2031-05-01T10:00:03Z three\n")
    (logs / "gateway.log").write_text("2031-05-01T10:00:02Z two\n")
    code, _, err = quorate("logs", "node-7")
    assert (code, "gateway, node-1" in err) == (3, True)
    _, out, _ = quorate("logs", "-n", "2")
    assert out == "gateway | 2031-05-01T10:00:02Z two\nnode-1  | 2031-05-01T10:00:03Z three\n"
    _, out, _ = quorate("logs", "node-1", "-n", "1")
    assert out == "2031-05-01T10:00:03Z three\n"


def test_a_reset_without_a_terminal_wants_an_explicit_yes(
    quorate: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / ".quorate"
    root.mkdir()
    assert "nothing to remove" in quorate("reset")[1]
    (root / "cluster.json").write_text('{"cluster_id": "c", "nodes": 1}')
    with (tmp_path / "no-terminal").open("w+") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert quorate("reset")[0] == 2
    assert root.exists()
    assert quorate("reset", "--yes")[0] == 0
    assert not root.exists()
