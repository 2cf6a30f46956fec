"""`quorate cluster hash` and `compact` as they are typed, and how members that differ are judged."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from quorate_cli import cluster_hash
from quorate_cli.cluster_hash import Answer, chosen_revision, exit_code, judge, summary
from quorate_sdk.wire import NodeStatus

Make = Callable[..., Any]
BEHIND = {"error": "etcdserver: mvcc: required revision is a future revision", "code": 11}
COMPACTED = {"error": "etcdserver: mvcc: required revision has been compacted", "code": 11}


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_hash, "POLL_INTERVAL_S", 0.0)


def verdicts(*answers: Answer) -> str:
    return " ".join(each.verdict for each in judge(answers))


def same(name: str, value: int = 5, compact_revision: int = 0) -> Answer:
    return Answer(name, value, compact_revision)


SILENT = Answer("x", is_silent=True, reason="no answer")
LAGS = Answer("y", reason="at revision 3 of 9")
BEYOND = Answer("z", has_diverged=True, reason="at revision 3 of 9, though it has applied entry 70")


@pytest.mark.parametrize(
    ("answers", "expected", "code"),
    [
        ([same("a"), same("b"), same("c")], "same same same", 0),
        ([same("a")], "same", 0),
        ([same("a"), same("b", 6), same("c")], "same diverges same", 1),
        ([same("a"), same("b", 6), same("c", 7)], "undecided undecided undecided", 1),
        ([same("a"), same("b", 6)], "undecided undecided", 1),
        ([same("a"), same("b", 6), SILENT], "undecided undecided silent", 1),
        ([same("a"), same("b"), SILENT], "same same silent", 5),
        ([same("a"), same("b"), LAGS], "same same lags", 5),
        ([same("a"), same("b"), BEYOND], "same same diverges", 1),
        ([same("a"), BEYOND], "undecided diverges", 1),
        ([same("a"), same("b"), same("c", 6), same("d", 6), same("e")], "same same diverges diverges same", 1),
        ([same("a"), same("b"), same("c", 6), same("d", 6), SILENT], "undecided " * 4 + "silent", 1),
        ([same("a", 5, 8), same("b", 4, 2), same("c", 5, 8)], "same lags same", 5),
        ([SILENT, SILENT], "silent silent", 5),
    ],
)
def test_who_differs_from_a_majority_has_diverged(answers: list[Answer], expected: str, code: int) -> None:
    assert verdicts(*answers) == expected
    assert exit_code(judge(answers)) == code


def test_the_summary_says_whom_to_replace_and_of_whom_nothing_is_known() -> None:
    found = summary(judge([same("a"), same("b", 6), same("c"), same("d"), SILENT]), 9)
    assert found.startswith("DIVERGED at revision 9: b. Replace it")
    assert "Nothing can be said of x" in found
    assert "no majority" in summary(judge([same("a"), same("b", 6)]), 9)
    assert summary(judge([same("a"), same("b")]), 9) == "a, b: the same up to revision 9."


def status(name: str, url: str = "", **changes: object) -> dict[str, Any]:
    fields = {
        "name": name, "url": url, "role": "follower", "leader": "node-1", "term": 2, "commit_index": 70,
        "applied_index": 70, "revision": 9, "store_bytes": 5000, "members": ["node-1", "node-2"], "connected": [],
        "apps": [], "uptime_s": 1.0, "voters": ["node-1", "node-2"], "learners": [], "quota_bytes": 1_048_576,
    }  # fmt: skip
    return {**fields, **changes}


def reports(*nodes: dict[str, Any], silent: tuple[str, ...] = ()) -> dict[str, Any]:
    told = [{"name": node["name"], "url": node["url"], "status": node} for node in nodes]
    return {"leader": "node-1", "nodes": [*told, *({"name": name, "url": "", "error": "gone"} for name in silent)]}


@pytest.mark.parametrize(
    ("revisions", "chosen"), [([9, 9, 9], 9), ([9, 8, 7], 8), ([100, 8, 8], 8), ([9, 7], 7), ([5], 5), ([9, 9, 2], 9)]
)
def test_the_newest_revision_that_a_majority_has_is_chosen(revisions: list[int], chosen: int) -> None:
    members = [
        NodeStatus.model_validate(status(f"node-{at}", revision=revision, applied_index=revision * 2))
        for at, revision in enumerate(revisions)
    ]
    assert chosen_revision(members) == (chosen, chosen * 2)


def hashed(value: int, compact_revision: int = 0) -> dict[str, Any]:
    return {"header": {}, "hash": value, "compact_revision": str(compact_revision)}


def hash_json(quorate: Make, *more: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    code, out, _ = quorate("cluster", "hash", "--json", *more)
    found = json.loads(out)
    return code, {each["name"]: each["verdict"] for each in found["members"]}, found


def test_each_member_is_asked_at_one_revision_where_it_is(
    quorate: Make, named: Make, new_server: Make, make_answer: Make
) -> None:
    one, two = (new_server(make_answer(body=hashed(7, 3))) for _ in range(2))
    named(make_answer(body=reports(status("node-1", one.url, revision=12), status("node-2", two.url, revision=9))))
    code, found, _ = hash_json(quorate)
    assert (code, found) == (0, {"node-1": "same", "node-2": "same"})
    for server in (one, two):
        assert [(asked.path, json.loads(asked.body)) for asked in server.asked] == [
            ("/v3/maintenance/hash", {"revision": "9"})
        ]
    code, out, _ = quorate("cluster", "hash")
    assert "node-1, node-2: the same up to revision 9." in out
    assert ["node-1", "7", "3", "same"] in [line.split() for line in out.splitlines()]


def test_members_that_differ_and_one_that_is_down(
    quorate: Make, named: Make, new_server: Make, make_answer: Make
) -> None:
    servers = [new_server(make_answer(body=hashed(value))) for value in (7, 7, 8)]
    nodes = [status(f"node-{at}", server.url) for at, server in enumerate(servers, 1)]
    named(make_answer(body=reports(*nodes, silent=("node-4",))))
    code, found, _ = hash_json(quorate)
    assert code == 1
    assert found == {"node-1": "undecided", "node-2": "undecided", "node-3": "undecided", "node-4": "silent"}
    named(make_answer(body=reports(*nodes)))
    code, found, _ = hash_json(quorate)
    assert (code, found) == (1, {"node-1": "same", "node-2": "same", "node-3": "diverges"})


def test_a_member_that_lags_is_waited_for(quorate: Make, named: Make, new_server: Make, make_answer: Make) -> None:
    quick = new_server(make_answer(body=hashed(7)))
    late = new_server(
        make_answer(400, BEHIND), make_answer(body=status("node-2", revision=8, applied_index=69)),
        make_answer(body=hashed(7)),
    )  # fmt: skip
    other = new_server(make_answer(body=hashed(7)))
    nodes = [
        status("node-1", quick.url), status("node-2", late.url, revision=8, applied_index=69),
        status("node-3", other.url),
    ]  # fmt: skip
    named(make_answer(body=reports(*nodes)))
    code, found, _ = hash_json(quorate, "--timeout", "30")
    assert (code, found["node-2"]) == (0, "same")
    assert len(quick.asked) == 1, "who has answered is not asked again"


def test_one_that_lags_too_long_is_told_from_one_that_will_never_come(
    quorate: Make, named: Make, new_server: Make, make_answer: Make
) -> None:
    def asked_at(index: int) -> dict[str, Any]:
        late = new_server(
            *[make_answer(400, BEHIND), make_answer(body=status("node-3", revision=8, applied_index=index))] * 500
        )
        nodes = [status(f"node-{at}", new_server(make_answer(body=hashed(7))).url) for at in (1, 2)]
        named(make_answer(body=reports(*nodes, status("node-3", late.url, revision=8, applied_index=index))))
        code, found, whole = hash_json(quorate, "--timeout", "0.1")
        reason = next(each["reason"] for each in whole["members"] if each["name"] == "node-3")
        return {"code": code, "verdict": found["node-3"], "reason": reason}

    assert asked_at(69) == {"code": 5, "verdict": "lags", "reason": "at revision 8 of 9"}
    beyond = asked_at(71)
    assert (beyond["code"], beyond["verdict"]) == (1, "diverges")
    assert "though it has applied entry 71" in beyond["reason"]


def test_a_revision_that_is_forgotten_meanwhile_is_replaced_by_a_newer_one(
    quorate: Make, named: Make, new_server: Make, make_answer: Make
) -> None:
    member = new_server(make_answer(400, COMPACTED), make_answer(body=hashed(7, 10)))
    server = named(
        make_answer(body=reports(status("node-1", member.url, revision=9))),
        make_answer(body=reports(status("node-1", member.url, revision=12))),
    )
    code, found, whole = hash_json(quorate)
    assert (code, found, whole["revision"]) == (0, {"node-1": "same"}, 12)
    assert len(server.asked) == 2


def test_a_member_that_answers_nonsense_is_silent_and_not_different(
    quorate: Make, named: Make, new_server: Make, make_answer: Make
) -> None:
    servers = [new_server(make_answer(body=body)) for body in (hashed(7), [1, 2], {"hash": "x"})]
    named(make_answer(body=reports(*(status(f"node-{at}", each.url) for at, each in enumerate(servers, 1)))))
    code, found, _ = hash_json(quorate)
    assert (code, list(found.values())) == (5, ["same", "silent", "silent"])


def test_nodes_on_a_store_elsewhere_have_nothing_to_compare(quorate: Make, named: Make, make_answer: Make) -> None:
    tier = status("api-1", "http://127.0.0.1:1", role="api", store={"url": "etcd://10.0.0.1:2379"})
    named(make_answer(body=reports(tier)))
    code, _, err = quorate("cluster", "hash")
    assert (code, "name its members" in err) == (4, True)


def in_turn(make_answer: Make, *bodies: Any, before: int = 5000, after: int = 800) -> list[Any]:
    """What a node answers to `compact`: its state, the revision, whatever else, and its state again."""
    asked = [make_answer(body=reports(status("node-1", store_bytes=before)))]
    asked.append(make_answer(body={"header": {"revision": "40"}, "count": "3"}))
    return [*asked, *bodies, make_answer(body=reports(status("node-1", store_bytes=after)))]


@pytest.mark.parametrize(
    ("arguments", "revision"), [((), 40), (("--keep", "10"), 30), (("--keep", "0"), 40), (("25",), 25)]
)
def test_what_was_compacted_is_said(
    quorate: Make, named: Make, make_answer: Make, arguments: tuple[str, ...], revision: int
) -> None:
    server = named(*in_turn(make_answer, make_answer(body={"header": {}})))
    code, out, _ = quorate("cluster", "compact", *arguments)
    assert (code, f"revisions before {revision} are forgotten; now is 40" in out) == (0, True)
    assert "800 B of a quota of 1.0 MiB; it was 4.9 KiB" in out
    assert (server.asked[2].path, json.loads(server.asked[2].body)) == (
        "/v3/kv/compaction", {"revision": str(revision)}
    )  # fmt: skip


def test_what_was_forgotten_before_is_no_failure(quorate: Make, named: Make, make_answer: Make) -> None:
    named(*in_turn(make_answer, make_answer(400, COMPACTED)))
    code, out, _ = quorate("cluster", "compact", "25")
    assert (code, "Nothing was compacted: revisions before 25 were forgotten already" in out) == (0, True)
    named(*in_turn(make_answer, make_answer(400, COMPACTED)))
    assert json.loads(quorate("cluster", "compact", "25", "--json")[1])["compacted_revision"] is None


def test_to_keep_more_than_there_is_compacts_nothing(quorate: Make, named: Make, make_answer: Make) -> None:
    server = named(*in_turn(make_answer))
    code, out, _ = quorate("cluster", "compact", "--keep", "1000")
    assert (code, "no more than 40 revisions" in out) == (0, True)
    assert not any("compaction" in asked.path for asked in server.asked)


def test_a_revision_that_is_not_there_yet_is_refused(quorate: Make, named: Make, make_answer: Make) -> None:
    named(*in_turn(make_answer, make_answer(400, BEHIND)))
    code, _, err = quorate("cluster", "compact", "4000")
    assert (code, "future revision" in err) == (4, True)


def test_a_revision_and_a_number_to_keep_do_not_go_together(quorate: Make) -> None:
    assert quorate("cluster", "compact", "5", "--keep", "5")[0] == 4


def test_the_status_shows_how_much_of_the_quota_is_used(quorate: Make, named: Make, make_answer: Make) -> None:
    named(make_answer(body=reports(status("node-1", store_bytes=943_718), status("node-2", quota_bytes=0))))
    lines = quorate("cluster", "status")[1].splitlines()
    assert "90% of 1.0 MiB" in next(line for line in lines if line.split()[:1] == ["node-1"])
    assert "%" not in next(line for line in lines if line.split()[:1] == ["node-2"])
