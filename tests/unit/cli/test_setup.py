"""`quorate setup`: the default documents for a control plane that somebody else has started."""

import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quorate_cli.__main__ import main
from quorate_core.secrets import load_or_create_secret

Make = Callable[..., Any]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `quorate setup` with its arguments; exit code, stdout, stderr."""
    for variable in ("QUORATE_ENDPOINTS", "QUORATE_TOKEN", "QUORATE_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quorate", "setup", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_documents_are_published_with_the_token_and_named(
    setup: Make, new_server: Make, make_answer: Make, tmp_path: Path
) -> None:
    token = load_or_create_secret(tmp_path / "token")
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    server = new_server(make_answer(201, {}))
    code, out, _ = setup("--endpoints", server.url, "--token-file", str(tmp_path / "token"))
    assert code == 0
    assert "gateway/routes.yaml, order/settings.yaml, inventory/settings.yaml" in out
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {token}"}
    assert {asked.headers["if-none-match"] for asked in server.asked} == {"*"}


def test_run_again_it_says_that_there_was_nothing_to_do(setup: Make, new_server: Make, make_problem: Make) -> None:
    server = new_server(make_problem(412, "precondition-failed", "it exists"))
    code, out, _ = setup("--endpoints", server.url)
    assert (code, "Nothing to do" in out) == (0, True)


def test_a_control_plane_that_takes_no_writes_in_time_is_reported_as_unavailable(
    setup: Make, new_server: Make, make_problem: Make
) -> None:
    server = new_server(make_problem(503, "not-proposed", "no leader", retry="safe"))
    code, _, err = setup("--endpoints", server.url, "--timeout", "0.5")
    assert code == 5
    assert server.url in err
    assert "run again" in err


def test_a_token_that_is_refused_ends_it_at_once(setup: Make, new_server: Make, make_problem: Make) -> None:
    server = new_server(make_problem(401, "unauthenticated", "a token is required here"))
    code, _, err = setup("--endpoints", server.url)
    assert code == 4
    assert "a token is required here" in err
    assert len(server.asked) == 1
