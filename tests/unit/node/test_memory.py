"""What a member must not forget between two runs: that it had a log, and that it was removed."""

from pathlib import Path

import pytest
from quorate_core.errors import SettingsError
from quorate_core.process import EXIT_SETTINGS
from quorate_node.memory import RAFT_FOLDER, REMOVED_MARK, note_begun, note_removed, require_memory
from quorate_node.settings import NodeSettings
from quorate_raft import FileDisk, MemberRemoved, holds_log


def settings_of(folder: Path, state: str = "new", begun_file: Path | None = None) -> NodeSettings:
    words = ["--name", "n1", "--data-dir", str(folder / "data"), "--http", "127.0.0.1:1", "--peer", "127.0.0.1:2"]
    words += ["--members", "n1=127.0.0.1:2", "--cluster-id", "c-1", "--cluster-secret-file", "s"]
    words += ["--cluster-state", state] + (["--begun-file", str(begun_file)] if begun_file else [])
    return NodeSettings.from_command_line("node", words)


def give_log(settings: NodeSettings) -> None:
    """A log, as far as its file's name tells."""
    folder = settings.data_dir / RAFT_FOLDER
    with FileDisk(folder) as disk:
        disk.write_atomically("wal-00000000000000000001.log", b"x")
    assert holds_log(folder)


@pytest.mark.parametrize("state", ["new", "join"])
def test_a_member_may_begin_with_nothing_when_it_is_told_how(tmp_path: Path, state: str) -> None:
    require_memory(settings_of(tmp_path, state))


@pytest.mark.parametrize("state", ["new", "join", "existing"])
def test_with_its_log_a_member_goes_on_however_it_is_told_to_begin(tmp_path: Path, state: str) -> None:
    settings = settings_of(tmp_path, state)
    give_log(settings)
    require_memory(settings)


def test_a_member_that_had_a_log_does_not_start_without_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="must not vote") as refused:
        require_memory(settings_of(tmp_path, "existing"))
    assert "--cluster-state existing" in refused.value.detail


@pytest.mark.parametrize("state", ["new", "join"])
def test_a_member_that_has_begun_notices_the_loss_of_its_data_by_a_file_that_lies_elsewhere(
    tmp_path: Path, state: str
) -> None:
    settings = settings_of(tmp_path, state, tmp_path / "elsewhere")
    require_memory(settings)
    note_begun(settings)
    assert (tmp_path / "elsewhere").read_text() == "n1 of c-1\n"
    with pytest.raises(SettingsError, match="must not vote") as refused:
        require_memory(settings)
    assert f"--begun-file {tmp_path / 'elsewhere'} is there" in refused.value.detail
    give_log(settings)
    require_memory(settings)


def test_the_begun_file_is_written_once_and_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "begun"
    path.write_text("as it was")
    note_begun(settings_of(tmp_path, begun_file=path))
    assert path.read_text() == "as it was"
    with pytest.raises(SettingsError, match="no-folder/begun cannot be written: No such file"):
        note_begun(settings_of(tmp_path, begun_file=tmp_path / "no-folder" / "begun"))
    note_begun(settings_of(tmp_path))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["begun"]


def test_a_member_that_was_removed_says_so_at_each_start_and_names_the_folder_that_can_go(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "existing")
    give_log(settings)
    told = note_removed(settings, MemberRemoved("n1 was removed"))
    assert told.detail == f"n1 was removed. {settings.data_dir} can be deleted"
    with pytest.raises(MemberRemoved) as refused:
        require_memory(settings)
    assert refused.value.detail == told.detail
    assert EXIT_SETTINGS == 78
    assert isinstance(refused.value, SettingsError), "the family that ends a process with EXIT_SETTINGS"


def test_a_removal_is_told_though_the_mark_cannot_be_left(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    told = note_removed(settings, MemberRemoved("n1 was removed"))
    assert "it could not be marked: No such file" in told.detail
    assert not (settings.data_dir / REMOVED_MARK).exists()
