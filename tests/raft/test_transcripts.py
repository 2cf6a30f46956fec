"""Every transcript in `testdata` is what the core does, to the letter.

`pytest tests/raft/test_transcripts.py --rewrite-transcripts` writes the outputs anew; without it, any difference fails.
"""

import difflib
import re
from pathlib import Path

import pytest
from support.raft_transcripts import Scene, parse, replay

TESTDATA = Path(__file__).parent / "testdata"
TRANSCRIPTS = sorted(TESTDATA.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_is_what_the_core_does(path: Path, request: pytest.FixtureRequest) -> None:
    written = path.read_text()
    replayed = replay(written)
    if request.config.getoption("rewrite_transcripts", default=False):
        path.write_text(replayed)
        return
    difference = list(
        difflib.unified_diff(written.splitlines(), replayed.splitlines(), f"{path.name} as written", "now", lineterm="")
    )
    assert not difference, "\n".join(difference)


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_tells_its_story_and_gives_each_step_an_output(path: Path) -> None:
    blocks = list(parse(path.read_text()))
    assert blocks[0].lead[0].startswith("# "), "the first line says what the file shows"
    assert all(block.commands or block.lead for block in blocks)


def test_a_difference_is_found() -> None:
    """The files are worth something: an output that is not what the core does now is told apart."""
    written = "cluster abc\ncampaign a\n----\na leads term 7\n"
    assert replay(written) != written
    assert replay(replay(written)) == replay(written)


def test_the_notation_page_explains_every_command() -> None:
    page = (TESTDATA / "README.md").read_text()
    commands = [name.removeprefix("do_").replace("_", "-") for name in vars(Scene) if name.startswith("do_")]
    assert len(commands) > 20
    assert [command for command in commands if not re.search(rf"`{command}\b", page)] == []
