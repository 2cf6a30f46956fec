"""What is written to the stores, and what may be expected of them afterwards."""

import base64
import json

from benchmarks.store import KEYS_WRITTEN, WRITTEN, StoreScenario, surely_written
from benchmarks.store_records import VALUE_BYTES, Records, Work


def test_bodies_are_the_same_each_time_and_hold_what_is_expected_back() -> None:
    records = Records("k", 3)
    bodies = [json.loads(body) for body in records.bodies(Work.PUT)]
    assert {base64.b64decode(body["key"]): base64.b64decode(body["value"]) for body in bodies} == records.values
    assert {len(value) for value in records.values.values()} == {VALUE_BYTES}
    assert len(set(records.values.values())) == 3
    assert records.values == Records("k", 3).values
    assert [json.loads(body) for body in records.bodies(Work.RANGE)] == [{"key": body["key"]} for body in bodies]


def test_only_what_was_surely_written_is_expected_back() -> None:
    keys = list(WRITTEN.values)
    assert [key for key, _ in surely_written(6)] == keys[1:4], "the first is sent last, and the last ones are in doubt"
    assert surely_written(1) == []
    assert len(surely_written(10 * KEYS_WRITTEN)) == KEYS_WRITTEN - 1


def test_every_goal_is_about_a_load_that_is_measured() -> None:
    scenario = StoreScenario()
    assert {goal.load for goal in scenario.goals} == {load.name for load in scenario.loads}
    assert {Work(load.work) for load in scenario.loads} == set(Work)


def test_a_transaction_puts_its_key_if_that_was_put_before() -> None:
    records = Records("k", 2)
    for (key, value), body in zip(records.values.items(), records.bodies(Work.TRANSACTION), strict=True):
        name, said = base64.b64encode(key).decode(), json.loads(body)
        assert said["compare"] == [{"key": name, "target": "MOD", "result": "GREATER", "mod_revision": "0"}]
        assert said["success"] == [{"request_put": {"key": name, "value": base64.b64encode(value).decode()}}]


def test_a_serializable_range_differs_from_a_range_by_that_alone() -> None:
    records = Records("k", 2)
    ranges = [json.loads(body) for body in records.bodies(Work.SERIALIZABLE_RANGE)]
    assert ranges == [json.loads(body) | {"serializable": True} for body in records.bodies(Work.RANGE)]
