"""`pytest tests/raft --rewrite-transcripts` writes the outputs in `testdata` anew; look at what changed before you
believe it."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-transcripts",
        action="store_true",
        dest="rewrite_transcripts",
        help="write the outputs of tests/raft/testdata anew, as the consensus core gives them now",
    )
