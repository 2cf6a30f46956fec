"""Credentials: generated once, kept private, and weak ones refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from quorate_core.errors import SettingsError
from quorate_core.secrets import generate_secret, load_or_create_secret, load_secret, widest_mode


def test_the_first_call_generates_and_later_calls_read(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first = load_or_create_secret(path)
    assert load_or_create_secret(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["secret"]


def test_of_two_that_create_at_once_one_wins_for_both(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(lambda _: load_or_create_secret(path), range(16)))) == 1


def test_two_secrets_differ() -> None:
    assert generate_secret() != generate_secret()


def test_a_secret_that_others_can_read_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    load_or_create_secret(path)
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_secret(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610])
def test_a_file_of_its_readers_own_is_for_its_owner_alone(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    load_or_create_secret(path)
    path.chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_secret(path)
    path.chmod(0o400)
    assert len(load_secret(path)) >= 32


@pytest.mark.parametrize(
    ("owner_uid", "reader_uid", "widest"),
    [
        (10001, 10001, 0o600),
        (0, 0, 0o600),  # root's own: no group stands between it and the file
        (0, 10001, 0o640),  # what Kubernetes mounts: root's, and readable by the group of fsGroup
        (10002, 10001, 0o600),  # a third one's, who could change it
    ],
)
def test_only_what_root_hands_out_may_be_read_by_a_group(owner_uid: int, reader_uid: int, widest: int) -> None:
    assert widest_mode(owner_uid, reader_uid) == widest


@pytest.mark.parametrize("weak", ["", "changeme", "a" * 64, "abcabcabc" * 8])
def test_a_weak_secret_is_refused(tmp_path: Path, weak: str) -> None:
    path = tmp_path / "secret"
    path.write_text(weak)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="too weak"):
        load_secret(path)


def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        load_secret(tmp_path / "nowhere")
