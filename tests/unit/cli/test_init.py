"""`quorate init`: secrets for processes that somebody else starts, made once, and accepted by those processes."""

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from quorate_cli.__main__ import main
from quorate_core.secrets import load_secret
from quorate_node import NodeSettings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def quorate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with its arguments; exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quorate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_it_makes_what_a_node_takes_and_only_its_owner_can_read(quorate: Run, tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    code, out, _ = quorate("init", str(folder))
    assert code == 0
    assert "cluster.id, cluster.secret, token" in out
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert load_secret(folder / "token") != load_secret(folder / "cluster.secret")
    settings = NodeSettings.from_command_line(
        "node",
        ["--name", "n", "--data-dir", "/nowhere", "--http", "127.0.0.1:0", "--peer", "127.0.0.1:0",
         "--members", "n=127.0.0.1:0", "--cluster-id-file", str(folder / "cluster.id"),
         "--cluster-secret-file", str(folder / "cluster.secret")],
    )  # fmt: skip
    assert settings.cluster_id == (folder / "cluster.id").read_text().strip()


def test_two_clusters_share_nothing(quorate: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert quorate("init", str(tmp_path / name))[0] == 0
    for file in ("cluster.id", "cluster.secret", "token"):
        assert (tmp_path / "a" / file).read_text() != (tmp_path / "b" / file).read_text()


def test_run_again_it_changes_nothing_and_makes_only_what_is_missing(quorate: Run, tmp_path: Path) -> None:
    assert quorate("init", str(tmp_path))[0] == 0
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    code, out, _ = quorate("init", str(tmp_path))
    assert (code, "already" in out) == (0, True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    (tmp_path / "token").unlink()
    code, out, _ = quorate("init", str(tmp_path))
    assert (code, "token" in out, "cluster.id" in out) == (0, True, False)
    after = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"token"}


def test_a_secret_that_others_can_read_is_refused_and_named(quorate: Run, tmp_path: Path) -> None:
    assert quorate("init", str(tmp_path))[0] == 0
    (tmp_path / "token").chmod(0o644)
    code, _, err = quorate("init", str(tmp_path))
    assert code != 0
    assert str(tmp_path / "token") in err
    assert "Traceback" not in err


def test_a_folder_that_cannot_be_made_is_named(quorate: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = quorate("init", str(tmp_path / "file" / "cluster"))
    assert code == 1
    assert str(tmp_path / "file") in err
    assert "Traceback" not in err
