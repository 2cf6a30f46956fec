"""`quorate services` and `quorate changes`: what they ask, what people are shown, and the exit codes of scripts."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Make = Callable[..., Any]

INSTANCE = {
    "namespace": "default", "service": "order", "id": "order-1", "host": "127.0.0.1", "port": 20001, "scheme": "http",
    "weight": 100, "zone": "", "version": "1.0", "metadata": {}, "status": "UP", "ttl_s": 10, "revision": 12,
    "tags": ["blue", "canary"],
}  # fmt: skip
SETTINGS = {"protection_threshold": 0.5, "hold_s": 300, "default_check": None}
CHANGE = {
    "revision": 7, "at": "2026-01-31T12:00:00.000Z", "kind": "instance", "namespace": "default",
    "name": "order/order-1", "what": "changed", "by": "ann", "details": {"weight": ["100", "7"]},
}  # fmt: skip


def drained(**word: Any) -> dict[str, Any]:
    return {"revision": 9, "drained": True, "acknowledged": ["gateway/a"], "pending": [], "silent_nodes": [], **word}


def listed(*instances: dict[str, Any], **word: Any) -> dict[str, Any]:
    return {"namespace": "default", "service": "order", "revision": 12, "instances": list(instances), **word}


def changes(*found: dict[str, Any], complete: bool = True) -> dict[str, Any]:
    return {"from_revision": 3, "to_revision": 9, "complete": complete, "changes": list(found)}


def test_a_drained_instance_is_0_and_says_who_asked(quorate: Make, named: Make, make_answer: Make) -> None:
    server = named(make_answer(body=drained()))
    code, out, _ = quorate("services", "drain", "order", "order-1", "--wait", "2")
    assert (code, "drained at revision 9: all 1 that watch it said so" in out) == (0, True)
    (asked,) = server.asked
    path = "/v1/registry/default/services/order/instances/order-1/drain?wait=2.0"
    assert (asked.method, asked.path) == ("POST", path)
    assert "@" in asked.headers["quorate-author"]


def test_who_has_not_acknowledged_is_named_and_it_is_1(quorate: Make, named: Make, make_answer: Make) -> None:
    pending = [{"subscriber": "gateway/b", "node": "node-2", "revision": 4}]
    silent = [{"node": "node-3", "error": "no answer"}]
    named(make_answer(body=drained(drained=False, pending=pending, silent_nodes=silent)))
    code, out, _ = quorate("services", "drain", "order", "order-1")
    assert code == 1
    assert "gateway/b at node-2: has revision 4" in out
    assert "node-3: no answer" in out
    code, out, _ = quorate("services", "drain", "order", "order-1", "--json")
    assert (code, json.loads(out)["pending"]) == (1, pending)


def test_settings_are_shown_and_only_what_is_given_is_changed(quorate: Make, named: Make, make_answer: Make) -> None:
    server = named(make_answer(body=SETTINGS))
    code, out, _ = quorate("services", "settings", "order")
    assert (code, "protection_threshold" in out, len(server.asked)) == (0, True, 1)
    check = '{"type": "tcp"}'
    code, _, _ = quorate("services", "settings", "order", "--protection-threshold", "0.2", "--default-check", check)
    assert code == 0
    assert [asked.method for asked in server.asked] == ["GET", "GET", "PUT"]
    put = json.loads(server.asked[-1].body)
    assert (put["protection_threshold"], put["hold_s"], put["default_check"]["type"]) == (0.2, 300, "tcp")
    quorate("services", "settings", "order", "--reset")
    assert server.asked[-1].method == "DELETE"


@pytest.mark.parametrize("check", ["tcp", '{"type": "smoke"}'])
def test_a_check_that_is_none_is_refused_and_nothing_is_sent(
    quorate: Make, named: Make, make_answer: Make, check: str
) -> None:
    server = named(make_answer(body=SETTINGS))
    code, _, err = quorate("services", "settings", "order", "--default-check", check)
    assert (code, "check" in err) == (4, True)
    assert [asked.method for asked in server.asked if asked.method != "GET"] == []


def test_a_service_that_is_called_as_a_command_is_shown_by_show(quorate: Make, named: Make, make_answer: Make) -> None:
    server = named(make_answer(body={**listed(INSTANCE), "service": "drain"}))
    assert quorate("services", "show", "drain")[0] == 0
    assert quorate("services", "--json", "order")[0] == 0
    assert [asked.path.rpartition("/")[2] for asked in server.asked] == ["drain", "order"]


def test_tables_tell_of_tags_stale_ones_health_and_protection(quorate: Make, named: Make, make_answer: Make) -> None:
    stale = {**INSTANCE, "id": "order-2", "stale": True}
    health = {"passing": False, "output": "connection refused", "checked_by": "node-1", "since": ""}
    checked = {**INSTANCE, "id": "order-3", "ephemeral": False, "health": health, "status": "DOWN"}
    summary = {"service": "order", "instances": 3, "up": 1, "stale": 1, "is_protected": True}
    named(
        make_answer(body=listed(INSTANCE, stale, checked, is_protected=True)),
        make_answer(body={"namespace": "default", "revision": 9, "services": [summary]}),
    )
    _, out, _ = quorate("services", "order")
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "blue, canary" in rows["order-1"]
    assert "heartbeats, 10 s" in rows["order-1"]
    assert " stale " in rows["order-2"]
    assert "check: failing connection refused" in rows["order-3"]
    assert "Protected" in out
    _, out, _ = quorate("services")
    assert ["order", "3", "1", "1", "yes"] in [line.split() for line in out.splitlines()]


def test_changes_are_told_with_who_and_from_what_to_what(quorate: Make, named: Make, make_answer: Make) -> None:
    server = named(make_answer(body=changes(CHANGE)))
    code, out, _ = quorate("changes", "--since", "1h", "--limit", "5")
    assert code == 0
    assert all(word in out for word in ("order/order-1", "changed", "ann", "weight: 100 -> 7", CHANGE["at"]))
    assert server.asked[0].path == "/v1/changes?from=1h&to=&limit=5"
    assert json.loads(quorate("changes", "--json")[1]) == changes(CHANGE)


def test_only_what_is_asked_for_is_told(quorate: Make, named: Make, make_answer: Make) -> None:
    others = [{**CHANGE, "kind": "config", "name": "order/a.yaml"}, {**CHANGE, "namespace": "shop"},
              {**CHANGE, "name": "orders/x"}]  # fmt: skip
    named(make_answer(body=changes(CHANGE, *others)))
    for arguments, count in ((("--kind", "config"), 1), (("-N", "shop"), 1), (("--name", "order"), 3), ((), 4)):
        assert len(json.loads(quorate("changes", "--json", *arguments)[1])["changes"]) == count


def test_that_more_may_have_changed_is_said_beside(quorate: Make, named: Make, make_answer: Make) -> None:
    named(make_answer(body=changes(complete=False)))
    code, out, err = quorate("changes")
    assert (code, "Nothing has changed" in out, "from revision 3 on" in err) == (0, True, True)


def test_following_asks_for_what_comes_after_and_misses_nothing(quorate: Make, named: Make, make_answer: Make) -> None:
    later = {**CHANGE, "revision": 10, "what": "deregistered", "details": {}}
    server = named(
        make_answer(body=changes(CHANGE)),
        make_answer(body={**changes(later), "to_revision": 12}),
        make_answer(status=404, body={"type": "urn:quorate:problem:not-found", "detail": "the end of the script"}),
    )
    code, out, _ = quorate("changes", "--follow")
    assert code == 3
    assert [line.split()[0] for line in out.splitlines()] == [CHANGE["at"]] * 2
    assert [asked.path.partition("from=")[2].partition("&")[0] for asked in server.asked] == ["10m", "10", "13"]


def test_alarms_of_nodes_are_shown_once_with_who_says_so(quorate: Make, named: Make, make_answer: Make) -> None:
    status = {
        "url": "http://127.0.0.1:8501", "role": "leader", "leader": "node-1", "term": 4, "commit_index": 90,
        "applied_index": 89, "revision": 70, "store_bytes": 1, "members": ["node-1", "node-2"], "connected": [],
        "apps": [], "uptime_s": 1.0, "alarms": ["copies differ"],
    }  # fmt: skip
    nodes = [
        {"name": name, "url": "http://127.0.0.1:8501", "status": {**status, "name": name}}
        for name in ("node-1", "node-2")
    ]
    named(make_answer(body={"leader": "node-1", "nodes": nodes}))
    _, _, err = quorate("cluster", "status")
    assert "Alarm: copies differ (says node-1, node-2)" in err
