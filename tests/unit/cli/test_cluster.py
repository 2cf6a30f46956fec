"""`quorate cluster` as it is typed, against a real HTTP server: what it says, what it asks for, and its exit codes."""

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quorate_cli import cluster
from quorate_cli.joining import Place, as_shell_lines, join_command
from quorate_cli.layout import Layout
from quorate_core.settings import HostPort
from quorate_node.settings import ClusterState, NodeSettings
from quorate_sdk.wire import MemberList

Make = Callable[..., Any]


def member(name: str, **changes: object) -> dict[str, object]:
    at = name[-1]
    return {
        "name": name, "peer": f"127.0.0.1:750{at}", "role": "voter", "is_leader": False,
        "url": f"http://127.0.0.1:850{at}", "is_reachable": True, "match_index": 90, "lag_entries": 0, **changes,
    }  # fmt: skip


def listed(*members: dict[str, object], leader: str = "node-1", **changes: object) -> dict[str, object]:
    found = members or (member("node-1", is_leader=True), member("node-2"), member("node-3"))
    return {"cluster_id": "c-1", "leader": leader, "members": list(found), "removed": ["node-0"], **changes}


LEARNER = member("node-4", role="learner", url="", is_reachable=False, match_index=0, lag_entries=1234)
WITH_LEARNER = listed(member("node-1", is_leader=True), member("node-2"), LEARNER)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "POLL_INTERVAL_S", 0.0)


class Terminal(io.StringIO):
    """A standard input that somebody sits at."""

    def isatty(self) -> bool:
        return True


def test_every_step_explains_itself_with_an_example(quorate: Make) -> None:
    _, out, _ = quorate("cluster", "--help")
    for step in ("status", "members", "add", "remove", "promote", "transfer"):
        assert f"  {step} " in out
        code, explained, _ = quorate("cluster", step, "--help")
        assert code == 0
        assert step in ("status", "members") or f"quorate cluster {step} " in explained


def test_members_are_shown_with_what_the_leader_knows_of_them(quorate: Make, named: Make, make_answer: Make) -> None:
    server = named(make_answer(body=WITH_LEARNER))
    code, out, _ = quorate("cluster", "members")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["node-1", "leader", "127.0.0.1:7501", "yes", "90", "0", "http://127.0.0.1:8501"] in rows
    assert ["node-4", "learner", "127.0.0.1:7504", "no", "0", "1234", "-"] in rows
    assert json.loads(quorate("cluster", "members", "--json")[1]) == WITH_LEARNER
    assert {asked.path for asked in server.asked} == {"/v1/cluster/members"}


