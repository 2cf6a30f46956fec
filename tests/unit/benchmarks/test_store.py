"""What is written to the stores, and what may be expected of them afterwards."""

import base64
import json

from benchmarks.store import KEYS_WRITTEN, PUT, RANGE, VALUE_BYTES, WRITTEN, Records, StoreScenario, surely_written


def test_bodies_are_the_same_each_time_and_hold_what_is_expected_back() -> None:
    records = Records("k", 3)
    bodies = [json.loads(body) for body in records.bodies(PUT)]
    assert {base64.b64decode(body["key"]): base64.b64decode(body["value"]) for body in bodies} == records.values
    assert {len(value) for value in records.values.values()} == {VALUE_BYTES}
    assert len(set(records.values.values())) == 3
    assert records.values == Records("k", 3).values
    assert [json.loads(body) for body in records.bodies(RANGE)] == [{"key": body["key"]} for body in bodies]


def test_only_what_was_surely_written_is_expected_back() -> None:
    keys = list(WRITTEN.values)
    assert [key for key, _ in surely_written(6)] == keys[1:4], "the first is sent last, and the last ones are in doubt"
    assert surely_written(1) == []
    assert len(surely_written(10 * KEYS_WRITTEN)) == KEYS_WRITTEN - 1


def test_every_goal_is_about_a_load_that_is_measured() -> None:
    scenario = StoreScenario()
    assert {goal.load for goal in scenario.goals} == {load.name for load in scenario.loads}
