"""The v3 JSON API to the letter: a node answers what a real etcd 3.4 has answered, request for request.

`README.md` says how the transcripts are made; `differences.json` names what differs on purpose.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from support.node_processes import node_cluster
from support.v3_transcripts import DIFFERENCES, TRANSCRIPTS, Player, in_order, read_script, script_names

NAMES = script_names()
UNANNOUNCED = """
import asyncio, runpy
from quorate_node.fleet import FleetMembership

async def announce_nothing(self):
    await asyncio.Event().wait()

FleetMembership._run = announce_nothing
runpy.run_module("quorate_node", run_name="__main__", alter_sys=True)
"""
"""A node that does not say in the store that it is up: that takes a revision, at a time of its own."""
STEPS_MIN = 100
"""What is compared is much; a transcript that was lost should be noticed."""


def read_transcript(name: str) -> dict[str, Any]:
    return dict(json.loads((TRANSCRIPTS / f"{name}.json").read_text()))


def read_differences() -> dict[str, str]:
    return dict(json.loads(DIFFERENCES.read_text()))


@pytest.mark.parametrize("name", NAMES)
def test_a_node_answers_as_etcd_does(tmp_path: Path, name: str) -> None:
    transcript = read_transcript(name)
    wrong: list[str] = []
    with node_cluster(tmp_path, 1) as cluster:
        node = cluster.nodes[0]
        node.program = ("-c", UNANNOUNCED)
        node.changes.update(transcript.get("node", {}))
        cluster.start()
        with Player("127.0.0.1", node.http_port) as player:
            for number, step in enumerate(transcript["steps"]):
                expected = step["ours"] if "differs" in step else step["answer"]
                answer = player.play(step)
                if in_order(answer) != in_order(expected):
                    wrong.append(f"{number} {step['says']}\n  wanted {in_order(expected)}\n  got    {in_order(answer)}")
    assert not wrong, f"{len(wrong)} of {len(transcript['steps'])}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_a_transcript_is_of_its_script_as_it_is_now(name: str) -> None:
    transcript, script = read_transcript(name), read_script(name)
    without_answers = [
        {field: value for field, value in step.items() if field != "answer"} for step in transcript["steps"]
    ]
    assert without_answers == script["steps"], f"record it anew: scripts/record_etcd_transcripts.py {name}"
    assert all("answer" in step for step in transcript["steps"])


def test_every_difference_is_named_with_its_reason_and_is_one() -> None:
    differences = read_differences()
    seen: set[str] = set()
    for name in NAMES:
        for step in read_transcript(name)["steps"]:
            assert ("differs" in step) == ("ours" in step), step["says"]
            if "differs" in step:
                assert in_order(step["ours"]) != in_order(step["answer"]), f"{name}: {step['says']} does not differ"
                seen.add(step["differs"])
    assert seen == set(differences)


def test_much_is_compared_and_all_of_it_with_one_release_of_etcd() -> None:
    transcripts = [read_transcript(name) for name in NAMES]
    assert sum(len(transcript["steps"]) for transcript in transcripts) >= STEPS_MIN
    assert len({transcript["recorded_from"] for transcript in transcripts}) == 1