def test_without_a_leader_nothing_more_is_claimed_than_one_node_knows(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    unknown = {"is_reachable": None, "match_index": None, "lag_entries": None}
    named(make_answer(body=listed(member("node-1", **unknown), leader="")))
    code, out, err = quorate("cluster", "members")
    assert (code, "There is no leader" in err) == (1, True)
    assert ["node-1", "voter", "127.0.0.1:7501", "?", "?", "?", "http://127.0.0.1:8501"] in [
        line.split() for line in out.splitlines()
    ]


def endpoint(address: str, name: str, role: str, **changes: object) -> dict[str, object]:
    known = {"address": address, "name": name, "role": role, "version": "3.4.23", "revision": 9, "store_bytes": 2048}
    return {**known, "error": None, **changes}


def tier(name: str, *endpoints: dict[str, object]) -> dict[str, object]:
    status = {
        "name": name, "url": f"http://{name}", "role": "api", "leader": "e1", "term": 2, "commit_index": 20,
        "applied_index": 20, "revision": 9, "store_bytes": 2048, "members": [], "connected": [], "apps": [],
        "uptime_s": 1.0, "store": {"url": "etcd://h1:1,h2:1", "leader": "e1", "endpoints": list(endpoints)},
    }  # fmt: skip
    return {"name": name, "url": f"http://{name}", "status": status, "error": None}


def test_of_nodes_on_an_external_store_it_is_shown_what_they_stand_on_and_what_does_not_answer_whom(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    first, refused = endpoint("h1:1", "e1", "leader"), {"error": "refused", "revision": 5}
    body = {
        "leader": "e1",
        "nodes": [
            tier("api-1", first, endpoint("h2:1", "e2", "follower", **refused), endpoint("h3:1", "", "", **refused)),
            tier("api-2", first, endpoint("h2:1", "e2", "follower"), endpoint("h3:1", "", "", **refused)),
        ],
    }
    named(make_answer(body=body))
    code, out, _ = quorate("cluster", "status")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["api-1", "http://api-1", "api", "2", "20", "20", "9", "2.0", "KiB"] in [row[:9] for row in rows]
    assert ["h1:1", "e1", "leader", "3.4.23", "9", "2.0", "KiB", "yes"] in rows
    assert ["h2:1", "e2", "follower", "3.4.23", "9", "2.0", "KiB", "not", "by", "api-1:", "refused"] in rows
    assert ["h3:1", "-", "-", "3.4.23", "5", "2.0", "KiB", "no:", "refused"] in rows


def shell_words(text: str) -> list[str]:
    """As a shell splits them."""
    done = subprocess.run(["/bin/sh", "-c", f"printf '%s\\0' {text}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_a_member_is_added_and_its_command_line_is_one_that_a_node_takes(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    server = named(make_answer(201, WITH_LEARNER))
    code, out, _ = quorate("cluster", "add", "node-4", "127.0.0.1:7504")
    assert code == 0
    assert (server.asked[0].method, server.asked[0].path) == ("POST", "/v1/cluster/members")
    assert json.loads(server.asked[0].body) == {"name": "node-4", "address": "127.0.0.1:7504"}
    assert "node-4 is a learner now" in out
    assert "what is in capitals is yours to fill in" in out
    assert "quorate cluster promote node-4" in out
    words = shell_words(out[out.index("python -m") :].partition("\n\n")[0])
    settings = NodeSettings.from_command_line("node", words[3:])
    assert (settings.name, settings.cluster_state, settings.cluster_id) == ("node-4", ClusterState.JOIN, "c-1")
    assert str(settings.members) == "node-1=127.0.0.1:7501,node-2=127.0.0.1:7502,node-4=127.0.0.1:7504"
    assert str(settings.data_dir) == "DATA_DIR"


MEMBERS = MemberList.model_validate(listed())


def words_for(place: Place, members: MemberList = MEMBERS) -> dict[str, str]:
    words = join_command("node-4", place, members)
    return dict(zip(words[3::2], words[4::2], strict=True))


def test_for_the_platform_that_runs_here_nothing_is_left_to_fill_in(tmp_path: Path) -> None:
    layout = Layout(tmp_path / ".quorate")
    flags = words_for(Place(HostPort("127.0.0.1", 7504), layout))
    assert flags["--data-dir"] == str(layout.data_dir / "node-4")
    assert flags["--cluster-secret-file"] == str(layout.secret_file)
    assert flags["--token-file"] == str(layout.token_file)
    assert HostPort.parse(flags["--http"]).host == "127.0.0.1"
    assert not any(value.isupper() for value in flags.values())


def test_for_another_machine_the_port_is_that_of_the_other_members_and_a_token_is_wanted() -> None:
    found = MemberList.model_validate(listed(member("a-1", url="http://a:8888"), member("a-2", url="http://b:8888")))
    flags = words_for(Place(HostPort("10.0.0.4", 7501), None), found)
    assert (flags["--http"], flags["--token-file"]) == ("10.0.0.4:8888", "TOKEN_FILE")
    assert words_for(Place(HostPort("10.0.0.4", 7501), None))["--http"] == "10.0.0.4:8501"
    named = Place(HostPort("10.0.0.4", 7501), None, HostPort("10.0.0.4", 80), Path("/srv/a b"))
    assert (words_for(named)["--http"], words_for(named)["--data-dir"]) == ("10.0.0.4:80", "/srv/a b")


def test_the_command_line_survives_being_pasted_into_a_shell() -> None:
    words = join_command("node-4", Place(HostPort("h", 1), None, data_dir=Path("/srv/a b; $(x)")), MEMBERS)
    assert shell_words(as_shell_lines(words)) == words


def test_scripts_get_the_members_and_the_words_of_the_command(quorate: Make, named: Make, make_answer: Make) -> None:
    named(make_answer(201, WITH_LEARNER))
    _, out, _ = quorate("cluster", "add", "node-4", "127.0.0.1:7504", "--json")
    found = json.loads(out)
    assert found["members"] == WITH_LEARNER["members"]
    assert found["command"][1:5] == ["-m", "quorate_node", "--cluster-state", "join"]


def test_an_address_that_is_none_is_refused_before_anything_is_asked(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    server = named(make_answer(body=listed()))
    code, _, err = quorate("cluster", "add", "node-4", "127.0.0.1")
    assert (code, "write host:port" in err, server.asked) == (4, True, [])


def test_add_can_wait_until_the_member_runs_and_has_caught_up(quorate: Make, named: Make, make_answer: Make) -> None:
    def after(**changes: object) -> Any:
        return make_answer(body=listed(member("node-1", is_leader=True), {**LEARNER, **changes}))

    named(
        make_answer(201, WITH_LEARNER), after(), after(), after(is_reachable=True),
        after(is_reachable=True, match_index=500), after(is_reachable=True, match_index=1700, lag_entries=34),
    )  # fmt: skip
    code, _, err = quorate("cluster", "add", "node-4", "127.0.0.1:7504", "--wait")
    assert code == 0
    assert err.splitlines() == [
        "node-4 cannot be reached yet: is it started?",
        "node-4 takes over a snapshot, or is about to",
        "node-4 lacks 1,234 entries",
        "node-4 runs and has caught up.",
    ]


def test_a_learner_is_promoted_once_it_has_caught_up_and_its_progress_is_shown(
    quorate: Make, named: Make, make_answer: Make, make_problem: Make
) -> None:
    behind = make_problem(409, "conflict", "node-4 lacks 1234 entries", lag_entries=1234)
    near = listed(member("node-1"), {**LEARNER, "is_reachable": True, "match_index": 9, "lag_entries": 1234})
    done = listed(member("node-1", is_leader=True), member("node-4"))
    server = named(
        make_answer(body=WITH_LEARNER), behind, make_answer(body=WITH_LEARNER), behind, make_answer(body=near),
        make_answer(body=done),
    )  # fmt: skip
    code, out, err = quorate("cluster", "promote", "node-4")
    assert (code, out) == (0, "node-4 is a voter now.\n")
    assert err.splitlines() == ["node-4 cannot be reached yet: is it started?", "node-4 lacks 1,234 entries"]
    posts = [asked.path for asked in server.asked if asked.method == "POST"]
    assert posts == ["/v1/cluster/members/node-4/promote"] * 3


def test_a_learner_that_does_not_catch_up_in_time_is_5_and_says_what_it_lacks(
    quorate: Make, named: Make, make_answer: Make, make_problem: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "POLL_INTERVAL_S", 1.0)
    behind = make_problem(409, "conflict", "node-4 lacks 1234 entries", lag_entries=1234)
    named(make_answer(body=WITH_LEARNER), behind, make_answer(body=WITH_LEARNER))
    code, _, err = quorate("cluster", "promote", "node-4", "--timeout", "0.5")
    assert code == 5
    assert "quorate: not within 0.5 s: node-4 cannot be reached yet" in err
    assert "node-4 still is a learner" in err


def test_who_is_a_voter_already_stays_one_and_who_is_unknown_is_3(
    quorate: Make, named: Make, make_answer: Make, make_problem: Make
) -> None:
    server = named(make_answer(body=listed()))
    assert quorate("cluster", "promote", "node-2")[:2] == (0, "node-2 is a voter already.\n")
    code, _, err = quorate("cluster", "promote", "node-9")
    assert (code, "node-9 is no member; there are node-1, node-2, node-3" in err) == (3, True)
    code, _, err = quorate("cluster", "promote", "node-0")
    assert (code, "node-0 was removed from the cluster" in err) == (3, True)
    assert {asked.method for asked in server.asked} == {"GET"}
    named(make_answer(body=WITH_LEARNER), make_problem(409, "conflict", "another change is under way"))
    assert quorate("cluster", "promote", "node-4")[0] == 4


def test_a_removal_asks_and_nothing_is_done_without_a_yes(
    quorate: Make, named: Make, make_answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = named(make_answer(body=listed()))
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    code, out, err = quorate("cluster", "remove", "node-3")
    assert (code, "Nothing was changed." in out) == (4, True)
    assert "Warning: without node-3 every voter that is left is needed: one more down, and it stops" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, _, err = quorate("cluster", "remove", "node-3")
    assert (code, "say --yes" in err) == (2, True)
    assert {asked.method for asked in server.asked} == {"GET"}


def test_a_member_is_removed_after_a_yes(
    quorate: Make, named: Make, make_answer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = named(make_answer(body=listed()), make_answer(body=listed(member("node-1"), member("node-2"))))
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    code, out, _ = quorate("cluster", "remove", "node-3")
    assert code == 0
    assert "node-3 was removed: its process ends by itself with exit status 78" in out
    assert [(asked.method, asked.path) for asked in server.asked] == [
        ("GET", "/v1/cluster/members"), ("DELETE", "/v1/cluster/members/node-3"),
    ]  # fmt: skip


@pytest.mark.parametrize(("removed", "code"), [(["node-3", "node-0"], 0), (["node-0"], 6)])
def test_when_the_answer_to_a_removal_is_lost_the_members_tell_whether_it_was_done(
    quorate: Make, named: Make, make_answer: Make, make_problem: Make, removed: list[str], code: int
) -> None:
    lost = make_problem(504, "outcome-unknown", "the link broke", retry="unknown")
    server = named(make_answer(body=listed()), lost, make_answer(body=listed(removed=removed)))
    assert quorate("cluster", "remove", "node-3", "--yes")[0] == code
    methods = [asked.method for asked in server.asked]
    assert methods[:3] == ["GET", "DELETE", "GET"]
    assert methods.count("DELETE") == 1, "it is never sent again"


def test_a_learner_is_removed_without_a_warning(quorate: Make, named: Make, make_answer: Make) -> None:
    named(make_answer(body=WITH_LEARNER), make_answer(body=listed()))
    code, out, err = quorate("cluster", "remove", "node-4", "--yes")
    assert (code, err) == (0, "")
    assert "is told so, should it come back, with exit status 78" in out


def test_whoever_removes_the_leader_is_told_that_another_will_lead(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    server = named(make_answer(body=listed()), make_answer(body=listed(member("node-2"), member("node-3"))))
    code, _, err = quorate("cluster", "remove", "node-1", "--yes")
    assert (code, "node-1 leads; the leadership goes to another voter first" in err) == (0, True)
    assert [asked.method for asked in server.asked] == ["GET", "DELETE"]


def test_whoever_would_stop_the_cluster_is_warned_and_the_servers_refusal_is_shown(
    quorate: Make, named: Make, make_answer: Make, make_problem: Make
) -> None:
    one_down = listed(member("node-1", is_leader=True), member("node-2"), member("node-3", is_reachable=False))
    named(make_answer(body=one_down), make_problem(409, "conflict", "only node-1 would be alive"))
    code, _, err = quorate("cluster", "remove", "node-2", "--yes")
    assert (code, "quorate: only node-1 would be alive" in err) == (4, True)
    assert "Warning: without node-2 there is no majority (node-3 cannot be reached), and it will be refused" in err


def test_a_member_that_is_down_is_removed_with_the_warning_that_the_rest_is_needed(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    one_down = listed(member("node-1", is_leader=True), member("node-2"), member("node-3", is_reachable=False))
    named(make_answer(body=one_down), make_answer(body=listed(member("node-1"), member("node-2"))))
    code, out, err = quorate("cluster", "remove", "node-3", "--yes")
    assert (code, "is told so, should it come back," in out) == (0, True)
    assert err == "Warning: without node-3 every voter that is left is needed: one more down, and it stops\n"


def test_the_leadership_is_given_to_somebody_or_to_whom_the_leader_likes(
    quorate: Make, named: Make, make_answer: Make
) -> None:
    server = named(make_answer(body={"leader": "node-3"}))
    assert quorate("cluster", "transfer", "node-3")[:2] == (0, "node-3 leads now.\n")
    assert quorate("cluster", "transfer", "--json")[:2] == (0, '{"leader":"node-3"}\n')
    assert [json.loads(asked.body) for asked in server.asked] == [{"to": "node-3"}, {"to": ""}]


@pytest.mark.parametrize(
    ("status", "slug", "retry", "code", "advice"),
    [
        (404, "not-found", "never", 3, ""),
        (409, "conflict", "never", 4, ""),
        (504, "outcome-unknown", "unknown", 6, "look first"),
    ],
)
def test_what_the_server_refuses_has_its_exit_code(
    quorate: Make, named: Make, make_answer: Make, make_problem: Make, status: int, slug: str, retry: str, code: int,
    advice: str,
) -> None:  # fmt: skip
    refusal = make_problem(status, slug, "the cause", retry=retry)
    for command in (("add", "node-4", "h:1"), ("transfer",)):
        named(refusal)
        got, _, err = quorate("cluster", *command)
        assert (got, "quorate: the cause" in err, advice in err) == (code, True, True)
    named(make_answer(body=listed()), refusal)
    assert quorate("cluster", "remove", "node-3", "--yes")[0] == code
